"""Who is who: HOTA (Luiten et al. 2021), CLEAR (Bernardin & Stiefelhagen 2008), IDF1 (Ristani et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.metrics.trackeval_library import import_trackeval
from mec.evaluate.tracking.sequences import Scores

SHARES = ("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR", "MOTA", "MOTP")
COUNTS = {"switches": "IDSW", "fragmentations": "Frag", "false": "CLR_FP", "missed": "CLR_FN"}
"""Our names, and trackeval's."""


@dataclass(frozen=True)
class SequenceSimilarities:
    """Truth and tracks of one sequence, frame by frame, after whatever preprocessing the data set asks for.

    ground_truth_ids, track_ids: of each frame, one for every object, none twice.
    similarities: of each frame, (truth, found) in [0, 1].
    """

    ground_truth_ids: Sequence[NDArray[np.int64]]
    track_ids: Sequence[NDArray[np.int64]]
    similarities: Sequence[NDArray[np.float64]]


def identity_scores(compared: Mapping[str, SequenceSimilarities], hota: bool = True) -> Scores:
    """A row for each of one or more sequences, and "all", from the sums of their counts, not from the rows' means.

    Shares are in [0, 1], MOTA may be less. HOTA, DetA and AssA are means over thresholds 0.05, 0.10 ... 0.95, the
    others are at 0.5. What cannot be said is 0: every share where there is no truth or no track. HOTA takes most of the
    time; ``hota`` False leaves it, DetA and AssA out.

    Raises:
        ValueError: similarities of another shape than the ids, or an id twice in a frame.
        InputError: no trackeval.
    """
    known = import_trackeval().metrics
    quiet = {"PRINT_CONFIG": False}
    metrics = [known.CLEAR(dict(quiet)), known.Identity(dict(quiet)), *([known.HOTA()] if hota else [])]
    raw = {name: _as_trackeval(name, one) for name, one in compared.items()}
    rows: dict[str, dict[str, Any]] = {name: {} for name in [*raw, "all"]}
    for metric in metrics:
        each = {name: metric.eval_sequence(data) for name, data in raw.items()}
        for name, result in [*each.items(), ("all", metric.combine_sequences(each))]:
            rows[name].update(result)
    return {name: _row(result) for name, result in rows.items()}


def _row(result: dict[str, Any]) -> dict[str, float]:
    shares = {column: float(np.mean(result[column])) for column in SHARES if column in result}
    return {**shares, **{column: int(result[theirs]) for column, theirs in COUNTS.items()}}


def _as_trackeval(name: str, one: SequenceSimilarities) -> dict[str, Any]:
    for frame, parts in enumerate(zip(one.ground_truth_ids, one.track_ids, one.similarities, strict=True), 1):
        *ids, similarity = parts
        if similarity.shape != (expected := tuple(map(len, ids))):
            raise ValueError(f"{name}: frame {frame}: expected similarities of {expected}, got {similarity.shape}")
        if any(len(np.unique(those)) < len(those) for those in ids):
            raise ValueError(f"{name}: frame {frame} has an id twice")
    data: dict[str, Any] = {"num_timesteps": len(one.similarities), "similarity_scores": one.similarities}
    for theirs, frames in (("gt", contiguous_ids(one.ground_truth_ids)), ("tracker", contiguous_ids(one.track_ids))):
        data[f"{theirs}_ids"] = frames
        data[f"num_{theirs}_ids"] = max((int(ids.max()) + 1 for ids in frames if len(ids)), default=0)
        data[f"num_{theirs}_dets"] = sum(map(len, frames))
    return data


def contiguous_ids(frames: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The same with n ids from 0 to n - 1: trackeval makes tables as long as the largest."""
    if not frames:
        return []
    numbers = np.unique(np.concatenate(frames), return_inverse=True)[1]
    return np.split(numbers, np.cumsum([len(ids) for ids in frames])[:-1])
