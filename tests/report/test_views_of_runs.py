from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.errors import InputError
from mec.pretraining import Recipe
from mec.pretraining.contact_sheet import training_views
from mec.report.schema import Missing
from mec.report.views import views
from tests.report.runs import decoded, make_run, narrow, noisy, silent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images & <b>names"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(noisy(i, 60, 80)).save(folder / f"<i>{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_images_and_the_pairs_of_the_first_epochs(data: Path, tmp_path: Path) -> None:
    seen = views(make_run(tmp_path / "run", data, seed=3), None, silent)
    assert isinstance(seen, list)
    assert [len(one.pairs) for one in seen] == [3] * 4
    made = training_views(data, Recipe(image_size=32, seed=3), 4, 3)
    for one, expected in zip(seen, made, strict=True):
        assert one.image.alt == Path(expected.title).name
        assert (one.image.width, one.image.height) == (96, 72)
        photograph = np.asarray(Image.open(expected.title).resize((96, 72)))
        assert np.abs(decoded(one.image) - photograph).mean() < 8
        for epoch, (pair, tensors) in enumerate(zip(one.pairs, expected.pairs, strict=True), 1):
            for number, (view, x) in enumerate(zip(pair, tensors, strict=True), 1):
                assert view.alt == f"view {number} of {one.image.alt}, epoch {epoch}"
                values = np.rint(x.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
                assert np.abs(decoded(view) - np.asarray(Image.fromarray(values).resize((96, 96)))).mean() < 12


def test_gray_sixteen_bits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([noisy(i, channels=1).astype(np.uint16) * 256 for i in range(4)]))
    run = make_run(tmp_path / "run", tmp_path / "a.npz", narrow(channels=1))
    seen = views(run, None, silent)
    assert isinstance(seen, list)
    gray = decoded(seen[0].image)
    assert np.abs(gray - gray.mean(axis=2, keepdims=True)).max() < 3
    assert gray.std() > 5


def test_what_is_missing_is_said(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "gone")
    found = views(run, None, silent)
    assert isinstance(found, Missing)
    assert "gone does not exist" in found.reason
    assert "--data" in found.reason
    assert isinstance(views(run, data, silent), list)
    with pytest.raises(InputError, match="nowhere does not exist"):
        views(run, "nowhere", silent)
    (run / "recipe.yaml").write_text("no: recipe")
    broken = views(run, data, silent)
    assert isinstance(broken, Missing)
    assert "recipe" in broken.reason
