import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, ImageOps

from mec.data import open_images, read
from mec.data.decode import MAX_PIXELS, open_picture
from mec.data.pixels import BrokenPictureError, Reading
from mec.errors import InputError
from tests.data.test_geometry import photograph

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


def decoded(data: bytes | np.ndarray, reading: Reading | None = None, shrink: int = 1) -> np.ndarray:
    """Pixels, after a check that the header told their size."""
    opened = open_picture(data)
    pixels = opened.decode(reading or Reading(), shrink)
    assert pixels.shape == (-(-opened.height // shrink), -(-opened.width // shrink), (reading or Reading()).channels)
    return pixels


def stored(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    opened = open_picture(data)
    values = opened.raw(Reading(channels))
    assert values.shape[:2] == (opened.height, opened.width)
    return values


def numbers(shape: tuple[int, ...], dtype: Any, top: float | None = None) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype) == np.bool_:
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max if top is None else top, shape, endpoint=True).astype(dtype)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).max())


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(photograph(H, W))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_in_colour(photo: Image.Image, progressive: bool, subsampling: int) -> None:
    data = encoded(photo, "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert difference(decoded(data, Reading(1))[..., 0], by_pil(data, "L")) <= 2


def test_jpeg_in_grey(photo: Image.Image) -> None:
    data = encoded(photo.convert("L"), "JPEG")
    assert difference(decoded(data, Reading(1))[..., 0], by_pil(data, "L")) <= 2
    assert difference(decoded(data), by_pil(data)) <= 2
    assert stored(data).shape == (H, W, 1)


def test_jpeg_stored_as_rgb(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", keep_rgb=True)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert difference(decoded(data, Reading(1))[..., 0], by_pil(data, "L")) <= 2


@pytest.mark.parametrize("inks", [(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (40, 80, 120, 60)])
def test_jpeg_of_four_inks(inks: tuple[int, ...]) -> None:
    data = encoded(Image.new("CMYK", (24, 16), inks), "JPEG", quality=100, subsampling=0)
    paper = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    assert difference(decoded(data), np.broadcast_to(paper, (16, 24, 3))) <= 4


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_says(photo: Image.Image, kind: str, turn: int) -> None:
    data = encoded(photo, kind, turn)
    expected = by_pil(data)
    assert expected.shape[:2] == ((W, H) if turn >= 5 else (H, W))
    assert difference(decoded(data), expected) <= 2
    assert difference(decoded(data, Reading(1))[..., 0], by_pil(data, "L")) <= 2


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_a_jpeg_of_four_inks_is_turned(photo: Image.Image, turn: int) -> None:
    data = encoded(photo.convert("CMYK"), "JPEG", turn)
    assert difference(decoded(data), by_pil(data)) <= 2


def test_the_orientation_is_found_behind_long_segments(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", 6)
    profile = b"\xff\xe2" + struct.pack(">H", 60_002) + b"Exif?" * 12_000
    assert decoded(data[:2] + profile + profile + data[2:]).shape == (W, H, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_a_picture_as_it_lies(photo: Image.Image) -> None:
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
    grey = decoded(data, Reading(1), shrink)[..., 0]
    assert psnr(grey, upright @ np.array([0.299, 0.587, 0.114])) > 40


def test_what_cannot_be_decoded_smaller_comes_whole(photo: Image.Image) -> None:
    for data in (encoded(photo, "PNG"), encoded(photo.convert("CMYK"), "JPEG"), npy(np.asarray(photo))):
        assert open_picture(data).decode(Reading(), 4).shape == (H, W, 3)


BITS, BYTES, ALPHA = numbers((H, W), bool), numbers((H, W), np.uint8), numbers((H, W), np.uint8)
COLOURS = numbers((H, W, 3), np.uint8)
PALETTE = numbers((256, 3), np.uint8)


def over(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + np.array(background) * (1 - share)


def with_palette(transparency: int | bytes | None = None) -> bytes:
    image = Image.fromarray(BYTES).convert("P")
    image.putdata(BYTES.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def grey_and(alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(BYTES), Image.fromarray(alpha)))


def colours_and(alpha: np.ndarray) -> Image.Image:
    return Image.merge("RGBA", (*Image.fromarray(COLOURS).split(), Image.fromarray(alpha)))


def threefold(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


@pytest.mark.parametrize("background", [WHITE, BLUE])
@pytest.mark.parametrize(
    ("data", "pixels", "alpha"),
    [
        (encoded(Image.fromarray(BITS), "PNG"), threefold(BITS * 255), None),
        (encoded(Image.fromarray(BYTES), "PNG"), threefold(BYTES), None),
        (encoded(Image.fromarray(BYTES), "PNG", transparency=7), threefold(BYTES), (BYTES != 7) * 255),
        (encoded(grey_and(ALPHA), "PNG"), threefold(BYTES), ALPHA),
        (with_palette(), PALETTE[BYTES], None),
        (with_palette(7), PALETTE[BYTES], (BYTES != 7) * 255),
        (with_palette(bytes(range(256))), PALETTE[BYTES], BYTES),
        (encoded(Image.fromarray(COLOURS), "PNG"), COLOURS, None),
        (encoded(colours_and(ALPHA), "PNG"), COLOURS, ALPHA),
        (encoded(colours_and(ALPHA), "WEBP", lossless=True, exact=True), COLOURS, ALPHA),
        (encoded(colours_and(ALPHA), "TIFF"), COLOURS, ALPHA),
        (encoded(Image.fromarray(COLOURS), "BMP"), COLOURS, None),
        (encoded(Image.fromarray(BYTES), "BMP"), threefold(BYTES), None),
        (encoded(Image.fromarray(COLOURS), "PPM"), COLOURS, None),
        (encoded(Image.fromarray(BYTES), "PPM"), threefold(BYTES), None),
        (encoded(Image.fromarray(COLOURS), "TIFF", compression="tiff_lzw"), COLOURS, None),
        (encoded(Image.fromarray(BITS), "TIFF", compression="group4"), threefold(BITS * 255), None),
    ],
    ids="1 L L-clear LA P P-clear P-alphas RGB RGBA webp tiff-rgba bmp bmp-grey ppm pgm tiff-lzw tiff-fax".split(),
)
def test_lossless_pictures_come_back(
    data: bytes, pixels: np.ndarray, alpha: np.ndarray | None, background: tuple[int, ...]
) -> None:
    behind = "#{:02x}{:02x}{:02x}".format(*background)
    expected = pixels if alpha is None else over(pixels, alpha, background)
    assert difference(decoded(data, Reading(3, None, behind)), expected) <= (0 if alpha is None else 1)
    grey = decoded(data, Reading(1, None, behind))[..., 0]
    assert difference(grey, expected @ np.array([0.299, 0.587, 0.114])) <= 2


def test_webp_with_losses(photo: Image.Image) -> None:
    data = encoded(photo, "WEBP", quality=80)
    assert difference(decoded(data), by_pil(data)) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 12), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(decoded(data), np.broadcast_to((255, 0, 0), (12, 20, 3))) == 0


def test_a_transparent_gif_lies_on_the_background() -> None:
    image = Image.new("P", (20, 12), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((0, 0), 0)
    found = decoded(encoded(image, "GIF", transparency=1), Reading(3, None, "#204060"))
    assert tuple(found[0, 0]) == (9, 9, 9)
    assert tuple(found[5, 5]) == BLUE


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey(kind: str) -> None:
    values = numbers((H, W), np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert np.array_equal(stored(data)[..., 0], values)
    assert difference(decoded(data, Reading(1))[..., 0], values / 257) <= 0.5
    assert difference(decoded(data), threefold(values) / 257) <= 0.5
    found = decoded(data, Reading(1, (0.0, 4095.0)))
    assert found.dtype == np.float32
    assert difference(found[..., 0], np.clip(values / 4095, 0, 1)) < 1e-6


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "deflate", "predictor": True}])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_tiff_of_any_channels(channels: int, dtype: Any, layout: str, options: dict[str, Any]) -> None:
    values = numbers((H, W, channels), dtype)
    planes = values if layout == "contig" else np.ascontiguousarray(values.transpose(2, 0, 1))
    data = tiff(planes, photometric="minisblack", planarconfig=layout, **options)
    assert np.array_equal(stored(data), values)
    white = np.iinfo(dtype).max if values.dtype.kind == "u" else 1.0
    assert difference(decoded(data, Reading(channels)), values / white * 255.0) <= 0.5001


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (32, 32)}, {"rowsperstrip": 7}]
)
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((H, W, 3), np.uint8), ((H, W), np.uint8), ((H, W, 3), np.uint16), ((H, W), np.uint16), ((H, W), np.float32)],
)
def test_tiff_however_written(
    shape: tuple[int, ...], dtype: Any, compression: str | None, options: dict[str, Any]
) -> None:
    values = numbers(shape, dtype)
    kind = "rgb" if len(shape) == 3 else "minisblack"
    found = stored(tiff(values, photometric=kind, compression=compression, **options))
    assert found.dtype.kind == values.dtype.kind
    assert np.array_equal(found.reshape(shape), values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "deflate", "tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float16, np.float32, np.float64])
def test_tiff_of_other_numbers(dtype: Any, options: dict[str, Any], order: str) -> None:
    values = numbers((H, W), dtype)
    found = stored(tiff(values, photometric="minisblack", byteorder=order, **options))
    assert np.array_equal(found[..., 0], values)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_deep_tiff_is_turned(turn: int) -> None:
    values = numbers((H, W, 3), np.uint16)
    data = tiff(values, photometric="rgb", extratags=[(TURN, "H", 1, turn, True)])
    layers = [Image.fromarray(values[..., c].astype(np.int32)) for c in range(3)]
    for layer in layers:
        layer.getexif()[TURN] = turn
    assert np.array_equal(stored(data), np.stack([np.asarray(ImageOps.exif_transpose(i)) for i in layers], axis=-1))


def test_pages_are_channels_where_there_are_as_many_as_asked_for() -> None:
    pages = numbers((5, H, W), np.uint8)
    data = tiff(pages, photometric="minisblack")
    assert np.array_equal(decoded(data, Reading(5)), pages.transpose(1, 2, 0))
    assert np.array_equal(decoded(data, Reading(3)), threefold(pages[0]))
    coloured = numbers((3, H, W, 3), np.uint8)
    assert np.array_equal(decoded(tiff(coloured, photometric="rgb")), coloured[0])
    stack = numbers((3, 2, H, W), np.uint16)
    microscope = tiff(stack, imagej=True, metadata={"axes": "ZCYX"})
    assert np.array_equal(stored(microscope), stack[0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64, np.bool_, ">u2"]
)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((H, W), None),
        ((H, W, 3), None),
        ((H, W, 1), None),
        ((2, 40, 3), None),
        ((1, 1, 5), None),
        ((3, H, W), (1, 2, 0)),
        ((3, 32, 32), (1, 2, 0)),
        ((1, 28, 28), (1, 2, 0)),
        ((5, 20, 48), (1, 2, 0)),
    ],
)
def test_npy(shape: tuple[int, ...], axes: tuple[int, ...] | None, dtype: Any) -> None:
    values = numbers(shape, dtype)
    expected = values[..., None] if values.ndim == 2 else values.transpose(axes or (0, 1, 2))
    found = stored(npy(values))
    assert np.array_equal(found, expected)
    low, high = {"b": (0, 1), "f": (0, 1), "u": (0, np.iinfo(np.uint16).max), "i": (-(2**15), 2**15 - 1)}[
        values.dtype.kind
    ]
    low, high = (0, 255) if dtype == np.uint8 else (0, 65535) if dtype == np.int32 else (low, high)
    levels = (np.clip(expected.astype(float), low, high) - low) / (high - low) * 255
    assert difference(decoded(npy(values), Reading(found.shape[2])), levels) <= 0.51


