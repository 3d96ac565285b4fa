"""Downstream tasks, each a function ``(data, encoder, ...) -> Result``."""

from mec.evaluate.detection.detect import detect, predict
from mec.evaluate.few_shot import few_shot
from mec.evaluate.finetune import finetune
from mec.evaluate.knn import knn
from mec.evaluate.linear import linear
from mec.evaluate.tracking.mot import mot, mots, pose
from mec.evaluate.tracking.sot import sot
from mec.evaluate.tracking.track import track
from mec.evaluate.tracking.vos import vos
from mec.results import Result

__all__ = [
    "Result", "detect", "few_shot", "finetune", "knn", "linear", "mot", "mots", "pose", "predict",
    "sot", "track", "vos",
]  # fmt: skip
