"""Embed every image of a dataset into one file."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch

from mec.data.dataset import DataLike, PathLike, data_name, evenly_spaced
from mec.data.datasets.folder import refuse_output_within
from mec.data.pixels import CorruptImageError
from mec.data.splits import log_splits
from mec.distributed import process_group
from mec.embedding.extract import with_value_range
from mec.embedding.neighbors import EmbeddingTable, list_neighbors
from mec.embedding.parts import AllSplits, EmbeddingParts, open_all_splits, write_output
from mec.embedding.select import list_images_to_label
from mec.errors import InputError
from mec.models.encoder import Encoder, EncoderLike
from mec.models.io import load_encoder

logger = logging.getLogger("mec")

FINGERPRINT_IMAGES = 64  # whose content enters the fingerprint
INPUTS = "inputs.json"


def embed(
    data: DataLike,
    encoder: EncoderLike,
    out: PathLike,
    near_duplicates: bool = False,
    outliers: bool = False,
    similarity: float = 0.9,
    correlation: float = 0.98,
    select: int | None = None,
    subsample: int | None = None,
    frame_stride: int | None = None,
    workers: int | None = None,
) -> Path:
    """Write the embedding of every image of a dataset with its path, label and split.

    Embeddings are collected in OUT.parts until the file is complete: after an interruption the same call resumes, and
    when the file exists it does nothing. The processes of torchrun or srun share the images and need a shared disk.
    STEM.json records the inputs, STEM.corrupt.csv lists the corrupt images.

    Args:
        data: any dataset (see ``mec.open_dataset``); all of its splits are embedded.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: FILE.parquet, or FILE.npy with paths and labels in FILE.csv.
        near_duplicates: list pairs of similar images in STEM.near-duplicates.csv and draw some in .png: first those
            whose thumbnails correlate, then those with similar embeddings.
        outliers: list the 1 % of the images (at least 20, or a quarter if that is less) that are farthest from all
            others in STEM.outliers.csv and draw some in .png.
        similarity: smallest cosine similarity of near-duplicates, of embeddings minus their mean. An untrained encoder
            finds none.
        correlation: smallest correlation of near-duplicates, of thumbnails of 16 x 16 gray pixels.
        select: list this many images in STEM.select.csv whose labels would teach most, in the order in which to label
            them, and draw the first in .png: typical images of clusters without labels.
        subsample: keep every n-th image of the dataset; null: all.
        frame_stride: keep every n-th frame of a video; null: one frame per second.
        workers: loader processes; null: one per core.

    Returns:
        The path of the file.

    Raises:
        InputError: an unusable dataset, encoder or file name; an existing file of other images or another encoder; a
            full disk; or more than a twentieth of the images are corrupt.
    """
    out = Path(out).expanduser()
    _check(out, {"similarity": similarity, "correlation": correlation}, subsample, workers)
    if select is not None and select < 1:
        raise InputError(f"select: expected at least 1, got {select}")
    has_lists = near_duplicates or outliers or select is not None
    if has_lists:
        refuse_output_within(data, out)
    with process_group() as group:
        with group.local_rank_zero_first():
            encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
            images = open_all_splits(data, subsample, frame_stride)
        logger.info(f"encoder: {encoder.description}")
        log_splits(data, images.splits)
        encoder = with_value_range(encoder, next(iter(images.splits.values())), data)
        fingerprint = _fingerprint(images, encoder, subsample, frame_stride)
        inputs = {"data": data_name(data), "encoder": encoder.description, "fingerprint": fingerprint}
        if len(set(group.all_gather(fingerprint))) > 1:
            raise InputError(f"data, encoder: {data_name(data)} or {encoder.description} differs between the processes")
        if not group.broadcast(out.exists()):
            parts = EmbeddingParts(images, encoder, out.with_name(f"{out.name}.parts"))
            if group.rank == 0:
                _create_parts_folder(out, parts.folder, inputs)
            parts.write(workers, group)
            if group.rank == 0:
                parts.join(out, inputs, near_duplicates)
        elif group.rank == 0:
            _check_inputs(out.with_suffix(".json"), inputs, out)
            logger.info(f"{out} exists already")
        if has_lists and group.rank == 0:
            corrupt = json.loads(out.with_suffix(".json").read_text())["corrupt"]
            indices = np.delete(np.arange(len(images)), corrupt)
            table = EmbeddingTable(out, images, indices, encoder, workers)
            if near_duplicates or outliers:
                list_neighbors(table, near_duplicates, outliers, similarity, correlation)
            if select is not None:
                list_images_to_label(table, select)
    return out


def _check(out: Path, thresholds: dict[str, float], subsample: int | None, workers: int | None) -> None:
    if out.suffix.lower() not in (".parquet", ".npy"):
        raise InputError(f"out: expected a name that ends with .parquet or .npy, got {out}")
    if out.is_dir():
        raise InputError(f"out: expected a file name, got the folder {out}")
    for name, threshold in thresholds.items():
        if not 0 < threshold <= 1:
            raise InputError(f"{name}: expected a number above 0 and at most 1, got {threshold}")
    for name, value, minimum in (("subsample", subsample, 1), ("workers", workers, 0)):
        if value is not None and value < minimum:
            raise InputError(f"{name}: expected at least {minimum}, got {value}")


def _fingerprint(images: AllSplits, encoder: Encoder, subsample: int | None, frame_stride: int | None) -> str:
    """Hash the weights and the spec, the titles and labels of all images, and the content of some."""
    settings = [encoder.spec.as_dict(), subsample, frame_stride]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in encoder.backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for split, dataset in images.splits.items():
        digest.update(f"{split} {len(dataset)} {dataset.classes}".encode("utf-8", "surrogateescape"))
        if dataset.labels is not None:
            digest.update(dataset.labels.tobytes())
        for index in range(len(dataset)):
            digest.update(dataset.title(index).encode("utf-8", "surrogateescape") + b"\n")
        for index in evenly_spaced(dataset, FINGERPRINT_IMAGES).tolist():
            try:
                content = dataset.load(index)
            except CorruptImageError:  # it may be readable the next time
                continue
            digest.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes())
    return digest.hexdigest()


def _check_inputs(info: Path, inputs: dict[str, str], existing: Path) -> None:
    """Raise InputError unless ``existing`` was made from the same inputs, which ``info`` records."""
    try:
        recorded = json.loads(info.read_text())
        fingerprint, description = recorded["fingerprint"], f"{recorded['encoder']} on {recorded['data']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"out: {existing} exists, but {info} does not record its inputs; remove it or choose another name"
        ) from error
    if fingerprint != inputs["fingerprint"]:
        raise InputError(
            f"out: {existing} exists with other weights or images ({description}); remove it or choose another name"
        )


def _create_parts_folder(out: Path, parts: Path, inputs: dict[str, str]) -> None:
    """Create the folder of parts, or check that an existing one can be resumed."""
    if parts.exists() and (not parts.is_dir() or any(not p.name.startswith(".") for p in parts.iterdir())):
        _check_inputs(parts / INPUTS, inputs, parts)
        return
    suffixes = [".json", ".corrupt.csv", *([".csv"] if out.suffix.lower() == ".npy" else [])]
    for path in map(out.with_suffix, suffixes):
        if path.exists():
            raise InputError(f"out: {path} exists, and {out} would overwrite it; choose another name")
    with write_output(parts / INPUTS) as path:
        path.write_text(json.dumps(inputs) + "\n")
