import io
import struct

import numpy as np
import pytest
from PIL import Image

from mec.data.decode import open_image
from mec.data.pixels import PixelFormat
from tests.data.encoded_images import (
    ALPHA,
    BITS,
    BLUE,
    BYTES,
    COLORS,
    WHITE,
    H,
    W,
    by_pil,
    colors_and,
    decoded,
    difference,
    encoded,
    gray_and,
    npy,
    numbers,
    stored,
    threefold,
)
from tests.data.transforms.test_geometry import photograph


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_in_color(photo: Image.Image, progressive: bool, subsampling: int) -> None:
    data = encoded(photo, "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert difference(decoded(data, PixelFormat(1))[..., 0], by_pil(data, "L")) <= 2


def test_jpeg_in_gray(photo: Image.Image) -> None:
    data = encoded(photo.convert("L"), "JPEG")
    assert difference(decoded(data, PixelFormat(1))[..., 0], by_pil(data, "L")) <= 2
    assert difference(decoded(data), by_pil(data)) <= 2
    assert stored(data).shape == (H, W, 1)


def test_jpeg_stored_as_rgb(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", keep_rgb=True)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert difference(decoded(data, PixelFormat(1))[..., 0], by_pil(data, "L")) <= 2


@pytest.mark.parametrize("inks", [(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (40, 80, 120, 60)])
def test_jpeg_of_four_inks(inks: tuple[int, ...]) -> None:
    data = encoded(Image.new("CMYK", (24, 16), inks), "JPEG", quality=100, subsampling=0)
    paper = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    assert difference(decoded(data), np.broadcast_to(paper, (16, 24, 3))) <= 4


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_image_is_turned_as_its_exif_says(photo: Image.Image, kind: str, turn: int) -> None:
    data = encoded(photo, kind, turn)
    expected = by_pil(data)
    assert expected.shape[:2] == ((W, H) if turn >= 5 else (H, W))
    assert difference(decoded(data), expected) <= 2
    assert difference(decoded(data, PixelFormat(1))[..., 0], by_pil(data, "L")) <= 2


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_a_jpeg_of_four_inks_is_turned(photo: Image.Image, turn: int) -> None:
    data = encoded(photo.convert("CMYK"), "JPEG", turn)
    assert difference(decoded(data), by_pil(data)) <= 2


def test_the_orientation_is_found_behind_long_segments(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", 6)
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + b"Exif?" * 12_000
    assert decoded(data[:2] + profile + profile + data[2:]).shape == (W, H, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_a_image_as_it_lies(photo: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(photo, kind, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\xff" * 30)
        assert difference(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("size", [(181, 243), (333, 120), (64, 64), (7, 9), (1, 1)])
@pytest.mark.parametrize("turn", [1, 5, 8])
def test_a_jpeg_decoded_smaller_is_the_average_of_its_pixels(size: tuple[int, int], shrink: int, turn: int) -> None:
    data = encoded(Image.fromarray(photograph(*size)), "JPEG", turn, quality=95, subsampling=0)
    whole = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    # libjpeg fills up blocks with the last pixel
    whole = np.pad(whole, ((0, -size[0] % shrink), (0, -size[1] % shrink), (0, 0)), mode="edge")
    blocks = whole.reshape(whole.shape[0] // shrink, shrink, whole.shape[1] // shrink, shrink, 3).mean((1, 3))
    upright = {1: blocks, 5: blocks.swapaxes(0, 1), 8: np.rot90(blocks)}[turn]
    assert psnr(decoded(data, shrink=shrink), upright) > 40
    gray = decoded(data, PixelFormat(1), shrink)[..., 0]
    assert psnr(gray, upright @ np.array([0.299, 0.587, 0.114])) > 40


def test_what_cannot_be_decoded_smaller_comes_whole(photo: Image.Image) -> None:
    for data in (encoded(photo, "PNG"), encoded(photo.convert("CMYK"), "JPEG"), npy(np.asarray(photo))):
        assert open_image(data).decode(PixelFormat(), 4).shape == (H, W, 3)


PALETTE = numbers((256, 3), np.uint8)


def over(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + np.array(background) * (1 - share)


def with_palette(transparency: int | bytes | None = None) -> bytes:
    image = Image.fromarray(BYTES).convert("P")
    image.putdata(BYTES.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


@pytest.mark.parametrize("background", [WHITE, BLUE])
@pytest.mark.parametrize(
    ("data", "pixels", "alpha"),
    [
        (encoded(Image.fromarray(BITS), "PNG"), threefold(BITS * 255), None),
        (encoded(Image.fromarray(BYTES), "PNG"), threefold(BYTES), None),
        (encoded(Image.fromarray(BYTES), "PNG", transparency=7), threefold(BYTES), (BYTES != 7) * 255),
        (encoded(gray_and(ALPHA), "PNG"), threefold(BYTES), ALPHA),
        (with_palette(), PALETTE[BYTES], None),
        (with_palette(7), PALETTE[BYTES], (BYTES != 7) * 255),
        (with_palette(bytes(range(256))), PALETTE[BYTES], BYTES),
        (encoded(Image.fromarray(COLORS), "PNG"), COLORS, None),
        (encoded(colors_and(ALPHA), "PNG"), COLORS, ALPHA),
        (encoded(colors_and(ALPHA), "WEBP", lossless=True, exact=True), COLORS, ALPHA),
        (encoded(colors_and(ALPHA), "TIFF"), COLORS, ALPHA),
        (encoded(Image.fromarray(COLORS), "BMP"), COLORS, None),
        (encoded(Image.fromarray(BYTES), "BMP"), threefold(BYTES), None),
        (encoded(Image.fromarray(COLORS), "PPM"), COLORS, None),
        (encoded(Image.fromarray(BYTES), "PPM"), threefold(BYTES), None),
        (encoded(Image.fromarray(COLORS), "TIFF", compression="tiff_lzw"), COLORS, None),
        (encoded(Image.fromarray(BITS), "TIFF", compression="group4"), threefold(BITS * 255), None),
    ],
    ids="1 L L-clear LA P P-clear P-alphas RGB RGBA webp tiff-rgba bmp bmp-gray ppm pgm tiff-lzw tiff-fax".split(),
)
def test_lossless_images_come_back(
    data: bytes, pixels: np.ndarray, alpha: np.ndarray | None, background: tuple[int, ...]
) -> None:
    behind = "#{:02x}{:02x}{:02x}".format(*background)
    expected = pixels if alpha is None else over(pixels, alpha, background)
    assert difference(decoded(data, PixelFormat(3, None, behind)), expected) <= (0 if alpha is None else 1)
    gray = decoded(data, PixelFormat(1, None, behind))[..., 0]
    assert difference(gray, expected @ np.array([0.299, 0.587, 0.114])) <= 2


def test_webp_with_losses(photo: Image.Image) -> None:
    data = encoded(photo, "WEBP", quality=80)
    assert difference(decoded(data), by_pil(data)) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 12), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(decoded(data), np.broadcast_to((255, 0, 0), (12, 20, 3))) == 0


def test_a_transparent_gif_lies_on_the_background() -> None:
    image = Image.new("P", (20, 12), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((0, 0), 0)
    found = decoded(encoded(image, "GIF", transparency=1), PixelFormat(3, None, "#204060"))
    assert tuple(found[0, 0]) == (9, 9, 9)
    assert tuple(found[5, 5]) == BLUE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_single_pixel(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (250, 4, 6)), kind)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert decoded(data, PixelFormat(1)).shape == (1, 1, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_very_wide_image(kind: str) -> None:
    data = encoded(Image.fromarray(photograph(40, 20_000)), kind)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert open_image(data).decode(PixelFormat(), 8).shape == ((5, 2500, 3) if kind == "JPEG" else (40, 20_000, 3))
