"""Training views in the report."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.errors import InputError
from mec.pretraining import Recipe
from mec.pretraining.contact_sheet import training_views
from mec.report.schema import Missing
from mec.report.views import embed_views
from tests.report.runs import decode, make_run, narrow_encoder, no_log, smooth_noise


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images & <b>names"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(smooth_noise(i, 60, 80)).save(folder / f"<i>{i}.png")
    (folder / "corrupt.png").write_bytes(b"no image")
    return folder


def test_views_are_those_of_the_first_epochs(data: Path, tmp_path: Path) -> None:
    rows = embed_views(make_run(tmp_path / "run", data, seed=3), None, no_log)
    assert isinstance(rows, list)
    assert [len(row.pairs) for row in rows] == [3] * 4
    samples = training_views(data, Recipe(image_size=32, seed=3), 4, 3)
    for row, sample in zip(rows, samples, strict=True):
        assert row.image.alt == Path(sample.title).name
        assert (row.image.width, row.image.height) == (96, 72)
        photograph = np.asarray(Image.open(sample.title).resize((96, 72)))
        assert np.abs(decode(row.image) - photograph).mean() < 8
        for epoch, (pair, tensors) in enumerate(zip(row.pairs, sample.pairs, strict=True), 1):
            for index, (view, x) in enumerate(zip(pair, tensors, strict=True), 1):
                assert view.alt == f"view {index} of {row.image.alt}, epoch {epoch}"
                values = np.rint(x.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
                assert np.abs(decode(view) - np.asarray(Image.fromarray(values).resize((96, 96)))).mean() < 12


def test_views_of_16_bit_grayscale_images_are_gray(tmp_path: Path) -> None:
    images = np.stack([smooth_noise(i, channels=1).astype(np.uint16) * 256 for i in range(4)])
    np.savez(tmp_path / "a.npz", images=images)
    run = make_run(tmp_path / "run", tmp_path / "a.npz", narrow_encoder(channels=1))
    rows = embed_views(run, None, no_log)
    assert isinstance(rows, list)
    gray = decode(rows[0].image)
    assert np.abs(gray - gray.mean(axis=2, keepdims=True)).max() < 3
    assert gray.std() > 5


def test_missing_images_and_recipes_are_reported(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "gone")
    missing = embed_views(run, None, no_log)
    assert isinstance(missing, Missing)
    assert "gone does not exist" in missing.reason
    assert "--data" in missing.reason
    assert isinstance(embed_views(run, data, no_log), list)
    with pytest.raises(InputError, match="nowhere does not exist"):
        embed_views(run, "nowhere", no_log)
    (run / "recipe.yaml").write_text("no: recipe")
    missing = embed_views(run, data, no_log)
    assert isinstance(missing, Missing)
    assert "recipe" in missing.reason
