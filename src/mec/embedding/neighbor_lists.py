"""What the neighbors of embeddings tell: near-duplicates and outliers, as a .csv and as a sheet of images."""

from __future__ import annotations

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
from mec.embedding.table import BLOCK, Embedded, open_csv, writing
from mec.engine.progress import ProgressBar, log
from mec.errors import InputError

NEIGHBORS = 10
QUERIES = 2**18
"""Images whose neighbors are sought at once: the whole table is read for each."""
FLOOR = 1e-4
"""Distance from the mean, as a share of the length of embeddings, below which there is but rounding."""
OUTLIERS, LEAST_OUTLIERS = 0.01, 20
SHOWN = 24
CELL, GAP, MARGIN, LINE = 144, 4, 16, 17
INK, PAPER = "#222222", "#ffffff"

Neighbors = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def list_neighbors(made: Embedded, near_duplicates: bool, outliers: bool, similarity: float) -> None:
    """Write STEM.near-duplicates.csv and .png, STEM.outliers.csv and .png beside a file of embeddings.

    Args:
        made: the file.
        near_duplicates: list pairs at or above ``similarity`` among the 10 nearest of each image.
        outliers: list the 1 % (at least 20) that are farthest from their 10 nearest.
        similarity: cosine of embeddings less their mean.

    Raises:
        InputError: fewer than three images, or no room for what is written.
    """
    count = len(made.numbers)
    if count < 3:
        raise InputError(f"near_duplicates, outliers: {made.file} has {count} images, expected at least 3")
    pairs, values, scores = neighbors(centered(made.embeddings, count), similarity)
    if near_duplicates:
        _list_near_duplicates(made, pairs, values)
    if outliers:
        _list_outliers(made, scores)


def centered(blocks: Callable[[], Iterator[NDArray[np.float32]]], rows: int) -> Tensor:
    """Embeddings (rows, d), gone through twice -> (rows, d + 1) float32 of length 1: without their mean, which most
    encoders give to every image.

    The last number is a floor: embeddings at the mean, whose directions are but rounding, are then all alike.
    """
    total, squares = np.zeros(1), 0.0
    for block in blocks():
        exact = block.astype(np.float64)
        total, squares = total + exact.sum(axis=0), squares + float((exact**2).sum())
    mean, floor = torch.from_numpy(total / rows), FLOOR * (squares / rows) ** 0.5 or 1.0
    table, start = feature_table(rows, len(mean) + 1, torch.float32), 0
    for block in blocks():
        less = F.pad(torch.from_numpy(block.astype(np.float64)) - mean, (0, 1), value=floor)
        table[start : start + len(less)] = F.normalize(less, dim=1).float()
        start += len(less)
    return table


