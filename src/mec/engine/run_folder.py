"""The folder of a training: its lock, and the settings that a resumed training must share with it."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mec.distributed import is_rank_zero
from mec.errors import InputError
from mec.files import atomic_write

logger = logging.getLogger("mec")

SETTINGS_FILE, LOCK_FILE = "settings.json", ".lock"
TEMPORARY_FILES = ("checkpoints/.step=*", ".metrics.csv.*", ".encoder.*", ".recipe.yaml.*", ".environment.json.*")
"""Patterns of the temporary files of ``atomic_write`` that a killed process leaves."""
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK_TIMEOUT = 5.0
"""Seconds to wait for the lock: loader processes of a killed training hold it until they exit."""


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Create the folder and lock it for this training, until the block or the process ends. Raise InputError if another
    process trains into it, it is not writable, or the disk is full."""
    if not is_rank_zero():
        yield
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"out: expected a folder, got the file {out}")
    lock = FileLock(out / LOCK_FILE, timeout=LOCK_TIMEOUT)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"out: another process is training into {out}; wait for it, or take another folder") from error
    except NotImplementedError:  # some network file systems have no locks
        pass
    except OSError as error:
        raise InputError(f"out: {out} cannot be written to ({error.strerror or error})") from error
    try:
        for path in [path for pattern in TEMPORARY_FILES for path in out.glob(pattern)]:
            path.unlink(missing_ok=True)
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRORS:
            raise
        raise InputError(
            f"out: {error.filename or out} cannot be written ({error.strerror}); free some space, then continue from "
            "the last checkpoint with --resume"
        ) from error
    finally:
        lock.release()


def write_or_compare_settings(
    folder: Path, settings: Mapping[str, Any], resume: bool, changeable: Sequence[str] = ()
) -> None:
    """Write settings.json, which holds everything that decides what is computed, before the first step. With ``resume``
    compare an existing one instead. Raise InputError if it differs, or exists without ``resume``."""
    path = folder / SETTINGS_FILE
    if not is_rank_zero():
        return
    if path.exists() and not resume:
        raise InputError(f"out: {folder} already contains results; choose another folder, or continue with --resume")
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"resume: {path} cannot be read ({error})") from error
        check_same_settings(before, settings, changeable)
        return
    if resume:
        logger.info(f"{folder} contains no results yet: starting")
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"out: {folder} is not writable ({error.strerror or error})") from error


def check_same_settings(before: Mapping[str, Any], now: Mapping[str, Any], changeable: Sequence[str] = ()) -> None:
    """Raise InputError if nested settings differ, except in names that start with one of ``changeable``."""
    old, new = flatten_settings(before), flatten_settings(now)
    changed = [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not f"{name}.".startswith(tuple(changeable))
    ]
    if changed:
        raise InputError(f"resume: the settings differ from those of the results so far: {'; '.join(changed)}")


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings with dotted names such as optimizer.lr."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        dotted = prefix + name
        flat |= flatten_settings(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return flat
