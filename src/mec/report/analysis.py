"""Analyze an encoder's features of a dataset: t-SNE map, clusters, nearest neighbors and spectrum."""

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
from mec.report.cache import cache_key, load_analysis, save_analysis
from mec.report.images import embed_image, embed_sprites, printable
from mec.report.inputs import Sampling, find_data, find_weights, missing_data, read_sampling
from mec.report.schema import EmbeddedImage, FeatureAnalysis, Missing, NearestNeighbors

THUMBNAIL_SIDE, NEIGHBOR_SIDE = 48, 96
"""Side of the thumbnails of the map, and longer side of queries and neighbors, in pixels."""
MAX_QUERIES = MAX_NEIGHBORS = 8
MAX_CLUSTERS, MEAN_CLUSTER_SIZE = 10, 5
"""Largest number of clusters, and smallest mean number of images in a cluster."""
CPU_SECONDS, MIN_IMAGES = 120, 100
"""Time for embedding on a CPU, and number of images that are embedded even if it takes longer."""
MIN_RELATIVE_NORM = 1e-5
"""Norm of the centered features, relative to that of the features, below which it is float32 rounding error."""

Matrix = NDArray[np.float64]


def analyze_features(
    run: Path, data: str | os.PathLike[str] | None, max_images: int, log: Callable[[str], object]
) -> FeatureAnalysis | Missing:
    """Analyze the features of the trained encoder, or of the newest checkpoint while the run is unfinished.

    Uses the test split of a labeled dataset. Caches the analysis in the run folder.

    Args:
        run: a run folder.
        data: any dataset; None: the one that the run was trained on.
        max_images: number of images, sampled from the whole dataset; fewer where a CPU would take minutes.
        log: is called with a message before the images are embedded.

    Raises:
        InputError: ``data`` is given and cannot be opened, or its channels do not fit the encoder.
    """
    weights, source = find_weights(run), find_data(run, data)
    if isinstance(weights, Missing):
        return weights
    if isinstance(source, Missing):
        return source
    try:
        key = cache_key(weights, source, max_images)
        cached = load_analysis(run, key)
        if cached is not None:
            return cached
        encoder = load_encoder(weights.file)
    except (InputError, OSError) as error:
        return Missing(f"The encoder cannot be read: {error}")
    try:
        dataset, noun = _open_test_split(source, read_sampling(run, source))
        check_channels(dataset, encoder, source)
    except InputError as error:
        return missing_data(data, error)
    count = min(len(dataset), _affordable_images(encoder, max_images))
    quantity = "all" if count == len(dataset) else f"{count:,} of the"
    description = f"{quantity} {len(dataset):,} {noun} of {printable(source)}"
    log(f"features: embedding {description} with {weights.description}")
    try:
        indices = _sample_indices(dataset, count)
        analysis = _analyze(dataset, indices, encoder, source, description, weights.description)
    except InputError as error:  # too many images are corrupt
        return missing_data(data, error)
    if isinstance(analysis, FeatureAnalysis):
        save_analysis(run, key, analysis)
    return analysis


def _open_test_split(source: str, sampling: Sampling) -> tuple[ImageDataset, str]:
    """Return the test split of a labeled dataset or all images of an unlabeled one, and a noun for them."""
    test = open_dataset(source, "test", None, *sampling)
    if test.labels is not None and len(test):
        return test, "test images"
    return open_dataset(source, "all", None, *sampling), "images"


def _affordable_images(encoder: Encoder, max_images: int) -> int:
    """Return the number of images that a CPU embeds in ``CPU_SECONDS``, from MIN_IMAGES to ``max_images``."""
    if max_images <= MIN_IMAGES or best_device().type != "cpu":
        return max_images
    features = feature_function(encoder, best_device())
    batch = torch.zeros(8, encoder.spec.channels, encoder.image_size, encoder.image_size, dtype=torch.uint8)
    features(batch)  # warm-up
    started = time.perf_counter()
    features(batch)
    return min(max_images, max(MIN_IMAGES, int(CPU_SECONDS / (time.perf_counter() - started) * len(batch))))


def _sample_indices(dataset: ImageDataset, count: int) -> NDArray[np.int64]:
    """Sample evenly, stratified by class. Sharded datasets: the images that are fastest to read, see evenly_spaced."""
    if dataset.labels is None or hasattr(dataset, "shard_ranges"):
        return evenly_spaced(dataset, count)
    order = np.random.default_rng(0).permutation(len(dataset))
    order = order[np.asarray(dataset.labels)[order].argsort(kind="stable")]
    return np.sort(order[np.linspace(0, len(order) - 1, count).astype(int)])


