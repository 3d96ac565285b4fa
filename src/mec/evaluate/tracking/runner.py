"""Shared code of the tracking tasks (sot, vos, mot, mots, pose): checks, loop over sequences, resuming, outputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import torch

from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.drawing.video import check_video_path
from mec.evaluate.tracking.dense_features import DenseFeatures, Precision
from mec.evaluate.tracking.sequences import Frames, Scores, SequenceError, SequenceLoaders
from mec.files import atomic_write
from mec.models.encoder import EncoderLike
from mec.results import DatasetSummary, Protocol, Result, to_metrics

logger = logging.getLogger("mec")

SETTINGS, METRICS, TRACKS, PREVIEWS = "settings.json", "metrics.json", "tracks", "previews"
"""Files and folders in the output folder."""


class FrameSequence(typing.Protocol):
    """Protocol of the sequences of all tasks."""

    @property
    def name(self) -> str: ...

    @property
    def frames(self) -> Frames: ...


S = TypeVar("S", bound=FrameSequence)
T = TypeVar("T")
"""Output of a tracker for one frame."""


@dataclass
class TrackedSequences(Generic[S, T]):
    """Usable sequences and their tracks.

    sequences: in the order of the dataset.
    skipped: name of each unusable sequence -> reason.
    tracks: name -> output of the tracker for every frame, read from disk on access.
    frames, seconds: frames tracked in this run and the time it took, without tracks that were resumed.
    encoder_fraction: fraction of ``seconds`` spent in the encoder.
    """

    sequences: list[S] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    tracks: Mapping[str, list[T]] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0
    encoder_fraction: float = 0.0

    @property
    def speed(self) -> str:
        """Describe the speed of this run."""
        if not self.frames:
            return "all tracks from an earlier run"
        frame_rate = self.frames / self.seconds
        return f"{frame_rate:.2f} frames per second, {self.encoder_fraction:.0%} of the time in the encoder"

    def skip(self, name: str, error: SequenceError) -> None:
        """Record and log an unusable sequence."""
        self.skipped[name] = str(error)
        logger.info(f"{name}: {error}")

    def check_not_empty(self, data: object) -> None:
        """Raise InputError if no sequence is usable."""
        if not self.sequences:
            name, reason = next(iter(self.skipped.items()))
            raise InputError(f"data: no sequence of {data} can be used; the first: {name}: {reason}")


@dataclass(frozen=True)
class TrackFormat(Generic[S, T]):
    """Writer and reader of the tracks of one sequence in a folder.

    ``read`` returns None or raises SequenceError if the tracks are missing or incomplete.
    """

    write: Callable[[Path, S, list[T]], None]
    read: Callable[[Path, S], list[T] | None]


class _TracksOnDisk(Mapping[str, list[T]], Generic[S, T]):
    def __init__(self, folder: Path, sequences: list[S], track_format: TrackFormat[S, T]) -> None:
        self.folder, self.format = folder, track_format
        self.sequences = {sequence.name: sequence for sequence in sequences}

    def __getitem__(self, name: str) -> list[T]:
        tracks = self.format.read(self.folder, self.sequences[name])
        if tracks is None:
            raise InputError(f"out: the tracks of {name} in {self.folder} have changed since they were written")
        return tracks

    def __iter__(self) -> Iterator[str]:
        return iter(self.sequences)

    def __len__(self) -> int:
        return len(self.sequences)


class TrackingRun:
    """One evaluation: its encoder, settings and output folder. All arguments are checked before tracking begins.

    Args:
        task: sot, vos, mot, mots or pose.
        data: path of the dataset, for messages and the result.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        stage: feature map of the encoder, s3 or s4 (see DenseFeatures).
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
        out: folder of the tracks; None uses a temporary one.
        resume: continue with the tracks in ``out``.
        render: video file to write, of all sequences with their tracks; None writes none.
        protocol: settings that decide whether two results are comparable. Stage and precision are added.
        tracker_settings: further settings that change the tracks, compared on resume.

    Raises:
        InputError: an argument that DenseFeatures rejects, a path that cannot be written to, ``resume`` without
            ``out``, existing tracks in ``out`` without ``resume``, or tracks with other settings.
    """

    def __init__(
        self,
        task: str,
        data: str | os.PathLike[str],
        encoder: EncoderLike,
        stage: str,
        precision: Precision,
        out: str | os.PathLike[str] | None,
        resume: bool,
        render: str | os.PathLike[str] | None,
        protocol: Mapping[str, Any],
        tracker_settings: Mapping[str, Any] | None = None,
    ) -> None:
        if resume and out is None:
            raise InputError("out: expected the folder to resume, got none")
        self.task, self.data, self.resume = task, data, resume
        self.render = None if render is None else Path(render).expanduser()
        if self.render is not None:
            check_video_path(self.render)
        self.dense = DenseFeatures(encoder, stage, precision)
        self.protocol = {**protocol, "stage": stage, "precision": self.dense.precision}
        logger.info(f"encoder: {self.dense.description}, stride {self.dense.stride}")
        if out is None:
            self._temporary = TemporaryDirectory(prefix="mec-")  # deleted together with this object
            self.folder = Path(self._temporary.name)
        else:
            self.folder = Path(out).expanduser()
            self._write_settings({"task": task, **(tracker_settings or {}), **self.protocol})

    def _write_settings(self, settings: dict[str, Any]) -> None:
        """Write settings.json after checking that existing tracks may be resumed with these settings."""
        settings = {**settings, "weights": weights_digest(self.dense), "encoder": self.dense.description}
        file = self.folder / SETTINGS
        if (self.folder / TRACKS).is_dir() and not self.resume:
            raise InputError(f"out: {self.folder} already has tracks; pass --resume, or another folder")
        if file.exists() and self.resume:
            try:
                existing = dict(json.loads(file.read_text()))
            except (TypeError, ValueError) as error:
                raise InputError(f"out: {file} is corrupt ({error})") from error
            for name, value in settings.items():
                if existing.get(name) != value and name != "encoder":  # the same weights may have moved
                    raise InputError(
                        f"out: expected tracks with {name} {value!r}, got {existing.get(name)!r} in {self.folder}"
                    )
        try:
            with atomic_write(file) as path:
                path.write_text(json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"out: {self.folder} is not writable ({error.strerror})") from error

    def write_metrics(self, metrics: Scores, skipped: Mapping[str, str]) -> None:
        """Write metrics.json: every metric of every sequence, and the skipped sequences."""
        with atomic_write(self.folder / METRICS) as path:
            path.write_text(json.dumps({"metrics": metrics, "skipped": dict(skipped)}, indent=2) + "\n")

    def result(self, tracked: TrackedSequences[Any, Any], rows: Scores, seconds: float, **settings: Any) -> Result:
        """Return the result of the task. ``settings`` are added to the protocol."""
        frames = sum(len(sequence.frames) for sequence in tracked.sequences)
        return Result(
            task=self.task,
            protocol=Protocol(f"{self.task}-unitrack", {**self.protocol, **settings}),
            dataset=DatasetSummary(str(self.data), {"sequences": len(tracked.sequences), "frames": frames}),
            encoder=self.dense.description,
            rows={row: to_metrics(values) for row, values in rows.items()},
            seconds=seconds,
            skipped=tracked.skipped,
            note=tracked.speed,
        )


def format_frame_count(frames: int) -> str:
    """Return "1 frame", "2,000 frames"."""
    return f"{frames:,} frame{'' if frames == 1 else 's'}"


def weights_digest(dense: DenseFeatures) -> str:
    """Return a short hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in dense.body.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_sequences(data: str | os.PathLike[str], loaders: SequenceLoaders[S]) -> TrackedSequences[S, Any]:
    """Load all sequences, and log and skip unusable ones. Raises InputError if none is usable."""
    loaded: TrackedSequences[S, Any] = TrackedSequences()
    for name, load in loaders.items():
        try:
            loaded.sequences.append(load())
        except SequenceError as error:
            loaded.skip(name, error)
    loaded.check_not_empty(data)
    return loaded


