"""What an encoder makes of images: a map, groups, neighbors and the spectrum of its features."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE

from mec.data.dataset import ImageDataset, evenly_spaced, read_image
from mec.data.datasets import open_dataset
from mec.data.loaders import evaluation_loader
from mec.data.pixels import pad_to_square, resize_longer_side
from mec.data.transforms.crop import Batch
from mec.embedding.extract import apply_to_images, feature_function
from mec.embedding.images import BATCH, check_channels, pixel_format_of
from mec.embedding.neighbors import best_device
from mec.errors import InputError
from mec.models.encoder import Encoder
from mec.models.io import load_encoder
from mec.report import images
from mec.report.cache import keep, kept, key_of
from mec.report.inputs import Sampling, not_opened, sampling_of, source_of, weights_of
from mec.report.schema import EmbeddedImage, Learned, Missing, Neighbors

CELL, SIDE = 48, 96
"""Pixels of the images of the map, and of those beside their neighbors."""
QUERIES = NEAREST = 8
CLUSTERS, MEMBERS = 10, 5
"""At most, and of how many images on average at least."""
SECONDS, LEAST = 120, 100
"""Of a CPU's time to embed the images, and how many are embedded whatever it takes."""
FLOOR = 1e-5
"""Distance from the mean, as a share of the length of features, below which there is but float32's rounding."""

Matrix = NDArray[np.float64]


def learned(
    run: Path, data: str | os.PathLike[str] | None, most: int, say: Callable[[str], object]
) -> Learned | Missing:
    """What the run's encoder, or that of its newest checkpoint, makes of at most ``most`` images from all over.

    Of a labeled source they are of the test part. What is found is kept in the run folder.

    Args:
        run: a run folder.
        data: any source of images; None is what the run has learned from.
        most: images; fewer where a CPU would take minutes.
        say: is told what takes long before it begins.

    Raises:
        InputError: ``data`` is given and cannot be opened, or cannot be given to the encoder.
    """
    weights, source = weights_of(run), source_of(run, data)
    if isinstance(weights, Missing):
        return weights
    if isinstance(source, Missing):
        return source
    try:
        key = key_of(weights, source, most)
        known = kept(run, key)
        if known is not None:
            return known
        encoder = load_encoder(weights.file)
    except (InputError, OSError) as error:
        return Missing(f"The encoder cannot be read: {error}")
    try:
        dataset, part = _opened(source, sampling_of(run, source))
        check_channels(dataset, encoder, source)
    except InputError as error:
        return not_opened(data, error)
    count = min(len(dataset), _affordable(encoder, most))
    some = "all" if count == len(dataset) else f"{count:,} of the"
    words = f"{some} {len(dataset):,} {part} of {images.printable(source)}"
    say(f"map: {weights.words} looks at {words}")
    try:
        found = _made(dataset, _chosen(dataset, count), encoder, source, words, weights.words)
    except InputError as error:  # most of the images are broken
        return not_opened(data, error)
    if isinstance(found, Learned):
        keep(run, key, found)
    return found


def _opened(source: str, sampling: Sampling) -> tuple[ImageDataset, str]:
    """The images, and what they are called."""
    tested = open_dataset(source, "test", None, *sampling)
    if tested.labels is not None and len(tested):
        return tested, "test images"
    return open_dataset(source, "all", None, *sampling), "images"


def _affordable(encoder: Encoder, most: int) -> int:
    if most <= LEAST or best_device().type != "cpu":
        return most
    features = feature_function(encoder, best_device())
    few = torch.zeros(8, encoder.spec.channels, encoder.image_size, encoder.image_size, dtype=torch.uint8)
    features(few)
    started = time.perf_counter()
    features(few)
    return min(most, max(LEAST, int(SECONDS / (time.perf_counter() - started) * len(few))))


def _chosen(dataset: ImageDataset, count: int) -> NDArray[np.int64]:
    """From all over the source, of each class in proportion; streamed ones as they are soonest reached."""
    if dataset.labels is None or hasattr(dataset, "shard_ranges"):
        return evenly_spaced(dataset, count)
    order = np.random.default_rng(0).permutation(len(dataset))
    order = order[np.asarray(dataset.labels)[order].argsort(kind="stable")]
    return np.sort(order[np.linspace(0, len(order) - 1, count).astype(int)])


