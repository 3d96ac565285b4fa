"""Dense features of whole frames: feature maps of a frozen encoder."""

from __future__ import annotations

import copy
import math
import time
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d
from timm.models import ResNet
from torch import Tensor, nn

from mec.data.pixels import with_channels
from mec.embedding.extract import best_device
from mec.errors import InputError
from mec.evaluate.tracking.sequences import Frame
from mec.models.encoder import (
    PROBE_SIZE,
    Encoder,
    EncoderLike,
    dynamic_size_backbone,
    estimate_stride,
    extract_feature_maps,
    probe_image,
)
from mec.models.io import load_encoder

STRIDE = 8  # stride of the feature maps in the published protocol, in pixels. No feature map has a smaller one
STAGES = ("s3", "s4")
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
AUTOCAST_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class DenseFeatures:
    """Compute feature maps of images with a frozen encoder; ``stride`` is in pixels per cell.

    ResNets: "s3" is layer3 and "s4" is layer4. Their strides are set to 1 wherever the map would otherwise be coarser
    than 8 pixels (UniTrack). Other encoders keep their own strides: "s4" is the last map and "s3" the last of those
    that are finer. If all maps have the same size, as in vision transformers, "s3" is the map at three quarters of the
    depth. Maps finer than 8 pixels, as encoders of small images have them, are average-pooled.
    """

    def __init__(self, encoder: EncoderLike, stage: str = "s3", precision: Precision = "auto") -> None:
        if stage not in STAGES:
            raise InputError(f"stage: expected s3 or s4, got {stage!r}")
        if precision not in get_args(Precision):
            raise InputError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        if encoder.spec.channels not in (1, 3):
            raise InputError(
                f"encoder: expected 3 input channels, or 1 for grayscale, got {encoder.spec.backbone} with "
                f"{encoder.spec.channels}"
            )
        self.description = f"{encoder.description}, {stage}"
        self.grayscale = encoder.spec.channels == 1
        if isinstance(encoder.backbone, ResNet):
            self.body: Any = _resnet_with_stride_8(encoder, stage)
            self.level = STAGES.index(stage) + 3
        else:
            self.body, maps = dynamic_size_backbone(encoder)
            self.level = _level([estimate_stride(feature_map) for feature_map in maps], stage)
        self.body.eval()
        with torch.no_grad():
            probe = extract_feature_maps(self.body, probe_image(encoder), [self.level])[0]
        self.accepts_any_size = isinstance(encoder.backbone, ResNet) and self._accepts_odd_sizes(encoder)
        stride = estimate_stride(probe)
        if stride * probe.shape[2] < PROBE_SIZE[0]:
            raise InputError(f"encoder: the feature maps of {encoder.spec.backbone} do not cover the image borders")
        self.pooling = max(1, STRIDE // stride)
        self.stride, self.channels = stride * self.pooling, int(probe.shape[1])
        self.device = best_device()
        self.mean, self.std = encoder.mean.to(self.device), encoder.std.to(self.device)
        self.memory_format = encoder.memory_format
        self.body.to(self.device).to(memory_format=encoder.memory_format)
        default = "16-mixed" if self.device.type == "cuda" else "32-true"
        self.precision = default if precision == "auto" else precision
        self.seconds = 0.0

    @torch.no_grad()
    def _accepts_odd_sizes(self, encoder: Encoder) -> bool:
        try:
            extract_feature_maps(self.body, probe_image(encoder, 3), [self.level])
        except RuntimeError:  # the average pooling of a block rounds the size down, its shortcut rounds up
            return False
        return True

    def preprocess(self, frame: Frame) -> Tensor:
        """Convert a frame (h, w, 3) of uint8 to a normalized image (1, c, h, w) of float32 on the device."""
        pixels = with_channels(frame, 1) if self.grayscale else frame
        # copied, because PyTorch warns about the read-only arrays of Pillow
        x = torch.from_numpy(np.array(pixels, order="C")).to(self.device, non_blocking=True)
        return (x.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the feature maps (n, d, ceil(h / stride), ceil(w / stride)) of normalized images (n, c, h, w)."""
        start = time.perf_counter()
        height, width = images.shape[2:]
        if not self.accepts_any_size:
            images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        dtype = AUTOCAST_TYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            x = images.contiguous(memory_format=self.memory_format)
            features = extract_feature_maps(self.body, x, [self.level], norm=True, stop_early=True)[0].float()
        if self.pooling > 1:
            features = F.avg_pool2d(features, self.pooling, ceil_mode=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return features.contiguous()[:, :, : math.ceil(height / self.stride), : math.ceil(width / self.stride)]


def _resnet_with_stride_8(encoder: Encoder, stage: str) -> Any:
    """Copy a ResNet and set strides to 1 in layer3 and layer4 where their input already has a stride of 8 pixels."""
    body: Any = copy.deepcopy(encoder.backbone).eval()
    if stage == "s3":
        body.layer4 = nn.Sequential()
    with torch.no_grad():
        stride = estimate_stride(extract_feature_maps(body, probe_image(encoder), [2], stop_early=True)[0])
    layer: Any
    for layer in (body.layer3, body.layer4):
        if stride < STRIDE:
            stride *= 2
            continue
        for name, module in list(layer.named_modules()):
            if isinstance(module, (nn.Conv2d, BlurPool2d)) and module.stride not in (1, (1, 1)):
                module.stride = 1 if isinstance(module, BlurPool2d) else (1, 1)
            elif isinstance(module, nn.AvgPool2d) and module.stride not in (1, (1, 1)):
                layer.set_submodule(name, nn.Identity())
    return body


def _level(strides: list[int], stage: str) -> int:
    """Return the index of the stage's map, given the strides of all maps in increasing order."""
    if stage == "s4":
        return len(strides) - 1
    finer = [level for level, stride in enumerate(strides) if stride < strides[-1]]
    return finer[-1] if finer else round(len(strides) * 3 / 4) - 1
