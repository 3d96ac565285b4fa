"""The tensors of detectron2's R50-C4 with MoCo's further norm, and the names they have here."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mec.models.key_maps import TO_DETECTRON2, rename_key

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
"""Of each stage of a ResNet-50."""
HEADS = (
    ("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv."),
    ("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."),
    ("roi_heads.mask_predictor.conv5_mask.", "roi_heads.mask_head.deconv."),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.mask_head.predictor."),
)


def published(classes: int, masks: bool) -> Shapes:
    """Name and shape of every parameter and buffer, as a detector that detectron2 has built lists them."""
    shapes = dict(_convolution("backbone.stem.conv1", 64, 3, 7))
    before = 64
    for stage, blocks in BLOCKS.items():
        inner = 32 * 2 ** (stage - 1)
        place = "roi_heads" if stage == 5 else "backbone"
        for block in range(blocks):
            name = f"{place}.res{stage}.{block}"
            shapes |= dict(_convolution(f"{name}.conv1", inner, before, 1))
            shapes |= dict(_convolution(f"{name}.conv2", inner, inner, 3))
            shapes |= dict(_convolution(f"{name}.conv3", 4 * inner, inner, 1))
            if block == 0:
                shapes |= dict(_convolution(f"{name}.shortcut", 4 * inner, before, 1))
            before = 4 * inner
    shapes |= dict(_norm("roi_heads.res5.norm", 2048))
    heads: Shapes = {
        "proposal_generator.rpn_head.conv": (1024, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (15, 1024, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (60, 1024, 1, 1),
        "roi_heads.box_predictor.cls_score": (classes + 1, 2048),
        "roi_heads.box_predictor.bbox_pred": (4 * classes, 2048),
    }
    if masks:
        heads["roi_heads.mask_head.predictor"] = (classes, 256, 1, 1)
        # a deconvolution has its inputs first
        shapes |= {"roi_heads.mask_head.deconv.weight": (2048, 256, 2, 2), "roi_heads.mask_head.deconv.bias": (256,)}
    for name, shape in heads.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _convolution(name: str, out: int, given: int, side: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, given, side, side)
    yield from _norm(f"{name}.norm", out)


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A C4 detector's tensors under detectron2's names, and in its order of classes and of anchors.

    The background is the last class there; anchors are counted by size and then by ratio, here the other way.
    """
    anchors = torch.arange(15).view(3, 5).T.flatten()
    found = {}
    for own, tensor in state.items():
        name = _published_name(own)
        if "cls_score" in name:
            tensor = tensor.roll(-1, 0)
        elif "objectness_logits" in name or "anchor_deltas" in name:
            tensor = tensor.view(15, -1, *tensor.shape[1:])[anchors].flatten(0, 1)
        found[name] = tensor
    return found


def _published_name(own: str) -> str:
    for here, there in HEADS:
        if own.startswith(here):
            return there + own.removeprefix(here)
    if own.startswith("backbone."):
        return "backbone." + rename_key(own.removeprefix("backbone."), TO_DETECTRON2)
    res5 = "roi_heads.res5."
    if own.startswith(res5) and not own.startswith(f"{res5}norm."):
        return "roi_heads." + rename_key("layer4." + own.removeprefix(res5), TO_DETECTRON2)
    return own
