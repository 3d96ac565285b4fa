"""Reader and writer of masks in the layout of DAVIS (Perazzi 2016, Pont-Tuset 2017) and YouTube-VOS."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import check_folder, count, image_files, read_list
from mec.evaluate.tracking.sequences import (
    VOID,
    ImageFrames,
    Labels,
    MaskSequence,
    SequenceError,
    SequenceLoaders,
    image_size,
    select_sequences,
)

logger = logging.getLogger("mec")

FRAMES = "JPEGImages"
MASKS = ("Annotations", "Annotations_unsupervised")
RESOLUTIONS = ("480p", "Full-Resolution", "1080p")  # the first that exists is read; published results are for 480p
LISTS = ("2017/val.txt", "2016/val.txt", "480p/val.txt", "1080p/val.txt")
"""Files in ImageSets, in order of preference. The last two, from DAVIS 2016, have a line for every frame."""

PixelValues = NDArray[np.integer[Any]]  # (height, width): an index, a gray level, or red, green and blue as one number
Colors = NDArray[np.uint8]  # (256, 3) RGB, by index or label
GRAY, WHITE = 0x010101, 255  # one gray level where red, green and blue are one number, and the level of white
PALETTE = np.array(
    [[sum((i >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)] for i in range(256)],
    np.uint8,
)
"""The palette of PASCAL VOC and DAVIS: every third bit of an index goes to the same color, lowest bit first."""
RGB = np.array([1 << 16, 1 << 8, 1])
PALETTE_LABELS = {value: label for label, value in enumerate((PALETTE @ RGB).tolist())}


@dataclass(frozen=True)
class _MaskEncoding:
    """The label encoding of the masks of a sequence, read from the first mask."""

    labels: Mapping[int, int]  # label of each pixel value; other values are background
    indexed: bool  # whether pixels are indices or gray levels rather than colors
    colors: Colors


def open_mask_sequences(data: str | Path, names: Sequence[str] | None = None) -> SequenceLoaders[MaskSequence]:
    """Return loaders of the sequences by name. The ids of the objects in the first mask are the labels 1 to 254.

    A mask is a PNG of indices, gray levels or colors. Indices and gray levels are ids, and 255 is void. If the first
    mask is black and white only, white is the one object, as in DAVIS 2016. Colors of DAVIS's palette are its indices.
    Otherwise each color is an object, ordered by red, green and blue. Transparent pixels are background, and so are
    objects that the first mask lacks, as in DAVIS's evaluation; this is logged. All masks are checked on loading, not
    after tracking. ``data`` has JPEGImages and Annotations, or is the parent. Without ``names``, DAVIS's val list is
    loaded, else all with masks.
    """
    root, images, masks, description = _folders(Path(data))
    with_masks = sorted(_subfolder_names(masks))
    available = sorted(_subfolder_names(images) | set(with_masks))
    if names:
        selected = list(select_sequences(dict.fromkeys(available), names))
    elif file := next((root / "ImageSets" / name for name in LISTS if (root / "ImageSets" / name).is_file()), None):
        # a line is the name of a sequence, or the paths of a frame and its mask
        lines = read_list(file)
        paths = [PurePosixPath(line.split()[0]).parent.name if "/" in line else line for line in lines]
        selected = list(dict.fromkeys(paths))
        description += f"; the {count(len(selected), 'sequence')} of {file}, of {len(available):,} in the folders"
    else:
        selected = with_masks
        description += f"; no ImageSets/{LISTS[0]}, so all sequences with masks"
        if others := [name for name in available if name not in with_masks]:
            description += f", {len(others):,} have none, such as {others[0]}"
    if not set(selected) & set(available):
        first = f"; the first is {selected[0]}" if selected else ""
        raise InputError(f"data: none of {len(selected)} sequences is in {images}{first}")
    return SequenceLoaders({name: partial(_load, name, images / name, masks / name) for name in selected}, description)


def _folders(data: Path) -> tuple[Path, Path, Path, str]:
    """Return the folder with JPEGImages, the folders of the sequences' frames and masks, and a description of them."""
    check_folder(data)
    candidates = [data] if (data / FRAMES).is_dir() else [data / name for name in sorted(_subfolder_names(data))]
    roots = [folder for folder in candidates if (folder / FRAMES).is_dir()]
    if len(roots) != 1:
        matches = ", ".join(folder.name for folder in roots) or "none"
        raise InputError(f"data: expected {FRAMES} in {data} or in exactly one of its folders, got {matches}")
    images = roots[0] / FRAMES
    sizes = [size for size in RESOLUTIONS if (images / size).is_dir()] or [""]
    pairs = [(size, name) for size in sizes for name in MASKS if (roots[0] / name / size).is_dir()]
    for size, name in pairs[:1]:
        description = f"DAVIS's layout, masks in {roots[0] / name / size}"
        if others := [f"{name}/{size}".rstrip("/") for size, name in pairs[1:]]:
            description += f", not {', '.join(others)}"
        return roots[0], images / size, roots[0] / name / size, description
    raise InputError(f"data: {roots[0]} has {FRAMES} but no {MASKS[0]} of the same resolution; expected both")


