"""Sequential reading of the samples of a tar shard, local or remote, with tarfile and fsspec.

The package ``webdataset`` is not used: it neither resumes in the same order, nor reads a shard up to its damage.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from mec.data.decode import EXTENSIONS

MAX_RETRIES = 3
RETRY_DELAY = 1.0  # seconds before the first retry of a shard, doubled before each further one
READ_TIMEOUT = 30.0  # seconds without data from an HTTP server after which a connection fails
IMAGE_SUFFIXES = frozenset(e.lstrip(".") for e in EXTENSIONS)
LABEL_SUFFIXES = ("cls", "label", "json")

IMAGE = "image"
Sample = dict[str, bytes]  # an image, by IMAGE, and the files beside it by those of LABEL_SUFFIXES that it has
Skipped = dict[str, list[str]]  # names of what is passed over, by kind


def read_samples(url: str, labels_only: bool = False, skipped: Skipped | None = None) -> Iterator[Sample]:
    """Yield the images of a shard. ``labels_only`` skips the bytes of the images in a local shard; what is passed over
    is added to ``skipped``.

    After an error that may be transient the shard is read from its start again, at most ``MAX_RETRIES`` times per
    sample. The error of the last attempt is raised; tarfile, fsspec and its back ends raise exceptions of many types.
    """
    num_read, attempt, range_requests = 0, 0, True
    while True:
        try:
            if skipped is not None:
                skipped.clear()
            for sample in itertools.islice(_read_tar(url, labels_only, range_requests, skipped), num_read, None):
                num_read, attempt = num_read + 1, 0
                yield sample
            return
        except Exception as error:
            if attempt == MAX_RETRIES or not _is_transient(url, error):
                raise
        time.sleep(RETRY_DELAY * 2**attempt)
        attempt, range_requests = attempt + 1, False


def _is_transient(url: str, error: BaseException) -> bool:
    """Return whether a retry may succeed: for every error of a URL except missing files and refused requests."""
    cause = _root_cause(error)
    status = getattr(cause, "status", None)
    # 408 is a timeout, 429 are too many requests
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return "://" in url and not refused and not isinstance(cause, FileNotFoundError)


def _root_cause(error: BaseException) -> BaseException:
    # fsspec raises FileNotFoundError for every URL that cannot be opened
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def error_reason(error: BaseException) -> str:
    """Return the message of the first cause of an error, in one line."""
    cause = _root_cause(error)
    return " ".join(str(cause).split())[:200] or type(cause).__name__


class _StrictTarInfo(tarfile.TarInfo):
    """A header parser that raises an error for a damaged header, where tarfile assumes the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(f"damaged tar header: {error}") from None
            raise


def _read_tar(url: str, labels_only: bool, range_requests: bool, skipped: Skipped | None) -> Iterator[Sample]:
    """Group neighboring files whose names are equal up to the first dot, and yield the images of each group."""
    mode: Any = "r:*" if labels_only else "r|*"
    group: dict[str, bytes] = {}  # by the rest of the name, in lower case
    key, error = "", None
    skipped = {} if skipped is None else skipped
    with _open(url, range_requests) as stream, tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictTarInfo) as tar:
        try:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith("."):
                    continue
                if not member.isreg():  # the file to which a link points may have been read already
                    skipped.setdefault("links", []).append(member.name)
                    continue
                if "." not in base:
                    skipped.setdefault("files without extension", []).append(member.name)
                    continue
                stem, suffix = base.split(".", 1)
                stem, suffix = member.name[: -len(base)] + stem, suffix.lower()
                if stem != key or suffix in group:
                    yield from _split_group(key, group, skipped)
                    key, group = stem, {}
                file = tar.extractfile(member)
                assert file is not None  # of a regular file
                if labels_only and suffix.rpartition(".")[2] not in LABEL_SUFFIXES and member.size:
                    file.seek(-1, os.SEEK_END)  # reading the last byte fails if the file is truncated
                group[suffix] = file.read()
        except Exception as exception:  # after the last sample
            error = exception
        yield from _split_group(key, group, skipped)
        if error is not None:
            raise error


def _split_group(key: str, group: dict[str, bytes], skipped: Skipped) -> Iterator[Sample]:
    """Yield the images of a group of files: the one whose suffix has no dot (a.jpg) and numbered ones (a.000.jpg), else
    all (a.left.jpg, a.right.jpg). Labels of an image are in a.000.cls, or a.cls for all of the group."""
    images = [suffix for suffix in group if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix][:1]
    chosen = plain + [suffix for suffix in images if suffix.rpartition(".")[0].isdecimal()] or images
    if group and not images:
        skipped.setdefault("samples without image", []).append(key)
    if others := [f"{key}.{suffix}" for suffix in images if suffix not in chosen]:
        skipped.setdefault("further images of a sample", []).extend(others)
    for suffix in chosen:
        prefix = suffix.rpartition(".")[0]
        sources = {label: f"{prefix}.{label}" if f"{prefix}.{label}" in group else label for label in LABEL_SUFFIXES}
        yield {IMAGE: group[suffix]} | {label: group[name] for label, name in sources.items() if name in group}


@contextlib.contextmanager
def _open(url: str, range_requests: bool) -> Iterator[Any]:
    """Open a shard. A URL is read in requests of a few MB, so that the connection outlives pauses of the reader.

    Where the server does not support that, or without ``range_requests``, one request reads the whole shard. It also
    returns the data before a break of the connection.
    """
    if "://" not in url:
        with Path(url).expanduser().open("rb") as file:
            yield file
        return
    options = fsspec_options(url)
    streaming = options | {"block_size": 0} if options else {}
    with contextlib.ExitStack() as stack:
        remote = stack.enter_context(fsspec.open(url, "rb", **(options if range_requests else streaming)).open())
        if streaming and range_requests and remote.size and remote.size > remote.blocksize:
            try:
                remote.seek(-1, os.SEEK_END)
                remote.read(1)
                remote.seek(0)
            except ValueError:  # the server does not support range requests
                remote = stack.enter_context(fsspec.open(url, "rb", **streaming).open())
        yield remote


def fsspec_options(url: str) -> dict[str, Any]:
    """Return options for HTTP: a timeout between reads in place of aiohttp's timeout for a whole download."""
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT)
    return {"client_kwargs": {"timeout": timeout} | fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})}
