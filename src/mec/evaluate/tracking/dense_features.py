"""Dense features: maps of a frozen encoder over whole frames, one cell every few pixels."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d
from timm.models import ResNet
from torch import Tensor, nn

from mec.data.pixels import with_channels
from mec.embedding.neighbors import best_device
from mec.errors import InputError
from mec.evaluate.task import EncoderLike
from mec.evaluate.tracking.sequences import Frame
from mec.models.encoder import Encoder
from mec.models.feature_maps import (
    PROBE_SIZE,
    dynamic_size_backbone,
    estimate_stride,
    extract_feature_maps,
    probe_image,
)
from mec.models.io import load_encoder

STRIDE = 8
"""Pixels from cell to cell in the published protocol: no map is finer here."""
STAGES = ("s3", "s4")


class Dense:
    """Images -> feature maps of a frozen encoder.

    ResNets: "s3" is layer3, "s4" layer4, the strides of both set to 1 where the map would otherwise be coarser than 8
    pixels (UniTrack). Other encoders at their own stride: "s4" is the last map, "s3" the last of those finer than it;
    where all are of one size, as in vision transformers, that of three quarters of the depth. A map finer than 8
    pixels, as encoders of small images give it, is averaged.

    Args:
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        stage: s3 or s4.
        half: compute in 16 bits; None: on GPUs.

    Attributes:
        stride: pixels from cell to cell.
        channels: d, of a cell.
        seconds: spent in the network so far.

    Raises:
        InputError: another stage, or an encoder without maps of whole images or of other channels than 1 or 3.
    """

    def __init__(self, encoder: EncoderLike, stage: str = "s3", half: bool | None = None) -> None:
        if stage not in STAGES:
            raise InputError(f"stage: expected s3 or s4, got {stage!r}")
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        if encoder.spec.channels not in (1, 3):
            raise InputError(
                f"encoder: {encoder.spec.backbone} takes {encoder.spec.channels} channels; frames have 3, or 1 as gray"
            )
        self.description = f"{encoder.description}, {stage}"
        self.gray = encoder.spec.channels == 1
        if isinstance(encoder.backbone, ResNet):
            self.body: Any = _resnet(encoder, stage)
            self.level = STAGES.index(stage) + 3
        else:
            self.body, maps = dynamic_size_backbone(encoder)
            self.level = _level([estimate_stride(found) for found in maps], stage)
        self.body.eval()
        with torch.no_grad():
            probe = extract_feature_maps(self.body, probe_image(encoder), [self.level])[0]
        self.takes_any_size = isinstance(encoder.backbone, ResNet) and self._takes_odd_sizes(encoder)
        own = estimate_stride(probe)
        if own * probe.shape[2] < PROBE_SIZE[0]:
            raise InputError(f"encoder: maps of {encoder.spec.backbone} leave out the borders of an image")
        self.pooled = max(1, STRIDE // own)
        self.stride, self.channels = own * self.pooled, int(probe.shape[1])
        self.device = best_device()
        self.mean, self.std = encoder.mean.to(self.device), encoder.std.to(self.device)
        self.body.to(self.device).to(memory_format=torch.channels_last)
        self.half = self.device.type == "cuda" if half is None else half
        self.seconds = 0.0

    @torch.no_grad()
    def _takes_odd_sizes(self, encoder: Encoder) -> bool:
        try:
            extract_feature_maps(self.body, probe_image(encoder, 3), [self.level])
        except RuntimeError:  # blocks that halve by averaging round down, the shortcut beside them up
            return False
        return True

    def image(self, frame: Frame) -> Tensor:
        """(h, w, 3) uint8 -> (1, c, h, w) float32 on the device, less the mean and over the standard deviation."""
        pixels = with_channels(frame, 1) if self.gray else frame
        # a copy: what Pillow decodes may not be written to, of which PyTorch warns
        x = torch.from_numpy(np.array(pixels, order="C")).to(self.device, non_blocking=True)
        return (x.permute(2, 0, 1)[None].float() / 255 - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(n, c, h, w) as ``image`` gives them -> (n, d, ceil(h / stride), ceil(w / stride)) float32."""
        started = time.perf_counter()
        height, width = images.shape[2:]
        if not self.takes_any_size:
            images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        with torch.autocast(self.device.type, _half_type(self.device), enabled=self.half):
            x = images.contiguous(memory_format=torch.channels_last)
            found = extract_feature_maps(self.body, x, [self.level], norm=True, stop_early=True)[0].float()
        if self.pooled > 1:
            found = F.avg_pool2d(found, self.pooled, ceil_mode=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return found.contiguous()[:, :, : math.ceil(height / self.stride), : math.ceil(width / self.stride)]


def _half_type(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def _resnet(encoder: Encoder, stage: str) -> Any:
    """A copy whose layer3 and layer4 keep the size of their input where that has 8 pixels to a cell already."""
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
    """Which of the maps, finest first."""
    if stage == "s4":
        return len(strides) - 1
    finer = [level for level, stride in enumerate(strides) if stride < strides[-1]]
    return finer[-1] if finer else round(len(strides) * 3 / 4) - 1
