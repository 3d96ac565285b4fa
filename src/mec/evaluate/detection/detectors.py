"""Files of a trained detector: detector.safetensors and detector.json."""

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
    """Everything except the weights that is needed to rebuild a detector; stored as detector.json.

    Attributes:
        encoder: spec of the encoder it was initialized from.
        architecture: c4 or fpn.
        categories: class names, in the order of their labels.
        category_ids: their ids in the training dataset.
        has_masks: whether it predicts masks.
        schedule: schedule of its training; its sizes are used in testing too.
    """

    encoder: EncoderSpec
    architecture: Architecture
    categories: list[str]
    category_ids: list[int]
    has_masks: bool
    schedule: Schedule

    def build(self, encoder: Encoder | None = None) -> Detector:
        """Build the detector with random weights, except for a given encoder's."""
        encoder = encoder or Encoder(self.encoder)
        return Detector(encoder, len(self.categories), self.has_masks, self.architecture, self.schedule)


def save_detector(detector: Detector, spec: DetectorSpec, folder: Path) -> None:
    """Write both files atomically. The weights come last: if they exist, the detector is complete."""
    with atomic_write(folder / SPEC) as path:
        path.write_text(json.dumps(asdict(spec), indent=2) + "\n")
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in detector.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})


def load_detector(folder: Path) -> tuple[Detector, DetectorSpec]:
    """Load a trained detector in evaluation mode.

    Raises:
        InputError: no detector in the folder, or files that do not match.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"out: {folder} has no {WEIGHTS}, which is written after training")
    try:
        spec = _parse_spec(json.loads((folder / SPEC).read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"out: {folder / SPEC} does not describe a detector ({error})") from error
    detector = spec.build()
    try:
        detector.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"out: {folder / WEIGHTS} cannot be read as safetensors ({error})") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"out: {folder / WEIGHTS} does not match its {SPEC} ({reason})") from error
    return detector.eval(), spec


def _parse_spec(fields: dict[str, Any]) -> DetectorSpec:
    """Rebuild the nested dataclasses. JSON turned tuples into lists."""
    tuple_fields = ("mean", "std", "value_range")
    encoder: dict[str, Any] = {
        name: tuple(value) if name in tuple_fields and value is not None else value
        for name, value in fields["encoder"].items()
    }
    schedule: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields["schedule"].items()
    }
    nested: dict[str, Any] = {"encoder": EncoderSpec(**encoder), "schedule": Schedule(**schedule)}
    return DetectorSpec(**(fields | nested))
