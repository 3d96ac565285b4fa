"""Synchronized BatchNorm for any network, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def convert_sync_batch_norm(network: nn.Module, device_type: str) -> nn.Module:
    """Synchronize every BatchNorm of the network over all processes in training mode, in place, and return the network.

    Every process must make the same forward and backward calls in the same order.
    """
    if device_type == "cuda":
        # unlike torch's own conversion, timm's preserves the activation and drop layers of BatchNormAct2d
        converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, _BatchNorm):
        return SyncBatchNorm(network)
    for name, child in network.named_children():
        setattr(network, name, convert_sync_batch_norm(child, device_type))
    return network


class SyncBatchNorm(_BatchNorm):
    """Replacement for ``norm`` on devices other than CUDA, the only ones that PyTorch's SyncBatchNorm accepts.

    It shares the tensors of ``norm`` and applies its child layers (timm's drop and activation). In training mode,
    statistics are computed over the batches of all processes, which may differ in size. Gradients of weight and bias
    are those of the local batch: their sum over processes is the gradient of the global batch.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(norm))  # settings, parameters, buffers, children, training mode

    def forward(self, x: Tensor) -> Tensor:
        """Normalize this process's batch (n, c, ...), n >= 1; shape and dtype are preserved."""
        is_distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self.training and is_distributed:
            x = _Normalize.apply(x, self.weight, self.bias, self)
        else:
            x = super().forward(x)
        for child in self.children():
            x = child(x)
        return x

    def update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, where the layer tracks them, by mean and unbiased variance of a batch (c,)."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum=None is the cumulative average over all batches, as in torch
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept inputs of any dimension."""


class _Normalize(Function):
    """weight * (x - mean) / sqrt(variance + eps) + bias with the moments of all processes.

    Moments (c,) are computed in float64, of x minus the mean of the first sample: a mean far from zero would cost
    precision. The native operations of BatchNorm are faster than general reductions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: SyncBatchNorm) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        column = (-1, *[1] * (x.dim() - 2))
        base = x[:1].to(dtype).transpose(0, 1).flatten(1).mean(1)
        centered = x - base.view(column)
        mean, variance = (moment.double() for moment in torch.batch_norm_update_stats(centered, None, None, 0.0))
        mean += base
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * (x.numel() // len(base))
        dist.all_reduce(sums)
        count, mean, variance = sums[0, 0], sums[1] / sums[0], sums[2] / sums[0]
        variance = (variance - mean.square()).clamp_min(0)
        norm.update_running_statistics(mean, variance * count / (count - 1))
        inverse_std = (variance + norm.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        shift = (base - mean) * scale if bias is None else (base - mean) * scale + bias
        ctx.save_for_backward(centered, mean - base, inverse_std, scale, count)
        ctx.column = column
        out = torch.addcmul(shift.to(dtype).view(column), centered, scale.to(dtype).view(column))
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centered, offset, inverse_std, scale, count = ctx.saved_tensors
        dtype, wide_grad = centered.dtype, grad.to(centered.dtype)
        ones = torch.ones_like(offset, dtype=dtype)
        # sums of grad * (centered - offset) and of grad
        _, product, total = torch.ops.aten.native_batch_norm_backward(
            wide_grad, centered, ones, None, None, offset.to(dtype), ones, True, 0.0, [False, True, True]
        )
        sums = torch.stack([product, total]).double()
        grad_weight, grad_bias = sums[0] * inverse_std, sums[1].clone()
        dist.all_reduce(sums)
        product, total = sums / count
        # scale * (grad - total - (centered - offset) * product * inverse_std^2)
        slope = -scale * product * inverse_std.square()
        shift = -offset * slope - scale * total
        scale, slope, shift = (values.to(dtype).view(ctx.column) for values in (scale, slope, shift))
        grad_x = torch.addcmul(shift, centered, slope).addcmul_(wide_grad, scale).to(grad.dtype)
        needs_grad = ctx.needs_input_grad
        return grad_x, grad_weight if needs_grad[1] else None, grad_bias if needs_grad[2] else None, None
