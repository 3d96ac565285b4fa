"""Load and save encoders: weights in ``encoder.safetensors``, architecture and normalization in ``encoder.json``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import nn

from mec.errors import InputError, did_you_mean
from mec.files import atomic_write
from mec.models.baseline import START_FILE, find_start, untrained
from mec.models.checkpoint_conventions import describe_preprocessing
from mec.models.checkpoint_files import CHECKPOINTS_FOLDER, checkpoint_step, newest_intact
from mec.models.checkpoint_formats import MEC_BACKBONE_PREFIX
from mec.models.checkpoint_networks import BRANCHES
from mec.models.encoder import Encoder, EncoderSpec, create_encoder
from mec.models.foreign_checkpoints import describe_difference, encoder_from_checkpoint, load_weights
from mec.models.own_network import MODULE_PREFIX
from mec.models.safe_pickle import read_weights

logger = logging.getLogger("mec")

WEIGHTS_FILE = "encoder.safetensors"
SPEC_FILE = "encoder.json"
TIMM_CONFIG = "config.json"
TIMM_FIELDS = ("small_stem", "options", "stem_padding")
"""Fields of EncoderSpec that only timm's architectures have."""
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def save_encoder(encoder: Encoder, folder: str | os.PathLike[str], file: str = WEIGHTS_FILE) -> Path:
    """Write the encoder into ``folder``: the weights into ``file``, and the spec into a .json of the same name, each
    atomically. Return the path of the weights."""
    weights = Path(folder) / file
    write_spec(encoder, weights.with_suffix(".json"))
    save_weights(encoder, weights)
    return weights


def write_spec(encoder: Encoder, file: Path) -> None:
    """Write the spec of an encoder atomically, as JSON."""
    with atomic_write(file) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")


def save_weights(encoder: Encoder, file: Path) -> None:
    """Write the weights of an encoder atomically."""
    # clone, because some architectures have one tensor under two keys, which safetensors rejects
    weights = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in encoder.backbone.state_dict().items()}
    with atomic_write(file) as path:
        path.write_bytes(save(weights, metadata={"format": "pt"}))  # the errors of save_file do not name their cause


def load_encoder(source: str | os.PathLike[str], **overrides: Any) -> Encoder:
    """Load an encoder, in evaluation mode; its ``origin`` describes where its weights come from.

    Args:
        source: a run folder, which stands for its encoder.safetensors, or before the run has ended for its newest
            intact checkpoint; a file of weights; a checkpoint of this or another project (docs/encoders.md
            lists the formats), with ``FILE:student`` or ``FILE:teacher`` to choose if it holds both; a folder
            saved by timm, or ``hf:owner/name``, such a folder on the Hugging Face hub; or a timm name: with a tag,
            such as resnet18.a1_in1k, its trained weights from the hub, without one the untrained architecture with
            seeded weights (its ``untrained`` is then true).
        overrides: fields of EncoderSpec that take precedence over stored or inferred ones: ``backbone`` for an
            architecture that is not recognized, ``image_size``, ``mean`` and ``std``, ... For another project's file,
            a .json of the same name may hold them too. ``backbone`` may be an ``nn.Module``, whose copy gets the
            weights; runs of a network that is not from timm need it.

    Raises:
        InputError: the source does not exist or is not an encoder, its pickle needs code to load, or its weights do
            not match the architecture exactly.
    """
    if isinstance(source, nn.Module):
        raise InputError(
            "encoder: expected an Encoder or a path, got a network; mec.create_encoder makes it an Encoder"
        )
    overrides = _validate(overrides, "encoder")
    name = os.path.expanduser(source)
    if name.startswith("hf:"):
        return _load_timm_folder(_download(name.removeprefix("hf:")), name, None, overrides)
    path, branch = Path(name), None
    if not path.exists() and name.endswith(tuple(f":{branch}" for branch in BRANCHES)):
        name, _, branch = name.rpartition(":")
        path = Path(name)
    folder = path if path.is_dir() else path.parent
    is_timm = not (path / WEIGHTS_FILE).exists() if path.is_dir() else path.name in TIMM_WEIGHTS and path.exists()
    if is_timm and (folder / TIMM_CONFIG).exists():
        return _load_timm_folder(folder, name, branch, overrides)
    if path.is_dir() or path.name == WEIGHTS_FILE:
        if not (folder / WEIGHTS_FILE).exists():
            return _load_newest_checkpoint(folder, branch, overrides)
        if branch == "teacher":
            raise InputError(f"encoder: {folder}/{WEIGHTS_FILE} has no teacher; the run's checkpoints do")
        return _load_saved(folder, overrides)
    if path.exists():
        return _load_checkpoint(path, branch, overrides)
    if "." in name and timm.is_model(name):  # a tag after the architecture names trained weights
        pretrained = timm.models.get_pretrained_cfg(name)
        repository = pretrained and pretrained.hf_hub_id
        if not repository:
            raise InputError(f"encoder: expected a timm name with weights on the Hugging Face hub, got {name}")
        return _load_timm_folder(_download(repository), f"hf:{repository}", branch, overrides)
    if os.sep in name or path.suffix or branch:
        raise InputError(f"encoder: {name} does not exist")
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise InputError(f"encoder: expected a run folder, a file or a timm architecture, got {name!r}{hint}")
    config = timm.models.get_pretrained_cfg(name)
    size = config.input_size[-1] if config else 224
    if isinstance(overrides.get("backbone"), nn.Module):
        raise InputError(f"backbone: expected none for the timm architecture {name}, got a network")
    return untrained(create_encoder(**{"backbone": name, "image_size": size, **overrides}))


