"""Nearest neighbors of features; near-duplicates and outliers of embeddings, listed in a .csv and drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mec.data.dataset import read_image
from mec.data.image_grid import SIDE, Cell, image_grid
from mec.data.loaders import evaluation_loader
from mec.data.pixels import CorruptImageError, pad_to_square
from mec.embedding.extract import BATCH, best_device, feature_table, pixel_format_of
from mec.embedding.parts import AllSplits, open_csv, thumbnails_file, write_output
from mec.embedding.thumbnails import PIXELS, standardized, thumbnails
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

BANK_ROWS, QUERY_ROWS = 8192, 1024  # block of the similarity matrix that is held at a time: 32 MiB
BLOCK_ROWS = 8192  # embeddings read at a time
NEIGHBORS = 10
NOISE_FLOOR = 1e-4
"""Distance from the mean below which an embedding is rounding noise, as a fraction of the norm of embeddings."""
OUTLIER_FRACTION, MIN_OUTLIERS = 0.01, 20
MAX_ALIKE = 0.25
"""Fraction of images with similar embeddings above which the similarity is probably too low for the encoder."""
MAX_DRAWN, IMAGES_PER_ROW = 24, 8


@torch.no_grad()
def nearest(
    queries: Tensor, bank: Tensor, k: int, progress: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines (n, k), descending, and rows (n, k) of the ``k`` most similar rows of a bank for each query.

    ``queries`` (n, d) and ``bank`` (b, d), which may be memory-mapped, are on the CPU. The search is exact. Blocks of
    the bank pass through the device once; ``progress`` gets the number of rows of each.
    """
    device = best_device()
    similarity = torch.full((len(queries), k), -torch.inf)
    rows = torch.zeros((len(queries), k), dtype=torch.int64)
    for start in range(0, len(bank), BANK_ROWS):
        block = F.normalize(bank[start : start + BANK_ROWS].to(device, torch.float32), dim=1)
        for first in range(0, len(queries), QUERY_ROWS):
            chunk = slice(first, first + QUERY_ROWS)
            cosines = F.normalize(queries[chunk].to(device, torch.float32), dim=1) @ block.T
            values, columns = cosines.topk(min(k, len(block)), dim=1)
            candidates = torch.cat([similarity[chunk].to(device), values], dim=1)
            candidate_rows = torch.cat([rows[chunk].to(device), columns + start], dim=1)
            values, columns = candidates.topk(k, dim=1)
            similarity[chunk], rows[chunk] = values.cpu(), candidate_rows.gather(1, columns).cpu()
        if progress is not None:
            progress(len(block))
    return similarity, rows


