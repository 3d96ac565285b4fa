"""Counting the images that could not be read while it trains."""

from __future__ import annotations

from typing import Any

import lightning
import torch.distributed

from mec.data.corrupt import CorruptImage, CorruptLog


class CorruptImageCallback(lightning.Callback):
    """Passes what the loaders lost on to ``skipped``; at the end of an epoch, what those of all processes lost."""

    def __init__(self, skipped: CorruptLog) -> None:
        self.skipped = skipped

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.skipped.add(batch.lost, len(batch.indices))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, self.skipped.reasons)
        self.skipped.add([CorruptImage(*item) for reasons in gathered for item in reasons.items()], self.skipped.images)
