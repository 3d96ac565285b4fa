"""The tasks of mec evaluate for which real datasets have annotations, which mec inspect prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from mec.cli.evaluate import annotated_tasks


@pytest.mark.parametrize(
    ("folder", "tasks"),
    [("coco128", ["detect"]), ("MOT17-mini", ["mot"]), ("OTB100", ["sot"]), ("davis16-subset", ["vos"]),
     ("posetrack18", ["pose"]), ("caltech101", [])],
)  # fmt: skip
def test_annotations_of_real_datasets_name_their_tasks(real_data: Path, folder: str, tasks: list[str]) -> None:
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in MEC_TEST_DATA")
    assert list(annotated_tasks(str(real_data / folder))) == tasks
