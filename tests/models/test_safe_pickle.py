"""Malicious, damaged and unsupported weight files: each raises a one-line error, and none runs code."""

import argparse
import collections
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mec.errors import InputError
from mec.models import load_encoder
from mec.models.safe_pickle import read_weights


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_numpy_scalars_in_checkpoints_are_loaded(tmp_path: Path, zipped: bool) -> None:
    content = {
        "model": collections.OrderedDict(weight=torch.arange(3.0)),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
        "best": np.float32(0.75),
        "samples": np.int64(12),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_weights(tmp_path / "a.pth")
    assert torch.equal(content["model"]["weight"], torch.arange(3.0))
    assert (content["best"], content["samples"]) == (0.75, 12)
    assert content["args"].betas == (0.9, 0.999)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickled_arrays_equal_numpys(tmp_path: Path, protocol: int) -> None:
    for dtype in ("float32", "float16", ">f8", "int64", "uint8", "bool"):
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        content = {"rows": array, "columns": np.asfortranarray(array), "empty": array[:0], "scalar": array[1, 1, 1]}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        arrays = read_weights(tmp_path / "a.pkl")
        for name, expected in content.items():
            assert np.array_equal(arrays[name], expected)
            assert arrays[name].dtype == np.dtype(dtype).newbyteorder("=")


class CreateFile:
    """A pickle that creates a file when it is loaded unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("format", ["torch", "legacy torch", "pickle", "text pickle"])
def test_pickles_that_need_code_are_rejected_without_running_it(tmp_path: Path, format: str) -> None:
    created, path = tmp_path / "created", tmp_path / "weights.pth"
    weight = torch.zeros(2) if "torch" in format else np.zeros(2)
    content = {"model": {"conv1.weight": weight, "code": CreateFile(created)}}
    if "torch" in format:
        torch.save(content, path, _use_new_zipfile_serialization=format == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if "text" in format else 4))
    with pytest.raises(
        InputError, match="unknown format" if "text" in format else r"needs (posix|nt)\.system"
    ) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    assert not created.exists()


class Forged:
    """A pickle of a call of NumPy with invalid arguments."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]
FORGED = {
    # NumPy would interpret the raw bytes as pointers to objects
    "objects": Forged(np.ndarray, ((1,), np.dtype("O"), b"12345678")),
    "object state": Forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (4,), np.dtype("O"), False, b"x" * 32)),
    "negative shape": Forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1, -4), np.dtype("f8"), False, b"x" * 32)),
    "short data": Forged(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9,), np.dtype("f8"), False, b"x" * 32)),
    "structured": np.zeros(2, [("a", "f4"), ("b", "O")]),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_arrays_in_pickles_are_rejected(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pkl"
    for save in (lambda content: path.write_bytes(pickle.dumps(content)), lambda content: torch.save(content, path)):
        save({"model": {"x": FORGED[name]}})
        with pytest.raises(InputError, match="cannot be loaded"):
            load_encoder(path)


def test_unsupported_files_raise_a_one_line_error(tmp_path: Path) -> None:
    for content, message in (
        (b"", "is empty"),
        (b"hello, world: not weights", "has an unknown format"),
        (b"\x80\x04\x95\xff", "cannot be loaded"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00{", "cannot be loaded"),  # as safetensors
    ):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(InputError, match=f"encoder: .*{message}") as error:
            load_encoder(tmp_path / "a.pth")
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning", "ignore:.*TorchScript archive")
def test_damaged_and_unsupported_archives_raise_input_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(100, 100).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])

    def assert_refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as error:
            load_encoder(path)
        assert "\n" not in str(error.value)

    assert_refused("cannot be loaded")
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    assert_refused("cannot be loaded.*TorchScript")
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(2))
    assert_refused("cannot be loaded")
    with pytest.raises(InputError, match="has no encoder"):
        load_encoder(tmp_path)
