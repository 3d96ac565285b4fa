"""Read weight files of other projects without running code that they may contain."""

from __future__ import annotations

import argparse
import collections
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mec.errors import InputError

LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Pickled magic number at the start of files that ``torch.save`` wrote before version 1.6."""


def read_weights(path: Path) -> Mapping[Any, Any]:
    """Return the content of a weight file: a mapping, nested as saved, of CPU tensors, NumPy arrays and plain values.

    Pickles other than PyTorch's are read with an unpickler that accepts NumPy arrays and plain values only.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"encoder: {path} cannot be opened ({error.strerror})") from error
    try:
        if head.startswith((b"PK", LEGACY_TORCH_MAGIC)):
            with torch.serialization.safe_globals([(value, name) for name, value in SAFE_GLOBALS.items()]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        elif head[8:9] == b"{":  # safetensors: 8 bytes for the length of the header, then the header in json
            content = load_file(path)
        elif head[:1] == b"\x80":
            with path.open("rb") as file:
                content = _SafeUnpickler(file, encoding="latin1").load()
        else:
            reason = "has an unknown format" if head else "is empty"
            expected = "expected PyTorch, safetensors or a pickle of NumPy arrays as detectron2 writes"
            raise InputError(f"encoder: {path} {reason}; {expected}")
    except InputError:
        raise
    except Exception as error:  # the readers raise many kinds of exceptions for a damaged file
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"encoder: {path} was not loaded, because it needs {match[1]}, which could run arbitrary code; "
                "save only the state_dict() to a new file"
            ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"encoder: {path} cannot be loaded: it is damaged, truncated or unsafe ({reason})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"encoder: {path} contains a {type(content).__name__}; expected a state dict")
    return content


class _DType:
    """Replacement for numpy.dtype: numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        if re.fullmatch("[fiub][1248]", code) is None:
            raise ValueError(f"expected a numeric dtype, got {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Replacement for numpy.ndarray, whose own unpickling trusts the memory layout of the pickle and can crash."""

    def __new__(cls, *_: Any) -> _Array:
        return super().__new__(cls, 0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        native_state: Any = _frombuffer(data, dtype, shape, "F" if is_fortran else "C").__reduce__()[2]
        super().__setstate__(native_state)


def _frombuffer(data: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    data = data.encode("latin1") if isinstance(data, str) else data
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return array.astype(dtype.dtype.newbyteorder("="))


SAFE_GLOBALS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.OrderedDict": collections.OrderedDict,
    # how Python 3 pickles bytes, and empty bytes, in protocols before 3
    "_codecs.encode": lambda text, _: text.encode("latin1"),
    "__builtin__.bytes": lambda: b"",
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
}
for _module in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    SAFE_GLOBALS[f"{_module}.multiarray._reconstruct"] = _Array
    SAFE_GLOBALS[f"{_module}.multiarray.scalar"] = lambda dtype, data: _frombuffer(data, dtype, (), "C")[()]
    SAFE_GLOBALS[f"{_module}.numeric._frombuffer"] = _frombuffer  # since pickle protocol 5


class _SafeUnpickler(pickle.Unpickler):
    """Unpickler of plain containers, numbers, text and numeric arrays; any other class or function is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return SAFE_GLOBALS[f"{module}.{name}"]
