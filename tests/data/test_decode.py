import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mec.data.decode import open_image
from mec.data.pixels import PixelFormat
from tests.data.encoded_images import (
    ALPHA,
    BINARY_PIXELS,
    BLUE,
    COLOR_PIXELS,
    GRAY_PIXELS,
    WHITE,
    H,
    W,
    color_with_alpha,
    decode,
    decode_raw,
    decode_with_pil,
    encode,
    encode_npy,
    gray_to_rgb,
    gray_with_alpha,
    max_difference,
    random_values,
)
from tests.data.transforms.test_geometry import photograph
from tests.pairwise import pairwise


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {"subsampling": 2}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("L", "JPEG", {}),
        ("RGB", "WEBP", {"quality": 80}),
    ],
)
def test_lossy_formats_decode_as_in_pil(
    photo: Image.Image, mode: str, image_format: str, options: dict[str, Any]
) -> None:
    data = encode(photo.convert(mode), image_format, **options)
    assert max_difference(decode(data), decode_with_pil(data)) <= 2
    assert max_difference(decode(data, PixelFormat(1))[..., 0], decode_with_pil(data, "L")) <= 2
    assert decode_raw(data).shape == (H, W, len(mode))


@pytest.mark.parametrize("inks", [(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (40, 80, 120, 60)])
def test_cmyk_jpeg(inks: tuple[int, ...]) -> None:
    data = encode(Image.new("CMYK", (24, 16), inks), "JPEG", quality=100, subsampling=0)
    paper = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    assert max_difference(decode(data), np.broadcast_to(paper, (16, 24, 3))) <= 4


@pytest.mark.parametrize(
    ("image_format", "orientation"),
    [*(("JPEG", orientation) for orientation in range(1, 9)), ("PNG", 6), ("WEBP", 8), ("TIFF", 3), ("TIFF", 5)],
)
def test_exif_orientation_is_applied(photo: Image.Image, image_format: str, orientation: int) -> None:
    data = encode(photo, image_format, orientation)
    expected = decode_with_pil(data)
    assert expected.shape[:2] == ((W, H) if orientation >= 5 else (H, W))
    assert max_difference(decode(data), expected) <= 2
    assert max_difference(decode(data, PixelFormat(1))[..., 0], decode_with_pil(data, "L")) <= 2
    if image_format == "JPEG":
        data = encode(photo.convert("CMYK"), "JPEG", orientation)
        assert max_difference(decode(data), decode_with_pil(data)) <= 2


def test_exif_segment_is_found_after_long_segments(photo: Image.Image) -> None:
    data = encode(photo, "JPEG", 6)
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + b"Exif?" * 12_000
    assert decode(data[:2] + profile + profile + data[2:]).shape == (W, H, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(photo: Image.Image) -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        data = encode(photo, image_format, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 30)
        assert max_difference(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize(
    ("size", "shrink", "orientation"),
    pairwise([(181, 243), (333, 120), (64, 64), (7, 9), (1, 1)], [2, 4, 8], [1, 5, 8]),
)
def test_a_shrunk_jpeg_is_the_block_average_of_its_pixels(size: tuple[int, int], shrink: int, orientation: int) -> None:
    data = encode(Image.fromarray(photograph(*size)), "JPEG", orientation, quality=95, subsampling=0)
    full = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    # libjpeg pads blocks with the last pixel
    full = np.pad(full, ((0, -size[0] % shrink), (0, -size[1] % shrink), (0, 0)), mode="edge")
    blocks = full.reshape(full.shape[0] // shrink, shrink, full.shape[1] // shrink, shrink, 3).mean((1, 3))
    upright = {1: blocks, 5: blocks.swapaxes(0, 1), 8: np.rot90(blocks)}[orientation]
    assert psnr(decode(data, shrink=shrink), upright) > 40
    gray = decode(data, PixelFormat(1), shrink)[..., 0]
    assert psnr(gray, upright @ np.array([0.299, 0.587, 0.114])) > 40


def test_other_formats_ignore_shrink(photo: Image.Image) -> None:
    for data in (encode(photo, "PNG"), encode(photo.convert("CMYK"), "JPEG"), encode_npy(np.asarray(photo))):
        assert open_image(data).decode(PixelFormat(), 4).shape == (H, W, 3)


PALETTE = random_values((256, 3), np.uint8)
BINARY, GRAY, COLOR = (Image.fromarray(pixels) for pixels in (BINARY_PIXELS, GRAY_PIXELS, COLOR_PIXELS))


def composite(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return pixels * opacity + np.array(background) * (1 - opacity)


def encode_palette(transparency: int | bytes | None = None) -> bytes:
    image = Image.fromarray(GRAY_PIXELS).convert("P")
    image.putdata(GRAY_PIXELS.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


@pytest.mark.parametrize(
    ("data", "pixels", "alpha"),
    [
        (encode(BINARY, "PNG"), gray_to_rgb(BINARY_PIXELS * 255), None),
        (encode(GRAY, "PNG"), gray_to_rgb(GRAY_PIXELS), None),
        (encode(GRAY, "PNG", transparency=7), gray_to_rgb(GRAY_PIXELS), (GRAY_PIXELS != 7) * 255),
        (encode(gray_with_alpha(ALPHA), "PNG"), gray_to_rgb(GRAY_PIXELS), ALPHA),
        (encode_palette(), PALETTE[GRAY_PIXELS], None),
        (encode_palette(7), PALETTE[GRAY_PIXELS], (GRAY_PIXELS != 7) * 255),
        (encode_palette(bytes(range(256))), PALETTE[GRAY_PIXELS], GRAY_PIXELS),
        (encode(COLOR, "PNG"), COLOR_PIXELS, None),
        (encode(color_with_alpha(ALPHA), "PNG"), COLOR_PIXELS, ALPHA),
        (encode(color_with_alpha(ALPHA), "WEBP", lossless=True, exact=True), COLOR_PIXELS, ALPHA),
        (encode(color_with_alpha(ALPHA), "TIFF"), COLOR_PIXELS, ALPHA),
        (encode(COLOR, "BMP"), COLOR_PIXELS, None),
        (encode(GRAY, "BMP"), gray_to_rgb(GRAY_PIXELS), None),
        (encode(COLOR, "PPM"), COLOR_PIXELS, None),
        (encode(GRAY, "PPM"), gray_to_rgb(GRAY_PIXELS), None),
        (encode(COLOR, "TIFF", compression="tiff_lzw"), COLOR_PIXELS, None),
        (encode(BINARY, "TIFF", compression="group4"), gray_to_rgb(BINARY_PIXELS * 255), None),
    ],
    ids="1 L L-clear LA P P-clear P-alphas RGB RGBA webp tiff-rgba bmp bmp-gray ppm pgm tiff-lzw tiff-fax".split(),
)
def test_lossless_formats_keep_their_pixels(data: bytes, pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    for background, name in ((WHITE, "white"), (BLUE, "#204060")):
        expected = pixels if alpha is None else composite(pixels, alpha, background)
        assert max_difference(decode(data, PixelFormat(3, None, name)), expected) <= (0 if alpha is None else 1)
    gray = decode(data, PixelFormat(1, None, "#204060"))[..., 0]
    assert max_difference(gray, expected @ np.array([0.299, 0.587, 0.114])) <= 2


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_decodes_to_its_first_frame(image_format: str) -> None:
    frames = [Image.new("RGB", (20, 12), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert max_difference(decode(data), np.broadcast_to((255, 0, 0), (12, 20, 3))) == 0


def test_a_transparent_gif_is_composited_on_the_background() -> None:
    image = Image.new("P", (20, 12), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((0, 0), 0)
    decoded = decode(encode(image, "GIF", transparency=1), PixelFormat(3, None, "#204060"))
    assert tuple(decoded[0, 0]) == (9, 9, 9)
    assert tuple(decoded[5, 5]) == BLUE


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_an_image_of_one_pixel(image_format: str) -> None:
    data = encode(Image.new("RGB", (1, 1), (250, 4, 6)), image_format)
    assert max_difference(decode(data), decode_with_pil(data)) <= 2
    assert decode(data, PixelFormat(1)).shape == (1, 1, 1)


def test_a_very_wide_image() -> None:
    data = encode(Image.fromarray(photograph(40, 20_000)), "JPEG")
    assert max_difference(decode(data), decode_with_pil(data)) <= 2
    assert open_image(data).decode(PixelFormat(), 8).shape == (5, 2500, 3)
