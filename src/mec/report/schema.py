"""Data types of the report, collected from run folders before anything is rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mec.results import Metric


@dataclass(frozen=True)
class Missing:
    """Stands for content that is not available.

    Attributes:
        reason: a sentence for the reader of the page.
    """

    reason: str


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page.

    Attributes:
        uri: a data: URI.
        alt: description, plain text.
        width: width in pixels.
        height: height in pixels.
    """

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class SpriteSheet:
    """Many thumbnails in one image, row by row.

    Attributes:
        uri: a data: URI.
        columns: thumbnails per row.
        cell_size: width and height of a thumbnail, in pixels.
    """

    uri: str
    columns: int
    cell_size: int


@dataclass(frozen=True)
class NearestNeighbors:
    """A query image and its nearest neighbors. The alt texts are titles and labels.

    Attributes:
        query: the query image.
        neighbors: cosine similarity and image, nearest first.
    """

    query: EmbeddedImage
    neighbors: list[tuple[float, EmbeddedImage]]


@dataclass(frozen=True)
class FeatureAnalysis:
    """Features of n images, analyzed.

    Attributes:
        images: description of the images ("1,000 of the 3,969 images of photographs/").
        encoder: description of the encoder ("the encoder after 1,200 steps").
        points: (n, 2) t-SNE of the features.
        titles: n titles, plain text.
        labels: n class names; None for unlabeled images.
        clusters: (n,) k-means cluster of each image.
        sprites: thumbnails of the n images.
        neighbors: nearest neighbors of some images.
        singular_values: (min(n, d),) singular values of the centered features, descending, divided by their sum.
        feature_rank: effective rank of the centered features: exp of the entropy of the normalized squared singular
            values.
    """

    images: str
    encoder: str
    points: NDArray[np.float32]
    titles: list[str]
    labels: list[str] | None
    clusters: NDArray[np.int64]
    sprites: SpriteSheet
    neighbors: list[NearestNeighbors]
    singular_values: NDArray[np.float64]
    feature_rank: float


@dataclass(frozen=True)
class EmbeddedViews:
    """An image and pairs of views of it, as training makes them."""

    image: EmbeddedImage
    pairs: list[tuple[EmbeddedImage, EmbeddedImage]]


@dataclass(frozen=True)
class PublishedResult:
    """Published metrics, measured by the protocol of a result.

    Attributes:
        description: method, backbone and pretraining ("MEC, ResNet-50, 100 epochs of ImageNet").
        metrics: named as in the result.
        source: the publication and its table.
    """

    description: str
    metrics: list[Metric]
    source: str
