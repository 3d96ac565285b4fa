"""Encoders of images with known pixels, and decoders to compare with."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageOps

from mec.data.decode import open_image
from mec.data.pixels import PixelFormat

H, W = 90, 131
EXIF_ORIENTATION = 0x0112
WHITE, BLUE = (255, 255, 255), (0x20, 0x40, 0x60)


def encode(image: Image.Image, image_format: str, orientation: int | None = None, **options: Any) -> bytes:
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][EXIF_ORIENTATION] = orientation
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def encode_tiff(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def encode_npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def decode_with_pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(mode, None)  # the luma that the JPEG stores
    return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def decode(data: bytes | np.ndarray, pixel_format: PixelFormat | None = None, shrink: int = 1) -> np.ndarray:
    """Decode an image and check that the header had its size."""
    opened = open_image(data)
    pixels = opened.decode(pixel_format or PixelFormat(), shrink)
    assert pixels.shape == (
        -(-opened.height // shrink),
        -(-opened.width // shrink),
        (pixel_format or PixelFormat()).channels,
    )
    return pixels


def decode_raw(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    opened = open_image(data)
    values = opened.raw(PixelFormat(channels))
    assert values.shape[:2] == (opened.height, opened.width)
    return values


def random_values(shape: tuple[int, ...], dtype: Any, maximum: float | None = None) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype) == np.bool_:
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max if maximum is None else maximum, shape, endpoint=True).astype(dtype)


def max_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).max())


BINARY_PIXELS, GRAY_PIXELS, ALPHA = (
    random_values((H, W), bool),
    random_values((H, W), np.uint8),
    random_values((H, W), np.uint8),
)
COLOR_PIXELS = random_values((H, W, 3), np.uint8)


def gray_with_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(GRAY_PIXELS), Image.fromarray(alpha)))


def color_with_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.merge("RGBA", (*Image.fromarray(COLOR_PIXELS).split(), Image.fromarray(alpha)))


def gray_to_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    all_chunks = [header, *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    encoded = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in all_chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(encoded)


def image_claiming_size(image_format: str, width: int, height: int) -> bytes:
    """Return a small file whose header claims a large image."""
    if image_format == "PNG":
        return png_header(width, height)
    if image_format == "PPM":
        return b"P6\n%d %d\n255\nabc" % (width, height)
    data = bytearray(encode(Image.new("RGB", (8, 8)), image_format))
    if image_format == "TIFF":
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
            offsets = [(file.pages[0].tags[tag].offset + 4, side) for tag, side in ((256, width), (257, height))]
        for offset, side in offsets:
            data[offset - 2 : offset + 4 + 4] = struct.pack("<HII", 4, 1, side)
        return bytes(data)
    offset, size_bytes = {
        "JPEG": (data.find(b"\xff\xc0") + 5, struct.pack(">HH", height, width)),
        "BMP": (18, struct.pack("<ii", width, height)),
        "GIF": (6, struct.pack("<HH", width, height)),
    }[image_format]
    data[offset : offset + len(size_bytes)] = size_bytes
    return bytes(data)
