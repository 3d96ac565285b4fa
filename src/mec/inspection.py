"""``mec inspect``: how a dataset is read, split by split, and what is unusual about it, without training."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from mec.data.dataset import (
    UNLABELED,
    DataLike,
    ImageDataset,
    data_name,
    describe,
    describe_names,
    evenly_spaced,
    label_of,
    log_progress,
)
from mec.data.datasets import open_splits
from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.data.splits import doubtful_classes
from mec.embedding.neighbors import similar_pairs
from mec.embedding.thumbnails import CORRELATION, MIN_SIDE, standardized, thumbnails
from mec.errors import InputError

MAX_CLASSES = 12  # that are listed with their numbers of images
MAX_COMPARED = 20_000
"""Images up to which near-duplicates are searched: every image is compared with every other."""


@dataclass
class SplitInspection:
    """What ``inspect`` found in the ``inspected`` images of a split.

    Attributes:
        dataset: the split.
        inspected: number of images that were read.
        sizes: (height, width) of each readable image.
        pixels: number of images by pixel type, such as "3 channels uint8".
        num_gray: number of color images whose channels are equal.
        corrupt: reasons by title of the images that cannot be decoded.
        damaged: messages by title of the images that are decoded with a warning, such as damaged EXIF data.
        hashes: indices by SHA-256 of the content.
        compared: indices of the readable images of at least MIN_SIDE, whose near-duplicates are searched.
        thumbnails: of these, (256,) each.
    """

    dataset: ImageDataset
    inspected: int
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: Counter[str] = field(default_factory=Counter)
    num_gray: int = 0
    corrupt: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    hashes: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    compared: list[int] = field(default_factory=list)
    thumbnails: list[NDArray[np.float16]] = field(default_factory=list)

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images of each class."""
        if self.dataset.labels is None:
            return {}
        labels = np.asarray(self.dataset.labels)
        counts = np.bincount(labels[labels != UNLABELED], minlength=len(self.dataset.classes))
        return dict(zip(self.dataset.classes, counts.tolist(), strict=True))

    @property
    def duplicates(self) -> list[list[str]]:
        """Titles of images with the same content."""
        return [[self.dataset.title(i) for i in indices] for indices in self.hashes.values() if len(indices) > 1]

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values of the lines about this split."""
        lines = [("images", describe(self.dataset))]
        if self.inspected < len(self.dataset):
            lines.append(("inspected", f"{self.inspected:,} of {len(self.dataset):,} images, evenly spaced"))
        if counts := self.class_counts:
            shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:MAX_CLASSES])
            least, most = min(counts.values()), max(counts.values())
            more = f", ... of {len(counts):,} classes" if len(counts) > MAX_CLASSES else ""
            lines.append(("classes", f"{shown}{more}; {least:,}{f' to {most:,}' if most > least else ''} images each"))
        if self.sizes:
            sizes = np.array(self.sizes)
            smallest, median, largest = (sizes[:, 0] * sizes[:, 1]).argsort()[[0, len(sizes) // 2, -1]]
            shown = " | ".join(f"{sizes[i, 1]:,} x {sizes[i, 0]:,}" for i in (smallest, median, largest))
            same = len(set(self.sizes)) == 1
            lines.append(("size", f"{sizes[0, 1]} x {sizes[0, 0]} px" if same else f"{shown} px (least, median, most)"))
        if self.pixels:
            lines.append(("pixels", ", ".join(f"{kind} ({n:,})" for kind, n in self.pixels.most_common())))
        if self.corrupt:
            reasons = [f"{title}: {reason}" for title, reason in self.corrupt.items()]
            lines.append(("corrupt", f"{len(reasons):,} ({describe_names(reasons)})"))
        if self.damaged:
            messages = [f"{title}: {message}" for title, message in self.damaged.items()]
            lines.append(("damaged", f"{len(messages):,} ({describe_names(messages)})"))
        if groups := self.duplicates:
            shown = describe_names([" = ".join(titles) for titles in groups])
            lines.append(("duplicates", f"{sum(map(len, groups)):,} images in {len(groups):,} groups ({shown})"))
        return lines


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found; ``str()`` is the text of ``mec inspect``.

    Attributes:
        data: name of the dataset.
        splits: by name.
        near_duplicates: pairs of images (split, index) of different content, most similar first.
        warnings: one sentence each.
    """

    data: str
    splits: dict[str, SplitInspection]
    near_duplicates: list[tuple[tuple[str, int], tuple[str, int]]]
    warnings: list[str]

    def __str__(self) -> str:
        lines = [self.data]
        for name, split in self.splits.items():
            lines += [f"{name}"] + [f"  {title:<11} {text}" for title, text in split.facts()]
            if pairs := [(a, b) for (s, a), (t, b) in self.near_duplicates if s == t == name]:
                shown = describe_names([" ~ ".join(map(split.dataset.title, pair)) for pair in pairs])
                count = f"{len(pairs):,} pair{'s' * (len(pairs) > 1)}"
                lines.append(f"  {'similar':<11} {count} of near-duplicates ({shown})")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def inspect(
    data: DataLike,
    max_images: int | None = 10_000,
    labels_csv: str | None = None,
    frame_stride: int | None = None,
) -> Inspection:
    """Show how a dataset is read: splits, classes, sizes, channels, corrupt images, duplicates, and what is skipped.

    Duplicates have the same content. Near-duplicates, searched among up to 20,000 images of at least 32 px, have
    thumbnails of 16 x 16 gray pixels with a correlation of at least 0.98: copies of another size, quality or
    brightness.

    Args:
        data: any dataset (see ``mec.open_dataset``).
        max_images: number of images of each split to read, evenly spaced; null: all.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
        frame_stride: keep every n-th frame of a video; null: one frame per second.

    Returns:
        An Inspection; ``print`` shows it.

    Raises:
        InputError: the dataset cannot be opened. A test split that cannot be opened is a warning.
    """
    if max_images is not None and max_images < 1:
        raise InputError(f"max_images: expected at least 1, got {max_images}")
    opened = open_splits(data, labels_csv, frame_stride)
    problems = []
    splits = {}
    for name in ("train", "test", "unlabeled"):
        try:
            if dataset := getattr(opened, name):
                splits[name] = _inspect_split(name, dataset, max_images)
        except InputError as error:
            problems.append(f"{name}: {str(error).removeprefix('data: ')}")
    pairs = _near_duplicates(splits)
    return Inspection(data_name(data), splits, pairs, problems + _warnings(splits) + _leaks(splits, pairs))