def load_start(run: Path) -> Encoder:
    """Load the trained encoder with which a run started."""
    spec = (run / START_FILE).with_suffix(".json")
    spec = spec if spec.exists() else run / SPEC_FILE  # of versions that did not write it
    encoder = create_encoder(**_merge(_read_fields(spec, complete=True), {}, run))
    load_weights(encoder, dict(read_weights(run / START_FILE)), str(run / START_FILE))
    return encoder.eval()


def _load_saved(folder: Path, overrides: dict[str, Any]) -> Encoder:
    path = folder / WEIGHTS_FILE
    fields = _read_fields(folder / SPEC_FILE, complete=True)
    weights = dict(read_weights(path))
    encoder = create_encoder(**_merge(fields, overrides, folder))
    if difference := describe_difference(encoder, weights):
        raise InputError(f"encoder: {path} does not match {encoder.spec.backbone} ({difference})")
    load_weights(encoder, weights, str(path))
    encoder.origin = f"encoder of {folder}"
    encoder.start_file = find_start(folder)
    return encoder.eval()


def _merge(stored: dict[str, Any], overrides: dict[str, Any], source: Path | str) -> dict[str, Any]:
    """Return fields of EncoderSpec, of which ``stored`` in ``source`` may describe a network that cannot be built."""
    name = stored.get("backbone", "")
    if isinstance(overrides.get("backbone"), nn.Module):
        stored = {field: value for field, value in stored.items() if field not in TIMM_FIELDS}
    elif "backbone" not in overrides and name.startswith(MODULE_PREFIX):
        raise InputError(
            f"encoder: the network of {source}, {name}, is not from timm; load it in Python with "
            f'mec.load_encoder("{source}", backbone=NETWORK), an nn.Module of this class'
        )
    elif "backbone" not in overrides and name and not timm.is_model(name):
        raise InputError(
            f"encoder: the architecture of {source}, {name}, is unknown to timm; import the module that registers it "
            f"(timm.models.register_model) first{did_you_mean(name, timm.list_models())}"
        )
    return stored | overrides


def _load_newest_checkpoint(run: Path, branch: str | None, overrides: dict[str, Any]) -> Encoder:
    """Load the encoder of a run that has not ended, from its newest intact checkpoint."""
    path, damaged = newest_intact(run / CHECKPOINTS_FOLDER)
    if path is None:
        if damaged:
            reason = f", and all {len(damaged)} checkpoints are damaged"
        elif (run / SPEC_FILE).exists():
            reason = " and no checkpoint yet: a run writes one every few minutes, and when it is stopped"
        else:
            reason = ": expected the folder of a run, or one saved by timm"
        raise InputError(f"encoder: {run} has no {WEIGHTS_FILE}{reason}")
    encoder = _load_checkpoint(path, branch, overrides)
    position = f"checkpoint of step {checkpoint_step(path):,}"
    newer = f" ({', '.join(p.name for p in damaged)}: damaged)" if damaged else ""
    logger.warning(f"{run} has no {WEIGHTS_FILE}, because the run has not ended: using its {position}{newer}")
    encoder.origin = f"encoder of {run}, {position}" + (f", {branch}" if branch else "")
    encoder.start_file = find_start(run)
    return encoder


def _read_fields(path: Path, complete: bool) -> dict[str, Any]:
    """Return fields of EncoderSpec from a .json; ``complete``: all that have no default."""
    try:
        fields = _validate(json.loads(path.read_text()), str(path))
        if complete:
            EncoderSpec(**fields)
    except (ValueError, OSError, TypeError) as error:
        raise InputError(f"encoder: {path} does not describe an encoder ({error})") from error
    return fields


