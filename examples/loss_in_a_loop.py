"""``MECLoss`` in a plain PyTorch loop, with torchvision's transforms and timm's encoder and nothing else from mec.

    python examples/loss_in_a_loop.py [--epochs 12] [--batch_size 128] [--images 1347]

Learns the 8 x 8 digits of scikit-learn without their labels. Prints the loss of every epoch, and the accuracy on 450
test digits of the nearest neighbor among 100 labeled ones, before and after. Takes about a minute on one CPU core.
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

SIZE, NUM_LABELED = 32, 100
# no flips, which change the meaning of digits
VIEW = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.5, 1.0), antialias=True),
        v2.RandomRotation(20),
        v2.ColorJitter(brightness=0.4, contrast=0.4),
    ]
)


def views(images: Tensor) -> Tensor:
    """Return a random view (m, 1, SIZE, SIZE) of images (m, 1, 8, 8)."""
    # one call per image: torchvision samples its parameters once per call
    return torch.stack([VIEW(image) for image in images])


@torch.no_grad()
def knn(encoder: nn.Module, x_labeled: Tensor, y_labeled: np.ndarray, x_test: Tensor, y_test: np.ndarray) -> float:
    """Accuracy of the nearest labeled image by cosine similarity."""
    encoder.eval()
    labeled, test = (
        encoder(v2.functional.resize(x, [SIZE, SIZE], antialias=True)).numpy() for x in (x_labeled, x_test)
    )
    encoder.train()
    return float(KNeighborsClassifier(1, metric="cosine").fit(labeled, y_labeled).score(test, y_test))


def main(epochs: int = 12, batch_size: int = 128, images: int = 1347) -> None:
    """Pretrain, and evaluate before and after.

    Args:
        epochs: passes over the images.
        batch_size: images in a step; the loss compares them with each other.
        images: number of training images.
    """
    torch.manual_seed(0)
    digits = load_digits()
    split = train_test_split(digits.images / 16, digits.target, test_size=450, random_state=0)
    x_train, x_test = (torch.from_numpy(x).float()[:, None] for x in split[:2])
    evaluation_data = x_train[:NUM_LABELED], split[2][:NUM_LABELED], x_test, split[3]
    x_train = x_train[:images]

    encoder = timm.create_model(
        "resnet18", num_classes=0, in_chans=1, layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), zero_init_last=False
    )
    projector = nn.Sequential(
        nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128), nn.BatchNorm1d(128)
    )
    network = nn.Sequential(encoder, projector).to(memory_format=torch.channels_last)  # faster, also on CPUs
    criterion = MECLoss()  # gradients through both codes: no teacher, no predictor, no memory bank
    steps = epochs * (len(x_train) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)

    before = knn(encoder, *evaluation_data)
    for epoch in range(1, epochs + 1):
        losses = []
        for indices in torch.randperm(len(x_train)).split(batch_size):
            if len(indices) == batch_size:  # drop the smaller last batch: the objective depends on the batch size
                loss = criterion((network(views(x_train[indices])), network(views(x_train[indices]))))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
        print(f"epoch {epoch:2}  loss {sum(losses) / len(losses):.3f}")
    after = knn(encoder, *evaluation_data)
    print(f"kNN accuracy on {len(x_test)} test digits: untrained {before:.1%}, pretrained {after:.1%}")


if __name__ == "__main__":
    auto_cli(main)
