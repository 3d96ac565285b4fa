"""What does the objective cost, in time and memory, beside the same formula written the textbook way?

    python benchmarks/objective.py [--device cuda]

One step is forward and backward of the loss of two views. The textbook way normalizes, makes the m x m matrix of
each pair, and multiplies out its powers (or takes slogdet) under autograd. Both are timed in turns, in one run.
Memory is the peak of what a step allocates beyond its inputs; the gradients it returns are part of that.
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

from mec import MECLoss

SIZES = [(256, 2048), (1024, 256), (1024, 2048), (4096, 2048)]
CASES = ["cross, order 4", "cross, exact", "pooled, exact"]
DISTORTION = 1 / 32
Views = tuple[Tensor, Tensor]
Loss = Callable[[], Tensor]


def textbook_cross(p: Views, z: Views, order: int | None) -> Tensor:
    """Eq. 3, scaled as the paper's code scales it."""
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


def losses(case: str, m: int, d: int, device: str) -> tuple[Loss, Loss, Views]:
    """Ours, the textbook's, and the codes both leave gradients on. Views of one image are alike but for noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(m, d, generator=generator)
    views = [(images + 0.5 * torch.randn(m, d, generator=generator)).to(device) for _ in range(4)]
    p, z = (views[0].requires_grad_(), views[1].requires_grad_()), (views[2], views[3])
    if case == "cross, order 4":
        return partial(MECLoss(DISTORTION, order=4), p, z), partial(textbook_cross, p, z, 4), p
    if case == "cross, exact":
        return partial(MECLoss(DISTORTION, order=None), p, z), partial(textbook_cross, p, z, None), p
    return partial(MECLoss(DISTORTION), p), partial(textbook_pooled, p), p


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(loss: Loss, codes: Views, device: str) -> float:
    codes[0].grad = codes[1].grad = None
    wait(device)
    start = time.perf_counter()
    loss().backward()
    wait(device)
    return time.perf_counter() - start


def value_and_extra_bytes(loss: Loss, codes: Views, device: str) -> tuple[float, int]:
    """The loss, and the peak of what forward and backward allocate, the gradients included and the codes not.

    On the CPU every allocation of torch is replayed; scratch memory inside BLAS and LAPACK is not seen.
    """
    codes[0].grad = codes[1].grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = loss()
        value.backward()
        return value.item(), torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        value = loss()
        value.backward()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return value.item(), peak


def compare(case: str, m: int, d: int, device: str, budget: float) -> dict[str, Any]:
    """One row of the table. Ours and the textbook's take turns until ``budget`` seconds are used, at least three."""
    ours, textbook, codes = losses(case, m, d, device)
    # the run that measures memory also warms up
    ours_value, ours_bytes = value_and_extra_bytes(ours, codes, device)
    textbook_value, textbook_bytes = value_and_extra_bytes(textbook, codes, device)
    if abs(ours_value - textbook_value) > 1e-4 * max(1.0, abs(textbook_value)):
        raise RuntimeError(f"{case} at {m} x {d}: ours gives {ours_value}, the textbook form {textbook_value}")
    turns: list[tuple[float, float]] = []
    while len(turns) < 3 or (sum(map(sum, turns)) < budget and len(turns) < 200):
        turns.append((seconds(ours, codes, device), seconds(textbook, codes, device)))
    ours_ms, textbook_ms = (1000 * statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "case": case,
        "m": m,
        "d": d,
        "turns": len(turns),
        "ours_ms": round(ours_ms, 3),
        "textbook_ms": round(textbook_ms, 3),
        "times_faster": round(textbook_ms / ours_ms, 2),
        "ours_mib": round(ours_bytes / 2**20, 2),
        "textbook_mib": round(textbook_bytes / 2**20, 2),
        "share_of_memory": round(ours_bytes / textbook_bytes, 3),
    }


def machine(device: str) -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 2,
    budget: float = 2.0,
    rest: float = 5.0,
    out: Path = Path(__file__).parent / "results" / "objective.json",
) -> None:
    """Prints the table and writes it to ``out``.

    Args:
        device: where to run.
        threads: CPU threads for torch.
        budget: seconds to spend on the timing of one row.
        rest: seconds of idleness before each row, for machines that slow down under a long load.
        out: the JSON file to write.
    """
    torch.set_num_threads(threads)
    table = Table(title=f"MECLoss beside the textbook form: forward + backward, float32, {device}")
    for column in ("case", "m", "d", "ours ms", "textbook ms", "faster", "ours MiB", "textbook MiB", "memory"):
        table.add_column(column, justify="left" if column == "case" else "right")
    rows = []
    for m, d in SIZES:
        for case in CASES:
            time.sleep(rest)
            row = compare(case, m, d, device, budget)
            rows.append(row)
            table.add_row(
                *(case, str(m), str(d), f"{row['ours_ms']:.1f}", f"{row['textbook_ms']:.1f}"),
                *(f"{row['times_faster']:.1f}x", f"{row['ours_mib']:.1f}", f"{row['textbook_mib']:.1f}"),
                f"{row['share_of_memory']:.0%}",
            )
    Console(width=120).print(table)
    command = (
        f"python benchmarks/objective.py --device {device} --threads {threads} --budget {budget:g} --rest {rest:g}"
    )
    report = {
        "question": "forward and backward of the objective of two views, beside the textbook form, in one run",
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(device),
        "dtype": "float32",
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
