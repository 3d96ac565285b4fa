"""What a report shows, gathered from run folders before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.results import Metric


@dataclass(frozen=True)
class Missing:
    """Why a part of the page is not there, in a sentence for its reader."""

    reason: str


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as it stands in the page.

    Attributes:
        source: a data: URI.
        alt: what it shows, as plain text.
        width: pixels. height: pixels.
    """

    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Sprites:
    """Many small images in one, row after row.

    Attributes:
        source: a data: URI.
        columns: images in a row.
        cell: width and height of each, in pixels.
    """

    source: str
    columns: int
    cell: int


@dataclass(frozen=True)
class Neighbors:
    """An image and those nearest to it, the nearest first, each with its cosine; alts are titles and labels."""

    query: EmbeddedImage
    found: list[tuple[float, EmbeddedImage]]


@dataclass(frozen=True)
class Learned:
    """What an encoder makes of n images.

    Attributes:
        images: which ones, in words ("1,000 of the 3,969 images of photographs/, labels not used").
        encoder: which one, in words ("the trained encoder", "checkpoint of step 1,200").
        points: (n, 2) map of the features, t-SNE.
        titles: n, plain text.
        labels: n names, or None where there are none.
        clusters: (n,) numbers of k-means on the features.
        sprites: the n images.
        neighbors: rows.
        singular_values: (min(n, d),) of the centered features, falling, divided by their sum.
        effective_rank: exp of the entropy of the squared singular values' shares.
    """

    images: str
    encoder: str
    points: NDArray[np.float32]
    titles: list[str]
    labels: list[str] | None
    clusters: NDArray[np.int64]
    sprites: Sprites
    neighbors: list[Neighbors]
    singular_values: NDArray[np.float64]
    effective_rank: float


@dataclass(frozen=True)
class Views:
    """An image and pairs of the views that training showed of it."""

    image: EmbeddedImage
    pairs: list[tuple[EmbeddedImage, EmbeddedImage]]


@dataclass(frozen=True)
class Published:
    """Published numbers of the protocol that a result was measured by.

    Attributes:
        what: "ResNet-50, 100 epochs of ImageNet", ...
        metrics: named as in the results.
        source: table of the paper, or the page it stands on.
    """

    what: str
    metrics: list[Metric]
    source: str
