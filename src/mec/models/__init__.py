"""Encoders, the heads around them during training, and their files."""

from mec.models.baseline import untrained
from mec.models.encoder import Encoder, create_encoder
from mec.models.io import load_encoder, save_encoder
from mec.models.siamese import Predictor, Projector, Siamese

__all__ = [
    "Encoder",
    "Predictor",
    "Projector",
    "Siamese",
    "create_encoder",
    "load_encoder",
    "save_encoder",
    "untrained",
]
