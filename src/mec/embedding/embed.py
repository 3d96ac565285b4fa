"""The embedding of every image of a source, in one file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from mec.data.corrupt import COLUMNS
from mec.data.dataset import DataLike, describe, evenly_spaced
from mec.data.pixels import CorruptImageError
from mec.distributed import all_gather_objects, broadcast_object, get_rank, local_rank_zero_first
from mec.embedding.images import pixel_format_of
from mec.embedding.neighbor_lists import list_neighbors
from mec.embedding.table import NPY, PARQUET, Embedded, Whole, open_csv, open_whole, writing
from mec.embedding.writer import Making
from mec.engine.progress import log
from mec.errors import InputError
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder

SAMPLED = 64
"""Images whose content is part of the fingerprint."""
MADE_OF = "made-of.json"


def embed(
    data: DataLike,
    encoder: EncoderLike,
    out: DataLike,
    near_duplicates: bool = False,
    outliers: bool = False,
    similarity: float = 0.9,
    subsample: int | None = None,
    frame_stride: int | None = None,
    workers: int | None = None,
) -> Path:
    """Write the embedding of every image of a source: path, label where there are any, split where it has its own.

    What is embedded is kept in OUT.parts until the file is whole: the same call goes on after an interruption, and
    makes nothing anew when the file is there. Processes that are ``together`` divide the images, and need a disk
    that all of them see. Beside it STEM.json says what it is made of, and STEM.skipped.csv which
    images could not be read.

    Args:
        data: any source (see ``mec.data.open_dataset``); all of its splits.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: FILE.parquet, or FILE.npy with paths and labels in FILE.csv.
        near_duplicates: list pairs of similar images in STEM.near-duplicates.csv and show some in .png.
        outliers: list the 1 % of the images, at least 20, that are unlike all others in STEM.outliers.csv and .png.
        similarity: of near-duplicates at least: cosine of their embeddings, less the mean of all.
        subsample: keep every n-th image of the dataset; null: all.
        frame_stride: keep every n-th frame of a video; null: one frame per second.
        workers: loader processes; null is one per core.

    Returns:
        The path of the file.

    Raises:
        InputError: what is wrong with the source, the encoder or the file's name, or a file that is there and is of
            other images or another encoder, or no room, or more than a twentieth of the images are broken.
    """
    out = Path(out).expanduser()
    _check(out, similarity, subsample, frame_stride, workers)
    with local_rank_zero_first():
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        whole = open_whole(data, subsample, frame_stride)
    described = encoder.description
    log(f"encoder: {described}")
    log(f"{data}: " + "; ".join(f"{name} {describe(i)}".strip() for name, i in whole.splits.items()))
    fingerprint = _fingerprint(whole, encoder, subsample, frame_stride)
    made_of = {"data": str(data), "encoder": described, "fingerprint": fingerprint}
    if len(set(all_gather_objects(made_of["fingerprint"]))) > 1:
        raise InputError(f"data, encoder: {data} or {described} is not the same for all processes")
    parts, about = out.with_name(f"{out.name}.parts"), out.with_suffix(".json")
    if broadcast_object(out.exists()):
        if get_rank() == 0:
            _check_same(about, made_of, f"{out} exists", out)
            log(f"{out} is there already")
    else:
        if get_rank() == 0:
            _begin(out, parts, made_of)
        all_gather_objects(None)  # the folder is there
        making = Making(whole, encoder, parts, workers)
        making.run()
        if get_rank() == 0:
            _assemble(making, out, made_of)
            shutil.rmtree(parts, ignore_errors=True)
    if (near_duplicates or outliers) and get_rank() == 0:
        numbers = np.delete(np.arange(len(whole)), json.loads(about.read_text())["skipped"])
        made = Embedded(out, whole, numbers, pixel_format_of(encoder))
        list_neighbors(made, near_duplicates, outliers, similarity)
    return out


def _check(out: Path, similarity: float, subsample: int | None, frame_stride: int | None, workers: int | None) -> None:
    if out.suffix.lower() not in (PARQUET, NPY):
        raise InputError(f"out: {out} ends with neither .parquet nor .npy")
    if out.is_dir():
        raise InputError(f"out: {out} is a folder, expected the name of a file")
    if not 0 < similarity <= 1:
        raise InputError(f"similarity: expected a number above 0 and at most 1, got {similarity}")
    if subsample is not None and subsample < 1:
        raise InputError(f"subsample: expected at least 1, got {subsample}")
    if frame_stride is not None and frame_stride < 1:
        raise InputError(f"frame_stride: expected at least 1, got {frame_stride}")
    if workers is not None and workers < 0:
        raise InputError(f"workers: expected at least 0, got {workers}")


def _fingerprint(whole: Whole, encoder: Encoder, subsample: int | None, frame_stride: int | None) -> str:
    """Of the weights and the spec, the names and labels of all images, and the content of some."""
    settings = [encoder.spec.as_dict(), subsample, frame_stride]
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in encoder.backbone.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for split, dataset in whole.splits.items():
        found.update(f"{split} {len(dataset)} {dataset.classes}".encode("utf-8", "surrogateescape"))
        if dataset.labels is not None:
            found.update(dataset.labels.tobytes())
        for index in range(len(dataset)):
            found.update(dataset.title(index).encode("utf-8", "surrogateescape") + b"\n")
        for index in evenly_spaced(dataset, SAMPLED).tolist():
            try:
                content = dataset.load(index)
            except CorruptImageError:  # it may be there the next time
                continue
            found.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes())
    return found.hexdigest()


def _check_same(about: Path, made_of: dict[str, str], there: str, remove: Path) -> None:
    """Refuse to go on with what is made of something else than ``made_of``."""
    try:
        known = json.loads(about.read_text())
        fingerprint, of = known["fingerprint"], f"{known['encoder']} on {known['data']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"out: {there}, and {about} does not say of what; remove it or choose another name") from error
    if fingerprint != made_of["fingerprint"]:
        raise InputError(
            f"out: {there}, made of other weights or images ({of}); remove {remove} or choose another name"
        )


def _begin(out: Path, parts: Path, made_of: dict[str, str]) -> None:
    """Make the folder of parts, or find the one to go on with."""
    if parts.exists() and (not parts.is_dir() or any(not p.name.startswith(".") for p in parts.iterdir())):
        _check_same(parts / MADE_OF, made_of, f"{parts} exists", parts)
        return
    beside = [".json", ".skipped.csv", *([".csv"] if out.suffix.lower() == NPY else [])]
    for path in (out.with_name(out.stem + suffix) for suffix in beside):
        if path.exists():
            raise InputError(f"out: {path} exists, and {out} would have a file of that name; choose another")
    with writing(parts / MADE_OF) as path:
        path.write_text(json.dumps(made_of) + "\n")


def _assemble(making: Making, out: Path, made_of: dict[str, str]) -> None:
    """The parts in one file in the order of the source, and what lies beside it."""
    whole, numbers = making.whole, np.flatnonzero(making.place >= 0)
    made = Embedded(out, whole, numbers, pixel_format_of(making.encoder))
    if len(numbers) < len(whole):
        with writing(made.beside("skipped.csv")) as path, open_csv(path) as add:
            add(COLUMNS)
            for row in making.lost():
                add(row)
    width = making.encoder.num_features
    counts = {"images": len(numbers), "features": width, "skipped": np.flatnonzero(making.place < 0).tolist()}
    with writing(made.beside("json")) as path:
        path.write_text(json.dumps(made_of | counts) + "\n")
    made.write(making.blocks(numbers), width, making.folder / "whole")
