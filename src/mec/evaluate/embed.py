"""The embedding of every picture of a source, in one file; what was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from mec.data.crops import Batch
from mec.data.images import spread, summary
from mec.data.loading import evaluation_loader
from mec.data.pixels import BrokenPictureError
from mec.data.skipped import COLUMNS, Skipped
from mec.errors import InputError
from mec.evaluate.embedded import BLOCK, NPY, PARQUET, Embedded, Whole, open_csv, open_whole, writing
from mec.evaluate.features import frozen
from mec.evaluate.listing import list_neighbours
from mec.evaluate.neighbours import best_device
from mec.evaluate.progress import Shown, say
from mec.evaluate.task import MAX_BROKEN, EncoderLike, Source, reading_of, say_skipped
from mec.models.encoder import Encoder
from mec.models.files import load_encoder

PART, PART_SECONDS = 8192, 300
"""Pictures, or seconds, after which what was embedded is written: as much is lost by an interruption."""
BATCH = 256
SAMPLED = 64
"""Pictures whose content is part of the fingerprint."""
MADE_OF = "made-of.json"


def embed(
    data: Source,
    encoder: EncoderLike,
    out: Source,
    near_duplicates: bool = False,
    outliers: bool = False,
    similarity: float = 0.9,
    every: int | None = None,
    workers: int | None = None,
) -> Path:
    """Write the embedding of every picture of a source: path, label where there are any, split where it has its own.

    What is embedded is kept in OUT.parts until the file is whole: the same call goes on after an interruption, and
    makes nothing anew when the file is there. Beside it STEM.json says what it is made of, and STEM.skipped.csv which
    pictures could not be read.

    Args:
        data: any source (see ``mec.data.open_images``); all of its splits.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: FILE.parquet, or FILE.npy with paths and labels in FILE.csv.
        near_duplicates: list pairs of similar pictures in STEM.near-duplicates.csv and show some in .png.
        outliers: list the 1 % of the pictures, at least 20, that are unlike all others in STEM.outliers.csv and .png.
        similarity: of near-duplicates at least: cosine of their embeddings, less the mean of all.
        every: take each n-th picture of a source, or frame of a video. null: all pictures, one frame a second.
        workers: loader processes; null is one per core.

    Returns:
        The path of the file.

    Raises:
        InputError: what is wrong with the source, the encoder or the file's name, or a file that is there and is of
            other pictures or another encoder, or no room, or more than a twentieth of the pictures are broken.
    """
    out = Path(out).expanduser()
    _check(out, similarity, every, workers)
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    described = encoder.origin or encoder.spec.backbone
    whole = open_whole(data, every)
    say(f"encoder: {described}")
    say(f"{data}: " + "; ".join(f"{name} {summary(i)}".strip() for name, i in whole.splits.items()))
    made_of = {"data": str(data), "encoder": described, "fingerprint": _fingerprint(whole, encoder, every)}
    parts, about = out.with_name(f"{out.name}.parts"), out.with_suffix(".json")
    if out.exists():
        _check_same(about, made_of, f"{out} exists", out)
        say(f"{out} is there already")
    else:
        _begin(out, parts, made_of)
        making = _Making(whole, encoder, parts, workers)
        making.run()
        _assemble(making, out, made_of)
        shutil.rmtree(parts, ignore_errors=True)
    if near_duplicates or outliers:
        numbers = np.delete(np.arange(len(whole)), json.loads(about.read_text())["skipped"])
        made = Embedded(out, whole, numbers, reading_of(encoder))
        list_neighbours(made, near_duplicates, outliers, similarity)
    return out


def _check(out: Path, similarity: float, every: int | None, workers: int | None) -> None:
    if out.suffix.lower() not in (PARQUET, NPY):
        raise InputError(f"out: {out} ends with neither .parquet nor .npy")
    if out.is_dir():
        raise InputError(f"out: {out} is a folder, expected the name of a file")
    if not 0 < similarity <= 1:
        raise InputError(f"similarity: expected a number above 0 and at most 1, got {similarity}")
    if every is not None and every < 1:
        raise InputError(f"every: expected at least 1, got {every}")
    if workers is not None and workers < 0:
        raise InputError(f"workers: expected at least 0, got {workers}")


def _fingerprint(whole: Whole, encoder: Encoder, every: int | None) -> str:
    """Of the weights and the spec, the names and labels of all pictures, and the content of some."""
    found = hashlib.sha256(json.dumps([encoder.spec.as_dict(), every], sort_keys=True, default=str).encode())
    for name, tensor in encoder.backbone.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for split, images in whole.splits.items():
        found.update(f"{split} {len(images)} {images.classes}".encode("utf-8", "surrogateescape"))
        if images.labels is not None:
            found.update(images.labels.tobytes())
        for index in range(len(images)):
            found.update(images.title(index).encode("utf-8", "surrogateescape") + b"\n")
        for index in spread(images, SAMPLED).tolist():
            try:
                content = images.load(index)
            except BrokenPictureError:  # it may be there the next time
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
            f"out: {there}, made of other weights or pictures ({of}); remove {remove} or choose another name"
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


@dataclass
class _Part:
    """Pictures that were tried, of which some could not be read: the others have an embedding."""

    tried: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def full(self) -> bool:
        return sum(map(len, self.tried)) >= PART or time.monotonic() - self.begun > PART_SECONDS

    def write(self, path: Path) -> None:
        tensors = {"tried": np.concatenate(self.tried), "numbers": np.concatenate(self.numbers)}
        with writing(path) as temporary:
            temporary.write_bytes(save(tensors | {"embeddings": np.concatenate(self.embeddings)}))


class _Making:
    """The embeddings of a source, in parts. ``part`` and ``place`` (n,) say where that of each picture is; -1: nowhere,
    and the place of one that was tried and could not be read."""

    def __init__(self, whole: Whole, encoder: Encoder, folder: Path, workers: int | None) -> None:
        self.whole, self.encoder, self.folder, self.workers = whole, encoder, folder, workers
        self.skipped = Skipped(MAX_BROKEN, len(whole))
        self.part, self.place = (np.full(len(whole), -1, dtype=np.int32) for _ in range(2))
        self.files: list[Path] = []
        for file in sorted(folder.glob("[0-9]*.safetensors")):
            self._add(file)
        self.done = int((self.part >= 0).sum())

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, "np") as part:
                tried, numbers = part.get_tensor("tried"), part.get_tensor("numbers")
        except (SafetensorError, OSError) as error:
            raise InputError(f"out: {file} is damaged, remove it ({error})") from error
        self.part[tried] = len(self.files)
        self.place[numbers] = np.arange(len(numbers))
        self.files.append(file)

    def run(self) -> None:
        """Embed what is missing, and try again what could not be read."""
        if self.done:
            say(f"going on: {self.done:,} of {len(self.whole):,} pictures are there")
        self._check_room()
        features = frozen(self.encoder, best_device())
        self.skipped.list_in(self.folder / "skipped.csv")
        missing, lost = self.part < 0, (self.part >= 0) & (self.place < 0)
        with Shown("embeddings", len(self.whole), self.done) as shown:
            for todo in (missing, lost):
                part = _Part()
                try:
                    for tried, numbers, batch in self._batches(todo):
                        self.skipped.add(batch.lost, len(tried))
                        part.embeddings.append(self._embedded(features, batch, numbers))
                        part.numbers.append(numbers)
                        part.tried.append(tried)
                        shown.advance(len(tried) if todo is missing else 0)
                        if part.full():
                            part = self._written(part)
                finally:  # on Ctrl-C too
                    self._written(part)
        say_skipped(self.skipped)

    def _check_room(self) -> None:
        # twice: in parts, and in the file before they go
        need = 4 * self.encoder.num_features * (2 * len(self.whole) - self.done)
        free = shutil.disk_usage(self.folder).free
        if free < need:
            gib = f"{need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB"
            raise InputError(f"out: the embeddings and their parts need {gib} are free in {self.folder.parent}")

    def _written(self, part: _Part) -> _Part:
        if part.tried:
            file = self.folder / f"{len(self.files):06}.safetensors"
            part.write(file)
            self._add(file)
        return _Part()

    def _batches(self, todo: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Batch]]:
        """Numbers of the pictures of a batch and of those that could be read, and the batch.

        Batches are of the same pictures after an interruption, for parts are of whole ones: so are the last bits.
        """
        start, reading = 0, reading_of(self.encoder)
        for images in self.whole.splits.values():
            mine = np.flatnonzero(todo[start : start + len(images)])
            if len(mine):
                some = images if len(mine) == len(images) else images.subset(mine)
                loader = evaluation_loader(some, reading, self.encoder.image_size, BATCH, self.workers)
                keys: Any = loader.sampler
                for asked, batch in zip(keys, loader, strict=True):
                    yield start + mine[asked.start : asked.stop], start + mine[batch.indices], batch
            start += len(images)

    def _embedded(
        self, features: Callable[[Tensor], Tensor], batch: Batch, numbers: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not len(numbers):
            return np.empty((0, self.encoder.num_features), dtype=np.float32)
        found: NDArray[np.float32] = features(batch.pictures).cpu().numpy()
        broken = ~np.isfinite(found).all(axis=1)
        if broken.any():
            title = self.whole.row(int(numbers[broken.argmax()]))[0]
            raise InputError(f"encoder: the embedding of {title} has values that are not finite numbers")
        return found

    def blocks(self, numbers: NDArray[np.int64]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """The embeddings (m, d) of pictures that have one, a block at a time."""
        for start in range(0, len(numbers), BLOCK):
            some = numbers[start : start + BLOCK]
            found = np.empty((len(some), self.encoder.num_features), dtype=np.float32)
            parts, places = self.part[some], self.place[some]
            # what follows each other in a part is read at once
            bounds = np.flatnonzero((np.diff(parts) != 0) | (np.diff(places) != 1)) + 1
            for rows in np.split(np.arange(len(some)), bounds):
                with safe_open(self.files[parts[rows[0]]], "np") as part:
                    found[rows] = part.get_slice("embeddings")[places[rows[0]] : places[rows[-1]] + 1]
            yield some.tolist(), found


def _assemble(making: _Making, out: Path, made_of: dict[str, str]) -> None:
    """The parts in one file in the order of the source, and what lies beside it."""
    whole, reasons = making.whole, making.skipped.reasons
    if (making.part < 0).any():
        raise InputError(f"out: {making.folder} lacks parts; is another process at it? Call again to go on")
    lost, numbers = np.flatnonzero(making.place < 0), np.flatnonzero(making.place >= 0)
    made = Embedded(out, whole, numbers, reading_of(making.encoder))
    if len(lost):
        with writing(made.beside("skipped.csv")) as path, open_csv(path) as add:
            add(COLUMNS)
            for title in (str(whole.row(number)[0]) for number in lost.tolist()):
                add([title, reasons.get(title, "")])
    width = making.encoder.num_features
    counts = {"pictures": len(numbers), "features": width, "skipped": lost.tolist()}
    with writing(made.beside("json")) as path:
        path.write_text(json.dumps(made_of | counts) + "\n")
    made.write(making.blocks(numbers), width, making.folder / "whole")
