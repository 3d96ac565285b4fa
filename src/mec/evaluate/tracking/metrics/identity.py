"""HOTA (Luiten et al. 2021), CLEAR MOT (Bernardin & Stiefelhagen 2008) and IDF1 (Ristani et al. 2016), by trackeval;
and trackeval's preprocessing of boxes for MOTChallenge and of masks for MOTS (Voigtlaender et al. 2019)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.mask_rows import CLASSES
from mec.evaluate.tracking.datasets.motchallenge import PEDESTRIAN, BoxGroundTruth
from mec.evaluate.tracking.datasets.mots import MaskGroundTruth, remove_overlaps
from mec.evaluate.tracking.sequences import DetectionSequence, Scores, Tracks

FRACTIONS = ("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR", "MOTA", "MOTP")
COUNTS = {"ID switches": "IDSW", "Frag": "Frag", "FP": "CLR_FP", "FN": "CLR_FN"}  # columns, and trackeval's names
CLASS = "pedestrian"  # trackeval's class under which all objects are evaluated: its rules for cars are the same


@dataclass(frozen=True)
class SequenceSimilarities:
    """Ids and similarities (ground truth objects, tracked objects) of each frame, preprocessed."""

    ground_truth_ids: Sequence[NDArray[np.int64]]
    track_ids: Sequence[NDArray[np.int64]]
    similarities: Sequence[NDArray[np.float64]]


def import_trackeval() -> ModuleType:
    """Return trackeval (Luiten), which only the extra ``tracking`` installs. Raises InputError where it is missing."""
    try:
        return importlib.import_module("trackeval")
    except ImportError as error:
        raise InputError(f"trackeval: {' '.join(str(error).split())}; pip install 'mec-ssl[tracking]'") from error


def box_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """Return the ids and IoUs after MOTChallenge's preprocessing: annotated pedestrians with a flag; except in MOT15,
    without tracked boxes that match a person on a vehicle, a standing person, a distractor or a reflection."""
    ground_truth: BoxGroundTruth = sequence.ground_truth
    details = {
        "gt_classes": ground_truth.classes,
        "gt_extras": [{"zero_marked": flags} for flags in ground_truth.flags],
        "tracker_confidences": [frame.scores for frame in tracks],
    }
    boxes = [frame.boxes for frame in tracks]
    options = {"BENCHMARK": ground_truth.benchmark}
    return _preprocess("MotChallenge2DBox", options, sequence, ground_truth.boxes, tracks, boxes, PEDESTRIAN, details)


def mask_similarities(sequence: DetectionSequence, tracks: Tracks) -> SequenceSimilarities:
    """Return the ids and IoUs after MOTS's preprocessing: tracks without overlaps, and without masks that match no
    object and have more than half of their pixels in an ignored region."""
    ground_truth: MaskGroundTruth = sequence.ground_truth
    tracks = [remove_overlaps(frame) for frame in tracks]
    masks = [list(frame.masks or ()) for frame in tracks]
    details = {
        "gt_classes": [np.full(len(ids), CLASSES[CLASS]) for ids in ground_truth.ids],
        "gt_ignore_region": ground_truth.ignored,
    }
    return _preprocess("MOTSChallenge", {}, sequence, ground_truth.masks, tracks, masks, CLASSES[CLASS], details)


def _preprocess(
    benchmark: str,
    options: dict[str, Any],
    sequence: DetectionSequence,
    true_objects: Sequence[Any],
    tracks: Tracks,
    tracked_objects: Sequence[Any],
    class_id: int,
    details: dict[str, Any],
) -> SequenceSimilarities:
    """Apply the rules of one of trackeval's datasets. ``details`` are further fields of its data."""
    track_ids = [frame.ids for frame in tracks if frame.ids is not None]
    assert len(track_ids) == len(tracks)
    with TemporaryDirectory() as folder:  # trackeval requires files although none is read
        Path(folder, "gt.txt").touch()
        config = {
            "GT_FOLDER": folder, "GT_LOC_FORMAT": "{gt_folder}/gt.txt", "TRACKERS_FOLDER": folder,
            "TRACKERS_TO_EVAL": [], "SEQ_INFO": {"": 0}, "SKIP_SPLIT_FOL": True, "PRINT_CONFIG": False,
        }  # fmt: skip
        dataset = getattr(import_trackeval().datasets, benchmark)(config | options)
    pairs = zip(true_objects, tracked_objects, strict=True)
    raw = {
        "num_timesteps": len(tracks),
        "seq": sequence.name,
        "gt_ids": contiguous_ids(sequence.ground_truth.ids),
        "gt_dets": true_objects,
        "tracker_ids": contiguous_ids(track_ids),
        "tracker_dets": tracked_objects,
        "tracker_classes": [np.full(len(objects), class_id) for objects in tracked_objects],
        "similarity_scores": [dataset._calculate_similarities(*pair) for pair in pairs],
    }
    data = dataset.get_preprocessed_seq_data(raw | details, CLASS)
    return SequenceSimilarities(data["gt_ids"], data["tracker_ids"], data["similarity_scores"])


