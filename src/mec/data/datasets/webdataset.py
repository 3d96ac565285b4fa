"""WebDataset shards: tar files of images, local or remote, read in one direction."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tarfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mec.data.dataset import Labels
from mec.data.datasets.builtin import data_home
from mec.data.datasets.folder import files_of_kind
from mec.data.datasets.splits import Splits, encode_labels
from mec.data.datasets.tar_reader import IMAGE_SUFFIXES, LABEL_SUFFIXES, fsspec_options, read_samples
from mec.data.pixels import CorruptImageError
from mec.errors import InputError
from mec.files import atomic_write

RETRIES = 3
PAUSE = 1.0
"""Seconds before a shard that broke off is opened again; twice as long each time."""
COUNTS = "sizes.json"
TAR = (".tar", ".tar.gz", ".tgz")


def is_shards(source: str) -> bool:
    """A .tar file or URL, a pattern of them such as a-{00..99}.tar, or a folder of .tar files."""
    path = Path(source).expanduser()
    return source.endswith(TAR) or (path.is_dir() and files_of_kind(path, TAR) is not None)


def open_shards(source: str, skip_labels: bool = False) -> Splits:
    """Open shards and learn how many images each has.

    A ``sizes.json`` beside them ({"shard-0000.tar": 1000, ...}) says so; without it, or for labels (``cls`` or
    ``json`` with ``label`` beside each image), every shard is gone through once and remembered.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise InputError(f"data: {source} needs webdataset; pip install 'mec-ssl[webdataset]'") from error
    path = Path(source).expanduser()
    try:
        train, test = (files_of_kind(path, TAR) if path.is_dir() else None) or (expand_urls(source), [])
    except (ValueError, AssertionError) as error:
        raise InputError(f"data: {source} is not a pattern of shards ({error})") from error
    missing = [url for url in train + test if "://" not in url and not Path(url).expanduser().is_file()]
    if missing:
        raise InputError(f"data: {missing[0]} does not exist ({len(missing)} of {len(train + test)} shards)")
    part = _open(train, source, None, skip_labels)
    return Splits(part, _open(test, source, part.classes or None, skip_labels) if test else None)


