"""Masks to follow, of DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017) or YouTube-VOS, and masks that are found."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.tracking.sequences import (
    VOID,
    ImageFrames,
    Labels,
    MaskSequence,
    SequenceError,
    SequenceLoaders,
    image_size,
)

FRAMES = "JPEGImages"
MASKS = ("Annotations", "Annotations_unsupervised")
RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
"""The first that is there is taken; published figures are those of 480p. YouTube-VOS has no such folder."""
LISTS = ("2017/val.txt", "2016/val.txt", "480p/val.txt", "1080p/val.txt")
"""Within ImageSets, the first that is there; the last two, of DAVIS 2016 itself, have a line for every frame."""

Codes = NDArray[np.integer[Any]]
"""(height, width): what a file of masks has in each pixel: an index, a gray, or red, green and blue as one number."""
Colors = NDArray[np.uint8]
"""(256, 3), of indices or labels."""
GRAY, WHITE = 0x010101, 255
"""A step of gray where red, green and blue are one number, and the steps to white."""
PALETTE = np.array(
    [[sum((i >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)] for i in range(256)],
    np.uint8,
)
"""VOC's, which is DAVIS's: every third bit of an index goes to the same color, the lowest to its highest."""
RGB = np.array([1 << 16, 1 << 8, 1])
KNOWN = {code: label for label, code in enumerate((PALETTE @ RGB).tolist())}


@dataclass(frozen=True)
class _Coding:
    """What the masks of one sequence mean, as the first of them has it. ``labels``: by code; the rest is background."""

    labels: Mapping[int, int]
    indexed: bool
    colors: Colors


def open_mask_sequences(data: str | Path, names: Sequence[str] | None = None) -> SequenceLoaders[MaskSequence]:
    """Sequences with objects in their first masks; the ids of these objects are labels 1 to 254 wherever they appear.

    A mask is a PNG of indices, of grays or of colors. Indices and grays are ids, 255 is void; but where the first mask
    has nothing but black and white, white is the one object, as in DAVIS 2016. Colors of DAVIS's palette are its
    indices; of others, each is an object, in the order of red, green and blue. Transparent is background.

    Masks are those of every frame, of every n-th, or of the first alone. Objects that the first mask lacks are
    background, as in DAVIS's evaluation; which sequences have some is said. A sequence is looked through when it is
    loaded, so that nothing breaks after it was tracked; frames alone are decoded later.

    Args:
        data: the folder that has JPEGImages and Annotations, or the one above.
        names: of the sequences; None takes the list of DAVIS 2017's val, else of 2016's, else all that have masks, and
            says so.

    Raises:
        InputError: no such layout or sequence. SequenceError: later, by one that is loaded.
    """
    root = _root(Path(data))
    images, masks = _folders(root)
    there = sorted(_inner(images) | _inner(masks))
    if names is None:
        names = _listed(root, images, masks)
    elif unknown := [name for name in names if name not in there]:
        near = ", ".join(difflib.get_close_matches(unknown[0], there, n=3))
        hint = f"did you mean {near}?" if near else f"it has {', '.join(there[:5])}"
        raise InputError(f"sequences: {images} has no sequence {unknown[0]!r}; {hint}")
    if not names:
        raise InputError(f"data: expected folders with masks in {masks}, one for each sequence, got none")
    if not set(names) & set(there):
        raise InputError(f"data: none of {len(names)} sequences is in {images}; the first is {names[0]}")
    return {name: partial(_load, name, images / name, masks / name) for name in names}


def _root(data: Path) -> Path:
    if not data.is_dir():
        raise InputError(f"data: expected a folder in the layout of DAVIS, got {data}, which is none")
    if (data / FRAMES).is_dir():
        return data
    below = [data / name for name in sorted(_inner(data)) if (data / name / FRAMES).is_dir()]
    if len(below) != 1:
        found = ", ".join(folder.name for folder in below) or "none"
        raise InputError(f"data: expected {FRAMES} in {data} or in one folder within it; got {found}")
    return below[0]


def _folders(root: Path) -> tuple[Path, Path]:
    """Of the frames and of the masks."""
    tops = [top for top in MASKS if (root / top).is_dir()]
    if not tops:
        raise InputError(f"data: {root} has {FRAMES}; expected {MASKS[0]} beside it")
    sizes = [size for size in RESOLUTIONS if any((root / top / size).is_dir() for top in (FRAMES, *tops))]
    for size in sizes or [""]:
        for top in tops:
            if (root / FRAMES / size).is_dir() and (root / top / size).is_dir():
                return root / FRAMES / size, root / top / size
    raise InputError(f"data: {root} has no {FRAMES} and {tops[0]} of the same of {', '.join(sizes)}")


def _inner(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")}


def _listed(root: Path, images: Path, masks: Path) -> list[str]:
    for file in (root / "ImageSets" / name for name in LISTS):
        if file.is_file():
            lines = filter(None, map(str.strip, file.read_text("utf-8-sig", "replace").splitlines()))
            # a name, or a frame and its mask
            names = list(dict.fromkeys(PurePosixPath(w.split()[0]).parent.name if "/" in w else w for w in lines))
            log(f"data: the {len(names)} sequences of {file}, frames of {images}")
            return names
    names = sorted(_inner(masks))
    log(f"data: no ImageSets/{LISTS[0]} in {root}; all {len(names)} sequences of {masks}")
    return names


def _load(name: str, images: Path, masks: Path) -> MaskSequence:
    frames = _files(images, (".jpg", ".jpeg", ".png"))
    if not frames:
        raise SequenceError(f"{images}: no frames")
    names = [file.stem for file in frames]
    if len(set(names)) < len(names):
        raise SequenceError(f"{images}: two frames of one name")
    files = _of_frames(names, _files(masks, (".png",)), masks)
    sizes = [image_size(file) for file in frames]
    if odd := [i for i, size in enumerate(sizes) if size != sizes[0]]:
        raise SequenceError(f"{frames[odd[0]]}: {_differ(sizes[odd[0]], sizes[0])} the first frame")
    coding = _coding(files[0])
    if late := [file.name for file in files.values() if _read_labels(file, coding, sizes[0])[1]]:
        log(
            f"{name}: objects that the first mask lacks are background; {late[0]} is the first of {len(late)} with some"
        )
    truth = partial(_truth, files, coding, sizes[0])
    return MaskSequence(name, ImageFrames(tuple(frames)), tuple(names), truth, coding.colors)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """In order, where 10 comes after 9; none where there is no folder."""
    found = [f for f in folder.glob("*") if f.suffix.lower() in suffixes and not f.name.startswith(".")]
    return sorted(found, key=lambda f: (len(f.stem), f.stem))


def _of_frames(names: Sequence[str], masks: Sequence[Path], folder: Path) -> dict[int, Path]:
    """Masks by the number of their frame."""
    places = {name: i for i, name in enumerate(names)}
    if stray := [file for file in masks if file.stem not in places]:
        raise SequenceError(f"{stray[0]}: a mask without a frame")
    files = {places[file.stem]: file for file in masks}
    if 0 not in files:
        raise SequenceError(f"{folder}: no mask of the first frame, {names[0]}.png")
    step = list(files)[1] if len(files) > 1 else len(names)
    if list(files) != list(range(0, len(names), step)):
        lacking = next(name for i, name in enumerate(names) if i not in files)
        raise SequenceError(
            f"{folder}: {len(files)} masks for {len(names)} frames, {lacking}.png is the first that is missing; "
            "expected those of every frame, of every n-th or of the first alone"
        )
    return files


def _differ(came: Sequence[int], expected: Sequence[int]) -> str:
    return "{1} x {0} pixels, expected {3} x {2} as in".format(*came, *expected)


def _read_codes(file: Path) -> tuple[Codes, Colors | None]:
    """And the colors of indices and grays."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.load()
    except Exception as error:  # Pillow raises every kind for a damaged file
        words = "not a PNG" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise SequenceError(f"{file}: {words}") from error
    if image.mode == "P":
        own = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
        return np.asarray(image), np.concatenate([own, PALETTE[len(own) :]])
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L")), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if image.mode not in ("RGB", "RGBA"):
        raise SequenceError(f"{file}: an image of mode {image.mode}; expected indices, grays or colors of 8 bit")
    pixels = np.asarray(image.convert("RGBA"))
    return pixels[..., :3] @ RGB * (pixels[..., 3] > 0), None


