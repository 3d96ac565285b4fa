"""WebDataset shards: tar files of images and labels, local or remote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from mec.data.dataset import (
    ImageDataset,
    Indices,
    Labels,
    Splits,
    encode_labels,
    log_progress,
    open_train_and_test,
    select_labels,
)
from mec.data.datasets.arrays import data_home
from mec.data.datasets.folder import list_split_files
from mec.data.datasets.tar_reader import IMAGE_SUFFIXES, Sample, error_reason, fsspec_options, read_samples
from mec.data.pixels import CorruptImageError
from mec.errors import InputError
from mec.files import atomic_write

SHARD_EXTENSIONS = (".tar", ".tar.gz", ".tgz")


def is_shard_source(source: str) -> bool:
    """Return whether ``source`` is a .tar file, a URL or pattern of them (a-{00..99}.tar), or a folder with them."""
    path = Path(source).expanduser()
    return source.endswith(SHARD_EXTENSIONS) or (path.is_dir() and list_split_files(path, SHARD_EXTENSIONS) is not None)


def open_shards(source: str, skip_labels: bool = False) -> Splits:
    """Open shards, and read each once to count its images and cache their labels.

    A label is a ``cls`` file, or ``label`` in a ``json`` file, beside its image. With ``skip_labels``, a valid file
    ``sizes.json`` in the folder of the shards ({"shard-0000.tar": 1000, ...}) replaces this.
    """
    path = Path(source).expanduser()
    files = list_split_files(path, SHARD_EXTENSIONS) if path.is_dir() else None
    train, test = files or (expand_braces(source), [])
    missing = [url for url in train + test if "://" not in url and not Path(url).expanduser().is_file()]
    if missing:
        raise InputError(f"data: {missing[0]} does not exist ({len(missing)} of {len(train + test)} shards)")
    return open_train_and_test(partial(_open_split, source, skip_labels), train, test or None)


def expand_braces(pattern: str) -> list[str]:
    """Expand {000..099} to numbers, with leading zeros as in the first one, and {a,b} to words."""
    group = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]+,[^{}]*))\}", pattern)
    if group is None:
        return [pattern]
    first, last, words = group.groups()
    replacements = words.split(",") if words else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    ends = expand_braces(pattern[group.end() :])
    return [pattern[: group.start()] + middle + end for middle in replacements for end in ends]


@dataclass
class ShardDataset(ImageDataset):
    """Images in tar files, in the order of ``urls``; shard i holds ``counts[i]`` images.

    ``indices`` (n,), sorted, selects a subset. Loading an earlier image reads a shard from its start again.
    """

    name: str
    urls: list[str]
    counts: list[int]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0
    indices: Indices | None = None
    random_access = False

    def __post_init__(self) -> None:
        self._shard_starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._reader_key: tuple[str, int] | None = None  # URL and process of the open shard
        self._samples: Iterator[Sample] = iter(())
        self._position, self._error = 0, ""

    def __len__(self) -> int:
        return int(self._shard_starts[-1]) if self.indices is None else len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader_key": None, "_samples": None}  # an open file cannot be pickled

    @property
    def shard_bounds(self) -> Indices:
        return self._shard_starts if self.indices is None else np.searchsorted(self.indices, self._shard_starts)

    def _locate(self, index: int) -> tuple[str, int]:
        """Return the URL of the shard of image ``index`` and the position of the image in that shard."""
        index = index if self.indices is None else int(self.indices[index])
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        return self.urls[shard], index - int(self._shard_starts[shard])

    def load(self, index: int) -> bytes:
        url, position = self._locate(index)
        # after a fork both processes share the position of an open file, and a connection cannot be shared
        if self._reader_key != (url, os.getpid()) or position < self._position:
            self._reader_key, self._samples = (url, os.getpid()), read_samples(url)
            self._position, self._error = 0, ""
        try:
            for sample in self._samples:
                self._position += 1
                if self._position > position:
                    return next(content for suffix, content in sample.items() if suffix in IMAGE_SUFFIXES)
        except Exception as error:  # of many types, see read_samples
            self._error = f"reading the shard failed ({error_reason(error)})"
        raise CorruptImageError(self._error or f"the shard ends after {self._position} images")

    def title(self, index: int) -> str:
        url, position = self._locate(index)
        return f"{url}, image {position}"

    def subset(self, indices: Indices) -> ShardDataset:
        selected = np.asarray(indices) if self.indices is None else self.indices[indices]
        return replace(self, indices=selected, labels=select_labels(self, indices))


def _open_split(source: str, skip_labels: bool, urls: list[str], classes: list[str] | None) -> ShardDataset:
    if skip_labels:
        sizes_url = f"{urls[0].rpartition('/')[0] or '.'}/sizes.json"
        with contextlib.suppress(Exception):  # without a valid file the shards are read
            with fsspec.open(sizes_url, "rt", **fsspec_options(sizes_url)).open() as file:
                sizes = json.load(file)
            return ShardDataset(Path(source).name, urls, [int(sizes[url.rpartition("/")[2]]) for url in urls])
    shards = [_read_labels(url) for url in log_progress(urls, "reading shards")]
    errors = [error for _, error in shards if error]
    labels = [label for shard_labels, _ in shards for label in shard_labels]
    if not labels:
        reason = errors[0] if errors else f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise InputError(f"data: no image in the shards of {source} ({reason})")
    counts = [len(shard_labels) for shard_labels, _ in shards]
    dataset = ShardDataset(Path(source).name, urls, counts, ignored_files=len(errors))
    if all(label is not None for label in labels):
        dataset.labels, dataset.classes = encode_labels([str(label) for label in labels], classes)
    return dataset


def _read_labels(url: str) -> tuple[list[str | None], str]:
    """Return the label of each image of a shard (None without one), and the error that made its rest unreadable."""
    cache_file = data_home() / "shards" / f"{hashlib.sha256(_file_version(url).encode()).hexdigest()[:24]}.json"
    labels: list[str | None] = []
    with contextlib.suppress(OSError, ValueError):
        labels = json.loads(cache_file.read_text())
        return labels, ""
    try:  # a remote tar is a stream: skipping the images would download them too
        for sample in read_samples(url, labels_only="://" not in url):
            labels.append(_label(sample))
    except Exception as error:
        if not labels and not isinstance(error, tarfile.TarError):
            raise InputError(f"data: cannot read {url} ({error_reason(error)})") from error
        if labels and labels[-1] is None and any(label is not None for label in labels):
            labels.pop()  # its label is in the unreadable part
        return labels, error_reason(error)  # not cached: the next attempt may succeed
    with contextlib.suppress(OSError), atomic_write(cache_file) as path:
        path.write_text(json.dumps(labels))
    return labels, ""


def _label(sample: Sample) -> str | None:
    for suffix in ("cls", "label"):
        if suffix in sample:
            return sample[suffix].decode("utf-8", "replace").strip()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        label = json.loads(sample["json"])["label"]
        return None if label is None else str(label)
    return None


def _file_version(url: str) -> str:
    """Return path or URL, size, and modification time or ETag of a shard, which change when the shard changes."""
    if "://" not in url:
        file = Path(url).expanduser().resolve()
        return f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
    with contextlib.suppress(Exception):
        filesystem, path = fsspec.core.url_to_fs(url, **fsspec_options(url))
        info = filesystem.info(path)
        return " ".join([url, *(str(info.get(key)) for key in ("size", "ETag", "etag", "mtime", "Last-Modified"))])
    return url
