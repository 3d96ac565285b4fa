"""WebDataset shards: tar files of images and labels, local or remote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np

from mec.data.dataset import ImageDataset, Indices, Labels, count_skipped, log_progress, select_labels
from mec.data.datasets.arrays import data_home
from mec.data.datasets.folder import list_split_files
from mec.data.datasets.tar_reader import (
    IMAGE,
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Sample,
    Skipped,
    error_reason,
    fsspec_options,
    read_samples,
)
from mec.data.pixels import CorruptImageError
from mec.data.splits import Splits, add_to_layout, clean_labels, open_named_splits, set_labels
from mec.errors import InputError
from mec.files import atomic_write

logger = logging.getLogger("mec")

SHARD_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
SIZES_FILE = "sizes.json"
CACHE_VERSION = 2  # of the cached labels; changes with the rule by which images are found


def is_shard_source(source: str) -> bool:
    """Return whether ``source`` is a .tar file, a URL or pattern of them (a-{00..99}.tar), or a folder with them."""
    path = Path(source).expanduser()
    return source.endswith(SHARD_EXTENSIONS) or (path.is_dir() and list_split_files(path, SHARD_EXTENSIONS) != {})


def open_shards(source: str, skip_labels: bool = False) -> Splits:
    """Open shards, and read each once to count its images and cache their labels.

    A label is a ``cls`` file, or ``label`` in a ``json`` file, beside its image. With ``skip_labels``, a valid file
    ``sizes.json`` in the folder of the shards ({"shard-0000.tar": 1000, ...}) replaces this.
    """
    path = Path(source).expanduser()
    files = list_split_files(path, SHARD_EXTENSIONS) if path.is_dir() else {"train": expand_braces(source)}
    urls = [url for split_urls in files.values() for url in split_urls]
    missing = [url for url in urls if "://" not in url and not Path(url).expanduser().is_file()]
    if missing:
        raise InputError(f"data: {missing[0]} does not exist ({len(missing)} of {len(urls)} shards)")
    return open_named_splits(partial(_open_split, source, skip_labels), files)


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

    ``indices`` (n,), sorted, selects a subset. Loading an earlier image reads a shard from its start again. Counts from
    sizes.json are not verified on opening, but when the last image of a shard is loaded.
    """

    name: str
    urls: list[str]
    counts: list[int]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    layout: str = ""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    counts_verified: bool = True
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

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard of image ``index`` and the position of the image in that shard."""
        index = index if self.indices is None else int(self.indices[index])
        shard = int(np.searchsorted(self._shard_starts, index, side="right")) - 1
        return shard, index - int(self._shard_starts[shard])

    def load(self, index: int) -> bytes:
        shard, position = self._locate(index)
        url = self.urls[shard]
        # after a fork both processes share the position of an open file, and a connection cannot be shared
        if self._reader_key != (url, os.getpid()) or position < self._position:
            self._reader_key, self._samples = (url, os.getpid()), read_samples(url)
            self._position, self._error = 0, ""
        try:
            for sample in self._samples:
                self._position += 1
                if self._position > position:
                    self._check_count(shard)
                    return sample[IMAGE]
        except Exception as error:  # of many types, see read_samples
            self._error = f"reading the shard failed ({error_reason(error)})"
        raise CorruptImageError(self._error or f"the shard ends after {self._position} images")

    def _check_count(self, shard: int) -> None:
        """Warn after the last image of a shard that sizes.json names if the shard holds more."""
        count = self.counts[shard]
        if self.counts_verified or self._position < count:
            return
        with contextlib.suppress(Exception):  # the shard may be damaged from here on
            if next(self._samples, None) is not None:
                self._position += 1
                logger.warning(
                    f"{SIZES_FILE}: {self.urls[shard]} has more than the {count:,} images that are trained on"
                )

    def title(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"{self.urls[shard]}, image {position}"

    def subset(self, indices: Indices) -> ShardDataset:
        selected = np.asarray(indices) if self.indices is None else self.indices[indices]
        return replace(self, indices=selected, labels=select_labels(self, indices))


def _open_split(source: str, skip_labels: bool, urls: list[str], classes: list[str] | None) -> ShardDataset:
    name, layout = Path(source).name, f"{len(urls):,} shard{'s' if len(urls) != 1 else ''}"
    if skip_labels and (counts := _read_sizes(urls)):
        return ShardDataset(name, urls, counts, layout=f"{layout}, sizes from {SIZES_FILE}", counts_verified=False)
    shards = [_read_labels(url) for url in log_progress(urls, "reading shards")]
    errors = [shard.error for shard in shards if shard.error]
    labels = [label for shard in shards for label in shard.labels]
    if not labels:
        reason = errors[0] if errors else f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise InputError(f"data: no image in the shards of {source} ({reason})")
    dataset = ShardDataset(name, urls, [len(shard.labels) for shard in shards], layout=layout)
    for url, shard in zip(urls, shards, strict=True):
        count_skipped(dataset, "damaged shards, in part", [f"{url}: {shard.error}"] if shard.error else [])
        for kind, names in shard.skipped.items():
            count_skipped(dataset, kind, names)
    if any(label is not None for label in labels):
        add_to_layout(dataset, f"labels in .{', .'.join(LABEL_SUFFIXES)}")
    set_labels(dataset, clean_labels(labels), classes)
    return dataset


def _read_sizes(urls: list[str]) -> list[int]:
    """Return the number of images of each shard in sizes.json; [] without a valid file. The first shard is compared if
    it is a local file."""
    sizes_url = f"{urls[0].rpartition('/')[0] or '.'}/{SIZES_FILE}"
    try:
        with fsspec.open(sizes_url, "rt", **fsspec_options(sizes_url)).open() as file:
            sizes = json.load(file)
        counts = [int(sizes[url.rpartition("/")[2]]) for url in urls]
    except FileNotFoundError:
        return []
    except Exception as error:  # of many types
        logger.warning(f"{sizes_url} is not used, and all shards are read ({error_reason(error)})")
        return []
    if "://" in urls[0]:
        return counts
    count, is_complete = 0, False
    with contextlib.suppress(Exception):  # the images behind a damage are counted as corrupt later
        for _ in read_samples(urls[0], labels_only=True):
            count += 1
        is_complete = True
    if count > counts[0] or (is_complete and count < counts[0]):
        raise InputError(f"data: {sizes_url}: expected {count} for {urls[0]}, got {counts[0]}; correct or delete it")
    return counts


class ShardLabels(NamedTuple):
    """The label of each image of a shard (None without one), what was skipped, why its rest is unreadable."""

    labels: list[str | None]
    skipped: Skipped
    error: str = ""


def _read_labels(url: str) -> ShardLabels:
    key = f"{CACHE_VERSION} {_file_version(url)}"
    cache_file = data_home() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ShardLabels(*json.loads(cache_file.read_text()))
    labels: list[str | None] = []
    skipped: Skipped = {}
    try:  # a remote tar is a stream: skipping the images would download them too
        for sample in read_samples(url, "://" not in url, skipped):
            labels.append(_label(sample))
    except Exception as error:
        if not labels and not isinstance(error, tarfile.TarError):
            raise InputError(f"data: cannot read {url} ({error_reason(error)})") from error
        if labels and labels[-1] is None and any(label is not None for label in labels):
            labels.pop()  # its label is in the unreadable part
        return ShardLabels(labels, skipped, error_reason(error))  # not cached: the next attempt may succeed
    with contextlib.suppress(OSError), atomic_write(cache_file) as path:
        path.write_text(json.dumps([labels, skipped]))
    return ShardLabels(labels, skipped)


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
