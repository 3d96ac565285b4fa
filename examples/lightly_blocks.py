"""The loss in lightly's building blocks: its views, its heads, its moving average; with predictor and teacher.

    pip install 'mec-ssl[bench]'  # brings lightly
    python examples/lightly_blocks.py [--epochs 12] [--batch 128] [--images 1347]

It is lightly's BYOL with SimSiam's heads, which are the paper's, and another loss. Learns the digits of scikit-learn
without their labels. Prints the loss of every epoch; then how many of 450 test digits get the label of the nearest of
100 labeled ones, before and after. One CPU core: about a minute.
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

SIZE, LABELED = 32, 100
# digits must not be flipped, and are too small to be blurred
VIEW = {"input_size": SIZE, "min_scale": 0.5, "hf_prob": 0.0, "rr_prob": 1.0, "rr_degrees": 20}
VIEW |= {"gaussian_blur": 0.0, "solarization_prob": 0.0}
ALIKE = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**IMAGENET_NORMALIZE)]
PLAIN = v2.Compose([v2.Resize(SIZE), *ALIKE])


@torch.no_grad()
def knn(encoder: nn.Module, few: list[tuple[Image.Image, int]], test: list[tuple[Image.Image, int]]) -> float:
    """Share of the test images whose nearest labeled image, by cosine, has their label."""
    encoder.eval()
    seen, asked = (encoder(torch.stack([PLAIN(image) for image, _ in part])).numpy() for part in (few, test))
    names, right = ([label for _, label in part] for part in (few, test))
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
    shown = [Image.fromarray((x * 255 / 16).astype("uint8")).convert("RGB") for x in digits.images]
    labeled = list(zip(shown, digits.target.tolist(), strict=True))
    train, test = train_test_split(labeled, test_size=450, random_state=0)
    views = BYOLTransform(BYOLView1Transform(**VIEW), BYOLView2Transform(**VIEW))
    loader = DataLoader(
        [image for image, _ in train[:images]], batch, shuffle=True, drop_last=True,
        collate_fn=lambda rows: [torch.stack(view) for view in zip(*map(views, rows), strict=True)],
    )  # fmt: skip

    encoder = timm.create_model(
        "resnet18", num_classes=0, layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), zero_init_last=False
    )
    encoder.to(memory_format=torch.channels_last)  # faster, on CPUs too
    student = nn.Sequential(encoder, SimSiamProjectionHead(128, 256, 128))
    predictor = SimSiamPredictionHead(128, 64, 128)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    # exact; the paper's order=4 needs a larger distortion while a network is young (docs/objective.md)
    loss_of = MECLoss()
    optimizer = torch.optim.AdamW([*student.parameters(), *predictor.parameters()], lr=5e-3)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)

    before = knn(encoder, train[:LABELED], test)
    for epoch in range(epochs):
        losses = []
        for number, (x1, x2) in enumerate(loader, epoch * len(loader)):
            update_momentum(student, teacher, m=cosine_schedule(number, steps, 0.9, 1.0))
            p1, p2 = predictor(student(x1)), predictor(student(x2))
            with torch.no_grad():
                z1, z2 = teacher(x1), teacher(x2)
            loss = loss_of((p1, p2), (z1, z2))  # in BYOL: 0.5 * (cosine_loss(p1, z2) + cosine_loss(p2, z1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2}  loss {sum(losses) / len(losses):.3f}")
    after = knn(encoder, train[:LABELED], test)
    print(f"kNN accuracy on {len(test)} test digits: untrained {before:.1%}, pretrained {after:.1%}")


if __name__ == "__main__":
    auto_cli(main)
