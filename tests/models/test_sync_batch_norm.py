"""SyncBatchNorm over several processes equals nn.BatchNorm of the global batch in float64."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mec.models.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from tests.coding.processes import run_in_processes
from tests.processes import needs_gloo

CHANNELS = 6
BATCH_SIZES = [4, 1, 7]  # by process; uneven, and a batch of 1 has no variance
NETWORKS = ["test_resnet", "test_efficientnet"]
NORMS = {  # name: (spatial shape, channels last, norm)
    "2-d": ((), False, nn.BatchNorm1d(CHANNELS)),
    "3-d": ((9,), False, nn.BatchNorm1d(CHANNELS)),
    "contiguous": ((5, 4), False, nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3)),
    "channels last": ((5, 4), True, nn.BatchNorm2d(CHANNELS)),
    "without affine": ((), False, nn.BatchNorm1d(CHANNELS, affine=False)),
    "average of all batches": ((5, 4), True, nn.BatchNorm2d(CHANNELS, momentum=None)),
    "without running": ((5, 4), True, nn.BatchNorm2d(CHANNELS, track_running_stats=False)),
    "activation": ((5, 4), True, BatchNormAct2d(CHANNELS, act_layer=nn.PReLU)),
    "untracked": ((5, 4), True, nn.BatchNorm2d(CHANNELS)),
}
NORMS["untracked"][2].track_running_stats = False
MEAN = 100.0  # far from zero, which costs precision

pytestmark = needs_gloo


def norm_and_batches(name, mean):
    """Return the norm with random weights, and the global batch and output gradient of two steps."""
    shape, channels_last, norm = NORMS[name]
    norm = copy.deepcopy(norm)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in norm.parameters():
        parameter.data.uniform_(0.5, 2.0, generator=generator)
    tensors = [torch.randn(12, CHANNELS, *shape, generator=generator) for _ in range(4)]
    if channels_last:
        tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
    return norm, [(tensors[0] + mean, tensors[1]), (2 * tensors[2] + mean, tensors[3])]


def two_steps(norm, batches):
    """Return outputs, input gradients, parameter gradients summed over the steps, and buffers."""
    results = {"outputs": [], "inputs": []}
    for x, grad in batches:
        x = x.clone().requires_grad_()
        y = norm(x)
        y.backward(grad)
        results["outputs"].append(y.detach())
        results["inputs"].append(x.grad)
    results["parameters"] = {key: p.grad for key, p in norm.named_parameters()}
    return results | {"buffers": dict(norm.named_buffers())}


def network_step(network, x):
    """Return gradients and buffers after a teacher-like pass without gradient and a step with some frozen norms."""
    module = network.module if isinstance(network, DistributedDataParallel) else network
    for norm in [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)][-2:]:
        norm.eval()
    with torch.no_grad():
        module(x.flip(3))
    network(x).square().mean().backward()
    gradients = {key: p.grad for key, p in module.named_parameters()}
    return gradients, dict(module.named_buffers())


def tiny_network(name):
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=5).double().to(memory_format=torch.channels_last)


def image_batch():
    x = torch.randn(9, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def worker(rank):
    results = {}
    for name in NORMS:
        norm, batches = norm_and_batches(name, MEAN)
        local = [tuple(t.split(BATCH_SIZES)[rank] for t in pair) for pair in batches]
        results[name] = two_steps(convert_sync_batch_norm(norm, "cpu"), local)
    results["bfloat16"] = bfloat16_step(rank)
    for name in NETWORKS:
        network = DistributedDataParallel(convert_sync_batch_norm(tiny_network(name), "cpu"))
        results[name] = network_step(network, image_batch().chunk(len(BATCH_SIZES))[rank])
    return results


def bfloat16_batch():
    return 3 + torch.randn(12, CHANNELS, 5, 4, generator=torch.Generator().manual_seed(2)).bfloat16()


def bfloat16_step(rank):
    norm = SyncBatchNorm(nn.BatchNorm2d(CHANNELS, momentum=1.0))
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(bfloat16_batch().split(BATCH_SIZES)[rank])
    return y.detach(), norm.running_mean, norm.running_var


@pytest.fixture(scope="module")
def results_by_rank(tmp_path_factory):
    return run_in_processes(worker, len(BATCH_SIZES), tmp_path_factory.mktemp("sync_batch_norm"))


def assert_close(value, expected, tolerance=1e-6):
    torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NORMS)
def test_outputs_gradients_and_buffers_equal_those_of_the_global_batch(results_by_rank, name):
    norm, batches = norm_and_batches(name, MEAN)
    expected = two_steps(norm.double(), [(x.double(), grad.double()) for x, grad in batches])
    ranks = [results[name] for results in results_by_rank]
    for step in range(2):
        for key in ("outputs", "inputs"):
            assert_close(torch.cat([rank[key][step] for rank in ranks]), expected[key][step])
        if NORMS[name][1]:
            assert all(rank["outputs"][step].is_contiguous(memory_format=torch.channels_last) for rank in ranks)
    for key, gradient in expected["parameters"].items():
        assert_close(sum(rank["parameters"][key] for rank in ranks), gradient, 4e-6)  # sums of 240 values of both signs
    for rank in ranks:
        assert rank["parameters"].keys() == expected["parameters"].keys()
        assert rank["buffers"].keys() == expected["buffers"].keys()
        for key, buffer in expected["buffers"].items():
            assert_close(rank["buffers"][key], buffer)


def test_bfloat16_statistics_are_computed_in_float32(results_by_rank):
    x = bfloat16_batch()
    expected = nn.BatchNorm2d(CHANNELS).double()(x.double())
    for _, mean, var in (results["bfloat16"] for results in results_by_rank):
        assert_close(mean, x.double().mean((0, 2, 3)))
        assert_close(var, x.double().var((0, 2, 3)))
    y = torch.cat([results["bfloat16"][0] for results in results_by_rank])
    assert y.dtype == torch.bfloat16
    assert_close(y, expected, 2**-8)  # half a unit in bfloat16's last place


@pytest.mark.parametrize("name", NETWORKS)
def test_network_over_three_processes_equals_one_process_with_the_global_batch(results_by_rank, name):
    gradients, buffers = network_step(tiny_network(name), image_batch())
    assert gradients
    for results in results_by_rank:
        for synchronized, single in zip(results[name], (gradients, buffers), strict=True):
            assert synchronized.keys() == single.keys()
            for key, value in single.items():
                assert_close(synchronized[key], value, 1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_single_process_equals_plain_batch_norm(training):
    for name in NORMS:
        norm, batches = norm_and_batches(name, 0.0)
        plain, synchronized = norm.train(training), convert_sync_batch_norm(copy.deepcopy(norm), "cpu")
        assert isinstance(synchronized, SyncBatchNorm)
        assert synchronized.training is training
        assert list(synchronized.state_dict()) == list(plain.state_dict())
        torch.testing.assert_close(two_steps(synchronized, batches), two_steps(plain, batches), rtol=0, atol=0)


def test_cuda_conversion_preserves_the_activation():
    network = convert_sync_batch_norm(timm.create_model("test_efficientnet", num_classes=0), "cuda")
    assert isinstance(network.bn1, nn.SyncBatchNorm)
    assert isinstance(network.bn1.act, nn.SiLU | nn.ReLU)
