"""Writers of encoders in other libraries' formats; each verifies the written features or raises InputError."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mec.errors import InputError
from mec.models.checkpoint_formats import DETECTRON2, TORCHVISION_VIT, rename_key
from mec.models.encoder import Encoder, EncoderSpec
from mec.models.head import ClassifierHead

TORCHVISION_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
"""ResNets that torchvision has under timm's names; detectron2 builds the same by depth, groups and width."""

TRAINING_ONLY = {"zero_init_last", "drop_rate", "drop_path_rate", "drop_block_rate"}
"""Options of a ResNet that affect initialization and training only."""

TOLERANCE = 1e-4  # largest permitted difference between features, as a fraction of the largest feature
MAX_ONNX_BYTES = 2 * 10**9
ALTERNATIVES = "onnx, safetensors and huggingface support it"


def _metadata(model: Encoder, license: str | None) -> dict[str, Any]:
    """Return the metadata of formats that have a place for it."""
    return {"spec": model.spec.as_dict(), "untrained": model.untrained, "origin": model.origin, "license": license}


def _crop_pct(spec: EncoderSpec) -> float:
    """Return the fraction of the shorter side that mec's evaluations crop."""
    return 0.875 if spec.image_size >= 96 else 1.0


def _preprocessing(spec: EncoderSpec) -> dict[str, Any]:
    """Return how mec makes the input of an ONNX model from an image, in the order of the steps."""
    return {
        "channel_order": {1: "gray", 3: "RGB"}.get(spec.channels, "as in the file"),
        "background": spec.background,  # behind transparent pixels
        "value_range": spec.value_range or "0 to the largest value of the type, 255 for 8 bits",
        "input_range": [0, 1],
        "crop": "center square",
        "crop_pct": _crop_pct(spec),  # side of the crop as a fraction of the shorter side of the image
        "resize": "the crop to image_size x image_size",
        "interpolation": "bilinear with antialiasing, as in PIL",
        "input_name": "images",
        "input_layout": "NCHW, float32",
        "mean": spec.mean,
        "std": spec.std,
        "mean_and_std": "applied by the model",
    }


def _weights(model: Encoder) -> dict[str, Tensor]:
    """Return a copy of the weights: some architectures have one tensor under two keys, which safetensors rejects."""
    return {key: tensor.detach().clone().contiguous() for key, tensor in model.backbone.state_dict().items()}


