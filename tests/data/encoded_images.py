"""Images of known pixels, encoded in many ways, and what is decoded of them."""

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
TURN = 0x0112
WHITE, BLUE = (255, 255, 255), (0x20, 0x40, 0x60)


def encoded(image: Image.Image, kind: str, turn: int | None = None, **options: Any) -> bytes:
    if turn is not None:
        options["exif"] = Image.Exif()
        options["exif"][TURN] = turn
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def by_pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(mode, None)  # of a JPEG its own luma
    return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def decoded(data: bytes | np.ndarray, reading: PixelFormat | None = None, shrink: int = 1) -> np.ndarray:
    """Pixels, after a check that the header told their size."""
    opened = open_image(data)
    pixels = opened.decode(reading or PixelFormat(), shrink)
    assert pixels.shape == (
        -(-opened.height // shrink),
        -(-opened.width // shrink),
        (reading or PixelFormat()).channels,
    )
    return pixels


def stored(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    opened = open_image(data)
    values = opened.raw(PixelFormat(channels))
    assert values.shape[:2] == (opened.height, opened.width)
    return values


def numbers(shape: tuple[int, ...], dtype: Any, top: float | None = None) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype) == np.bool_:
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max if top is None else top, shape, endpoint=True).astype(dtype)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).max())


BITS, BYTES, ALPHA = numbers((H, W), bool), numbers((H, W), np.uint8), numbers((H, W), np.uint8)
COLORS = numbers((H, W, 3), np.uint8)


def gray_and(alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(BYTES), Image.fromarray(alpha)))


def colors_and(alpha: np.ndarray) -> Image.Image:
    return Image.merge("RGBA", (*Image.fromarray(COLORS).split(), Image.fromarray(alpha)))


def threefold(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    lines = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(lines)


def claiming(kind: str, width: int, height: int) -> bytes:
    """An image of few bytes whose header claims many pixels."""
    if kind == "PNG":
        return png_header(width, height)
    if kind == "PPM":
        return b"P6\n%d %d\n255\nabc" % (width, height)
    data = bytearray(encoded(Image.new("RGB", (8, 8)), kind))
    if kind == "TIFF":
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
            places = [(file.pages[0].tags[tag].offset + 4, side) for tag, side in ((256, width), (257, height))]
        for place, side in places:
            data[place - 2 : place + 4 + 4] = struct.pack("<HII", 4, 1, side)
        return bytes(data)
    place, sides = {
        "JPEG": (data.find(b"\xff\xc0") + 5, struct.pack(">HH", height, width)),
        "BMP": (18, struct.pack("<ii", width, height)),
        "GIF": (6, struct.pack("<HH", width, height)),
    }[kind]
    data[place : place + len(sides)] = sides
    return bytes(data)
