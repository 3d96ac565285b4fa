"""Where the real data and the official figures are, for those who have them."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
LONG = ("test_processes.py", "test_package.py", "test_sharded.py", "test_resume_after_kill.py", "test_run.py", "test_trainer.py",
        "test_examples.py", "test_runs.py", "test_divided.py", "test_docs.py")  # fmt: skip
"""Files of minutes. They go first: begun last, one of them would be waited for alone."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def reference_file() -> Path:
    """Figures of the paper's code: MEC_REFERENCE, or golden/mec_reference.npz in ``shared`` beside the checkout."""
    path = Path(os.environ.get("MEC_REFERENCE", SHARED / "golden" / "mec_reference.npz"))
    if not path.exists():
        pytest.skip(f"the official code's figures are not at {path}; set MEC_REFERENCE")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real data sets: MEC_TEST_DATA, or ``shared/data`` beside the checkout."""
    path = Path(os.environ.get("MEC_TEST_DATA", SHARED / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set MEC_TEST_DATA")
    return path


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    # workers of pytest-xdist share the cores
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
