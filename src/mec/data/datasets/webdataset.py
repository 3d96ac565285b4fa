"""WebDataset shards: tar files of images, local or remote, read sequentially."""

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
from mec.data.datasets.folder import list_split_files
from mec.data.datasets.splits import Splits, encode_labels
from mec.data.datasets.tar_reader import IMAGE_SUFFIXES, LABEL_SUFFIXES, fsspec_options, read_samples
from mec.data.pixels import CorruptImageError
from mec.errors import InputError
from mec.files import atomic_write

MAX_RETRIES = 3
RETRY_DELAY = 1.0
"""Seconds before the first retry of a shard; doubled before each further one."""
SIZES_FILE = "sizes.json"
SHARD_EXTENSIONS = (".tar", ".tar.gz", ".tgz")


def is_shard_source(source: str) -> bool:
    """Return whether ``source`` is a .tar file or URL, a pattern such as a-{00..99}.tar, or a folder of .tar files."""
    path = Path(source).expanduser()
    return source.endswith(SHARD_EXTENSIONS) or (path.is_dir() and list_split_files(path, SHARD_EXTENSIONS) is not None)


def open_shards(source: str, skip_labels: bool = False) -> Splits:
    """Open shards and count their images.

    Each shard is read once, for the number of its images and their labels (a ``cls`` file, or ``label`` in a
    ``json`` file, beside each image), and the labels are cached. With ``skip_labels`` a file ``sizes.json`` in the
    folder of the shards ({"shard-0000.tar": 1000, ...}) replaces this; a missing or invalid one is ignored.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise InputError(f"data: {source} needs webdataset; pip install 'mec-ssl[webdataset]'") from error
    path = Path(source).expanduser()
    try:
        files = list_split_files(path, SHARD_EXTENSIONS) if path.is_dir() else None
        train, test = files or (expand_urls(source), [])
    except (ValueError, AssertionError) as error:
        raise InputError(f"data: expected shards such as a-{{00..99}}.tar, got {source} ({error})") from error
    missing = [url for url in train + test if "://" not in url and not Path(url).expanduser().is_file()]
    if missing:
        raise InputError(f"data: {missing[0]} does not exist ({len(missing)} of {len(train + test)} shards)")
    train_split = _open_split(train, source, None, skip_labels)
    if not test:
        return Splits(train_split)
    return Splits(train_split, _open_split(test, source, train_split.classes or None, skip_labels))


@dataclass
class ShardDataset:
    """Images in tar files, in the order of ``urls``; shard i holds ``counts[i]`` images.

    ``indices`` (n,), sorted, selects a subset of these images; None: all of them. ``ignored_files`` is the number of
    shards whose end could not be read. Loading in ascending order reads each shard once; a step backward reads a shard
    from its start again.
    """

    name: str
    urls: list[str]
    counts: list[int]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0
    indices: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self._shard_starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._reader: ShardReader | None = None

    def __len__(self) -> int:
        return int(self._shard_starts[-1]) if self.indices is None else len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}  # an open file cannot be pickled

    @property
    def shard_bounds(self) -> NDArray[np.int64]:
        """Boundaries of the shards (shards + 1,): shard i holds images shard_bounds[i] ... shard_bounds[i + 1] - 1."""
        return self._shard_starts if self.indices is None else np.searchsorted(self.indices, self._shard_starts)

    @property
    def shard_ranges(self) -> list[tuple[int, int]]:
        """Index range (first, last + 1) of the images of each shard that is not empty."""
        return [(int(a), int(b)) for a, b in itertools.pairwise(self.shard_bounds) if a < b]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard of image ``index`` and its position in that shard."""
        index = index if self.indices is None else int(self.indices[index])
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        return shard, index - int(self._shard_starts[shard])

    def load(self, index: int) -> bytes:
        shard, position = self.locate(index)
        if self._reader is None or not self._reader.can_read(self.urls[shard], position):
            self._reader = ShardReader(self.urls[shard])
        sample = self._reader.read(position)
        return next(bytes(value) for suffix, value in sample.items() if suffix in IMAGE_SUFFIXES)

    def title(self, index: int) -> str:
        shard, position = self.locate(index)
        return f"{self.urls[shard]}, image {position}"

    def subset(self, indices: NDArray[np.int64]) -> ShardDataset:
        selected = np.asarray(indices) if self.indices is None else self.indices[indices]
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, indices=selected, labels=labels)


