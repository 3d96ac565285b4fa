"""Do kNN and the fast probe process a million features without holding them in memory?

python benchmarks/large_banks.py [--rows 1000000] [--width 512]
"""

from __future__ import annotations

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from machine import Memory, write
from mec.embedding import extract
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features
from mec.results import Stopwatch

BLOCK = 50_000


def main(rows: int = 1_000_000, width: int = 512, queries: int = 1000, classes: int = 100, max_iter: int = 10) -> None:
    """Classify random features of overlapping classes, in a temporary file as ``mec evaluate`` uses for large tables.

    Args:
        rows: train features.
        width: dimension of the features.
        queries: test features.
        classes: number of classes.
        max_iter: maximum number of L-BFGS iterations of the probe.
    """
    extract.MAX_RAM_BYTES = 0  # map the table from a file at any size
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, width, generator=generator) / 4
    bank, labels = extract.feature_table(rows, width, torch.float32), torch.arange(rows) % classes
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        bank[block] = centers[labels[block]] + torch.randn(len(labels[block]), width, generator=generator)
    test_labels = torch.arange(queries) % classes
    test = centers[test_labels] + torch.randn(queries, width, generator=generator)
    results = []
    clock = Stopwatch()
    with Memory() as memory:
        ranked = knn_ranking(bank, labels, test, [200], classes)[200]
    top_1 = float((ranked[:, 0] == test_labels).float().mean())
    results.append(("kNN, k = 200", clock(), memory.peak - memory.before, top_1))
    clock = Stopwatch()
    with Memory() as memory:
        top_1 = fast_probe_accuracies(Features("bank", bank, labels, test, test_labels), classes, max_iter)["top-1"]
    results.append((f"fast probe, {max_iter} iterations", clock(), memory.peak - memory.before, top_1))
    table = Table(title=f"{rows:,} x {width} features, {rows * width * 4 / 2**20:,.0f} MiB in a file")
    for column in ("", "seconds", "memory, MiB", "top-1 %"):
        table.add_column(column, justify="right")
    for name, seconds, mib, accuracy in results:
        table.add_row(name, f"{seconds:.0f}", f"{mib:.0f}", f"{100 * accuracy:.1f}")
    Console().print(table)
    path = write(
        "large_banks",
        "memory of kNN and the fast probe on many features",
        rows=rows,
        width=width,
        queries=queries,
        classes=classes,
        bank_mib=rows * width * 4 / 2**20,
        metrics=[{"name": n, "seconds": s, "memory_mib": m, "top-1": a} for n, s, m, a in results],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
