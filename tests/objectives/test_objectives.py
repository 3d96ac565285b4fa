"""Values, gradients and minimizers of the objectives."""

from functools import partial

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import normalize

from mec.objectives import MEC, OBJECTIVES
from tests.coding.reference import assert_close_in_scale, in_float64, mec_loss, ordered_pairs, random_codes
from tests.pairwise import pairwise

from .cases import CASES, PREDICTS, arguments_of, seeded

SHAPES = [(9, 5), (8, 12)]
NAMED_OPTIONS = [(name, options) for name, (_, all_options) in CASES.items() for options in all_options]
SPREADS = [name for name in CASES if name not in ("simsiam", "byol")]


def test_every_objective_but_mec_has_a_reference():
    assert {*CASES, "mec"} == set(OBJECTIVES)


@pytest.mark.parametrize("name", CASES)
def test_defaults_are_the_published_ones(name):
    assert repr(OBJECTIVES[name]()) == repr(OBJECTIVES[name](**CASES[name][1][0]))


@pytest.mark.parametrize(
    ("case", "shape", "count", "dtype"), pairwise(NAMED_OPTIONS, SHAPES, [2, 4], [torch.float32, torch.float64])
)
def test_value_and_gradient_are_those_of_the_paper(case, shape, count, dtype):
    name, options = case
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    arguments = arguments_of(name, count, *shape, dtype)
    codes64, *targets64 = [in_float64(views) for views in arguments]
    value = seeded(OBJECTIVES[name](**options), *map(tuple, arguments))
    expected = seeded(partial(CASES[name][0], **options), codes64, *targets64)
    assert value.dtype == dtype
    assert value.shape == ()
    assert_close_in_scale(value, expected, tolerance)
    for actual, exact in zip(grad(value, arguments[0]), grad(expected, codes64), strict=True):
        assert_close_in_scale(actual, exact, tolerance)


@pytest.mark.parametrize("name", PREDICTS)
def test_targets_get_no_gradient(name):
    codes, targets = arguments_of(name, 2, 6, 4)
    OBJECTIVES[name]()(codes, targets).backward()
    assert all(p.grad is not None for p in codes)
    assert all(t.grad is None for t in targets)


@pytest.mark.parametrize("name", CASES)
def test_order_of_the_views_does_not_matter(name):
    arguments = arguments_of(name, 4, 9, 5)
    other_order = [[views[i] for i in (2, 0, 3, 1)] for views in arguments]
    objective = OBJECTIVES[name]()
    torch.testing.assert_close(seeded(objective, *arguments), seeded(objective, *other_order))


@pytest.mark.parametrize("name", CASES)
def test_autocast_does_not_change_the_value(name):
    arguments = [[z.detach().bfloat16() for z in views] for views in arguments_of(name, 2, 9, 5)]
    objective = OBJECTIVES[name]()
    expected = seeded(objective, *[[z.float() for z in views] for views in arguments])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = seeded(objective, *arguments)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize(("name", "shape"), pairwise(SPREADS, [(64, 8), (16, 32)]))
