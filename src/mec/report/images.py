"""Images of the page: thumbnails, training views, and what detection and tracking have drawn."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from mec.data.dataset import DataLike, data_name
from mec.data.pixels import resize_longer_side
from mec.engine.run_folder import SETTINGS_FILE
from mec.errors import InputError
from mec.evaluate.detection.detect import PREDICTED
from mec.evaluate.tracking.datasets.video import open_frames
from mec.evaluate.tracking.runner import PREVIEWS
from mec.evaluate.tracking.sequences import SequenceError
from mec.pretraining.contact_sheet import training_views
from mec.pretraining.run_folder import Run
from mec.report.record import Missing, clip, find_data, frame_stride, missing_data

logger = logging.getLogger("mec")

IMAGE_QUALITY, SPRITE_QUALITY = 75, 55  # WebP quality of single images, and of sprite sheets
NUM_VIEW_IMAGES, NUM_PAIRS = 4, 3  # images with training views, and pairs of views of each
VIEW_SIDE, MAX_GALLERY_SIDE = 96, 480  # longer side in pixels of a view, and of an image of detection and tracking
MAX_GALLERY_IMAGES = 3  # images per folder of detections or tracks, and number of videos
MAX_NAMES = 10  # of files that cannot be read, in a note
FRAME_INDEX = 30  # frame of a video to show; the middle frame of a video that is shorter than twice as many


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page: its data: URI, its description in plain text, and its size in pixels."""

    uri: str
    alt: str
    width: int
    height: int
    label: str = ""  # name of its class


@dataclass(frozen=True)
class SpriteSheet:
    """Many thumbnails in one image, row by row, ``columns`` per row, of ``cell_size`` x ``cell_size`` pixels."""

    uri: str
    columns: int
    cell_size: int


@dataclass(frozen=True)
class NearestNeighbors:
    """A query image, and cosine similarity and image of its nearest neighbors. The alt texts are titles and labels."""

    query: EmbeddedImage
    neighbors: list[tuple[float, EmbeddedImage]]


class EmbeddedViews(NamedTuple):
    """An image and pairs (or more) of views of it, as training makes them."""

    image: EmbeddedImage
    pairs: list[tuple[EmbeddedImage, ...]]


def embed_image(image: Image.Image, alt: str, label: str = "") -> EmbeddedImage:
    return EmbeddedImage(_webp_uri(image, IMAGE_QUALITY), alt, image.width, image.height, label)