def _subfolder_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _load(name: str, images: Path, masks: Path) -> MaskSequence:
    frames = image_files(images)
    names = [file.stem for file in frames]
    if len(set(names)) != len(names) or not names:
        raise SequenceError(f"{images}: {'two frames have the same name' if names else 'no frames'}")
    files = _masks_by_frame(names, masks)
    sizes = [image_size(file) for file in frames]
    for file, size in zip(frames, sizes, strict=True):
        if size != sizes[0]:
            raise SequenceError(f"{file}: {_size_mismatch(size, sizes[0])} the first frame")
    encoding = _mask_encoding(files[0])
    objects, present, late = _objects(files, encoding, sizes[0])
    if late:
        logger.warning(
            f"{name}: {len(late)} masks, first {late[0].name}, have objects that the first mask lacks; they are "
            "background"
        )
    evaluated = tuple(i for i in files if 0 < i < len(names) - 1)
    absent = objects - set().union(*(present[i] for i in evaluated))
    if evaluated and absent == objects:
        raise SequenceError(f"{masks}: no object of the first mask in the {len(evaluated):,} masks that are evaluated")
    if evaluated and absent:
        logger.info(f"{name}: {count(len(absent), 'object')} of {len(objects)} appear in the first mask only")
    if 1 < len(files) < len(names):
        logger.info(f"{name}: {len(files):,} of {count(len(names), 'frame')} have masks")
    if not evaluated:
        logger.warning(f"{name}: no metrics, no frame between the first and the last has a mask")

    def ground_truth(frame: int) -> Labels | None:
        return _read_labels(files[frame], encoding, sizes[0])[0] if frame in files else None

    return MaskSequence(
        name, ImageFrames(tuple(frames)), tuple(names), ground_truth, encoding.colors, len(objects), evaluated
    )


def _objects(
    files: Mapping[int, Path], encoding: _MaskEncoding, size: tuple[int, int]
) -> tuple[set[int], dict[int, set[int]], list[Path]]:
    """Read all masks. Return the objects of the first, the objects of each, and files with other pixel values."""
    present, late = {}, []
    for i, file in files.items():
        labels, has_others = _read_labels(file, encoding, size)
        present[i] = set(np.unique(labels).tolist()) - {0, VOID}
        late += [file] * has_others
    return present[0], present, late


def _masks_by_frame(names: Sequence[str], folder: Path) -> dict[int, Path]:
    """Return the mask files by the index of their frame."""
    masks = image_files(folder, {".png"})
    indices = {name: i for i, name in enumerate(names)}
    if stray := [file for file in masks if file.stem not in indices]:
        raise SequenceError(f"{stray[0]}: a mask without a frame")
    files = {indices[file.stem]: file for file in masks}
    step = list(files)[1] if len(files) > 1 else len(names)
    if list(files) != list(range(0, len(names), step)):
        missing = next(name for i, name in enumerate(names) if i not in files)
        raise SequenceError(
            f"{folder}: {len(files)} masks for {len(names)} frames, {missing}.png is the first missing one; "
            "expected masks of every frame, of every n-th frame or of the first frame only"
        )
    return files


def _size_mismatch(size: Sequence[int], expected: Sequence[int]) -> str:
    return "{1} x {0} pixels, expected {3} x {2} as in".format(*size, *expected)


