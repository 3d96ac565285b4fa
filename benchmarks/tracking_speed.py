"""How fast is tracking, how much of it is the encoder, and how much memory does it take?

python benchmarks/tracking_speed.py --data FOLDER [--encoder ENCODER] [--frames 12]   (with OTB100, davis16-subset)

Label propagation is compared with a plain implementation: similarities between all cells of all frames, and topk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from machine import Memory, write
from mec.evaluate.tracking.appearance import box_features, letterbox
from mec.evaluate.tracking.association import AssociationSettings, OnlineTracker
from mec.evaluate.tracking.datasets.davis import open_mask_sequences
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.sequences import Frames
from mec.evaluate.tracking.sot import TRACKERS, track_box
from mec.evaluate.tracking.vos import LabelPropagation, track_masks


def main(data: str = "data", encoder: str = "resnet18", stage: str = "s3", frames: int = 12, objects: int = 40) -> None:
    """Time each tracker on real frames.

    Args:
        data: folder with OTB100 and davis16-subset.
        encoder: a run folder, a file of weights or a timm name.
        stage: stage of the encoder.
        frames: frames of each video.
        objects: boxes in a frame, for association.
    """
    dense = DenseFeatures(encoder, stage)
    masks = open_mask_sequences(str(Path(data) / "davis16-subset"), ["blackswan"])["blackswan"]()
    boxes = open_box_sequences(Path(data) / "OTB100", ["Jogging-1"])["Jogging-1"]()
    first = masks.ground_truth(0)
    assert first is not None
    clip = _Clip(masks.frames, frames)
    list(track_masks(_Clip(masks.frames, 2), first, dense))  # warm up
    rows: dict[str, Any] = {}
    with Memory() as memory:
        rows["vos"] = _timed(dense, frames, lambda: list(track_masks(clip, first, dense)))
    rows["vos"]["extra MiB"] = round(memory.peak - memory.before)
    maps = [dense(dense.preprocess(frame)) for frame in clip]
    labels = torch.from_numpy(np.stack([first == 0, first > 0])).float().to(dense.device)
    coarse = F.interpolate(labels[None], size=maps[0].shape[2:], mode="bilinear")[0]
    LabelPropagation(maps[0], coarse, dense.stride).step(maps[1])  # warm up
    propagation = LabelPropagation(maps[0], coarse, dense.stride)
    started = time.perf_counter()
    propagated = [propagation.step(features) for features in maps[1:]]
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    expected = list(propagate_plainly(maps, coarse))
    plain_seconds = time.perf_counter() - started
    differences = [(a.argmax(0) != b.argmax(0)).float().mean() for a, b in zip(propagated, expected, strict=True)]
    encoder_seconds = rows["vos"]["seconds per frame"] * rows["vos"]["encoder fraction"]
    steps = frames - 1
    rows["vos propagation"] = {
        "seconds per frame": round(seconds / steps, 3),
        "plain seconds per frame": round(plain_seconds / steps, 3),
        "speedup": round(plain_seconds / seconds, 2),
        "speedup with the encoder": round(
            (plain_seconds / steps + encoder_seconds) / (seconds / steps + encoder_seconds), 2
        ),
        "fraction of cells with another label": float(np.mean([float(d) for d in differences])),
    }
    for tracker in TRACKERS:
        clip_of_boxes = _Clip(boxes.frames, frames)
        rows[f"sot {tracker}"] = _timed(
            dense, frames, lambda f=clip_of_boxes, t=tracker: list(track_box(f, boxes.ground_truth[0], dense, t))
        )
    rows[f"mot, {objects} boxes"] = _timed(dense, frames, lambda: _associate(dense, clip, objects))
    for name, row in rows.items():
        print(name, row)
    question = "speed of tracking, and of label propagation compared with a plain implementation"
    write("tracking_speed", question, encoder=encoder, stage=stage, frames=frames, rows=rows)


class _Clip:
    def __init__(self, frames: Frames, count: int) -> None:
        self.frames, self.count, self.frame_rate = frames, count, frames.frame_rate

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.frames), self.count)


def _timed(dense: DenseFeatures, frames: int, call: Any) -> dict[str, Any]:
    before, started = dense.seconds, time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    return {
        "seconds per frame": round(seconds / frames, 3),
        "frames per second": round(frames / seconds, 2),
        "encoder fraction": round((dense.seconds - before) / seconds, 3),
    }


def _associate(dense: DenseFeatures, clip: _Clip, objects: int) -> None:
    tracker = OnlineTracker(AssociationSettings())
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [rng.uniform(0, 750, objects), rng.uniform(0, 300, objects), *rng.uniform(40, 160, (2, objects))]
    )
    for frame in clip:
        tracker.step(boxes, box_features(letterbox(dense.preprocess(frame), dense), boxes, dense))
        boxes = boxes + rng.normal(0, 2, boxes.shape) * (1, 1, 0, 0)


@torch.no_grad()
def propagate_plainly(maps: list[Tensor], labels: Tensor) -> Iterator[Tensor]:
    """Propagate labels with every similarity computed, for 100 queries at a time because of the memory."""
    height, width = maps[0].shape[2:]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([row.flatten(), column.flatten()], 1).float().to(maps[0].device)
    far = torch.cdist(positions, positions) >= 12
    features = [F.normalize(feature_map[0], dim=0).flatten(1) for feature_map in maps]
    propagated = [labels.flatten(1)]
    for n in range(1, len(maps)):
        previous = [max(0, i) for i in range(n - 5, n)]
        keys = torch.cat([features[0], *(features[i] for i in previous)], 1)
        values = torch.cat([propagated[0], *(propagated[i] for i in previous)], 1)
        blocks = []
        for start in range(0, height * width, 100):
            similarity = features[n][:, start : start + 100].T @ keys
            similarity[:, height * width :].masked_fill_(far[start : start + 100].repeat(1, 5), -torch.inf)
            best, indices = similarity.topk(10, dim=1)
            blocks.append((values[:, indices] * (best / 0.05).softmax(1)).sum(2))
        propagated.append(torch.cat(blocks, 1))
        yield propagated[-1].view(-1, height, width)


if __name__ == "__main__":
    auto_cli(main)
