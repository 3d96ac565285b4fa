"""Video frames as images: every n-th frame is decoded once and cached as a JPEG."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mec.data.dataset import FileDataset, Splits, encode_labels, log_progress
from mec.data.datasets.arrays import data_home
from mec.data.datasets.folder import list_files, open_subfolders, walk_folders
from mec.data.decode import EXTENSIONS
from mec.errors import InputError

VIDEO_EXTENSIONS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
JPEG_QUALITY = 95


def is_video(path: Path) -> bool:
    """Return whether ``path`` is a video, or a folder that holds videos and no images at any depth."""
    if path.is_file():
        return path.suffix.lower() in VIDEO_EXTENSIONS
    if not path.is_dir():
        return False
    has_video = False
    for _, files in walk_folders(os.fspath(path)):
        extensions = {os.path.splitext(f)[1].lower() for f in files}
        if extensions & EXTENSIONS:
            return False
        has_video = has_video or bool(extensions & VIDEO_EXTENSIONS)
    return has_video


def open_videos(path: Path, frame_stride: int | None = None) -> Splits:
    """Open every n-th frame of a video (None: one per second), or of each in a folder, with labels as for images.

    Frames are cached in ``data_home()/frames``. Of a damaged video, the frames that can be decoded are used, if any.
    """
    return open_subfolders(partial(_open_split, frame_stride), path)


def _open_split(frame_stride: int | None, path: Path, classes: list[str] | None) -> FileDataset:
    try:
        import av
    except ImportError as error:
        raise InputError(f"data: {path} needs a video decoder; pip install 'mec-ssl[video]'") from error
    folder = path.parent if path.is_file() else path
    videos = [path.name] if path.is_file() else list_files(folder)[0]
    videos = [v for v in videos if os.path.splitext(v)[1].lower() in VIDEO_EXTENSIONS]
    cache = data_home() / "frames"
    cache.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    folder_names: list[str] = []
    ignored_files = 0
    for video in log_progress(videos, "reading frames"):
        try:
            stat = (folder / video).resolve().stat()
        except OSError:  # a dangling link
            ignored_files += 1
            continue
        # a video that has changed, or another stride, gets another cache folder
        key = f"{(folder / video).resolve()} {stat.st_size} {stat.st_mtime_ns} {frame_stride}"
        frame_folder = cache / f"{Path(video).stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not frame_folder.is_dir():
            _extract_frames(av, folder / video, frame_folder, frame_stride)
        frames = sorted(os.listdir(frame_folder))
        ignored_files += not frames
        names += [os.path.join(frame_folder.name, f) for f in frames]
        folder_names += [video.split(os.sep, 1)[0]] * len(frames)
    if not names:
        raise InputError(f"data: cannot read any frame of {path}")
    dataset = FileDataset(path.stem, cache, names, ignored_files=ignored_files)
    if not any(name in videos for name in folder_names):
        dataset.labels, dataset.classes = encode_labels(folder_names, classes)
    return dataset


def decode_frames(
    av: Any, container: Any, stream: Any, onerror: Callable[[Exception], None] | None = None
) -> Iterator[Any]:
    """Yield the frames of a video; damaged packets are skipped after a call of ``onerror``."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError as error:
            if onerror:
                onerror(error)


def to_upright_rgb(frame: Any) -> NDArray[np.uint8]:
    """Return a frame as (h, w, 3) RGB, rotated by the rotation in its metadata, which phones write."""
    quarter_turns = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


def _extract_frames(av: Any, video: Path, out: Path, frame_stride: int | None) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as temporary:
        frames = Path(temporary) / "frames"
        frames.mkdir()
        # frames before a damage are kept
        with contextlib.suppress(av.FFmpegError, IndexError), av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stride = frame_stride or max(1, round(float(stream.average_rate or 1)))
            for index, frame in enumerate(decode_frames(av, container, stream)):
                if index % stride == 0:
                    Image.fromarray(to_upright_rgb(frame)).save(frames / f"{index:08}.jpg", quality=JPEG_QUALITY)
        with contextlib.suppress(OSError):  # another process has extracted the same frames
            frames.rename(out)
