import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mec.coding.cost import choose_step
from mec.coding.log_det import log_det

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}


class CountProducts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


def num_products(order: int, step: int) -> int:
    """Count products until every trace is that of an available power, or the inner product of two."""
    small = list(range(1, step + 1))
    giant = [step]

    def covered() -> bool:
        sums = {a + b for a in small for b in giant}
        return all(k in small or k in sums for k in range(1, order + 1))

    while not covered():
        giant.append(giant[-1] + step)
    return len(small) + len(giant) - 2


def test_chosen_step_needs_the_fewest_products():
    for order in range(1, 17):
        fewest = min(num_products(order, step) for step in range(1, order + 1))
        assert num_products(order, choose_step(order)) == fewest, order
        with CountProducts() as products:
            log_det(torch.randn(5, 5), order, symmetric=False)
        assert products.count == fewest, order


@pytest.mark.parametrize(("order", "forward", "backward"), [(1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 1, 1)])
def test_number_of_products_of_low_orders(order, forward, backward):
    C = torch.randn(6, 6, requires_grad=True)
    with CountProducts() as products, torch.no_grad():
        log_det(C.detach(), order, symmetric=False)
    assert products.count == forward
    with CountProducts() as products:
        log_det(C, order, symmetric=False).backward()
    assert products.count == forward + backward


def test_gradient_needs_at_most_two_more_products():
    C = torch.randn(6, 6, requires_grad=True)
    for order in range(5, 17):
        with CountProducts() as products:
            log_det(C.detach(), order, symmetric=False)
        forward = products.count
        with CountProducts() as products:
            log_det(C, order, symmetric=False).backward()
        assert products.count - forward <= 2, order


@pytest.mark.parametrize(("order", "size"), [(n, 4) for n in (*range(1, 13), 15, 16, 26, None)] + [(4, 1), (None, 1)])
def test_value_and_gradient_of_a_square_matrix(order, size):
    torch.manual_seed(size)
    C = (torch.randn(size, size, dtype=torch.float64) * 0.5).requires_grad_()
    value = log_det(C, order, symmetric=False)
    if order is None:
        expected = torch.linalg.slogdet(torch.eye(size) + C).logabsdet
    else:
        expected = sum((-1) ** (k + 1) / k * torch.linalg.matrix_power(C, k).trace() for k in range(1, order + 1))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad(3 * value, C), grad(3 * expected, C))
    assert gradcheck(lambda C: log_det(C, order, symmetric=False), (C,))


def test_log_det_uses_the_absolute_determinant():
    C = torch.diag(torch.tensor([-3.0, 1.0])).requires_grad_()
    value = log_det(C, None, symmetric=False)
    torch.testing.assert_close(value, torch.tensor(4.0).log())  # |(1 - 3)(1 + 1)|
    torch.testing.assert_close(grad(value, C)[0], torch.diag(torch.tensor([-0.5, 0.5])))


@pytest.mark.parametrize("size", [1, 7])
def test_symmetric_value_and_gradient_by_cholesky(size):
    torch.manual_seed(size)
    root = torch.randn(size, 3, dtype=torch.float64)
    C = (root @ root.T).requires_grad_()
    value = log_det(C, None, symmetric=True)
    torch.testing.assert_close(value, torch.linalg.eigvalsh(C.detach()).log1p().sum())
    torch.testing.assert_close(grad(value, C)[0], torch.linalg.inv(torch.eye(size) + C.detach()))


def test_failed_cholesky_returns_nan_instead_of_a_value_from_the_factor(monkeypatch):
    assert log_det(torch.diag(torch.tensor([5.0, -3.0])), None, symmetric=True).isnan()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda A: (torch.eye(2), torch.tensor(1)))
    assert log_det(torch.eye(2), None, symmetric=True).isnan()


@pytest.mark.parametrize("size", [1, 6])
def test_input_is_not_modified(size):
    C = torch.rand(size, size).requires_grad_()
    before = C.detach().clone()
    for order in (None, 1, 4, 7):
        log_det(C, order, symmetric=False).backward()
        assert torch.equal(C, before)


@pytest.mark.parametrize("order", [None, 4])
def test_backward_can_run_twice(order):
    C = torch.rand(4, 4, dtype=torch.float64).requires_grad_()
    value = log_det(C, order, symmetric=False)
    (first,) = grad(value, C, retain_graph=True)
    assert torch.equal(first, grad(value, C)[0])
