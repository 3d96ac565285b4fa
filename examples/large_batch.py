"""A batch larger than memory: ``loss_in_chunks`` gives its loss and gradient, gradient accumulation gives others.

    python examples/large_batch.py [--batch_size 512] [--chunk_size 32] [--steps 20]

Computes the loss of one batch of digits in three ways and prints, for each, the loss, the cosine of its gradient with
that of the whole batch, and the activations that the backward pass keeps. Then trains in chunks, which needs one change
in a plain PyTorch loop. Takes about a minute on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import timm
import torch
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mec import MECLoss, TwoViews, loss_in_chunks

SIZE = 32
Pair = tuple[Tensor, Tensor]  # one for each of the two views


def create_networks() -> tuple[nn.Module, nn.Module]:
    """Return a vision transformer, which has no BatchNorm that would make chunks differ, and a projector, which has."""
    torch.manual_seed(0)
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, in_chans=1, depth=3, num_classes=0, global_pool="avg"
    )
    projector = nn.Sequential(
        nn.Linear(192, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64), nn.BatchNorm1d(64)
    )
    return encoder, projector


def measure(encoder: nn.Module, backward: Callable[[], Tensor]) -> tuple[float, Tensor, float]:
    """Return the loss that ``backward`` computes, its gradient, and the MiB that graphs held at most."""
    held = largest = 0
    weights = {p.data_ptr() for p in encoder.parameters()}

    class Saved:
        """A tensor that the graph keeps for the backward pass; it is freed with the graph."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, largest
            self.tensor, self.size = tensor, 0 if tensor.data_ptr() in weights else tensor.nbytes
            held += self.size
            largest = max(largest, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    encoder.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loss = backward()
    gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    return float(loss.detach()), gradient.double(), largest / 2**20


def main(batch_size: int = 512, chunk_size: int = 32, steps: int = 20) -> None:
    """Compare the three ways, and train in chunks.

    Args:
        batch_size: images in a step.
        chunk_size: images that pass through the encoder at once.
        steps: optimizer steps after the comparison.
    """
    images = torch.from_numpy(load_digits().images * 15.9).byte()[:, None]
    augment, criterion, (encoder, projector) = TwoViews(SIZE), MECLoss(), create_networks()

    def views_of(indices: Tensor, step: int) -> Pair:
        return augment(images[indices], indices, step)  # the same for the same indices and step

    def loss_of(features: Pair) -> Tensor:
        return criterion((projector(features[0]), projector(features[1])))

    def whole(chunks: list[Tensor]) -> Tensor:
        x1, x2 = views_of(torch.cat(chunks), 0)
        loss = loss_of((encoder(x1), encoder(x2)))
        loss.backward()
        return loss

    def in_chunks(chunks: list[Tensor], step: int = 0) -> Tensor:
        # functions: memory holds the views of one chunk only
        loss = loss_in_chunks(encoder, [partial(views_of, chunk, step) for chunk in chunks], loss_of)
        loss.backward()
        return loss

    def accumulated(chunks: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for chunk in chunks:
            x1, x2 = views_of(chunk, 0)
            loss = loss_of((encoder(x1), encoder(x2))) / len(chunks)
            loss.backward()
            total += loss.detach()
        return total

    chunks = list(torch.randperm(len(images))[:batch_size].split(chunk_size))
    expected = None
    for name, compute in (("whole batch", whole), ("loss_in_chunks", in_chunks), ("accumulation", accumulated)):
        loss, gradient, mebibytes = measure(encoder, partial(compute, chunks))
        expected = gradient if expected is None else expected
        cosine = float(cosine_similarity(gradient, expected, dim=0))
        print(f"{name:14}  loss {loss:.4f}  cosine of gradients {cosine:.4f}  activations {mebibytes:.0f} MiB")

    optimizer = torch.optim.AdamW([*encoder.parameters(), *projector.parameters()], lr=1e-3)
    for step in range(1, steps + 1):
        optimizer.zero_grad()  # before the loss, which already adds gradients
        loss_of_step = in_chunks(list(torch.randperm(len(images))[:batch_size].split(chunk_size)), step)
        optimizer.step()
        print(f"step {step:2}  loss {float(loss_of_step.detach()):.3f}")


if __name__ == "__main__":
    auto_cli(main)
