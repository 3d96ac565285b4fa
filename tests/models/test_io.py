import json
import stat
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from mec.errors import InputError
from mec.models import Predictor, Projector, Siamese, create_encoder, load_encoder, save_encoder, untrained

OPTIONS = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(create_encoder("resnet18", 32, 1, mean=[0.3], std=[0.2], options=OPTIONS), tmp_path)
    return tmp_path


def test_load_encoder_restores_a_saved_encoder(tmp_path: Path) -> None:
    encoder = create_encoder("resnet18", 32, 2, options=OPTIONS)
    encoder(torch.randn(4, 2, 32, 32))  # updates the BatchNorm statistics
    save_encoder(encoder, tmp_path)
    for source in (tmp_path, tmp_path / "encoder.safetensors", str(tmp_path)):
        loaded = load_encoder(source)
        assert loaded.spec == encoder.spec
        assert not loaded.training
        x = torch.randn(2, 2, 32, 32)
        assert torch.equal(loaded(x), encoder.eval()(x))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


def test_saved_files_can_be_loaded_with_timm_alone(folder: Path) -> None:
    spec = json.loads((folder / "encoder.json").read_text())
    model = timm.create_model(spec["backbone"], num_classes=0, in_chans=spec["channels"], **spec["options"])
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.load_state_dict(load_file(folder / "encoder.safetensors"))


