"""The encoder to which a trained one is compared: that with which its run started, or an untrained one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.foreign_checkpoints import load_weights
from mec.models.own_network import copy_network, reinitialized
from mec.models.safe_pickle import read_weights

logger = logging.getLogger("mec")

START_FILE = "start.safetensors"
"""Weights of the trained encoder with which a run started; a .json of the same name has its spec."""
UNTRAINED_FILE = "untrained.safetensors"
"""Weights of the untrained encoder with which a run started, where no seed determines them."""


def find_start(run: Path) -> Path | None:
    """Return the file of the weights with which a run started; None if it has none."""
    return next((run / name for name in (START_FILE, UNTRAINED_FILE) if (run / name).exists()), None)


def find_baseline(encoder: Encoder) -> dict[str, Encoder]:
    """Return the encoder to compare with, by its name in tables: "start", the one with which the run of ``encoder``
    started, if that was trained already; else "untrained". An untrained encoder has none, and neither has a network
    that cannot be initialized, which is logged."""
    if encoder.untrained:
        return {}
    try:
        if encoder.start_file is not None and encoder.start_file.name == START_FILE:
            return {"start": read_start(encoder, encoder.start_file)}
        return {"untrained": untrained(encoder)}
    except InputError as error:
        logger.info(f"no untrained encoder as a baseline: {str(error).removeprefix('encoder: ')}")
        return {}


def read_start(encoder: Encoder, file: Path) -> Encoder:
    """Return the encoder with which the run of ``encoder`` started, from its ``file``. It takes images of the size that
    it was trained for, as before the run."""
    spec_file = file.with_suffix(".json")
    fields = json.loads(spec_file.read_text()) if spec_file.exists() else {}
    spec = replace(encoder.spec, image_size=fields.get("image_size", encoder.spec.image_size))
    with torch.random.fork_rng(devices=[]):
        start = Encoder(spec, copy_network(encoder.backbone) if spec.is_module else None)
    return _read_weights(start, file)


def untrained(encoder: Encoder, seed: int = 0) -> Encoder:
    """Return the same architecture untrained: with the weights at the start of its run, if the run folder holds them,
    else with weights initialized from ``seed``.

    Raises:
        InputError: the network is not from timm, and its ``reset_parameters`` do not initialize every parameter.
    """
    spec, file = encoder.spec, encoder.start_file
    if file is not None and file.name == UNTRAINED_FILE:
        if file.exists():
            initialized = _read_weights(Encoder(spec, copy_network(encoder.backbone)), file)
            initialized.untrained = True
            return initialized
        logger.warning(f"{file} was deleted: the untrained encoder has the weights of seed {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialized = Encoder(spec, reinitialized(encoder.backbone, spec.backbone) if spec.is_module else None)
    initialized.untrained = True
    initialized.origin = f"{spec.backbone}, untrained, seed {seed}"
    return initialized.eval()


def _read_weights(encoder: Encoder, file: Path) -> Encoder:
    """Read the weights of a file in the folder of a run, and return the encoder."""
    load_weights(encoder, dict(read_weights(file)), str(file))
    encoder.origin = f"{encoder.spec.backbone}, {file.stem} of {file.parent}"
    return encoder.eval()
