"""Faster and Mask R-CNN on an encoder, from torchvision's RPN and heads, and the files of a trained detector."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.evaluate.detection.c4 import build_c4
from mec.evaluate.detection.datasets.annotations import Rle
from mec.evaluate.detection.fpn import build_fpn
from mec.evaluate.detection.schedules import Schedule
from mec.files import atomic_write
from mec.models.encoder import Encoder, EncoderSpec

Architecture = Literal["c4", "fpn"]
SIZE_DIVISOR = 32  # images of a batch are padded to a multiple of this, the largest stride of common encoders
WEIGHTS, SPEC = "detector.safetensors", "detector.json"


def resolve_architecture(encoder: Encoder, architecture: str | None) -> Architecture:
    """Return the architecture; None: c4 for ResNets, as in published results, and fpn for other encoders."""
    is_resnet = isinstance(encoder.backbone, ResNet)
    if architecture not in ("c4", "fpn", None):
        raise InputError(f"architecture: expected c4 or fpn, got {architecture!r}")
    if architecture == "c4" and not is_resnet:
        raise InputError(f"architecture: c4 requires a ResNet, got {encoder.spec.backbone}; use fpn")
    return "c4" if is_resnet and architecture != "fpn" else "fpn"


class Detector(nn.Module):
    """Faster R-CNN, or Mask R-CNN if ``masks``, on a trainable copy of an encoder; ``num_classes`` without background.

    Architecture c4 has one feature map of stride 16, and res5 on each region (Ren et al. 2015, He et al. 2017, MoCo);
    fpn has a feature pyramid of four maps (Lin et al. 2017) and torchvision's heads.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, num_classes: int, masks: bool, architecture: Architecture, schedule: Schedule
    ) -> None:
        super().__init__()
        spec, self.schedule = encoder.spec, schedule
        self.pixel_format = PixelFormat(spec.channels, spec.value_range, spec.background)
        if spec.stem_padding != 1:  # the strides would not be whole numbers
            aligned = Encoder(replace(spec, stem_padding=1))
            aligned.backbone.load_state_dict(encoder.backbone.state_dict())
            encoder = aligned
        build = build_c4 if architecture == "c4" else build_fpn
        self.backbone, self.rpn, self.roi_heads = build(encoder, num_classes, masks, schedule)
        # boxes are computed from these outputs, and bfloat16 has only three significant digits
        for module in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            if module is not None:
                module.register_forward_hook(lambda module, inputs, output: _to_float32(output))
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)
        self.memory_format = encoder.memory_format
        self.to(memory_format=self.memory_format)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses in training, else boxes, labels (from 1), scores and masks (k, 1, s, s) of images (c, h, w),
        uint8 or in [0, 1]. ``targets`` have boxes (k, 4) float32 in pixels, labels (k,) int64, masks (k, h, w)
        uint8."""
        batch = self._batch_images(images)
        features = {name: feature_map.float() for name, feature_map in self.backbone(batch.tensors).items()}
        proposals, rpn_losses = self.rpn(batch, features, targets)
        detections, head_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return rpn_losses | head_losses if self.training else detections

    def _batch_images(self, images: list[Tensor]) -> ImageList:
        """Normalize images and pad them at the right and below with the mean color: (n, c, H, W)."""
        height, width = (
            math.ceil(max(image.shape[i] for image in images) / SIZE_DIVISOR) * SIZE_DIVISOR for i in (1, 2)
        )
        padded = []
        for image in images:
            x = image if image.is_floating_point() else image.to(self.mean.dtype) / 255
            x = ((x[None] - self.mean) / self.std)[0]
            padded.append(F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])))
        batch = torch.stack(padded).contiguous(memory_format=self.memory_format)
        return ImageList(batch, [(image.shape[1], image.shape[2]) for image in images])


def _to_float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_to_float32(item) for item in output)


def paste_masks(probabilities: Tensor, boxes: NDArray[np.float32], size: tuple[int, int]) -> list[Rle]:
    """Convert masks (k, s, s), whose cells fill their boxes (x1, y1, x2, y2 in pixels), to masks of an image of
    ``size``: values between the centers of cells are interpolated, the threshold is 0.5."""
    masks = []
    # one mask at a time to save memory: an image has up to a hundred
    for mask_probabilities, box in zip(probabilities, boxes.tolist(), strict=True):
        mask = np.zeros(size, np.uint8, order="F")
        x, y = (range(max(0, math.floor(box[i])), min(size[1 - i], math.ceil(box[i + 2]))) for i in (0, 1))
        if x and y:
            # centers of the pixels in grid_sample's coordinates: -1 and 1 at the edges of the box
            centers = [
                (torch.arange(pixels.start, pixels.stop) + 0.5 - box[i]) / (box[i + 2] - box[i]) * 2 - 1
                for i, pixels in enumerate((x, y))
            ]
            grid = torch.stack(torch.meshgrid(*centers, indexing="xy"), 2)
            values = F.grid_sample(mask_probabilities[None, None].float(), grid[None], align_corners=False)[0, 0]
            mask[y.start : y.stop, x.start : x.stop] = (values >= 0.5).numpy()
        masks.append(coco_mask.encode(mask))
    return masks


@dataclass(frozen=True)
class DetectorSpec:
    """Everything except the weights that is needed to rebuild a detector; stored as detector.json."""

    encoder: EncoderSpec
    architecture: Architecture
    categories: list[str]  # class names in the order of their labels
    category_ids: list[int]  # in the training dataset
    has_masks: bool
    schedule: Schedule

    def build(self, encoder: Encoder | None = None) -> Detector:
        """Build the detector with random weights, except for a given encoder's."""
        encoder = encoder or Encoder(self.encoder)
        return Detector(encoder, len(self.categories), self.has_masks, self.architecture, self.schedule)


def save_detector(detector: Detector, spec: DetectorSpec, folder: Path) -> None:
    """Write both files atomically. The weights come last: if they exist, the detector is complete."""
    with atomic_write(folder / SPEC) as path:
        path.write_text(json.dumps(asdict(spec), indent=2) + "\n")
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})


def load_detector(folder: Path, encoder: Encoder | None = None) -> tuple[Detector, DetectorSpec]:
    """Load a trained detector in evaluation mode; ``encoder``: one of its network, where that is not from timm."""
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"out: {folder} has no {WEIGHTS}, which is written after training")
    try:
        fields = json.loads((folder / SPEC).read_text())
        for name in ("encoder", "schedule"):  # JSON stores tuples as lists
            fields[name] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields[name].items()}
        settings = {"encoder": EncoderSpec(**fields["encoder"]), "schedule": Schedule(**fields["schedule"])}
        spec = DetectorSpec(**fields | settings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"out: {folder / SPEC} does not describe a detector ({error})") from error
    detector = spec.build(encoder if spec.encoder.is_module else None)
    try:
        detector.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"out: {folder / WEIGHTS} cannot be read as safetensors ({error})") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"out: {folder / WEIGHTS} does not match its {SPEC} ({reason})") from error
    return detector.eval(), spec
