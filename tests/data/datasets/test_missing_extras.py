"""Errors of datasets that need an optional package which is not installed."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mec.data import open_dataset, read_image
from mec.errors import InputError

pytestmark = pytest.mark.usefixtures("empty_cache", "network_calls")


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every import of a module fail."""
    for name in [module, *(m for m in sys.modules if m.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("datasets", "a.parquet", "datasets"),
        ("av", "a.mp4", "video"),
    ],
)
def test_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    hide(module, monkeypatch)
    (tmp_path / "a.parquet").touch()
    (tmp_path / "a.tar").touch()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=rf"{name[-4:]}.* needs .*pip install 'mec-ssl\[{extra}\]'$"):
        open_dataset(name if "://" in name else tmp_path / name)


def test_missing_tiff_reader_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 8, 9), np.uint16), photometric="minisblack")
    hide("tifffile", monkeypatch)
    with pytest.raises(InputError, match=r"TIFF has channels.*; pip install 'mec-ssl\[tiff\]'$"):
        read_image(open_dataset(tmp_path), 0)