def identity_scores(sequences: Mapping[str, SequenceSimilarities], hota: bool = True) -> Scores:
    """Compute a row for each sequence, and "all" from the summed counts of the sequences, not from the mean of rows.

    HOTA, DetA and AssA, which take most of the time and are omitted without ``hota``, are means over the thresholds
    0.05, 0.10, ... 0.95; the others use 0.5. Undefined values are 0: all fractions without ground truth or tracks.
    """
    library = import_trackeval().metrics
    quiet = {"PRINT_CONFIG": False}
    metrics = [library.CLEAR(dict(quiet)), library.Identity(dict(quiet)), *([library.HOTA()] if hota else [])]
    inputs = {name: _trackeval_input(sequence) for name, sequence in sequences.items()}
    rows: dict[str, dict[str, Any]] = {name: {} for name in [*inputs, "all"]}
    for metric in metrics:
        results = {name: metric.eval_sequence(data) for name, data in inputs.items()}
        for name, result in [*results.items(), ("all", metric.combine_sequences(results))]:
            rows[name].update(result)
    return {
        name: {
            **{column: float(np.mean(row[column])) for column in FRACTIONS if column in row},
            **{column: int(row[key]) for column, key in COUNTS.items()},
        }
        for name, row in rows.items()
    }


def _trackeval_input(sequence: SequenceSimilarities) -> dict[str, Any]:
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


def mots_scores(sequences: Mapping[str, SequenceSimilarities]) -> Scores:
    """Compute ``identity_scores`` with MOTSA and MOTSP for MOTA and MOTP, and sMOTSA, MOTSA in which a correct mask
    counts as its IoU. KITTI's sequences, such as "0002 car", also give a row for each class that is annotated, such as
    "all car"."""
    scores = _mots_rows(sequences)
    for category in CLASSES:
        of_category = {name: sequence for name, sequence in sequences.items() if name.endswith(f" {category}")}
        annotated = any(len(ids) for sequence in of_category.values() for ids in sequence.ground_truth_ids)
        if annotated and len(of_category) < len(sequences):
            scores[f"all {category}"] = _mots_rows(of_category)["all"]
    return scores


def _mots_rows(sequences: Mapping[str, SequenceSimilarities]) -> Scores:
    objects = {name: sum(map(len, sequence.ground_truth_ids)) for name, sequence in sequences.items()}
    objects["all"] = sum(objects.values())
    rows: Scores = {}
    for name, row in identity_scores(sequences).items():
        true_positives = (objects[name] - row["FN"]) * row["MOTP"]
        smotsa = (true_positives - row["FP"] - row["ID switches"]) / objects[name] if objects[name] else 0.0
        renamed = {{"MOTA": "MOTSA", "MOTP": "MOTSP"}.get(column, column): value for column, value in row.items()}
        rows[name] = {"sMOTSA": smotsa, **renamed}
    return rows
