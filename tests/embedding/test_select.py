"""Images to label next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

import mec
from mec.embedding import select
from mec.embedding.select import choose_images
from mec.errors import InputError
from mec.models.encoder import create_encoder


def unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def blobs(counts: list[int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(np.eye(8)[np.repeat(np.arange(len(counts)), counts)] + 0.1 * rng.normal(size=(sum(counts), 8)))


@pytest.mark.parametrize("max_clusters", [4, 500])
def test_the_choice_is_that_of_a_loop(max_clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MAX_CLUSTERS", max_clusters)
    embeddings, is_labeled = blobs([30, 50, 40, 25]), np.zeros(145, dtype=bool)
    is_labeled[[0, 100]] = True
    chosen, sizes = choose_images(torch.from_numpy(embeddings), is_labeled, 6)
    cluster = KMeans(min(8, max_clusters), n_init=1, random_state=0).fit_predict(embeddings)
    x = embeddings.astype(np.float64)
    labeled, expected = set(np.flatnonzero(is_labeled).tolist()), []
    for _ in range(6):
        counts = {c: sum(cluster[i] == c for i in labeled) for c in range(cluster.max() + 1)}
        best = min(counts, key=lambda c: (counts[c], -(cluster == c).sum(), c))
        members = np.flatnonzero(cluster == best)
        distances = np.linalg.norm(x[members][:, None] - x[members], axis=2)
        nearest = np.sort(distances, axis=1)[:, 1 : min(20, len(members) - 1) + 1].mean(axis=1)
        row = next(int(members[i]) for i in np.argsort(nearest) if members[i] not in labeled)
        expected.append((row, int((cluster == best).sum())))
        labeled.add(row)
    assert list(zip(chosen.tolist(), sizes.tolist(), strict=True)) == expected


def test_every_group_gets_a_label_before_any_gets_two() -> None:
    chosen, _ = choose_images(torch.from_numpy(blobs([100, 10, 50, 10])), np.zeros(170, dtype=bool), 4)
    groups = np.repeat(np.arange(4), [100, 10, 50, 10])[chosen]
    assert sorted(groups.tolist()) == [0, 1, 2, 3]
    assert groups[0] == 0  # the largest first


def test_all_images_can_be_chosen_once() -> None:
    chosen, _ = choose_images(torch.from_numpy(blobs([3, 4])), np.zeros(7, dtype=bool), 7)
    assert sorted(chosen.tolist()) == list(range(7))


def write_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for n in range(24):
        pixels = np.array([60 + 60 * (n % 3), 90, 90]) + rng.integers(-20, 20, (24, 24, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n:02}.png")
    return folder


def test_images_to_label_are_listed_and_drawn(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    encoder = create_encoder("resnet18", 24, 3, options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}).eval()
    mec.embed(images, encoder, tmp_path / "table.parquet", select=5, workers=0)
    listed = pd.read_csv(tmp_path / "table.select.csv")
    assert listed["rank"].tolist() == [1, 2, 3, 4, 5]
    assert listed["path"].nunique() == 5
    assert (tmp_path / "table.select.png").exists()
    # labels of some images: the others are listed
    known = tmp_path / "known.csv"
    names = [path.name for path in sorted(images.iterdir())]
    lines = [*(f"images/{name},a" for name in names[:20]), *(f"images/{name}," for name in names[20:])]
    known.write_text("\n".join(["path,label", *lines]))
    mec.embed(known, encoder, tmp_path / "others.parquet", select=3, workers=0)
    others = pd.read_csv(tmp_path / "others.select.csv")
    assert {Path(path).name for path in others["path"]} <= set(names[20:])
    with pytest.raises(InputError, match=r"^select: expected at most 4, the number of images without label, got 5$"):
        mec.embed(known, encoder, tmp_path / "others.parquet", select=5, workers=0)
    with pytest.raises(InputError, match=r"^select: expected at least 1, got 0$"):
        mec.embed(images, encoder, tmp_path / "more.parquet", select=0, workers=0)
