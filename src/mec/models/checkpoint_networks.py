"""Networks in a checkpoint: the trained one, its moving average and others. What is not loaded is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.checkpoint_formats import Format, StateDict

BRANCHES = ("student", "teacher")
STUDENT_KEYS = ("student", "state_dict", "model", "model_state_dict", "encoder")
TEACHER_KEYS = (
    "teacher", "state_dict_ema", "ema_state_dict", "model_ema", "model_ema_state_dict", "ema_model_state_dict",
    "ema_model", "ema", "target_encoder",
)  # fmt: skip
"""Keys of the state dicts in a checkpoint: the trained network, and its moving average."""
EVALUATED_TEACHERS = ("teacher", "target_encoder")
"""DINO and I-JEPA evaluate the moving average, other projects the trained network."""
AVERAGED = re.compile(r"ema|momentum|teacher|target|average|shadow|swa|key|_k\b")
"""Names of modules that are the moving average of another."""
MIN_TENSORS = 10
"""Tensors of a network; a mapping of fewer is a state of training, such as DINO's center."""


class Selection(NamedTuple):
    """A state dict of a checkpoint; ``branch`` remains to be selected by the prefixes of its keys (None: the default).

    ``name`` is the key of a state dict beside others, and ``others`` describes those.
    """

    state_dict: StateDict
    branch: str | None
    name: str
    others: list[str]


def select_state_dict(checkpoint: Mapping[Any, Any], source: str, branch: str | None) -> Selection:
    """Return the state dict of the branch, or of that which the project evaluates if the branch is None."""
    found = {key: unwrap_state_dict(value, source) for key, value in checkpoint.items() if isinstance(key, str)}
    keys = {
        name: next((key for key in keys if found.get(key)), None)
        for name, keys in zip(BRANCHES, (STUDENT_KEYS, TEACHER_KEYS), strict=True)
    }
    student, teacher = keys["student"], keys["teacher"]
    if not student and not teacher:
        if state_dict := unwrap_state_dict(checkpoint, source):
            return Selection(state_dict, branch, "", [])
        names = ", ".join(map(str, list(checkpoint)[:5])) or "none"
        raise InputError(f"encoder: {source} has no state dict under the usual keys; its keys: {names}")
    default = "teacher" if not student or (teacher in EVALUATED_TEACHERS and student in ("student", "encoder")) else ""
    selected = branch or default or "student"
    if selected == "teacher" and not teacher:
        selected = "student"  # which may contain a teacher, by the prefixes of its keys
    key = keys[selected]
    if key is None:
        raise InputError(f"encoder: {source} has no {selected}; it has the teacher, under {teacher}")
    others = []
    for name, state_dict in found.items():
        if name in (student, teacher) and name != key:
            others.append(f"{name} not loaded (:{'student' if name == student else 'teacher'} selects it)")
        elif name != key and len(state_dict) >= MIN_TENSORS:
            others.append(f"{name} ({len(state_dict)} tensors) not loaded")
        elif name in TEACHER_KEYS and not state_dict and isinstance(checkpoint[name], Mapping | list):
            others.append(f"{name} not loaded (it has no named tensors)")
    in_pair = bool(student and teacher) or selected == "teacher"
    return Selection(found[key], None if in_pair else branch, key if in_pair else "", others)


def unwrap_state_dict(state_dict: Any, source: str) -> StateDict:
    """Return the tensors and numeric arrays of a mapping (else {}), by key without the prefixes of wrapper modules."""
    if not isinstance(state_dict, Mapping):
        return {}
    tensors: StateDict = {}
    for key, value in state_dict.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if isinstance(key, str) and isinstance(value, Tensor):
            name = re.sub(r"(^|\.)_orig_mod\.", r"\1", key).removeprefix("module.")
            if name in tensors:
                raise InputError(
                    f"encoder: {source} has two tensors {name}, with and without the prefix of a wrapper module; "
                    "save one of the two networks alone"
                )
            tensors[name] = value
    for wrapper in ("model.", "module."):
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    if not tensors:  # a moving average with its counters: {"module": state dict, "updates": 100}
        nested = [unwrap_state_dict(state_dict.get(key), source) for key in ("module", "model", "state_dict")]
        return next(filter(None, nested), {})
    return tensors


def find_copies(state_dict: StateDict, format: Format) -> list[str]:
    """Return prefixes of networks with most of the tensors of the format's student; moving averages come first."""
    known = {prefix for prefix in (format.student_prefix, format.teacher_prefix) if prefix is not None}
    names = [key.removeprefix(format.student_prefix) for key in state_dict if key.startswith(format.student_prefix)]
    if not names:
        return []
    longest = max(names, key=lambda name: name.count("."))
    prefixes = {key.removesuffix(longest) for key in state_dict if key.endswith(f".{longest}")} - known
    copies = [p for p in prefixes if 2 * sum(f"{p}{name}" in state_dict for name in names) > len(names)]
    return sorted(copies, key=lambda prefix: (AVERAGED.search(prefix) is None, prefix))


def describe_ignored(keys: list[str]) -> str:
    """Describe tensors that are not loaded, by their number and the names of their modules."""
    if not keys:
        return ""
    modules = list(dict.fromkeys(key.split(".")[0] for key in keys))
    names = ", ".join(modules[:5]) + (f" and {len(modules) - 5} more" if len(modules) > 5 else "")
    return f", {len(keys)} other tensor{'s' if len(keys) > 1 else ''} ignored ({names})"
