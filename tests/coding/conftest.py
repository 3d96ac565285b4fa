import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small only wait for each other's threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
