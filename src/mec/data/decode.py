"""Decoding of image files to arrays of pixels."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
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
MAX_PIXELS = 20_000**2  # larger images are refused as decompression bombs; Pillow has a limit of 179 million
SHRINK_FACTORS = (8, 4, 2)  # by which libjpeg can decode at a reduced size, which is faster
EXIF_ORIENTATION = 0x0112

Decoder = Callable[[PixelFormat, int], NDArray[Any]]


@contextlib.contextmanager
def _raise_corrupt_image() -> Iterator[None]:
    """Turn any error of a decoder into a CorruptImageError."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImageError("not an image in a supported format") from error
    except Exception as error:  # Pillow, tifffile, numpy and the codecs raise many types for damaged files
        raise CorruptImageError(" ".join(str(error).split()) or type(error).__name__) from error


def ignore_warnings_of_decoders() -> None:
    """Ignore warnings about damaged metadata, which name no file, in this process. ``mec inspect`` lists the files."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read and whose pixels are not yet decoded."""

    height: int
    width: int
    decoder: Decoder

    def raw(self, pixel_format: PixelFormat) -> NDArray[Any]:
        """Return the stored values (h, w, c) in their own type; raises CorruptImageError."""
        with _raise_corrupt_image():
            return self.decoder(pixel_format, 1)

    def decode(self, pixel_format: PixelFormat, shrink: int = 1) -> ImageArray:
        """Return (height, width, channels), of a JPEG reduced by ``shrink`` (1, 2, 4 or 8); raise CorruptImageError."""
        with _raise_corrupt_image():
            return convert_pixels(self.decoder(pixel_format, shrink), pixel_format)


def open_image(data: bytes | NDArray[Any] | Image.Image) -> OpenedImage:
    """Open a JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, PNM or .npy image, an array or a PIL image; raise
    CorruptImageError."""
    with _raise_corrupt_image():
        opened = _open(data)
    if opened.height < 1 or opened.width < 1:
        raise CorruptImageError(f"no pixels ({opened.width} x {opened.height})")
    if opened.height * opened.width > MAX_PIXELS:
        size = f"{opened.width:,} x {opened.height:,} pixels"
        raise CorruptImageError(f"{size}: possible decompression bomb, expected at most {MAX_PIXELS // 10**6} million")
    return opened


def _open(data: bytes | NDArray[Any] | Image.Image) -> OpenedImage:
    if isinstance(data, np.ndarray):
        return _open_array(data)
    if isinstance(data, Image.Image):
        return _open_pillow(lambda: data)
    if not data:
        raise CorruptImageError("the file is empty")
    if data[:2] == b"\xff\xd8":
        return _open_jpeg(data)
    if data[:6] == b"\x93NUMPY":
        return _open_array(channels_last(np.load(io.BytesIO(data), allow_pickle=False)))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(data)
    return _open_pillow(_pillow_reader(data))


def _open_array(values: NDArray[Any]) -> OpenedImage:
    values = to_hwc(values)
    return OpenedImage(values.shape[0], values.shape[1], lambda pixel_format, shrink: values)


def _open_jpeg(data: bytes) -> OpenedImage:
    read = _pillow_reader(data)
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _open_pillow(read)
    if color_space in ("CMYK", "YCCK"):
        return _open_pillow(read)
    orientation = _read_orientation(lambda: _jpeg_orientation(data))

    def decode(pixel_format: PixelFormat, shrink: int) -> NDArray[Any]:
        # the luma of a JPEG is its grayscale image
        mode = "GRAY" if pixel_format.channels == 1 or color_space == "Gray" else "RGB"
        min_height, min_width = math.ceil(height / shrink), math.ceil(width / shrink)
        try:
            pixels = simplejpeg.decode_jpeg(data, mode, min_height=min_height, min_width=min_width, min_factor=shrink)
        except ValueError:  # simplejpeg is stricter than Pillow
            return _open_pillow(read).decoder(pixel_format, shrink)
        return _apply_orientation(pixels, orientation)

    return OpenedImage(width, height, decode) if orientation >= 5 else OpenedImage(height, width, decode)


def _jpeg_orientation(jpeg: bytes) -> int | None:
    """Return the orientation in the EXIF segment, which may follow other segments of any length."""
    start = 2
    while jpeg[start : start + 1] == b"\xff" and jpeg[start + 1 : start + 2] not in (b"\xda", b"\xd9"):
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if jpeg[start + 4 : start + 10] == b"Exif\0\0":
            exif = Image.Exif()
            exif.load(jpeg[start + 4 : end])
            return exif.get(EXIF_ORIENTATION)
        start = end
    return None


