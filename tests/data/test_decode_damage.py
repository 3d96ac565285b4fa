"""What is no image, claims too many pixels, breaks off or is damaged."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mec.data import open_dataset, read_image
from mec.data.decode import MAX_PIXELS, open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError
from tests.data.encoded_images import COLORS, claiming, decoded, encoded, npy, numbers, tiff
from tests.data.transforms.test_geometry import photograph


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
def test_arrays_that_are_no_image(values: np.ndarray) -> None:
    with pytest.raises(CorruptImageError, match=r"array of|allow_pickle|no pixels"):
        open_image(npy(values))


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("touched").touch, ())

    for data in (pickle.dumps(Touch()), npy(np.array([Touch()], dtype=object))):
        with pytest.raises(CorruptImageError):
            open_image(data)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_decompression_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocates(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were asked for")

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", allocates)
    with pytest.raises(CorruptImageError, match=r"60,000 x 60,000 pixels, .* bomb: at most 400 million"):
        open_image(claiming(kind, 60_000, 60_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_opening_reads_no_more_than_the_header(kind: str) -> None:
    """Below our limit, above Pillow's, which warns of it or refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_image(claiming(kind, 20_000, 15_000))
    assert (opened.width, opened.height) == (20_000, 15_000)
    assert opened.width * opened.height < MAX_PIXELS


def test_a_tiff_above_pillows_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(Image.fromarray(COLORS), "TIFF", 6)
    assert np.array_equal(decoded(data), np.rot90(COLORS, -1))
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_pillows_own_limit_stays_as_it_was_with_many_threads() -> None:
    before, data = Image.MAX_IMAGE_PIXELS, claiming("PNG", 20_000, 15_000)
    with ThreadPoolExecutor(8) as pool:
        assert {opened.width for opened in pool.map(open_image, [data] * 400)} == {20_000}
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("data", [b"", b"hello, world\n" * 50, b"<svg/>", b"GIF", b"\x89PNG", b"\0" * 100, b"II*\0"])
def test_what_is_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(
        CorruptImageError,
        match=r"^(the file is empty|not an image in a format that is read|.* requires a buffer .*)$",
    ):
        read_image(open_dataset(tmp_path), 0)


@pytest.mark.parametrize("rest", [b"", b"\xd9", b"\xff", b"\xff\xe0\0\0" * 20, bytes(range(256)) * 8])
def test_noise_behind_the_first_bytes_of_a_jpeg(rest: bytes) -> None:
    with pytest.raises(CorruptImageError, match=r"^.+$"):
        decoded(b"\xff\xd8" + rest)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_image_that_breaks_off(photo: Image.Image, kind: str, share: float) -> None:
    data = encoded(photo, kind)
    cut = data[: int(len(data) * share)]
    for take in (lambda opened: opened.decode(PixelFormat()), lambda opened: opened.raw(PixelFormat())):
        with pytest.raises(CorruptImageError, match=r"^.+$"):
            take(open_image(cut))


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
def test_damage_of_any_kind_is_a_broken_image_or_other_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.decode.MAX_PIXELS", 10**6)
    rng = np.random.default_rng(sorted(SEEDS).index(name))
    assert decoded(SEEDS[name]).dtype == np.uint8
    refused = 0
    for _ in range(100):
        try:
            pixels = open_image(damaged(SEEDS[name], rng)).decode(PixelFormat(), int(rng.choice([1, 2, 8])))
        except InputError as error:
            assert str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
    assert refused > 10
