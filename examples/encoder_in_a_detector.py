"""A mec encoder as the backbone of torchvision's Faster R-CNN, with a feature pyramid, in a custom training loop.

    python examples/encoder_in_a_detector.py [--run RUN] [--epochs 1] [--steps 40]

RUN is a run folder with a standard ResNet-18 of 3 channels; the default is pretrained briefly on the digits of
scikit-learn, as a placeholder. The detector learns to find digits in synthetic scenes, and its loss is printed. Takes
about a minute on one CPU core. ``mec evaluate detect`` trains and evaluates with the published protocols; this example
is for custom detectors.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import mec

DIGITS = load_digits()


def scene(random: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Create an image (3, 128, 128) with two digits of 32 px in different quarters, and its boxes and labels."""
    image, boxes, labels = torch.zeros(3, 128, 128), [], []
    for quarter in random.choice(4, 2, replace=False):
        top, left = np.array(divmod(quarter, 2)) * 64 + random.integers(0, 32, 2)
        number = random.integers(len(DIGITS.images))
        digit = np.kron(DIGITS.images[number] / 16, np.ones((4, 4)))
        image[:, top : top + 32, left : left + 32] = torch.from_numpy(digit)
        boxes.append([left, top, left + 32, top + 32])
        labels.append(1 + DIGITS.target[number])  # 0 is the background
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}


def detector_from(encoder: mec.Encoder, file: Path) -> FasterRCNN:
    """Build a detector with all layers trainable, also BatchNorm: frozen layers assume ImageNet weights."""
    mec.export(encoder, "torchvision", file)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    backbone.body.load_state_dict(torch.load(file, weights_only=True))
    colors = {"image_mean": encoder.spec.mean, "image_std": encoder.spec.std}
    small = {"min_size": 128, "max_size": 128, "box_batch_size_per_image": 64}  # in place of 800, 1333 and 512
    return FasterRCNN(backbone, num_classes=11, **small, **colors)


def main(run: Path | None = None, epochs: int = 1, steps: int = 40) -> None:
    """Train a detector initialized from an encoder.

    Args:
        run: a run folder; null: pretrain on the digits.
        epochs: epochs of that pretraining.
        steps: training steps of the detector, of two scenes each.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            recipe = replace(mec.load_recipe("digits"), backbone_options={}, channels=3, epochs=epochs)
            run = mec.pretrain("digits", Path(folder, "run"), recipe).folder
        detector = detector_from(mec.load_encoder(run), Path(folder, "encoder.pth"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    random = np.random.default_rng(0)
    losses: list[float] = []
    for step in range(1, steps + 1):
        images, targets = zip(scene(random), scene(random), strict=True)
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, steps // 4) == 0:
            recent = losses[-max(1, steps // 4) :]
            print(f"step {step:3}  loss {sum(recent) / len(recent):.2f}")


if __name__ == "__main__":
    auto_cli(main)
