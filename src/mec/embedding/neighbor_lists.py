"""Find near-duplicates and outliers by nearest neighbors of embeddings; list them in a .csv and draw them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mec.data.dataset import read_image
from mec.data.pixels import CorruptImageError, pad_to_square
from mec.embedding.extract import feature_table
from mec.embedding.neighbors import nearest
from mec.embedding.table import BLOCK_ROWS, EmbeddingTable, open_csv, write_output
from mec.engine.progress import ProgressBar
from mec.errors import InputError

logger = logging.getLogger("mec")

NEIGHBORS = 10
MAX_QUERIES = 2**18
"""Queries per pass over the whole table."""
NOISE_FLOOR = 1e-4
"""Distance from the mean below which an embedding is rounding noise, as a fraction of the norm of embeddings."""
OUTLIER_FRACTION, MIN_OUTLIERS = 0.01, 20
MAX_DRAWN = 24
CELL, GAP, MARGIN, LINE_HEIGHT = 144, 4, 16, 17
TEXT_COLOR, BACKGROUND = "#222222", "#ffffff"


def list_neighbors(table: EmbeddingTable, near_duplicates: bool, outliers: bool, similarity: float) -> None:
    """Write STEM.near-duplicates.csv and .png, and STEM.outliers.csv and .png, beside an embedding file.

    Args:
        table: the embedding file.
        near_duplicates: list pairs at or above ``similarity`` among the 10 nearest neighbors of each image.
        outliers: list the 1 % of the images (at least 20) with the largest mean distance to their 10 nearest neighbors.
        similarity: cosine of embeddings minus their mean.

    Raises:
        InputError: fewer than three images, or a full disk.
    """
    if len(table) < 3:
        raise InputError(f"near_duplicates, outliers: expected at least 3 images, got {len(table)} in {table.file}")
    pairs, similarities, scores = similar_pairs(centered(table.embeddings, len(table)), similarity)
    if near_duplicates:
        _list_near_duplicates(table, pairs, similarities)
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
    table: Tensor, similarity: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Find pairs of similar rows among the nearest neighbors of every row.

    Args:
        table: (n, d) rows of length 1.
        similarity: smallest cosine of a pair.

    Returns:
        Pairs of rows (p, 2), i < j, most similar first; their cosines (p,); and the mean cosine distance (n,) of each
        row to its nearest neighbors.
    """
    n = len(table)
    k = min(NEIGHBORS, n - 1)
    scores, candidates = np.empty(n), []
    with ProgressBar("neighbors", n * -(-n // MAX_QUERIES), unit="") as progress:
        for start in range(0, n, MAX_QUERIES):
            values, rows = nearest(table[start : start + MAX_QUERIES], table, k + 1, progress=progress.advance)
            queries = torch.arange(start, start + len(rows))
            other = rows != queries[:, None]
            other[other.all(dim=1), -1] = False  # more than k equal rows: the row itself is not among its k + 1 nearest
            values, rows = values[other].view(-1, k), rows[other].view(-1, k)
            scores[start : start + len(queries)] = 1 - values.double().mean(dim=1).numpy()
            near = (values >= similarity - 1e-4).nonzero()
            candidates.append(
                torch.stack([queries[near[:, 0]], rows[near[:, 0], near[:, 1]]], dim=1).sort(dim=1).values
            )
    pairs = np.unique(torch.cat(candidates).numpy(), axis=0)
    exact = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK_ROWS):
        first, second = (table[torch.from_numpy(side)].double() for side in pairs[start : start + BLOCK_ROWS].T)
        # computed from the distance, which is exactly 0 for equal rows
        exact[start : start + BLOCK_ROWS] = 1 - (first - second).square().sum(dim=1).numpy() / 2
    exact = exact.round(6)
    order = np.argsort(-exact, kind="stable")
    order = order[exact[order] >= similarity]
    return pairs[order], exact[order], scores


def groups_of(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the group (p,) of each pair (p, 2) of ``count`` rows: connected pairs, numbered from 1 in order of first
    occurrence."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1][pairs[:, 0]]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    groups: NDArray[np.int64] = first.argsort().argsort()[inverse] + 1
    return groups


def _list_near_duplicates(table: EmbeddingTable, pairs: NDArray[np.int64], similarities: NDArray[np.float64]) -> None:
    groups = groups_of(pairs, len(table))
    path = table.sibling("near-duplicates.csv")
    with write_output(path) as temporary, open_csv(temporary) as add:
        splits = ["split", "other_split"] if len(table.images.splits) > 1 else []
        add(["group", "similarity", "path", "other", *splits])
        for group, similarity, (i, j) in zip(groups.tolist(), similarities.tolist(), pairs.tolist(), strict=True):
            (title, _, *split), (other, _, *other_split) = table.row(i), table.row(j)
            add([group, f"{similarity:.6f}", title, other, *split, *other_split])
    # draw the closest pair of a group, for groups from the whole range of similarities: the threshold becomes visible
    closest = np.unique(groups, return_index=True)[1]
    drawn = closest[np.unique(np.linspace(0, len(closest) - 1, min(MAX_DRAWN, len(closest))).astype(int))]
    sizes = [len(np.unique(pairs[groups == groups[p]])) for p in drawn]
    captions = [f"{similarities[p]:.3f}, group {groups[p]}: {n} images" for p, n in zip(drawn, sizes, strict=True)]
    png = draw_contact_sheet(table, "near-duplicates.png", captions, pairs[drawn])
    count = f"{len(np.unique(pairs)):,} near-duplicates in {len(closest):,} groups"
    logger.info(f"{count}, listed in {path}; {png} shows some" if png else f"{count}; {path} is empty")


def _list_outliers(table: EmbeddingTable, scores: NDArray[np.float64]) -> None:
    count = min(len(scores), max(MIN_OUTLIERS, round(OUTLIER_FRACTION * len(scores))))
    rows = np.argsort(-scores, kind="stable")[:count]
    path = table.sibling("outliers.csv")
    with write_output(path) as temporary, open_csv(temporary) as add:
        add(["score", *table.images.columns])
        for row in rows.tolist():
            add([f"{scores[row]:.6f}", *table.row(row)])
    drawn = rows[:MAX_DRAWN]
    captions = [f"{scores[row]:.3f} {table.row(row)[1] or ''}" for row in drawn]
    png = draw_contact_sheet(table, "outliers.png", captions, drawn[:, None])
    logger.info(f"{count:,} outliers, listed in {path}; {png} shows the first")


def draw_contact_sheet(table: EmbeddingTable, suffix: str, captions: list[str], rows: NDArray[np.int64]) -> Path | None:
    """Draw images in cells, with a caption above each cell and file names below.

    Args:
        table: the embedding file.
        suffix: the image is written to STEM.suffix.
        captions: one per cell.
        rows: (cells, images side by side) rows of the table.

    Returns:
        The path; None without cells, after an old file of that name has been removed.
    """
    path = table.sibling(suffix)
    if not len(rows):
        path.unlink(missing_ok=True)
        return None
    # in ascending order, which is fast for streamed datasets
    images = {row: _image(table, row) for row in np.unique(rows).tolist()}
    per_cell = rows.shape[1]
    columns = min(len(rows), 8 // per_cell)
    width, height = per_cell * (CELL + GAP) + 3 * GAP, CELL + 2 * LINE_HEIGHT + 3 * GAP
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (2 * MARGIN + columns * width, 2 * MARGIN + lines * height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (caption, cell) in enumerate(zip(captions, rows.tolist(), strict=True)):
        left, top = MARGIN + number % columns * width, MARGIN + number // columns * height
        draw.text((left, top), _shorten(caption, 24 * per_cell), TEXT_COLOR, font)
        for position, row in enumerate(cell):
            x = left + position * (CELL + GAP)
            sheet.paste(images[row], (x, top + LINE_HEIGHT))
            name = "/".join(Path(table.row(row)[0] or "").parts[-2:])
            draw.text((x, top + LINE_HEIGHT + CELL + 2), _shorten(name, 22), TEXT_COLOR, font)
    with write_output(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _shorten(text: str, max_length: int) -> str:
    short = text if len(text) <= max_length else f"...{text[3 - max_length :]}"
    return short.encode("latin-1", "replace").decode("latin-1")  # the default font has Latin-1 only


def _image(table: EmbeddingTable, row: int) -> Image.Image:
    try:
        _, dataset, index = table.images.locate(int(table.indices[row]))
        return pad_to_square(read_image(dataset, index, table.pixel_format), CELL)
    except CorruptImageError:  # it has changed since it was embedded
        return Image.new("RGB", (CELL, CELL), BACKGROUND)
