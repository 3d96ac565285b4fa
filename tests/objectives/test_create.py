"""Objectives by name, and errors of their arguments."""

import math

import pytest
import torch

from mec.errors import InputError
from mec.objectives import MEC, OBJECTIVES, Gathered, SimCLR, create_objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_names_create_objectives_with_their_defaults(name):
    objective = create_objective(name)
    assert type(objective) is OBJECTIVES[name]
    assert objective.targets in (None, "student", "teacher")
    assert isinstance(objective.batch_norm, bool)


def test_options_are_converted_as_on_the_command_line():
    mec = create_objective("mec", {"order": "4", "form": "cross", "distortion": "0.5", "warmup_factor": 8})
    assert (mec.order, mec.form, mec.distortion, mec.warmup_factor) == (4, "cross", 0.5, 8)
    mec = create_objective("mec", {"form": "pooled", "rate_weight": "2", "global_views": "3", "rate_views": "global"})
    assert (mec.rate_weight, mec.global_views, mec.rate_views) == (2, 3, "global")
    for pair in ("[0.25,1]", [0.25, 1], (0.25, 1)):
        assert create_objective("mec", {"distortion": pair}).distortion == (0.25, 1)
    for form in ("pooled", "cross"):  # a sweep suits the reduction
        assert create_objective("mec", {"form": form}).distortion == 1 / 32
    assert create_objective("mec", {"order": None}).order is None
    assert create_objective("intl", {"weight": None}).weight is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("simcrl", {}, ["objective.name", "vicreg", "'simcrl'", "did you mean simclr?"]),
        ("simclr", {"temprature": 1}, ["simclr", "'temprature'", "did you mean temperature?"]),
        ("byol", {"momentum": 1}, ["byol", "no option", "'momentum'"]),
        ("simclr", {"temperature": "hot"}, ["objective.options.temperature", "a number", "'hot'"]),
        ("simclr", {"temperature": 0}, ["objective.options.temperature", "above 0", "0.0"]),
        ("simclr", {"temperature": None}, ["objective.options.temperature", "a number"]),
        ("mec", {"form": "poled"}, ["objective.form", "pooled", "'poled'"]),
        ("mec", {"distortion": -1}, ["objective.distortion", "positive", "-1"]),
        ("mec", {"distortion": [0.1, 0]}, ["objective.distortion", "positive", "0.0"]),
        ("mec", {"distortion": [math.inf, 0.1]}, ["objective.distortion", "positive", "inf"]),
        ("mec", {"distortion": [0.1]}, ["objective.distortion", "a number, 2 numbers, such as 0.2,1", "[0.1]"]),
        ("mec", {"distortion": [0.1, 0.2, 0.3]}, ["objective.distortion", "2 numbers", "[0.1, 0.2, 0.3]"]),
        ("mec", {"distortion": ["fine", 1]}, ["objective.distortion", "2 numbers", "fine"]),
        ("mec", {"order": 0}, ["objective.order", ">= 1", "0"]),
        ("mec", {"warmup_factor": 0.5}, ["objective.warmup_factor", "at least 1", "0.5"]),
        ("mec", {"rate_weight": 0}, ["objective.rate_weight", "positive", "0"]),
        ("mec", {"rate_weight": 2, "form": "cross"}, ["objective.rate_weight", "1 with the cross form", "2"]),
        ("mec", {"rate_weight": 2}, ["objective.rate_weight", "1 with the reduction form", "2"]),
        ("intl", {"iterations": 0}, ["objective.options.iterations", "at least 1", "0"]),
        ("vicreg", {"covariance": -1}, ["objective.options.covariance", "at least 0", "-1"]),
        ("sigreg", {"weight": 2}, ["objective.options.weight", "at most 1", "2"]),
        ("sigreg", {"points": 4}, ["objective.options.points", "odd", "4"]),
        ("emp-ssl", {"epsilon_squared": float("inf")}, ["objective.options.epsilon_squared", "finite", "inf"]),
    ],
)
def test_errors_of_options_are_one_line(name, options, words):
    with pytest.raises(InputError) as error:
        create_objective(name, options)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


Z = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("simclr", [Z], ["codes", "two tensors", "a Tensor of shape (4, 3)"]),
        ("simclr", [[Z]], ["codes", "at least two", "length 1"]),
        ("simclr", [[Z, Z[:3]]], ["codes[1]", "(4, 3)", "(3, 3)"]),
        ("simclr", [[Z, Z[0]]], ["codes[1]", "two dimensions", "(3,)"]),
        ("simclr", [[Z[:1], Z[:1]]], ["codes[0]", "2 rows", "(1, 3)"]),
        ("simclr", [[Z, Z], [Z, Z]], ["targets", "SimCLR", "None"]),
        ("byol", [[Z, Z]], ["targets", "BYOL", "None"]),
        ("byol", [[Z, Z], [Z, Z, Z]], ["targets", "2 views", "3"]),
        ("byol", [[Z, Z], [Z[:3], Z[:3]]], ["targets[0]", "(4, 3)", "(3, 3)"]),
        ("mec", [[Z]], ["predictions", "at least two", "length 1"]),
        ("mec", [[Z, Z, Z], [Z, Z]], ["targets", "3 tensors", "length 2"]),
    ],
)
def test_errors_of_views_are_one_line(name, arguments, words):
    with pytest.raises(ValueError) as error:
        create_objective(name)(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("distortion", [(), (0.1,), (0.1, 0.2, 0.3), (0.1, "1"), (0, 0.1), "0.1", torch.ones(2)])
def test_mec_refuses_what_is_neither_a_number_nor_two(distortion):
    with pytest.raises(ValueError, match=r"^distortion: expected .*, got") as error:
        MEC(distortion)
    assert "\n" not in str(error.value)


def test_mec_takes_any_sequence_of_views():
    views = torch.randn(3, 8, 3)
    assert torch.equal(MEC()(list(views)), MEC()(tuple(views)))


def test_a_single_process_gathers_nothing():
    views = torch.randn(2, 8, 3).unbind()
    assert torch.equal(Gathered(SimCLR())(views), SimCLR()(views))
