"""Coding rates, the loss built on them and label-free health metrics of codes. Depends on torch only."""

from mec.coding.chunks import loss_in_chunks
from mec.coding.loss import MECLoss, sweep_distortion
from mec.coding.rate import coding_length, coding_rate, cross_coding_rate
from mec.coding.spectrum import Health, alpha_req, effective_rank, health, rank_metrics, rankme, spectral_norm

__all__ = [
    "Health", "MECLoss", "alpha_req", "coding_length", "coding_rate", "cross_coding_rate", "effective_rank", "health",
    "loss_in_chunks", "rank_metrics", "rankme", "spectral_norm", "sweep_distortion",
]  # fmt: skip
