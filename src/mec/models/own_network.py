"""Networks that are not from timm: any ``nn.Module`` from images to features, checked by a dry run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mec.errors import InputError

MODULE_PREFIX = "module:"
"""Start of the backbone name of a network that is not from timm; the qualified name of its class follows."""
CLASSIFIER_NAMES = {"fc", "head", "heads", "classifier", "last_linear"}
"""Names of the modules in torchvision and timm that map features to scores of classes."""


def network_name(network: nn.Module) -> str:
    """Return the backbone name of a network that is not from timm."""
    return f"{MODULE_PREFIX}{type(network).__module__}.{type(network).__qualname__}"


def copy_network(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU, without the wrapper of ``torch.compile``; its weights must be savable."""
    network = getattr(network, "_orig_mod", network)
    name = network_name(network)
    try:
        copied = copy.deepcopy(network).cpu()
    except Exception as error:  # users' classes raise many kinds of exceptions
        raise InputError(f"encoder: {name} cannot be copied ({_one_line(error)})") from error
    if others := [key for key, value in copied.state_dict().items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"encoder: expected only tensors in the state dict of {name}, got another value in {others[0]}"
        )
    return copied


def average_pool(features: Tensor) -> Tensor:
    """Return features (n, d) unchanged, and the averages (n, d) of feature maps (n, d, h, w)."""
    return features.mean((2, 3)) if features.ndim == 4 else features


def dry_run(network: nn.Module, name: str, channels: int, size: int) -> tuple[int, torch.memory_format]:
    """Return the number of features of a network, and the faster memory format that it supports.

    The network gets two zero images (2, channels, size, size), in evaluation mode, and is not changed.

    Raises:
        InputError: it fails, returns neither features (n, d) nor maps (n, d, h, w), or not as many features as its
            attribute ``num_features``.
    """
    images = torch.zeros(2, channels, size, size)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            num_features = _count_features(network, name, images)
            memory_format = torch.channels_last
            try:
                network.to(memory_format=memory_format)
                network(images.contiguous(memory_format=memory_format))
            except Exception:  # Tensor.view of maps in channels-last order, most often
                memory_format = torch.contiguous_format
            network.to(memory_format=torch.contiguous_format)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return num_features, memory_format


def check_training_mode(network: nn.Module, name: str, channels: int, size: int) -> None:
    """Raise InputError unless a network returns features in training mode too, where some return auxiliary outputs."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        _count_features(
            copy.deepcopy(network).train(), f"{name} in training mode", torch.zeros(2, channels, size, size)
        )


def _count_features(network: nn.Module, name: str, images: Tensor) -> int:
    try:
        output = network(images)
    except Exception as error:  # users' classes raise many kinds of exceptions
        raise InputError(
            f"encoder: {name} fails on images of shape {tuple(images.shape)}, which channels and image_size determine "
            f"({_one_line(error)})"
        ) from error
    is_tensor = isinstance(output, Tensor) and output.is_floating_point()
    if not is_tensor or output.ndim not in (2, 4) or len(output) != len(images):
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"encoder: expected features (n, d) or maps (n, d, h, w) of {len(images)} images from {name}, got {got}; "
            "wrap it in an nn.Module that returns them"
        )
    num_features = int(output.shape[1])
    # some architectures of timm have a hidden layer between pooling and the classifier
    stated = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if isinstance(stated, int) and stated != num_features:
        raise InputError(
            f"encoder: expected {stated} features, its num_features, from {name}, got {num_features}; replace a "
            "classifier by nn.Identity()"
        )
    return num_features


def find_classifier(network: nn.Module, num_features: int) -> str:
    """Return the name of the network's last module if it looks like a classifier; "" otherwise."""
    name, last = list(network.named_modules())[-1]
    is_classifier = isinstance(last, nn.Linear) and last.out_features == num_features
    return name if is_classifier and CLASSIFIER_NAMES & set(name.split(".")) else ""


def find_unused_parameter(network: nn.Module, channels: int, size: int) -> str:
    """Return the name of a trainable parameter that the features do not depend on; "" if there is none."""
    modes = {module: module.training for module in network.modules()}
    names, parameters = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        features = network.eval()(torch.zeros(2, channels, size, size))
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    for module, mode in modes.items():
        module.training = mode
    return next((name for name, gradient in zip(names, gradients, strict=True) if gradient is None), "")


def reinitialized(network: nn.Module, name: str) -> nn.Module:
    """Return a copy with new random weights by ``reset_parameters`` of its modules, inner modules first.

    Raises:
        InputError: these methods do not initialize every parameter.
    """
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(torch.nan)
        copied.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)  # type: ignore[operator]
    for key, parameter in copied.named_parameters():
        if bool(parameter.isnan().any()):
            raise InputError(f"encoder: {name} cannot be initialized anew: no reset_parameters initializes {key}")
    return copied


def skeleton(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters have no memory; ``load_state_dict(..., assign=True)`` fills them."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, memo)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
