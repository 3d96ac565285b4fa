"""The loss alone, in a plain PyTorch loop: torchvision's views, timm's encoder, and nothing of mec but ``MECLoss``.

    python examples/loss_in_a_loop.py [--epochs 12] [--batch 128] [--images 1347]

Learns the 8 x 8 digits of scikit-learn without their labels. Prints the loss of every epoch; then how many of 450 test
digits get the label of the nearest of 100 labeled ones, before and after. One CPU core: about a minute.
"""

from __future__ import annotations

import numpy as np
import timm
import torch
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torchvision.transforms import v2

from mec import MECLoss

SIZE, LABELED = 32, 100
# digits are gray and must not be flipped; torchvision draws once a call, so that each image needs a call of its own
VIEW = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.5, 1.0), antialias=True),
        v2.RandomRotation(20),
        v2.ColorJitter(brightness=0.4, contrast=0.4),
    ]
)


def views(images: Tensor) -> Tensor:
    """(m, 1, 8, 8) -> a new random view of each, (m, 1, SIZE, SIZE)."""
    return torch.stack([VIEW(image) for image in images])


@torch.no_grad()
def knn(encoder: nn.Module, few: Tensor, names: np.ndarray, test: Tensor, right: np.ndarray) -> float:
    """Share of the test images whose nearest labeled image, by cosine, has their label."""
    encoder.eval()
    seen, asked = (encoder(v2.functional.resize(x, [SIZE, SIZE], antialias=True)).numpy() for x in (few, test))
    encoder.train()
    return float(KNeighborsClassifier(1, metric="cosine").fit(seen, names).score(asked, right))


def main(epochs: int = 12, batch: int = 128, images: int = 1347) -> None:
    """Pretrain, and measure before and after.

    Args:
        epochs: passes over the images.
        batch: images in a step; the loss compares them with each other.
        images: how many to learn from.
    """
    torch.manual_seed(0)
    digits = load_digits()
    split = train_test_split(digits.images / 16, digits.target, test_size=450, random_state=0)
    x_train, x_test = (torch.from_numpy(x).float()[:, None] for x in split[:2])
    measured = x_train[:LABELED], split[2][:LABELED], x_test, split[3]
    x_train = x_train[:images]

    encoder = timm.create_model(
        "resnet18", num_classes=0, in_chans=1, layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), zero_init_last=False
    )
    projector = nn.Sequential(
        nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128), nn.BatchNorm1d(128)
    )
    network = nn.Sequential(encoder, projector).to(memory_format=torch.channels_last)  # faster on CPUs, too
    loss_of = MECLoss()  # of two codes with gradient: no teacher, no predictor, no memory bank
    steps = epochs * (len(x_train) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)

    before = knn(encoder, *measured)
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(x_train)).split(batch):
            if len(rows) == batch:  # a small last batch would be another objective: fewer images to differ from
                loss = loss_of((network(views(x_train[rows])), network(views(x_train[rows]))))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
        print(f"epoch {epoch:2}  loss {sum(losses) / len(losses):.3f}")
    after = knn(encoder, *measured)
    print(f"kNN accuracy on {len(x_test)} test digits: untrained {before:.1%}, pretrained {after:.1%}")


if __name__ == "__main__":
    auto_cli(main)
