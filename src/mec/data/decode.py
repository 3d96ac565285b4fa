"""From the bytes of a file to an array of pixels."""

from __future__ import annotations

import contextlib
import io
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat, channels_last, convert_pixels, to_hwc
from mec.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 20_000**2
"""What is larger is taken for a decompression bomb."""
SHRINKS = (8, 4, 2)
"""Factors by which libjpeg decodes smaller, at less cost."""
ORIENTATION = 0x0112

_PILLOWS_LIMIT = threading.Lock()

Decoder = Callable[[PixelFormat, int], NDArray[Any]]


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImageError("not an image in a format that is read") from error
    except Exception as error:  # Pillow, tifffile, numpy and the codecs raise every kind for a damaged file
        raise CorruptImageError(" ".join(str(error).split()) or type(error).__name__) from error


@dataclass(frozen=True)
class Opened:
    """An image whose size is known and whose pixels are not yet decoded."""

    height: int
    width: int
    decoder: Decoder

    def raw(self, reading: PixelFormat) -> NDArray[Any]:
        """As they are stored, (h, w, c) numbers of any type; raises CorruptImageError."""
        with _damage_named():
            return self.decoder(reading, 1)

    def decode(self, reading: PixelFormat, shrink: int = 1) -> ImageArray:
        """(height, width, channels) as ``reading`` asks; ``shrink`` 2, 4 or 8 allows a JPEG smaller by that factor.

        Raises:
            CorruptImageError: damaged, or of other channels.
        """
        with _damage_named():
            return convert_pixels(self.decoder(reading, shrink), reading)


def open_image(data: bytes | NDArray[Any]) -> Opened:
    """Read the header of a JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM or .npy image; arrays stay as they are.

    Raises:
        CorruptImageError: not an image, damaged, or of more than 400 million pixels.
    """
    with _damage_named():
        opened = _open(data)
    if opened.height < 1 or opened.width < 1:
        raise CorruptImageError(f"no pixels ({opened.width} x {opened.height})")
    if opened.height * opened.width > MAX_PIXELS:
        size = f"{opened.width:,} x {opened.height:,} pixels"
        raise CorruptImageError(
            f"{size}, taken for a decompression bomb: at most {MAX_PIXELS // 10**6} million are read"
        )
    return opened


def _open(data: bytes | NDArray[Any]) -> Opened:
    if isinstance(data, np.ndarray):
        return _open_array(data)
    if not data:
        raise CorruptImageError("the file is empty")
    if data[:2] == b"\xff\xd8":
        return _open_jpeg(data)
    if data[:6] == b"\x93NUMPY":
        return _open_array(channels_last(np.load(io.BytesIO(data), allow_pickle=False)))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(data)
    return _open_pillow(data)


def _open_array(values: NDArray[Any]) -> Opened:
    values = to_hwc(values)
    return Opened(values.shape[0], values.shape[1], lambda reading, shrink: values)


def _open_jpeg(data: bytes) -> Opened:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _open_pillow(data)
    if space in ("CMYK", "YCCK"):
        return _open_pillow(data)
    turn = _orientation(lambda: _jpeg_orientation(data))

    def decode(reading: PixelFormat, shrink: int) -> NDArray[Any]:
        # the luma of a JPEG is its gray image
        wanted = "GRAY" if reading.channels == 1 or space == "Gray" else "RGB"
        low, narrow = math.ceil(height / shrink), math.ceil(width / shrink)
        try:
            pixels = simplejpeg.decode_jpeg(data, wanted, min_height=low, min_width=narrow, min_factor=shrink)
        except ValueError:  # it is stricter than Pillow
            return _open_pillow(data).decoder(reading, shrink)
        return _turned(pixels, turn)

    return Opened(width, height, decode) if turn >= 5 else Opened(height, width, decode)


def _jpeg_orientation(jpeg: bytes) -> int | None:
    """As its EXIF says, which other segments, however long, may come before."""
    start = 2
    while jpeg[start : start + 1] == b"\xff" and jpeg[start + 1 : start + 2] not in (b"\xda", b"\xd9"):
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if jpeg[start + 4 : start + 10] == b"Exif\0\0":
            exif = Image.Exif()
            exif.load(jpeg[start + 4 : end])
            return exif.get(ORIENTATION)
        start = end
    return None


