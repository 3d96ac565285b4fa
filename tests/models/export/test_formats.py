import json
import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from mec.data.dataset import ArrayDataset
from mec.data.loaders import evaluation_loader
from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.models import load_encoder
from mec.models.export import SUFFIXES, export
from tests.models.perturbed import NARROW, SHALLOW, is_close, perturbed_encoder, random_images, reference_features


@pytest.mark.parametrize(
    ("format", "backbone", "size", "channels", "options"),
    [
        ("huggingface", "resnet18", 96, 5, NARROW),
        ("timm", "vit_tiny_patch16_224", 32, 1, SHALLOW),
        ("huggingface", "vit_tiny_patch16_224", 112, 3, SHALLOW | {"global_pool": "avg"}),
        ("timm", "convnext_atto", 64, 4, {"depths": [1, 1, 1, 1]}),
        ("timm", "compact_resnet", 32, 3, {"width_factor": 0.25}),
        ("timm", "compact_resnet_s4", 64, 3, {"width_factor": 0.25}),
    ],
)
def test_timm_loads_the_folder_without_further_arguments(tmp_path, format, backbone, size, channels, options) -> None:
    mean = [0.1 * (c + 1) for c in range(channels)]
    encoder = perturbed_encoder(backbone, size, channels, mean=mean, std=[0.3] * channels, options=options)
    out = export(encoder, format, tmp_path / "folder", license="MIT")
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(loaded)
    assert tuple(settings["input_size"]) == (channels, size, size)
    assert settings["mean"] == pytest.approx(mean)
    assert settings["std"] == pytest.approx([0.3] * channels)
    assert loaded.pretrained_cfg["license"] == "mit"
    assert loaded.num_classes == 0
    x = random_images(encoder)
    with torch.no_grad():
        y = loaded((x - torch.tensor(settings["mean"]).view(-1, 1, 1)) / torch.tensor(settings["std"]).view(-1, 1, 1))
    assert is_close(y, reference_features(encoder, x))


@pytest.mark.parametrize(
    ("backbone", "size", "channels", "options"),
    [
        ("resnet18", 97, 1, NARROW),
        ("vit_tiny_patch16_224", 112, 4, SHALLOW | {"global_pool": "avg"}),
        ("convnext_atto", 64, 3, {"depths": [1, 1, 1, 1]}),
        ("compact_resnet_s4", 72, 1, {"width_factor": 0.25}),
    ],
)
def test_transformers_loads_the_folder_with_its_preprocessing(tmp_path, backbone, size, channels, options) -> None:
    transformers = pytest.importorskip("transformers", reason="comes with the extra hf")
    encoder = perturbed_encoder(backbone, size, channels, options=options, mean=[0.4] * channels, std=[0.3] * channels)
    out = export(encoder, "huggingface", tmp_path / "folder")
    model = transformers.AutoModel.from_pretrained(out).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    rows, columns = np.mgrid[0:150, 0:200]
    planes = [rows, columns, (rows + columns) / 2, 200 - columns][:channels]
    image = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    pixels = processor(Image.fromarray(image.squeeze()), return_tensors="pt")["pixel_values"]
    loader = evaluation_loader(ArrayDataset("image", image[None]), PixelFormat(channels), size)
    expected = encoder.normalize(next(iter(loader)).images)
    assert pixels.shape == expected.shape
    assert (pixels - expected).abs().mean() < 0.03  # timm resizes before it crops
    x = random_images(encoder)
    with torch.no_grad():
        assert is_close(model(encoder.normalize(x)).pooler_output, reference_features(encoder, x))


@pytest.mark.parametrize("size", [96, 32])
def test_timm_transform_crops_like_mec_evaluations(tmp_path, size) -> None:
    encoder = perturbed_encoder("resnet18", size, small_stem=False, options=NARROW)
    settings = timm.data.resolve_model_data_config(
        timm.create_model(f"local-dir:{export(encoder, 'timm', tmp_path / 'e')}", pretrained=True)
    )
    rows, columns = np.mgrid[0:200, 0:300]
    image = np.stack([rows, columns * 0.8, (rows - 100) ** 2 / 50], axis=-1).clip(0, 255).astype(np.uint8)
    crop = timm.data.create_transform(**settings | {"mean": (0,) * 3, "std": (1,) * 3})
    timm_image = 255 * crop(Image.fromarray(image))
    mec_image = next(iter(evaluation_loader(ArrayDataset("image", image[None]), PixelFormat(3), size))).images[0]
    assert (timm_image - mec_image).abs().mean() < 1.5


@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_torchvision_resnet_loads_the_state_dict(tmp_path, backbone) -> None:
    encoder = perturbed_encoder(backbone, 64, small_stem=False)
    weights = torch.load(export(encoder, "torchvision", tmp_path / "e.pth"), weights_only=True)
    model = getattr(torchvision.models, backbone)().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
    model.fc = nn.Identity()
    model.load_state_dict(weights)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert is_close(model(encoder.normalize(x)), reference_features(encoder, x))


def test_torchvision_vit_loads_the_state_dict(tmp_path) -> None:
    encoder = perturbed_encoder("vit_tiny_patch16_224", 32, options=SHALLOW)
    weights = torch.load(export(encoder, "torchvision", tmp_path / "e.pth"), weights_only=True)
    model = torchvision.models.VisionTransformer(32, 4, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768).eval()
    model.heads = nn.Identity()
    model.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert is_close(model(encoder.normalize(x)), reference_features(encoder, x))


