"""The door to trackeval, which is installed only with the extra ``tracking``."""

from __future__ import annotations

import importlib
from types import ModuleType

from mec.errors import InputError


def trackeval() -> ModuleType:
    """Luiten's trackeval. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("trackeval")
    except ImportError as error:
        raise InputError(f"trackeval: {' '.join(str(error).split())}; pip install 'mec-ssl[tracking]'") from error
