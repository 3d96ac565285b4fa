"""``detect``: what an encoder is worth as the start of an object detector."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from mec.distributed import is_rank_zero
from mec.engine.checkpoints import latest_checkpoint
from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections, as_records
from mec.evaluate.detection.detectors import WEIGHTS, DetectorSpec, load_detector, save_detector
from mec.evaluate.detection.metrics import figures
from mec.evaluate.detection.network import architecture_for
from mec.evaluate.detection.schedules import SCHEDULES, YEARS
from mec.evaluate.detection.trainer import detection_trainer
from mec.evaluate.detection.training import look, train
from mec.evaluate.task import EncoderLike, Source, check_channels, pixel_format_of, with_baseline
from mec.files import atomic_write
from mec.models.encoder import Encoder
from mec.models.io import load_encoder
from mec.results import DatasetSummary, Protocol, Result, Stopwatch, mean_metrics

ASKED, FIGURES, DETECTIONS = "detect.json", "figures.json", "detections.json"
TABLE = ("AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75")


def detect(
    data: Source,
    encoder: EncoderLike,
    out: str | os.PathLike[str],
    schedule: Literal["short", "voc07", "voc07+12", "coco-1x", "coco-2x"] = "short",
    architecture: Literal["c4", "fpn"] | None = None,
    trials: int = 1,
    seed: int = 0,
    baselines: bool | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    short_side: int | None = None,
    devices: int | str = "auto",
    nodes: int | str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    workers: int | None = None,
    resume: bool = False,
) -> Result:
    """Train a detector that begins with the encoder, all layers, and measure its AP, AP50 and AP75.

    Faster R-CNN; Mask R-CNN where the data has masks. Data is PASCAL VOC (a VOCdevkit) or COCO (annotations/*.json
    beside the images; Roboflow's layout; one .json).

    Schedules: voc07+12 (24,000 iterations of 16 images, tested on VOC2007 test), voc07 (9,000), coco-1x (90,000) and
    coco-2x (180,000), all as MoCo and SimSiam have them with detectron2; and short, for a trial or a laptop: 500
    iterations of 8 small images, whose figures compare with nothing but each other.

    Args:
        data: a detection set; images of one part are learned from, those of the other are tested on.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: a folder for the detectors, their checkpoints, figures and detections.
        schedule: short, voc07, voc07+12, coco-1x or coco-2x.
        architecture: c4, a ResNet's last stage on each region, as in the published figures; fpn, for any encoder.
            null: c4 for ResNets, fpn for all others.
        trials: detectors to train, each with other new layers and another order; 5 for a published VOC number.
        seed: of the first trial.
        baselines: train a detector that begins with the untrained encoder too; null: with the schedule short.
        max_steps: in place of the schedule's; milestones and warm-up move in proportion.
        batch_size: in place of the schedule's; the learning rate changes in proportion, the steps inversely.
        lr: learning rate, in place of the schedule's.
        short_side: short side of the images in testing; those in training change in proportion.
        devices: auto (all GPUs, or one process of a CPU) or a number of them.
        nodes: machines, or auto: as torchrun or SLURM started the command on each, else one.
        precision: auto is bf16-mixed on GPUs that have it, else 32-true.
        workers: loader processes of each device; null is one per core.
        resume: go on with what is in ``out``, from the newest checkpoint.

    Raises:
        InputError: what is wrong with the data, the encoder or a setting, before anything is written; or that training
            diverged.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if trials < 1:
        raise InputError(f"trials: expected at least 1, got {trials}")
    clock = Stopwatch()
    plan = SCHEDULES[schedule].adapted(max_steps, batch_size, lr, short_side)
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    form = architecture_for(encoder, architecture)
    out = _checked(Path(out).expanduser(), resume)
    learned, tested = open_annotated(data, YEARS.get(schedule))
    check_channels(learned.images, encoder, data)
    spec = DetectorSpec(
        encoder.spec, form, learned.categories, learned.category_ids.tolist(), learned.has_masks, plan
    )  # fmt: skip
    encoders = with_baseline(encoder, schedule == "short" if baselines is None else baselines)
    _try(spec, encoder, detection_trainer(plan, out, "", devices, nodes, precision))
    _begin(out, {"data": str(data), "weights": encoder.description, **asdict(spec)}, resume)
    if is_rank_zero():
        log(f"encoder: {encoder.description}")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in encoders}
    for number in range(seed, seed + trials):
        for name, of in encoders.items():
            label = f"{name}-{number}" if trials > 1 else name
            maker = _Making(spec, of, learned, tested, out / f"{name}-{number}", label, number, workers)
            rows[name].append(maker.run(devices, nodes, precision))
    metric = {"coco": "COCO", "voc07": "VOC2007 (11 points)", "voc": "VOC"}[tested.rules]
    detector = f"{'Mask' if learned.has_masks else 'Faster'} R-CNN {form.upper()}"
    return Result(
        task="detect",
        protocol=Protocol(
            f"detect-{schedule}",
            {"detector": detector, **plan.protocol_settings(), "metric": metric, "seed": seed, "trials": trials},
        ),
        dataset=DatasetSummary(
            str(data), {"train": len(learned), "test": len(tested), "classes": len(learned.categories)}
        ),
        encoder=encoder.description,
        rows={
            name: mean_metrics([{k: v for k, v in trial.items() if k in TABLE} for trial in values])
            for name, values in rows.items()
        },
        seconds=clock(),
    )


def _checked(out: Path, resume: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file, expected a folder")
    if resume and not (out / ASKED).exists():
        raise InputError(f"resume: {out} holds no detectors")
    if not resume and (out / ASKED).exists() and is_rank_zero():
        raise InputError(f"out: {out} already holds detectors; take another folder, or --resume")
    return out


def _try(spec: DetectorSpec, encoder: Encoder, trainer: lightning.Trainer) -> None:
    """Refuse what would be refused later, when something is written already."""
    batch, processes = spec.schedule.batch_size, trainer.world_size
    if batch % processes:
        raise InputError(f"batch_size: {batch} cannot be divided among {processes} processes")
    with torch.random.fork_rng():
        spec.build(encoder)


def _begin(out: Path, asked: dict[str, Any], resume: bool) -> None:
    asked = json.loads(json.dumps(asked))
    if resume:
        try:
            before = _flat(json.loads((out / ASKED).read_text()))
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"resume: {out / ASKED} cannot be read ({error})") from error
        now = _flat(asked)
        if changed := [name for name in now if now[name] != before.get(name)]:
            shown = "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
            raise InputError(f"resume: {out} was made with other settings: {shown}")
    elif is_rank_zero():
        try:
            with atomic_write(out / ASKED) as path:
                path.write_text(json.dumps(asked, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"out: {out} cannot be written to ({error.strerror})") from error


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """With the settings of a group beside the others."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


class _Making:
    """One detector: trained, saved, tested; what is there already is not done again."""

    def __init__(
        self, spec: DetectorSpec, encoder: Encoder, learned: AnnotatedDataset, tested: AnnotatedDataset, folder: Path,
        label: str, seed: int, workers: int | None,
    ) -> None:  # fmt: skip
        self.spec, self.encoder, self.learned, self.tested = spec, encoder, learned, tested
        self.folder, self.label, self.seed, self.workers = folder, label, seed, workers

    def run(self, devices: int | str, nodes: int | str, precision: str) -> dict[str, float]:
        """Its figures."""
        if (self.folder / FIGURES).exists():
            overall: dict[str, float] = json.loads((self.folder / FIGURES).read_text())["overall"]
            return overall
        plan, reading = self.spec.schedule, pixel_format_of(self.encoder)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            trainer = detection_trainer(plan, self.folder, self.label, devices, nodes, precision)
            if (self.folder / WEIGHTS).exists():
                detector, _ = load_detector(self.folder)
            else:
                detector = self.spec.build(self.encoder)
                checkpoint = latest_checkpoint(self.folder, log)
                train(detector, self.learned, reading, plan, trainer, self.seed, self.workers, checkpoint)
                if trainer.is_global_zero:
                    save_detector(detector, self.spec, self.folder)
            found = look(detector, self.tested.images, reading, plan, trainer, self.workers)
        return self._measured(found, trainer.is_global_zero)

    def _measured(self, found: dict[int, Detections], writes: bool) -> dict[str, float]:
        """The figures over the images that could be read."""
        numbers = torch.tensor(sorted(found)).numpy()
        measured = figures(self.tested.subset(numbers), [found[n] for n in numbers.tolist()])
        if writes:
            records = [
                record
                for n in numbers.tolist()
                for record in as_records(found[n], self.tested.ids[n], self.tested.category_ids)
            ]
            with atomic_write(self.folder / DETECTIONS) as path:
                path.write_text(json.dumps(records))
            with atomic_write(self.folder / FIGURES) as path:
                path.write_text(json.dumps(measured._asdict(), indent=2) + "\n")
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # the detector has them in it
        return measured.overall