def _orientation(find: Callable[[], Any]) -> int:
    """1 (upright) to 8; an image whose EXIF is damaged is taken as it lies."""
    with contextlib.suppress(Exception):
        turn = find()
        return int(turn) if turn in range(1, 9) else 1
    return 1


def _turned(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    if turn == 1:
        return pixels
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Without Pillow's own limit, which is the process's: open_image has another."""
    with _PILLOWS_LIMIT:
        own_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = own_limit


def _pillow(data: bytes) -> Image.Image:
    with _any_size():
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _open_pillow(data: bytes) -> Opened:
    image = _pillow(data)
    turn = _orientation(lambda: Image.Image.getexif(image).get(ORIENTATION))  # that of PNGs decodes the whole image
    width, height = image.size
    turned = turn
    if tags := getattr(image, "tag_v2", None):  # TIFFs are turned when they are loaded
        width, height, turned = int(tags[256]), int(tags[257]), 1
    if turn >= 5:
        width, height = height, width

    def decode(reading: PixelFormat, shrink: int) -> NDArray[Any]:
        # opened anew: an image that is kept keeps its pixels
        return _turned(_from_pillow(_pillow(data), reading), turned)

    return Opened(height, width, decode)


def _from_pillow(image: Image.Image, reading: PixelFormat) -> NDArray[Any]:
    with _any_size() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_hwc(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, reading.background), image)
    gray = reading.channels == 1 or image.mode in ("1", "L")
    return to_hwc(np.asarray(image.convert("L" if gray else "RGB")))


def _open_tiff(data: bytes) -> Opened:
    """Pillow reads the TIFFs that cameras and scanners write, tifffile those of instruments."""
    if _pillow_reads_all_of(data):
        return _open_pillow(data)
    try:
        import tifffile
    except ImportError as error:
        raise InputError(
            "data: a TIFF with more channels, bits or pages than Pillow reads; pip install 'mec-ssl[tiff]'"
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        axes, shape = file.series[0].axes, file.series[0].shape
        turn = _orientation(lambda: file.pages.first.tags.valueof(ORIENTATION))
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in sizes or "X" not in sizes:
        raise CorruptImageError(f"a TIFF with axes {axes}, expected Y and X among them")

    def decode(reading: PixelFormat, shrink: int) -> NDArray[Any]:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values = file.series[0].asarray()
        # samples and channels are named; other pages are channels where there are as many as asked for
        pages = [a for a in axes if a not in "YX" and sizes[a] == reading.channels]
        kept = next((a for a in ("S", "C", *pages) if a in sizes), "")
        values = values[tuple(slice(None) if a in f"YX{kept}" else 0 for a in axes)]
        left = [a for a in axes if a in f"YX{kept}"]
        return _turned(to_hwc(values.transpose([left.index(a) for a in f"YX{kept}"])), turn)

    height, width = (sizes["X"], sizes["Y"]) if turn >= 5 else (sizes["Y"], sizes["X"])
    return Opened(height, width, decode)


def _pillow_reads_all_of(tiff: bytes) -> bool:
    try:
        with _pillow(tiff) as image:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            bits, samples = max(tags.get(258, (1,))), int(tags.get(277, 1))
            # deeper numbers, signed ones and reals it takes for others where they are compressed or large
            numbers = bits <= 8 or (bits == 16 and image.mode.startswith("I;16"))
            unsigned = set(tags.get(339, (1,))) == {1}
            # the first of several compressed planes it takes for all, a second channel for transparency
            channels = samples <= 4 and len(image.getbands()) >= min(samples, 3)
            if samples == 2:
                channels = tags.get(338, (0,))[0] in (1, 2)
            return bool(image.n_frames == 1 and numbers and unsigned and channels)  # type: ignore[attr-defined]
    except Exception:  # what it makes of a damaged file is of many kinds
        return False