def embed_sprites(thumbnails: Sequence[Image.Image], cell_size: int) -> SpriteSheet:
    """Arrange thumbnails of ``cell_size`` x ``cell_size`` pixels row by row in a nearly square image."""
    columns = math.isqrt(len(thumbnails) - 1) + 1
    sheet = Image.new("RGB", (columns * cell_size, -(-len(thumbnails) // columns) * cell_size))
    for index, thumbnail in enumerate(thumbnails):
        sheet.paste(thumbnail, (index % columns * cell_size, index // columns * cell_size))
    return SpriteSheet(_webp_uri(sheet, SPRITE_QUALITY), columns, cell_size)


def _webp_uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def printable(text: str) -> str:
    """Replace what UTF-8 cannot encode by question marks. File names may contain any bytes."""
    return text.encode(errors="replace").decode()


def embed_views(run: Path, data: DataLike | None) -> list[EmbeddedViews] | Missing:
    """Return images of ``data``, else of the run's dataset, and the pairs of views of each in the first epochs."""
    try:
        recipe = Run(run).recipe()
    except (InputError, OSError) as error:
        return Missing(f"The run's recipe cannot be read: {error}")
    if "view_transform" in recipe.parts:
        return Missing(
            f"The views were made by {clip(recipe.parts['view_transform'], 200)}, an object passed to mec.pretrain "
            "as view_transform. This page cannot draw them; mec.contact_sheet(..., view_transform=...) can."
        )
    dataset = find_data(run, data)
    if isinstance(dataset, Missing):
        return dataset
    logger.info(f"views: {NUM_PAIRS} pairs of each of {NUM_VIEW_IMAGES} images of {printable(data_name(dataset))}")
    try:
        recipe = replace(recipe, frame_stride=frame_stride(recipe, dataset))
        sampled = training_views(dataset, recipe, NUM_VIEW_IMAGES, NUM_PAIRS)
    except InputError as error:
        return missing_data(data, error)

    def embed(view: Tensor, index: int, title: str, epoch: int) -> EmbeddedImage:
        image = resize_longer_side(view.permute(1, 2, 0).numpy(), VIEW_SIDE)
        return embed_image(image, f"view {index} of {title}, epoch {epoch}")

    rows = []
    for sample in sampled:
        title = printable(Path(sample.title).name)
        pairs = [
            tuple(embed(x, number, title, epoch) for number, x in enumerate(views, 1))
            for epoch, views in enumerate(sample.pairs, 1)
        ]
        rows.append(EmbeddedViews(embed_image(resize_longer_side(sample.image, VIEW_SIDE), title), pairs))
    return rows


def load_gallery(run: Path) -> tuple[list[EmbeddedImage], list[str]]:
    """Return tracking previews, images with predicted boxes, and with PyAV a frame of each video, newest first; and a
    sentence that counts and names what cannot be read, if anything."""
    images: list[EmbeddedImage] = []
    unreadable: list[str] = []
    for file, caption in [*_tracking_previews(run, unreadable), *_predicted_images(run)]:
        try:
            # JPEG is the only format that mec writes there; other files are not opened
            with Image.open(file, formats=["JPEG"]) as image:
                image.draft("RGB", (MAX_GALLERY_SIDE, MAX_GALLERY_SIDE))
                images.append(_embed_shrunk(image, caption))
        except (OSError, ValueError, Image.DecompressionBombError):
            unreadable.append(str(file.relative_to(run)))
    for file in _newest_first([*run.glob("*.mp4"), *run.glob("*/*.mp4")])[:MAX_GALLERY_IMAGES]:
        try:
            frames = open_frames(file)
            frame = next(islice(frames, min(len(frames) // 2, FRAME_INDEX), None), None)
        except (InputError, SequenceError) as error:
            unreadable.append(f"{file.relative_to(run)} ({error})")
            continue
        if frame is not None:
            images.append(_embed_shrunk(Image.fromarray(frame), f"video: a frame of {file.relative_to(run)}"))
    if not unreadable:
        return images, []
    names = ", ".join(unreadable[:MAX_NAMES]) + (", ..." if len(unreadable) > MAX_NAMES else "")
    return images, [printable(f"Detections and tracks: {len(unreadable)} cannot be read and are not shown ({names}).")]


def _tracking_previews(run: Path, unreadable: list[str]) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first(run.glob(f"*/{PREVIEWS}")):
        try:
            settings = json.loads((folder.parent / SETTINGS_FILE).read_text())
            task, encoder = str(settings["task"]), str(settings["encoder"])
        except (OSError, ValueError, KeyError, TypeError):
            unreadable.append(str((folder.parent / SETTINGS_FILE).relative_to(run)))
            continue
        for file in sorted(folder.rglob("*.jpg"))[:MAX_GALLERY_IMAGES]:
            yield file, f"{task}: {file.relative_to(folder).with_suffix('')}, tracked with the {encoder}"


def _predicted_images(run: Path) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first([*run.glob(PREDICTED), *run.glob(f"*/{PREDICTED}"), *run.glob(f"*/*/{PREDICTED}")]):
        detector = folder.parent.relative_to(run)
        for file in _newest_first(folder.rglob("*.jpg"))[:MAX_GALLERY_IMAGES]:
            yield file, f"detect: {file.relative_to(folder)}, predicted by the detector in {detector}"


def _embed_shrunk(image: Image.Image, caption: str) -> EmbeddedImage:
    image = image.convert("RGB")
    image.thumbnail((MAX_GALLERY_SIDE, MAX_GALLERY_SIDE))
    return embed_image(image, printable(caption))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (-path.stat().st_mtime_ns, path))
