import copy

import torch
from torch import nn

from mec.models import Predictor, Projector, Siamese


def network(predictor: bool) -> Siamese:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8))
    return Siamese(encoder, Projector(8, 16, 6), Predictor(6, 4) if predictor else None).double()


def test_projector_and_predictor_have_the_papers_layers() -> None:
    layers = [type(layer).__name__ for layer in Projector(8, 16, 6)]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    projector = Projector(8, 16, 6)
    assert projector[0].bias is None
    assert projector[3].bias is None
    assert projector[6].bias is not None
    assert not projector[6].bias.requires_grad
    assert not projector[7].affine
    assert [type(layer).__name__ for layer in Predictor(6, 4)] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_symmetric_form_returns_codes_with_gradient_and_no_targets() -> None:
    codes, targets = network(False)(torch.randn(5, 3, 2, 2).double(), torch.randn(5, 3, 2, 2).double())
    assert targets is None
    assert all(z.requires_grad and z.shape == (5, 6) for z in codes)


def test_teacher_returns_targets_without_gradient_and_is_not_trained() -> None:
    net = network(True)
    x1, x2 = torch.randn(2, 5, 3, 2, 2).double()
    predictions, targets = net(x1, x2)
    assert all(p.requires_grad for p in predictions)
    assert not any(z.requires_grad for z in targets)
    # before the first step, teacher and student are equal: the targets are the student's codes of the same view
    assert torch.allclose(targets[0], net.projector(net.encoder(x1)))
    assert torch.allclose(targets[1], net.projector(net.encoder(x2)))
    sum(p.square().sum() for p in predictions).backward()
    assert all(p.grad is None for p in net.teacher.parameters())


def test_teacher_is_an_exponential_moving_average_of_the_parameters_only() -> None:
    net = network(True)
    before = copy.deepcopy(dict(net.teacher.named_parameters()))
    buffers = {k: v.clone() for k, v in net.teacher.named_buffers()}
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        net.encoder[2].running_mean.add_(5)
    net.update_teacher(0.9)
    student = dict(nn.Sequential(net.encoder, net.projector).named_parameters())
    for name, parameter in net.teacher.named_parameters():
        assert torch.allclose(parameter, 0.9 * before[name] + 0.1 * student[name], rtol=1e-12)
    assert all(torch.equal(v, buffers[k]) for k, v in net.teacher.named_buffers())
