"""Export an encoder to the format of another library, atomically, with a model card."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from huggingface_hub import HfApi

from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder, registering_module
from mec.models.export.formats import check_same_features, write_detectron2, write_onnx, write_timm, write_torchvision
from mec.models.export.model_card import Library, model_card, without_folders
from mec.models.head import ClassifierHead, load_head, weights_digest
from mec.models.io import SPEC_FILE, WEIGHTS_FILE, load_encoder, save_encoder

logger = logging.getLogger("mec")

Format = Literal["timm", "torchvision", "detectron2", "onnx", "huggingface", "safetensors"]
SUFFIXES = {"torchvision": ".pth", "detectron2": ".pkl", "onnx": ".onnx", "safetensors": ".safetensors"}  # of files


def export(
    encoder: Encoder | str | os.PathLike[str],
    format: Format,
    out: str | os.PathLike[str],
    license: str | None = None,
    push: str | None = None,
    head: ClassifierHead | str | os.PathLike[str] | None = None,
) -> Path:
    """Write an encoder in the format of another library.

    The weights are loaded into the other library's network and the features of random images compared before ``out``
    is created: ``out`` is complete and gives the same features, or it does not exist.

    Args:
        encoder: an Encoder, or anything that ``mec.load_encoder`` loads: a run folder, a checkpoint, a timm name ...
        format: timm, a folder for timm.create_model("local-dir:..."); torchvision, a state dict; detectron2, a
            pickle; onnx, a network from images in [0, 1] to features; huggingface, a folder with a model card of
            the run; safetensors, this library's own format, with a .json of the same name.
        out: output path, which must not exist: a folder for timm and huggingface, a .pth file for torchvision,
            .pkl for detectron2, .onnx or .safetensors.
        license: license of the weights, as spelled on the Hugging Face hub: apache-2.0, mit, cc-by-4.0 ... By
            default, the model card states that none was chosen. torchvision and safetensors files cannot store it.
        push: owner/name on the Hugging Face hub, for format huggingface: upload the folder to this repository, which
            is created, public, if it does not exist. By default, nothing is uploaded.
        head: a classifier that ``mec classify --save`` wrote, for format onnx: the network then returns class
            probabilities, and its metadata hold the names of the classes. By default, it returns features.

    Returns:
        The path of the file or folder.

    Raises:
        InputError: the format cannot express this encoder, ``out`` exists or has the wrong suffix, a package is
            missing, or the upload failed.
    """
    out = Path(out).expanduser()
    license = _check_arguments(format, out, license, push)
    if head is not None and format != "onnx":
        raise InputError(f"head: expected format onnx, got {format}")
    head = load_head(head) if isinstance(head, str | os.PathLike) else head
    with torch.random.fork_rng(devices=[]):
        run = None
        if not isinstance(encoder, Encoder):
            path = Path(encoder).expanduser()
            folder = path.parent if path.name == WEIGHTS_FILE else path
            run = folder if (folder / "recipe.yaml").is_file() else None
            encoder = load_encoder(encoder)
        logger.info(f"encoder: {encoder.description}")
        if head is not None and head.encoder and head.encoder != weights_digest(encoder.backbone):
            raise InputError("head: expected a classifier of this encoder, got one that was fitted to other weights")
        model = copy.deepcopy(encoder).cpu().float().eval()
        model.origin = without_folders(model.origin)
        try:
            _write(model, format, out, license, push, run, head)
        except OSError as error:
            raise InputError(f"out: {out} cannot be written ({error.strerror or error})") from error
    _log_losses(model, format)
    if push is not None:
        _push(out, push)
    return out


def _log_losses(model: Encoder, format: Format) -> None:
    """Log what the format cannot express, and what users of the output must therefore do themselves."""
    spec, size = model.spec, model.image_size
    if format in ("torchvision", "detectron2"):
        mean, std = ([round(value, 4) for value in values] for values in (spec.mean, spec.std))
        # detectron2 takes both from its configuration, and resizes images to sizes of its own
        place = (
            "this file has no preprocessing"
            if format == "torchvision"
            else "preprocessing belongs in its configuration"
        )
        logger.info(f"{format}: {place}; the encoder takes {size} x {size} pixels in [0, 1], mean {mean}, std {std}")
    module = "" if spec.is_module else registering_module(spec.backbone)
    if format in ("timm", "huggingface") and module:
        logger.info(f"{format}: timm knows {spec.backbone} after `import {module}`")
    if spec.value_range is not None and format not in ("onnx", "safetensors"):
        low, high = spec.value_range
        logger.warning(
            f"{format}: has no setting for images of more than 8 bits; scale their values so that {low:g} becomes 0 "
            f"and {high:g} becomes 1"
        )


def _check_arguments(format: Format, out: Path, license: str | None, push: str | None) -> str | None:
    """Validate the arguments before the encoder is loaded, and return the license as spelled on the hub."""
    if format not in get_args(Format):
        raise InputError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    suffix = SUFFIXES.get(format)
    if suffix and out.suffix != suffix:
        raise InputError(f"out: expected a {suffix} file for {format}, got {str(out)!r}")
    for path in (out, out.with_suffix(".json")) if format == "safetensors" else (out,):
        is_empty_folder = not suffix and path.is_dir() and not any(path.iterdir())
        if os.path.lexists(path) and not is_empty_folder:
            raise InputError(f"out: expected a new path, got {path}, which exists")
    if push is not None and format != "huggingface":
        raise InputError(f"push: expected format huggingface, got {format}")
    if push is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push, re.ASCII):
        raise InputError(f"push: expected owner/name, got {push!r}")
    if license is None:
        return None
    if format in ("torchvision", "safetensors"):
        raise InputError(f"license: {format} files cannot store a license; huggingface, timm, onnx and detectron2 can")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license.lower()):
        raise InputError(f"license: expected a name such as apache-2.0, mit or cc-by-4.0, got {license!r}")
    return license.lower()


def _write(
    model: Encoder,
    format: Format,
    out: Path,
    license: str | None,
    push: str | None,
    run: Path | None,
    head: ClassifierHead | None,
) -> None:
    if format == "timm":
        with _atomic_folder(out) as folder:
            write_timm(model, folder, license)
    elif format == "huggingface":
        with _atomic_folder(out) as folder:
            library: Library = "timm"
            try:
                write_timm(model, folder, license)
            except InputError as error:  # timm has no such architecture
                logger.warning(
                    "huggingface: written in this library's format, which timm and transformers cannot load "
                    f"({str(error).removeprefix('format: ').partition(';')[0]})"
                )
                for file in folder.iterdir():
                    file.unlink()
                _write_safetensors(model, folder)
                library = "mec-ssl"
            card = model_card(model, library, out.resolve().name, push, run, license)
            (folder / "README.md").write_text(card, encoding="utf-8")
    elif format == "safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
            _write_safetensors(model, Path(name))
            Path(name, SPEC_FILE).replace(out.with_suffix(".json"))
            Path(name, WEIGHTS_FILE).replace(out)
    elif format == "onnx":
        with atomic_write(out) as path:
            write_onnx(model, path, license, head)
    else:
        write = {"torchvision": write_torchvision, "detectron2": write_detectron2}[format]
        with atomic_write(out) as path:
            write(model, path, license)


def _write_safetensors(model: Encoder, folder: Path) -> None:
    save_encoder(model, folder)
    loaded = load_encoder(folder, **({"backbone": model.backbone} if model.spec.is_module else {}))
    check_same_features(model, lambda images: loaded(loaded.normalize(images)), "safetensors")


@contextlib.contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            file.chmod(0o644)
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _push(folder: Path, repository: str) -> None:
    """Upload the folder to the hub; on failure the local folder is unaffected."""
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Encoder exported by mec")
    except Exception as error:  # huggingface_hub and its HTTP client raise many kinds of exceptions
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"push: the upload to {repository} failed ({reason}); {folder} is complete: "
            f"upload it with hf upload {repository} {folder}"
        ) from error
