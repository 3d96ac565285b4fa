"""Key maps from other libraries' state dicts to timm's, and back.

torchvision's ResNets have timm's keys.
"""

from __future__ import annotations

import re

KeyMap = tuple[tuple[str, str], ...]
"""Regular expressions and their replacements, applied in order."""

# detectron2 numbers the stages as the ResNet paper does, and makes each norm a child of its convolution
TO_DETECTRON2: KeyMap = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    *((rf"^layer{n}\.", f"res{n + 1}.") for n in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
FROM_DETECTRON2: KeyMap = (
    (r"^stem\.fc\.", "fc."),  # the conversion scripts prefix every key outside the stages with "stem."
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)
# torchvision's vision transformer, like timm's, stores query, key and value in one matrix, in the same order
TO_TORCHVISION_VIT: KeyMap = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
FROM_TORCHVISION_VIT: KeyMap = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
# a ResNet converted to nn.Sequential; torchvision's activation and max-pool are children too, lightly's are not
FROM_SEQUENTIAL: KeyMap = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{n + 3}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
)
FROM_LIGHTLY: KeyMap = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\.shortcut\.", ".downsample."),
)
# EfficientNet-PyTorch numbers blocks over all stages; the caller has already converted those numbers
FROM_EFFICIENTNET_PYTORCH: KeyMap = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn0\.", "bn1."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
    (r"\._se_reduce\.", ".se.conv_reduce."),
    (r"\._se_expand\.", ".se.conv_expand."),
)
# its two kinds of blocks, by the names of timm's classes
INVERTED_RESIDUAL: KeyMap = (
    (r"\._expand_conv\.", ".conv_pw."),
    (r"\._depthwise_conv\.", ".conv_dw."),
    (r"\._project_conv\.", ".conv_pwl."),
    *((rf"\._bn{n}\.", f".bn{n + 1}.") for n in (2, 1, 0)),
)
DEPTHWISE_SEPARABLE: KeyMap = (
    (r"\._depthwise_conv\.", ".conv_dw."),
    (r"\._project_conv\.", ".conv_pw."),
)


def rename_key(key: str, key_map: KeyMap) -> str:
    """Return the key after each replacement of the key map, in order."""
    for pattern, replacement in key_map:
        key = re.sub(pattern, replacement, key)
    return key
