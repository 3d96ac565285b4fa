import numpy as np
import pytest
import torch

from mec.embedding import neighbors
from mec.embedding.neighbors import nearest


def reference_neighbors(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, bank))
    similarity = a @ b.T
    order = np.argsort(-similarity, axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.mark.parametrize(("bank_rows", "query_rows"), [(7, 5), (64, 1000), (100, 100)])
def test_blocks_of_any_size_give_the_exact_neighbors(
    bank_rows: int, query_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BANK_ROWS", bank_rows)
    monkeypatch.setattr(neighbors, "QUERY_ROWS", query_rows)
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(100, 16)).astype(np.float32)
    queries = rng.normal(size=(33, 16)).astype(np.float32)
    progress: list[int] = []
    similarity, rows = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 9, progress.append)
    expected, order = reference_neighbors(queries, bank, 9)
    assert sum(progress) == 100
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-6)


def test_memory_is_bounded_by_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of queries x bank is allocated."""
    largest = 0
    original = torch.Tensor.topk

    def recording(self: torch.Tensor, *args: object, **options: object) -> object:
        nonlocal largest
        largest = max(largest, self.numel())
        return original(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "topk", recording)
    nearest(torch.randn(3000, 4), torch.randn(20_000, 4), 5)
    assert largest <= neighbors.BANK_ROWS * neighbors.QUERY_ROWS
