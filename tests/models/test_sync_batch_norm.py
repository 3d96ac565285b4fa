"""BatchNorm over several processes gives what nn.BatchNorm gives for their joined batch in float64."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mec.models import sync_batch_norm
from mec.models.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from tests.coding.processes import run_in_processes, needs_gloo

CHANNELS, ROWS = 6, {2: [5, 7], 3: [4, 1, 7]}  # uneven; one row alone has no variance of its own
NETWORKS = ["test_resnet", "test_efficientnet"]
NORMS = {  # name: (shape of an image's features, channels last, the norm)
    "2-d": ((), False, nn.BatchNorm1d(CHANNELS)),
    "3-d": ((9,), False, nn.BatchNorm1d(CHANNELS)),
    "contiguous": ((5, 4), False, nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)),
    "channels last": ((5, 4), True, nn.BatchNorm2d(CHANNELS)),
    "without affine": ((), False, nn.BatchNorm1d(CHANNELS, affine=False)),
    "average of all batches": ((5, 4), True, nn.BatchNorm2d(CHANNELS, momentum=None)),
    "without running": ((5, 4), True, nn.BatchNorm2d(CHANNELS, track_running_stats=False)),
    "activation": ((5, 4), True, BatchNormAct2d(CHANNELS, act_layer=nn.PReLU)),
}
MEANS = [0.0, 100.0]

pytestmark = needs_gloo


def norm_and_batches(name, mean):
    """The norm with weights that are not 1 and 0, and two steps' inputs and upper gradients of the joined batch."""
    shape, last, norm = NORMS[name]
    norm = copy.deepcopy(norm)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in norm.parameters():
        parameter.data.uniform_(0.5, 2.0, generator=generator)
    tensors = [torch.randn(12, CHANNELS, *shape, generator=generator) for _ in range(4)]
    if last:
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    return norm, [(tensors[0] + mean, tensors[1]), (2 * tensors[2] + mean, tensors[3])]


def two_steps(norm, batches):
    """Outputs, gradients of the inputs, gradients of the parameters summed over the steps, buffers."""
    found = {"outputs": [], "inputs": []}
    for x, upper in batches:
        x = x.clone().requires_grad_()
        y = norm(x)
        y.backward(upper)
        found["outputs"].append(y.detach())
        found["inputs"].append(x.grad)
    found["parameters"] = {key: p.grad for key, p in norm.named_parameters()}
    return found | {"buffers": dict(norm.named_buffers())}


def network_step(network, x):
    """Teacher-like pass without gradient, then a step with some norms frozen: gradients and buffers."""
    module = network.module if isinstance(network, DistributedDataParallel) else network
    for norm in [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][-2:]:
        norm.eval()
    with torch.no_grad():
        module(x.flip(3))
    network(x).square().mean().backward()
    gradients = {key: p.grad for key, p in module.named_parameters()}
    return gradients, dict(module.named_buffers())


def tiny(name):
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=5).double().to(memory_format=torch.channels_last)


def images():
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def worker(rank):
    processes = dist.get_world_size()
    sync_batch_norm.ELEMENTS_IN_CACHE = 2 * CHANNELS * 20  # two rows of 5 x 4 pixels: several parts a process
    found = {}
    for name in NORMS:
        for mean in MEANS:
            norm, batches = norm_and_batches(name, mean)
            own = [tuple(t.split(ROWS[processes])[rank] for t in pair) for pair in batches]
            found[name, mean] = two_steps(convert_sync_batch_norm(norm, "cpu"), own)
    found["half"] = half(rank, processes)
    found["not tracked"] = not_tracked(rank, processes)
    if processes == 2:
        for name in NETWORKS:
            network = DistributedDataParallel(convert_sync_batch_norm(tiny(name), "cpu"))
            found[name] = network_step(network, images().chunk(2)[rank])
    return found


def half_batch():
    return 3 + torch.randn(12, CHANNELS, 5, 4, generator=torch.Generator().manual_seed(2)).bfloat16()


