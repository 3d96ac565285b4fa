"""A folder with one trained detector: detector.safetensors and detector.json, checkpoints until it is trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mec.errors import InputError
from mec.evaluate.detection.network import Architecture, Detector
from mec.evaluate.detection.schedules import Schedule
from mec.files import atomic_write
from mec.models.encoder import Encoder, EncoderSpec

WEIGHTS, SPEC = "detector.safetensors", "detector.json"


@dataclass(frozen=True)
class DetectorSpec:
    """What is needed, beside the weights, to build a detector again; stored as detector.json.

    encoder: the spec of the encoder it began with.
    architecture: c4 or fpn.
    categories: names of the classes, in the order of their numbers.
    category_ids: their numbers in the set it learned from.
    masks: whether it predicts masks.
    schedule: by which it was trained, and looks.
    """

    encoder: EncoderSpec
    architecture: Architecture
    categories: list[str]
    category_ids: list[int]
    masks: bool
    schedule: Schedule

    def build(self, encoder: Encoder | None = None) -> Detector:
        """Untrained but for the encoder, where one is given."""
        encoder = encoder or Encoder(self.encoder)
        return Detector(encoder, len(self.categories), self.masks, self.architecture, self.schedule)


def save_detector(detector: Detector, spec: DetectorSpec, folder: Path) -> None:
    """Each file whole or not at all; the weights last, so that where they are all is there."""
    with atomic_write(folder / SPEC) as path:
        path.write_text(json.dumps(asdict(spec), indent=2) + "\n")
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})


def load_detector(folder: Path) -> tuple[Detector, DetectorSpec]:
    """A trained detector, in evaluation mode.

    Raises:
        InputError: none there, or files that do not fit each other.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"out: {folder} has no {WEIGHTS}, which is written when a detector has been trained")
    try:
        spec = _read_spec(json.loads((folder / SPEC).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"out: {folder / SPEC} does not describe a detector ({error})") from error
    detector = spec.build()
    try:
        detector.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"out: {folder / WEIGHTS} cannot be read as safetensors ({error})") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"out: {folder / WEIGHTS} does not fit its {SPEC} ({reason})") from error
    return detector.eval(), spec


def _read_spec(fields: dict[str, Any]) -> DetectorSpec:
    tuples = ("mean", "std", "value_range")
    encoder: dict[str, Any] = {
        k: tuple(v) if k in tuples and v is not None else v for k, v in fields["encoder"].items()
    }
    schedule: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["schedule"].items()}
    read: dict[str, Any] = {"encoder": EncoderSpec(**encoder), "schedule": Schedule(**schedule)}
    return DetectorSpec(**(fields | read))
