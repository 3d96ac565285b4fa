"""Reading and writing encoders: ``encoder.safetensors`` and beside it ``encoder.json``, enough to build it again.

Other people's files of weights are recognized; see published.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mec.errors import InputError, did_you_mean
from mec.files import atomic_write
from mec.models.encoder import Encoder, EncoderSpec, create_encoder
from mec.models.foreign_checkpoints import BRANCHES, MEC_BACKBONE_PREFIX, encoder_from_checkpoint
from mec.models.safe_pickle import read_weights

WEIGHTS_FILE = "encoder.safetensors"
SPEC_FILE = "encoder.json"
TIMM_SPEC = "config.json"
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def save_encoder(encoder: Encoder, folder: str | os.PathLike[str]) -> Path:
    """Write the encoder into ``folder``, each file whole or not at all. Returns the path of the weights."""
    folder = Path(folder)
    # copies, for some architectures give one tensor two names
    weights = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in encoder.backbone.state_dict().items()
    }
    with atomic_write(folder / SPEC_FILE) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")
    with atomic_write(folder / WEIGHTS_FILE) as path:
        path.write_bytes(save(weights, metadata={"format": "pt"}))  # save_file tells no cause of what fails
    return folder / WEIGHTS_FILE


def load_encoder(source: str | os.PathLike[str], **fields: Any) -> Encoder:
    """An encoder, in evaluation mode; its ``origin`` says where its weights come from.

    Args:
        source: a run folder or its encoder.safetensors; a file of weights that this or another project wrote
            (docs/encoders.md has the list), and ``FILE:student`` or ``FILE:teacher`` where it holds both; a folder
            that timm wrote, or ``hf:owner/name``, such a folder on the Hugging Face hub; or a timm name: the
            untrained architecture with seeded weights (its ``untrained`` is then true).
        fields: EncoderSpec's, overruling what the files say or what is recognized: ``backbone`` where several
            architectures fit, ``image_size``, ``mean`` and ``std``, ... A .json beside another project's file,
            of the same name, may hold any of them too.

    Raises:
        InputError: nothing there, not an encoder, a pickle that needs code to load, or weights that do not fill the
            architecture to the last tensor.
    """
    fields = _checked(fields, "encoder")
    name = os.path.expanduser(source)
    if name.startswith("hf:"):
        return _read_timm_folder(_download(name.removeprefix("hf:")), name, None, fields)
    path, part = Path(name), None
    if not path.exists() and name.endswith(tuple(f":{part}" for part in BRANCHES)):
        name, _, part = name.rpartition(":")
        path = Path(name)
    if path.is_dir() and not (path / WEIGHTS_FILE).exists() and (path / TIMM_SPEC).exists():
        return _read_timm_folder(path, name, part, fields)
    if path.name in TIMM_WEIGHTS and path.exists() and path.with_name(TIMM_SPEC).exists():
        return _read_timm_folder(path.parent, name, part, fields)
    if path.is_dir() or path.name == WEIGHTS_FILE:
        folder = path if path.is_dir() else path.parent
        if not (folder / WEIGHTS_FILE).exists():
            unfinished = "; until then, take a file of its checkpoints/" if (folder / "checkpoints").is_dir() else ""
            raise InputError(f"encoder: {folder} has no {WEIGHTS_FILE}; it is written when a run ends{unfinished}")
        if part == "teacher":
            raise InputError(f"encoder: {folder}/{WEIGHTS_FILE} holds no teacher; a run's checkpoints do")
        return _read_own(folder, fields)
    if path.exists():
        return _read_foreign(path, part, fields)
    if os.sep in name or path.suffix or part:
        raise InputError(f"encoder: {name} does not exist")
    if not timm.is_model(name):
        proposal = did_you_mean(name, timm.list_models())
        raise InputError(f"encoder: {name!r} is neither a run folder, a file nor a timm architecture{proposal}")
    published = timm.models.get_pretrained_cfg(name)
    size = published.input_size[-1] if published else 224
    return untrained(create_encoder(**{"backbone": name, "image_size": size, **fields}))


def untrained(encoder: Encoder, seed: int = 0) -> Encoder:
    """The same architecture with fresh weights from ``seed``: the baseline that a trained one is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Encoder(encoder.spec)
    fresh.untrained = True
    fresh.origin = f"{encoder.spec.backbone}, untrained, seed {seed}"
    return fresh.eval()


def _read_own(folder: Path, fields: dict[str, Any]) -> Encoder:
    path = folder / WEIGHTS_FILE
    spec = _read_spec(folder / SPEC_FILE)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"encoder: {path} cannot be read as safetensors ({error})") from error
    encoder = create_encoder(**replace(spec, **fields).as_dict())
    try:
        encoder.backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"encoder: {path} does not fit {spec.backbone} ({reason})") from error
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(f"encoder: {path} has values in {broken[0]} that are not finite numbers")
    encoder.origin = f"encoder of {folder}"
    return encoder.eval()