@torch.inference_mode()
def check_same_features(
    model: Encoder,
    exported: Callable[[Tensor], Tensor],
    format: str,
    batch_size: int = 2,
    expected_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Raise InputError if the features of random images (b, c, s, s) in [0, 1] differ by more than TOLERANCE, or the
    outputs of ``expected_of``."""
    spec, generator = model.spec, torch.Generator().manual_seed(batch_size)
    images = torch.rand(batch_size, spec.channels, spec.image_size, spec.image_size, generator=generator)
    expected = model(model.normalize(images)) if expected_of is None else expected_of(images)
    features = exported(images)
    if features.shape == expected.shape:
        difference = float((features - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if difference <= TOLERANCE:
            return
        reason = f"features differ by {difference:.1g} of the largest feature"
    else:
        reason = f"features: expected shape {tuple(expected.shape)}, got {tuple(features.shape)}"
    raise InputError(f"format: {format} cannot express {spec.backbone} with {spec.options} ({reason})")


def _check_timm_architecture(model: Encoder, format: str) -> None:
    if model.spec.is_module:
        raise InputError(f"format: {format} has no {model.spec.backbone}, which is not from timm; {ALTERNATIVES}")
    if model.spec.small_stem and hasattr(model.backbone, "maxpool"):
        raise InputError(
            f"format: {format} does not support {model.spec.backbone} with the small stem; {ALTERNATIVES}, "
            "or pretrain with --small_stem false"
        )


def write_timm(model: Encoder, folder: Path, license: str | None) -> None:
    """Write a folder that ``timm.create_model("local-dir:...", pretrained=True)`` loads without further arguments."""
    spec: Any = model.spec
    _check_timm_architecture(model, "timm")
    save_file(_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    model_args = dict(spec.options)
    if spec.channels != 3:
        model_args["in_chans"] = spec.channels  # timm infers it from input_size, transformers does not
    if spec.small_stem:
        model_args["patch_size"] = list(model.backbone.patch_embed.patch_size)  # type: ignore[union-attr, arg-type]
    timm_cfg: dict[str, Any] = getattr(model.backbone, "pretrained_cfg", {})
    pretrained_cfg = {
        "input_size": [spec.channels, spec.image_size, spec.image_size],
        "fixed_input_size": bool(timm_cfg.get("fixed_input_size")),
        "interpolation": "bilinear",
        "crop_pct": _crop_pct(spec),
        "crop_mode": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_classes": 0,
        # older timm assumes that a named first convolution has 3 channels, and adapts it
        "first_conv": timm_cfg.get("first_conv") if spec.channels == 3 else None,
        "classifier": timm_cfg.get("classifier"),
        "license": license,
    }
    config = {
        "architecture": spec.backbone,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {name: value for name, value in pretrained_cfg.items() if value is not None},
        "mec": _metadata(model, license),
    }
    # whether an architecture has an img_size argument is found by trying, as when the encoder is built
    for arguments in ({"img_size": spec.image_size} | model_args, model_args):
        text = json.dumps(config | {"model_args": arguments}, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        try:
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            break
        except TypeError:
            continue
        except (AssertionError, LookupError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"format: timm cannot load the exported {spec.backbone} ({reason}); {ALTERNATIVES}"
            ) from error
    else:
        raise InputError(f"format: timm cannot create {spec.backbone} with {spec.options}")
    check_same_features(model, lambda images: loaded(model.normalize(images)), "timm")


def write_torchvision(model: Encoder, path: Path, license: str | None) -> None:
    """Write the state dict of torchvision's network, without the classifier."""
    spec = model.spec
    _check_timm_architecture(model, "torchvision")
    if spec.channels != 3:
        raise InputError(f"format: torchvision supports 3 channels, got {spec.channels}; timm, {ALTERNATIVES}")
    if isinstance(model.backbone, VisionTransformer):
        network, weights = _torchvision_vit(model)
    else:
        network, weights = _torchvision_resnet(model, "torchvision"), _weights(model)
    check_same_features(model, lambda images: network(model.normalize(images)), "torchvision")
    torch.save(weights, path)


def _torchvision_resnet(model: Encoder, format: str) -> nn.Module:
    """Return torchvision's ResNet with the encoder's weights, without the classifier."""
    spec = model.spec
    _check_timm_architecture(model, format)
    if spec.backbone not in TORCHVISION_RESNETS:
        raise InputError(f"format: {format} does not support {spec.backbone}; timm, {ALTERNATIVES}")
    if unknown := sorted(spec.options.keys() - TRAINING_ONLY):
        raise InputError(
            f"format: {format}'s {spec.backbone} does not support {', '.join(unknown)}; timm, {ALTERNATIVES}"
        )
    network = getattr(torchvision.models, spec.backbone)()
    network.conv1 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    network.fc = nn.Identity()
    network.load_state_dict(_weights(model))
    return network.eval()  # type: ignore[no-any-return]


def _torchvision_vit(model: Encoder) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return torchvision's vision transformer with the encoder's weights, without the classifier, and its state."""
    vit: Any = model.backbone
    weights = {rename_key(key, TORCHVISION_VIT): tensor for key, tensor in _weights(model).items()}
    try:
        block = vit.blocks[0]
        network = torchvision.models.VisionTransformer(
            image_size=model.image_size,
            patch_size=vit.patch_embed.patch_size[0],
            num_layers=len(vit.blocks),
            num_heads=block.attn.num_heads,
            hidden_dim=vit.embed_dim,
            mlp_dim=block.mlp.fc1.out_features,
        )
        network.heads = nn.Identity()
        network.load_state_dict(weights)
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"format: torchvision does not support the vision transformer {model.spec.backbone} "
            f"at {model.image_size} px with {model.spec.options}; timm, {ALTERNATIVES}"
        ) from error
    return network.eval(), weights


def write_detectron2(model: Encoder, path: Path, license: str | None) -> None:
    """Write a pickle of NumPy arrays under detectron2's keys, for its DetectionCheckpointer."""
    network = _torchvision_resnet(model, "detectron2")
    check_same_features(model, lambda images: network(model.normalize(images)), "detectron2")
    weights = {
        rename_key(key, DETECTRON2): tensor.numpy()
        for key, tensor in _weights(model).items()
        if not key.endswith("num_batches_tracked")
    }
    content = {"model": weights, "__author__": "mec", "matching_heuristics": True, "mec": _metadata(model, license)}
    # most installations of detectron2 have NumPy 1, which lacks the module name that NumPy 2 writes;
    # NumPy 2 accepts both names
    path.write_bytes(
        pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )


class _NormalizingEncoder(nn.Module):
    """Images (n, c, s, s) in [0, 1] -> features (n, d), or with a head -> probabilities of classes (n, k)."""

    def __init__(self, encoder: Encoder, head: ClassifierHead | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(self.encoder.normalize(images))
        return features if self.head is None else self.head(features)


def write_onnx(model: Encoder, path: Path, license: str | None, head: ClassifierHead | None = None) -> None:
    """Write a network from images (batch, c, s, s) in [0, 1] to features (batch, num_features), of any batch size; with
    a head, to probabilities of classes (batch, k)."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (required by torch's exporter)
    except ImportError as error:
        raise InputError(f"format: onnx needs {error.name}; pip install 'mec-ssl[onnx]'") from error
    spec, network = model.spec, _NormalizingEncoder(model, head).eval()
    output_name = "features" if head is None else "probabilities"
    size = sum(tensor.nbytes for tensor in model.backbone.state_dict().values())
    if size >= MAX_ONNX_BYTES:
        raise InputError(f"format: onnx supports up to 2 GB, got {spec.backbone} with {size / 1e9:.1f} GB of weights")
    example = torch.rand(2, spec.channels, spec.image_size, spec.image_size)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # about settings that are deliberate
            torch.onnx.export(
                network,
                (example,),
                path,
                input_names=["images"],
                output_names=[output_name],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, NotImplementedError) as error:
        reason = next(iter(str(error).split("\n")), "")
        raise InputError(f"format: PyTorch cannot export {spec.backbone} to onnx ({reason})") from error
    onnx_model = onnx.load(path)
    for node in onnx_model.graph.node:
        node.ClearField("metadata_props")  # contains source lines with local paths
    metadata: dict[str, Any] = {
        "image_size": spec.image_size,
        "channels": spec.channels,
        "num_features": model.num_features,
    }
    metadata |= _preprocessing(spec) | _metadata(model, license) | {"output_name": output_name}
    metadata["classes"] = None if head is None else head.classes
    metadata = {name: value for name, value in metadata.items() if value not in (None, "")}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(onnx_model, texts)
    onnx.checker.check_model(onnx_model)
    onnx.save(onnx_model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch_size in (1, 3):
        check_same_features(
            model, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), "onnx", batch_size, network
        )
