import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mec.coding import (
    MECLoss,
    alpha_req,
    coding_length,
    coding_rate,
    cross_coding_rate,
    effective_rank,
    health,
    rankme,
    spectral_norm,
)

CODES = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

ONE_MATRIX_FUNCTIONS = {
    "coding_rate": lambda z: coding_rate(z, 0.5),
    "coding_length": lambda z: coding_length(z, 0.5),
    "effective_rank": effective_rank,
    "rankme": rankme,
    "alpha_req": alpha_req,
}
PAIR_FUNCTIONS = {
    "cross_coding_rate": lambda p, z: cross_coding_rate(p, z, 0.5),
    "spectral_norm": lambda p, z: spectral_norm(p, z, 0.5),
    "health": lambda p, z: health(p, z, 0.5),
}
DISTORTION_FUNCTIONS = {
    "coding_rate": lambda eps: coding_rate(CODES, eps),
    "cross_coding_rate": lambda eps: cross_coding_rate(CODES, CODES, eps),
    "coding_length": lambda eps: coding_length(CODES, eps),
    "spectral_norm": lambda eps: spectral_norm(CODES, CODES, eps),
    "health": lambda eps: health(CODES, CODES, eps),
    "MECLoss": MECLoss,
    "MECLoss()(...)": lambda eps: MECLoss()((CODES, CODES), distortion=eps),
}
BAD_CODES = {
    "list": ([[1.0, 2.0], [3.0, 4.0]], "torch.Tensor"),
    "1-d": (torch.randn(5), r"shape \(5,\)"),
    "3-d": (torch.randn(5, 2, 2), r"shape \(5, 2, 2\)"),
    "int": (torch.ones(4, 3, dtype=torch.int64), "int64"),
    "one row": (torch.randn(1, 3), r"2 rows .* shape \(1, 3\)"),
    "no column": (torch.randn(4, 0), r"1 column, .* shape \(4, 0\)"),
}
BAD_DISTORTIONS = [0, 0.0, -1.0, math.nan, math.inf, True, "0.1", None, torch.tensor(0.1)]
BAD_ORDERS = [0, -1, 1.5, 4.0, True, "4"]


def with_bad_entry(value):
    z = CODES.clone()
    z[1, 2] = value
    return z


@pytest.mark.parametrize("call", ONE_MATRIX_FUNCTIONS.values(), ids=ONE_MATRIX_FUNCTIONS)
@pytest.mark.parametrize(("z", "expected"), BAD_CODES.values(), ids=BAD_CODES)
def test_invalid_codes_are_refused(call, z, expected):
    with pytest.raises(ValueError, match=f"^z: expected .*{expected}"):
        call(z)


@pytest.mark.parametrize("call", PAIR_FUNCTIONS.values(), ids=PAIR_FUNCTIONS)
@pytest.mark.parametrize(("bad", "expected"), BAD_CODES.values(), ids=BAD_CODES)
def test_invalid_pairs_of_codes_are_refused(call, bad, expected):
    with pytest.raises(ValueError, match=f"^p: expected .*{expected}"):
        call(bad, CODES)
    with pytest.raises(ValueError, match=f"^z: expected .*{expected}"):
        call(CODES, bad)


@pytest.mark.parametrize("call", PAIR_FUNCTIONS.values(), ids=PAIR_FUNCTIONS)
@pytest.mark.parametrize("shape", [(4, 2), (5, 3)])
def test_shapes_must_agree(call, shape):
    with pytest.raises(ValueError, match=rf"^z: expected the shape of p, \(4, 3\), got \({shape[0]}, {shape[1]}\)"):
        call(CODES, torch.randn(shape))


def test_devices_must_agree():
    with pytest.raises(ValueError, match=r"^z: expected the device of p, cpu, got meta"):
        cross_coding_rate(CODES, CODES.to("meta"), 0.5)