def _coding(file: Path) -> _Coding:
    """Of the first mask."""
    values, palette = _read_codes(file)
    codes = [int(code) for code in np.unique(values) if code]
    unit = GRAY if palette is None else 1
    is_gray = not any(code % GRAY for code in codes) if palette is None else bool((palette[WHITE] == WHITE).all())
    if is_gray:
        labels = {level * unit: label for level, label in _grays(file, [code // unit for code in codes]).items()}
    elif palette is None and not set(codes) <= set(KNOWN):
        labels = dict(zip(codes, range(1, VOID), strict=False))
    else:
        labels = {code: KNOWN[code] if palette is None else code for code in codes}
    if len(labels) < len(codes):
        raise SequenceError(f"{file}: {len(codes)} colors; expected one for each of up to {VOID - 1} objects")
    if not set(labels.values()) - {VOID}:
        raise SequenceError(f"{file}: no object in the first mask")
    colors = (PALETTE if palette is None else palette).copy()
    for code, label in labels.items():
        colors[label] = (code >> 16, code >> 8 & 255, code & 255) if palette is None else palette[code]
    void = WHITE * unit if is_gray or palette is not None else int(PALETTE[VOID] @ RGB)
    return _Coding({void: VOID, **labels}, palette is not None, colors)


def _grays(file: Path, levels: list[int]) -> dict[int, int]:
    if levels == [WHITE]:
        return {WHITE: 1}
    if WHITE in levels and levels[:-1] != list(range(1, len(levels))):  # an edge that was smoothed, by its looks
        words = ", ".join(map(str, levels[:5]))
        raise SequenceError(f"{file}: grays {words} ...; expected labels 1, 2 ..., or white alone on black")
    return {level: level for level in levels}


def _read_labels(file: Path, coding: _Coding, size: tuple[int, int]) -> tuple[Labels, bool]:
    """And whether there is something else, which is background."""
    values, palette = _read_codes(file)
    if (palette is not None) != coding.indexed:
        kind = "indices or grays" if coding.indexed else "colors"
        raise SequenceError(f"{file}: expected {kind} as in the first mask")
    if values.shape != size:
        raise SequenceError(f"{file}: {_differ(values.shape, size)} its frame")
    labels = np.zeros(size, np.uint8)
    for code, label in coding.labels.items():
        labels[values == code] = label
    return labels, bool(((values != 0) & (labels == 0)).any())


def _truth(files: Mapping[int, Path], coding: _Coding, size: tuple[int, int], frame: int) -> Labels | None:
    return _read_labels(files[frame], coding, size)[0] if frame in files else None


def write_masks(folder: Path, sequence: MaskSequence, labels: Iterable[Labels]) -> None:
    """``write_labels`` to FOLDER/SEQUENCE/FRAME.png, one for every frame, the first one too; others: ValueError."""
    write_labels(folder / sequence.name, zip(sequence.names, labels, strict=True))


def write_labels(final: Path, labels: Iterable[tuple[str, Labels]]) -> None:
    """The folder ``final`` with PNGs of indices, by name, with DAVIS's palette; it appears whole or not at all.

    Void is written as background, which is what it counts as.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=final.parent, prefix=f".{final.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for name, one in labels:
            image = Image.fromarray(np.where(one == VOID, 0, one).astype(np.uint8))
            image.putpalette(PALETTE.tobytes())
            image.save(new / f"{name}.png")
        if final.exists():
            final.rename(Path(temporary) / "old")
        new.rename(final)


def read_mask(file: Path, size: tuple[int, int]) -> tuple[Labels, Colors]:
    """Labels (h, w) of one PNG that stands alone, and the colors (256, 3) of them. Raises SequenceError."""
    coding = _coding(file)
    return _read_labels(file, coding, size)[0], coding.colors


def read_masks(folder: Path, sequence: MaskSequence) -> list[Labels] | None:
    """What ``write_masks`` wrote, (frames); None where a mask is missing, damaged or of another size."""
    first, found = sequence.truth(0), []
    assert first is not None
    for name in sequence.names:
        try:
            values, palette = _read_codes(folder / sequence.name / f"{name}.png")
        except SequenceError:
            return None
        if palette is None or values.shape != first.shape:
            return None
        found.append(values.astype(np.uint8))
    return found
