"""Loops to compare mec's training with: the paper's recipe in plain PyTorch, and lightly's SimSiam and BYOL.

Each is the loop that its authors publish, without further optimization: views by PIL in the workers of a DataLoader,
float32. All have the same backbone; heads have their published widths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOMENTUM = 0.996
Phase = Callable[[str], AbstractContextManager[None]]
"""Context manager that times the named phase of a step."""


@dataclass(frozen=True)
class Settings:
    """Settings of one comparison.

    Attributes:
        backbone: a ResNet of torchvision.
        image_size: side of a view in pixels.
        batch_size: images in a step.
        device: cpu or cuda.
        images: an .npz of small images, or a folder with sub-folders of photographs.
        num_images: images in the dataset; images are repeated if there are fewer.
        workers: loader processes.
        threads: CPU threads.
        warmup: steps before the timed ones.
        steps: timed steps.
        phase_steps: further steps whose phases are timed; 0: the phases of the timed steps.
    """

    backbone: str
    image_size: int
    batch_size: int
    device: str
    images: Path
    num_images: int
    workers: int
    threads: int
    warmup: int
    steps: int
    phase_steps: int

    @property
    def has_small_images(self) -> bool:
        return self.image_size < 96


class Loop:
    """A data loader and a training step, ``step((x1, x2), phase)``, which enters ``phase(name)`` for each phase."""

    def __init__(self, settings: Settings, views: Callable[[Any], Any], build: Callable[[Settings], Any]) -> None:
        self.settings, self.views = settings, views
        self.step: Callable[[tuple[Tensor, Tensor], Phase], None] = build(settings)

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            _dataset(self.settings, self.views), self.settings.batch_size, shuffle=True, drop_last=True,
            num_workers=self.settings.workers, pin_memory=self.settings.device == "cuda",
        )  # fmt: skip
        for (x1, x2), _ in loader:
            yield tuple(x.to(self.settings.device, non_blocking=True) for x in (x1, x2))  # type: ignore[misc]


class _InMemory(Dataset[Any]):
    """An array of images, converted to PIL images one by one, as in torchvision's CIFAR10."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index])), 0


def _dataset(settings: Settings, transform: Callable[[Any], Any]) -> Dataset[Any]:
    data: Any
    if settings.has_small_images:
        data = _InMemory(np.load(settings.images)["images"], transform)
    else:
        data = ImageFolder(str(settings.images), transform)
    return Subset(data, np.resize(np.arange(len(data)), settings.num_images).tolist())


def backbone(settings: Settings) -> tuple[nn.Module, int]:
    """Return torchvision's ResNet and its number of features; small images get a 3 x 3 stem without pooling."""
    network = getattr(models, settings.backbone)(zero_init_residual=True)
    features = network.fc.in_features
    network.fc = nn.Identity()
    if settings.has_small_images:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network, features


# The paper's recipe.


class _Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


class PaperViews:
    """Return the two views of an image. No contestant blurs small images."""

    def __init__(self, settings: Settings) -> None:
        self.views = [self._view(settings, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2))]

    @staticmethod
    def _view(settings: Settings, blur: float, solarize: float) -> Callable[[Any], Any]:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(settings.image_size, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([_Blur()], p=0.0 if settings.has_small_images else blur),
                transforms.RandomApply([ImageOps.solarize], p=solarize),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [view(image) for view in self.views]


def _hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


def textbook(p: Tensor, z: Tensor, distortion: float = 1 / 32, order: int = 4) -> Tensor:
    """Compute Eq. 3 as printed: powers of the m x m matrix, with autograd through all of them."""
    lamda = 1 / (len(p) * distortion)
    C = lamda * F.normalize(p) @ F.normalize(z).T
    power, total = C, C
    for k in range(2, order + 1):
        power = power @ C
        total = total + (-1) ** (k + 1) / k * power
    return -distortion * torch.trace(total)


def plain(settings: Settings) -> Loop:
    """The paper's recipe: teacher, predictor, cross form of order 4, SGD."""
    return Loop(settings, PaperViews(settings), _paper_step)


def _paper_step(settings: Settings) -> Callable[[tuple[Tensor, Tensor], Phase], None]:
    encoder, features = backbone(settings)
    last = [nn.Linear(2048, 2048), nn.BatchNorm1d(2048, affine=False)]
    student = nn.Sequential(encoder, *_hidden(features, 2048), *_hidden(2048, 2048), *last).to(settings.device)
    predictor = nn.Sequential(*_hidden(2048, 512), nn.Linear(512, 2048)).to(settings.device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    parameters = [*student.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.5 * settings.batch_size / 256 / 100, momentum=0.9, weight_decay=1e-5)

    def step(views: tuple[Tensor, Tensor], phase: Phase) -> None:
        x1, x2 = views
        with phase("forward"):
            p1, p2 = predictor(student(x1)), predictor(student(x2))
        with phase("teacher"), torch.no_grad():
            z1, z2 = teacher(x1), teacher(x2)
        with phase("objective"):
            loss = (textbook(p1, z2) + textbook(p2, z1)) / 2
        with phase("optimizer"):
            optimizer.zero_grad()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
        with phase("teacher"), torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)

    return step


# lightly's building blocks, combined as in its documentation.


def lightly_simsiam(settings: Settings) -> Loop:
    from lightly.transforms import SimSiamTransform

    return Loop(settings, SimSiamTransform(settings.image_size, **_no_blur(settings)), _simsiam_step)


def _no_blur(settings: Settings) -> dict[str, float]:
    return {"gaussian_blur": 0.0} if settings.has_small_images else {}


def _simsiam_step(settings: Settings) -> Callable[[tuple[Tensor, Tensor], Phase], None]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    encoder, features = backbone(settings)
    student = nn.Sequential(encoder, SimSiamProjectionHead(features, 2048, 2048)).to(settings.device)
    predictor = SimSiamPredictionHead(2048, 512, 2048).to(settings.device)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06)

    def step(views: tuple[Tensor, Tensor], phase: Phase) -> None:
        with phase("forward"):
            z1, z2 = (student(x) for x in views)
            p1, p2 = predictor(z1), predictor(z2)
        with phase("objective"):
            loss = 0.5 * (criterion(z1.detach(), p2) + criterion(z2.detach(), p1))
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return step


def lightly_byol(settings: Settings) -> Loop:
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    no_blur = _no_blur(settings)
    pair = BYOLView1Transform(settings.image_size, **no_blur), BYOLView2Transform(settings.image_size, **no_blur)
    return Loop(settings, BYOLTransform(*pair), _byol_step)


def _byol_step(settings: Settings) -> Callable[[tuple[Tensor, Tensor], Phase], None]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    encoder, features = backbone(settings)
    student = nn.Sequential(encoder, BYOLProjectionHead(features, 4096, 256)).to(settings.device)
    predictor = BYOLPredictionHead(256, 4096, 256).to(settings.device)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06)

    def step(views: tuple[Tensor, Tensor], phase: Phase) -> None:
        with phase("teacher"):
            update_momentum(student, teacher, m=MOMENTUM)
        with phase("forward"):
            p1, p2 = (predictor(student(x)) for x in views)
        with phase("teacher"), torch.no_grad():
            z1, z2 = (teacher(x) for x in views)
        with phase("objective"):
            loss = 0.5 * (criterion(p1, z2) + criterion(p2, z1))
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return step