def neighbors(table: Tensor, similarity: float) -> Neighbors:
    """Pairs of rows (p, 2), i < j, at or above a similarity among the nearest of either, the most similar first;
    their similarities (p,); and of each row the mean cosine distance (n,) to its nearest.

    ``table`` (n, d) has rows of length 1.
    """
    n = len(table)
    k = min(NEIGHBORS, n - 1)
    scores, found = np.empty(n), []
    with ProgressBar("neighbors", n * -(-n // QUERIES), unit="") as shown:
        for start in range(0, n, QUERIES):
            values, rows = nearest(table[start : start + QUERIES], table, k + 1, progress=shown.advance)
            queries = torch.arange(start, start + len(rows))
            other = rows != queries[:, None]
            other[other.all(dim=1), -1] = False  # more than k are the same as it, and itself is not among them
            values, rows = values[other].view(-1, k), rows[other].view(-1, k)
            scores[start : start + len(queries)] = 1 - values.double().mean(dim=1).numpy()
            near = (values >= similarity - 1e-4).nonzero()
            found.append(torch.stack([queries[near[:, 0]], rows[near[:, 0], near[:, 1]]], dim=1).sort(dim=1).values)
    pairs = np.unique(torch.cat(found).numpy(), axis=0)
    exact = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = (table[torch.from_numpy(side)].double() for side in pairs[start : start + BLOCK].T)
        # by the distance, which is 0 for what is the same
        exact[start : start + BLOCK] = 1 - (first - second).square().sum(dim=1).numpy() / 2
    exact = exact.round(6)
    order = np.argsort(-exact, kind="stable")
    order = order[exact[order] >= similarity]
    return pairs[order], exact[order], scores


def groups_of(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Pairs (p, 2) of ``count`` rows -> the group (p,) of each: pairs that hang together, from 1 as they first come."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1][pairs[:, 0]]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    groups: NDArray[np.int64] = first.argsort().argsort()[inverse] + 1
    return groups


def _list_near_duplicates(made: Embedded, pairs: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    groups = groups_of(pairs, len(made.numbers))
    path = made.beside("near-duplicates.csv")
    with writing(path) as temporary, open_csv(temporary) as add:
        splits = ["split", "other_split"][: 2 * (len(made.whole.splits) > 1)]
        add(["group", "similarity", "path", "other", *splits])
        for group, value, (i, j) in zip(groups.tolist(), values.tolist(), pairs.tolist(), strict=True):
            (one, _, *split), (other, _, *other_split) = made.row(i), made.row(j)
            add([group, f"{value:.6f}", one, other, *split, *other_split])
    # every group once, by its closest pair; from all over, so that it is seen where they cease to be duplicates
    closest = np.unique(groups, return_index=True)[1]
    some = closest[np.unique(np.linspace(0, len(closest) - 1, min(SHOWN, len(closest))).astype(int))]
    sizes = [len(np.unique(pairs[groups == groups[p]])) for p in some]
    captions = [f"{values[p]:.3f}, group {groups[p]}: {size} images" for p, size in zip(some, sizes, strict=True)]
    drawn = draw(made, "near-duplicates.png", captions, pairs[some])
    found = f"{len(np.unique(pairs)):,} near-duplicates in {len(closest):,} groups"
    log(f"{found}, in {path}; {drawn} shows some" if drawn else f"{found}; {path} is empty")


def _list_outliers(made: Embedded, scores: NDArray[np.float64]) -> None:
    count = min(len(scores), max(LEAST_OUTLIERS, round(OUTLIERS * len(scores))))
    most = np.argsort(-scores, kind="stable")[:count]
    path = made.beside("outliers.csv")
    with writing(path) as temporary, open_csv(temporary) as add:
        add(["score", *made.whole.columns])
        for row in most.tolist():
            add([f"{scores[row]:.6f}", *made.row(row)])
    shown = most[:SHOWN]
    captions = [f"{scores[row]:.3f} {made.row(row)[1] or ''}" for row in shown]
    drawn = draw(made, "outliers.png", captions, shown[:, None])
    log(f"the {count:,} images that are farthest from all others are in {path}; {drawn} shows the first")


def draw(made: Embedded, kind: str, captions: list[str], units: NDArray[np.int64]) -> Path | None:
    """A sheet of images (units, side by side), by row of the file, a caption above each unit and their names below.

    Without any unit there is none, nor what was there before.
    """
    path = made.beside(kind)
    if not len(units):
        path.unlink(missing_ok=True)
        return None
    # in rising order, which is quick where images are streamed
    cells = {row: _cell(made, row) for row in np.unique(units).tolist()}
    beside = units.shape[1]
    columns = min(len(units), 8 // beside)
    wide, high = beside * (CELL + GAP) + 3 * GAP, CELL + 2 * LINE + 3 * GAP
    lines = -(-len(units) // columns)
    sheet = Image.new("RGB", (2 * MARGIN + columns * wide, 2 * MARGIN + lines * high), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (caption, unit) in enumerate(zip(captions, units.tolist(), strict=True)):
        left, top = MARGIN + number % columns * wide, MARGIN + number // columns * high
        pen.text((left, top), _legible(caption, 24 * beside), INK, font)
        for place, row in enumerate(unit):
            at = left + place * (CELL + GAP)
            sheet.paste(cells[row], (at, top + LINE))
            name = "/".join(Path(made.row(row)[0] or "").parts[-2:])
            pen.text((at, top + LINE + CELL + 2), _legible(name, 22), INK, font)
    with writing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _legible(text: str, most: int) -> str:
    short = text if len(text) <= most else f"...{text[3 - most :]}"
    return short.encode("latin-1", "replace").decode("latin-1")


def _cell(made: Embedded, row: int) -> Image.Image:
    try:
        _, dataset, index = made.whole.place(int(made.numbers[row]))
        return pad_to_square(read_image(dataset, index, made.reading), CELL)
    except CorruptImageError:  # it was there when it was embedded
        return Image.new("RGB", (CELL, CELL), PAPER)
