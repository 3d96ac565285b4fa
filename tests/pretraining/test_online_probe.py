import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from mec import evaluate
from mec.errors import InputError
from mec.pretraining import ProjectorSettings, Recipe, load_recipe, pretrain
from mec.pretraining.online_probe import MAX_IMAGES, OnlineProbe, online_probe

TINY = replace(
    load_recipe("digits"),
    # drop_path draws random numbers: a probe that moved the generator would be seen
    backbone_options={"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "drop_path_rate": 0.2},
    image_size=16,
    epochs=4,
    projector=ProjectorSettings(32, 16),
    workers=0,
)


def run(folder: Path, recipe: Recipe, *probes: OnlineProbe, resume: bool = False) -> Path:
    return pretrain("digits", folder, recipe, resume, Console(file=StringIO()), probes).folder


def probe(every: int | None = None) -> OnlineProbe:
    return OnlineProbe("digits", every, workers=0, console=Console(file=StringIO()))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "probes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_ends_bit_for_bit_as_without(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", TINY)
    probed = run(tmp_path / "probed", TINY, probe(1))
    a, b = (load_file(folder / "encoder.safetensors") for folder in (plain, probed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r["epoch"] for r in rows(probed)] == ["1", "2", "3", "4"]
    assert not (plain / "probes.csv").exists()


def test_figures_are_those_of_the_evaluations(tmp_path: Path) -> None:
    """After the last epoch: the same as evaluating the run, for digits are fewer than the probe takes at most."""
    folder = run(tmp_path / "run", TINY, probe(3))
    found = rows(folder)
    assert [r["epoch"] for r in found] == ["3", "4"]
    knn = evaluate.knn("digits", folder, k=[20], baselines=False)
    linear = evaluate.linear("digits", folder, baselines=False)
    assert float(found[-1]["kNN"]) == pytest.approx(knn.figures["encoder"]["k=20"], abs=0.005)
    assert float(found[-1]["linear"]) == pytest.approx(linear.figures["encoder"]["top-1"], abs=0.01)


def test_a_resumed_run_measures_again_what_came_after_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mec.pretraining.checkpointing.SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("mec.pretraining.checkpointing.SAVE_INTERVAL_FACTOR", 0)
    options = {name: value for name, value in TINY.backbone_options.items() if name != "drop_path_rate"}
    settings = replace(TINY, backbone_options=options)
    folder = run(tmp_path / "run", settings, probe(1))
    before = rows(folder)
    checkpoints = sorted((folder / "checkpoints").iterdir())
    checkpoints[-1].unlink()
    run(folder, settings, probe(1), resume=True)
    assert [dict(r, seconds="") for r in rows(folder)] == [dict(r, seconds="") for r in before]


def test_many_images_are_probed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_IMAGES, "train", 200)
    monkeypatch.setitem(MAX_IMAGES, "test", 50)
    console = Console(file=StringIO(), width=200)
    probe = OnlineProbe("digits", console=console, workers=0)
    sizes = [len(part) for part in probe.parts]
    assert sizes == pytest.approx([200, 50], abs=5)
    assert np.bincount(probe.parts[0].labels).min() > 0
    run(tmp_path / "run", replace(TINY, epochs=1), probe)
    assert "epoch 1/1  online probe: kNN" in console.file.getvalue()
    assert f"({sizes[0]} train and {sizes[1]} test images" in console.file.getvalue()


def test_broken_images_end_the_probes_and_not_the_run(tmp_path: Path) -> None:
    for name, tone in (("a", 60), ("b", 190)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (20, 20), (tone, i, 0)).save(tmp_path / name / f"{i:02}.png")
    for i in range(8):
        (tmp_path / "a" / f"{i:02}.png").write_bytes(b"")
    console = Console(file=StringIO(), width=300)
    probe = OnlineProbe(tmp_path, 1, workers=0, console=console)
    recipe = replace(TINY, channels=3, max_corrupt=0.5, batch_size=8, epochs=2)
    folder = pretrain(tmp_path, tmp_path / "run", recipe, console=Console(file=StringIO()), callbacks=[probe]).folder
    assert (folder / "encoder.safetensors").exists()
    assert console.file.getvalue().count("no more online probes: data: ") == 1
    assert not (folder / "probes.csv").exists()


def test_where_there_are_no_labels_it_stays_away_unless_asked(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert online_probe(tmp_path, None) is None
    assert online_probe("digits", 0) is None
    with pytest.raises(InputError, match="has no labels"):
        online_probe(tmp_path, 5)
    with pytest.raises(InputError, match="every: expected at least 1 epoch"):
        online_probe("digits", -1)


def test_the_encoder_is_left_as_it_was() -> None:
    from mec.models import create_encoder

    encoder = create_encoder("resnet18", 16, 1, False, options=TINY.backbone_options).train()
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    figures = probe().measure(encoder, torch.device("cpu"))
    assert set(figures) == {"kNN", "linear"}
    assert encoder.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