def _made(
    whole: ImageDataset, chosen: NDArray[np.int64], encoder: Encoder, source: str, words: str, whose: str
) -> Learned | Missing:
    dataset = whole.subset(chosen)
    seen: dict[int, Image.Image] = {}
    reading = pixel_format_of(encoder)
    loader = evaluation_loader(dataset, reading, encoder.image_size, BATCH)
    table, rows = apply_to_images(dataset, _noting(loader, seen), "features", feature_function(encoder, best_device()))
    features, numbers = table.double().numpy(), rows.tolist()
    if len(numbers) < 2:
        return Missing("A map takes at least two images that can be read.")
    if not np.isfinite(features).all():
        return Missing("The encoder gives features that are not finite numbers: training has diverged.")
    titles = [_title(whole.title(int(chosen[n])), source) for n in numbers]
    labels = None
    if dataset.labels is not None:
        labels = [images.printable(dataset.classes[dataset.labels[n]]) for n in numbers]
    centered = _centered(features)
    clusters = _clusters(centered)
    captions = titles if labels is None else [f"{t} ({name})" for t, name in zip(titles, labels, strict=True)]
    groups = clusters if labels is None else np.unique(labels, return_inverse=True)[1]

    def image(row: int) -> EmbeddedImage:
        return images.image(resize_longer_side(read_image(dataset, numbers[row], reading), SIDE), captions[row])

    values = torch.linalg.svdvals(torch.from_numpy(centered)).numpy()
    return Learned(
        images=words,
        encoder=whose,
        points=_points(features),
        titles=titles,
        labels=labels,
        clusters=clusters,
        sprites=images.sprites([seen[n] for n in numbers], CELL),
        neighbors=[
            Neighbors(image(query), [(cosine, image(row)) for cosine, row in found])
            for query, found in _nearest(centered, _queries(groups))
        ],
        singular_values=values / max(values.sum(), np.finfo(np.float64).tiny),
        effective_rank=_effective_rank(values),
    )


def _noting(loader: Iterable[Batch], seen: dict[int, Image.Image]) -> Iterator[Batch]:
    """The batches, and on the way what the encoder sees of each image, by its number."""
    for batch in loader:
        for number, x in zip(batch.indices.tolist(), batch.images, strict=True):
            seen[number] = pad_to_square(x.permute(1, 2, 0).numpy(), CELL)
        yield batch


def _title(title: str, source: str) -> str:
    """Within the source where that is a folder, or the folder of a file."""
    path = Path(source).expanduser()
    root = path if path.is_dir() else path.parent
    return images.printable(title.removeprefix(f"{root}{os.sep}"))


def _centered(features: Matrix) -> Matrix:
    """(n, d) less its mean; 0 where it is nothing but rounding."""
    centered: Matrix = features - features.mean(axis=0)
    return centered if np.linalg.norm(centered) > FLOOR * np.linalg.norm(features) else np.zeros_like(centered)


def _unit(rows: Matrix) -> Matrix:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Matrix = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _points(features: Matrix) -> NDArray[np.float32]:
    """(n, d) -> (n, 2): t-SNE of their directions; all in one place where they have but one."""
    directions = _unit(features)
    if not _centered(directions).any():
        return np.zeros((len(features), 2), dtype=np.float32)
    perplexity = min(30, (len(features) - 1) / 3)
    points: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(directions)
    return points


def _clusters(centered: Matrix) -> NDArray[np.int64]:
    """(n,) of k-means on directions from the mean, the largest cluster 0."""
    directions = _unit(centered)
    distinct = len(np.unique(directions.round(6), axis=0))
    count = max(1, min(CLUSTERS, len(directions) // MEMBERS, distinct))
    found = KMeans(count, n_init=4, random_state=0).fit(directions).labels_
    largest_first = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    numbers: NDArray[np.int64] = largest_first.argsort()[found]
    return numbers


def _queries(groups: NDArray[np.int64]) -> list[int]:
    """Rows spread over groups (n,), which they are in."""
    order = groups.argsort(kind="stable")
    chosen: list[int] = order[np.linspace(0, len(order) - 1, min(QUERIES, len(order))).astype(int)].tolist()
    return chosen


def _nearest(centered: Matrix, queries: Sequence[int]) -> Iterator[tuple[int, list[tuple[float, int]]]]:
    """Each query and the others nearest to it: their cosines and rows."""
    directions = _unit(centered)
    for query in queries:
        cosines = directions @ directions[query]
        nearest = [row for row in np.argsort(-cosines, kind="stable").tolist() if row != query][:NEAREST]
        yield query, [(float(cosines[row]), row) for row in nearest]


def _effective_rank(values: Matrix) -> float:
    """exp of the entropy of the squared singular values' shares; 0 where there are none above 0."""
    squares = values[values > 0] ** 2
    if not len(squares):
        return 0.0
    shares = squares / squares.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))
