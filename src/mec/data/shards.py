"""WebDataset shards: tar files of pictures, local or remote, read in one direction."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mec.data.decode import EXTENSIONS
from mec.data.folders import files_of_kind
from mec.data.images import Labels
from mec.data.named import data_home
from mec.data.parts import Parts, numbered
from mec.data.pixels import BrokenPictureError
from mec.errors import InputError
from mec.files import replacing

RETRIES = 3
PAUSE = 1.0
"""Seconds before a shard that broke off is opened again; twice as long each time."""
COUNTS = "sizes.json"
LABEL_SUFFIXES = ("cls", "label")
PICTURE_SUFFIXES = frozenset(e.lstrip(".") for e in EXTENSIONS)
META = re.compile(r"__[^/]*__($|/)")
"""What webdataset passes over."""
TAR = (".tar", ".tar.gz", ".tgz")


def is_shards(source: str) -> bool:
    """A .tar file or URL, a pattern of them such as a-{00..99}.tar, or a folder of .tar files."""
    path = Path(source).expanduser()
    return source.endswith(TAR) or (path.is_dir() and files_of_kind(path, ".tar") is not None)


def open_shards(source: str, counts_will_do: bool = False) -> Parts:
    """Open shards and learn how many pictures each has.

    A ``sizes.json`` beside them ({"shard-0000.tar": 1000, ...}) says so; without it, or for labels (``cls`` or
    ``json`` with ``label`` beside each picture), every shard is gone through once and remembered.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise InputError(f"data: {source} needs webdataset; pip install 'mec-ssl[webdataset]'") from error
    path = Path(source).expanduser()
    train, test = (files_of_kind(path, ".tar") if path.is_dir() else None) or (expand_urls(source), [])
    missing = [url for url in train + test if "://" not in url and not Path(url).expanduser().is_file()]
    if missing:
        raise InputError(f"data: {missing[0]} does not exist ({len(missing)} of {len(train + test)} shards)")
    part = _open(train, source, None, counts_will_do)
    return Parts(part, _open(test, source, part.classes or None, counts_will_do) if test else None)


