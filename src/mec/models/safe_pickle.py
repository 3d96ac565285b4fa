"""Read weight files of other projects without running code that they may contain."""

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

EXPECTED = "expected PyTorch, safetensors or a pickle of NumPy arrays as detectron2 writes"
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Pickled magic number at the start of files that ``torch.save`` wrote before version 1.6."""
UNSUPPORTED_MAGIC = {b"\x89HDF": "HDF5 (Keras)", b"\x93NUMPY": "NumPy", b"GGUF": "GGUF"}
UNSUPPORTED_SUFFIXES = {
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
    """Return the content of a weight file: a mapping, nested as saved, of CPU tensors, NumPy arrays and plain values.

    Both of PyTorch's formats are read with ``weights_only``, safetensors with its own reader, and other pickles with
    an unpickler that accepts NumPy arrays and plain values only.

    Raises:
        InputError: the file is absent, empty, damaged, of another format, or a pickle that needs code to load.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"encoder: {path} cannot be opened ({error.strerror})") from error
    if not head:
        raise InputError(f"encoder: {path} is empty")
    if path.suffix in UNSUPPORTED_SUFFIXES or head.startswith(tuple(UNSUPPORTED_MAGIC)):
        format = UNSUPPORTED_SUFFIXES.get(path.suffix) or next(
            format for magic, format in UNSUPPORTED_MAGIC.items() if head.startswith(magic)
        )
        raise InputError(f"encoder: {path} is {format}, which is not supported; {EXPECTED}")
    if head.startswith(b"PK"):
        _check_archive(path)
        content = _read_torch(path)
    elif head.startswith(LEGACY_TORCH_MAGIC):
        content = _read_torch(path)
    elif head[8:9] == b"{":  # safetensors: 8 bytes for the length of the header, then the header in json
        content = _read_safetensors(path)
    elif head[0] == 0x80:
        content = _read_pickle(path)
    else:
        raise InputError(f"encoder: {path} has an unknown format; {EXPECTED}")
    if not isinstance(content, Mapping):
        raise InputError(f"encoder: {path} contains a {type(content).__name__}; expected a state dict")
    return content


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"encoder: {path} is damaged or truncated ({error})") from error
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise InputError(f"encoder: {path} is TorchScript, which contains code; save its state_dict() instead")
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"encoder: {path} is a zip archive without PyTorch weights; {EXPECTED}")


def _read_torch(path: Path) -> Any:
    # checkpoints may also contain a run's settings and NumPy scalars; none of these types runs code when unpickled
    safe_types: list[Any] = [
        argparse.Namespace,
        _NDArray,
        _DType,
        *((replacement, name) for name, replacement in NUMPY_REPLACEMENTS.items()),
    ]
    try:
        with torch.serialization.safe_globals(safe_types):
            return _unwrap_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds of exceptions for a damaged file
        if match := re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error)):
            raise _unsafe_file(path, match[1]) from error
        if "weights_only" in str(error) and isinstance(error, pickle.UnpicklingError):
            raise _unsafe_file(path, "custom code") from error
        raise InputError(f"encoder: {path} is damaged or truncated ({_first_line(error)})") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"encoder: {path} cannot be read as safetensors ({_first_line(error)})") from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _unwrap_arrays(_SafeUnpickler(file, encoding="latin1").load())
    except _UnsafeGlobalError as error:
        raise _unsafe_file(path, str(error)) from error
    except Exception as error:  # pickle raises many kinds of exceptions for a damaged file
        raise InputError(f"encoder: {path} is damaged or truncated ({_first_line(error)})") from error


def _unsafe_file(path: Path, name: str) -> InputError:
    return InputError(
        f"encoder: {path} was not loaded, because it needs {name}, which could run arbitrary code; "
        "save only the state_dict() to a new file"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _UnsafeGlobalError(Exception):
    """A pickle refers to a class or function that is not allowed."""


class _DType:
    """Replacement for numpy.dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.byte_order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.byte_order = state[1]

    def read(self, data: Any) -> np.ndarray[Any, Any]:
        data = data.encode("latin1") if isinstance(data, str) else data
        if re.fullmatch("[fiub][1248]", self.name) is None:
            raise ValueError(f"expected a numeric dtype, got {self.name}")
        byte_order = ">" if self.byte_order == ">" else "<"
        return np.frombuffer(data, np.dtype(byte_order + self.name)).astype(self.name)


class _NDArray:
    """Replacement for numpy.ndarray, whose own unpickling trusts the memory layout of the pickle and can crash."""

    values: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = dtype.read(data).reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: _DType, data: Any) -> Any:
    return dtype.read(data)[0]


def _frombuffer(buffer: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    # NumPy's constructor of arrays since pickle protocol 5
    return dtype.read(buffer).reshape(shape, order=order)


def _unwrap_arrays(content: Any) -> Any:
    if isinstance(content, _NDArray):
        return content.values
    if isinstance(content, dict):
        return {name: _unwrap_arrays(value) for name, value in content.items()}
    return content


NUMPY_REPLACEMENTS: dict[str, Any] = {"numpy.ndarray": _NDArray, "numpy.dtype": _DType} | {
    f"numpy.{core}.{name}": replacement
    for core in ("core", "_core")  # before and since NumPy 2
    for name, replacement in (
        ("multiarray._reconstruct", _NDArray),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _frombuffer),
    )
}


class _SafeUnpickler(pickle.Unpickler):
    """Unpickler of plain containers, numbers, text and numeric arrays; any other class or function is an error."""

    ALLOWED: Mapping[str, Any] = NUMPY_REPLACEMENTS | {
        "collections.OrderedDict": collections.OrderedDict,
        # how Python 3 pickles bytes, and empty bytes, in protocols before 3
        "_codecs.encode": lambda text, _: text.encode("latin1"),
        "__builtin__.bytes": lambda: b"",
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _UnsafeGlobalError(f"{module}.{name}") from None
