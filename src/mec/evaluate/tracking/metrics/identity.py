"""HOTA (Luiten et al. 2021), CLEAR MOT (Bernardin & Stiefelhagen 2008) and IDF1 (Ristani et al. 2016), by trackeval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.metrics.trackeval_library import import_trackeval
from mec.evaluate.tracking.sequences import Scores

FRACTIONS = ("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR", "MOTA", "MOTP")
COUNTS = {"ID switches": "IDSW", "Frag": "Frag", "FP": "CLR_FP", "FN": "CLR_FN"}
"""Columns, and trackeval's names."""


@dataclass(frozen=True)
class SequenceSimilarities:
    """Ids and similarities of one sequence, frame by frame, after the preprocessing of its benchmark.

    ground_truth_ids, track_ids: for each frame, the id of each object; no id occurs twice.
    similarities: one matrix per frame, (ground truth objects, tracked objects) in [0, 1].
    """

    ground_truth_ids: Sequence[NDArray[np.int64]]
    track_ids: Sequence[NDArray[np.int64]]
    similarities: Sequence[NDArray[np.float64]]


def identity_scores(sequences: Mapping[str, SequenceSimilarities], hota: bool = True) -> Scores:
    """Compute a row for each sequence, and "all" from the summed counts of the sequences, not from the mean of rows.

    Fractions are in [0, 1]; MOTA may be negative. HOTA, DetA and AssA are means over the thresholds 0.05, 0.10, ...
    0.95; the others use 0.5. Undefined values are 0: all fractions if there is no ground truth or no track.

    Args:
        sequences: at least one, by name.
        hota: whether to compute HOTA, DetA and AssA, which take most of the time.

    Raises:
        ValueError: similarities have another shape than the ids, or an id occurs twice in a frame.
        InputError: trackeval is not installed.
    """
    library = import_trackeval().metrics
    quiet = {"PRINT_CONFIG": False}
    metrics = [library.CLEAR(dict(quiet)), library.Identity(dict(quiet)), *([library.HOTA()] if hota else [])]
    inputs = {name: _trackeval_input(name, sequence) for name, sequence in sequences.items()}
    rows: dict[str, dict[str, Any]] = {name: {} for name in [*inputs, "all"]}
    for metric in metrics:
        results = {name: metric.eval_sequence(data) for name, data in inputs.items()}
        for name, result in [*results.items(), ("all", metric.combine_sequences(results))]:
            rows[name].update(result)
    return {name: _row(result) for name, result in rows.items()}


def _row(result: dict[str, Any]) -> dict[str, float]:
    fractions = {column: float(np.mean(result[column])) for column in FRACTIONS if column in result}
    return {**fractions, **{column: int(result[key]) for column, key in COUNTS.items()}}


def _trackeval_input(name: str, sequence: SequenceSimilarities) -> dict[str, Any]:
    frames = zip(sequence.ground_truth_ids, sequence.track_ids, sequence.similarities, strict=True)
    for number, (ground_truth_ids, track_ids, similarities) in enumerate(frames, 1):
        if similarities.shape != (expected := (len(ground_truth_ids), len(track_ids))):
            raise ValueError(f"{name}: frame {number}: expected similarities of {expected}, got {similarities.shape}")
        if any(len(np.unique(ids)) < len(ids) for ids in (ground_truth_ids, track_ids)):
            raise ValueError(f"{name}: frame {number} has an id twice")
    data: dict[str, Any] = {"num_timesteps": len(sequence.similarities), "similarity_scores": sequence.similarities}
    for key, all_ids in (("gt", sequence.ground_truth_ids), ("tracker", sequence.track_ids)):
        frame_ids = contiguous_ids(all_ids)
        data[f"{key}_ids"] = frame_ids
        data[f"num_{key}_ids"] = max((int(ids.max()) + 1 for ids in frame_ids if len(ids)), default=0)
        data[f"num_{key}_dets"] = sum(map(len, frame_ids))
    return data


def contiguous_ids(frames: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Renumber n ids from 0 to n - 1, because trackeval makes tables as long as the largest id."""
    if not frames:
        return []
    numbers = np.unique(np.concatenate(frames), return_inverse=True)[1]
    return np.split(numbers, np.cumsum([len(ids) for ids in frames])[:-1])
