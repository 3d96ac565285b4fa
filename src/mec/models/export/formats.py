"""Encoders in the forms of other libraries: each writer proves what it wrote, or says why the form cannot hold it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.key_maps import TO_DETECTRON2, TO_TORCHVISION_VIT, rename_key

PLAIN_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
"""Those that torchvision has under timm's names, and detectron2 by their depth, groups and width."""

TRAINING_ONLY = {"zero_init_last", "drop_rate", "drop_path_rate", "drop_block_rate"}
"""Options of a ResNet that change nothing once it is trained."""

TOLERANCE = 1e-4
"""Largest difference of a feature from this library's, as a share of the largest feature."""

ONNX_BYTES = 2 * 10**9
OTHERS = "onnx, safetensors and huggingface can hold it"


def describe(model: Encoder, license: str | None) -> dict[str, Any]:
    """What goes into the metadata of every format that has room."""
    return {
        "spec": model.spec.as_dict(),
        "untrained": model.untrained,
        "origin": model.origin,
        "license": license,
    }


def _weights(model: Encoder) -> dict[str, Tensor]:
    """Copies: some architectures give one tensor two names, which safetensors refuses."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.backbone.state_dict().items()}


@torch.inference_mode()
def require_same(model: Encoder, other: Callable[[Tensor], Tensor], format: str, batch: int = 2) -> None:
    """``other`` takes images in [0, 1] (batch, c, s, s) and gives features as ``model`` does, or InputError."""
    spec, generator = model.spec, torch.Generator().manual_seed(batch)
    images = torch.rand(batch, spec.channels, spec.image_size, spec.image_size, generator=generator)
    expected = model(model.normalize(images))
    came = other(images)
    if came.shape == expected.shape:
        difference = float((came - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if difference <= TOLERANCE:
            return
        shown = f"features differ by {difference:.1g} of their scale"
    else:
        shown = f"features of shape {tuple(came.shape)}, expected {tuple(expected.shape)}"
    raise InputError(f"format: {format} cannot express {spec.backbone} with {spec.options} ({shown})")


def _require_whole_stem(model: Encoder, format: str) -> None:
    if model.spec.small_stem and hasattr(model.backbone, "maxpool"):
        raise InputError(f"format: {format} has no {model.spec.backbone} with the small stem; {OTHERS}")


def write_timm(model: Encoder, folder: Path, license: str | None) -> None:
    """A folder that ``timm.create_model("local-dir:...", pretrained=True)`` needs no further argument for."""
    spec: Any = model.spec
    _require_whole_stem(model, "timm")
    save_file(_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    arguments = dict(spec.options)
    if spec.small_stem:
        arguments["patch_size"] = list(model.backbone.patch_embed.patch_size)  # type: ignore[union-attr, arg-type]
    published: dict[str, Any] = getattr(model.backbone, "pretrained_cfg", {})
    settings = {
        "input_size": [spec.channels, spec.image_size, spec.image_size],
        "fixed_input_size": bool(published.get("fixed_input_size")),
        "interpolation": "bilinear",
        # the share of the short side that mec evaluates on
        "crop_pct": 0.875 if spec.image_size >= 96 else 1.0,
        "crop_mode": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_classes": 0,
        # older timm takes a named first convolution for one of 3 channels, and adapts it
        "first_conv": published.get("first_conv") if spec.channels == 3 else None,
        "classifier": published.get("classifier"),
        "license": license,
    }
    config = {
        "architecture": spec.backbone,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {name: value for name, value in settings.items() if value is not None},
        "mec": describe(model, license),
    }
    # which architectures have an img_size is known by trying, as when the encoder was made
    for sized in ({"img_size": spec.image_size} | arguments, arguments):
        text = json.dumps(config | {"model_args": sized}, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        try:
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            break
        except TypeError:
            continue
        except (AssertionError, LookupError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"format: timm does not read back its {spec.backbone} ({reason}); {OTHERS}") from error
    else:
        raise InputError(f"format: timm cannot make {spec.backbone} with {spec.options}")
    require_same(model, lambda images: loaded(model.normalize(images)), "timm")


def write_torchvision(model: Encoder, path: Path, license: str | None) -> None:
    """The state dict of torchvision's network, without the classifier."""
    spec = model.spec
    if spec.channels != 3:
        raise InputError(f"format: torchvision's encoders have 3 channels, this one {spec.channels}; timm, {OTHERS}")
    if isinstance(model.backbone, VisionTransformer):
        twin, weights = _vision_transformer(model)
    else:
        twin, weights = _plain_resnet(model, "torchvision"), _weights(model)
    require_same(model, lambda images: twin(model.normalize(images)), "torchvision")
    torch.save(weights, path)


