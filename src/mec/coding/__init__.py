"""Coding rates, the loss built on them and label-free health metrics of codes. Depends on torch only."""

from mec.coding.chunks import loss_in_chunks
from mec.coding.loss import MECLoss
from mec.coding.rate import coding_length, coding_rate, cross_coding_rate
from mec.coding.spectrum import Health, alpha_req, effective_rank, health, rank_metrics, rankme, spectral_norm
from mec.coding.sweep import sweep_distortion

__all__ = [
    "Health", "MECLoss", "alpha_req", "coding_length", "coding_rate", "cross_coding_rate", "effective_rank", "health",
    "loss_in_chunks", "rank_metrics", "rankme", "spectral_norm", "sweep_distortion",
]  # fmt: skip