@dataclass(frozen=True)
class EmbeddingTable:
    """An embedding file, and the images ``indices`` (n,) of its rows."""

    file: Path
    images: AllSplits
    indices: NDArray[np.int64]
    encoder: Encoder
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, row: int) -> list[str | None]:
        """Return path, label and split of the image of a row."""
        return self.images.row(int(self.indices[row]))

    def image(self, row: int) -> Image.Image:
        """Return the image of a row for a grid."""
        _, dataset, index = self.images.locate(int(self.indices[row]))
        try:
            return pad_to_square(read_image(dataset, index, pixel_format_of(self.encoder)), SIDE)
        except CorruptImageError:  # it has changed since it was embedded
            return Image.new("RGB", (SIDE, SIDE), "white")

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings in blocks (m, d), read from the file."""
        if self.file.suffix.lower() == ".npy":
            mapped = np.load(self.file, mmap_mode="r")
            yield from (np.asarray(mapped[start : start + BLOCK_ROWS]) for start in range(0, len(mapped), BLOCK_ROWS))
            return
        with pq.ParquetFile(self.file) as table:
            for batch in table.iter_batches(BLOCK_ROWS, columns=["embedding"]):
                column = batch.column(0)
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    def thumbnails(self) -> Iterator[NDArray[np.float16]]:
        """Yield the thumbnails of the rows in blocks (m, 256). If none were kept, read the images again for them."""
        path = thumbnails_file(self.file)
        if not path.exists():
            with write_output(path) as temporary, temporary.open("wb") as file:
                np.save(file, self._make_thumbnails())
        mapped = np.load(path, mmap_mode="r")
        if mapped.shape != (len(self), PIXELS):
            raise InputError(f"out: {path} has the shape {mapped.shape}, expected {(len(self), PIXELS)}; remove it")
        yield from (np.asarray(mapped[start : start + BLOCK_ROWS]) for start in range(0, len(mapped), BLOCK_ROWS))

    def _make_thumbnails(self) -> NDArray[np.float16]:
        logger.info(f"{self.file} was written without thumbnails: reading the images again")
        all_thumbnails, first = np.zeros((len(self.images), PIXELS), dtype=np.float16), 0
        with ProgressBar("thumbnails", len(self.images)) as progress:
            for dataset in self.images.splits.values():
                pixel_format, size = pixel_format_of(self.encoder), self.encoder.image_size
                for batch in evaluation_loader(dataset, pixel_format, size, BATCH, self.workers):
                    if len(batch.indices):  # images that have become unreadable stay flat
                        all_thumbnails[first + batch.indices] = thumbnails(batch.images)
                    progress.advance(len(batch.indices) + len(batch.corrupt))
                first += len(dataset)
        return all_thumbnails[self.indices]


def list_neighbors(
    table: EmbeddingTable, near_duplicates: bool, outliers: bool, similarity: float, correlation: float
) -> None:
    """Write STEM.near-duplicates.csv and .png, and STEM.outliers.csv and .png, beside an embedding file."""
    if len(table) < 3:
        raise InputError(f"near_duplicates, outliers: expected at least 3 images, got {len(table)} in {table.file}")
    untrained = table.encoder.untrained
    if untrained:
        effects = [
            "near-duplicates are found by their thumbnails only, so that crops of an image are missed",
            "outliers are images of unusual color or texture",
        ]
        effect = "; ".join(text for text, wanted in zip(effects, (near_duplicates, outliers), strict=True) if wanted)
        logger.warning(f"the encoder is untrained: {effect}")
    embeddings = centered(table.embeddings, len(table))
    pairs, scores = np.empty((0, 2), dtype=np.int64), np.empty(0)
    if outliers or not untrained:
        pairs, _, scores = similar_pairs(embeddings, similarity)
    if near_duplicates:
        _list_near_duplicates(table, embeddings, pairs[: 0 if untrained else None], correlation)
    if outliers:
        _list_outliers(table, scores)


def centered(blocks: Callable[[], Iterator[NDArray[np.float32]]], rows: int) -> Tensor:
    """Subtract the mean and normalize: embeddings (rows, d), read twice -> (rows, d + 1) float32 of length 1.

    Embeddings of most encoders share a large mean, which would make all cosines alike. The last column is a constant
    noise floor: embeddings equal to the mean up to rounding, whose directions are noise, become equal.
    """
    total, squares = np.zeros(1), 0.0
    for block in blocks():
        exact = block.astype(np.float64)
        total, squares = total + exact.sum(axis=0), squares + float((exact**2).sum())
    mean, floor = torch.from_numpy(total / rows), NOISE_FLOOR * (squares / rows) ** 0.5 or 1.0
    table, start = feature_table(rows, len(mean) + 1, torch.float32), 0
    for block in blocks():
        padded = F.pad(torch.from_numpy(block.astype(np.float64)) - mean, (0, 1), value=floor)
        table[start : start + len(padded)] = F.normalize(padded, dim=1).float()
        start += len(padded)
    return table


def similar_pairs(
    table: Tensor, similarity: float, label: str = "neighbors"
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Find pairs of similar rows among the nearest neighbors of every row of a table (n, d) of rows of length 1.

    Return pairs (p, 2), i < j, most similar first, their cosines (p,), and mean cosine distances (n,) to neighbors.
    """
    n = len(table)
    k = min(NEIGHBORS, n - 1)
    with ProgressBar(label, n, unit="") as progress:
        values, rows = nearest(table, table, k + 1, progress=progress.advance)
    other = rows != torch.arange(n)[:, None]
    other[other.all(dim=1), -1] = False  # more than k equal rows: the row itself is not among its k + 1 nearest
    values, rows = values[other].view(-1, k), rows[other].view(-1, k)
    scores = 1 - values.double().mean(dim=1).numpy()
    near = (values >= similarity - 1e-4).nonzero()
    pairs = np.unique(torch.stack([near[:, 0], rows[near[:, 0], near[:, 1]]], dim=1).sort(dim=1).values.numpy(), axis=0)
    exact = cosines_of(table, pairs)
    order = np.argsort(-exact, kind="stable")
    order = order[exact[order] >= similarity]
    return pairs[order], exact[order], scores