class ShardReader:
    """Sequential reader of one shard.

    After an error that may be transient (see ``_is_transient``) the shard is opened again and read from its start, at
    most ``MAX_RETRIES`` times per sample. After that, and in a corrupt local tar, the rest of the shard is unreadable.
    """

    def __init__(self, url: str, labels_only: bool = False) -> None:
        self.url, self.labels_only = url, labels_only
        self.pid = os.getpid()
        self.error: str | None = None
        self._open()

    def _open(self, range_requests: bool = True) -> None:
        self.position, self.samples = 0, read_samples(self.url, self.labels_only, range_requests)

    def can_read(self, url: str, position: int) -> bool:
        """Return whether this process can read ``position`` of shard ``url`` without opening it again."""
        # after a fork both processes share the position of an open file, and a connection cannot be shared
        return url == self.url and position >= self.position and self.pid == os.getpid()

    def read(self, position: int) -> dict[str, Any]:
        """Read the sample at ``position``, which must be greater than the position of the last call.

        Raises:
            CorruptImageError: the sample cannot be read. ``__cause__`` is the error; None at the regular end of the
                shard and in further calls after an error.
        """
        attempt = 0
        while self.error is None:
            try:
                for sample in self.samples:
                    self.position += 1
                    if self.position > position:
                        return sample
                self.error = f"the shard ends after {self.position} images"
            except Exception as error:  # tarfile, fsspec and its back ends raise exceptions of many types
                self.samples.close()
                if attempt == MAX_RETRIES or not _is_transient(self.url, error):
                    self.error = f"reading the shard failed ({_reason(error)})"
                    raise CorruptImageError(self.error) from error
                time.sleep(RETRY_DELAY * 2**attempt)
                attempt += 1
                self._open(range_requests=False)
        raise CorruptImageError(self.error)


def _is_transient(url: str, error: BaseException) -> bool:
    """Return whether a retry may succeed: for every error of a URL except missing files and refused requests.

    A refused request has an HTTP status of 4xx, without 408 (timeout) and 429 (too many requests).
    """
    cause = _root_cause(error)
    status = getattr(cause, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return "://" in url and not refused and not isinstance(cause, FileNotFoundError)


def _root_cause(error: BaseException) -> BaseException:
    # fsspec raises FileNotFoundError for every URL that cannot be opened
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    cause = _root_cause(error)
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _label(sample: dict[str, Any]) -> str | None:
    for suffix in LABEL_SUFFIXES:
        if suffix in sample:
            return bytes(sample[suffix]).decode("utf-8", "replace").strip()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        label = json.loads(sample["json"])["label"]
        return None if label is None else str(label)
    return None


def _open_split(urls: list[str], source: str, classes: list[str] | None, skip_labels: bool) -> ShardDataset:
    counts = _read_sizes_file(urls) if skip_labels else None
    if counts is not None:
        return ShardDataset(Path(source).name, urls, counts)
    console = Console(stderr=True)
    progress = track(urls, "reading shards", console=console, transient=True, disable=not console.is_terminal)
    shards = [_read_labels(url) for url in progress]
    errors = [error for _, error in shards if error]
    counts = [len(labels) for labels, _ in shards]
    dataset = ShardDataset(Path(source).name, urls, counts, ignored_files=len(errors))
    if not len(dataset):
        reason = errors[0] if errors else f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise InputError(f"data: no image in the shards of {source} ({reason})")
    labels = [label for shard_labels, _ in shards for label in shard_labels]
    if all(label is not None for label in labels):
        dataset.labels, dataset.classes = encode_labels([str(label) for label in labels], classes)
    return dataset


def _read_sizes_file(urls: list[str]) -> list[int] | None:
    import fsspec

    sizes_url = f"{urls[0].rpartition('/')[0] or '.'}/{SIZES_FILE}"
    try:
        with fsspec.open(sizes_url, "rt", **fsspec_options(sizes_url)).open() as file:
            sizes = json.load(file)
        return [int(sizes[url.rpartition("/")[2]]) for url in urls]
    except Exception:  # without a valid sizes file the shards are read
        return None


def _read_labels(url: str) -> tuple[list[str | None], str]:
    """Return the label of each image of a shard (None without one), and the error that made its rest unreadable.

    The labels are cached until the shard changes.
    """
    cache_file = data_home() / "shards" / f"{hashlib.sha256(_file_version(url).encode()).hexdigest()[:24]}.json"
    labels: list[str | None] = []
    with contextlib.suppress(OSError, ValueError):
        labels = json.loads(cache_file.read_text())
        return labels, ""
    reader = ShardReader(url, labels_only="://" not in url)  # a remote tar is a stream: skipping would download it too
    try:
        while True:
            labels.append(_label(reader.read(len(labels))))
    except CorruptImageError as end:
        cause = end.__cause__
    if cause is not None:
        if not labels and not isinstance(cause, tarfile.TarError):
            raise InputError(f"data: cannot read {url} ({_reason(cause)})") from cause
        if labels and labels[-1] is None and any(label is not None for label in labels):
            labels.pop()  # its label is in the unreadable part
        return labels, _reason(cause)  # not cached: the next attempt may succeed
    with contextlib.suppress(OSError), atomic_write(cache_file) as path:
        path.write_text(json.dumps(labels))
    return labels, ""


def _file_version(url: str) -> str:
    """Return a string that changes when the shard changes: its path or URL, size and modification time or ETag."""
    if "://" in url:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url, **fsspec_options(url))
        with contextlib.suppress(Exception):
            info = filesystem.info(path)
            state = [str(info.get(key)) for key in ("size", "ETag", "etag", "mtime", "Last-Modified")]
            return " ".join((url, *state))
        return url
    file = Path(url).expanduser().resolve()
    return f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
