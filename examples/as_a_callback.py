"""MEC as an additional term in the loss of an existing LightningModule, without changing its code.

    python examples/as_a_callback.py [--epochs 12] [--shots 5] [--images 1347]

``Classifier`` stands for your own model. It learns the digits of scikit-learn from a few labels per class, first
alone, then with ``MaximumEntropyTerm``, which adds the objective on all training digits, without labels. Prints the
accuracy of both on 450 test digits. Takes about a minute on one CPU core.
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
    """An existing model, written without mec."""

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
    """Add ``weight`` x MECLoss on embeddings of unlabeled images to the loss that ``training_step`` returns.

    The term is added to the returned loss because Lightning clears the gradients between ``training_step`` and its
    backward pass, so gradients from an earlier hook would be lost, and a backward pass in a later hook would miss
    float16 scaling, gradient accumulation and the synchronization between devices. The embeddings are those of the
    module and the loss has no weights: optimizer and checkpoints do not change.

    Args:
        images: unlabeled images (n, c, h, w), uint8.
        encoder: name of the submodule that returns embeddings.
        weight: weight of the term.
        batch_size: images in a step.
    """

    def __init__(self, images: Tensor, encoder: str, weight: float = 1.0, batch_size: int = 128) -> None:
        self.images, self.encoder, self.weight, self.batch_size = images, encoder, weight, batch_size
        self.views, self.loss = TwoViews(SIZE, VIEW, VIEW), MECLoss()

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError("pl_module: expected automatic optimization, got manual optimization")
        step = pl_module.training_step

        @functools.wraps(step)  # Lightning inspects the signature
        def with_term(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            if output is None:  # the module skips this batch
                return None
            term = self.weight * self.term(pl_module)
            return output | {"loss": output["loss"] + term} if isinstance(output, dict) else output + term

        pl_module.training_step = with_term  # an instance attribute hides the method of the class, also under DDP

    def term(self, pl_module: Any) -> Tensor:
        indices = torch.randint(len(self.images), (self.batch_size,))
        x1, x2 = self.views(self.images[indices].to(pl_module.device), indices, pl_module.global_step)
        encoder = pl_module.get_submodule(self.encoder)
        return self.loss((encoder(x1), encoder(x2)))

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.__dict__.pop("training_step", None)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def main(epochs: int = 12, shots: int = 5, images: int = 1347) -> None:
    """Train the classifier without and with the term.

    Args:
        epochs: passes over the unlabeled images.
        shots: labeled images per class.
        images: number of unlabeled images.
    """
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(dataset.images).permute(0, 3, 1, 2), torch.from_numpy(dataset.labels))
        for dataset in (open_dataset("digits", "train"), open_dataset("digits", "test"))
    )
    indices = torch.cat([(y == digit).nonzero()[:shots, 0] for digit in range(10)])
    labeled = TensorDataset(enlarge(x[indices]), y[indices])
    steps = epochs * (images // 128)
    sampler = RandomSampler(labeled, replacement=True, num_samples=steps * len(labeled))
    loader = DataLoader(labeled, len(labeled), sampler=sampler)
    for name, callbacks in (("alone", []), ("with the term", [MaximumEntropyTerm(x[:images], "backbone")])):
        lightning.seed_everything(0, verbose=False)
        model = Classifier()
        lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **QUIET).fit(model, loader)
        with torch.no_grad():
            scores = model.head(model.eval().backbone(enlarge(x_test)))
        print(f"{name:13}  accuracy {(scores.argmax(1) == y_test).float().mean():.1%}")


def enlarge(images: Tensor) -> Tensor:
    return F.interpolate(images / 255, (SIZE, SIZE), mode="bilinear", antialias=True)


if __name__ == "__main__":
    auto_cli(main)
