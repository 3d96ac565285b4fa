"""Shared code of the tracking tasks (sot, vos, mot, mots, pose): settings, loop over sequences, resuming, outputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from mec.engine.progress import ProgressBar
from mec.engine.run_folder import write_or_compare_settings
from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import count
from mec.evaluate.tracking.datasets.video import VideoWriter, check_video_path
from mec.evaluate.tracking.dense_features import DenseFeatures, Precision
from mec.evaluate.tracking.sequences import (
    UNUSABLE,
    BoxSequence,
    DetectionSequence,
    Frame,
    MaskSequence,
    Scores,
    SequenceError,
    SequenceLoaders,
)
from mec.files import atomic_write
from mec.models.encoder import EncoderLike
from mec.results import DatasetSummary, Protocol, Result, Stopwatch, to_metrics

logger = logging.getLogger("mec")

METRICS, TRACKS, PREVIEWS = "metrics.json", "tracks", "previews"
MAX_PREVIEWS, MAX_PREVIEW_SIDE = 3, 960  # sequences with a preview, and its longer side in pixels


@dataclass(frozen=True)
class TrackingSettings:
    """Settings of all tracking tasks.

    Args:
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        sequences: names of sequences to use, or patterns such as [*-FRCNN]; null: all.
        out: folder for the tracks, in the format of the benchmark, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """

    stage: str = "s3"
    sequences: Sequence[str] | None = None
    out: str | os.PathLike[str] | None = None
    resume: bool = False
    render: str | os.PathLike[str] | None = None
    precision: Precision = "auto"


S = TypeVar("S", BoxSequence, MaskSequence, DetectionSequence)
T = TypeVar("T")  # output of a tracker for one frame
DrawFrame = Callable[[int, Frame], Frame]  # draws the tracks of frame number i on the frame


class TrackingRun(Generic[S]):
    """One evaluation: its encoder, sequences and output folder. All arguments are checked before tracking begins.

    ``protocol`` has the settings that decide whether two results are comparable, ``tracker_settings`` others that
    change the tracks; both are compared on resume. ``skipped`` are the reasons of unusable sequences by name.
    """

    def __init__(
        self,
        task: str,
        data: str | os.PathLike[str],
        encoder: EncoderLike,
        loaders: SequenceLoaders[S],
        settings: TrackingSettings,
        protocol: Mapping[str, Any],
        tracker_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.clock = Stopwatch()
        self.task, self.data, self.resume = task, data, settings.resume
        self.sequences: list[S] = []
        self.skipped: dict[str, str] = {}
        for name, load in loaders.items():
            try:
                self.sequences.append(load())
            except UNUSABLE as error:
                self._skip(name, error)
        self._check_usable()
        number = count(len(self.sequences), "sequence")
        if self.skipped:
            number = f"{len(self.sequences):,} of {count(len(loaders), 'sequence')}"
        objects = sum(sequence.objects for sequence in self.sequences)
        frames = count(_count_frames(self.sequences), "frame")
        logger.info(f"data: {number}, {frames}, {count(objects, 'object')}; {loaders.description}")
        if not objects:
            raise InputError(f"data: no object is evaluated in any of {number} of {data}")
        if settings.resume and settings.out is None:
            raise InputError("out: expected the folder to resume, got none")
        self.render = None if settings.render is None else Path(settings.render).expanduser()
        if self.render is not None:
            check_video_path(self.render)
        self.dense = DenseFeatures(encoder, settings.stage, settings.precision)
        self.protocol = {**protocol, "stage": settings.stage, "precision": self.dense.precision}
        logger.info(f"encoder: {self.dense.description}, stride {self.dense.stride}")
        if settings.out is None:
            self._temporary = TemporaryDirectory(prefix="mec-")  # deleted together with this object
            self.folder = Path(self._temporary.name)
        else:
            self.folder = Path(settings.out).expanduser()
            weights = {"weights": weights_digest(self.dense), "encoder": self.dense.description}
            saved = {"task": task, **(tracker_settings or {}), **self.protocol, **weights}
            # the same weights may have moved
            write_or_compare_settings(self.folder, saved, settings.resume, changeable=["encoder."])

    def _skip(self, name: str, error: Exception) -> None:
        self.skipped[name] = str(error)
        logger.warning(f"{name}: left out: {error}")

    def _check_usable(self) -> None:
        if not self.sequences:
            name, reason = next(iter(self.skipped.items()))
            raise InputError(f"data: no sequence of {self.data} can be used; the first: {name}: {reason}")

    def track(
        self,
        tracker: Callable[[S], Iterator[T]],
        write: Callable[[Path, S, list[T]], None],
        read: Callable[[Path, S], list[T] | None],
        name: str = "",
    ) -> Callable[[S], list[T]]:
        """Track in all sequences, write the tracks of each as soon as it is complete, and return their reader. ``read``
        returns None or raises SequenceError or TextError if tracks are missing. ``name`` is the tracker's subfolder."""
        folder = self.folder / TRACKS / name
        self.frames, self.seconds, self.encoder_seconds = 0, 0.0, 0.0
        candidates, self.sequences = self.sequences, []

        def read_complete(sequence: S) -> list[T]:
            tracks = read(folder, sequence)
            if tracks is None:
                raise SequenceError(f"{folder}: no tracks of {sequence.name}")
            return tracks

        with ProgressBar(name or "tracking", _count_frames(candidates), unit="frames") as progress:
            for sequence in candidates:
                if self.resume:
                    with suppress(*UNUSABLE):
                        read_complete(sequence)
                        self.sequences.append(sequence)
                        progress.advance(len(sequence.frames))
                        continue
                start, encoder_start = time.perf_counter(), self.dense.seconds
                tracks = []
                try:
                    for output in tracker(sequence):
                        tracks.append(output)
                        progress.advance(1, partial(str, sequence.name))  # advance takes a function that returns text
                except SequenceError as error:
                    self._skip(sequence.name, error)
                    continue
                seconds, encoder_seconds = time.perf_counter() - start, self.dense.seconds - encoder_start
                self.frames, self.seconds = self.frames + len(tracks), self.seconds + seconds
                self.encoder_seconds += encoder_seconds
                write(folder, sequence, tracks)
                self.sequences.append(sequence)
                speed = f"{len(tracks) / seconds:.2f} per second"
                encoder_fraction = f"{encoder_seconds / seconds:.0%} of the time in the encoder"
                frames = count(len(tracks), "frame")
                logger.info(f"{name} {sequence.name}: {frames}, {speed}, {encoder_fraction}".lstrip())
        self._check_usable()
        return read_complete

    def finish(self, rows: Scores, scores: Scores, draw: Callable[[S], DrawFrame], **settings: Any) -> Result:
        """Write metrics.json (``scores``), a preview (the middle frame) of the first sequences, and the video if there
        is one. ``rows`` are the metrics of the result; ``settings`` are added to its protocol."""
        with atomic_write(self.folder / METRICS) as path:
            path.write_text(json.dumps({"metrics": scores, "skipped": self.skipped}, indent=2) + "\n")
        for sequence in self.sequences[:MAX_PREVIEWS]:
            middle = len(sequence.frames) // 2
            with suppress(SequenceError):  # resumed tracks: a frame may have become unreadable since
                for frame in islice(sequence.frames, middle, middle + 1):
                    image = Image.fromarray(draw(sequence)(middle, frame))
                    image.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
                    with atomic_write(self.folder / PREVIEWS / f"{sequence.name}.jpg") as path:
                        image.save(path, "JPEG", quality=90)
        if self.render is not None:
            self._write_video(self.render, draw)
        speed = "all tracks from an earlier run"
        if self.frames:
            rate, encoder_fraction = self.frames / self.seconds, self.encoder_seconds / self.seconds
            speed = f"{rate:.2f} frames per second, {encoder_fraction:.0%} of the time in the encoder"
        counts = {"sequences": len(self.sequences), "frames": _count_frames(self.sequences)}
        return Result(
            task=self.task,
            protocol=Protocol(f"{self.task}-unitrack", {**self.protocol, **settings}),
            dataset=DatasetSummary(str(self.data), counts),
            encoder=self.dense.description,
            rows={row: to_metrics(values) for row, values in rows.items()},
            seconds=self.clock(),
            skipped=self.skipped,
            note=speed,
        )

    def _write_video(self, file: Path, draw: Callable[[S], DrawFrame]) -> None:
        with (
            ProgressBar("drawing", _count_frames(self.sequences), unit="frames") as progress,
            VideoWriter(file, self.sequences[0].frames.frame_rate) as video,
        ):
            for sequence in self.sequences:
                video.caption, draw_frame = sequence.name, draw(sequence)
                for i, frame in enumerate(sequence.frames):
                    video.add(draw_frame(i, frame))
                    progress.advance(1)
        logger.info(f"wrote {file}")


def weights_digest(dense: DenseFeatures) -> str:
    """Return a short hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in dense.body.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _count_frames(sequences: Sequence[Any]) -> int:
    return sum(len(sequence.frames) for sequence in sequences)
