"""Telling objects apart: what is found in each frame is joined to tracks, by how it looks and where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mec.errors import InputError
from mec.evaluate.tracking.motion import FAR, Motion
from mec.evaluate.tracking.sequences import Boxes
from mec.evaluate.tracking.similarity import reconstruction_similarity

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Association:
    """How tracks and findings are joined; the defaults are UniTrack's for boxes, by appearance alone.

    motion: share of the Kalman filter's distance in the cost of a pair (UniTrack's lambda is 1 - motion); 0 joins by
        appearance only, as representations are compared.
    gated: a pair further apart than motion explains is refused; only where ``motion`` is not 0.
    appearance_cost, overlap_cost, newcomer_cost: the highest at which a pair is joined: by appearance; by overlap with
        where a track is expected (1 - IoU); by overlap of a track that only the last frame has shown.
    duplicate_cost: tracks that overlap by more than 1 - this are one, and the older stays.
    confirmed: a track begins with one frame; False waits for a second (but not for those of the first frame).
    patience: frames, at 30 a second, that a track may be out of sight; as many more as its rate asks.
    published: as UniTrack's code has it, sets of cells are ``padded`` (see ``reconstruction_similarity``) and boxes
        overlap as if they were 1 wider and higher. False puts both right.
    appearance: False joins by motion alone: what the boxes are worth without an encoder.
    """

    motion: float = 0.0
    gated: bool = True
    appearance_cost: float = 0.7
    overlap_cost: float = 0.5
    newcomer_cost: float = 0.7
    duplicate_cost: float = 0.15
    confirmed: bool = False
    patience: int = 30
    published: bool = True
    appearance: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.motion < 1:
            raise InputError(f"motion: expected a share from 0 to below 1, got {self.motion}")
        if self.patience < 0:
            raise InputError(f"patience: expected a number of frames, got {self.patience}")


@dataclass
class Track:
    """One object: where it is believed to be, and what it looked like when it was last seen."""

    id: int
    motion: Motion
    look: Tensor | None
    began: int
    seen: int
    confirmed: bool
    lost: bool = False


@dataclass(frozen=True)
class _Seen:
    boxes: Boxes
    looks: Sequence[Tensor]

    def look(self, n: int) -> Tensor | None:
        return self.looks[n] if self.looks else None


class Associator:
    """Tracks of one video. ``step`` takes what was found in each frame in turn.

    Args:
        settings: see Association.
        rate: frames a second.
    """

    def __init__(self, settings: Association, rate: float = 30.0) -> None:
        self.settings = settings
        self.patience = int(rate / 30 * settings.patience)
        self.frame = 0
        self.tracks: list[Track] = []
        self.lost: list[Track] = []
        self.count = 0

    def step(self, boxes: Boxes, looks: Sequence[Tensor]) -> tuple[Ints, Ints, Boxes]:
        """What is found in the next frame: boxes (k, 4), and the features (d, cells) of each; none where
        ``appearance`` is False.

        Returns:
            Ids (n,) of the tracks that are in it, the number (n,) of what each was joined to, its box (n, 4) as the
            filter has it.
        """
        seen = _Seen(boxes, looks)
        self.frame += 1
        joined: dict[int, Track] = {}
        known = [t for t in self.tracks if t.confirmed]
        newcomers = [t for t in self.tracks if not t.confirmed]
        candidates = known + self.lost
        for track in candidates:
            track.motion.predict(not track.lost)
        free = np.arange(len(boxes))
        pairs = assign(self._costs(candidates, seen), self.settings.appearance_cost)
        free = self._join(candidates, pairs, free, seen, joined)
        taken = {id(t) for t in joined.values()}
        rest = [t for t in known if id(t) not in taken]
        pairs = assign(1 - self._overlaps(_boxes(rest), boxes[free]), self.settings.overlap_cost)
        free = self._join(rest, pairs, free, seen, joined)
        pairs = assign(1 - self._overlaps(_boxes(newcomers), boxes[free]), self.settings.newcomer_cost)
        free = self._join(newcomers, pairs, free, seen, joined)
        for n in free.tolist():
            self.count += 1
            confirmed = self.settings.confirmed or self.frame == 1
            joined[n] = Track(self.count, Motion.of(boxes[n]), seen.look(n), self.frame, self.frame, confirmed)
        self._settle(joined)
        alive = {id(t) for t in self.tracks}
        shown = [(n, t) for n, t in joined.items() if t.confirmed and id(t) in alive]
        shown.sort(key=lambda pair: pair[1].id)
        ids, numbers = np.array([t.id for _, t in shown], np.int64), np.array([n for n, _ in shown], np.int64)
        return ids, numbers, _boxes([t for _, t in shown])

    def _overlaps(self, some: Boxes, others: Boxes) -> Floats:
        wider = [0, 0, 1, 1] if self.settings.published else [0, 0, 0, 0]
        return overlaps(some + wider, others + wider)

    def _costs(self, tracks: list[Track], seen: _Seen) -> Floats:
        if not self.settings.appearance:
            return np.ones((len(tracks), len(seen.boxes)))
        looks = [t.look for t in tracks if t.look is not None]
        costs = 1 - reconstruction_similarity(looks, seen.looks, self.settings.published)
        if self.settings.motion and len(seen.boxes):
            for row, track in enumerate(tracks):
                away = track.motion.distances(seen.boxes)
                costs[row] = (1 - self.settings.motion) * costs[row] + self.settings.motion * away
                if self.settings.gated:
                    costs[row, away > FAR] = np.inf
        return costs

    def _join(
        self, tracks: list[Track], pairs: list[tuple[int, int]], free: Ints, seen: _Seen, joined: dict[int, Track]
    ) -> Ints:
        """What is left of ``free``, numbers of findings, of which the pairs name the places."""
        for row, place in pairs:
            n = int(free[place])
            track = joined[n] = tracks[row]
            track.motion.update(seen.boxes[n])
            track.look, track.seen, track.confirmed, track.lost = seen.look(n), self.frame, True, False
        return np.delete(free, [place for _, place in pairs])

    def _settle(self, joined: dict[int, Track]) -> None:
        """Who is followed and who is lost, after this frame. A newcomer that was not seen again is forgotten."""
        here = sorted(joined.values(), key=lambda t: t.id)
        seen = {id(t) for t in here}
        for track in [*self.tracks, *self.lost]:
            if id(track) not in seen:
                track.lost = True
        missed = [t for t in [*self.lost, *self.tracks] if t.lost and t.confirmed]
        # UniTrack forgets a track a frame after it says so
        missed = [t for t in missed if self.frame - t.seen <= self.patience + 1]
        same = np.argwhere(1 - self._overlaps(_boxes(here), _boxes(missed)) < self.settings.duplicate_cost)
        older = [here[i].seen - here[i].began > missed[j].seen - missed[j].began for i, j in same]
        doubled = {int(i) for (i, _), stays in zip(same, older, strict=True) if not stays}
        gone = {int(j) for (_, j), stays in zip(same, older, strict=True) if stays}
        self.tracks = [t for i, t in enumerate(here) if i not in doubled]
        self.lost = [t for j, t in enumerate(missed) if j not in gone]


def assign(costs: Floats, limit: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of least total cost, where leaving a pair apart costs ``limit``."""
    gains = np.minimum(np.where(np.isnan(costs), np.inf, costs) - limit, 0.0)
    rows, columns = linear_sum_assignment(gains)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if gains[r, c] < 0]


def overlaps(some: Boxes, others: Boxes) -> Floats:
    """IoU (k, l) of boxes (k, 4) and (l, 4)."""
    start = np.maximum(some[:, None, :2], others[None, :, :2])
    stop = np.minimum((some[:, :2] + some[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    shared = np.clip(stop - start, 0, None).prod(2)
    joint = some[:, 2:].prod(1)[:, None] + others[:, 2:].prod(1)[None] - shared
    share: Floats = np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)
    return share


def _boxes(tracks: Sequence[Track]) -> Boxes:
    return np.array([t.motion.box() for t in tracks]).reshape(-1, 4)
