import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from mec.errors import InputError
from mec.models import load_encoder, save_encoder
from mec.models.export import export
from tests.models.perturbed import NARROW, SHALLOW, perturbed_encoder, random_images, reference_features

FILES = {"torchvision": "e.pth", "detectron2": "e.pkl", "onnx": "e.onnx", "safetensors": "e.safetensors"}
FORMATS = {**FILES, "timm": "e", "huggingface": "e"}


def test_unsupported_encoders_raise_a_one_line_error(tmp_path) -> None:
    vit = "vit_tiny_patch16_224"
    small_stem = perturbed_encoder("resnet18", 32, options=NARROW)
    convnext = perturbed_encoder("convnext_atto", 64, options={"depths": [1] * 4})
    five_channels = perturbed_encoder("resnet18", 96, 5)
    narrow = perturbed_encoder("resnet18", 96, options=NARROW)
    max_pool = perturbed_encoder("resnet18", 96, options={"global_pool": "max"})
    average_pool = perturbed_encoder(vit, 32, options=SHALLOW | {"global_pool": "avg"})
    register_token = perturbed_encoder(vit, 36, options=SHALLOW | {"reg_tokens": 1})
    for encoder, format, message in (
        (small_stem, "timm", "timm does not support resnet18 with the small stem; onnx, safetensors and huggingface"),
        (small_stem, "torchvision", "torchvision does not support resnet18 with the small stem"),
        (small_stem, "detectron2", "detectron2 does not support resnet18 with the small stem"),
        (convnext, "torchvision", "torchvision does not support convnext_atto; timm, onnx"),
        (convnext, "detectron2", "detectron2 does not support convnext_atto"),
        (five_channels, "torchvision", "3 channels, got 5"),
        (narrow, "torchvision", "resnet18 does not support channels, layers"),
        (max_pool, "detectron2", "resnet18 does not support global_pool"),
        (average_pool, "torchvision", "does not support the vision transformer"),
        (register_token, "torchvision", "does not support the vision transformer"),
    ):
        with pytest.raises(InputError, match=f"^format: .*{message}") as error:
            export(encoder, format, tmp_path / FORMATS[format])
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tensorflow"}, "format: expected one of timm, .*'tensorflow'"),
        ({"format": "onnx", "out": "e.pth"}, r"out: expected a \.onnx file for onnx, got .*e\.pth"),
        ({"format": "timm", "push": "me/it"}, "push: expected format huggingface, got timm"),
        ({"format": "huggingface", "push": "it"}, "push: expected owner/name, got 'it'"),
        ({"format": "huggingface", "license": "do what\nyou want"}, "license: expected a name such as"),
        ({"format": "torchvision", "out": "e.pth", "license": "mit"}, "license: torchvision files cannot store"),
    ],
)
def test_invalid_arguments_are_named_in_the_error(tmp_path, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        export("resnet18", **{"out": "e", **arguments} | {"out": tmp_path / arguments.get("out", "e")})
    assert not list(tmp_path.iterdir())


def test_existing_files_are_not_overwritten(tmp_path) -> None:
    for format, name in FORMATS.items():
        out = tmp_path / name
        if format in FILES:
            out.write_text("mine")
        else:
            out.mkdir(exist_ok=True)
            (out / "file").write_text("mine")
        with pytest.raises(InputError, match=rf"out: .*{out}, which exists"):
            export("resnet18", format, out)
    (tmp_path / "f.json").write_text("mine")
    with pytest.raises(InputError, match=r"out: .*f\.json, which exists"):
        export("resnet18", "safetensors", tmp_path / "f.safetensors")


@pytest.mark.parametrize(
    ("format", "exception"), [*((f, KeyboardInterrupt) for f in FORMATS), ("huggingface", InputError)]
)
def test_failed_export_leaves_no_files(tmp_path, monkeypatch, format, exception) -> None:
    def fail(*_: object) -> None:
        raise exception

    encoder = perturbed_encoder("resnet18", 96, options=NARROW if format in ("timm", "onnx") else {})
    modules = [sys.modules[name] for name in ("mec.models.export.formats", "mec.models.export")]
    for module in modules:
        monkeypatch.setattr(module, "check_same_features", fail)
    with pytest.raises(exception):
        export(encoder, format, tmp_path / FORMATS[format])
    assert not list(tmp_path.iterdir())


def test_full_disk_raises_input_error_and_leaves_no_files(tmp_path, monkeypatch) -> None:
    def save_to_full_disk(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(InputError, match=r"out: .*e\.pth cannot be written \(No space left on device\)"):
        export(perturbed_encoder("resnet18", 96), "torchvision", tmp_path / "e.pth")
    assert not list(tmp_path.iterdir())


def test_onnx_file_with_different_features_is_rejected(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export.formats"], "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"format: onnx cannot express resnet18 .*differ by"):
        export(perturbed_encoder("resnet18", 32, options=NARROW), "onnx", tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_in_the_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"format: onnx needs onnxruntime; pip install 'mec-ssl\[onnx\]'"):
        export(perturbed_encoder("resnet18", 32, options=NARROW), "onnx", tmp_path / "e.onnx")


class FakeHub:
    calls: ClassVar[list] = []
    error: ClassVar[Exception | None] = None

    def create_repo(self, repository: str, **settings: object) -> None:
        assert settings == {"exist_ok": True}
        self.calls.append(repository)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.error:
            raise self.error
        self.calls += [repo_id, sorted(p.name for p in folder_path.iterdir())]


def test_folder_is_uploaded_only_with_push(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export"], "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    encoder = perturbed_encoder("resnet18", 96, options=NARROW)
    export(encoder, "huggingface", tmp_path / "local")
    assert not FakeHub.calls
    out = export(encoder, "huggingface", tmp_path / "uploaded", push="me/it")
    assert FakeHub.calls == ["me/it", "me/it", ["README.md", "config.json", "model.safetensors"]]
    assert "hf-hub:me/it" in (out / "README.md").read_text()
    out = export(perturbed_encoder("resnet18", 32, options=NARROW), "huggingface", tmp_path / "small", push="me/small")
    assert FakeHub.calls[-1] == ["README.md", "encoder.json", "encoder.safetensors"]
    assert "hf download me/small --local-dir small" in (out / "README.md").read_text()


def test_failed_upload_raises_input_error_and_keeps_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["mec.models.export"], "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "error", ConnectionError("no token\nfound"))
    with pytest.raises(InputError, match=r"push: .*me/it failed \(no token\); .*hf upload me/it"):
        export(perturbed_encoder("resnet18", 96, options=NARROW), "huggingface", tmp_path / "e", push="me/it")
    assert (tmp_path / "e" / "model.safetensors").exists()


def test_exported_files_contain_no_local_paths(tmp_path) -> None:
    run = tmp_path / "jane" / "run"
    save_encoder(perturbed_encoder("resnet18", 96, options=NARROW), run)
    for format in ("timm", "huggingface", "onnx"):
        out = export(run, format, tmp_path / format / FORMATS[format])
        files = [out] if out.is_file() else list(out.iterdir())
        assert not any(b"jane" in file.read_bytes() for file in files)


def test_export_changes_neither_the_encoder_nor_the_random_state(tmp_path) -> None:
    encoder = perturbed_encoder("resnet18", 96, options=NARROW).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    (tmp_path / "empty").mkdir()
    export(encoder, "timm", tmp_path / "empty")
    assert encoder.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("format", ["detectron2", "torchvision", "safetensors", "huggingface"])
def test_load_encoder_reads_exported_files(tmp_path, format) -> None:
    stores_spec = format in ("safetensors", "huggingface")
    settings = {"options": NARROW, "value_range": (0, 4095), "background": "black"}
    encoder = perturbed_encoder("resnet18", 32, 2, **settings) if stores_spec else perturbed_encoder("resnet18", 224)
    loaded = load_encoder(export(encoder, format, tmp_path / FORMATS[format]))
    assert loaded.spec == encoder.spec or not stores_spec
    x = random_images(encoder)
    assert torch.equal(reference_features(loaded, x), reference_features(encoder, x))


def test_load_encoder_reads_exported_timm_folders(tmp_path) -> None:
    settings = {"options": SHALLOW, "value_range": (0, 4095), "background": "black"}
    encoder = perturbed_encoder("vit_tiny_patch16_224", 32, 2, **settings)
    out = export(encoder, "timm", tmp_path / "e")
    loaded = load_encoder(out)
    for name in ("backbone", "image_size", "channels", "mean", "std"):
        assert getattr(loaded.spec, name) == getattr(encoder.spec, name)
    x = random_images(encoder)
    assert torch.equal(reference_features(loaded, x), reference_features(encoder, x))
    stored = json.loads((out / "config.json").read_text())["mec"]["spec"]
    assert (stored["value_range"], stored["background"]) == ([0, 4095], "black")


@pytest.mark.parametrize(
    ("backbone", "line"), [("compact_resnet", "after `import mec.models.compact`"), ("resnet18", "")]
)
def test_architectures_registered_outside_timm_name_their_module(tmp_path, capfd, backbone, line) -> None:
    export(perturbed_encoder(backbone, 96), "timm", tmp_path / "e")
    text = capfd.readouterr().err
    assert line in text
    assert ("import" in text) == bool(line)