def _analyze(
    dataset: ImageDataset,
    sampled_indices: NDArray[np.int64],
    encoder: Encoder,
    source: str,
    description: str,
    encoder_description: str,
) -> FeatureAnalysis | Missing:
    sample = dataset.subset(sampled_indices)
    thumbnails: dict[int, Image.Image] = {}
    pixel_format = pixel_format_of(encoder)
    loader = evaluation_loader(sample, pixel_format, encoder.image_size, BATCH)
    outputs, rows = apply_to_images(
        sample, _collect_thumbnails(loader, thumbnails), "features", feature_function(encoder, best_device())
    )
    features, indices = outputs.double().numpy(), rows.tolist()
    if len(indices) < 2:
        return Missing("The map needs at least two readable images.")
    if not np.isfinite(features).all():
        return Missing("The encoder's features are not finite: training has diverged.")
    titles = [_relative_title(dataset.title(int(sampled_indices[index])), source) for index in indices]
    labels = None
    if sample.labels is not None:
        labels = [printable(sample.classes[sample.labels[index]]) for index in indices]
    centered = _center(features)
    clusters = _cluster(centered)
    captions = titles if labels is None else [f"{t} ({label})" for t, label in zip(titles, labels, strict=True)]
    groups = clusters if labels is None else np.unique(labels, return_inverse=True)[1]

    def embed(row: int) -> EmbeddedImage:
        image = read_image(sample, indices[row], pixel_format)
        return embed_image(resize_longer_side(image, NEIGHBOR_SIDE), captions[row])

    values = torch.linalg.svdvals(torch.from_numpy(centered)).numpy()
    return FeatureAnalysis(
        images=description,
        encoder=encoder_description,
        points=_tsne(features),
        titles=titles,
        labels=labels,
        clusters=clusters,
        sprites=embed_sprites([thumbnails[index] for index in indices], THUMBNAIL_SIDE),
        neighbors=[
            NearestNeighbors(embed(query), [(cosine, embed(row)) for cosine, row in nearest])
            for query, nearest in _nearest_neighbors(centered, _select_queries(groups))
        ],
        singular_values=values / max(values.sum(), np.finfo(np.float64).tiny),
        feature_rank=_feature_rank(values),
    )


def _collect_thumbnails(loader: Iterable[Batch], thumbnails: dict[int, Image.Image]) -> Iterator[Batch]:
    """Yield the batches, and store a thumbnail of each encoder input under the index of its image."""
    for batch in loader:
        for index, x in zip(batch.indices.tolist(), batch.images, strict=True):
            thumbnails[index] = pad_to_square(x.permute(1, 2, 0).numpy(), THUMBNAIL_SIDE)
        yield batch


def _relative_title(title: str, source: str) -> str:
    """Return the title relative to the dataset's folder, or to the folder of the dataset's file."""
    path = Path(source).expanduser()
    root = path if path.is_dir() else path.parent
    return printable(title.removeprefix(f"{root}{os.sep}"))


def _center(features: Matrix) -> Matrix:
    """Subtract the mean from (n, d) features. Return zeros if only rounding error is left."""
    centered: Matrix = features - features.mean(axis=0)
    is_rounding = np.linalg.norm(centered) <= MIN_RELATIVE_NORM * np.linalg.norm(features)
    return np.zeros_like(centered) if is_rounding else centered


def _normalize(rows: Matrix) -> Matrix:
    """Scale rows to unit norm; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Matrix = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _tsne(features: Matrix) -> NDArray[np.float32]:
    """Map (n, d) features to (n, 2) by t-SNE of the normalized features. Return zeros if all are the same."""
    unit = _normalize(features)
    if not _center(unit).any():
        return np.zeros((len(features), 2), dtype=np.float32)
    perplexity = min(30, (len(features) - 1) / 3)
    points: NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)
    return points


def _cluster(centered: Matrix) -> NDArray[np.int64]:
    """Return (n,) k-means clusters of the normalized centered features. Cluster 0 is the largest."""
    unit = _normalize(centered)
    num_distinct = len(np.unique(unit.round(6), axis=0))
    count = max(1, min(MAX_CLUSTERS, len(unit) // MEAN_CLUSTER_SIZE, num_distinct))
    assignments = KMeans(count, n_init=4, random_state=0).fit(unit).labels_
    largest_first = np.argsort(-np.bincount(assignments, minlength=count), kind="stable")
    clusters: NDArray[np.int64] = largest_first.argsort()[assignments]
    return clusters


def _select_queries(groups: NDArray[np.int64]) -> list[int]:
    """Return rows that are spread over the groups. ``groups`` (n,) is the group of each row."""
    order = groups.argsort(kind="stable")
    queries: list[int] = order[np.linspace(0, len(order) - 1, min(MAX_QUERIES, len(order))).astype(int)].tolist()
    return queries


def _nearest_neighbors(centered: Matrix, queries: Sequence[int]) -> Iterator[tuple[int, list[tuple[float, int]]]]:
    """Yield each query, and cosine and row of its nearest neighbors."""
    unit = _normalize(centered)
    for query in queries:
        cosines = unit @ unit[query]
        nearest = [row for row in np.argsort(-cosines, kind="stable").tolist() if row != query][:MAX_NEIGHBORS]
        yield query, [(float(cosines[row]), row) for row in nearest]


def _feature_rank(singular_values: Matrix) -> float:
    """Return exp of the entropy of the normalized squared singular values; 0 if all are 0."""
    squares = singular_values[singular_values > 0] ** 2
    if not len(squares):
        return 0.0
    p = squares / squares.sum()
    return math.exp(-float((p * np.log(p)).sum()))