def test_timm_name_loads_an_untrained_encoder_at_timms_image_size() -> None:
    encoder = load_encoder("resnet18")
    assert encoder.untrained
    assert encoder.image_size == 224


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_damaged_files_are_named_in_the_error(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    for damaged in (None, b"", content[: len(content) // 2], b"hello"):
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"encoder: .*encoder\.(json|safetensors)"):
            load_encoder(folder)


def test_weights_of_another_architecture_are_rejected(folder: Path) -> None:
    spec = json.loads((folder / "encoder.json").read_text()) | {"options": {}}
    (folder / "encoder.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="does not match resnet18"):
        load_encoder(folder)
    (folder / "encoder.json").write_text('{"backbone": "resnet18"}')
    with pytest.raises(InputError, match=r"encoder\.json does not describe an encoder"):
        load_encoder(folder)


def test_missing_sources_raise_input_error() -> None:
    for source in ("nowhere/run", "resnet19", "a.pth"):
        with pytest.raises(InputError, match="encoder: "):
            load_encoder(source)


def test_origin_names_the_folder_or_the_architecture(folder: Path) -> None:
    assert load_encoder(folder).origin == f"encoder of {folder}"
    assert load_encoder(folder / "encoder.safetensors").origin == f"encoder of {folder}"
    assert load_encoder("resnet18").origin == "resnet18, untrained, seed 0"
    assert untrained(load_encoder(folder), seed=3).origin == "resnet18, untrained, seed 3"


def test_overrides_take_precedence_over_stored_fields(folder: Path) -> None:
    encoder = load_encoder(folder, mean=[0.9], background="black")
    assert encoder.spec.mean == (0.9,)
    assert encoder.spec.std == (0.2,)
    assert encoder.spec.background == "black"
    assert load_encoder("resnet18", image_size=64, channels=2).spec.channels == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"color": 3}, "encoder: expected any of backbone, image_size.* got 'color'"),
        ({"image_size": True}, "encoder: image_size: .*True"),
        ({"mean": 0.5}, "encoder: mean: expected a list of numbers, got 0.5"),
        ({"mean": [0.5]}, "mean, std: expected 3 numbers each, got 1 and 3"),
        ({"std": [0.5, 0.0, 0.5]}, "encoder: std: .*above 0"),
        ({"options": []}, r"encoder: options: expected a mapping, got \[\]"),
        ({"value_range": [0]}, "encoder: value_range"),
    ],
)
def test_invalid_overrides_are_named_in_the_error(overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder("resnet18", **overrides)


@pytest.mark.parametrize("text", ["[1]", "{", '{"color": 3}', '{"mean": "gray"}'])
def test_invalid_json_of_a_foreign_checkpoint_is_named_in_the_error(tmp_path: Path, text: str) -> None:
    torch.save(create_encoder("resnet18", 32).backbone.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(InputError, match=r"weights\.json"):
        load_encoder(tmp_path / "weights.pth")


def test_non_finite_weights_are_rejected(tmp_path: Path) -> None:
    encoder = create_encoder("resnet18", 32, options=OPTIONS)
    encoder.backbone.bn1.bias.data[3] = torch.inf
    save_encoder(encoder, tmp_path)
    with pytest.raises(InputError, match=r"bn1\.bias that are not finite"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("compiled", [False, True])
def test_load_encoder_reads_student_and_teacher_of_a_runs_checkpoint(tmp_path: Path, compiled: bool) -> None:
    encoder = create_encoder("resnet18", 32, 2, mean=[0.1, 0.2], std=[0.3, 0.4], options=OPTIONS)
    network = Siamese(encoder, Projector(16, 8, 8), Predictor(8, 4))
    network.teacher[0].backbone.bn1.weight.data.fill_(2)
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    if compiled:
        state = {name.replace("network.", "network._orig_mod."): tensor for name, tensor in state.items()}
    path = tmp_path / "checkpoints" / "step=000000012.ckpt"
    path.parent.mkdir()
    torch.save({"epoch": 1, "global_step": 12, "state_dict": state, "optimizer_states": []}, path)
    with pytest.raises(InputError, match=r"encoder\.json does not exist"):
        load_encoder(path)
    (tmp_path / "encoder.json").write_text(json.dumps(encoder.spec.as_dict()))
    for suffix, original in (("", encoder), (":student", encoder), (":teacher", network.teacher[0])):
        loaded = load_encoder(f"{path}{suffix}")
        assert loaded.spec == encoder.spec
        x = torch.randn(2, 2, 32, 32)
        assert torch.equal(loaded(x), original.eval()(x))
        branch = suffix[1:] or "student"
        assert loaded.origin.startswith(f"mec-ssl checkpoint, {branch}: resnet18, 78 of 78 tensors matched, ")
    with pytest.raises(InputError, match="has no teacher; the run's checkpoints do"):
        save_encoder(encoder, tmp_path)
        load_encoder(f"{tmp_path}:teacher")


@pytest.mark.parametrize("safetensors", [True, False])
def test_load_encoder_reads_timm_folders_and_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safetensors: bool
) -> None:
    model = timm.create_model("resnet18", num_classes=5, in_chans=2, layers=[1, 1, 1, 1], channels=[8, 8, 8, 16])
    model_args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "in_chans": 2}
    pretrained_cfg = {"mean": [0.1, 0.2], "std": [0.3, 0.4], "input_size": [2, 96, 96]}
    timm.models.save_for_hf(
        model,
        tmp_path,
        model_config={"pretrained_cfg": pretrained_cfg, "model_args": model_args},
        safe_serialization=safetensors,
    )
    model.reset_classifier(0)
    # older timm wrote the given pretrained_cfg unchanged
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= pretrained_cfg
    (tmp_path / "config.json").write_text(json.dumps(config))
    downloaded = []

    def download(repository: str, **_: object) -> str:
        downloaded.append(repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    weights = tmp_path / ("model.safetensors" if safetensors else "pytorch_model.bin")
    for source in (tmp_path, weights, "hf:someone/pets"):
        encoder = load_encoder(source)
        assert encoder.spec.backbone == "resnet18"
        assert (encoder.image_size, encoder.spec.channels) == (96, 2)
        assert (encoder.spec.mean, encoder.spec.std) == ((0.1, 0.2), (0.3, 0.4))
        x = torch.randn(2, 2, 96, 96)
        torch.testing.assert_close(encoder(x), model.eval()(x))
        matched = "78 of 78 tensors matched, 2 other tensors ignored (fc)"
        assert encoder.origin == f"timm folder {source}: resnet18, {matched}"
    assert downloaded == ["someone/pets"]
    weights.unlink()
    with pytest.raises(InputError, match=r"has a config\.json but no model\.safetensors"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(InputError, match="is not a timm configuration"):
        load_encoder(tmp_path)


def test_failed_download_raises_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"hf:someone/pets could not be downloaded \(no route\)"):
        load_encoder("hf:someone/pets")
