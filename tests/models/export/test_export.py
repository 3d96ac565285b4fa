import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from mec.errors import InputError
from mec.models import load_encoder, save_encoder
from mec.models.export.export import export
from tests.models.moved import NARROW, SHALLOW, features, images, moved

FILES = {"torchvision": "e.pth", "detectron2": "e.pkl", "onnx": "e.onnx", "safetensors": "e.safetensors"}
FORMATS = {**FILES, "timm": "e", "huggingface": "e"}


def test_what_cannot_be_expressed_is_refused_in_a_line(tmp_path) -> None:
    small, other = moved("resnet18", 32, options=NARROW), moved("convnext_atto", 64, options={"depths": [1] * 4})
    for encoder, format, message in (
        (small, "timm", "timm has no resnet18 with the small stem; onnx, safetensors and huggingface"),
        (small, "torchvision", "torchvision has no resnet18 with the small stem"),
        (small, "detectron2", "detectron2 has no resnet18 with the small stem"),
        (other, "torchvision", "torchvision has no convnext_atto; timm, onnx"),
        (other, "detectron2", "detectron2 has no convnext_atto"),
        (moved("resnet18", 96, 5), "torchvision", "3 channels, this one 5"),
        (moved("resnet18", 96, options=NARROW), "torchvision", "resnet18 has no channels, layers"),
        (moved("resnet18", 96, options={"global_pool": "max"}), "detectron2", "resnet18 has no global_pool"),
        (moved("vit_tiny_patch16_224", 32, options=SHALLOW | {"global_pool": "avg"}), "torchvision", "no vision trans"),
        (moved("vit_tiny_patch16_224", 36, options=SHALLOW | {"reg_tokens": 1}), "torchvision", "no vision trans"),
    ):
        with pytest.raises(InputError, match=f"^format: .*{message}") as caught:
            export(encoder, format, tmp_path / FORMATS[format])
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tensorflow"}, "format: expected one of timm, .*'tensorflow'"),
        ({"format": "onnx", "out": "e.pth"}, r"out: expected a \.onnx file for onnx, got .*e\.pth"),
        ({"format": "timm", "push": "me/it"}, "push: expected format huggingface, got timm"),
        ({"format": "huggingface", "push": "it"}, "push: expected owner/name, got 'it'"),
        ({"format": "huggingface", "license": "do what\nyou want"}, "license: expected a name such as"),
        ({"format": "torchvision", "out": "e.pth", "license": "mit"}, "license: a torchvision file has no place"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        export("resnet18", **{"out": "e", **arguments} | {"out": tmp_path / arguments.get("out", "e")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten(tmp_path, format) -> None:
    out = tmp_path / FORMATS[format]
    if format in FILES:
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"out: {out} exists; take another name"):
        export("resnet18", format, out)
    (tmp_path / "f.json").write_text("mine")
    with pytest.raises(InputError, match=r"out: .*f\.json exists"):
        export("resnet18", "safetensors", tmp_path / "f.safetensors")


@pytest.mark.parametrize(("format", "ends"), [*((f, KeyboardInterrupt) for f in FORMATS), ("huggingface", InputError)])
def test_nothing_half_written_is_left(tmp_path, monkeypatch, format, ends) -> None:
    def broken(*_: object) -> None:
        raise ends

    encoder = moved("resnet18", 96, options=NARROW if format in ("timm", "onnx") else {})
    modules = [sys.modules[name] for name in ("mec.models.export.formats", "mec.models.export.export")]
    for module in modules:
        monkeypatch.setattr(module, "require_same", broken)
    with pytest.raises(ends):
        export(encoder, format, tmp_path / FORMATS[format])
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path) -> None:
    assert [p.name for p in export(moved("resnet18", 96, options=NARROW), "timm", tmp_path).iterdir()]


def test_a_full_disk_is_said(tmp_path, monkeypatch) -> None:
    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"out: .*e\.pth cannot be written \(No space left on device\)"):
        export(moved("resnet18", 96), "torchvision", tmp_path / "e.pth")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_that_differs_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export.formats"], "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"format: onnx cannot express resnet18 .*differ by"):
        export(moved("resnet18", 32, options=NARROW), "onnx", tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"format: onnx needs onnxruntime; pip install 'mec-ssl\[onnx\]'"):
        export(moved("resnet18", 32, options=NARROW), "onnx", tmp_path / "e.onnx")