def _inspect_split(name: str, dataset: ImageDataset, max_images: int | None) -> SplitInspection:
    indices = evenly_spaced(dataset, len(dataset) if max_images is None else max_images)
    found = SplitInspection(dataset, len(indices))
    for index in log_progress(indices.tolist(), f"reading {name} images"):
        try:
            with warnings.catch_warnings(record=True) as messages:
                warnings.simplefilter("always")
                content = dataset.load(index)
                values = open_image(content).raw(PixelFormat())
        except CorruptImageError as error:
            found.corrupt[dataset.title(index)] = str(error)
            continue
        if messages:
            found.damaged[dataset.title(index)] = " ".join(str(messages[0].message).split())
        height, width, channels = values.shape
        found.sizes.append((height, width))
        found.pixels[f"{channels} channel{'s' if channels > 1 else ''} {values.dtype}"] += 1
        found.num_gray += channels == 3 and bool((values[..., :1] == values).all())
        if min(height, width) >= MIN_SIDE:
            found.compared.append(index)
            pixels = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
            found.thumbnails.append(thumbnails(pixels / max(1.0, float(pixels.max())))[0])
        data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
        found.hashes[hashlib.sha256(data).digest()].append(index)
    return found


def _near_duplicates(splits: dict[str, SplitInspection]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Return pairs of images whose thumbnails correlate, most similar first, without those of equal content."""
    images = [(name, index) for name, split in splits.items() for index in split.compared]
    if not 2 <= len(images) <= MAX_COMPARED:
        return []
    digests = {(name, i): d for name, split in splits.items() for d, indices in split.hashes.items() for i in indices}
    table = standardized([np.stack(s.thumbnails) for s in splits.values() if s.thumbnails], len(images))
    pairs, _, _ = similar_pairs(table, CORRELATION, "near-duplicates")
    named = [(images[i], images[j]) for i, j in pairs.tolist()]
    return [(a, b) for a, b in named if digests[a] != digests[b]]


def _leaks(splits: dict[str, SplitInspection], pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]]) -> list[str]:
    """Return warnings about near-duplicates between splits, or that they were not searched."""
    found = []
    if (count := sum(len(split.compared) for split in splits.values())) > MAX_COMPARED:
        found.append(f"near-duplicates were not searched among {count:,} images; mec embed --near-duplicates does")
    for first, second in combinations(splits, 2):
        between = [(a, b) for (s, a), (t, b) in pairs if (s, t) == (first, second)]
        if between:
            similar = len({b for _, b in between})
            example = f"{splits[first].dataset.title(between[0][0])} ~ {splits[second].dataset.title(between[0][1])}"
            relation = f"{similar:,} {second} images are near-duplicates of {first} images"
            found.append(f"{relation} ({example}): accuracies will be too high")
    return found


def _warnings(splits: dict[str, SplitInspection]) -> list[str]:
    found = []
    for name, split in splits.items():
        classes, counts = split.dataset.classes, split.class_counts
        if doubtful := doubtful_classes(split.dataset):
            found.append(f"{name}: classes look like parts of a dataset: {', '.join(doubtful)}")
        if len(classes) == 1:
            found.append(f"{name}: there is one class, {classes[0]}: evaluations need at least two")
        if empty := [label for label, count in counts.items() if not count]:
            found.append(f"{name}: {len(empty)} classes have no image ({describe_names(empty)})")
        if "not used" in split.dataset.layout:
            found.append(f"{name}: {split.dataset.layout}")
        elif split.dataset.labels is None and name != "unlabeled":
            found.append(f"{name}: the images have no labels: they can be embedded and pretrained on, not evaluated on")
        if split.corrupt:
            found.append(f"{name}: {len(split.corrupt):,} of {split.inspected:,} images cannot be decoded")
        if split.sizes and split.num_gray == len(split.sizes):
            found.append(f"{name}: all images are gray although they have 3 channels")
        if len({kind.split()[0] for kind in split.pixels} - {"1"}) > 1:
            found.append(f"{name}: the images differ in their number of channels; choose one with --channels")
        conflicts = [
            [split.dataset.title(i) for i in indices]
            for indices in split.hashes.values()
            if len({label_of(split.dataset, i) for i in indices} - {None}) > 1
        ]
        if conflicts:
            shown = describe_names([" = ".join(titles) for titles in conflicts])
            found.append(f"{name}: {len(conflicts):,} equal images are in several classes ({shown})")
    for (first, a), (second, b) in combinations(splits.items(), 2):
        if both := a.hashes.keys() & b.hashes.keys():
            num_images = sum(len(b.hashes[digest]) for digest in both)
            example = b.dataset.title(b.hashes[min(both)][0])
            found.append(f"{num_images:,} {second} images are also in {first} ({example}): accuracies will be too high")
    return found