def cosines_of(table: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosines (p,) of pairs (p, 2) of rows of a table (n, d) of rows of length 1; NaN for rows of zeros."""
    exact = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK_ROWS):
        first, second = (table[torch.from_numpy(side)].double() for side in pairs[start : start + BLOCK_ROWS].T)
        # computed from the distance, which is exactly 0 for equal rows
        cosines = 1 - (first - second).square().sum(dim=1) / 2
        exact[start : start + BLOCK_ROWS] = cosines.where(first.any(dim=1) & second.any(dim=1), torch.nan).numpy()
    return exact.round(6)


def groups_of(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the group (p,) of each pair (p, 2) of ``count`` rows: connected pairs, numbered from 1 in order of first
    occurrence."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1][pairs[:, 0]]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    groups: NDArray[np.int64] = first.argsort().argsort()[inverse] + 1
    return groups


def _list_near_duplicates(
    table: EmbeddingTable, embeddings: Tensor, similar: NDArray[np.int64], correlation: float
) -> None:
    """List the pairs whose thumbnails correlate, then the other pairs ``similar`` (p, 2) of embeddings."""
    small = standardized(table.thumbnails(), len(table))
    pairs = np.concatenate([similar_pairs(small, correlation, "thumbnails")[0], similar])
    pairs = np.unique(pairs, axis=0)
    similarities, correlations = cosines_of(embeddings, pairs), cosines_of(small, pairs)
    is_copy = correlations >= correlation  # False for NaN
    order = np.lexsort((-np.where(is_copy, correlations, similarities), ~is_copy))
    pairs, is_copy, similarities, correlations = pairs[order], is_copy[order], similarities[order], correlations[order]
    groups = groups_of(pairs, len(table))
    path = table.file.with_suffix(".near-duplicates.csv")
    with write_output(path) as temporary, open_csv(temporary) as add:
        splits = ["split", "other_split"] if len(table.images.splits) > 1 else []
        add(["group", "found_by", "correlation", "similarity", "path", "other", *splits])
        for p, (i, j) in enumerate(pairs.tolist()):
            (title, _, *split), (other, _, *other_split) = table.row(i), table.row(j)
            cells = ["" if np.isnan(x) else f"{x:.6f}" for x in (correlations[p], similarities[p])]
            found_by = "thumbnail" if is_copy[p] else "embedding"
            add([groups[p], found_by, *cells, title, other, *split, *other_split])
    # draw the closest pair of a group, for groups from the whole range of similarities: the thresholds become visible
    closest = np.unique(groups, return_index=True)[1]
    drawn = closest[np.unique(np.linspace(0, len(closest) - 1, min(MAX_DRAWN, len(closest))).astype(int))]
    captions = []
    for p in drawn:
        value = f"correlation {correlations[p]:.3f}" if is_copy[p] else f"similarity {similarities[p]:.3f}"
        captions.append(f"{value}, group {groups[p]}: {_count(len(np.unique(pairs[groups == groups[p]])), 'image')}")
    png = draw(table, path.with_suffix(".png"), captions, pairs[drawn])
    found = f"{_count(len(pairs), 'pair')} of near-duplicates"
    if png is None:
        logger.info(f"{found}; {path} is empty")
        return
    by_thumbnail = int(is_copy.sum())
    alike = len(np.unique(pairs[~is_copy]))
    if alike > MAX_ALIKE * len(table):
        logger.warning(
            f"similarity: {alike:,} of {len(table):,} images have near-duplicates by embeddings alone, as with an "
            "encoder that is hardly trained, or frames of one scene; raise it if the drawn pairs are different images"
        )
    sizes = f"{_count(len(np.unique(pairs)), 'image')} in {_count(len(closest), 'group')}"
    found += f" ({by_thumbnail:,} by thumbnails, {len(pairs) - by_thumbnail:,} by embeddings alone): {sizes}"
    logger.info(f"{found}, listed in {path}; {png} shows some")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _list_outliers(table: EmbeddingTable, scores: NDArray[np.float64]) -> None:
    count = max(round(OUTLIER_FRACTION * len(scores)), min(MIN_OUTLIERS, -(-len(scores) // 4)))
    rows = np.argsort(-scores, kind="stable")[:count]
    path = table.file.with_suffix(".outliers.csv")
    with write_output(path) as temporary, open_csv(temporary) as add:
        add(["score", *table.images.columns])
        for row in rows.tolist():
            add([f"{scores[row]:.6f}", *table.row(row)])
    drawn = rows[:MAX_DRAWN]
    captions = [f"{scores[row]:.3f} {table.row(row)[1] or ''}" for row in drawn]
    png = draw(table, path.with_suffix(".png"), captions, drawn[:, None])
    logger.info(f"{_count(count, 'outlier')}, listed in {path}; {png} shows the first")


def draw(table: EmbeddingTable, path: Path, captions: list[str], rows: NDArray[np.int64]) -> Path | None:
    """Draw cells of images ``rows`` (cells, images side by side) with their captions. Return the path, None without
    cells, after an old file of that name has been removed."""
    if not len(rows):
        path.unlink(missing_ok=True)
        return None
    # loaded in ascending order, which is fast for shards
    images = {row: table.image(row) for row in np.unique(rows).tolist()}
    names = {row: "/".join(Path(table.row(row)[0] or "").parts[-2:]) for row in images}
    cells = [
        Cell(caption, [images[row] for row in cell], [names[row] for row in cell])
        for caption, cell in zip(captions, rows.tolist(), strict=True)
    ]
    grid = image_grid(cells, min(len(cells), IMAGES_PER_ROW // rows.shape[1]))
    with write_output(path) as temporary:
        grid.save(temporary, format="PNG")
    return path
