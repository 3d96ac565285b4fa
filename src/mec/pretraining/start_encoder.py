"""The encoder that a run starts with: the recipe's, or an encoder or network of the user with its weights."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from mec.data.analysis import STATISTICS_SAMPLE_SIZE, channel_statistics, sample_images
from mec.data.dataset import ImageDataset, format_as_loaded
from mec.data.pixels import PixelFormat
from mec.data.transforms.crop import crop_and_resize
from mec.errors import InputError, did_you_mean
from mec.models.encoder import Encoder, EncoderSpec, create_encoder
from mec.models.foreign_checkpoints import describe_difference
from mec.models.io import load_encoder
from mec.models.own_network import (
    check_training_mode,
    copy_network,
    find_classifier,
    find_unused_parameter,
    network_name,
)
from mec.models.whitening import has_overlapping_stem, whiten_stem
from mec.pretraining.recipe import Recipe

logger = logging.getLogger("mec")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
StartEncoder = str | Encoder | nn.Module
"""A timm name; an Encoder; or a network from normalized images (n, c, h, w) to features (n, d) or maps (n, d, h, w)."""


def with_encoder(recipe: Recipe, encoder: StartEncoder | None) -> Recipe:
    """Return the recipe with the settings of an encoder that is passed to ``pretrain``. Differences are logged."""
    if encoder is None:
        return recipe
    if isinstance(encoder, str):
        if not timm.is_model(encoder):
            hint = did_you_mean(encoder, timm.list_models())
            raise InputError(
                f"encoder: expected a timm architecture, an Encoder or an nn.Module, got {encoder!r}{hint}; "
                "mec.load_encoder loads runs and files"
            )
        return replace(recipe, backbone=encoder)
    if not isinstance(encoder, nn.Module):
        got = f"the class {encoder.__name__}" if isinstance(encoder, type) else f"a {type(encoder).__name__}"
        raise InputError(f"encoder: expected a timm name, an Encoder or an instance of an nn.Module, got {got}")
    if not any(p.requires_grad for p in encoder.parameters()):
        raise InputError("encoder: expected parameters to train, got a network without any, or with all of them frozen")
    if isinstance(encoder, Encoder):
        return _with_spec(_with_own_size(recipe, encoder), encoder.spec)
    return replace(recipe, backbone=network_name(encoder), backbone_options={}, small_stem=None)


def _with_own_size(recipe: Recipe, encoder: Encoder) -> Recipe:
    """Return the recipe without the evaluation_scale if it has no image_size, and the encoder takes one size only."""
    size = round(encoder.spec.image_size / recipe.evaluation_scale)
    if recipe.image_size is not None or _refusal(encoder, size) is None:
        return recipe
    logger.info(
        f"evaluation_scale: 1, because {encoder.spec.backbone} takes images of {encoder.spec.image_size} px only"
    )
    return replace(recipe, evaluation_scale=1.0)


def _with_spec(recipe: Recipe, spec: EncoderSpec) -> Recipe:
    if recipe.channels not in (None, spec.channels):
        raise InputError(f"channels: expected {spec.channels} as in the encoder, or null, got {recipe.channels}")
    if spec.background != recipe.background:
        logger.info(f"background: {spec.background} of the encoder replaces {recipe.background} of the recipe")
    if recipe.image_size is None:
        size = round(spec.image_size / recipe.evaluation_scale)
        # not exactly that of the recipe: the trained encoder takes images of the same size as before
        recipe = replace(recipe, image_size=size, evaluation_scale=spec.image_size / size)
    recipe = replace(recipe, channels=spec.channels, background=spec.background)
    try:
        options = json.loads(json.dumps(spec.options))
    except TypeError as error:
        raise InputError(f"encoder: expected options that JSON can store, got {spec.options}") from error
    return replace(recipe, backbone=spec.backbone, backbone_options=options, small_stem=spec.small_stem)


def own_network(encoder: StartEncoder | None) -> nn.Module | None:
    """Return the network of a start that is not from timm; None otherwise."""
    if isinstance(encoder, Encoder):
        return encoder.backbone if encoder.spec.is_module else None
    return encoder if isinstance(encoder, nn.Module) else None


def with_value_range(pixel_format: PixelFormat, encoder: StartEncoder | None) -> PixelFormat:
    """Return the pixel format with the value range of an Encoder that has one; else that of the images."""
    known = encoder.spec.value_range if isinstance(encoder, Encoder) else None
    return pixel_format if known is None else replace(pixel_format, value_range=known)


def create_start_encoder(
    recipe: Recipe,
    pixel_format: PixelFormat,
    dataset: ImageDataset,
    encoder: StartEncoder | None,
    statistics: Statistics | None = None,
) -> Encoder:
    """Return the encoder to train, in training mode: a new one of the recipe, or a copy of the given encoder.
    ``statistics`` are the mean and standard deviation by which views are normalized already."""
    if isinstance(encoder, Encoder):
        return _to_train(copy_start(encoder, pixel_format, statistics), recipe)
    network = own_network(encoder)
    # 8-bit color images are normalized with ImageNet's statistics, the default of create_encoder
    is_8bit_color = pixel_format.channels == 3 and pixel_format.value_range is None
    mean, std = statistics or ((None, None) if is_8bit_color else channel_statistics(dataset, pixel_format))
    created = create_encoder(
        recipe.backbone if network is None else network,
        recipe.global_size,
        pixel_format.channels,
        recipe.small_stem if network is None else None,
        mean,
        std,
        recipe.backbone_options if network is None else None,
        pixel_format.value_range,
        pixel_format.background,
    )
    if network is not None:
        _log_network(created)
    return _to_train(created, recipe)


def whiten_start(recipe: Recipe, encoder: Encoder, dataset: ImageDataset, pixel_format: PixelFormat) -> Recipe:
    """Whiten the first convolution of a new encoder, if the recipe says so, and return the recipe with whether it is
    whitened. An encoder that is passed to ``pretrain`` keeps its weights."""
    if "encoder" in recipe.parts:
        return recipe
    whiten = has_overlapping_stem(encoder) if recipe.whiten_stem is None else recipe.whiten_stem
    if whiten:
        num_filters = whiten_stem(encoder, _view_sized(dataset, pixel_format, recipe.global_size))
        logger.info(f"first convolution: {num_filters} filters whiten the patches of the images")
    return replace(recipe, whiten_stem=whiten)


def _view_sized(dataset: ImageDataset, pixel_format: PixelFormat, size: int) -> Iterator[torch.Tensor]:
    """Yield the central squares (c, size, size) of a sample of images."""
    loaded_format = format_as_loaded(dataset, pixel_format)
    for image in sample_images(dataset, STATISTICS_SAMPLE_SIZE, lambda opened: opened.decode(loaded_format)):
        height, width = image.shape[:2]
        side = min(height, width)
        box = np.array([(height - side) // 2, (width - side) // 2, side, side])
        yield torch.from_numpy(crop_and_resize(image, box, size)).permute(2, 0, 1)


def copy_start(encoder: Encoder, pixel_format: PixelFormat, statistics: Statistics | None) -> Encoder:
    """Return a copy of a trained encoder, with the normalization of a run; its image size is its own."""
    spec = encoder.spec
    mean, std = statistics or (spec.mean, spec.std)
    if (mean, std) != (spec.mean, spec.std):
        logger.warning(f"encoder: normalized by the mean and std of view_transform, {mean} and {std}, not by its own")
    normalized = replace(spec, value_range=pixel_format.value_range, mean=mean, std=std)
    copied = Encoder(normalized, copy_network(encoder.backbone))
    copied.origin, copied.untrained = encoder.origin, encoder.untrained
    if not spec.is_module:
        with torch.random.fork_rng(devices=[]):
            difference = describe_difference(Encoder(spec), copied.backbone.state_dict())
        if difference:
            raise InputError(
                f"encoder: expected a {spec.backbone}, as its spec states, got another network ({difference}); "
                "pass encoder.backbone, an nn.Module"
            )
    return copied


def _to_train(encoder: Encoder, recipe: Recipe) -> Encoder:
    """Return the encoder in training mode, with the image size of the trained one."""
    spec, size = encoder.spec, recipe.evaluation_size
    if recipe.global_size != spec.image_size and hasattr(encoder.backbone, "set_input_size") and not spec.is_module:
        encoder.backbone.set_input_size(img_size=recipe.global_size)  # type: ignore[operator]  # position embeddings
        encoder.spec = spec = replace(spec, image_size=recipe.global_size)
    if spec.is_module:
        check_training_mode(encoder.backbone, spec.backbone, spec.channels, spec.image_size)
    _check_sizes(encoder, "image_size", f"{spec.image_size}, or null,", [recipe.global_size])
    _check_sizes(encoder, "resolution_schedule", "null", recipe.resolution_schedule or ())
    _check_sizes(encoder, "evaluation_scale", "1", [size])
    encoder.spec, encoder.image_size = replace(spec, image_size=size), size
    return encoder.train()


def _check_sizes(encoder: Encoder, name: str, neutral: str, sizes: Sequence[int]) -> None:
    """Raise InputError if an encoder does not take images of all ``sizes``, which the setting ``name`` determines."""
    spec = encoder.spec
    for size in sizes:
        if (refusal := _refusal(encoder, size)) is not None:
            raise InputError(
                f"{name}: expected {neutral} for {spec.backbone}, which takes images of {spec.image_size} px, got one "
                f"that needs {size} px: {refusal}"
            )


def _refusal(encoder: Encoder, size: int) -> str | None:
    """Return why an encoder does not take images of ``size`` x ``size`` pixels; None if it does."""
    if size == encoder.spec.image_size:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(encoder).eval()(torch.zeros(1, encoder.spec.channels, size, size))
    except Exception as error:  # networks raise many kinds of exceptions
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _log_network(encoder: Encoder) -> None:
    """Log what the network gets and what is taken from it."""
    spec = encoder.spec
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
    logger.info(
        f"encoder: {spec.backbone} gets images (n, {spec.channels}, {spec.image_size}, {spec.image_size}) normalized "
        f"by mean {mean} and standard deviation {std}; {encoder.num_features} features"
    )
    if classifier := find_classifier(encoder.backbone, encoder.num_features):
        logger.warning(
            f"encoder: its features are the outputs of {classifier}, which looks like a classifier; replace it by "
            "nn.Identity() to train the features before it"
        )


def check_same_network(checkpoint: Path, start: StartEncoder | None) -> None:
    """Raise InputError if a run with a network that is not from timm is resumed with one of other weights."""
    if (network := own_network(start)) is not None:
        load_encoder(checkpoint, backbone=network)


def check_all_trained(encoder: Encoder) -> None:
    """Raise InputError if a parameter of a network that is not from timm would get no gradient.

    Several processes wait for the gradient of every parameter.
    """
    spec = encoder.spec
    if spec.is_module and (name := find_unused_parameter(encoder, spec.channels, spec.image_size)):
        raise InputError(
            f"encoder: its features do not depend on {name.removeprefix('backbone.')}; with several processes, every "
            "parameter must be trained or have requires_grad=False"
        )
