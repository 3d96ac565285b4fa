"""Reading a tar file of images forward, local or remote, sample by sample."""

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
META = re.compile(r"__[^/]*__($|/)")
"""What webdataset passes over."""
SILENCE = 30.0
"""Seconds without a byte from a server after which the connection is given up."""


class _Header(tarfile.TarInfo):
    """A damaged header is an error; tarfile alone takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(f"damaged tar header: {error}") from None
            raise


def read_samples(url: str, labels_only: bool = False, in_blocks: bool = True) -> Generator[dict[str, Any], None, None]:
    """The samples of a shard that hold an image, as dicts of bytes by suffix.

    ``labels_only``, for a local shard, leaves the images where they lie. ``in_blocks`` asks an http server for a few
    MB at a time, which bears a slow reader; without, what comes before a break is had up to the break.
    """
    from webdataset.tariterators import group_by_keys

    def files(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        try:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else they pile up
                content = None if META.match(member.name) or not member.isreg() else tar.extractfile(member)
                if content is None:
                    continue
                wanted = not labels_only or member.name.rpartition(".")[2].lower() in (*LABEL_SUFFIXES, "json")
                if not wanted and member.size:
                    content.seek(-1, os.SEEK_END)  # the last byte is there only if the others are
                yield {"fname": member.name, "data": content.read(), "__url__": url}
        except Exception:
            yield {}  # group_by_keys then gives the sample before the break
            raise

    mode: Any = "r:*" if labels_only else "r|*"
    with _opened(url, in_blocks) as stream, tarfile.open(fileobj=stream, mode=mode, tarinfo=_Header) as tar:
        for sample in group_by_keys(files(tar)):
            if not IMAGE_SUFFIXES.isdisjoint(sample):
                yield sample


@contextlib.contextmanager
def _opened(url: str, in_blocks: bool) -> Iterator[Any]:
    if "://" not in url:
        with Path(url).expanduser().open("rb") as file:
            yield file
        return
    import fsspec

    options = fsspec_options(url)
    at_once = options | {"block_size": 0} if options else {}
    with contextlib.ExitStack() as stack:
        remote: Any = stack.enter_context(fsspec.open(url, "rb", **(options if in_blocks else at_once)).open())
        if at_once and in_blocks and remote.size and remote.size > remote.blocksize:
            try:
                remote.seek(-1, os.SEEK_END)
                remote.read(1)
                remote.seek(0)
            except ValueError:  # the server gives no parts
                remote = stack.enter_context(fsspec.open(url, "rb", **at_once).open())
        yield remote


def fsspec_options(url: str) -> dict[str, Any]:
    """For http: a limit on silence in place of aiohttp's, which is on the whole download."""
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https"):
        return {}
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return {"client_kwargs": {"timeout": timeout} | fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})}
