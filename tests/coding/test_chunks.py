"""loss_in_chunks has value and gradient of the whole batch; tests/pretraining/test_chunks.py has encoders and runs."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import mec
from mec.coding import MECLoss, loss_in_chunks
from tests.processes import needs_gloo

from . import reference
from .processes import run_in_processes

ROWS, INPUTS = 12, 6


def create_network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 9), *more, nn.Tanh(), nn.Linear(9, 5)).double()


def make_views(n: int = 2, rows: int = ROWS) -> list[Tensor]:
    torch.manual_seed(1)
    base = torch.randn(rows, INPUTS, dtype=torch.float64)
    return [base + 0.5 * torch.randn(rows, INPUTS, dtype=torch.float64) for _ in range(n)]


def split(views: list[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(view.split(size) for view in views), strict=True))


def joined_loss(network: nn.Module, chunks: list[tuple[Tensor, ...]], loss) -> Tensor:
    """Return the loss by definition: every chunk passes with a graph, and the outputs are concatenated."""
    outputs = [[network(view) for view in chunk] for chunk in chunks]
    return loss(tuple(torch.cat(view) for view in zip(*outputs, strict=True)))


def assert_same_gradients(actual: nn.Module, expected: nn.Module) -> None:
    for (name, a), e in zip(actual.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("size", [1, 5, 12, 20])
@pytest.mark.parametrize("form", ["cross", "pooled", "reduction"])
def test_value_and_gradients_are_those_of_the_whole_batch(size, form):
    whole = create_network()
    chunked, views = copy.deepcopy(whole), make_views()
    expected = reference.mec_loss([whole(view) for view in views], None, 0.25, form=form)
    expected.backward()
    value = loss_in_chunks(chunked, split(views, size), MECLoss(0.25, form=form))
    value.backward()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-12, atol=1e-14)
    assert_same_gradients(chunked, whole)


def test_gradient_accumulation_gives_another_loss_and_gradient():
    whole, views, loss = create_network(), make_views(), MECLoss(form="pooled")
    accumulated = copy.deepcopy(whole)
    value = loss([whole(view) for view in views])
    value.backward()
    mean = sum(loss([accumulated(view) for view in chunk]) for chunk in split(views, 2)) / 6
    mean.backward()
    assert mean.detach() > value.detach() + 0.02  # log det is concave: chunks have the smaller rate
    gradients = [torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (whole, accumulated)]
    assert torch.cosine_similarity(*gradients, dim=0) < 0.99


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.BatchNorm1d(9), nn.BatchNorm1d(9, momentum=None)], ids=repr)
def test_dropout_and_batch_norm_are_those_of_one_pass(layer):
    joined = create_network(layer)
    chunked, chunks, loss = copy.deepcopy(joined), split(make_views(), 5), MECLoss(0.25)
    states = []
    for network, compute in ((joined, joined_loss), (chunked, loss_in_chunks)):
        torch.manual_seed(7)
        value = compute(network, chunks, loss)
        value.backward()
        states.append((value.detach(), torch.get_rng_state(), *network.buffers()))
    torch.testing.assert_close(*states, rtol=1e-12, atol=0)
    assert_same_gradients(chunked, joined)


def test_chunks_may_be_functions_with_random_views():
    network, x = create_network(), make_views(1)[0]
    joined, made = copy.deepcopy(network), []

    def random_views(rows: Tensor):
        def views() -> tuple[Tensor, Tensor]:
            made.append((rows + torch.randn_like(rows), rows + torch.randn_like(rows)))
            return made[-1]

        return views

    value = loss_in_chunks(network, [random_views(rows) for rows in x.split(5)], MECLoss())
    value.backward()
    first, second = made[:3], made[3:]
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True))
    expected = joined_loss(joined, first, MECLoss())
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert_same_gradients(network, joined)


def test_heads_in_the_loss_see_the_whole_batch_and_encode_chooses_the_outputs():
    network, head = create_network(), nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double()
    whole, whole_head, views = copy.deepcopy(network), copy.deepcopy(head), make_views(3)

    def loss_with(head: nn.Module):
        return lambda f: MECLoss(0.25)((head(f[0]), head(f[1]))) + f[2].square().mean()

    def encode(x1: Tensor, x2: Tensor, x3: Tensor) -> tuple[Tensor, ...]:
        return network(x1), network(x2), 2 * network(x3)

    value = loss_in_chunks(network, split(views, 5), loss_with(head), encode=encode)
    value.backward()
    expected = loss_with(whole_head)((whole(views[0]), whole(views[1]), 2 * whole(views[2])))
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert_same_gradients(network, whole)
    assert_same_gradients(head, whole_head)


def test_scaled_gradients_are_multiples():
    network, views, scale = create_network(), make_views(), 1024.0
    scaled = copy.deepcopy(network)
    loss_in_chunks(network, split(views, 5), MECLoss()).backward()
    value = loss_in_chunks(scaled, split(views, 5), MECLoss(), backward=lambda x: (scale * x).backward(), scale=scale)
    (scale * value).backward()
    for p in network.parameters():
        p.grad.mul_(scale)
    assert_same_gradients(scaled, network)


def test_no_graph_holds_more_than_a_chunk():
    network, saved = create_network(), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_in_chunks(network, split(make_views(), 3), MECLoss()).backward()
    hidden = [shape for shape in saved if shape[1:] == (9,)]  # activations of the network
    assert set(hidden) == {(3, 9)}


def test_invalid_arguments_are_refused_in_one_line():
    network, x = create_network(), make_views(1)[0]
    for arguments, message in (
        ((lambda x: x, [(x, x)]), "network: expected a torch.nn.Module, got a value of type function"),
        ((network, []), "chunks: expected a list of at least one chunk, got a list of length 0"),
        ((network, x), r"chunks: .* got a Tensor of shape \(12, 6\)"),
        ((network, [x]), r"chunks: expected tuples of views, .* got a Tensor of shape \(12, 6\)"),
        ((network, zip([x], [x], strict=True)), "chunks: .* got a value of type zip"),  # two passes need a list
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            loss_in_chunks(*arguments, MECLoss())


def worker(rank: int) -> tuple[Tensor, list[Tensor], int]:
    """Return loss and gradients of this process's rows in chunks, and the number of exchanges of gradients."""
    network, exchanges = DistributedDataParallel(create_network(nn.Dropout(0.0))), []

    def hook(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(state, bucket)

    network.register_comm_hook(None, hook)
    views = [view.split((7, 5))[rank] for view in make_views()]
    value = loss_in_chunks(network, split(views, 3 - rank), MECLoss(0.25))
    value.backward()
    return value.detach(), [p.grad for p in network.parameters()], len(exchanges)


@needs_gloo
def test_ddp_exchanges_gradients_once_and_they_are_those_of_all_rows(tmp_path):
    network = create_network()
    value = reference.mec_loss([network(view) for view in make_views()], None, 0.25)
    value.backward()
    for result in run_in_processes(worker, 2, tmp_path):
        torch.testing.assert_close(result[0], value.detach(), rtol=1e-12, atol=1e-14)
        for actual, p in zip(result[1], network.parameters(), strict=True):
            torch.testing.assert_close(actual, p.grad, rtol=1e-10, atol=1e-13)
        assert result[2] == 1


def test_it_is_public():
    assert mec.loss_in_chunks is loss_in_chunks
