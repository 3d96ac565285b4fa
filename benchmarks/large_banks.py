"""Do kNN and the fast probe hold a million features without a million features of memory?

python benchmarks/large_banks.py [--rows 1000000] [--width 512]
"""

from __future__ import annotations

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from machine import Memory, write
from mec.evaluate import features
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import probe
from mec.results import Stopwatch

ROWS_AT_ONCE = 50_000


def main(
    rows: int = 1_000_000, width: int = 512, queries: int = 1000, classes: int = 100, iterations: int = 10
) -> None:
    """Random features of classes that overlap, kept in a file as ``mec evaluate`` keeps large ones.

    Args:
        rows: of the bank.
        width: of the features.
        queries: test features.
        classes: how many.
        iterations: of the probe's L-BFGS.
    """
    features.IN_MEMORY = 0  # a file at any size
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, width, generator=random) / 4
    bank, labels = features.feature_table(rows, width, torch.float32), torch.arange(rows) % classes
    for start in range(0, rows, ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        bank[some] = centers[labels[some]] + torch.randn(len(labels[some]), width, generator=random)
    of = torch.arange(queries) % classes
    test = centers[of] + torch.randn(queries, width, generator=random)
    found = []
    clock = Stopwatch()
    with Memory() as memory:
        ranked = knn_ranking(bank, labels, test, [200], classes)[200]
    found.append(("kNN, k = 200", clock(), memory.most - memory.before, float((ranked[:, 0] == of).float().mean())))
    clock = Stopwatch()
    with Memory() as memory:
        top_1 = probe(features.Features("bank", bank, labels, test, of), classes, iterations)["top-1"]
    found.append((f"fast probe, {iterations} iterations", clock(), memory.most - memory.before, top_1))
    table = Table(title=f"{rows:,} x {width} features, {rows * width * 4 / 2**20:,.0f} MiB in a file")
    for column in ("", "seconds", "memory, MiB", "top-1 %"):
        table.add_column(column, justify="right")
    for name, seconds, most, accuracy in found:
        table.add_row(name, f"{seconds:.0f}", f"{most:.0f}", f"{100 * accuracy:.1f}")
    Console().print(table)
    path = write(
        "large_banks",
        "memory of kNN and the fast probe on many features",
        rows=rows,
        width=width,
        queries=queries,
        classes=classes,
        bank_mib=rows * width * 4 / 2**20,
        figures=[{"name": n, "seconds": s, "memory_mib": m, "top-1": a} for n, s, m, a in found],
    )
    print(path)


if __name__ == "__main__":
    auto_cli(main)