@dataclass
class ShardImages:
    """Pictures in tar files: numbered in the order of ``urls``, of which the i-th holds ``counts[i]``.

    ``chosen`` (n,), rising, are the numbers of those that belong to it. Loading is quick in rising order and
    starts the shard anew otherwise.
    """

    name: str
    urls: list[str]
    counts: list[int]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    left_out: int = 0
    chosen: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._cursor: Cursor | None = None

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.chosen is None else len(self.chosen)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cursor": None}  # an open file does not go to a worker

    def place(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of picture ``index``."""
        number = index if self.chosen is None else int(self.chosen[index])
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return shard, number - int(self.starts[shard])

    def load(self, index: int) -> bytes:
        shard, position = self.place(index)
        if self._cursor is None or not self._cursor.reaches(self.urls[shard], position):
            self._cursor = Cursor(self.urls[shard])
        return self._cursor.load(position)

    def title(self, index: int) -> str:
        shard, position = self.place(index)
        return f"{self.urls[shard]}, picture {position}"

    def subset(self, indices: NDArray[np.int64]) -> ShardImages:
        chosen = np.asarray(indices) if self.chosen is None else self.chosen[indices]
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, chosen=chosen, labels=labels)


class Cursor:
    """Reads one shard forward. What breaks off is opened again from the start, a few times; then the rest is lost."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        self.lost: str | None = None
        self.samples = read_samples(url)

    def reaches(self, url: str, position: int) -> bool:
        return url == self.url and (position >= self.position or self.lost is not None)

    def load(self, position: int) -> bytes:
        """The encoded picture at ``position``, at least the position after the last one loaded."""
        if self.lost is not None:
            raise BrokenPictureError(self.lost)
        for attempt in range(RETRIES + 1):
            try:
                while True:
                    sample = next(self.samples, None)
                    if sample is None:
                        raise EOFError(f"the shard ends after {self.position} pictures")
                    self.position += 1
                    if self.position > position:
                        return _picture(sample)
            except Exception as error:  # tarfile, fsspec and what lies under them raise many kinds
                self.samples.close()
                self.position, self.samples = 0, read_samples(self.url)
                self.lost = f"the shard broke off ({' '.join(str(error).split())[:200] or type(error).__name__})"
                if not _passing(self.url, error) or attempt == RETRIES:
                    break
                time.sleep(PAUSE * 2**attempt)
                self.lost = None
        raise BrokenPictureError(str(self.lost))


def _passing(url: str, error: Exception) -> bool:
    """Whether trying again may help: a connection may come back, a damaged local file will not mend."""
    return "://" in url and not isinstance(error, FileNotFoundError)


def read_samples(url: str) -> Generator[Any, None, None]:
    """The samples of a shard that hold a picture, as dicts of bytes by suffix."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with _opened(url) as stream:
        for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
            if not PICTURE_SUFFIXES.isdisjoint(sample):
                yield sample


def _samples_by_header(path: str) -> Iterator[Any]:
    """The same samples of a local shard, labels read, pictures left where they lie."""
    from webdataset.tariterators import group_by_keys

    def files(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else they pile up
            if member.isreg() and not META.match(member.name):
                wanted = member.name.rpartition(".")[2].lower() in (*LABEL_SUFFIXES, "json")
                content = tar.extractfile(member) if wanted else None
                yield {"fname": member.name, "data": content.read() if content else b"", "__url__": path}

    with tarfile.open(Path(path).expanduser()) as tar:
        for sample in group_by_keys(files(tar)):
            if not PICTURE_SUFFIXES.isdisjoint(sample):
                yield sample


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Any]:
    if "://" not in url:
        with Path(url).expanduser().open("rb") as file:
            yield file
        return
    import fsspec

    with fsspec.open(url, "rb").open() as file:
        yield file


def _picture(sample: dict[str, Any]) -> bytes:
    return next(bytes(value) for key, value in sample.items() if key in PICTURE_SUFFIXES)


def _label(sample: dict[str, Any]) -> str | None:
    for suffix in LABEL_SUFFIXES:
        if suffix in sample:
            return bytes(sample[suffix]).decode("utf-8", "replace").strip()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return str(json.loads(sample["json"])["label"])
    return None


def _open(urls: list[str], source: str, classes: list[str] | None, counts_will_do: bool) -> ShardImages:
    counts = _stated_counts(urls) if counts_will_do else None
    if counts is not None:
        return ShardImages(Path(source).name, urls, counts)
    console = Console(stderr=True)
    shown = track(urls, "reading shards", console=console, transient=True, disable=not console.is_terminal)
    contents = [_contents(url) for url in shown]
    found = ShardImages(Path(source).name, urls, [len(c) for c in contents])
    if not len(found):
        raise InputError(f"data: no picture in the shards of {source} ({', '.join(sorted(PICTURE_SUFFIXES))})")
    labels = [label for c in contents for label in c]
    if all(label is not None for label in labels):
        found.labels, found.classes = numbered([str(label) for label in labels], classes)
    return found


def _stated_counts(urls: list[str]) -> list[int] | None:
    import fsspec

    try:
        with fsspec.open(f"{urls[0].rpartition('/')[0] or '.'}/{COUNTS}", "rt").open() as file:
            sizes = json.load(file)
        return [int(sizes[url.rpartition("/")[2]]) for url in urls]
    except Exception:  # absent or not this kind of file: the shards are counted instead
        return None


def _contents(url: str) -> list[str | None]:
    """The label, or None, of each picture of a shard; kept, as long as the shard does not change."""
    kept = data_home() / "shards" / f"{hashlib.sha256(_version(url).encode()).hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError):
        labels: list[str | None] = json.loads(kept.read_text())
        return labels
    labels = []
    for attempt in range(RETRIES + 1):
        labels = []
        try:
            for sample in read_samples(url) if "://" in url else _samples_by_header(url):
                labels.append(_label(sample))
            break
        except Exception as error:
            if _passing(url, error) and attempt < RETRIES:
                time.sleep(PAUSE * 2**attempt)
                continue
            if not labels and not isinstance(error, tarfile.TarError):
                raise InputError(f"data: {url} cannot be read ({' '.join(str(error).split())[:200]})") from error
            return labels  # a shard that breaks off has what comes before; not kept, it may be whole next time
    with replacing(kept) as path:
        path.write_text(json.dumps(labels))
    return labels


def _version(url: str) -> str:
    if "://" in url:
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        with contextlib.suppress(Exception):
            info = files.info(path)
            return f"{url} {info.get('size')} {info.get('ETag') or info.get('etag') or info.get('mtime')}"
        return url
    state = os.stat(Path(url).expanduser())
    return f"{Path(url).expanduser().resolve()} {state.st_size} {state.st_mtime_ns}"
