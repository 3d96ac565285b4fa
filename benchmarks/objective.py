"""What are the time and memory of the objective, compared with a direct implementation of the formula?

    python benchmarks/objective.py [--device cuda]

One step is forward and backward of the loss of two views. The textbook implementation normalizes, computes the m x m
matrix of each pair and its powers (or slogdet) under autograd. Both are timed alternately in one run. Memory is the
peak allocation of a step beyond its inputs, gradients included. A second table has the time of the default form of more
views, as a multiple of that of as many views in pairs of two.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from machine import cpu_name
from mec import MECLoss

SIZES = [(256, 2048), (1024, 256), (1024, 2048), (4096, 2048)]
CASES = ["cross, order 4", "cross, exact", "pooled, exact", "reduction, exact"]
NUM_VIEWS = (2, 4, 8)
DISTORTION = 1 / 32
Views = tuple[Tensor, ...]
Loss = Callable[[], Tensor]


def textbook_cross(p: Views, z: Views, order: int | None) -> Tensor:
    """Compute Eq. 3, scaled as in the paper's code."""
    total = p[0].new_zeros(())
    for a, b in ((p[0], z[1]), (p[1], z[0])):
        C = normalize(a) @ normalize(b).T / (len(a) * DISTORTION)
        if order is None:
            total = total + torch.linalg.slogdet(torch.eye(len(a), device=a.device) + C).logabsdet
        else:
            power = series = C
            for k in range(2, order + 1):
                power = power @ C
                series = series + power * ((-1) ** (k + 1) / k)
            total = total + torch.trace(series)
    return -DISTORTION * total / 2


def textbook_pooled(z: Views) -> Tensor:
    u1, u2 = normalize(z[0]), normalize(z[1])
    u = torch.cat([u1, u2])
    C = u @ u.T / (len(u) * DISTORTION)
    rate = torch.linalg.slogdet(torch.eye(len(u), device=u.device) + C).logabsdet
    return 1 - (u1 * u2).sum(dim=1).mean() - DISTORTION * rate


def textbook_reduction(z: Views) -> Tensor:
    u1, u2 = normalize(z[0]), normalize(z[1])
    rates = []
    for rows in (torch.cat([u1 - u2, u2 - u1]) / 2**0.5, torch.cat([u1, u2])):
        C = rows @ rows.T / (len(rows) * DISTORTION)
        rates.append(torch.linalg.slogdet(torch.eye(len(rows), device=rows.device) + C).logabsdet)
    return DISTORTION * (rates[0] - rates[1])


def random_views(count: int, m: int, d: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(m, d, generator=generator)
    return [(images + 0.5 * torch.randn(m, d, generator=generator)).to(device) for _ in range(count)]


def losses(case: str, m: int, d: int, device: str) -> tuple[Loss, Loss, Views]:
    """Return the loss of mec, the textbook loss, and the codes with gradients. Views of an image differ by noise."""
    views = random_views(4, m, d, device)
    p, z = (views[0].requires_grad_(), views[1].requires_grad_()), (views[2], views[3])
    if case == "cross, order 4":
        return partial(MECLoss(DISTORTION, order=4), p, z), partial(textbook_cross, p, z, 4), p
    if case == "cross, exact":
        return partial(MECLoss(DISTORTION, order=None), p, z), partial(textbook_cross, p, z, None), p
    if case == "pooled, exact":
        return partial(MECLoss(DISTORTION, form="pooled"), p), partial(textbook_pooled, p), p
    return partial(MECLoss(DISTORTION), p), partial(textbook_reduction, p), p


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(loss: Loss, codes: Views, device: str) -> float:
    for view in codes:
        view.grad = None
    synchronize(device)
    start = time.perf_counter()
    loss().backward()
    synchronize(device)
    return time.perf_counter() - start


def value_and_extra_bytes(loss: Loss, codes: Views, device: str) -> tuple[float, int]:
    """Return the loss and the peak allocation of forward and backward, with gradients and without the codes.

    On the CPU all allocations of torch are replayed; scratch memory inside BLAS and LAPACK is not included.
    """
    codes[0].grad = codes[1].grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = loss()
        value.backward()
        return value.item(), torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = loss()
        value.backward()
    allocations = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for allocation in sorted(allocations, key=lambda event: event.start_ns()):
        current += allocation.nbytes()
        peak = max(peak, current)
    return value.item(), peak


def compare(case: str, m: int, d: int, device: str, budget: float) -> dict[str, Any]:
    """Return a row of the table. Both losses alternate for ``budget`` seconds, but at least three rounds."""
    mec_loss, textbook_loss, codes = losses(case, m, d, device)
    # measuring the memory also warms up
    mec_value, mec_bytes = value_and_extra_bytes(mec_loss, codes, device)
    textbook_value, textbook_bytes = value_and_extra_bytes(textbook_loss, codes, device)
    if abs(mec_value - textbook_value) > 1e-4 * max(1.0, abs(textbook_value)):
        raise RuntimeError(f"{case} at {m} x {d}: mec gives {mec_value}, the textbook form {textbook_value}")
    rounds: list[tuple[float, float]] = []
    while len(rounds) < 3 or (sum(map(sum, rounds)) < budget and len(rounds) < 200):
        rounds.append((seconds(mec_loss, codes, device), seconds(textbook_loss, codes, device)))
    mec_ms, textbook_ms = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "case": case,
        "m": m,
        "d": d,
        "rounds": len(rounds),
        "mec_ms": round(mec_ms, 3),
        "textbook_ms": round(textbook_ms, 3),
        "speedup": round(textbook_ms / mec_ms, 2),
        "mec_mib": round(mec_bytes / 2**20, 2),
        "textbook_mib": round(textbook_bytes / 2**20, 2),
        "memory_ratio": round(mec_bytes / textbook_bytes, 3),
    }


