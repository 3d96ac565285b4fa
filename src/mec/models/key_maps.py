"""What other libraries call the tensors of a network; here they have timm's names.

torchvision's ResNets have the same names as timm's.
"""

from __future__ import annotations

import re

KeyMap = tuple[tuple[str, str], ...]

# detectron2 numbers the stages as the paper of ResNet does, and puts a norm inside its convolution
TO_DETECTRON2: KeyMap = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    *((rf"^layer{n}\.", f"res{n + 1}.") for n in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
FROM_DETECTRON2: KeyMap = (
    (r"^stem\.fc\.", "fc."),  # the converters put all that is not of a stage in the stem
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    *((rf"^res{n + 1}\.", f"layer{n}.") for n in (1, 2, 3, 4)),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)
# torchvision's vision transformer; its query, key and value are joined in one matrix, in timm's order
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
# a ResNet cut open into a Sequential: torchvision's counts its activation and pooling too, lightly's has neither
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
# EfficientNet-PyTorch; its blocks, counted through all stages, are put in stages by the code that uses these
FROM_EFFICIENTNET_PYTORCH: KeyMap = (
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn0\.", "bn1."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
    (r"\._se_reduce\.", ".se.conv_reduce."),
    (r"\._se_expand\.", ".se.conv_expand."),
)
EXPANDING: KeyMap = (
    (r"\._expand_conv\.", ".conv_pw."),
    (r"\._depthwise_conv\.", ".conv_dw."),
    (r"\._project_conv\.", ".conv_pwl."),
    *((rf"\._bn{n}\.", f".bn{n + 1}.") for n in (2, 1, 0)),
)
NOT_EXPANDING: KeyMap = (
    (r"\._depthwise_conv\.", ".conv_dw."),
    (r"\._project_conv\.", ".conv_pw."),
)


def rename_key(name: str, renames: KeyMap) -> str:
    """The name after each of the substitutions, in turn."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
