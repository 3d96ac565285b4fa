"""From the bytes of a file to an array of pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mec.data.pixels import BrokenPictureError, Picture, Reading, as_asked, three_axes
from mec.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 20_000**2
"""What is larger is taken for a decompression bomb."""
SHRINKS = (8, 4, 2)
"""Factors by which libjpeg decodes smaller, at less cost."""
ORIENTATION = 0x0112

# Pillow and the codecs raise many kinds for a damaged file
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, MemoryError)

Decoder = Callable[[Reading, int], NDArray[Any]]


@dataclass(frozen=True)
class Opened:
    """A picture whose size is known and whose pixels are not yet decoded.

    ``raw(reading, shrink)`` gives them as they are stored, (h, w, c) numbers of any type.
    """

    height: int
    width: int
    raw: Decoder

    def decode(self, reading: Reading, shrink: int = 1) -> Picture:
        """(height, width, channels) as ``reading`` asks; ``shrink`` 2, 4 or 8 allows a JPEG smaller by that factor.

        Raises:
            BrokenPictureError: damaged, or of other channels.
        """
        try:
            return as_asked(self.raw(reading, shrink), reading)
        except InputError:
            raise
        except DAMAGE as error:
            raise BrokenPictureError(_reason(error)) from error


def open_picture(data: bytes | NDArray[Any]) -> Opened:
    """Read the header of a JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM or .npy picture; arrays stay as they are.

    Raises:
        BrokenPictureError: not a picture, damaged, or of more than 400 million pixels.
    """
    try:
        opened = _open(data)
    except UnidentifiedImageError as error:
        raise BrokenPictureError("not a picture in a format that is read") from error
    except InputError:
        raise
    except DAMAGE as error:
        raise BrokenPictureError(_reason(error)) from error
    if opened.height < 1 or opened.width < 1:
        raise BrokenPictureError(f"no pixels ({opened.width} x {opened.height})")
    if opened.height * opened.width > MAX_PIXELS:
        size = f"{opened.width:,} x {opened.height:,} pixels"
        raise BrokenPictureError(
            f"{size}, taken for a decompression bomb: at most {MAX_PIXELS // 10**6} million are read"
        )
    return opened


def _open(data: bytes | NDArray[Any]) -> Opened:
    if isinstance(data, np.ndarray):
        return _open_array(data)
    if not data:
        raise BrokenPictureError("the file is empty")
    if data[:2] == b"\xff\xd8":
        return _open_jpeg(data)
    if data[:6] == b"\x93NUMPY":
        return _open_array(np.load(io.BytesIO(data), allow_pickle=False))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(data)
    return _open_pillow(data)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open_array(values: NDArray[Any]) -> Opened:
    values = three_axes(values)
    return Opened(values.shape[0], values.shape[1], lambda reading, shrink: values)


def _open_jpeg(data: bytes) -> Opened:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _open_pillow(data)
    if space in ("CMYK", "YCCK"):
        return _open_pillow(data)
    turn = _orientation(data)

    def decode(reading: Reading, shrink: int) -> NDArray[Any]:
        # the luma of a JPEG is its grey picture
        wanted = "GRAY" if reading.channels == 1 or space == "Gray" else "RGB"
        low, narrow = math.ceil(height / shrink), math.ceil(width / shrink)
        try:
            pixels = simplejpeg.decode_jpeg(data, wanted, min_height=low, min_width=narrow, min_factor=shrink)
        except ValueError:  # it is stricter than Pillow
            return _open_pillow(data).raw(reading, shrink)
        return _turned(pixels, turn)

    return Opened(width, height, decode) if turn >= 5 else Opened(height, width, decode)


def _orientation(jpeg: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 (upright) to 8."""
    start = jpeg.find(b"Exif\0\0", 0, 4096)
    if start < 0:
        return 1
    exif = Image.Exif()
    try:
        exif.load(jpeg[start : start + 2**16])
        turn = int(exif.get(ORIENTATION, 1))
    except DAMAGE:
        return 1
    return turn if 1 <= turn <= 8 else 1


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


def _open_pillow(data: bytes) -> Opened:
    own_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # another limit is checked by open_picture
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = own_limit
    turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    return Opened(height, width, lambda reading, shrink: _from_pillow(image, reading))


def _from_pillow(image: Image.Image, reading: Reading) -> NDArray[Any]:
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return three_axes(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, reading.background), image)
    grey = reading.channels == 1 or image.mode in ("1", "L")
    return three_axes(np.asarray(image.convert("L" if grey else "RGB")))


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
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in sizes or "X" not in sizes:
        raise BrokenPictureError(f"a TIFF with axes {axes}, expected Y and X among them")

    def decode(reading: Reading, shrink: int) -> NDArray[Any]:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values = file.series[0].asarray()
        # samples and channels are named; pages are channels where there are as many as asked for
        kept = next((a for a in axes if a in "SC" or (a not in "YX" and sizes[a] == reading.channels)), "")
        values = values[tuple(slice(None) if a in f"YX{kept}" else 0 for a in axes)]
        left = [a for a in axes if a in f"YX{kept}"]
        return three_axes(values.transpose([left.index(a) for a in f"YX{kept}"]))

    return Opened(sizes["Y"], sizes["X"], decode)


def _pillow_reads_all_of(tiff: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(tiff), formats=("TIFF",)) as image:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            bits, samples = tags.get(258, (1,)), int(tags.get(277, 1))
            whole = image.mode != "I;16" or max(bits) == 16
            return image.n_frames == 1 and whole and (samples == 1 or (samples <= 4 and max(bits) <= 8))  # type: ignore[attr-defined]
    except DAMAGE:
        return False
