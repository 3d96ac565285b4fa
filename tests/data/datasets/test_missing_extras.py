"""Errors of datasets that need an optional package which is not installed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mec.data import open_dataset, read_image
from mec.errors import InputError

pytestmark = pytest.mark.usefixtures("empty_cache", "network_calls")


@pytest.mark.parametrize(
    ("module", "extra", "name", "message"),
    [
        ("datasets", "datasets", "a.parquet", r"a\.parquet needs"),
        ("av", "video", "a.mp4", r"a\.mp4 needs"),
        ("tifffile", "tiff", "a.tif", "TIFF has .*channels"),
    ],
)
def test_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str, name: str, message: str
) -> None:
    path = tmp_path / name
    path.touch()
    if name == "a.tif":
        tifffile.imwrite(path, np.zeros((5, 8, 9), np.uint16), photometric="minisblack")
        path = tmp_path
    for imported in [module, *(m for m in sys.modules if m.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, imported, None)
    with pytest.raises(InputError, match=rf"{message}.*; pip install 'mec-ssl\[{extra}\]'$|{message}.*\[{extra}\]'$"):
        read_image(open_dataset(path), 0)
