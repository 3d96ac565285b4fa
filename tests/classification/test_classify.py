"""Labels for the images of a folder, from a few labeled ones."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import mec
from mec.classification import classify
from mec.cli.main import main
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.models.head import load_head

COLORS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 60 photographs of three colors, 4 of each also in labeled/CLASS, and a corrupt one."""
    root = tmp_path_factory.mktemp("classify")
    rng = np.random.default_rng(0)
    (root / "photographs").mkdir()
    for name, color in COLORS.items():
        (root / "labeled" / name).mkdir(parents=True)
        for n in range(20):
            pixels = np.array(color) + rng.integers(-15, 15, (24, 32, 3))
            file = root / "photographs" / f"{name}-{n:02}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            if n < 4:
                shutil.copy(file, root / "labeled" / name / f"{n}.png")
    (root / "photographs" / "corrupt.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def encoder() -> mec.Encoder:
    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}
    return create_encoder("resnet18", 24, 3, options=options).eval()


@pytest.fixture(scope="module")
def weights(encoder: mec.Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mec.save_encoder(encoder, tmp_path_factory.mktemp("encoder"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_folder_is_labeled_with_probabilities(
    folder: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="mec")
    out, head = tmp_path / "labels.csv", tmp_path / "head.safetensors"
    arguments = [folder / "labeled", folder / "photographs", "--encoder", weights, "--out", out, "--save", head]
    assert main(["classify", *map(str, arguments), "--workers", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    labels = rows(out)
    assert len(labels) == 60
    assert all(Path(row["path"]).name.startswith(row["label"]) for row in labels)
    assert all(float(row["probability"]) >= float(row["second_probability"]) > 0 for row in labels)
    assert all(row["second"] in COLORS and row["second"] != row["label"] for row in labels)
    assert {row["status"] for row in labels} <= {"sure", "unsure"}
    assert "nearest class mean of 12 labeled images of 3 classes (4 per class)" in caplog.text
    assert "leave-one-out accuracy 100.0 % (95 % interval 75.8 to 100.0 %) of 12 labeled images" in caplog.text
    assert "skipped 1 corrupt image" in caplog.text
    with Image.open(tmp_path / "labels.png") as page:
        assert page.height > 3 * 128
    # the saved classifier gives the same labels for the same images
    again = tmp_path / "again.csv"
    classify(head, folder / "photographs", weights, again, workers=0)
    assert rows(again) == labels


def test_images_with_a_label_keep_it(folder: Path, encoder: mec.Encoder, tmp_path: Path) -> None:
    table = tmp_path / "known.csv"
    known = [("ant-00", "ant"), ("ant-01", "ant"), ("bee-00", "bee"), ("bee-01", "bee"), ("ant-02", "bee")]
    lines = ["path,label", *(f"{folder / 'photographs' / f'{name}.png'},{label}" for name, label in known)]
    table.write_text("\n".join(lines))
    result = classify(table, folder / "photographs", encoder, tmp_path / "labels.csv", workers=0)
    labels = {Path(row["path"]).stem: row for row in rows(result.file)}
    for name, label in known:
        assert (labels[name]["label"], labels[name]["status"], labels[name]["probability"]) == (
            label,
            "given",
            "1.0000",
        )
    assert sum(row["status"] == "given" for row in labels.values()) == 5
    assert result.classes == ["ant", "bee"]


def test_a_high_threshold_makes_labels_unsure(folder: Path, encoder: mec.Encoder, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    classify(folder / "labeled", folder / "photographs", encoder, out, unsure=1.0, workers=0)
    assert {row["status"] for row in rows(out)} == {"unsure"}


def test_the_onnx_model_returns_the_probabilities(folder: Path, weights: Path, tmp_path: Path) -> None:
    out, head = tmp_path / "labels.csv", tmp_path / "head.safetensors"
    classify(folder / "labeled", folder / "photographs", weights, out, save=head, workers=0)
    model = tmp_path / "model.onnx"
    command = ["export", "--encoder", weights, "--format", "onnx", "--out", model, "--head", head]
    assert main([str(argument) for argument in command]) == 0
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(COLORS)
    for row in rows(out)[::10]:
        image = Image.open(row["path"]).crop((4, 0, 28, 24))  # the central square, of the size of the encoder
        x = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255
        (probabilities,) = session.run([metadata["output_name"]], {metadata["input_name"]: x})
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert list(COLORS)[int(probabilities.argmax())] == row["label"]
        assert float(probabilities.max()) == pytest.approx(float(row["probability"]), abs=2e-3)


def test_one_label_per_class_has_no_accuracy(
    folder: Path, encoder: mec.Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in COLORS:
        (tmp_path / "labeled" / name).mkdir(parents=True)
        shutil.copy(folder / "labeled" / name / "0.png", tmp_path / "labeled" / name)
    out = tmp_path / "labels.csv"
    result = classify(tmp_path / "labeled", folder / "photographs", encoder, out, workers=0)
    assert "accuracy cannot be estimated" in caplog.text
    assert result.fit is not None
    assert len(result.fit.held_out) == 0
    assert all(Path(row["path"]).name.startswith(row["label"]) for row in rows(out))


def test_wrong_arguments_are_named(folder: Path, encoder: mec.Encoder, tmp_path: Path) -> None:
    labeled, photographs, out = folder / "labeled", folder / "photographs", tmp_path / "labels.csv"

    def message(*arguments: object, **options: object) -> str:
        with pytest.raises(InputError) as caught:
            classify(*arguments, workers=0, **options)  # type: ignore[arg-type]
        return str(caught.value)

    assert message(labeled, photographs, encoder, tmp_path / "labels.txt").startswith("out: expected a name that ends")
    assert message(labeled, photographs, encoder, photographs / "l.csv").startswith("out: ")
    assert message(labeled, photographs, encoder, out, save=tmp_path / "head.pt").startswith("save: expected a name")
    assert message(labeled, photographs, encoder, out, unsure=2.0).startswith("unsure: expected a probability")
    assert message(photographs, photographs, encoder, out).startswith("labeled: expected labels in")
    assert message(labeled / "ant", photographs, encoder, out).startswith("labeled: expected")
    assert message(tmp_path / "no.safetensors", photographs, encoder, out).startswith("head: expected a file")
    (tmp_path / "other.safetensors").write_bytes(b"x" * 100)
    assert message(tmp_path / "other.safetensors", photographs, encoder, out).startswith("head: expected a file")
    out.touch()
    assert message(labeled, photographs, encoder, out).startswith("out: expected a new file")
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".png"] == []


def test_a_classifier_of_other_weights_is_refused(folder: Path, encoder: mec.Encoder, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    classify(folder / "labeled", folder / "photographs", encoder, tmp_path / "labels.csv", save=head, workers=0)
    assert load_head(head).classes == list(COLORS)
    other = create_encoder("resnet18", 24, 3, options=encoder.spec.options)
    with pytest.raises(InputError, match=r"^encoder: expected the one that"):
        classify(head, folder / "photographs", other, tmp_path / "others.csv", workers=0)
    with pytest.raises(InputError, match=r"^head: expected a classifier of this encoder"):
        mec.export(other, "onnx", tmp_path / "model.onnx", head=head)
    with pytest.raises(InputError, match=r"^head: expected format onnx, got timm"):
        mec.export(encoder, "timm", tmp_path / "timm", head=head)
