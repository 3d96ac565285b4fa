"""Sequential reading of the samples of a tar shard, local or remote."""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from mec.data.decode import EXTENSIONS

LABEL_SUFFIXES = ("cls", "label")
IMAGE_SUFFIXES = frozenset(e.lstrip(".") for e in EXTENSIONS)
METADATA_NAME = re.compile(r"__[^/]*__($|/)")
"""Names that webdataset skips."""
READ_TIMEOUT = 30.0
"""Seconds without data from an HTTP server after which a connection fails."""


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


def read_samples(
    url: str, labels_only: bool = False, range_requests: bool = True
) -> Generator[dict[str, Any], None, None]:
    """Yield the samples of a shard that hold an image.

    Args:
        url: path or URL of the shard.
        labels_only: skip the bytes of the images; for local shards.
        range_requests: request a few MB at a time from an HTTP server, so that the connection outlives pauses of the
            reader; False: one request, which returns all data up to a break of the connection.

    Yields:
        The files of a sample as {suffix: bytes}.
    """
    from webdataset.tariterators import group_by_keys

    def read_files(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        try:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                file = None if METADATA_NAME.match(member.name) or not member.isreg() else tar.extractfile(member)
                if file is None:
                    continue
                is_label = member.name.rpartition(".")[2].lower() in (*LABEL_SUFFIXES, "json")
                if labels_only and not is_label and member.size:
                    file.seek(-1, os.SEEK_END)  # reading the last byte fails if the file is truncated
                yield {"fname": member.name, "data": file.read(), "__url__": url}
        except Exception:
            yield {}  # makes group_by_keys yield the last sample before the error
            raise

    mode: Any = "r:*" if labels_only else "r|*"
    with _open(url, range_requests) as stream, tarfile.open(fileobj=stream, mode=mode, tarinfo=_StrictTarInfo) as tar:
        for sample in group_by_keys(read_files(tar)):
            if not IMAGE_SUFFIXES.isdisjoint(sample):
                yield sample


@contextlib.contextmanager
def _open(url: str, range_requests: bool) -> Iterator[Any]:
    if "://" not in url:
        with Path(url).expanduser().open("rb") as file:
            yield file
        return
    import fsspec

    options = fsspec_options(url)
    streaming_options = options | {"block_size": 0} if options else {}
    with contextlib.ExitStack() as stack:
        first_options = options if range_requests else streaming_options
        remote: Any = stack.enter_context(fsspec.open(url, "rb", **first_options).open())
        if streaming_options and range_requests and remote.size and remote.size > remote.blocksize:
            try:
                remote.seek(-1, os.SEEK_END)
                remote.read(1)
                remote.seek(0)
            except ValueError:  # the server does not support range requests
                remote = stack.enter_context(fsspec.open(url, "rb", **streaming_options).open())
        yield remote


def fsspec_options(url: str) -> dict[str, Any]:
    """Return the options with which fsspec opens ``url``.

    For HTTP they replace aiohttp's timeout for a whole download by a timeout between reads.
    """
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https"):
        return {}
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=READ_TIMEOUT, sock_read=READ_TIMEOUT)
    return {"client_kwargs": {"timeout": timeout} | fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})}
