"""Count the images that could not be read during training."""

from __future__ import annotations

from typing import Any

import lightning
import torch.distributed

from mec.data.corrupt import CorruptImage, CorruptLog


class CorruptImageCallback(lightning.Callback):
    """Adds the corrupt images of every batch to ``corrupt_log``, and at the end of an epoch those of all processes."""

    def __init__(self, corrupt_log: CorruptLog) -> None:
        self.corrupt_log = corrupt_log

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.corrupt_log.add(batch.corrupt, len(batch.indices))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, self.corrupt_log.reasons)
        corrupt = [CorruptImage(*item) for reasons in gathered for item in reasons.items()]
        self.corrupt_log.add(corrupt, self.corrupt_log.num_images)
