"""MEC as one more term in the loss of somebody else's LightningModule, whose code stays as it is.

    python examples/as_a_callback.py [--epochs 12] [--labels 5] [--images 1347]

``Classifier`` stands for the model that you have. It learns the digits of scikit-learn from a few labels a class, first
alone, then with ``MaximumEntropyTerm``, which adds the objective on all training digits, without labels. Prints the
accuracy of both on 450 test digits. One CPU core: about a minute.
"""

from __future__ import annotations

import functools
from typing import Any

import lightning
import timm
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from mec import MECLoss, TwoViews, open_dataset
from mec.data import ViewSettings

SIZE = 32
VIEW = ViewSettings(crop_scale=(0.5, 1.0), flip=0.0, rotation=20, color_jitter=1.0, blur=0.0)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Classifier(lightning.LightningModule):
    """Somebody else's: it knows nothing of mec."""

    def __init__(self) -> None:
        super().__init__()
        small = {"layers": (1, 1, 1, 1), "channels": (32, 64, 96, 128), "zero_init_last": False}
        self.backbone = timm.create_model("resnet18", num_classes=0, in_chans=1, **small)
        self.head = nn.Linear(128, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class MaximumEntropyTerm(lightning.Callback):
    """Adds ``weight`` x MECLoss of unlabeled images' embeddings to what ``training_step`` returns.

    Nowhere else: lightning clears the gradients between ``training_step`` and its own backward pass, so what a hook
    before that leaves there is lost; and a backward pass in a later hook would go without what lightning does to the
    loss (scaling in float16, accumulation, the exchange between devices). The embeddings are the module's own and the
    loss has no weights, so that optimizer and checkpoints stay as they were.
    """

    def __init__(self, images: Tensor, encoder: str, weight: float = 1.0, batch: int = 128) -> None:
        self.images, self.encoder, self.weight, self.batch = images, encoder, weight, batch
        self.views, self.loss = TwoViews(SIZE, VIEW, VIEW), MECLoss()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError("a module that optimizes by hand returns no loss that a term could be added to")
        step = pl_module.training_step

        @functools.wraps(step)  # lightning looks at its arguments
        def with_term(*given: Any, **named: Any) -> Any:
            found = step(*given, **named)
            if found is None:  # the module leaves this batch out
                return None
            term = self.weight * self.term(pl_module)
            return found | {"loss": found["loss"] + term} if isinstance(found, dict) else found + term

        pl_module.training_step = with_term  # the object's comes before its class's, for DDP as well

    def term(self, pl_module: Any) -> Tensor:
        chosen = torch.randint(len(self.images), (self.batch,))
        x1, x2 = self.views(self.images[chosen].to(pl_module.device), chosen, pl_module.global_step)
        encoder = pl_module.get_submodule(self.encoder)
        return self.loss((encoder(x1), encoder(x2)))

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.__dict__.pop("training_step", None)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def main(epochs: int = 12, labels: int = 5, images: int = 1347) -> None:
    """Train the classifier without and with the term.

    Args:
        epochs: of as many steps as pass over the unlabeled images.
        labels: labeled images a class.
        images: unlabeled ones.
    """
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(part.images).permute(0, 3, 1, 2), torch.from_numpy(part.labels))
        for part in (open_dataset("digits", "train"), open_dataset("digits", "test"))
    )
    chosen = torch.cat([(y == digit).nonzero()[:labels, 0] for digit in range(10)])
    few = TensorDataset(enlarged(x[chosen]), y[chosen])
    steps = epochs * (images // 128)
    loader = DataLoader(few, len(few), sampler=RandomSampler(few, replacement=True, num_samples=steps * len(few)))
    for name, callbacks in (("alone", []), ("with the term", [MaximumEntropyTerm(x[:images], "backbone")])):
        lightning.seed_everything(0, verbose=False)
        model = Classifier()
        lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **QUIET).fit(model, loader)
        with torch.no_grad():
            scores = model.head(model.eval().backbone(enlarged(x_test)))
        print(f"{name:13}  accuracy {(scores.argmax(1) == y_test).float().mean():.1%}")


def enlarged(images: Tensor) -> Tensor:
    return F.interpolate(images / 255, (SIZE, SIZE), mode="bilinear", antialias=True)


if __name__ == "__main__":
    auto_cli(main)
