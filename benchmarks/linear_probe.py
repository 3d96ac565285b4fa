"""Does the fast linear probe give the accuracy of the paper's, and how much faster is it?

python benchmarks/linear_probe.py --data FOLDER   (CIFAR-10: a folder with train/CLASS/ and test/CLASS/, or cifar10)
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec import evaluate
from mec.pretraining import OptimizerSettings, ProjectorSettings

SMALL = {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128], "zero_init_last": False}
"""Half a million parameters, so that the paper's probe takes minutes on two cores, not hours."""


def main(
    data: str = "cifar10", encoder: str | None = None, epochs: int = 8, head_lrs: tuple[float, ...] = (0.03, 0.3)
) -> None:
    """Run both probes on one encoder; the fast probe before and after, to detect a change in the machine's speed.

    Args:
        data: cifar10, or a folder with train and test.
        encoder: a run folder, a file of weights or a timm name; null: pretrain an encoder.
        epochs: epochs of pretraining.
        head_lrs: learning rates of the paper's probe: its 0.03 for ImageNet's 31,300 steps, and a higher one for the
            1,300 steps of 50,000 images.
    """
    recipe = replace(
        mec.load_recipe("cifar10-resnet18"),
        backbone_options=SMALL,
        small_stem=False,
        epochs=epochs,
        batch_size=256,
        precision="bf16-mixed",
        projector=ProjectorSettings(hidden_dim=1024, output_dim=512),
        optimizer=OptimizerSettings("adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        probed = encoder or mec.pretrain(data, Path(folder) / "run", recipe)
        rows = [("fast", evaluate.linear(data, probed, baselines=False))]
        for head_lr in head_lrs:
            result = evaluate.linear(data, probed, "paper", baselines=False, head_lr=head_lr)
            rows.append((f"paper, head_lr {head_lr:g}", result))
        again = evaluate.linear(data, probed, baselines=False)
    fast = rows[0][1]
    seconds = (fast.seconds + again.seconds) / 2
    best = max((r for _, r in rows[1:]), key=lambda r: r.metric("top-1").value)
    table = Table(title=f"linear probes on {fast.dataset}")
    for column in ("protocol", "top-1", "top-5", "class mean", "seconds"):
        table.add_column(column, justify="right")
    for name, result in [*rows, ("fast, again", again)]:
        table.add_row(name, *(f"{100 * v:.2f}" for v in result.values().values()), f"{result.seconds:.0f}")
    Console().print(table)
    difference = 100 * (fast.metric("top-1").value - best.metric("top-1").value)
    speedup = best.seconds / seconds
    print(f"fast - best of the paper's: {difference:+.2f} percentage points; speedup of the fast probe: {speedup:.0f}")
    path = write(
        "linear_probe",
        "the fast linear probe against the paper's, on one frozen encoder of CIFAR-10",
        data="CIFAR-10, 50,000 train and 10,000 test",
        encoder=recipe.as_dict() if encoder is None else Path(encoder).name,
        difference_in_points=difference,
        speedup=speedup,
        rows=[{"name": n, "protocol": r.protocol.describe(), "seconds": r.seconds, **r.values()} for n, r in rows]
        + [{"name": "fast, again", "seconds": again.seconds, **again.values()}],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
