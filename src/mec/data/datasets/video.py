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

from mec.data.dataset import FileDataset, count_skipped, log_progress
from mec.data.datasets.arrays import data_home
from mec.data.datasets.folder import list_files, open_subfolders, walk_folders
from mec.data.decode import EXTENSIONS
from mec.data.splits import Splits, set_labels
from mec.errors import InputError

VIDEO_EXTENSIONS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
JPEG_QUALITY = 95
MAX_EXCESS = 1000  # of images over videos, from which on the rest of a folder is not searched for videos


def is_video(path: Path) -> bool:
    """Return whether ``path`` is a video, or a folder that holds more videos than images at any depth.

    Raises InputError if it holds as many videos as images.
    """
    if path.is_file():
        return path.suffix.lower() in VIDEO_EXTENSIONS
    if not path.is_dir():
        return False
    videos, images = 0, 0
    for _, files in walk_folders(os.fspath(path)):
        extensions = [os.path.splitext(f)[1].lower() for f in files]
        videos += sum(extension in VIDEO_EXTENSIONS for extension in extensions)
        images += sum(extension in EXTENSIONS for extension in extensions)
        if images > videos + MAX_EXCESS:
            return False
    if videos and videos == images:
        raise InputError(f"data: {path} has {videos} videos and as many images, expected one kind; move the others")
    return videos > images


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
    files, skipped = ([path.name], {}) if path.is_file() else list_files(folder)
    videos = [v for v in files if os.path.splitext(v)[1].lower() in VIDEO_EXTENSIONS]
    cache = data_home() / "frames"
    cache.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    folder_names: list[str] = []
    unreadable: list[str] = []
    for video in log_progress(videos, "reading frames"):
        try:
            stat = (folder / video).resolve().stat()
        except OSError:  # a dangling link
            unreadable.append(video)
            continue
        # a video that has changed, or another stride, gets another cache folder
        key = f"{(folder / video).resolve()} {stat.st_size} {stat.st_mtime_ns} {frame_stride}"
        frame_folder = cache / f"{Path(video).stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not frame_folder.is_dir():
            _extract_frames(av, folder / video, frame_folder, frame_stride)
        frames = sorted(os.listdir(frame_folder))
        if not frames:
            unreadable.append(video)
        names += [os.path.join(frame_folder.name, f) for f in frames]
        folder_names += [video.split(os.sep, 1)[0]] * len(frames)
    if not names:
        raise InputError(f"data: cannot read any frame of {path}")
    step = "one frame per second" if frame_stride is None else f"every frame_stride = {frame_stride} frames"
    layout = f"{step} of {len(videos) - len(unreadable):,} videos"
    dataset = FileDataset(path.stem, cache, names, layout=layout)
    count_skipped(dataset, "unreadable videos", unreadable)
    count_skipped(dataset, "files that are no videos", (f for f in files if f not in set(videos)))
    for kind, paths in skipped.items():
        count_skipped(dataset, kind, paths)
    if not any(name in videos for name in folder_names):
        set_labels(dataset, folder_names, classes)
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
