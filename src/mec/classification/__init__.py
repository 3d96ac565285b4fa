"""From a few labeled images to labels with probabilities for all others."""

from mec.classification.classify import Classification, classify

__all__ = ["Classification", "classify"]
