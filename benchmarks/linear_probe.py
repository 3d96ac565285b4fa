"""Does the fast linear probe tell what the paper's tells, and how much sooner?

python benchmarks/linear_probe.py --data FOLDER   (CIFAR-10: a folder with train/<class>/ and test/<class>/, or cifar10)
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
"""Half a million parameters: the paper's probe then takes minutes on two cores, not hours."""


def main(
    data: str = "cifar10", encoder: str | None = None, pretraining: int = 8, rates: tuple[float, ...] = (0.03, 0.3)
) -> None:
    """Both probes on the same encoder; the fast one before and after, so that a machine that slows down is seen.

    Args:
        data: CIFAR-10: its name, or a folder with train and test.
        encoder: what to probe; None pretrains one.
        pretraining: its epochs.
        rates: learning rates of the paper's probe: its own 0.03 for ImageNet's 31,300 steps, and a higher one for the
            1,300 steps that 50,000 images make.
    """
    recipe = replace(
        mec.load_recipe("cifar10-resnet18"),
        backbone_options=SMALL,
        small_stem=False,
        epochs=pretraining,
        batch_size=256,
        precision="bf16-mixed",
        projector=ProjectorSettings(hidden_dim=1024, output_dim=512),
        optimizer=OptimizerSettings("adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        of = encoder or mec.pretrain(data, Path(folder) / "run", recipe)
        rows = [("fast", evaluate.linear(data, of, baselines=False))]
        for rate in rates:
            result = evaluate.linear(data, of, "paper", baselines=False, head_lr=rate)
            rows.append((f"paper, learning rate {rate:g}", result))
        again = evaluate.linear(data, of, baselines=False)
    fast = rows[0][1]
    seconds = (fast.seconds + again.seconds) / 2
    best = max((r for _, r in rows[1:]), key=lambda r: r.figures["encoder"]["top-1"])
    table = Table(title=f"linear probes on {fast.data}")
    for column in ("protocol", "top-1", "top-5", "class mean", "seconds"):
        table.add_column(column, justify="right")
    for name, result in [*rows, ("fast, again", again)]:
        (values,) = result.figures.values()
        table.add_row(name, *(f"{100 * v:.2f}" for v in values.values()), f"{result.seconds:.0f}")
    Console().print(table)
    difference = 100 * (fast.figures["encoder"]["top-1"] - best.figures["encoder"]["top-1"])
    quicker = best.seconds / seconds
    print(f"fast - best of the paper's: {difference:+.2f} points; the fast one is {quicker:.0f} times quicker")
    path = write(
        "linear_probe",
        "the fast linear probe against the paper's, on one frozen encoder of CIFAR-10",
        data="CIFAR-10, 50,000 train and 10,000 test",
        encoder=recipe.as_dict() if encoder is None else Path(encoder).name,
        points_apart=difference,
        times_quicker=quicker,
        rows=[{"name": n, "protocol": r.protocol, "seconds": r.seconds, **r.figures["encoder"]} for n, r in rows]
        + [{"name": "fast, again", "seconds": again.seconds, **again.figures["encoder"]}],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
