import math
import re
from functools import partial

import numpy as np
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
    sweep_distortion,
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
    "health": lambda p, z: health(p, z, 0.5, series="cross"),
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
BAD_CODES = [
    [[1.0, 2.0], [3.0, 4.0]],
    torch.randn(5),
    torch.randn(5, 2, 2),
    torch.ones(4, 3, dtype=torch.int64),
    torch.randn(1, 3),
    torch.randn(4, 0),
]


def with_bad_entry(value):
    z = CODES.clone()
    z[1, 2] = value
    return z


def assert_refused(argument, call, *arguments):
    with pytest.raises(ValueError, match=f"^{re.escape(argument)}: expected .*got") as error:
        call(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", ONE_MATRIX_FUNCTIONS.values(), ids=ONE_MATRIX_FUNCTIONS)
def test_invalid_codes_are_refused(call):
    for z in BAD_CODES:
        assert_refused("z", call, z)


@pytest.mark.parametrize("call", PAIR_FUNCTIONS.values(), ids=PAIR_FUNCTIONS)
def test_invalid_pairs_of_codes_are_refused(call):
    for bad in BAD_CODES:
        assert_refused("p", call, bad, CODES)
        assert_refused("z", call, CODES, bad)
    for other in (torch.randn(4, 2), torch.randn(5, 3), CODES.to("meta")):  # shapes and devices must agree
        assert_refused("z", call, CODES, other)


@pytest.mark.parametrize("call", DISTORTION_FUNCTIONS.values(), ids=DISTORTION_FUNCTIONS)
def test_invalid_distortions_are_refused(call):
    for distortion in (0, 0.0, -1.0, math.nan, math.inf, True, "0.1", torch.tensor(0.1)):
        assert_refused("distortion", call, distortion)


def test_invalid_settings_are_refused():
    for order in (0, -1, 1.5, 4.0, True, "4"):
        assert_refused("order", coding_rate, CODES, 0.5, order)
        assert_refused("order", cross_coding_rate, CODES, CODES, 0.5, order)
        assert_refused("order", MECLoss, 0.5, order)
    for steps in (0, -1, 1.5, True, None):
        assert_refused("steps", spectral_norm, CODES, CODES, 0.5, steps)
    for form in ("Cross", "", 4):
        assert_refused("form", MECLoss, 0.5, None, form)
    for progress in (-0.1, 1.1, math.nan):
        assert_refused("progress", sweep_distortion, progress)
    assert_refused("first", sweep_distortion, 0.5, 0)
    assert_refused("last", sweep_distortion, 0.5, 1, math.inf)


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


@pytest.mark.parametrize(
    ("position", "name", "arguments"),
    [
        (0, "predictions[0]", {}),
        (1, "predictions[1]", {"order": 4}),
        (2, "targets[0]", {"form": "reduction"}),
        (3, "targets[1]", {"form": "cross"}),
    ],
)
def test_loss_errors_name_the_view(position, name, arguments):
    def loss_with(view):
        views = [CODES] * 4
        views[position] = view
        return MECLoss(**arguments)(views[:2], views[2:])

    for bad in (*BAD_CODES, with_bad_entry(math.nan)):
        assert_refused(name, loss_with, bad)
    if position:
        assert_refused(name, loss_with, torch.randn(4, 2))


ARRAYS = [
    torch.full((2, 3), 0.123),
    [torch.full((2, 3), 0.123)],
    np.full((2, 3), 0.123),
    {"z": torch.full((2,), 0.123)},
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: type(value).__name__)
def test_errors_describe_tensors_and_never_print_them(value):
    calls = {  # every argument that is no tensor, and tensors in the wrong place
        "z": [*ONE_MATRIX_FUNCTIONS.values()],
        "distortion": [*DISTORTION_FUNCTIONS.values(), lambda v: MECLoss()((CODES, CODES), (CODES, CODES), v)],
        "order": [lambda v: coding_rate(CODES, 0.5, v), lambda v: MECLoss(0.5, v)],
        "form": [lambda v: MECLoss(0.5, None, v)],
        "steps": [lambda v: spectral_norm(CODES, CODES, 0.5, v)],
        "series": [lambda v: health(CODES, CODES, 0.5, series=v)],
        "predictions": [lambda v: MECLoss()(v), lambda v: MECLoss()(v, v, v)],
        "targets": [lambda v: MECLoss()((CODES, CODES), v)],
        "predictions[1]": [lambda v: MECLoss()((CODES, v))],
    }
    for argument, functions in calls.items():
        for call in functions:
            if isinstance(value, torch.Tensor) and argument in ("z", "predictions[1]"):
                continue  # a tensor is what these expect
            with pytest.raises(ValueError, match=f"^{re.escape(argument)}: expected .*got a") as error:
                call(value)
            assert "0.12" not in str(error.value)
            assert "\n" not in str(error.value)
            assert "shape (2, 3)" in str(error.value) or not isinstance(value, torch.Tensor)


def test_views_must_be_sequences_of_the_right_length():
    for views in (CODES, CODES[:2], (CODES,), "ab", {}):
        assert_refused("predictions", MECLoss(), views)
        assert_refused("targets", MECLoss(), (CODES, CODES), views)
    assert_refused("predictions", MECLoss(), None)
    assert_refused("targets", MECLoss(), (CODES,) * 3, (CODES,) * 2)
    assert_refused("targets", MECLoss(global_views=2), (CODES,) * 3, (CODES,) * 3)
    assert_refused("predictions[3]", MECLoss(), (CODES, CODES, CODES, CODES[:3]))
    assert_refused("targets[1]", MECLoss(global_views=2), (CODES,) * 3, (CODES, with_bad_entry(math.nan)))


def test_weights_and_roles_that_have_no_effect_are_refused():
    for weight in (0, -1.0, math.nan, True, "2"):
        assert_refused("rate_weight", partial(MECLoss, rate_weight=weight))
    for count in (0, 1.5, True, "2"):
        assert_refused("global_views", partial(MECLoss, global_views=count))
    assert_refused("global_views", MECLoss(global_views=3), (CODES, CODES))
    for views in ("local", None, 2):
        assert_refused("rate_views", partial(MECLoss, rate_views=views))
    pairs = (CODES, CODES), (CODES, CODES)
    for form in ("cross", "reduction", None):
        assert_refused("rate_weight", partial(MECLoss, form=form, rate_weight=2.0))
    assert_refused("rate_views", partial(MECLoss, form="cross", rate_views="global"))
    for form in ("pooled", "reduction", None):  # targets select the cross form
        assert_refused("rate_views", MECLoss(form=form, rate_views="global"), *pairs)


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


@pytest.mark.parametrize("arguments", [{}, {"order": 4}, {"form": "cross"}, {"form": "pooled"}])
def test_unchecked_loss_returns_nan_and_never_synchronizes(arguments):
    unchecked, codes = MECLoss(**arguments, check=False), CODES.clone().requires_grad_()
    bad = with_bad_entry(math.nan)
    assert unchecked((bad, CODES)).isnan()
    assert unchecked((CODES, CODES), (bad, CODES)).isnan()
    with CountSyncs() as syncs:
        unchecked((codes, CODES), (CODES, CODES)).backward()
        unchecked((codes, CODES, CODES)).backward()
    assert syncs.count == 0
    with CountSyncs() as syncs:
        MECLoss(**arguments)((codes, CODES), (CODES, CODES)).backward()
    assert syncs.count > 0
