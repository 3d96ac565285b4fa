"""The theory: the coding rate of a set of codes, the loss made of it, and what its spectrum tells. torch only."""

from mec.coding.loss import MECLoss
from mec.coding.rate import coding_length, coding_rate, cross_coding_rate
from mec.coding.spectrum import Health, alpha_req, effective_rank, health, rankme, spectral_norm

__all__ = [
    "Health",
    "MECLoss",
    "alpha_req",
    "coding_length",
    "coding_rate",
    "cross_coding_rate",
    "effective_rank",
    "health",
    "rankme",
    "spectral_norm",
]
