"""Order of the tests, and the optional data that some of them need."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mec.cli.main import logging_to_console

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden"
SHARED = TESTS.parents[1] / "shared"
LONGEST_FILES = (
    "pretraining/test_multi_process.py",
    "models/test_libraries.py",
    "evaluate/detection/test_training.py",
    "pretraining/test_checkpointing.py",
    "pretraining/test_chunks.py",
    "evaluate/tracking/metrics/test_davis.py",
    "pretraining/test_run.py",
    "pretraining/test_online_probe.py",
    "engine/test_trainer.py",
    "models/test_foreign_checkpoints.py",
    "test_examples.py",
    "test_docs.py",
    "models/test_sync_batch_norm.py",
    "test_package.py",
    "pretraining/test_resume_after_kill.py",
    "pretraining/test_fsdp.py",
    "evaluate/test_multi_process.py",
)
"""Files that take 20 seconds or more. They run first, so that no worker of pytest-xdist starts one of them last."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
    order = {TESTS / name: i for i, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real datasets: MEC_TEST_DATA, or shared/data next to the checkout."""
    path = Path(os.environ.get("MEC_TEST_DATA", SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set MEC_TEST_DATA")
    return path


@pytest.fixture(autouse=True, scope="session")
def _limit_threads() -> None:
    # the workers of pytest-xdist share the cores
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _log_to_console() -> Iterator[None]:
    # as in the mec command, so that tests can read what users see
    with logging_to_console():
        yield