class FakeHub:
    sent: ClassVar[list] = []
    fails: ClassVar[Exception | None] = None

    def create_repo(self, repository: str, **settings: object) -> None:
        assert settings == {"exist_ok": True}
        self.sent.append(repository)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails:
            raise self.fails
        self.sent += [repo_id, sorted(p.name for p in folder_path.iterdir())]


def test_the_folder_is_sent_when_asked_and_only_then(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export.export"], "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "sent", [])
    encoder = moved("resnet18", 96, options=NARROW)
    export(encoder, "huggingface", tmp_path / "kept")
    assert not FakeHub.sent
    out = export(encoder, "huggingface", tmp_path / "sent", push="me/it")
    assert FakeHub.sent == ["me/it", "me/it", ["README.md", "config.json", "model.safetensors"]]
    assert "hf-hub:me/it" in (out / "README.md").read_text()
    out = export(moved("resnet18", 32, options=NARROW), "huggingface", tmp_path / "small", push="me/small")
    assert FakeHub.sent[-1] == ["README.md", "encoder.json", "encoder.safetensors"]
    assert "hf download me/small --local-dir small" in (out / "README.md").read_text()


def test_a_hub_that_refuses_is_said_and_the_folder_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export.export"], "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "fails", ConnectionError("no token\nfound"))
    with pytest.raises(InputError, match=r"push: me/it was not sent \(no token\); .*e is whole, and hf upload me/it"):
        export(moved("resnet18", 96, options=NARROW), "huggingface", tmp_path / "e", push="me/it")
    assert (tmp_path / "e" / "model.safetensors").exists()


def test_folders_of_this_machine_stay_out_of_the_files(tmp_path) -> None:
    run = tmp_path / "jane" / "run"
    save_encoder(moved("resnet18", 96, options=NARROW), run)
    for format in ("timm", "huggingface", "onnx"):
        out = export(run, format, tmp_path / format / FORMATS[format])
        files = [out] if out.is_file() else list(out.iterdir())
        assert not any(b"jane" in file.read_bytes() for file in files)


def test_the_encoder_and_the_generator_stay_as_they_were(tmp_path) -> None:
    encoder = moved("resnet18", 96, options=NARROW).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    export(encoder, "timm", tmp_path / "e")
    assert encoder.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("format", ["detectron2", "torchvision"])
def test_this_library_reads_the_files_of_others_back(tmp_path, format) -> None:
    encoder = moved("resnet18", 224)
    loaded = load_encoder(export(encoder, format, tmp_path / FORMATS[format]))
    x = images(encoder)
    assert torch.equal(features(loaded, x), features(encoder, x))


@pytest.mark.parametrize("format", ["safetensors", "huggingface"])
def test_this_library_reads_its_own_form_back(tmp_path, format) -> None:
    encoder = moved("resnet18", 32, 2, options=NARROW, value_range=(0, 4095), background="black")
    loaded = load_encoder(export(encoder, format, tmp_path / FORMATS[format]))
    assert loaded.spec == encoder.spec
    x = images(encoder)
    assert torch.equal(features(loaded, x), features(encoder, x))


@pytest.mark.parametrize(
    ("backbone", "size", "options"), [("resnet18", 96, NARROW), ("vit_tiny_patch16_224", 32, SHALLOW)]
)
def test_this_library_reads_the_timm_form_back(tmp_path, backbone, size, options) -> None:
    encoder = moved(backbone, size, 2, options=options, value_range=(0, 4095), background="black")
    out = export(encoder, "timm", tmp_path / "e")
    loaded = load_encoder(out)
    for name in ("backbone", "image_size", "channels", "mean", "std"):
        assert getattr(loaded.spec, name) == getattr(encoder.spec, name)
    x = images(encoder)
    assert torch.equal(features(loaded, x), features(encoder, x))
    kept = json.loads((out / "config.json").read_text())["mec"]["spec"]
    assert (kept["value_range"], kept["background"]) == ([0, 4095], "black")
