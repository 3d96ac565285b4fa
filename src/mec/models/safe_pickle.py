"""Reading files of weights that others wrote, without running any code that may be in them."""

from __future__ import annotations

import argparse
import collections
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mec.errors import InputError

READABLE = "expected PyTorch, safetensors or a pickle of arrays as detectron2 writes"
TORCH_BEFORE_ZIP = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which ``torch.save`` began before version 1.6, pickled."""
FOREIGN = {b"\x89HDF": "HDF5 (Keras)", b"\x93NUMPY": "NumPy", b"GGUF": "GGUF"}
FOREIGN_SUFFIXES = {
    ".onnx": "ONNX",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".h5": "Keras",
    ".keras": "Keras",
    ".npz": "NumPy",
    ".pte": "ExecuTorch",
    ".mlmodel": "Core ML",
}


def read_weights(path: Path) -> Mapping[Any, Any]:
    """What a file of weights holds: a mapping, nested as it was written, of tensors on the CPU and plain values.

    PyTorch's two formats go through ``weights_only``, safetensors through its own reader, and other pickles through
    one that knows NumPy's arrays and nothing else.

    Raises:
        InputError: not there, empty, damaged, of another format, or a pickle that would need code to load.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"encoder: {path} cannot be opened ({error.strerror})") from error
    if not head:
        raise InputError(f"encoder: {path} is empty")
    if path.suffix in FOREIGN_SUFFIXES or head.startswith(tuple(FOREIGN)):
        kind = FOREIGN_SUFFIXES.get(path.suffix) or next(k for magic, k in FOREIGN.items() if head.startswith(magic))
        raise InputError(f"encoder: {path} is {kind}, which is not read here; {READABLE}")
    if head.startswith(b"PK"):
        _refuse_other_archives(path)
        content = _read_torch(path)
    elif head.startswith(TORCH_BEFORE_ZIP):
        content = _read_torch(path)
    elif head[8:9] == b"{":  # after the length of its header
        content = _read_safetensors(path)
    elif head[0] == 0x80:
        content = _read_pickle(path)
    else:
        raise InputError(f"encoder: {path} is of no format that is known here; {READABLE}")
    if not isinstance(content, Mapping):
        raise InputError(f"encoder: {path} holds a {type(content).__name__}; expected a mapping of names to tensors")
    return content


def _refuse_other_archives(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"encoder: {path} is damaged or cut short ({error})") from error
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise InputError(f"encoder: {path} is TorchScript, a program with its weights; save its state_dict() instead")
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"encoder: {path} is an archive without PyTorch's weights in it; {READABLE}")


def _read_torch(path: Path) -> Any:
    # beside tensors: the settings of a run, and numbers of NumPy's; neither can do anything when it is rebuilt
    harmless: list[Any] = [
        argparse.Namespace,
        _Array,
        _Kind,
        *((stand_in, name) for name, stand_in in STAND_INS.items()),
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return _with_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for a damaged file
        if found := re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error)):
            raise _needs_code(path, found[1]) from error
        if "weights_only" in str(error) and isinstance(error, pickle.UnpicklingError):
            raise _needs_code(path, "code of its own") from error
        raise InputError(f"encoder: {path} is damaged or cut short ({_first_line(error)})") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"encoder: {path} cannot be read as safetensors ({_first_line(error)})") from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _with_arrays(_ArraysOnly(file, encoding="latin1").load())
    except _NeedsCodeError as error:
        raise _needs_code(path, str(error)) from error
    except Exception as error:  # a damaged pickle raises many kinds
        raise InputError(f"encoder: {path} is damaged or cut short ({_first_line(error)})") from error


def _needs_code(path: Path, name: str) -> InputError:
    return InputError(
        f"encoder: {path} was not read, for it needs {name} to run, and a file could do anything with it; "
        "save only the state_dict() to a new file"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _NeedsCodeError(Exception):
    pass


class _Kind:
    """Stands for a numpy.dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def read(self, data: Any) -> np.ndarray[Any, Any]:
        data = data.encode("latin1") if isinstance(data, str) else data
        if re.fullmatch("[fiub][1248]", self.name) is None:
            raise ValueError(f"an array of kind {self.name}; expected numbers")
        big = ">" if self.order == ">" else "<"
        return np.frombuffer(data, np.dtype(big + self.name)).astype(self.name)


class _Array:
    """Stands for a numpy.ndarray: NumPy's own trusts what a pickle says of its memory, and can be made to crash."""

    values: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        self.values = kind.read(data).reshape(shape, order="F" if by_columns else "C")


def _scalar(kind: _Kind, data: Any) -> Any:
    return kind.read(data)[0]


def _from_buffer(buffer: Any, kind: _Kind, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    # how NumPy rebuilds an array since pickle's protocol 5
    return kind.read(buffer).reshape(shape, order=order)


def _with_arrays(content: Any) -> Any:
    if isinstance(content, _Array):
        return content.values
    if isinstance(content, dict):
        return {name: _with_arrays(value) for name, value in content.items()}
    return content


STAND_INS: dict[str, Any] = {"numpy.ndarray": _Array, "numpy.dtype": _Kind} | {
    f"numpy.{core}.{name}": stand_in
    for core in ("core", "_core")  # before NumPy 2, and since
    for name, stand_in in (
        ("multiarray._reconstruct", _Array),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _from_buffer),
    )
}


class _ArraysOnly(pickle.Unpickler):
    """Plain containers, numbers, text and arrays of numbers; the first other name ends it."""

    KNOWN: Mapping[str, Any] = STAND_INS | {
        "collections.OrderedDict": collections.OrderedDict,
        # how Python 3 writes bytes in an old protocol, and no bytes
        "_codecs.encode": lambda text, _: text.encode("latin1"),
        "__builtin__.bytes": lambda: b"",
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.KNOWN[f"{module}.{name}"]
        except KeyError:
            raise _NeedsCodeError(f"{module}.{name}") from None