def compare_views(m: int, d: int, device: str, budget: float) -> dict[str, Any]:
    """Return the milliseconds of the default form of each number of views, timed in turn."""
    codes = tuple(view.requires_grad_() for view in random_views(max(NUM_VIEWS), m, d, device))
    loss, rounds = MECLoss(DISTORTION), []
    while len(rounds) < 4 or (sum(map(sum, rounds)) < 2 * budget and len(rounds) < 200):
        rounds.append([seconds(partial(loss, codes[:count]), codes[:count], device) for count in NUM_VIEWS])
    ms = [1000 * statistics.median(column[1:]) for column in zip(*rounds, strict=True)]  # the first round warms up
    row = {"case": "reduction, exact", "m": m, "d": d, "rounds": len(rounds) - 1}
    for count, time_of_count in zip(NUM_VIEWS, ms, strict=True):
        row |= {f"{count}_views_ms": round(time_of_count, 3)}
        if count > 2:
            row |= {f"{count}_views_ratio": round(time_of_count / ms[0] / (count / 2), 2)}
    return row


def machine(device: str) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 2,
    budget: float = 2.0,
    pause: float = 5.0,
    sizes: list[tuple[int, int]] = SIZES,
    out: Path = Path(__file__).parent / "results" / "objective.json",
) -> None:
    """Print the table and write it to ``out``.

    Args:
        device: cpu or cuda.
        threads: CPU threads.
        budget: seconds of timing for each row.
        pause: idle seconds before each row, for machines that slow down under a long load.
        sizes: m and d of the rows.
        out: the JSON file.
    """
    torch.set_num_threads(threads)
    table = Table(title=f"MECLoss and the textbook form: forward + backward, float32, {device}")
    for column in ("case", "m", "d", "mec ms", "textbook ms", "speedup", "mec MiB", "textbook MiB", "memory"):
        table.add_column(column, justify="left" if column == "case" else "right")
    rows = []
    for m, d in sizes:
        for case in CASES:
            time.sleep(pause)
            row = compare(case, m, d, device, budget)
            rows.append(row)
            table.add_row(
                *(case, str(m), str(d), f"{row['mec_ms']:.1f}", f"{row['textbook_ms']:.1f}"),
                *(f"{row['speedup']:.1f}x", f"{row['mec_mib']:.1f}", f"{row['textbook_mib']:.1f}"),
                f"{row['memory_ratio']:.0%}",
            )
    Console(width=120).print(table)
    views_rows = []
    for m, d in sizes:
        time.sleep(pause)
        views_rows.append(compare_views(m, d, device, budget))
        print(views_rows[-1], flush=True)
    command = (
        f"python benchmarks/objective.py --device {device} --threads {threads} --budget {budget:g} --pause {pause:g}"
    )
    command += "" if sizes == SIZES else f" --sizes '{json.dumps(sizes)}'"
    report = {
        "question": "forward and backward of the objective of two views, compared with the textbook form in one run",
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(device),
        "dtype": "float32",
        "rows": rows,
        "views": views_rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
