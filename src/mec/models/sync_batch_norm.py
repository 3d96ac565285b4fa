"""BatchNorm over the batch of all processes, for any network.

PyTorch's SyncBatchNorm takes tensors of GPUs only; elsewhere ``SyncBatchNorm`` does the same, in native operations
on parts of the batch that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

ELEMENTS_IN_CACHE = 2**18

Moments = tuple[Tensor, Tensor, Tensor]


def convert_sync_batch_norm(network: nn.Module, device_type: str) -> nn.Module:
    """The network with every BatchNorm joined over all processes in training mode; names and tensors stay.

    Changes ``network`` in place and returns it (another module only if it is itself a BatchNorm). Every process
    must make the same forward and backward calls in the same order.
    """
    if device_type == "cuda":
        # unlike torch's own conversion it keeps activation and drop of timm's BatchNormAct2d
        converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, _BatchNorm):
        return SyncBatchNorm(network)
    for name, child in network.named_children():
        setattr(network, name, convert_sync_batch_norm(child, device_type))
    return network


class SyncBatchNorm(_BatchNorm):
    """Takes the place of ``norm``, shares its tensors and applies what timm hangs below one (drop, activation).

    In training mode the statistics are those of the rows of all processes, which may differ in number. The gradients
    of weight and bias are those of the own rows: their sum over processes is that of the joined batch.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        for name, child in norm.named_children():
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, ...) of this process -> the same shape and dtype; each process has a row at least."""
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        x = self._joined(x) if self.training and not alone else super().forward(x)
        for after in self.children():
            x = after(x)
        return x

    def _joined(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        running: tuple[Tensor, Tensor] | None = None
        momentum = 0.0
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            running = self.running_mean, self.running_var
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            # without a momentum: the plain average of all batches
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        normalized: Tensor = _Normalize.apply(x, self.weight, self.bias, running, momentum, self.eps)
        return normalized

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (n, c, ...), got {input.dim()}")


def _merged(counts: Tensor, means: Tensor, squares: Tensor) -> Moments:
    """Counts (k, 1), means and sums of squares about them (k, c) of k parts -> of the whole (Chan et al. 1979)."""
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


def _over_processes(own: Moments) -> Moments:
    packed = torch.cat(own)
    processes, channels = dist.get_world_size(), len(own[1])
    gathered = packed.new_empty(processes * len(packed))
    dist.all_gather_into_tensor(gathered, packed)
    counts, means, squares = torch.split(gathered.view(processes, -1), [1, channels, channels], dim=1)
    return _merged(counts, means, squares)


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Channels last where ``like`` is, else contiguous."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _rows_in_cache(x: Tensor) -> int:
    return max(1, ELEMENTS_IN_CACHE * len(x) // x.numel())


class _Normalize(Function):
    """weight * (x - mean) / sqrt(var + eps) + bias with the moments of all processes, which also move ``running``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _laid_out(x, like=x)
        rows, column = _rows_in_cache(x), (-1, *[1] * (x.dim() - 2))
        working = torch.promote_types(x.dtype, torch.float32)
        out = torch.empty_like(x, dtype=working)
        # a mean far from zero costs float32 its digits: that of the first row is taken off before anything is summed
        base = x[:1].to(working).transpose(0, 1).flatten(1).mean(1)
        base_column = base.view(column)
        sources, targets = torch.split(x, rows), torch.split(out, rows)
        means, variances = [], []
        for source, target in zip(sources, targets, strict=True):
            torch.sub(source, base_column, out=target)
            mean, variance = torch.batch_norm_update_stats(target, None, None, 0.0)
            means.append(mean)
            variances.append(variance)
        counts = base.new_tensor([[part.numel() // len(base)] for part in sources], dtype=torch.float64)
        own = _merged(counts, torch.stack(means).double() + base, torch.stack(variances) * counts)
        count, mean, squares = _over_processes(own)
        if running is not None:
            running[0].lerp_(mean.to(running[0]), momentum)
            running[1].lerp_((squares / (count - 1)).to(running[1]), momentum)
        inverse = (squares / count + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shift = (base - mean) * scale if bias is None else (base - mean) * scale + bias
        scale, shift = scale.to(working).view(column), shift.to(working).view(column)
        for target in targets:
            torch.addcmul(shift, target, scale, out=target)
        ctx.save_for_backward(x, weight, count, mean, inverse)
        ctx.eps = eps
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, inverse = ctx.saved_tensors
        grad = _laid_out(grad, like=x)
        rows, column = _rows_in_cache(x), (-1, *[1] * (x.dim() - 2))
        working = torch.promote_types(x.dtype, torch.float32)
        base = mean.to(working)
        total, product = _sums(torch.split(grad, rows), torch.split(x, rows), base)
        product -= total * (mean - base)
        grad_weight, grad_bias = product * inverse, total
        sums = torch.stack([total, product])
        dist.all_reduce(sums)
        total, product = sums / count
        scale = inverse if weight is None else inverse * weight
        # scale * (grad - total - (x - mean) * product * inverse^2) as grad * scale + (x - base) * slope + shift
        slope = -scale * product * inverse.square()
        shift = (base - mean) * slope - scale * total
        scale, slope, shift, base = (values.to(working).view(column) for values in (scale, slope, shift, base))
        grad_x = torch.empty_like(x, dtype=working)
        for source, upper, target in zip(
            torch.split(x, rows), torch.split(grad, rows), torch.split(grad_x, rows), strict=True
        ):
            torch.sub(source, base, out=target)
            torch.addcmul(shift, target, slope, out=target)
            target.addcmul_(upper.to(working), scale)
        needs = ctx.needs_input_grad
        own = (grad_x.to(x.dtype), grad_weight if needs[1] else None, grad_bias if needs[2] else None)
        return *own, None, None, None


def _sums(grads: Sequence[Tensor], xs: Sequence[Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """sum grad and sum grad * (x - mean) (c,), in float64 over the parts."""
    total, product = torch.zeros_like(mean, dtype=torch.float64), torch.zeros_like(mean, dtype=torch.float64)
    one = torch.ones_like(mean)
    for grad, x in zip(grads, xs, strict=True):
        _, of_product, of_grad = torch.ops.aten.native_batch_norm_backward(
            grad.to(mean.dtype), x.to(mean.dtype), one, None, None, mean, one, True, 0.0, [False, True, True]
        )
        total += of_grad
        product += of_product
    return total, product
