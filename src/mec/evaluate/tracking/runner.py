"""Sequence after sequence: what all five tasks do around their trackers."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image

from mec.engine.progress import ProgressBar, log
from mec.errors import InputError
from mec.evaluate.drawing.tracks import VideoWriter, check_video_path
from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.sequences import Frame, Frames, Scores, SequenceError, SequenceLoaders
from mec.files import atomic_write
from mec.results import DatasetSummary

SETTINGS, FIGURES, TRACKS, DRAWN = "settings.json", "figures.json", "tracks", "drawn"
IMAGED, IMAGE_SIDE = 3, 960
"""Sequences of which a frame is drawn, and the pixels of its longer side at most."""


class Followable(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def frames(self) -> Frames: ...


S = TypeVar("S", bound=Followable)
X = TypeVar("X")


@dataclass
class Followed(Generic[S, X]):
    """sequences: those that could be used, in turn. broken: why others could not. tracks: of each by name, frame by
    frame, read from disk when they are asked for. frames, seconds: of tracking, without what was there before. share:
    of the seconds in the encoder."""

    sequences: list[S] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    tracks: Mapping[str, list[X]] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0
    share: float = 0.0

    @property
    def speed(self) -> str:
        """For people; "" where nothing was followed."""
        if not self.frames:
            return ""
        return f"{self.frames / self.seconds:.2f} frames a second, {self.share:.0%} of the time in the encoder"

    def summary(self, data: Source) -> DatasetSummary:
        frames = sum(len(sequence.frames) for sequence in self.sequences)
        return DatasetSummary(str(data), {"sequences": len(self.sequences), "frames": frames})


@dataclass(frozen=True)
class Keeping(Generic[S, X]):
    """How tracks of one sequence are written into a folder, and read again; ``read`` gives None, or raises
    SequenceError, where they are not there as a whole."""

    write: Callable[[Path, S, list[X]], None]
    read: Callable[[Path, S], list[X] | None]


class _OnDisk(Mapping[str, list[X]], Generic[S, X]):
    def __init__(self, folder: Path, sequences: list[S], keeping: Keeping[S, X]) -> None:
        self.folder, self.keeping = folder, keeping
        self.of = {one.name: one for one in sequences}

    def __getitem__(self, name: str) -> list[X]:
        tracks = self.keeping.read(self.folder, self.of[name])
        if tracks is None:
            raise InputError(f"out: the tracks of {name} in {self.folder} are not as they were written")
        return tracks

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


class Call:
    """What every task is asked for, checked before hours of work.

    Args:
        data: the source, for people.
        encoder: see Dense.
        stage: see Dense.
        half: see Dense.
        out: folder of the tracks; None takes one that goes with the call.
        resume: go on with what is in ``out``.
        render: film of all sequences; None makes none.
        settings: all else that decides what the tracks are.

    Raises:
        InputError: by Dense, or ``out`` has tracks already, of other settings when they are to be resumed.
    """

    def __init__(
        self,
        data: Source,
        encoder: EncoderLike,
        stage: str,
        half: bool | None,
        out: str | os.PathLike[str] | None,
        resume: bool,
        render: str | os.PathLike[str] | None,
        settings: dict[str, Any],
    ) -> None:
        if resume and out is None:
            raise InputError("out: expected the folder that --resume goes on with")
        self.data, self.resume = data, resume
        self.render = None if render is None else Path(render).expanduser()
        if self.render is not None:
            check_video_path(self.render)
        self.dense = Dense(encoder, stage, half)
        self.settings = {**settings, "stage": stage, "half": self.dense.half}
        log(f"encoder: {self.dense.description}, a cell every {self.dense.stride} pixels")
        if out is None:
            self._temporary = TemporaryDirectory(prefix="mec-")  # as long as this
            self.folder = Path(self._temporary.name)
        else:
            self.folder = Path(out).expanduser()
            self._begin(self.folder)

    @property
    def task(self) -> str:
        return str(self.settings["task"])

    def protocol_settings(self) -> dict[str, Any]:
        """Settings that decide whether two results compare."""
        return {name: value for name, value in self.settings.items() if name != "task"}

    def _begin(self, folder: Path) -> None:
        wanted = {**self.settings, "weights": weights_digest(self.dense), "encoder": self.dense.description}
        file = folder / SETTINGS
        if (folder / TRACKS).is_dir() and not self.resume:
            raise InputError(
                f"out: {folder} has tracks already; --resume goes on with them, --out with another folder begins anew"
            )
        if file.exists() and self.resume:
            try:
                had = dict(json.loads(file.read_text()))
            except (TypeError, ValueError) as error:
                raise InputError(f"out: {file} is damaged ({error})") from error
            other = [name for name in wanted if had.get(name) != wanted[name] and name != "encoder"]
            if other:
                name = other[0]
                raise InputError(
                    f"out: the tracks in {folder} are of {name} {had.get(name)!r}, expected {wanted[name]!r}"
                )
        try:
            with atomic_write(file) as path:
                path.write_text(json.dumps(wanted, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"out: {folder} cannot be written to ({error.strerror})") from error

    def keep_figures(self, scores: Scores, broken: dict[str, str]) -> None:
        with atomic_write(self.folder / FIGURES) as path:
            path.write_text(json.dumps({"figures": scores, "broken": broken}, indent=2) + "\n")


def counted(frames: int) -> str:
    return f"{frames:,} frame{'' if frames == 1 else 's'}"


def weights_digest(dense: Dense) -> str:
    digest = hashlib.sha256()
    for name, tensor in dense.body.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def loaded(data: Source, loads: SequenceLoaders[S]) -> Followed[S, Any]:
    """All sequences opened; what is wrong with one is said at once. Raises InputError where none is left."""
    followed: Followed[S, Any] = Followed()
    for name, load in loads.items():
        try:
            followed.sequences.append(load())
        except SequenceError as error:
            _break(followed, name, error)
    _expect_some(data, followed)
    return followed


def follow_all(
    call: Call,
    opened: Followed[S, Any],
    follow: Callable[[S], Iterator[X]],
    keeping: Keeping[S, X],
    part: str = "",
) -> Followed[S, X]:
    """The tracks of every sequence, each kept as soon as it is there.

    Args:
        call: where they are kept.
        opened: by ``loaded``.
        follow: gives what is found in each frame in turn.
        keeping: how they are kept.
        part: sub-folder, where a call has several trackers.
    """
    done: Followed[S, X] = Followed(broken=dict(opened.broken))
    folder = call.folder / TRACKS / part
    in_encoder = call.dense.seconds
    total = sum(len(one.frames) for one in opened.sequences)
    with ProgressBar(part or "following", total, unit="frames") as shown:
        for sequence in opened.sequences:
            if call.resume and _is_there(folder, sequence, keeping):
                shown.advance(len(sequence.frames))
                done.sequences.append(sequence)
                continue
            started, before = time.perf_counter(), call.dense.seconds
            tracks = []
            try:
                for found in follow(sequence):
                    tracks.append(found)
                    shown.advance(1, partial(str, sequence.name))
            except SequenceError as error:
                _break(done, sequence.name, error)
                continue
            taken = time.perf_counter() - started
            done.frames, done.seconds = done.frames + len(tracks), done.seconds + taken
            named, share = f"{part} {sequence.name}".strip(), (call.dense.seconds - before) / taken
            keeping.write(folder, sequence, tracks)
            done.sequences.append(sequence)
            log(f"{named}: {counted(len(tracks))}, {len(tracks) / taken:.2f} a second, {share:.0%} in the encoder")
    _expect_some(call.data, done)
    done.tracks = _OnDisk(folder, done.sequences, keeping)
    done.share = (call.dense.seconds - in_encoder) / done.seconds if done.seconds else 0.0
    return done


def _is_there(folder: Path, sequence: S, keeping: Keeping[S, X]) -> bool:
    try:
        return keeping.read(folder, sequence) is not None
    except SequenceError:  # not whole: followed anew
        return False


def _break(followed: Followed[Any, Any], name: str, error: SequenceError) -> None:
    followed.broken[name] = str(error)
    log(f"{name}: {error}")


def _expect_some(data: Source, followed: Followed[Any, Any]) -> None:
    if not followed.sequences:
        name, reason = next(iter(followed.broken.items()))
        raise InputError(f"data: no sequence of {data} can be used; the first: {name}: {reason}")


def film(call: Call, sequences: list[S], draw: Callable[[S], Callable[[int, Frame], Frame]]) -> None:
    """Every frame of every sequence, one after the other, as ``draw(sequence)(number, frame)`` has drawn over it; and
    the middle one of the first few in drawn/SEQUENCE.jpg beside the tracks."""
    for sequence in sequences[:IMAGED]:
        _image(call.folder / DRAWN / f"{sequence.name}.jpg", sequence, draw(sequence))
    if call.render is None:
        return
    path = call.render
    total = sum(len(one.frames) for one in sequences)
    with (
        ProgressBar("drawing", total, unit="frames") as shown,
        VideoWriter(path, sequences[0].frames.frame_rate) as drawn,
    ):
        for sequence in sequences:
            drawn.note, over = sequence.name, draw(sequence)
            for number, frame in enumerate(sequence.frames):
                drawn.add(over(number, frame))
                shown.advance(1)
    log(f"drawn: {path}")


def _image(path: Path, sequence: Followable, over: Callable[[int, Frame], Frame]) -> None:
    middle = len(sequence.frames) // 2
    with suppress(SequenceError):  # it was read for the tracks, which may be long ago
        frame = next(islice(sequence.frames, middle, None), None)
        if frame is not None:
            image = Image.fromarray(over(middle, frame))
            image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
            with atomic_write(path) as temporary:
                image.save(temporary, "JPEG", quality=90)