def test_what_is_no_number_in_floats_is_clipped() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5], [-1e300, 1e300, 2.0, -1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoded(npy(values), Reading(1, (0.0, 1.0)))[..., 0]
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[None, {}]]),
        np.zeros((4, 4), complex),
        np.full((4, 4), "a"),
        np.zeros((4, 4), [("a", "u1")]),
        np.zeros(9),
        np.zeros((2, 4, 4, 3)),
        np.zeros((70, 80, 90)),
        np.zeros((0, 4, 3)),
        np.zeros((8, 8, 0)),
        np.uint8(3),
    ],
    ids="objects complex text record line stack no-channels empty channelless scalar".split(),
)
def test_arrays_that_are_no_picture(values: np.ndarray) -> None:
    with pytest.raises(BrokenPictureError, match=r"array of|allow_pickle|no pixels"):
        open_picture(npy(values))


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("touched").touch, ())

    for data in (pickle.dumps(Touch()), npy(np.array([Touch()], dtype=object))):
        with pytest.raises(BrokenPictureError):
            open_picture(data)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_single_pixel(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (250, 4, 6)), kind)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert decoded(data, Reading(1)).shape == (1, 1, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_very_wide_picture(kind: str) -> None:
    data = encoded(Image.fromarray(photograph(40, 20_000)), kind)
    assert difference(decoded(data), by_pil(data)) <= 2
    assert open_picture(data).decode(Reading(), 8).shape == ((5, 2500, 3) if kind == "JPEG" else (40, 20_000, 3))


def png_header(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    lines = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(lines)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A picture of few bytes whose header claims many pixels."""
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_decompression_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocates(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were asked for")

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", allocates)
    with pytest.raises(BrokenPictureError, match=r"60,000 x 60,000 pixels, .* bomb: at most 400 million"):
        open_picture(claiming(kind, 60_000, 60_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_opening_reads_no_more_than_the_header(kind: str) -> None:
    """Below our limit, above Pillow's, which warns of it or refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_picture(claiming(kind, 20_000, 15_000))
    assert (opened.width, opened.height) == (20_000, 15_000)
    assert opened.width * opened.height < MAX_PIXELS


def test_a_tiff_above_pillows_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(Image.fromarray(COLOURS), "TIFF", 6)
    assert np.array_equal(decoded(data), np.rot90(COLOURS, -1))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_pillows_own_limit_stays_as_it_was_with_many_threads() -> None:
    before, data = Image.MAX_IMAGE_PIXELS, claiming("PNG", 20_000, 15_000)
    with ThreadPoolExecutor(8) as pool:
        assert {opened.width for opened in pool.map(open_picture, [data] * 400)} == {20_000}
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("data", [b"", b"hello, world\n" * 50, b"<svg/>", b"GIF", b"\x89PNG", b"\0" * 100, b"II*\0"])
def test_what_is_no_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(
        BrokenPictureError,
        match=r"^(the file is empty|not a picture in a format that is read|.* requires a buffer .*)$",
    ):
        read(open_images(tmp_path), 0)


@pytest.mark.parametrize("rest", [b"", b"\xd9", b"\xff", b"\xff\xe0\0\0" * 20, bytes(range(256)) * 8])
def test_noise_behind_the_first_bytes_of_a_jpeg(rest: bytes) -> None:
    with pytest.raises(BrokenPictureError, match=r"^.+$"):
        decoded(b"\xff\xd8" + rest)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_picture_that_breaks_off(photo: Image.Image, kind: str, share: float) -> None:
    data = encoded(photo, kind)
    cut = data[: int(len(data) * share)]
    for take in (lambda opened: opened.decode(Reading()), lambda opened: opened.raw(Reading())):
        with pytest.raises(BrokenPictureError, match=r"^.+$"):
            take(open_picture(cut))


SEEDS = {
    "jpeg": encoded(Image.fromarray(photograph(40, 50)), "JPEG", 6),
    "jpeg-progressive": encoded(Image.fromarray(photograph(40, 50)), "JPEG", progressive=True),
    "jpeg-cmyk": encoded(Image.fromarray(photograph(40, 50)).convert("CMYK"), "JPEG"),
    "png": encoded(Image.fromarray(photograph(40, 50)), "PNG", 6),
    "png-palette": encoded(Image.fromarray(photograph(40, 50)).convert("P"), "PNG", transparency=3),
    "webp": encoded(Image.fromarray(photograph(40, 50)), "WEBP", 6),
    "gif": encoded(Image.fromarray(photograph(40, 50)), "GIF"),
    "bmp": encoded(Image.fromarray(photograph(40, 50)), "BMP"),
    "ppm": encoded(Image.fromarray(photograph(40, 50)), "PPM"),
    "tiff": encoded(Image.fromarray(photograph(40, 50)), "TIFF", 6, compression="tiff_lzw"),
    "tiff-16": tiff(numbers((40, 50, 3), np.uint16), photometric="rgb", compression="deflate", predictor=True),
    "tiff-pages": tiff(numbers((3, 40, 50), np.uint8), photometric="minisblack", compression="zstd"),
    "npy": npy(photograph(40, 50)),
    "npy-float": npy(numbers((40, 50), np.float32)),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return data[: rng.integers(0, len(data))]
    found = bytearray(data)
    head = len(data) if rng.random() < 0.5 else min(400, len(data))
    for place in rng.integers(0, head, rng.integers(1, 6)):
        found[place] = rng.integers(0, 256)
    return bytes(found)


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_a_broken_picture_or_other_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.decode.MAX_PIXELS", 10**6)
    rng = np.random.default_rng(sorted(SEEDS).index(name))
    assert decoded(SEEDS[name]).dtype == np.uint8
    refused = 0
    for _ in range(100):
        try:
            pixels = open_picture(damaged(SEEDS[name], rng)).decode(Reading(), int(rng.choice([1, 2, 8])))
        except InputError as error:
            assert str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
    assert refused > 10
