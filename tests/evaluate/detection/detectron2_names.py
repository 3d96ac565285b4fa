"""Tensors of detectron2's R50-C4 with MoCo's additional norm, and their mapping from the names used here."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mec.models.checkpoint_formats import DETECTRON2, rename_key

Shapes = dict[str, tuple[int, ...]]
NUM_BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
"""Stage of a ResNet-50 -> number of blocks."""
HEAD_PREFIXES = (
    ("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv."),
    ("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."),
    ("roi_heads.mask_predictor.conv5_mask.", "roi_heads.mask_head.deconv."),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.mask_head.predictor."),
)


def expected_shapes(num_classes: int, masks: bool) -> Shapes:
    """Return name -> shape of every parameter and buffer of a detector built by detectron2."""
    shapes = dict(_convolution("backbone.stem.conv1", 64, 3, 7))
    in_channels = 64
    for stage, num_blocks in NUM_BLOCKS.items():
        width = 32 * 2 ** (stage - 1)
        module = "roi_heads" if stage == 5 else "backbone"
        for block in range(num_blocks):
            name = f"{module}.res{stage}.{block}"
            shapes |= dict(_convolution(f"{name}.conv1", width, in_channels, 1))
            shapes |= dict(_convolution(f"{name}.conv2", width, width, 3))
            shapes |= dict(_convolution(f"{name}.conv3", 4 * width, width, 1))
            if block == 0:
                shapes |= dict(_convolution(f"{name}.shortcut", 4 * width, in_channels, 1))
            in_channels = 4 * width
    shapes |= dict(_norm("roi_heads.res5.norm", 2048))
    heads: Shapes = {
        "proposal_generator.rpn_head.conv": (1024, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (15, 1024, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (60, 1024, 1, 1),
        "roi_heads.box_predictor.cls_score": (num_classes + 1, 2048),
        "roi_heads.box_predictor.bbox_pred": (4 * num_classes, 2048),
    }
    if masks:
        heads["roi_heads.mask_head.predictor"] = (num_classes, 256, 1, 1)
        # the weight of a transposed convolution starts with the input channels
        shapes |= {"roi_heads.mask_head.deconv.weight": (2048, 256, 2, 2), "roi_heads.mask_head.deconv.bias": (256,)}
    for name, shape in heads.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _convolution(
    name: str, out_channels: int, in_channels: int, kernel_size: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out_channels, in_channels, kernel_size, kernel_size)
    yield from _norm(f"{name}.norm", out_channels)


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{tensor}", (channels,)) for tensor in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def to_detectron2(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a C4 detector's tensors to detectron2's names, order of classes and order of anchors.

    In detectron2 the background is the last class, and anchors are sorted by size and then by ratio.
    """
    anchor_order = torch.arange(15).view(3, 5).T.flatten()
    converted = {}
    for name, tensor in state_dict.items():
        new_name = _detectron2_name(name)
        if "cls_score" in new_name:
            tensor = tensor.roll(-1, 0)
        elif "objectness_logits" in new_name or "anchor_deltas" in new_name:
            tensor = tensor.view(15, -1, *tensor.shape[1:])[anchor_order].flatten(0, 1)
        converted[new_name] = tensor
    return converted


def _detectron2_name(name: str) -> str:
    for prefix, detectron2_prefix in HEAD_PREFIXES:
        if name.startswith(prefix):
            return detectron2_prefix + name.removeprefix(prefix)
    if name.startswith("backbone."):
        return "backbone." + rename_key(name.removeprefix("backbone."), DETECTRON2)
    res5 = "roi_heads.res5."
    if name.startswith(res5) and not name.startswith(f"{res5}norm."):
        return "roi_heads." + rename_key("layer4." + name.removeprefix(res5), DETECTRON2)
    return name