def _load_checkpoint(path: Path, branch: str | None, overrides: dict[str, Any]) -> Encoder:
    checkpoint = read_weights(path)
    json_path = path.with_suffix(".json")
    # the one beside the checkpoints is there if the run has kept its start, which takes images of another size
    candidates = path.with_name(SPEC_FILE), path.parent.parent / SPEC_FILE
    run_spec = next((candidate for candidate in candidates if candidate.exists()), None)
    state_dict = checkpoint.get("state_dict")
    stored, label = {}, ""
    keys = (str(key).replace("_orig_mod.", "") for key in state_dict) if isinstance(state_dict, Mapping) else ()
    if any(key.startswith(MEC_BACKBONE_PREFIX) for key in keys):
        if run_spec is not None:
            stored = _read_fields(run_spec, complete=True)
        elif "backbone" not in overrides:
            raise InputError(f"encoder: {path} is a checkpoint of a run, and the run's {candidates[1]} does not exist")
    elif json_path.exists() and json_path != path:
        stored = _read_fields(json_path, complete=False)
        label = f"encoder {path.name}" if stored.keys() == FIELDS.keys() else ""  # mec export writes all fields
    return encoder_from_checkpoint(checkpoint, str(path), branch, _merge(stored, overrides, path), label)


def _load_timm_folder(folder: Path, source: str, branch: str | None, overrides: dict[str, Any]) -> Encoder:
    config_path = folder / TIMM_CONFIG
    try:
        config = json.loads(config_path.read_text())
        architecture, pretrained_cfg = config["architecture"], config.get("pretrained_cfg") or {}
        options = dict(config.get("model_args") or {})
        input_size = pretrained_cfg.get("input_size") or (3, 224, 224)
        channels = options.pop("in_chans", input_size[0])
        image_size = options.pop("img_size", input_size[-1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"encoder: {config_path} is not a timm configuration, which has an 'architecture' ({error})"
        raise InputError(message) from error
    if not options.get("global_pool", True):
        del options["global_pool"]
    mec_config = config.get("mec")
    if isinstance(mec_config, dict) and isinstance(mec_config.get("spec"), dict):  # written by mec export
        fields: dict[str, Any] = mec_config["spec"]
    else:
        fields = {
            "backbone": architecture.split(".")[0],  # without the tag of the pretrained weights
            "image_size": image_size if isinstance(image_size, int) else image_size[-1],
            "channels": channels,
            "small_stem": False,
            "options": {k: v for k, v in options.items() if k not in ("num_classes", "pretrained")},
        }
        if len(pretrained_cfg.get("mean") or ()) == channels == len(pretrained_cfg.get("std") or ()):
            fields |= {"mean": pretrained_cfg["mean"], "std": pretrained_cfg["std"]}
        if difference := describe_preprocessing(pretrained_cfg, overrides.get("image_size", fields["image_size"])):
            logger.warning(f"encoder: {config_path} asks for {difference}")
    fields = _merge(_validate(fields, str(config_path)), overrides, source)
    paths = [folder / name for name in TIMM_WEIGHTS if (folder / name).exists()]
    if not paths:
        raise InputError(f"encoder: {folder} has a {TIMM_CONFIG} but no {' or '.join(TIMM_WEIGHTS)}")
    return encoder_from_checkpoint(read_weights(paths[0]), str(paths[0]), branch, fields, f"timm folder {source}")


def _download(repository: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[TIMM_CONFIG, *TIMM_WEIGHTS]))
    except Exception as error:  # huggingface_hub and its dependencies raise many kinds of exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"encoder: hf:{repository} could not be downloaded ({reason}); without a network, copy a file of "
            "weights here and name it"
        ) from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_int(v) or isinstance(v, float) for v in value)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backbone": (lambda value: isinstance(value, str | nn.Module), "a timm name or an nn.Module"),
    "image_size": (_is_int, "a whole number of pixels"),
    "channels": (_is_int, "a whole number"),
    "small_stem": (lambda value: isinstance(value, bool), "true or false"),
    "mean": (_are_numbers, "a list of numbers"),
    "std": (lambda value: _are_numbers(value) and min(value) > 0, "a list of numbers above 0"),
    "options": (lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value), "a mapping"),
    "value_range": (lambda value: value is None or (_are_numbers(value) and len(value) == 2), "two numbers or null"),
    "background": (lambda value: isinstance(value, str), "a color"),
    "stem_padding": (lambda value: _is_int(value) and value >= 0, "a whole number"),
}
"""Field of EncoderSpec -> a validator and a description of the expected type."""


def _validate(fields: Any, source: str) -> dict[str, Any]:
    """Return fields of EncoderSpec after checking their types; lists become tuples."""
    if not isinstance(fields, dict):
        raise InputError(f"{source}: expected a mapping of {', '.join(FIELDS)}, got a {type(fields).__name__}")
    for name, value in fields.items():
        if name not in FIELDS:
            raise InputError(f"{source}: expected any of {', '.join(FIELDS)}, got {name!r}")
        is_valid, expected = FIELDS[name]
        if not is_valid(value):
            raise InputError(f"{source}: {name}: expected {expected}, got {value!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
