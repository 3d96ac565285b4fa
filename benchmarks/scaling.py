"""What is the cost of the objective for each of P processes, estimated by mec/coding/cost.py and measured?

First the estimated FLOPs and bytes of one process for 1 to ``devices`` processes, then forward and backward of a global
batch of fixed size on 1, 2 and 4 processes of one thread each, with gloo on localhost. CPU seconds are those of a
process, its collectives included: with fewer cores than processes, wall seconds are not informative.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from machine import write
from mec import MECLoss
from mec.coding.cost import FLOPS_PER_BYTE, Cost, Plan, cheapest_plan, estimate_cost

FORMS = {"cross, order 4": ("cross", 4), "cross, exact": ("cross", None), "pooled, exact": ("pooled", None)}
SIZES = [(512, 1024), (1024, 2048), (2048, 512), (4096, 1024)]  # global m, and d
PROCESSES = [1, 2, 4]
Row = dict[str, Any]


def step_cost(form: str, m: int, d: int, processes: int) -> tuple[Plan, Cost]:
    """Estimate a step of one process. Two views make two pairs in the cross form and one in the pooled form."""
    kind, order = FORMS[form]
    rows, pairs, symmetric = (m, 2, False) if kind == "cross" else (2 * m, 1, True)
    plan = cheapest_plan(rows, d, processes, order, symmetric)
    flops, sent = estimate_cost(plan, rows, d, processes, order, symmetric)
    return plan, Cost(pairs * flops, pairs * sent)


def estimated_rows(m: int, d: int, devices: int) -> list[Row]:
    rows = []
    for form in FORMS:
        for processes in (2**i for i in range(devices.bit_length())):
            plan, cost = step_cost(form, m, d, processes)
            rows.append({"form": form, "m": m, "d": d, "processes": processes} | plan._asdict() | cost._asdict())
    return rows


def sent_bytes(step: Callable[[], None], processes: int) -> int:
    """Count the bytes that this process sends in a step, from the tensors of its collectives, if these use rings."""
    passes = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
    passes |= {"all_gather_single": 1, "reduce_scatter_single": 1}  # the names from torch 2.14 on
    originals = {name: getattr(dist, name) for name in passes if hasattr(dist, name)}
    sent = 0

    def counting(name: str) -> Callable[..., Any]:
        def collective(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal sent
            sent += passes[name] * tensor.nbytes * (processes - 1) // processes
            return originals[name](tensor, *args, **kwargs)

        return collective

    for name in originals:
        setattr(dist, name, counting(name))
    step()
    for name, original in originals.items():
        setattr(dist, name, original)
    return sent


def one_step(form: str, m: int, d: int, rank: int, processes: int) -> Callable[[], None]:
    """Return forward and backward on the rows of this process as a function. Views of an image differ by noise."""
    kind, order = FORMS[form]
    loss = MECLoss(order=order, form=kind)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(m, d, generator=generator)
    views = [images + 0.5 * torch.randn(m, d, generator=generator) for _ in range(4)]
    p1, p2, z1, z2 = (view.chunk(processes)[rank].clone() for view in views)
    p1.requires_grad_()
    p2.requires_grad_()

    def step() -> None:
        p1.grad = p2.grad = None
        value = loss((p1, p2)) if kind == "pooled" else loss((p1, p2), (z1, z2))
        value.backward()

    return step


def measure(rank: int, processes: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    results = {}
    for m, d in SIZES:
        for form in FORMS:
            step = one_step(form, m, d, rank, processes)
            sent = sent_bytes(step, processes)  # also warms up
            times = []
            for _ in range(repeats):
                dist.barrier()
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                times.append((time.process_time() - cpu, time.perf_counter() - wall))
            cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
            results[m, d, form] = {"cpu": cpu, "wall": wall, "sent": sent}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured_rows(repeats: int) -> list[Row]:
    rows: list[Row] = []
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (processes, repeats, folder), processes)
            ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
        for m, d, form in ranks[0]:
            plan, cost = step_cost(form, m, d, processes)
            cell = [results[m, d, form] for results in ranks]
            measured = {
                "cpu_ms": 1000 * statistics.mean(r["cpu"] for r in cell),
                "wall_ms": 1000 * max(r["wall"] for r in cell),
                "sent_bytes": max(r["sent"] for r in cell),
            }
            row = {"form": form, "m": m, "d": d, "processes": processes} | plan._asdict() | cost._asdict() | measured
            one_process = next((r for r in rows if (r["form"], r["m"], r["d"]) == (form, m, d)), row)
            row["flops_vs_one_process"] = row["flops"] / one_process["flops"]
            row["cpu_vs_one_process"] = row["cpu_ms"] / one_process["cpu_ms"]
            rows.append(row)
    return sorted(rows, key=lambda row: (SIZES.index((row["m"], row["d"])), list(FORMS).index(row["form"])))


def fit_cpu_time(rows: list[Row]) -> Row:
    """Fit CPU seconds = FLOPs / speed + bytes / bandwidth by least squares of the relative error."""
    terms = torch.tensor([[row["flops"], row["bytes"]] for row in rows], dtype=torch.float64)
    seconds = torch.tensor([row["cpu_ms"] / 1000 for row in rows], dtype=torch.float64)
    relative = terms / seconds[:, None]
    per_flop, per_byte = torch.linalg.lstsq(relative, torch.ones(len(rows), 1, dtype=torch.float64)).solution[:, 0]
    errors = (relative @ torch.stack([per_flop, per_byte]) - 1).abs()
    return {
        "gflops": float(1e-9 / per_flop),
        "gigabytes_per_cpu_second": float(1e-9 / per_byte),
        "flops_per_byte": float(per_byte / per_flop),
        "median_error": float(errors.median()),
        "max_error": float(errors.max()),
    }


def table(title: str, columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> Table:
    result = Table(title=title)
    for name in columns:
        result.add_column(name, justify="left" if name in ("form", "plan") else "right")
    for row in rows:
        result.add_row(*(format_cell(row) for format_cell in columns.values()))
    return result


def describe_plan(row: Row) -> str:
    return ("d x d" if row["feature_side"] else "rows x rows") + (", sharded" if row["sharded"] else "")


def main(m: int = 65536, d: int = 2048, devices: int = 1024, repeats: int = 5) -> None:
    """Print both tables and write results/scaling.json.

    Args:
        m: global batch of the estimates.
        d: width of the codes in the estimates.
        devices: maximum number of processes in the estimates.
        repeats: measured steps; the median is reported.
    """
    estimated = estimated_rows(m, d, devices)
    measured = measured_rows(repeats)
    cost_columns: dict[str, Callable[[Row], str]] = {
        "form": lambda row: row["form"],
        "m x d": lambda row: f"{row['m']} x {row['d']}",
        "P": lambda row: str(row["processes"]),
        "plan": describe_plan,
        "GFLOP": lambda row: f"{row['flops'] / 1e9:.3g}",
        "MB": lambda row: f"{row['bytes'] / 1e6:.3g}",
    }
    measured_columns: dict[str, Callable[[Row], str]] = {
        "MB counted": lambda row: f"{row['sent_bytes'] / 1e6:.3g}",
        "CPU ms": lambda row: f"{row['cpu_ms']:.1f}",
        "wall ms": lambda row: f"{row['wall_ms']:.1f}",
        "FLOPs / P = 1": lambda row: f"{row['flops_vs_one_process']:.2f}",
        "CPU / P = 1": lambda row: f"{row['cpu_vs_one_process']:.2f}",
    }
    console = Console(width=140)
    console.print(table("One step of one process, estimated", cost_columns, estimated))
    console.print(table("One step of one process, measured and estimated", cost_columns | measured_columns, measured))
    fit = fit_cpu_time(measured)
    console.print(
        f"fit: {fit['gflops']:.0f} GFLOP/s, {fit['gigabytes_per_cpu_second']:.2f} GB per CPU second, "
        f"{fit['flops_per_byte']:.0f} FLOPs per byte; error {fit['median_error']:.0%} (median), "
        f"{fit['max_error']:.0%} (maximum)"
    )
    question = "cost of forward and backward of the objective for each of P processes, float32"
    path = write("scaling", question, flops_per_byte=FLOPS_PER_BYTE, estimated=estimated, measured=measured, fit=fit)
    console.print(str(path))


if __name__ == "__main__":
    auto_cli(main)
