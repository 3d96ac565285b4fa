import json
import stat
from pathlib import Path

import pytest
import torch

from mec.errors import InputError
from mec.files import replacing
from mec.models import create_encoder, load_encoder, save_encoder

OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(create_encoder("resnet18", 32, 1, mean=[0.3], std=[0.2], options=OPTIONS), tmp_path)
    return tmp_path


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    encoder = create_encoder("resnet18", 32, 2, options=OPTIONS)
    encoder(torch.randn(4, 2, 32, 32))  # moves the BatchNorm statistics
    save_encoder(encoder, tmp_path)
    for source in (tmp_path, tmp_path / "encoder.safetensors", str(tmp_path)):
        loaded = load_encoder(source)
        assert loaded.spec == encoder.spec
        assert not loaded.training
        x = torch.randn(2, 2, 32, 32)
        assert torch.equal(loaded(x), encoder.eval()(x))


def test_the_files_are_enough_without_this_package(folder: Path) -> None:
    import timm
    from safetensors.torch import load_file

    spec = json.loads((folder / "encoder.json").read_text())
    model = timm.create_model(spec["backbone"], num_classes=0, in_chans=spec["channels"], **spec["options"])
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.load_state_dict(load_file(folder / "encoder.safetensors"))


def test_a_timm_name_is_untrained_at_its_published_size() -> None:
    encoder = load_encoder("resnet18")
    assert encoder.untrained
    assert encoder.image_size == 224


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_damaged_files_are_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
    with pytest.raises(InputError, match=r"encoder: .*encoder\.(json|safetensors)"):
        load_encoder(folder)


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    spec = json.loads((folder / "encoder.json").read_text()) | {"options": {}}
    (folder / "encoder.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="does not fit resnet18"):
        load_encoder(folder)


@pytest.mark.parametrize("source", ["nowhere/run", "resnet19", "a.pth"])
def test_nothing_there(source: str) -> None:
    with pytest.raises(InputError, match="encoder: "):
        load_encoder(source)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
