"""``mec evaluate``: a sub-command for each task."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mec.cli.parser import DATA_HELP, ENCODER_HELP, Parser, add_settings, description_of, parameter_names
from mec.errors import InputError

if TYPE_CHECKING:
    from mec.evaluate import Result

TASKS = {
    "knn": ("weighted nearest neighbors; nothing is trained", "cifar10 --encoder runs/cifar10"),
    "linear": ("linear classifier on frozen features", "pets/ birds/ --encoder runs/pets"),
    "few-shot": ("1, 5 or 10 labels per class, nearest class mean", "pets/ --encoder runs/pets --shots 1,5"),
    "finetune": ("finetune the network on a fraction of the labels", "pets/ --encoder runs/pets --label_fraction 0.1"),
    "detect": ("object detection and instance segmentation", "coco/ --encoder runs/pets --out runs/coco"),
    "sot": ("single-object tracking; nothing is trained", "OTB100/ --encoder runs/pets --tracker both"),
    "vos": ("video object segmentation; nothing is trained", "DAVIS/ --encoder runs/pets --render davis.mp4"),
    "mot": ("multi-object tracking of given boxes", "MOT17/ --encoder runs/pets --sequences '*-FRCNN'"),
    "mots": ("multi-object tracking of given masks", "MOTS/ --encoder runs/pets --out runs/mots"),
    "pose": ("tracking of people by given poses", "posetrack18/ --encoder runs/pets --motion"),
}
"""Task -> summary, and the arguments of an example."""
DETECTION_HELP = (
    "a VOCdevkit; or COCO: a folder with annotations/instances_train*.json and instances_val*.json, Roboflow's layout, "
    "or one .json"
)
PATTERNS = "sequences to evaluate, or patterns, such as"
TRACKING_HELP = {
    "sot": ("sequences with a box in every frame: OTB, GOT-10k or LaSOT, or one sequence's folder",
            f'{PATTERNS} "Couple,Jogging-*"; absent: all'),
    "vos": ("DAVIS 2016 or 2017 (JPEGImages, Annotations), or a folder of that layout",
            f'{PATTERNS} "blackswan,dog*"; absent: the val list, or all without one'),
    "mot": ("sequences with boxes: MOTChallenge (SEQUENCE/img1, gt, det), or one sequence's folder",
            f'{PATTERNS} "*-FRCNN"; absent: all'),
    "mots": ("sequences with masks: MOTSChallenge or KITTI MOTS, or one sequence's folder",
             f'{PATTERNS} "*-02,*-05"; absent: all'),
    "pose": ("PoseTrack18: a folder with annotations/val/SEQUENCE.json, and the frames they name",
             f'{PATTERNS} "*_mpii_test"; absent: all'),
}  # fmt: skip
"""Tracking task -> help of DATA, and of --sequences."""


def annotated_tasks(data: str) -> dict[str, str]:
    """Return the tasks for whose metrics a folder has annotations of objects, and how they would be read."""
    from mec.evaluate.detection.datasets import open_annotated
    from mec.evaluate.tracking.datasets.davis import open_mask_sequences
    from mec.evaluate.tracking.datasets.motchallenge import open_box_detections
    from mec.evaluate.tracking.datasets.mots import open_mask_detections
    from mec.evaluate.tracking.datasets.posetrack import open_pose_detections
    from mec.evaluate.tracking.datasets.single_object import open_box_sequences
    from mec.evaluate.tracking.sequences import UNUSABLE, SequenceLoaders

    path = Path(data).expanduser()
    openers: dict[str, Callable[[Path], SequenceLoaders[Any]]] = {
        "sot": open_box_sequences,
        "vos": open_mask_sequences,
        "mot": open_box_detections,
        "mots": open_mask_detections,
        "pose": open_pose_detections,
    }
    found: dict[str, str] = {}
    if not path.is_dir():
        return found
    with contextlib.suppress(InputError):
        found["detect"] = f"{len(open_annotated(path)[0]):,} images for training; --check reads all of them"
    for task, open_sequences in openers.items():
        with contextlib.suppress(InputError, *UNUSABLE):
            loaders = open_sequences(path)
            next(iter(loaders.values()))()  # the layouts of several tasks have the same folders
            found[task] = loaders.description
    return found


def task_function(task: str) -> Callable[..., Result]:
    """Return the function of a task in ``mec.evaluate``."""
    from mec import evaluate

    function: Callable[..., Result] = getattr(evaluate, task.replace("-", "_"))
    return function


def add_task(parser: Parser, arguments: Sequence[str]) -> Callable[..., None]:
    """Add the options of a task: arguments here, settings from the parameters of its function."""
    task = parser.prog.split()[-1]
    function = task_function(task)
    parameters = parameter_names(function)
    several = "" if task == "detect" or task in TRACKING_HELP else " [DATA ...]"
    parser.describe(f"DATA{several} --encoder ENCODER [options]", description_of(function), TASKS[task][1])
    required = parser.add_argument_group("sequences and encoder" if task in TRACKING_HELP else "images and encoder")
    if task == "detect":
        data_help = f"{DETECTION_HELP}; absent: only --predict, with a detector in --out"
        required.add_argument("data", nargs="?", help=data_help)
        required.add_argument("--encoder", help=f"{ENCODER_HELP}; absent: only --predict or --check")
        check_help = "read all annotations and image sizes of DATA, print what they contain, and stop"
        required.add_argument("--check", action="store_true", help=check_help)
        out_help = "folder for the detectors and their metrics; absent: detect-SCHEDULE in the run folder"
        prediction = parser.add_argument_group("prediction")
        prediction.add_argument("--predict", help="images (folder, file, video) to draw detections on; absent: none")
        threshold_help = "smallest score, 0 to 1, of a drawn detection"
        prediction.add_argument("--threshold", type=float, default=0.5, help=threshold_help)
    elif task in TRACKING_HELP:
        required.add_argument("data", help=TRACKING_HELP[task][0])
        required.add_argument("--encoder", required=True, help=ENCODER_HELP)
        required.add_argument("--sequences", help=TRACKING_HELP[task][1])
        out_help = "folder for tracks and metrics of each sequence; absent: a folder in the run folder, or none"
    else:
        required.add_argument("data", nargs="+", help=f"one or several of: {DATA_HELP}")
        required.add_argument("--encoder", required=True, help=ENCODER_HELP)
        out_help = "folder of the results.jsonl to append to, and of checkpoints; absent: the run folder"
    required.add_argument("--out", help=out_help)
    if "resume" in parameters:
        required.add_argument("--resume", action="store_true", help="continue an interrupted evaluation in --out")
    flags = {
        "corrected": "correct errors of the published code; absent: reproduce it, to compare with published numbers",
        "motion": "use motion in the association cost; absent: appearance alone, to compare encoders",
    }
    handled = {"data", "encoder", "out", "resume", "sequences", *flags}
    protocol = add_settings(parser, "protocol", function, handled & parameters)
    for flag in [name for name in flags if name in parameters]:
        protocol.add_argument(f"--{flag}", action="store_true", help=flags[flag])
    return evaluate_detection if task == "detect" else partial(evaluate, task)


def evaluate(task: str, data: Any, encoder: str, out: str | None, **settings: Any) -> None:
    """Evaluate on every DATA and print one table, also before an error; each result is written as soon as it exists."""
    from mec.data import open_dataset
    from mec.distributed import is_rank_zero
    from mec.results import results_table

    function = task_function(task)
    results_folder = out or (encoder if _is_run(encoder) else None)
    if "sequences" in settings:
        settings["sequences"] = split_names(settings["sequences"])
    datasets = data if isinstance(data, list) else [data]
    for dataset in datasets[1:]:
        open_dataset(dataset, "test")  # refuse a wrong name before hours are spent on the first dataset
    results: list[Result] = []
    try:
        for dataset in datasets:
            if "out" in parameter_names(function):
                settings["out"] = files_folder(task, dataset, encoder, out, settings)
            results.append(function(dataset, encoder, **settings))
            if results_folder and is_rank_zero():
                path = results[-1].append_to(results_folder)
    finally:
        if results and is_rank_zero():
            Console(soft_wrap=True).print(results_table(results))
            if results_folder:
                files = {"detect": "detectors and detections", **dict.fromkeys(TRACKING_HELP, "tracks")}.get(task)
                print(f"added to {path}" + (f"; {files} in {settings['out']}" if files and settings["out"] else ""))
    for name, reason in results[-1].skipped.items():
        number = f"{len(results[-1].skipped)} sequence{'s' if len(results[-1].skipped) > 1 else ''}"
        raise InputError(f"data: {number} of {data} could not be used; the first: {name}: {reason}")


def evaluate_detection(
    data: str | None,
    encoder: str | None,
    out: str | None,
    check: bool,
    predict: str | None,
    threshold: float,
    **settings: Any,
) -> None:
    """Train and evaluate detectors, then draw predictions; or only draw, with a detector trained before; or only check
    the data."""
    from mec.distributed import is_rank_zero
    from mec.evaluate.detection.detect import check_threshold, open_prediction_images
    from mec.evaluate.detection.detect import predict as draw_predictions

    if data is None and (check or predict is None):
        raise InputError(f"data: expected {DETECTION_HELP}; or --predict IMAGES --out DETECTORS")
    if check:
        check_detection_data(data, settings["schedule"])
        return
    if data is not None and encoder is None:
        raise InputError("encoder: expected the weights that the detector starts from, such as a run folder")
    detectors = files_folder("detect", data, encoder, out, settings)
    if not detectors:
        raise InputError("out: expected a folder for the detectors, got nothing")
    if predict is not None:
        check_threshold(threshold)  # refuse bad values before hours of training
        open_prediction_images(predict)
    if data is not None:
        evaluate("detect", data, str(encoder), out, **settings)
    if predict is not None:
        folder = draw_predictions(predict, detectors, threshold, settings["devices"], settings["workers"])
        if is_rank_zero():
            print(folder)


def check_detection_data(data: Any, schedule: str) -> None:
    """Print what a detection dataset contains. Raises InputError if it cannot be used."""
    from mec.distributed import is_rank_zero
    from mec.evaluate.detection.datasets import open_annotated
    from mec.evaluate.detection.datasets.checks import check_images, contents_table
    from mec.evaluate.detection.schedules import VOC_TRAIN_YEARS

    checks = check_images(*open_annotated(data, VOC_TRAIN_YEARS.get(schedule)), all_images=True)
    if is_rank_zero():
        Console(soft_wrap=True).print(contents_table(data, checks))
    for check in checks.values():
        check.refuse_or_log()


def files_folder(task: str, data: Any, encoder: str | None, out: str | None, settings: dict[str, Any]) -> str | None:
    """Return the folder for detectors or tracks: ``out``, or a folder in the run folder. For the checkpoints of
    classifiers it is a folder in either. None without both."""
    trains_classifier = task in ("linear", "finetune")
    if trains_classifier and settings["protocol"] == "fast":
        return None
    if (out and not trains_classifier) or data is None or not (out or _is_run(encoder)):
        return out or None
    parts = [task, *(settings.get(name) for name in ("protocol", "schedule", "tracker", "stage"))]
    parts += [flag for flag in ("corrected", "motion") if settings.get(flag)]
    if task != "detect":
        parts.append(Path(data).expanduser().resolve().name)
    return os.path.join(out or str(encoder), "-".join(filter(None, parts)))


def _is_run(encoder: str | None) -> bool:
    return (Path(str(encoder)) / "recipe.yaml").exists()


def split_names(names: str | None) -> list[str] | None:
    """Split NAME,NAME or [NAME,NAME]. YAML would not read one name as a list, and gives * another meaning."""
    if names is None:
        return None
    bracketed = re.fullmatch(r"\s*\[(.*)\]\s*", names)
    return [name.strip(" '\"") for name in (bracketed[1] if bracketed else names).split(",")]
