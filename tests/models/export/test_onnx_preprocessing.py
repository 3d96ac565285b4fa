"""The code of docs/export.md makes the inputs of an ONNX file from its metadata, as mec embed does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mec
from tests.models.perturbed import NARROW, perturbed_encoder
from tests.test_docs import ROOT, blocks_of

onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """Return a random image (height, width, channels), uint8, in which every region is different."""
    coarse = RNG.integers(0, 256, (channels, 9, 9), dtype=np.uint8)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def rotated_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(201, 333, 3)).save(path, exif=exif, quality=95)


WRITERS = {
    "landscape.png": lambda path: Image.fromarray(smooth(233, 301, 3)).save(path),
    "rotated.jpg": rotated_jpeg,
    "gray.png": lambda path: Image.fromarray(smooth(180, 120, 1)[..., 0]).save(path),
    "transparent.png": lambda path: Image.fromarray(smooth(150, 150, 4)).save(path),
    "palette.png": lambda path: Image.fromarray(smooth(90, 130, 3)).quantize(64).save(path),
    "tiny.png": lambda path: Image.fromarray(smooth(11, 7, 3)).save(path),
    "deep.png": lambda path: Image.fromarray(smooth(140, 200, 1)[..., 0].astype(np.uint16) * 16).save(path),
    "full.png": lambda path: Image.fromarray(smooth(140, 200, 1)[..., 0].astype(np.uint16) * 257).save(path),
}
ENCODERS = {  # the images it reads, and settings
    "color": (list(WRITERS)[:6], {"image_size": 97, "background": "#d01020"}),
    "small": (list(WRITERS)[:6], {"image_size": 31}),
    "gray": (list(WRITERS)[:6], {"image_size": 96, "channels": 1}),
    "12 bits": (["deep.png", "gray.png"], {"image_size": 96, "channels": 1, "value_range": (100, 3800)}),
    "16 bits in 3 channels": (["full.png"], {"image_size": 64, "channels": 3}),
}


@pytest.fixture(scope="module")
def preprocess() -> Any:
    (block,) = (b for b in blocks_of(ROOT / "docs" / "export.md") if "def preprocess" in b.text)
    names: dict[str, Any] = {}
    exec(block.text, names)
    return names["preprocess"]


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_of_a_file_are_those_of_mec_embed(preprocess: Any, tmp_path: Path, kind: str) -> None:
    names, settings = ENCODERS[kind]
    encoder = perturbed_encoder("resnet18", small_stem=False, options=NARROW, **settings)
    session = onnxruntime.InferenceSession(mec.export(encoder, "onnx", tmp_path / "e.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    assert float(metadata["crop_pct"]) == (0.875 if settings["image_size"] >= 96 else 1.0)
    (tmp_path / "images").mkdir()
    for name in names:
        WRITERS[name](tmp_path / "images" / name)
    mec.embed(tmp_path / "images", encoder, tmp_path / "features.npy", workers=0)
    for name, expected in zip(sorted(names), np.load(tmp_path / "features.npy"), strict=True):
        inputs = preprocess(tmp_path / "images" / name, metadata)
        assert inputs.dtype == np.float32
        assert inputs.min() >= 0
        assert 0.05 < inputs.max() <= 1
        (features,) = session.run([metadata["output_name"]], {metadata["input_name"]: inputs})[0]
        cosine = features @ expected / np.linalg.norm(features) / np.linalg.norm(expected)
        assert cosine > 0.9999, name
        np.testing.assert_allclose(features, expected, atol=0.02 * np.abs(expected).max(), err_msg=name)
