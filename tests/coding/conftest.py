import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Run on one thread: for matrices this small, thread synchronization dominates on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
