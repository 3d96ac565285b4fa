"""What mec's training is measured beside: the paper's recipe in plain PyTorch, and lightly's SimSiam and BYOL.

Each is the loop its authors show: views by PIL in the workers of a DataLoader, float32, and no more than that. All have
the same backbone; heads have their published widths.
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
Part = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Setting:
    """One comparison: what is trained, on what, and for how many steps.

    images: an .npz of small ones, or a folder with sub-folders of photographs. shown: how many the run needs, which
    are taken again and again where there are fewer. apart: further steps, timed part by part; 0: the same steps.
    """

    backbone: str
    size: int
    batch: int
    device: str
    images: Path
    shown: int
    workers: int
    threads: int
    warmup: int
    steps: int
    apart: int

    @property
    def small(self) -> bool:
        return self.size < 96


class Loop:
    """A data loader, and the step made from its batches: ``step((x1, x2), part)`` names its parts as it goes."""

    def __init__(self, setting: Setting, views: Callable[[Any], Any], build: Callable[[Setting], Any]) -> None:
        self.setting, self.views = setting, views
        self.step: Callable[[tuple[Tensor, Tensor], Part], None] = build(setting)

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            _shown(self.setting, self.views), self.setting.batch, shuffle=True, drop_last=True,
            num_workers=self.setting.workers, pin_memory=self.setting.device == "cuda",
        )  # fmt: skip
        for (x1, x2), _ in loader:
            yield tuple(x.to(self.setting.device, non_blocking=True) for x in (x1, x2))  # type: ignore[misc]


class _InMemory(Dataset[Any]):
    """As torchvision's CIFAR10: an array, each image of which becomes one of PIL's."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index])), 0


def _shown(setting: Setting, transform: Callable[[Any], Any]) -> Dataset[Any]:
    data: Any
    if setting.small:
        data = _InMemory(np.load(setting.images)["images"], transform)
    else:
        data = ImageFolder(str(setting.images), transform)
    return Subset(data, np.resize(np.arange(len(data)), setting.shown).tolist())


def backbone(setting: Setting) -> tuple[nn.Module, int]:
    """torchvision's ResNet, and the number of its features; small images get a 3 x 3 stem without pooling."""
    network = getattr(models, setting.backbone)(zero_init_residual=True)
    features = network.fc.in_features
    network.fc = nn.Identity()
    if setting.small:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network, features


# The paper's recipe.


class _Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


class PaperViews:
    """Image -> its two views; small images are not blurred, by any of the contestants."""

    def __init__(self, setting: Setting) -> None:
        self.views = [self._view(setting, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2))]

    @staticmethod
    def _view(setting: Setting, blur: float, solarize: float) -> Callable[[Any], Any]:
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(setting.size, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([_Blur()], p=0.0 if setting.small else blur),
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
    """Eq. 3 as printed: powers of the m x m matrix, autograd through all of them."""
    lamda = 1 / (len(p) * distortion)
    C = lamda * F.normalize(p) @ F.normalize(z).T
    power, total = C, C
    for k in range(2, order + 1):
        power = power @ C
        total = total + (-1) ** (k + 1) / k * power
    return -distortion * torch.trace(total)


def plain(setting: Setting) -> Loop:
    """Teacher, predictor, cross form of order 4, SGD."""
    return Loop(setting, PaperViews(setting), _paper_step)


def _paper_step(setting: Setting) -> Callable[[tuple[Tensor, Tensor], Part], None]:
    encoder, features = backbone(setting)
    last = [nn.Linear(2048, 2048), nn.BatchNorm1d(2048, affine=False)]
    student = nn.Sequential(encoder, *_hidden(features, 2048), *_hidden(2048, 2048), *last).to(setting.device)
    predictor = nn.Sequential(*_hidden(2048, 512), nn.Linear(512, 2048)).to(setting.device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    parameters = [*student.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.5 * setting.batch / 256 / 100, momentum=0.9, weight_decay=1e-5)

    def step(views: tuple[Tensor, Tensor], part: Part) -> None:
        x1, x2 = views
        with part("forward"):
            p1, p2 = predictor(student(x1)), predictor(student(x2))
        with part("teacher"), torch.no_grad():
            z1, z2 = teacher(x1), teacher(x2)
        with part("objective"):
            loss = (textbook(p1, z2) + textbook(p2, z1)) / 2
        with part("optimizer"):
            optimizer.zero_grad()
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            optimizer.step()
        with part("teacher"), torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)

    return step


# lightly's building blocks, put together as its documentation does.


def lightly_simsiam(setting: Setting) -> Loop:
    from lightly.transforms import SimSiamTransform

    return Loop(setting, SimSiamTransform(setting.size, **_no_blur(setting)), _simsiam_step)


def _no_blur(setting: Setting) -> dict[str, float]:
    return {"gaussian_blur": 0.0} if setting.small else {}


def _simsiam_step(setting: Setting) -> Callable[[tuple[Tensor, Tensor], Part], None]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    encoder, features = backbone(setting)
    student = nn.Sequential(encoder, SimSiamProjectionHead(features, 2048, 2048)).to(setting.device)
    predictor = SimSiamPredictionHead(2048, 512, 2048).to(setting.device)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06)

    def step(views: tuple[Tensor, Tensor], part: Part) -> None:
        with part("forward"):
            z1, z2 = (student(x) for x in views)
            p1, p2 = predictor(z1), predictor(z2)
        with part("objective"):
            loss = 0.5 * (criterion(z1.detach(), p2) + criterion(z2.detach(), p1))
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return step


def lightly_byol(setting: Setting) -> Loop:
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    no_blur = _no_blur(setting)
    pair = BYOLView1Transform(setting.size, **no_blur), BYOLView2Transform(setting.size, **no_blur)
    return Loop(setting, BYOLTransform(*pair), _byol_step)


def _byol_step(setting: Setting) -> Callable[[tuple[Tensor, Tensor], Part], None]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    encoder, features = backbone(setting)
    student = nn.Sequential(encoder, BYOLProjectionHead(features, 4096, 256)).to(setting.device)
    predictor = BYOLPredictionHead(256, 4096, 256).to(setting.device)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD([*student.parameters(), *predictor.parameters()], lr=0.06)

    def step(views: tuple[Tensor, Tensor], part: Part) -> None:
        with part("teacher"):
            update_momentum(student, teacher, m=MOMENTUM)
        with part("forward"):
            p1, p2 = (predictor(student(x)) for x in views)
        with part("teacher"), torch.no_grad():
            z1, z2 = (teacher(x) for x in views)
        with part("objective"):
            loss = 0.5 * (criterion(p1, z2) + criterion(p2, z1))
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            optimizer.step()
            optimizer.zero_grad()

    return step