def _read_spec(path: Path) -> EncoderSpec:
    try:
        return EncoderSpec(**_checked(json.loads(path.read_text()), str(path)))
    except FileNotFoundError as error:
        raise InputError(f"encoder: {path.parent / WEIGHTS_FILE} has no {path.name} beside it") from error
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"encoder: {path} does not describe an encoder ({error})") from error


def _read_foreign(path: Path, part: str | None, fields: dict[str, Any]) -> Encoder:
    content = read_weights(path)
    beside = path.with_suffix(".json")
    run_spec = path.parent.parent / SPEC_FILE
    state = content.get("state_dict")
    known: dict[str, Any] = {}
    called = ""
    names = (str(name).replace("_orig_mod.", "") for name in state) if isinstance(state, Mapping) else ()
    if any(name.startswith(MEC_BACKBONE_PREFIX) for name in names):
        if run_spec.exists():
            known = _read_spec(run_spec).as_dict()
        elif "backbone" not in fields:
            raise InputError(f"encoder: {path} is a run's checkpoint, and its {SPEC_FILE} is not at {run_spec}")
    elif beside.exists() and beside != path:
        try:
            known = _checked(json.loads(beside.read_text()), str(beside))
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"encoder: {beside} does not describe an encoder ({error})") from error
        called = f"encoder {path.name}" if known.keys() == FIELDS.keys() else ""  # mec export wrote it
    return encoder_from_checkpoint(content, str(path), part, known | fields, called)


def _read_timm_folder(folder: Path, name: str, part: str | None, fields: dict[str, Any]) -> Encoder:
    spec_path = folder / TIMM_SPEC
    try:
        spec: dict[str, Any] = json.loads(spec_path.read_text())
        architecture: str = spec["architecture"]
        published: dict[str, Any] = spec.get("pretrained_cfg") or {}
        options: dict[str, Any] = dict(spec.get("model_args") or {})
        size = published.get("input_size") or (3, 224, 224)
        channels = options.pop("in_chans", size[0])
        side = options.pop("img_size", size[-1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"encoder: {spec_path} is not a description by timm, which has 'architecture' ({error})"
        ) from error
    if not options.get("global_pool", True):
        del options["global_pool"]
    own = spec.get("mec")
    if isinstance(own, dict) and isinstance(own.get("spec"), dict):  # mec export wrote it: all is known
        return _from_timm_folder(folder, name, part, _checked(own["spec"], str(spec_path)) | fields)
    known: dict[str, Any] = {
        "backbone": architecture.split(".")[0],  # less the name of the weights
        "image_size": side if isinstance(side, int) else side[-1],
        "channels": channels,
        "small_stem": False,
        "options": {k: v for k, v in options.items() if k not in ("num_classes", "pretrained")},
    }
    if len(published.get("mean") or ()) == channels == len(published.get("std") or ()):
        known |= {"mean": published["mean"], "std": published["std"]}
    return _from_timm_folder(folder, name, part, _checked(known, str(spec_path)) | fields)


def _from_timm_folder(folder: Path, name: str, part: str | None, fields: dict[str, Any]) -> Encoder:
    paths = [folder / weights for weights in TIMM_WEIGHTS if (folder / weights).exists()]
    if not paths:
        raise InputError(f"encoder: {folder} has a {TIMM_SPEC} but neither {' nor '.join(TIMM_WEIGHTS)}")
    return encoder_from_checkpoint(read_weights(paths[0]), str(paths[0]), part, fields, f"timm folder {name}")


def _download(repository: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[TIMM_SPEC, *TIMM_WEIGHTS]))
    except Exception as error:  # the hub's library and what it stands on raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"encoder: hf:{repository} could not be downloaded ({reason})") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_number, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "backbone": (lambda value: isinstance(value, str), "a timm name"),
    "image_size": (_is_whole, "a whole number of pixels"),
    "channels": (_is_whole, "a whole number"),
    "small_stem": (lambda value: isinstance(value, bool), "true or false"),
    "mean": (_are_numbers, "a list of numbers"),
    "std": (lambda value: _are_numbers(value) and min(value) > 0, "a list of numbers above 0"),
    "options": (lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value), "a mapping"),
    "value_range": (lambda value: value is None or (_are_numbers(value) and len(value) == 2), "two numbers or nothing"),
    "background": (lambda value: isinstance(value, str), "a color"),
    "stem_padding": (lambda value: _is_whole(value) and value >= 0, "a whole number"),
}


def _checked(fields: Any, where: str) -> dict[str, Any]:
    """EncoderSpec's fields, each of its type; lists become tuples."""
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected a mapping of {', '.join(FIELDS)}; got a {type(fields).__name__}")
    for name, value in fields.items():
        if name not in FIELDS:
            raise InputError(f"{where}: there is no {name!r}; expected any of {', '.join(FIELDS)}")
        fits, expected = FIELDS[name]
        if not fits(value):
            raise InputError(f"{where}: {name}={value!r}; expected {expected}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
