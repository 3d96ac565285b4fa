"""Access to trackeval, which only the extra ``tracking`` installs."""

from __future__ import annotations

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from mec.errors import InputError


def import_trackeval() -> ModuleType:
    """Return the module trackeval (Luiten). Raises InputError where it is not installed."""
    try:
        return importlib.import_module("trackeval")
    except ImportError as error:
        raise InputError(f"trackeval: {' '.join(str(error).split())}; pip install 'mec-ssl[tracking]'") from error


def trackeval_dataset(name: str, **options: Any) -> Any:
    """Return trackeval's dataset of this name, for its preprocessing rules. It requires files although none is read."""
    with TemporaryDirectory() as folder:
        Path(folder, "gt.txt").touch()
        config = {
            "GT_FOLDER": folder, "GT_LOC_FORMAT": "{gt_folder}/gt.txt", "TRACKERS_FOLDER": folder,
            "TRACKERS_TO_EVAL": [], "SEQ_INFO": {"": 0}, "SKIP_SPLIT_FOL": True, "PRINT_CONFIG": False,
        }  # fmt: skip
        return getattr(import_trackeval().datasets, name)(config | options)
