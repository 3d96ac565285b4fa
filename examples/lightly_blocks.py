"""MECLoss with lightly's building blocks: its transforms, heads and moving average, with predictor and teacher.

    pip install 'mec-ssl[bench]'  # installs lightly
    python examples/lightly_blocks.py [--epochs 12] [--batch_size 128] [--images 1347]

lightly's BYOL with another loss and SimSiam's heads, as in the paper. Learns the digits of scikit-learn without their
labels. Prints the loss of every epoch, and the accuracy on 450 test digits of the nearest neighbor among 100 labeled
ones, before and after. Takes about a minute on one CPU core.
"""

from __future__ import annotations

import copy

import timm
import torch
from jsonargparse import auto_cli
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from mec import MECLoss

SIZE, NUM_LABELED = 32, 100
# digits change their meaning when flipped, and are too small for blur
VIEW = {"input_size": SIZE, "min_scale": 0.5, "hf_prob": 0.0, "rr_prob": 1.0, "rr_degrees": 20}
VIEW |= {"gaussian_blur": 0.0, "solarization_prob": 0.0}
TO_INPUT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**IMAGENET_NORMALIZE)]
TEST_TRANSFORM = v2.Compose([v2.Resize(SIZE), *TO_INPUT])


@torch.no_grad()
def knn(encoder: nn.Module, labeled: list[tuple[Image.Image, int]], test: list[tuple[Image.Image, int]]) -> float:
    """Accuracy of the nearest labeled image by cosine similarity."""
    encoder.eval()
    x_labeled, x_test = (
        encoder(torch.stack([TEST_TRANSFORM(image) for image, _ in split])).numpy() for split in (labeled, test)
    )
    y_labeled, y_test = ([label for _, label in split] for split in (labeled, test))
    encoder.train()
    return float(KNeighborsClassifier(1, metric="cosine").fit(x_labeled, y_labeled).score(x_test, y_test))


def main(epochs: int = 12, batch_size: int = 128, images: int = 1347) -> None:
    """Pretrain, and evaluate before and after.

    Args:
        epochs: passes over the images.
        batch_size: images in a step; the loss compares them with each other.
        images: number of training images.
    """
    torch.manual_seed(0)
    digits = load_digits()
    pil_images = [Image.fromarray((x * 255 / 16).astype("uint8")).convert("RGB") for x in digits.images]
    labeled = list(zip(pil_images, digits.target.tolist(), strict=True))
    train, test = train_test_split(labeled, test_size=450, random_state=0)
    views = BYOLTransform(BYOLView1Transform(**VIEW), BYOLView2Transform(**VIEW))
    loader = DataLoader(
        [image for image, _ in train[:images]], batch_size, shuffle=True, drop_last=True,
        collate_fn=lambda batch: [torch.stack(view) for view in zip(*map(views, batch), strict=True)],
    )  # fmt: skip

    encoder = timm.create_model(
        "resnet18", num_classes=0, layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), zero_init_last=False
    )
    encoder.to(memory_format=torch.channels_last)  # faster, also on CPUs
    student = nn.Sequential(encoder, SimSiamProjectionHead(128, 256, 128))
    predictor = SimSiamPredictionHead(128, 64, 128)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    # exact; the paper's order=4 needs a larger distortion early in training (docs/objective.md)
    criterion = MECLoss()
    optimizer = torch.optim.AdamW([*student.parameters(), *predictor.parameters()], lr=5e-3)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)

    before = knn(encoder, train[:NUM_LABELED], test)
    for epoch in range(epochs):
        losses = []
        for number, (x1, x2) in enumerate(loader, epoch * len(loader)):
            update_momentum(student, teacher, m=cosine_schedule(number, steps, 0.9, 1.0))
            p1, p2 = predictor(student(x1)), predictor(student(x2))
            with torch.no_grad():
                z1, z2 = teacher(x1), teacher(x2)
            loss = criterion((p1, p2), (z1, z2))  # in BYOL: 0.5 * (cosine_loss(p1, z2) + cosine_loss(p2, z1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2}  loss {sum(losses) / len(losses):.3f}")
    after = knn(encoder, train[:NUM_LABELED], test)
    print(f"kNN accuracy on {len(test)} test digits: untrained {before:.1%}, pretrained {after:.1%}")


if __name__ == "__main__":
    auto_cli(main)