def test_spread_codes_are_better_than_collapsed_ones(name, shape):
    torch.manual_seed(1)
    spread = torch.randn(shape)
    collapsed = spread[:1].expand(shape)
    objective = OBJECTIVES[name]()
    losses = [seeded(objective, *[[z, z]] * (2 if name in PREDICTS else 1)) for z in (spread, collapsed)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("name", SPREADS)
def test_codes_that_have_collapsed_have_finite_gradients(name):
    codes = [torch.ones(16, 8, requires_grad=True), torch.zeros(16, 8, requires_grad=True)]
    seeded(OBJECTIVES[name](), codes, *([[z.detach() for z in codes]] if name in PREDICTS else [])).backward()
    assert all(torch.isfinite(z.grad).all() for z in codes)


@pytest.mark.parametrize(("name", "minimum"), [("simsiam", -1.0), ("byol", 0.0)])
def test_collapsed_codes_minimize_simsiam_and_byol(name, minimum):
    """The loss alone does not spread the codes: all that agree have the same, lowest value."""
    spread, other = random_codes(2, 16, 8)
    objective = OBJECTIVES[name]()
    for z in (spread, torch.ones(16, 8)):
        assert objective([z, z], [z, z]).item() == pytest.approx(minimum, abs=1e-6)
    assert objective([spread, other], [spread, other]) > minimum + 0.1


@pytest.mark.parametrize("name", ["simclr", "vicreg", "barlow-twins", "simsiam"])
def test_values_of_two_views_are_those_of_lightly(name):
    losses = pytest.importorskip("lightly.loss", reason="lightly is not installed; it comes with the extra bench")
    expected = {
        "simclr": losses.NTXentLoss(0.1),
        "vicreg": losses.VICRegLoss(),
        "barlow-twins": losses.BarlowTwinsLoss(),
        "simsiam": losses.NegativeCosineSimilarity(),
    }[name]
    a, b = (z.detach() for z in random_codes(2, 16, 8))
    value = OBJECTIVES[name]()(*[[a, b]] * (2 if name in PREDICTS else 1))
    torch.testing.assert_close(value, expected(a, b), rtol=1e-6, atol=0)


def test_lightly_adds_the_rate_that_emp_ssl_subtracts():
    lightly = pytest.importorskip("lightly", reason="lightly is not installed; it comes with the extra bench")
    if not lightly.__version__.startswith("1.6."):
        pytest.skip(f"lightly {lightly.__version__}")
    from lightly.loss import EMPSSLLoss

    units = [normalize(z.detach()) for z in random_codes(3, 16, 8)]
    ours, without_rate = OBJECTIVES["emp-ssl"]()(units), OBJECTIVES["emp-ssl"](epsilon_squared=1e12)(units)
    torch.testing.assert_close(EMPSSLLoss()(units) - without_rate, without_rate - ours)


def test_directions_of_sigreg_come_from_the_global_generator():
    views, objective = random_codes(2, 9, 5), OBJECTIVES["sigreg"](directions=4)
    first, second = (seeded(objective, views) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(objective(views), first)


@pytest.mark.parametrize("done", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("ends", [(0.05, 0.05), (1 / 3000, 0.7), (0.7, 1 / 3000)])
def test_distortion_of_mec_follows_the_training_and_the_warmup(ends, done):
    (first, last), views = ends, random_codes(2, 9, 5)
    objective = MEC(first if first == last else ends, warmup_factor=8)
    assert objective.current_distortion == first
    objective.schedule(done)
    distortion = first ** (1 - done) * last**done
    assert objective.current_distortion == pytest.approx(distortion, rel=1e-12 if 0 < done < 1 < last / first else 0)
    objective.warmup(done)
    distortion *= 8 - 7 * done
    torch.testing.assert_close(objective(views), mec_loss(views, None, distortion, scaled=True))
    assert objective.health(views)["distortion"] == pytest.approx(distortion)
    torch.testing.assert_close(objective(views, distortion=0.3), mec_loss(views, None, 0.3, scaled=True))


@pytest.mark.parametrize("global_views", [None, 2])
@pytest.mark.parametrize(
    ("form", "has_targets"), [("reduction", False), ("reduction", True), ("pooled", False), ("cross", True)]
)
@pytest.mark.parametrize("order", [None, 4])
def test_health_of_mec_is_that_at_a_fixed_distortion(form, has_targets, global_views, order):
    num_global, fixed = global_views or 4, 1 / 32
    codes = [z.detach() for z in random_codes(4 + num_global, 64, 5)]
    codes, targets = codes[:4], codes[4:] if has_targets else None
    metrics = MEC(0.3, order, form, global_views=global_views).health(codes, targets)
    others = targets or codes
    cosines = [(normalize(codes[b]) * normalize(others[a])).sum(1).mean() for a, b in ordered_pairs(num_global, 4)]
    assert metrics["disagreement"] == pytest.approx(1 - float(torch.stack(cosines).mean()))
    reduction = mec_loss(codes, targets, fixed, None, "reduction", global_views=global_views)
    assert metrics["rate_reduction"] == pytest.approx(-float(reduction) / fixed)
    p, z = normalize(codes[0]), normalize(others[num_global - 1])
    eigenvalues = torch.linalg.eigvalsh(z.T @ z / 64)
    assert metrics["coding_length"] == pytest.approx((64 + 5) / 2 * float(torch.log1p(eigenvalues / fixed).sum()))
    assert metrics["effective_rank"] == pytest.approx(float(torch.special.entr(eigenvalues).sum().exp()))
    assert metrics["rankme"] > metrics["effective_rank"]
    assert ("spectral_norm" in metrics) == (order is not None)
    if order is not None:
        u = torch.cat([p, z]) if has_targets else normalize(torch.cat(codes))
        norm = torch.linalg.norm(p @ z.T if form == "cross" else u @ u.T, 2) / (len(p if form == "cross" else u) * 0.3)
        assert metrics["spectral_norm"] == pytest.approx(float(norm), rel=0.05)
    assert {"alpha_req", "distortion"} < set(metrics)


def test_mec_returns_what_is_not_finite():
    assert MEC()([torch.full((4, 2), torch.nan), torch.ones(4, 2)]).isnan()