def _read_pixels(file: Path) -> tuple[PixelValues, Colors | None]:
    """Return the pixel values, and the palette unless they are colors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's do not name the file
            with Image.open(file, formats=("PNG",)) as image:
                image.load()
    except Exception as error:  # Pillow raises exceptions of many types for a damaged file
        reason = "not a PNG" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise SequenceError(f"{file}: {reason}") from error
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
        return np.asarray(image), np.concatenate([palette, PALETTE[len(palette) :]])
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L")), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if image.mode not in ("RGB", "RGBA"):
        raise SequenceError(f"{file}: expected indices, gray levels or colors of 8 bits, got mode {image.mode}")
    pixels = np.asarray(image.convert("RGBA"))
    return pixels[..., :3] @ RGB * (pixels[..., 3] > 0), None


def _mask_encoding(file: Path) -> _MaskEncoding:
    """Infer the encoding from the first mask of a sequence."""
    pixels, palette = _read_pixels(file)
    values = [int(value) for value in np.unique(pixels) if value]
    unit = GRAY if palette is None else 1
    is_gray = not any(value % GRAY for value in values) if palette is None else bool((palette[WHITE] == WHITE).all())
    if is_gray:
        labels = {level * unit: label for level, label in _gray_labels(file, [v // unit for v in values]).items()}
    elif palette is None and not set(values) <= set(PALETTE_LABELS):
        labels = dict(zip(values, range(1, VOID), strict=False))
    else:
        labels = {value: PALETTE_LABELS[value] if palette is None else value for value in values}
    if len(labels) < len(values):
        raise SequenceError(f"{file}: expected one color for each of up to {VOID - 1} objects, got {len(values)}")
    if not set(labels.values()) - {VOID}:
        raise SequenceError(f"{file}: no object in the first mask")
    colors = (PALETTE if palette is None else palette).copy()
    for value, label in labels.items():
        colors[label] = (value >> 16, value >> 8 & 255, value & 255) if palette is None else palette[value]
    void = WHITE * unit if is_gray or palette is not None else int(PALETTE[VOID] @ RGB)
    return _MaskEncoding({void: VOID, **labels}, palette is not None, colors)


def _gray_labels(file: Path, levels: list[int]) -> dict[int, int]:
    if levels == [WHITE]:
        return {WHITE: 1}
    if WHITE in levels and levels[:-1] != list(range(1, len(levels))):  # probably an anti-aliased edge
        raise SequenceError(f"{file}: expected labels 1, 2 ..., or only white on black, got gray levels {levels[:5]}")
    return {level: level for level in levels}


def _read_labels(file: Path, encoding: _MaskEncoding, size: tuple[int, int]) -> tuple[Labels, bool]:
    """Return the labels, and whether the mask has other pixel values, which become background."""
    pixels, palette = _read_pixels(file)
    if (palette is not None) != encoding.indexed:
        expected = "indices or gray levels" if encoding.indexed else "colors"
        raise SequenceError(f"{file}: expected {expected} as in the first mask")
    if pixels.shape != size:
        raise SequenceError(f"{file}: {_size_mismatch(pixels.shape, size)} its frame")
    labels = np.zeros(size, np.uint8)
    for value, label in encoding.labels.items():
        labels[pixels == value] = label
    return labels, bool(((pixels != 0) & (labels == 0)).any())


def write_masks(folder: Path, sequence: MaskSequence, labels: Iterable[Labels]) -> None:
    """Write FOLDER/SEQUENCE/FRAME.png for every frame. Raises ValueError for fewer or more labels than frames."""
    write_labels(folder / sequence.name, zip(sequence.names, labels, strict=True))


def write_labels(folder: Path, labels: Iterable[tuple[str, Labels]]) -> None:
    """Write indexed PNGs, void as background, by name into a new folder that replaces ``folder`` atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for name, frame_labels in labels:
            image = Image.fromarray(np.where(frame_labels == VOID, 0, frame_labels).astype(np.uint8))
            image.putpalette(PALETTE.tobytes())
            image.save(new / f"{name}.png")
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)


def read_mask(file: Path, size: tuple[int, int]) -> tuple[Labels, Colors]:
    """Read one PNG: its labels (h, w) and their colors (256, 3). Raises SequenceError."""
    encoding = _mask_encoding(file)
    return _read_labels(file, encoding, size)[0], encoding.colors


def read_masks(folder: Path, sequence: MaskSequence) -> list[Labels] | None:
    """Read the labels that ``write_masks`` wrote; None if a mask is missing, damaged or has another size."""
    first = sequence.ground_truth(0)
    assert first is not None
    try:
        masks = [_read_pixels(folder / sequence.name / f"{name}.png") for name in sequence.names]
    except SequenceError:
        return None
    if any(palette is None or pixels.shape != first.shape for pixels, palette in masks):
        return None
    return [pixels.astype(np.uint8) for pixels, _ in masks]