def _read_orientation(read: Callable[[], Any]) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where the EXIF data is missing or damaged."""
    with contextlib.suppress(Exception):
        orientation = read()
        return int(orientation) if orientation in range(1, 9) else 1
    return 1


def _apply_orientation(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _pillow_reader(data: bytes) -> Callable[[], Image.Image]:
    return lambda: Image.open(io.BytesIO(data), formats=FORMATS)


def _open_pillow(read: Callable[[], Image.Image]) -> OpenedImage:
    image = read()
    # the getexif of the PNG class decodes the whole image
    orientation = _read_orientation(lambda: Image.Image.getexif(image).get(EXIF_ORIENTATION))
    width, height = image.size
    unapplied = orientation
    if tags := getattr(image, "tag_v2", None):  # Pillow itself applies the orientation of a TIFF when it loads it
        width, height, unapplied = int(tags[256]), int(tags[257]), 1
    if orientation >= 5:
        width, height = height, width

    def decode(pixel_format: PixelFormat, shrink: int) -> NDArray[Any]:
        # read again: a Pillow image keeps its decoded pixels, and OpenedImage must not
        return _apply_orientation(_from_pillow(read(), pixel_format), unapplied)

    return OpenedImage(height, width, decode)


def _from_pillow(image: Image.Image, pixel_format: PixelFormat) -> NDArray[Any]:
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_hwc(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, pixel_format.background), image)
    grayscale = pixel_format.channels == 1 or image.mode in ("1", "L")
    return to_hwc(np.asarray(image.convert("L" if grayscale else "RGB")))


def _open_tiff(data: bytes) -> OpenedImage:
    """Open common TIFFs with Pillow, and those with more channels, bits or pages with tifffile."""
    if _pillow_supports_tiff(data):
        return _open_pillow(_pillow_reader(data))
    try:
        import tifffile
    except ImportError as error:
        raise InputError(
            "data: this TIFF has a size, channels, bits or pages that Pillow does not read; pip install 'mec-ssl[tiff]'"
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        axes, shape = file.series[0].axes, file.series[0].shape
        orientation = _read_orientation(lambda: file.pages.first.tags.valueof(EXIF_ORIENTATION))
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in sizes or "X" not in sizes:
        raise CorruptImageError(f"TIFF axes: expected Y and X among them, got {axes}")

    def decode(pixel_format: PixelFormat, shrink: int) -> NDArray[Any]:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            values = file.series[0].asarray()
        # S (samples) and C (channels) are channel axes; any other axis is one if its length is the requested number
        matching = [a for a in axes if a not in "YX" and sizes[a] == pixel_format.channels]
        channel_axis = next((a for a in ("S", "C", *matching) if a in sizes), "")
        order = f"YX{channel_axis}"
        values = values[tuple(slice(None) if a in order else 0 for a in axes)]
        kept_axes = [a for a in axes if a in order]
        return _apply_orientation(to_hwc(values.transpose([kept_axes.index(a) for a in order])), orientation)

    height, width = (sizes["X"], sizes["Y"]) if orientation >= 5 else (sizes["Y"], sizes["X"])
    return OpenedImage(height, width, decode)


def _pillow_supports_tiff(tiff: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(tiff), formats=FORMATS) as image:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            bits, samples = max(tags.get(258, (1,))), int(tags.get(277, 1))
            # Pillow misreads other depths, signed integers and floats where they are compressed or large
            supported_depth = bits <= 8 or (bits == 16 and image.mode.startswith("I;16"))
            unsigned = set(tags.get(339, (1,))) == {1}
            # of several compressed planes it reads the first one only; it takes a second channel for transparency
            supported_channels = samples <= 4 and len(image.getbands()) >= min(samples, 3)
            extra = tags.get(338, (0,))[0]  # 1 and 2 are transparency, 0 is any other channel, such as infrared
            if samples == 4 and image.mode in ("RGB", "RGBX", "RGBA") and extra == 0:
                supported_channels = False
            if samples == 2:
                supported_channels = extra in (1, 2)
            single_page = image.n_frames == 1  # type: ignore[attr-defined]
            return bool(single_page and supported_depth and unsigned and supported_channels)
    except Exception:  # Pillow raises many types for damaged files
        return False
