"""Files of weights that are hostile, damaged or of another kind: one line each, and nothing in them is run."""

import argparse
import collections
import os
import pickle
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
def test_settings_and_single_numbers_beside_the_tensors_are_harmless(tmp_path: Path, zipped: bool) -> None:
    content = {
        "model": collections.OrderedDict(weight=torch.arange(3.0)),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
        "best": np.float32(0.75),
        "seen": np.int64(12),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pth")
    assert torch.equal(found["model"]["weight"], torch.arange(3.0))
    assert (found["best"], found["seen"]) == (0.75, 12)
    assert found["args"].betas == (0.9, 0.999)


@pytest.mark.parametrize("kind", ["float32", "float16", ">f8", "int64", "uint8", "bool"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_are_what_numpy_wrote(tmp_path: Path, kind: str, protocol: int) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    content = {"rows": array, "columns": np.asfortranarray(array), "none": array[:0], "one": array[1, 1, 1]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    if protocol == 0:  # text, which nobody publishes weights in
        with pytest.raises(InputError, match="of no format"):
            read_weights(tmp_path / "a.pkl")
        return
    found = read_weights(tmp_path / "a.pkl")
    for name, expected in content.items():
        assert np.array_equal(found[name], expected)
        assert found[name].dtype == np.dtype(kind).newbyteorder("=")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["torch", "torch before zip", "pickle", "text pickle"])
def test_a_pickle_that_needs_code_is_not_run(tmp_path: Path, kind: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"model": {"conv1.weight": torch.zeros(2) if "torch" in kind else np.zeros(2), "evil": Touch(ran)}}
    if "torch" in kind:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if "text" in kind else 4))
    with pytest.raises(
        InputError, match="known here" if "text" in kind else r"needs (posix|nt)\.system to run"
    ) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    assert not ran.exists()


def test_numpys_memory_is_not_trusted_to_a_pickle(tmp_path: Path) -> None:
    # an array of objects from raw bytes would be an array of pointers
    class Forged:
        def __reduce__(self) -> Any:
            return np.ndarray, ((1,), np.dtype("O"), b"12345678")

    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"x": Forged()}}))
    with pytest.raises(InputError):
        load_encoder(path)
    torch.save({"model": {"x": Forged()}}, path)
    with pytest.raises(InputError):
        load_encoder(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is empty"),
        ("a.pth", b"hello, world: not weights", "of no format that is known here"),
        ("a.onnx", b"\x08\x09\x12\x07pytorch", "is ONNX, which is not read here"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "is Keras"),
        ("a.bin", b"\x89HDF\r\n\x1a\n", "is HDF5"),
        ("a.pkl", b"\x80\x04\x95\xff", "damaged or cut short"),
        ("a.safetensors", b"\xff\x00\x00\x00\x00\x00\x00\x00{", "cannot be read as safetensors"),
    ],
)
def test_other_files_get_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"encoder: .*{message}") as error:
        load_encoder(tmp_path / name)
    assert "\n" not in str(error.value)


def test_damaged_and_foreign_archives_get_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(100, 100).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or cut short"):
        load_encoder(path)
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(InputError, match="is TorchScript"):
        load_encoder(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(2))
    with pytest.raises(InputError, match="an archive without PyTorch's weights"):
        load_encoder(path)
    with pytest.raises(InputError, match="has no encoder"):
        load_encoder(tmp_path)