def _plain_resnet(model: Encoder, format: str) -> nn.Module:
    """torchvision's ResNet with these weights, without classifier."""
    spec = model.spec
    _require_whole_stem(model, format)
    if spec.backbone not in PLAIN_RESNETS:
        raise InputError(f"format: {format} has no {spec.backbone}; timm, {OTHERS}")
    if unknown := sorted(spec.options.keys() - TRAINING_ONLY):
        raise InputError(f"format: {format}'s {spec.backbone} has no {', '.join(unknown)}; timm, {OTHERS}")
    twin = getattr(torchvision.models, spec.backbone)()
    twin.conv1 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    twin.fc = nn.Identity()
    twin.load_state_dict(_weights(model))
    return twin.eval()  # type: ignore[no-any-return]


def _vision_transformer(model: Encoder) -> tuple[nn.Module, dict[str, Tensor]]:
    """torchvision's vision transformer with these weights, without classifier, and its state dict."""
    vit: Any = model.backbone
    weights = {rename_key(name, TO_TORCHVISION_VIT): tensor for name, tensor in _weights(model).items()}
    try:
        first = vit.blocks[0]
        twin = torchvision.models.VisionTransformer(
            image_size=model.image_size,
            patch_size=vit.patch_embed.patch_size[0],
            num_layers=len(vit.blocks),
            num_heads=first.attn.num_heads,
            hidden_dim=vit.embed_dim,
            mlp_dim=first.mlp.fc1.out_features,
        )
        twin.heads = nn.Identity()
        twin.load_state_dict(weights)
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"format: torchvision has no vision transformer like {model.spec.backbone} at {model.image_size} px "
            f"with {model.spec.options}; timm, {OTHERS}"
        ) from error
    return twin.eval(), weights


def write_detectron2(model: Encoder, path: Path, license: str | None) -> None:
    """A pickle that detectron2's checkpointer reads, of numpy arrays under its names."""
    twin = _plain_resnet(model, "detectron2")
    require_same(model, lambda images: twin(model.normalize(images)), "detectron2")
    weights = {
        rename_key(name, TO_DETECTRON2): tensor.numpy()
        for name, tensor in _weights(model).items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"model": weights, "__author__": "mec", "matching_heuristics": True, "mec": describe(model, license)}
    # numpy 2 writes a name that the numpy beside most detectron2 lacks, and reads the older one as well
    path.write_bytes(
        pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )


class _FromImages(nn.Module):
    """Images in [0, 1] -> features."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder((images - self.encoder.mean) / self.encoder.std)
        return features


def write_onnx(model: Encoder, path: Path, license: str | None) -> None:
    """Images (batch, c, s, s) in [0, 1] -> features (batch, num_features), for any batch."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise InputError(f"format: onnx needs {error.name}; pip install 'mec-ssl[onnx]'") from error
    spec = model.spec
    size = sum(tensor.nbytes for tensor in model.backbone.state_dict().values())
    if size >= ONNX_BYTES:
        raise InputError(f"format: an onnx file holds 2 GB, the weights of {spec.backbone} are {size / 1e9:.1f} GB")
    example = torch.rand(2, spec.channels, spec.image_size, spec.image_size)
    try:
        with _quiet():
            torch.onnx.export(
                _FromImages(model).eval(),
                (example,),
                path,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                external_data=False,
                dynamo=True,
            )
    except (torch.onnx.OnnxExporterError, NotImplementedError) as error:
        reason = next(iter(str(error).split("\n")), "")
        raise InputError(f"format: PyTorch cannot write {spec.backbone} as onnx ({reason})") from error
    graph = onnx.load(path)
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # lines of the source, with the paths of this machine
    scale = {"input_range": [0, 1], "mean_and_std": "already applied inside"}
    notes = {"image_size": spec.image_size, "channels": spec.channels, "num_features": model.num_features} | scale
    kept = {name: value for name, value in (notes | describe(model, license)).items() if value not in (None, "")}
    onnx.helper.set_model_props(
        graph, {name: value if isinstance(value, str) else json.dumps(value) for name, value in kept.items()}
    )
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        require_same(model, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), "onnx", batch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress, and warns of choices that are made here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
