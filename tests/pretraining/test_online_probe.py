import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mec import evaluate
from mec.errors import InputError
from mec.models import create_encoder
from mec.pretraining import ProjectorSettings, Recipe, load_recipe, pretrain
from mec.pretraining.online_probe import MAX_IMAGES, OnlineProbe, create_online_probe

TINY = replace(
    load_recipe("digits"),
    # stochastic depth uses the random number generator: a probe that advances it would change the weights
    backbone_options={"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "drop_path_rate": 0.2},
    image_size=16,
    epochs=2,
    projector=ProjectorSettings(32, 16),
    workers=0,
)


def run(folder: Path, recipe: Recipe, *probes: OnlineProbe, resume: bool = False) -> Path:
    return pretrain("digits", folder, recipe, resume, probes).folder


def digits_probe(every_n_epochs: int | None = None) -> OnlineProbe:
    return OnlineProbe("digits", every_n_epochs, workers=0)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "probes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_IMAGES, "train", 200)
    monkeypatch.setitem(MAX_IMAGES, "test", 50)


@pytest.mark.usefixtures("few_images")
def test_weights_are_bit_identical_with_and_without_probes(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", TINY)
    probed = run(tmp_path / "probed", TINY, digits_probe(1))
    a, b = (load_file(folder / "encoder.safetensors") for folder in (plain, probed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["epoch"] for row in read_rows(probed)] == ["0", "1", "2"]
    assert not (plain / "probes.csv").exists()


def test_first_and_last_probe_equal_the_evaluations_of_the_run(tmp_path: Path) -> None:
    """There are fewer digits than the probe's maximum, so both use the same images."""
    folder = run(tmp_path / "run", TINY, digits_probe(2))
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == ["0", "2"]
    knn = evaluate.knn("digits", folder, k=[20])
    linear = evaluate.linear("digits", folder)
    for probe, name in zip(rows, ("untrained", "encoder"), strict=True):
        assert float(probe["knn_top1"]) == pytest.approx(knn.metric("k=20", name).value, abs=0.005)
        assert float(probe["linear_top1"]) == pytest.approx(linear.metric("top-1", name).value, abs=0.01)


@pytest.mark.usefixtures("few_images")
def test_a_resumed_run_repeats_the_probes_after_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_FACTOR", 0)
    options = {name: value for name, value in TINY.backbone_options.items() if name != "drop_path_rate"}
    recipe = replace(TINY, backbone_options=options)
    folder = run(tmp_path / "run", recipe, digits_probe(1))
    before = read_rows(folder)
    checkpoints = sorted((folder / "checkpoints").iterdir())
    checkpoints[-1].unlink()
    run(folder, recipe, digits_probe(1), resume=True)
    assert [dict(row, seconds="") for row in read_rows(folder)] == [dict(row, seconds="") for row in before]


@pytest.mark.usefixtures("few_images")
def test_a_large_dataset_is_subsampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = OnlineProbe("digits", workers=0)
    sizes = [len(dataset) for dataset in probe.datasets]
    assert sizes == pytest.approx([200, 50], abs=5)
    assert np.bincount(probe.datasets[0].labels).min() > 0
    run(tmp_path / "run", replace(TINY, epochs=1), probe)
    printed = capsys.readouterr().err
    assert "epoch 1/1  online probe: kNN" in printed
    assert f"({sizes[0]} train and {sizes[1]} test images" in printed


def test_too_many_corrupt_images_end_the_probes_but_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, red in (("a", 60), ("b", 190)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (20, 20), (red, i, 0)).save(tmp_path / name / f"{i:02}.png")
    for i in range(8):
        (tmp_path / "a" / f"{i:02}.png").write_bytes(b"")
    probe = OnlineProbe(tmp_path, 1, workers=0)
    recipe = replace(TINY, channels=3, max_corrupt=0.5, batch_size=8, epochs=2)
    folder = pretrain(tmp_path, tmp_path / "run", recipe, callbacks=[probe]).folder
    assert (folder / "encoder.safetensors").exists()
    assert capsys.readouterr().err.count("no more online probes: data: ") == 1
    assert not (folder / "probes.csv").exists()


def test_without_labels_there_is_no_probe_unless_it_is_requested(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert create_online_probe(tmp_path, None) is None
    assert create_online_probe("digits", 0) is None
    with pytest.raises(InputError, match="have no labels"):
        create_online_probe(tmp_path, 5)
    with pytest.raises(InputError, match="every_n_epochs: expected at least 1"):
        create_online_probe("digits", -1)


def test_a_probe_changes_neither_encoder_nor_generator() -> None:
    encoder = create_encoder("resnet18", 16, 1, False, options=TINY.backbone_options).train()
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    top1 = digits_probe().evaluate(encoder, torch.device("cpu"))
    assert set(top1) == {"knn_top1", "linear_top1"}
    assert encoder.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())
