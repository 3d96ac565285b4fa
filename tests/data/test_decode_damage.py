"""Files that are no image, claim too many pixels, are truncated or damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from mec.data import open_dataset, read_image
from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError
from tests.data.encoded_images import (
    decode,
    encode,
    encode_npy,
    encode_tiff,
    image_claiming_size,
    random_values,
)
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
def test_invalid_arrays_are_corrupt_images(values: np.ndarray) -> None:
    with pytest.raises(CorruptImageError, match=r"array dtype|array shape|allow_pickle|no pixels"):
        open_image(encode_npy(values))


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("touched").touch, ())

    for data in (pickle.dumps(Touch()), encode_npy(np.array([Touch()], dtype=object))):
        with pytest.raises(CorruptImageError):
            open_image(data)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_decompression_bomb_is_refused_by_its_header(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", fail)
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        open_image(image_claiming_size(image_format, 60_000, 60_000))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_open_image_reads_the_header_only(image_format: str) -> None:
    opened = open_image(image_claiming_size(image_format, 20_000, 4_000))
    assert (opened.width, opened.height) == (20_000, 4_000)


@pytest.mark.parametrize("data", [b"", b"hello, world\n" * 50, b"<svg/>", b"GIF", b"\x89PNG", b"\0" * 100, b"II*\0"])
def test_files_that_are_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(CorruptImageError, match=r"^(the file is empty|not an image in a|.* requires a buffer).*$"):
        read_image(open_dataset(tmp_path), 0)


@pytest.mark.parametrize("noise", [b"", b"\xd9", b"\xff", b"\xff\xe0\0\0" * 20, bytes(range(256)) * 8])
def test_noise_after_the_magic_bytes_of_a_jpeg(noise: bytes) -> None:
    with pytest.raises(CorruptImageError, match=r"^.+$"):
        decode(b"\xff\xd8" + noise)


@pytest.mark.parametrize(
    ("image_format", "fraction"),
    [("JPEG", 0.01), ("JPEG", 0.9), ("JPEG", 0.999), ("PNG", 0.5), ("WEBP", 0.1), ("WEBP", 0.999), ("BMP", 0.5)],
)
def test_a_truncated_image_is_corrupt(photo: Image.Image, image_format: str, fraction: float) -> None:
    data = encode(photo, image_format)
    truncated = data[: int(len(data) * fraction)]
    for decode_opened in (lambda opened: opened.decode(PixelFormat()), lambda opened: opened.raw(PixelFormat())):
        with pytest.raises(CorruptImageError, match=r"^.+$"):
            decode_opened(open_image(truncated))


IMAGE = Image.fromarray(photograph(40, 50))
FILES = {
    "jpeg": encode(IMAGE, "JPEG", 6),
    "jpeg-progressive": encode(IMAGE, "JPEG", progressive=True),
    "jpeg-cmyk": encode(IMAGE.convert("CMYK"), "JPEG"),
    "png": encode(IMAGE, "PNG", 6),
    "png-palette": encode(IMAGE.convert("P"), "PNG", transparency=3),
    "webp": encode(IMAGE, "WEBP", 6),
    "gif": encode(IMAGE, "GIF"),
    "bmp": encode(IMAGE, "BMP"),
    "ppm": encode(IMAGE, "PPM"),
    "tiff": encode(IMAGE, "TIFF", 6, compression="tiff_lzw"),
    "tiff-16": encode_tiff(
        random_values((40, 50, 3), np.uint16), photometric="rgb", compression="deflate", predictor=True
    ),
    "tiff-pages": encode_tiff(random_values((3, 40, 50), np.uint8), photometric="minisblack", compression="zstd"),
    "npy": encode_npy(photograph(40, 50)),
    "npy-float": encode_npy(random_values((40, 50), np.float32)),
}


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return data[: rng.integers(0, len(data))]
    result = bytearray(data)
    limit = len(data) if rng.random() < 0.5 else min(400, len(data))
    for position in rng.integers(0, limit, rng.integers(1, 6)):
        result[position] = rng.integers(0, 256)
    return bytes(result)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_random_damage_raises_corrupt_image_error_or_changes_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.decode.MAX_PIXELS", 10**6)
    rng = np.random.default_rng(sorted(FILES).index(name))
    assert decode(FILES[name]).dtype == np.uint8
    num_corrupt = 0
    for _ in range(100):
        try:
            pixels = open_image(damage(FILES[name], rng)).decode(PixelFormat(), int(rng.choice([1, 2, 8])))
        except InputError as error:
            assert str(error)
            assert "\n" not in str(error)
            num_corrupt += 1
        else:
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert num_corrupt > 10