@dataclass
class ShardDataset:
    """Images in tar files: numbered in the order of ``urls``, of which the i-th holds ``counts[i]``.

    ``chosen`` (n,), rising, are the numbers of those that belong to it. Loading is quick in rising order and
    starts the shard anew otherwise.
    """

    name: str
    urls: list[str]
    counts: list[int]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0
    chosen: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._cursor: Cursor | None = None

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.chosen is None else len(self.chosen)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cursor": None}  # an open file does not go to a worker

    @property
    def bounds(self) -> NDArray[np.int64]:
        """The numbers of the images of shard i are bounds[i] ... bounds[i + 1]."""
        return self.starts if self.chosen is None else np.searchsorted(self.chosen, self.starts)

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """The images that each shard has of it, where it has some: from the first number to before the last."""
        return [(int(a), int(b)) for a, b in itertools.pairwise(self.bounds) if a < b]

    def place(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of image ``index``."""
        number = index if self.chosen is None else int(self.chosen[index])
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def load(self, index: int) -> bytes:
        shard, position = self.place(index)
        if self._cursor is None or not self._cursor.reaches(self.urls[shard], position):
            self._cursor = Cursor(self.urls[shard])
        sample = self._cursor.sample(position)
        return next(bytes(value) for suffix, value in sample.items() if suffix in IMAGE_SUFFIXES)

    def title(self, index: int) -> str:
        shard, position = self.place(index)
        return f"{self.urls[shard]}, image {position}"

    def subset(self, indices: NDArray[np.int64]) -> ShardDataset:
        chosen = np.asarray(indices) if self.chosen is None else self.chosen[indices]
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, chosen=chosen, labels=labels)


class Cursor:
    """Reads one shard forward. What breaks off is opened again from the start, a few times; then the rest is lost."""

    def __init__(self, url: str, labels_only: bool = False) -> None:
        self.url, self.labels_only = url, labels_only
        self.process = os.getpid()
        self.lost: str | None = None
        self._begin()

    def _begin(self, in_blocks: bool = True) -> None:
        self.position, self.samples = 0, read_samples(self.url, self.labels_only, in_blocks)

    def reaches(self, url: str, position: int) -> bool:
        # a file opened before a fork has one position for both processes, a connection only one owner
        return url == self.url and position >= self.position and self.process == os.getpid()

    def sample(self, position: int) -> dict[str, Any]:
        """The sample at ``position``, at least the position after the last one.

        Raises:
            CorruptImageError: it is lost; from the reason, or from nothing where the shard ends as it should.
        """
        attempt = 0
        while self.lost is None:
            try:
                for sample in self.samples:
                    self.position += 1
                    if self.position > position:
                        return sample
                self.lost = f"the shard ends after {self.position} images"
            except Exception as error:  # tarfile, fsspec and what lies under them raise many kinds
                self.samples.close()
                if attempt == RETRIES or not _passing(self.url, error):
                    self.lost = f"the shard broke off ({_reason(error)})"
                    raise CorruptImageError(self.lost) from error
                time.sleep(PAUSE * 2**attempt)
                attempt += 1
                self._begin(in_blocks=False)
        raise CorruptImageError(self.lost)


def _passing(url: str, error: BaseException) -> bool:
    """Whether trying again may help: a connection may come back, a damaged local file will not mend."""
    cause = _root(error)
    status = getattr(cause, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return "://" in url and not refused and not isinstance(cause, FileNotFoundError)


def _root(error: BaseException) -> BaseException:
    # fsspec calls every failure to open a URL FileNotFoundError
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    cause = _root(error)
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _label(sample: dict[str, Any]) -> str | None:
    for suffix in LABEL_SUFFIXES:
        if suffix in sample:
            return bytes(sample[suffix]).decode("utf-8", "replace").strip()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        label = json.loads(sample["json"])["label"]
        return None if label is None else str(label)
    return None


def _open(urls: list[str], source: str, classes: list[str] | None, skip_labels: bool) -> ShardDataset:
    counts = _stated_counts(urls) if skip_labels else None
    if counts is not None:
        return ShardDataset(Path(source).name, urls, counts)
    console = Console(stderr=True)
    shown = track(urls, "reading shards", console=console, transient=True, disable=not console.is_terminal)
    contents = [_contents(url) for url in shown]
    broken = [reason for _, reason in contents if reason]
    found = ShardDataset(Path(source).name, urls, [len(labels) for labels, _ in contents], ignored_files=len(broken))
    if not len(found):
        reason = broken[0] if broken else ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"data: no image in the shards of {source} ({reason})")
    labels = [label for each, _ in contents for label in each]
    if all(label is not None for label in labels):
        found.labels, found.classes = encode_labels([str(label) for label in labels], classes)
    return found


def _stated_counts(urls: list[str]) -> list[int] | None:
    import fsspec

    beside = f"{urls[0].rpartition('/')[0] or '.'}/{COUNTS}"
    try:
        with fsspec.open(beside, "rt", **fsspec_options(beside)).open() as file:
            sizes = json.load(file)
        return [int(sizes[url.rpartition("/")[2]]) for url in urls]
    except Exception:  # absent or not this kind of file: the shards are counted instead
        return None


def _contents(url: str) -> tuple[list[str | None], str]:
    """The label, or None, of each image of a shard, and why the rest of it is lost, if it is.

    The labels are kept as long as the shard does not change.
    """
    kept = data_home() / "shards" / f"{hashlib.sha256(_version(url).encode()).hexdigest()[:24]}.json"
    labels: list[str | None] = []
    with contextlib.suppress(OSError, ValueError):
        labels = json.loads(kept.read_text())
        return labels, ""
    cursor = Cursor(url, labels_only="://" not in url)
    try:
        while True:
            labels.append(_label(cursor.sample(len(labels))))
    except CorruptImageError as end:
        cause = end.__cause__
    if cause is not None:
        if not labels and not isinstance(cause, tarfile.TarError):
            raise InputError(f"data: {url} cannot be read ({_reason(cause)})") from cause
        if labels and labels[-1] is None and any(label is not None for label in labels):
            labels.pop()  # its label is among what is lost
        return labels, _reason(cause)  # not kept: it may be whole next time
    with contextlib.suppress(OSError), atomic_write(kept) as path:
        path.write_text(json.dumps(labels))
    return labels, ""


def _version(url: str) -> str:
    if "://" in url:
        import fsspec

        files, path = fsspec.core.url_to_fs(url, **fsspec_options(url))
        with contextlib.suppress(Exception):
            info = files.info(path)
            state = [str(info.get(key)) for key in ("size", "ETag", "etag", "mtime", "Last-Modified")]
            return " ".join((url, *state))
        return url
    file = Path(url).expanduser().resolve()
    return f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