def track_all(
    run: TrackingRun,
    loaded: TrackedSequences[S, Any],
    tracker: Callable[[S], Iterator[T]],
    track_format: TrackFormat[S, T],
    name: str = "",
) -> TrackedSequences[S, T]:
    """Track in all sequences, and write the tracks of each as soon as it is complete.

    Args:
        run: evaluation whose folder the tracks are written to.
        loaded: sequences to track in.
        tracker: yields the output for each frame of a sequence in turn.
        track_format: how tracks are written and read.
        name: name of the tracker and its subfolder, if a run has several trackers.
    """
    tracked: TrackedSequences[S, T] = TrackedSequences(skipped=dict(loaded.skipped))
    folder = run.folder / TRACKS / name
    encoder_seconds = run.dense.seconds
    total = sum(len(sequence.frames) for sequence in loaded.sequences)
    with ProgressBar(name or "tracking", total, unit="frames") as progress:
        for sequence in loaded.sequences:
            if run.resume and _is_complete(folder, sequence, track_format):
                progress.advance(len(sequence.frames))
                tracked.sequences.append(sequence)
                continue
            start, encoder_start = time.perf_counter(), run.dense.seconds
            tracks = []
            try:
                for output in tracker(sequence):
                    tracks.append(output)
                    progress.advance(1, partial(str, sequence.name))  # advance takes a function that returns a text
            except SequenceError as error:
                tracked.skip(sequence.name, error)
                continue
            seconds = time.perf_counter() - start
            tracked.frames, tracked.seconds = tracked.frames + len(tracks), tracked.seconds + seconds
            track_format.write(folder, sequence, tracks)
            tracked.sequences.append(sequence)
            logger.info(
                f"{name} {sequence.name}: ".lstrip() + f"{format_frame_count(len(tracks))}, "
                f"{len(tracks) / seconds:.2f} per second, {(run.dense.seconds - encoder_start) / seconds:.0%} of the "
                "time in the encoder"
            )
    tracked.check_not_empty(run.data)
    tracked.tracks = _TracksOnDisk(folder, tracked.sequences, track_format)
    if tracked.seconds:
        tracked.encoder_fraction = (run.dense.seconds - encoder_seconds) / tracked.seconds
    return tracked


def _is_complete(folder: Path, sequence: S, track_format: TrackFormat[S, T]) -> bool:
    try:
        return track_format.read(folder, sequence) is not None
    except SequenceError:
        return False