def detectron2_features(weights: dict, x: Tensor, blocks: list[int]) -> Tensor:
    """Compute the features of detectron2's ResNet with STRIDE_IN_1X1 False; written from its documentation."""

    def layer(name: str, x: Tensor, stride: int = 1, relu: bool = True) -> Tensor:
        norm = [weights.pop(f"{name}.norm.{suffix}") for suffix in ("running_mean", "running_var", "weight", "bias")]
        weight = weights.pop(f"{name}.weight")
        y = F.batch_norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), *norm, eps=1e-5)
        return F.relu(y) if relu else y

    x = F.max_pool2d(layer("stem.conv1", x, 2), 3, 2, 1)
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            name, stride = f"res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            short = layer(f"{name}.shortcut", x, stride, relu=False) if f"{name}.shortcut.weight" in weights else x
            if f"{name}.conv3.weight" in weights:
                y = layer(f"{name}.conv2", layer(f"{name}.conv1", x), stride)
                y = layer(f"{name}.conv3", y, relu=False)
            else:
                y = layer(f"{name}.conv2", layer(f"{name}.conv1", x, stride), relu=False)
            x = F.relu(y + short)
    assert not weights
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize(("backbone", "channels", "blocks"), [("resnet18", 5, [2] * 4), ("resnet50", 3, [3, 4, 6, 3])])
def test_detectron2_pickle_has_every_tensor_under_detectron2_keys(tmp_path, backbone, channels, blocks) -> None:
    encoder = perturbed_encoder(backbone, 96, channels)
    pickled = export(encoder, "detectron2", tmp_path / "e.pkl").read_bytes()
    assert b"numpy" in pickled
    assert b"_core" not in pickled, "NumPy 1 has no numpy._core"
    content = pickle.loads(pickled, encoding="latin1")
    assert content["__author__"]
    assert content["matching_heuristics"] is True
    assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in content["model"].values())
    x = torch.rand(2, channels, 96, 96)
    weights = {name: torch.from_numpy(array) for name, array in content["model"].items()}
    assert is_close(detectron2_features(weights, encoder.normalize(x), blocks), reference_features(encoder, x))


@pytest.mark.parametrize(
    ("format", "channels"),
    [
        ("timm", 1), ("huggingface", 4), ("torchvision", 1), ("torchvision", 3), ("torchvision", 4), ("detectron2", 1),
        ("detectron2", 4), ("onnx", 4), ("safetensors", 1),
    ],
)  # fmt: skip
def test_each_format_keeps_or_says_what_it_loses_of_16_bit_images(tmp_path, capsys, format, channels) -> None:
    encoder = perturbed_encoder("resnet18", 97, channels, value_range=(0, 4095))
    out = tmp_path / f"e{SUFFIXES.get(format, '')}"
    if format == "torchvision" and channels != 3:
        with pytest.raises(InputError, match=f"torchvision supports 3 channels, got {channels}"):
            export(encoder, format, out)
        return
    export(encoder, format, out)
    printed = capsys.readouterr().err
    loses_range = format not in ("onnx", "safetensors")
    assert ("warning: " + format + ": has no setting for images of more than 8 bits" in printed) == loses_range
    assert ("97 x 97 pixels in [0, 1], mean [0." in printed) == (format in ("torchvision", "detectron2"))
    if format not in ("onnx", "torchvision", "detectron2"):
        assert load_encoder(out).spec.value_range == (0, 4095)


def test_a_folder_that_transformers_cannot_load_is_a_warning(tmp_path, capsys) -> None:
    export(perturbed_encoder("resnet18", 32, options=NARROW), "huggingface", tmp_path / "e")
    _, line = capsys.readouterr().err.splitlines()  # the first names the encoder
    assert "which timm and transformers cannot load (timm does not support resnet18 with the small stem)" in line


@pytest.mark.parametrize(
    ("backbone", "size", "channels", "options"),
    [("resnet18", 32, 2, NARROW), ("vit_tiny_patch16_224", 96, 3, SHALLOW), ("compact_resnet_s4", 64, 3, {})],
)
def test_onnx_model_takes_images_in_unit_range_and_any_batch_size(
    tmp_path, capfd, backbone, size, channels, options
) -> None:
    encoder = perturbed_encoder(backbone, size, channels, options=options, value_range=(0, 4095), background="#102030")
    encoder.origin = "a run"
    out = export(encoder, "onnx", tmp_path / "e.onnx", license="cc-by-4.0")
    assert capfd.readouterr() == ("", "encoder: a run\n")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (image_input,), (feature_output,) = session.get_inputs(), session.get_outputs()
    assert (image_input.name, image_input.type) == ("images", "tensor(float)")
    assert image_input.shape == ["batch", channels, size, size]
    assert (feature_output.name, feature_output.shape) == ("features", ["batch", encoder.num_features])
    for n in (1, 5):
        x = random_images(encoder, n)
        y = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        assert (y - reference_features(encoder, x)).abs().max() <= 1e-4 * y.abs().max()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["spec"])["value_range"] == [0, 4095]
    assert json.loads(metadata["spec"])["background"] == "#102030"
    assert (metadata["origin"], metadata["untrained"], metadata["license"]) == ("a run", "false", "cc-by-4.0")
    # the exporter stores source lines and local paths in each node's metadata
    assert not any(node.metadata_props for node in onnx.load(out).graph.node)
    assert [p.name for p in tmp_path.iterdir()] == ["e.onnx"]
