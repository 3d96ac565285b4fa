"""``export``: an encoder in the form that another library loads, whole at its place or not there."""

from __future__ import annotations

import contextlib
import copy
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
from mec.models.encoder import Encoder
from mec.models.export.formats import require_same, write_detectron2, write_onnx, write_timm, write_torchvision
from mec.models.export.model_card import Library, model_card, without_folders
from mec.models.io import SPEC_FILE, WEIGHTS_FILE, load_encoder, save_encoder

Format = Literal["timm", "torchvision", "detectron2", "onnx", "huggingface", "safetensors"]
SUFFIXES = {"torchvision": ".pth", "detectron2": ".pkl", "onnx": ".onnx", "safetensors": ".safetensors"}
"""Of the formats that are a file; the others are folders."""


def export(
    encoder: Encoder | str | os.PathLike[str],
    format: Format,
    out: str | os.PathLike[str],
    license: str | None = None,
    push: str | None = None,
) -> Path:
    """Write an encoder in the form that another library loads.

    The other library's network is filled and compared with the encoder on random images before anything gets its
    name: what is at ``out`` is whole and gives the same features, or it is not there.

    Args:
        encoder: an Encoder, or what ``mec.load_encoder`` takes: a run folder, a file of weights, a timm name ...
        format: timm, a folder for timm.create_model("local-dir:..."); torchvision, its state dict; detectron2, its
            pickle; onnx, from images in [0, 1] to features; huggingface, a folder with a model card made from
            the run; safetensors, this library's own, with a .json beside it.
        out: what is written, and must not exist: a folder for timm and huggingface, a .pth file for torchvision,
            .pkl for detectron2, .onnx or .safetensors.
        license: of the weights, as the Hugging Face hub spells it: apache-2.0, mit, cc-by-4.0 ... Absent: the model
            card says that none was chosen. Files of torchvision and safetensors have no place for one.
        push: owner/name on the Hugging Face hub, with format huggingface: the folder is sent there, and the
            repository made, public, if there is none. Absent: nothing is sent anywhere.

    Returns:
        The file or folder.

    Raises:
        InputError: the format cannot express this encoder, ``out`` exists or has another suffix than the format's,
            a package is missing, or the hub refused.
    """
    out = Path(out).expanduser()
    license = _check(format, out, license, push)
    with torch.random.fork_rng(devices=[]):
        source = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        model = copy.deepcopy(source).cpu().float().eval()
        model.origin = without_folders(model.origin)
        run = None if isinstance(encoder, Encoder) else _run_of(Path(encoder).expanduser())
        try:
            _write(model, format, out, license, push, run)
        except OSError as error:
            raise InputError(f"out: {out} cannot be written ({error.strerror or error})") from error
    if push is not None:
        _push(out, push)
    return out


def _check(format: Format, out: Path, license: str | None, push: str | None) -> str | None:
    """All that can be known before the encoder is read. Returns the license as the hub spells it."""
    if format not in get_args(Format):
        raise InputError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    suffix = SUFFIXES.get(format)
    if suffix and out.suffix != suffix:
        raise InputError(f"out: expected a {suffix} file for {format}, got {str(out)!r}")
    for path in (out, out.with_suffix(".json")) if format == "safetensors" else (out,):
        free = not suffix and path.is_dir() and not any(path.iterdir())
        if os.path.lexists(path) and not free:
            raise InputError(f"out: {path} exists; take another name")
    if push is not None and format != "huggingface":
        raise InputError(f"push: expected format huggingface, got {format}; only that is sent to the hub")
    if push is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push, re.ASCII):
        raise InputError(f"push: expected owner/name, got {push!r}")
    if license is None:
        return None
    if format in ("torchvision", "safetensors"):
        raise InputError(f"license: a {format} file has no place for one; huggingface, timm, onnx and detectron2 have")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license.lower()):
        raise InputError(f"license: expected a name such as apache-2.0, mit or cc-by-4.0, got {license!r}")
    return license.lower()


def _run_of(source: Path) -> Path | None:
    folder = source.parent if source.name == WEIGHTS_FILE else source
    return folder if (folder / "recipe.yaml").is_file() else None


def _write(model: Encoder, format: Format, out: Path, license: str | None, push: str | None, run: Path | None) -> None:
    if format == "timm":
        with _replacing_folder(out) as folder:
            write_timm(model, folder, license)
    elif format == "huggingface":
        with _replacing_folder(out) as folder:
            library = _write_for_hub(model, folder, license)
            card = model_card(model, library, out.resolve().name, push, run, license)
            (folder / "README.md").write_text(card, encoding="utf-8")
    elif format == "safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
            _write_own(model, Path(name))
            Path(name, SPEC_FILE).replace(out.with_suffix(".json"))
            Path(name, WEIGHTS_FILE).replace(out)
    else:
        write = {"torchvision": write_torchvision, "detectron2": write_detectron2, "onnx": write_onnx}[format]
        with atomic_write(out) as path:
            write(model, path, license)


def _write_for_hub(model: Encoder, folder: Path, license: str | None) -> Library:
    """timm's form where it can express the encoder, else this library's."""
    try:
        write_timm(model, folder, license)
    except InputError:
        for file in folder.iterdir():
            file.unlink()
        _write_own(model, folder)
        return "mec-ssl"
    return "timm"


def _write_own(model: Encoder, folder: Path) -> None:
    save_encoder(model, folder)
    loaded = load_encoder(folder)
    require_same(model, lambda images: loaded(loaded.normalize(images)), "safetensors")


@contextlib.contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """``atomic_write`` for a folder: a temporary folder replaces ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            file.chmod(0o644)
        temporary.chmod(0o755)
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _push(folder: Path, repository: str) -> None:
    """Send the folder to the hub; it stays whole where it is if that fails."""
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Encoder exported by mec")
    except Exception as error:  # the hub's client and the HTTP client under it raise many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"push: {repository} was not sent ({reason}); {folder} is whole, "
            f"and hf upload {repository} {folder} sends it"
        ) from error
