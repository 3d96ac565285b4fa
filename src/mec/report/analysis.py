"""Analyze an encoder's features of a dataset: t-SNE map, clusters, nearest neighbors and spectrum."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import entropy
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from torch import nn

from mec.data.dataset import DataLike, ImageDataset, data_name, evenly_spaced, label_of, read_image
from mec.data.datasets import open_dataset
from mec.data.loaders import evaluation_loader
from mec.data.pixels import pad_to_square, resize_longer_side
from mec.data.transforms.crop import Batch
from mec.embedding.extract import BATCH, apply_to_images, best_device, check_channels, feature_function, pixel_format_of
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder
from mec.models.io import SPEC_FILE, load_encoder
from mec.pretraining.run_folder import Run
from mec.report.images import EmbeddedImage, NearestNeighbors, SpriteSheet, embed_image, embed_sprites, printable
from mec.report.record import Missing, find_data, find_weights, frame_stride, missing_data

logger = logging.getLogger("mec")

THUMBNAIL_SIDE, NEIGHBOR_SIDE = 48, 96  # of the map, and longer side of queries and neighbors, in pixels
MAX_QUERIES = MAX_NEIGHBORS = 8
MAX_CLUSTERS, MEAN_CLUSTER_SIZE = 10, 5  # largest number, and smallest mean number of images
CPU_SECONDS, MIN_IMAGES = 120, 100  # for embedding on a CPU; as many images are embedded even if it takes longer
MIN_RELATIVE_NORM = 1e-5
"""Norm of the centered features, relative to that of the features, below which it is float32 rounding error."""
MIN_RELATIVE_VALUE = 1e-6
"""Singular value, relative to the largest, below which it is float32 rounding error and stands for 0."""
CACHE_FORMAT = 3  # files of another version are ignored

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureAnalysis:
    """Features of n images, analyzed."""

    points: NDArray[np.float32]  # (n, 2) t-SNE of the features
    titles: list[str]  # n, plain text
    labels: list[str] | None  # n class names; None for unlabeled images
    clusters: NDArray[np.int64]  # (n,) k-means cluster of each image
    sprites: SpriteSheet  # thumbnails of the n images
    neighbors: list[NearestNeighbors]  # of some images
    singular_values: Matrix  # (min(n - 1, d),) of the centered features, descending, divided by their sum
    feature_rank: float  # exp of the entropy of the normalized squared singular values
    images: str = ""  # description ("1,000 of the 3,969 images of photographs/")
    encoder: str = ""  # description ("the encoder after 1,200 steps")


def analyze_features(
    run: Path, data: DataLike | None, max_images: int, network: nn.Module | None = None
) -> FeatureAnalysis | Missing:
    """Analyze the features of the trained encoder, or of the newest checkpoint while the run is unfinished.

    Uses ``data``, or else the dataset of the run: its test split if it is labeled, and at most ``max_images``, fewer
    where a CPU would take minutes. Caches the analysis in the run folder, until encoder, data or ``max_images`` change.
    ``network`` is that of an encoder that is not from timm.
    """
    weights, source = find_weights(run), find_data(run, data)
    if isinstance(weights, Missing):
        return weights
    if isinstance(source, Missing):
        return source
    weights_file, encoder_description = weights
    title = printable(data_name(source))
    cache = run / "report" / "features.json"
    try:
        key = [CACHE_FORMAT, encoder_description, *_fingerprint(weights_file), title, max_images]
        if isinstance(source, str) and (cached := _load(cache, key)) is not None:
            return cached
        encoder = load_encoder(weights_file, **({} if network is None else {"backbone": network}))
    except (InputError, OSError) as error:
        return Missing(f"The encoder cannot be read: {error}")
    try:
        dataset, noun = _open_test_split(run, source)
        check_channels(dataset, encoder, source)
        count = min(len(dataset), _affordable_images(encoder, max_images))
        quantity = "all" if count == len(dataset) else f"{count:,} of the"
        description = f"{quantity} {len(dataset):,} {noun} of {title}"
        logger.info(f"features: embedding {description} with {encoder_description}")
        analysis = _analyze(dataset, _sample_indices(dataset, count), encoder, source)
    except InputError as error:  # no such dataset, or too many of its images are corrupt
        return missing_data(data, error)
    if isinstance(analysis, FeatureAnalysis):
        if num_corrupt := count - len(analysis.titles):
            description += f", {num_corrupt:,} of which cannot be read"
        analysis = replace(analysis, images=description, encoder=encoder_description)
        text = json.dumps({"key": key, "analysis": asdict(analysis)}, default=np.ndarray.tolist)
        with suppress(OSError), atomic_write(cache) as temporary:  # the run folder may not be writable
            temporary.write_text(text)
    return analysis


def _fingerprint(weights_file: Path) -> tuple[str, str]:
    digest, spec = hashlib.sha256(), weights_file.with_name(SPEC_FILE)
    with weights_file.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest(), spec.read_text() if spec.exists() else ""


def _load(cache: Path, key: list[object]) -> FeatureAnalysis | None:
    """Read the cached analysis. Return None if there is none with this key, or if its file is damaged."""
    try:
        cached = json.loads(cache.read_text())
        if cached["key"] != key:
            return None
        fields = cached["analysis"]
        for name, dtype in (("points", np.float32), ("clusters", np.int64), ("singular_values", np.float64)):
            fields[name] = np.array(fields[name], dtype)
        fields["sprites"] = SpriteSheet(**fields["sprites"])
        fields["neighbors"] = [
            NearestNeighbors(EmbeddedImage(**row["query"]), [(c, EmbeddedImage(**i)) for c, i in row["neighbors"]])
            for row in fields["neighbors"]
        ]
        return FeatureAnalysis(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_test_split(run: Path, source: DataLike) -> tuple[ImageDataset, str]:
    """Return the test split of a labeled dataset or all images of an unlabeled one, and a noun for them."""
    try:
        recipe = Run(run).recipe()
        sampling = recipe.subsample, frame_stride(recipe, source)
    except (InputError, OSError):  # the recipe is damaged, or of another version
        sampling = None, None
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
    """Sample evenly, stratified by class. From shards, sample the images that are fastest to read."""
    if dataset.labels is None or not dataset.random_access:
        return evenly_spaced(dataset, count)
    order = np.random.default_rng(0).permutation(len(dataset))
    order = order[np.asarray(dataset.labels)[order].argsort(kind="stable")]
    return np.sort(order[np.linspace(0, len(order) - 1, count).astype(int)])


def _analyze(
    dataset: ImageDataset, sampled_indices: NDArray[np.int64], encoder: Encoder, source: DataLike
) -> FeatureAnalysis | Missing:
    sample = dataset.subset(sampled_indices)
    thumbnails: dict[int, Image.Image] = {}
    pixel_format = pixel_format_of(encoder)
    loader = _collect_thumbnails(evaluation_loader(sample, pixel_format, encoder.image_size, BATCH), thumbnails)
    outputs, rows = apply_to_images(sample, loader, "features", feature_function(encoder, best_device()))
    features, indices = outputs.double().numpy(), rows.tolist()
    if len(indices) < 2:
        return Missing("The map needs at least two readable images.")
    if not np.isfinite(features).all():
        return Missing("The encoder's features are not finite: training has diverged.")
    path = Path(data_name(source)).expanduser()
    root = f"{path if path.is_dir() else path.parent}{os.sep}"
    titles = [printable(dataset.title(int(sampled_indices[index])).removeprefix(root)) for index in indices]
    labels = None
    if sample.labels is not None:
        labels = [printable(label_of(sample, index) or "no label") for index in indices]
    centered = _center(features)
    clusters = _cluster(centered)
    captions = titles if labels is None else [f"{t} ({label})" for t, label in zip(titles, labels, strict=True)]
    groups = clusters if labels is None else np.unique(labels, return_inverse=True)[1]

    def embed(row: int) -> EmbeddedImage:
        image = read_image(sample, indices[row], pixel_format)
        return embed_image(resize_longer_side(image, NEIGHBOR_SIDE), captions[row], labels[row] if labels else "")

    # the mean takes one direction of n images away: the n-th singular value of centered features is rounding error
    values = torch.linalg.svdvals(torch.from_numpy(centered)).numpy()[: len(centered) - 1]
    values = np.where(values > MIN_RELATIVE_VALUE * values[0], values, 0)
    return FeatureAnalysis(
        points=_tsne(features),
        titles=titles,
        labels=labels,
        clusters=clusters,
        sprites=embed_sprites([thumbnails[index] for index in indices], THUMBNAIL_SIDE),
        neighbors=[
            NearestNeighbors(embed(query), [(cosine, embed(row)) for cosine, row in nearest])
            for query, nearest in _nearest_neighbors(centered, groups)
        ],
        singular_values=values / max(values.sum(), np.finfo(np.float64).tiny),
        feature_rank=math.exp(entropy(values**2)) if values.any() else 0.0,
    )


def _collect_thumbnails(loader: Iterable[Batch], thumbnails: dict[int, Image.Image]) -> Iterator[Batch]:
    """Yield the batches, and store a thumbnail of each encoder input under the index of its image."""
    for batch in loader:
        for index, x in zip(batch.indices.tolist(), batch.images, strict=True):
            thumbnails[index] = pad_to_square(x.permute(1, 2, 0).numpy(), THUMBNAIL_SIDE)
        yield batch


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


def _nearest_neighbors(centered: Matrix, groups: NDArray[np.int64]) -> Iterator[tuple[int, list[tuple[float, int]]]]:
    """Yield queries that are spread over the groups (n,) of the rows, each with cosine and row of its neighbors."""
    unit, order = _normalize(centered), groups.argsort(kind="stable")
    for query in order[np.linspace(0, len(order) - 1, min(MAX_QUERIES, len(order))).astype(int)].tolist():
        cosines = unit @ unit[query]
        nearest = [row for row in np.argsort(-cosines, kind="stable").tolist() if row != query][:MAX_NEIGHBORS]
        yield query, [(float(cosines[row]), row) for row in nearest]