def half(rank, processes):
    norm = SyncBatchNorm(nn.BatchNorm2d(CHANNELS, momentum=1.0))
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(half_batch().split(ROWS[processes])[rank])
    return y.detach(), norm.running_mean, norm.running_var


def not_tracked(rank, processes):
    norm, batches = norm_and_batches("channels last", 0.0)
    norm = SyncBatchNorm(norm)
    norm.track_running_stats = False
    y = norm(batches[0][0].split(ROWS[processes])[rank])
    return y.detach(), dict(norm.named_buffers())


@pytest.fixture(scope="module", params=[2, 3], ids=["2 processes", "3 processes"])
def found(request, tmp_path_factory):
    """What each process found, by rank."""
    return run_in_processes(worker, request.param, tmp_path_factory.mktemp("joined"))


def close(value, expected, tolerance=1e-6):
    torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", NORMS)
def test_outputs_gradients_and_buffers_are_those_of_the_joined_batch(found, name, mean):
    norm, batches = norm_and_batches(name, mean)
    expected = two_steps(norm.double(), [(x.double(), upper.double()) for x, upper in batches])
    ranks = [process[name, mean] for process in found]
    for step in range(2):
        for key in ("outputs", "inputs"):
            close(torch.cat([rank[key][step] for rank in ranks]), expected[key][step])
        if NORMS[name][1]:
            assert all(rank["outputs"][step].is_contiguous(memory_format=torch.channels_last) for rank in ranks)
    for key, gradient in expected["parameters"].items():
        close(sum(rank["parameters"][key] for rank in ranks), gradient, 4e-6)  # sums of 240 values of either sign
    for rank in ranks:
        assert rank["parameters"].keys() == expected["parameters"].keys()
        assert rank["buffers"].keys() == expected["buffers"].keys()
        for key, buffer in expected["buffers"].items():
            close(rank["buffers"][key], buffer)


def test_half_precision_has_full_statistics(found):
    x = half_batch()
    expected = nn.BatchNorm2d(CHANNELS).double()(x.double())
    for _, mean, var in (process["half"] for process in found):
        close(mean, x.double().mean((0, 2, 3)))
        close(var, x.double().var((0, 2, 3)))
    y = torch.cat([process["half"][0] for process in found])
    assert y.dtype == torch.bfloat16
    close(y, expected, 2**-8)  # half a unit of bfloat16's last place


def test_statistics_that_are_not_tracked_stay(found):
    norm, batches = norm_and_batches("channels last", 0.0)
    close(torch.cat([process["not tracked"][0] for process in found]), norm.double()(batches[0][0].double()))
    for process in found:
        buffers = process["not tracked"][1]
        assert buffers["num_batches_tracked"] == 0
        assert buffers["running_mean"].eq(0).all()
        assert buffers["running_var"].eq(1).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_over_two_processes_is_one_with_the_joined_batch(found, name):
    if len(found) != 2:
        pytest.skip("of two processes")
    gradients, buffers = network_step(tiny(name), images())
    assert gradients
    for rank in found:
        for joined, single in zip(rank[name], (gradients, buffers), strict=True):
            assert joined.keys() == single.keys()
            for key, value in single.items():
                close(joined[key], value, 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_one_process_is_plain(name, training):
    norm, batches = norm_and_batches(name, 0.0)
    plain, joined = norm.train(training), convert_sync_batch_norm(copy.deepcopy(norm), "cpu")
    assert isinstance(joined, SyncBatchNorm)
    assert joined.training is training
    assert list(joined.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(two_steps(joined, batches), two_steps(plain, batches), rtol=0, atol=0)


def test_on_gpus_the_library_s_norm_keeps_the_activation():
    network = convert_sync_batch_norm(timm.create_model("test_efficientnet", num_classes=0), "cuda")
    assert isinstance(network.bn1, nn.SyncBatchNorm)
    assert isinstance(network.bn1.act, nn.SiLU | nn.ReLU)