@pytest.mark.parametrize("call", DISTORTION_FUNCTIONS.values(), ids=DISTORTION_FUNCTIONS)
@pytest.mark.parametrize("distortion", BAD_DISTORTIONS, ids=repr)
def test_invalid_distortions_are_refused(call, distortion):
    if distortion is None and call is DISTORTION_FUNCTIONS["MECLoss()(...)"]:
        pytest.skip("None selects the distortion of the module")
    with pytest.raises(ValueError, match=r"^distortion: expected a positive .*got"):
        call(distortion)


@pytest.mark.parametrize("order", BAD_ORDERS, ids=repr)
def test_invalid_orders_are_refused(order):
    for call in (
        lambda: coding_rate(CODES, 0.5, order),
        lambda: cross_coding_rate(CODES, CODES, 0.5, order),
        lambda: MECLoss(order=order),
    ):
        with pytest.raises(ValueError, match=r"^order: expected an integer >= 1, or None .*got"):
            call()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None], ids=repr)
def test_invalid_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"^steps: expected an integer >= 1, got"):
        spectral_norm(CODES, CODES, 0.5, steps)


@pytest.mark.parametrize("form", ["Cross", "", 4], ids=repr)
def test_invalid_forms_are_refused(form):
    with pytest.raises(ValueError, match=r"^form: expected 'cross', 'pooled' or None, got"):
        MECLoss(form=form)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_must_be_finite(value):
    bad = with_bad_entry(value)
    message = ": expected finite embeddings, got NaN or infinity in 1 of 4 rows"
    for call in ONE_MATRIX_FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"^z" + message):
            call(bad)
    for call in PAIR_FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"^p" + message):
            call(bad, CODES)
        with pytest.raises(ValueError, match=r"^z" + message):
            call(CODES, bad)


@pytest.mark.parametrize("arguments", [{}, {"order": 4}, {"form": "cross"}, {"form": "pooled"}])
@pytest.mark.parametrize("position", range(4))
def test_loss_errors_name_the_view(arguments, position):
    loss = MECLoss(**arguments)
    name = ["predictions[0]", "predictions[1]", "targets[0]", "targets[1]"][position]

    def with_view(view):
        views = [CODES] * 4
        views[position] = view
        return views[:2], views[2:]

    with pytest.raises(ValueError, match=rf"^{name[:-3]}\[{name[-2]}\]: expected finite embeddings"):
        loss(*with_view(with_bad_entry(math.nan)))
    for bad, _ in BAD_CODES.values():
        with pytest.raises(ValueError, match=rf"^{name[:-3]}\[{name[-2]}\]: expected "):
            loss(*with_view(bad))
    if position:
        with pytest.raises(ValueError, match=rf"^{name[:-3]}\[{name[-2]}\]: expected the shape of predictions\[0\]"):
            loss(*with_view(torch.randn(4, 2)))


@pytest.mark.parametrize(
    "views", [CODES, CODES[:2], (CODES,), (CODES, CODES, CODES), None, "ab", {}], ids=lambda v: type(v).__name__
)
def test_views_must_be_pairs(views):
    with pytest.raises(ValueError, match=r"^predictions: expected a pair of tensors"):
        MECLoss()(views)
    if views is not None:
        with pytest.raises(ValueError, match=r"^targets: expected a pair of tensors"):
            MECLoss()((CODES, CODES), views)


def test_error_of_a_diverged_series_suggests_a_fix():
    z = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"^z: the result is -?(inf|nan) .*raise distortion, or use order=None"):
        coding_rate(z, 1e-6, order=12)


class CountSyncs(TorchDispatchMode):
    """Counts the reads of a number from the device, each of which synchronizes the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arguments", [{}, {"order": 4}, {"form": "cross"}])
def test_unchecked_loss_returns_nan_and_never_synchronizes(arguments):
    unchecked, codes = MECLoss(**arguments, check=False), CODES.clone().requires_grad_()
    bad = with_bad_entry(math.nan)
    assert unchecked((bad, CODES)).isnan()
    assert unchecked((CODES, CODES), (bad, CODES)).isnan()
    with CountSyncs() as syncs:
        unchecked((codes, CODES), (CODES, CODES)).backward()
    assert syncs.count == 0
    with CountSyncs() as syncs:
        MECLoss(**arguments)((codes, CODES), (CODES, CODES)).backward()
    assert syncs.count > 0
