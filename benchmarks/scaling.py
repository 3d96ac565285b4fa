"""What does the objective cost each of P processes, by the model of mec/coding/cost.py and as measured?

First the model's FLOPs and bytes of one process from 1 device to ``devices``, then forward and backward of a joined
batch of fixed size on 1, 2 and 4 processes of one thread each, joined by gloo on localhost. CPU seconds are those of
a process, its collectives included, because there may be fewer cores than processes; wall seconds then say little.
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
SIZES = [(512, 1024), (1024, 2048), (2048, 512), (4096, 1024)]  # m of all processes and d
PROCESSES = [1, 2, 4]
Row = dict[str, Any]


def step_cost(form: str, m: int, d: int, processes: int) -> tuple[Plan, Cost]:
    """Of one process in one step of two views: two pairs of the cross form, one of the pooled form."""
    kind, order = FORMS[form]
    rows, pairs, symmetric = (m, 2, False) if kind == "cross" else (2 * m, 1, True)
    plan = cheapest_plan(rows, d, processes, order, symmetric)
    flops, sent = estimate_cost(plan, rows, d, processes, order, symmetric)
    return plan, Cost(pairs * flops, pairs * sent)


def model_rows(m: int, d: int, devices: int) -> list[Row]:
    rows = []
    for form in FORMS:
        for processes in (2**i for i in range(devices.bit_length())):
            plan, cost = step_cost(form, m, d, processes)
            rows.append({"form": form, "m": m, "d": d, "processes": processes} | plan._asdict() | cost._asdict())
    return rows


def wire_bytes(step: Callable[[], None], processes: int) -> int:
    """What this process sends in a step when the collectives go round a ring: from the tensors handed to them."""
    trips = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}
    originals = {name: getattr(dist, name) for name in trips}
    sent = 0

    def counted(name: str) -> Callable[..., Any]:
        def collective(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal sent
            sent += trips[name] * tensor.nbytes * (processes - 1) // processes
            return originals[name](tensor, *args, **kwargs)

        return collective

    for name in trips:
        setattr(dist, name, counted(name))
    step()
    for name, original in originals.items():
        setattr(dist, name, original)
    return sent


def one_step(form: str, m: int, d: int, rank: int, processes: int) -> Callable[[], None]:
    """Forward and backward of the rows of this process. Views of one image are alike but for noise."""
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
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    found = {}
    for m, d in SIZES:
        for form in FORMS:
            step = one_step(form, m, d, rank, processes)
            sent = wire_bytes(step, processes)  # warms up as well
            turns = []
            for _ in range(repeats):
                dist.barrier()
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                turns.append((time.process_time() - cpu, time.perf_counter() - wall))
            cpu, wall = (statistics.median(column) for column in zip(*turns, strict=True))
            found[m, d, form] = {"cpu": cpu, "wall": wall, "sent": sent}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured_rows(repeats: int) -> list[Row]:
    rows = []
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (processes, repeats, folder), processes)
            ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
        for m, d, form in ranks[0]:
            plan, cost = step_cost(form, m, d, processes)
            of_ranks = [found[m, d, form] for found in ranks]
            measured = {
                "cpu_ms": 1000 * statistics.mean(found["cpu"] for found in of_ranks),
                "wall_ms": 1000 * max(found["wall"] for found in of_ranks),
                "sent_bytes": max(found["sent"] for found in of_ranks),
            }
            row = {"form": form, "m": m, "d": d, "processes": processes} | plan._asdict() | cost._asdict() | measured
            alone = next((r for r in rows if (r["form"], r["m"], r["d"]) == (form, m, d)), row)
            row["flops_of_one_process"] = row["flops"] / alone["flops"]
            row["cpu_of_one_process"] = row["cpu_ms"] / alone["cpu_ms"]
            rows.append(row)
    return sorted(rows, key=lambda row: (SIZES.index((row["m"], row["d"])), list(FORMS).index(row["form"])))


def fitted(rows: list[Row]) -> Row:
    """CPU seconds = FLOPs / speed + bytes / rate, by least squares of the relative error; and that error."""
    terms = torch.tensor([[row["flops"], row["bytes"]] for row in rows], dtype=torch.float64)
    seconds = torch.tensor([row["cpu_ms"] / 1000 for row in rows], dtype=torch.float64)
    relative = terms / seconds[:, None]
    of_flop, of_byte = torch.linalg.lstsq(relative, torch.ones(len(rows), 1, dtype=torch.float64)).solution[:, 0]
    errors = (relative @ torch.stack([of_flop, of_byte]) - 1).abs()
    return {
        "gflops": float(1e-9 / of_flop),
        "gigabytes_per_cpu_second": float(1e-9 / of_byte),
        "flops_per_byte": float(of_byte / of_flop),
        "median_error": float(errors.median()),
        "largest_error": float(errors.max()),
    }


def table(title: str, columns: dict[str, Callable[[Row], str]], rows: list[Row]) -> Table:
    shown = Table(title=title)
    for name in columns:
        shown.add_column(name, justify="left" if name in ("form", "plan") else "right")
    for row in rows:
        shown.add_row(*(show(row) for show in columns.values()))
    return shown


def describe_plan(row: Row) -> str:
    return ("d x d" if row["feature_side"] else "rows x rows") + (", sharded" if row["sharded"] else "")


def main(m: int = 65536, d: int = 2048, devices: int = 1024, repeats: int = 5) -> None:
    """Prints both tables and writes results/scaling.json.

    Args:
        m: joined batch of the table that is computed only.
        d: width of the codes there.
        devices: the most processes there.
        repeats: steps measured, of which the median is taken.
    """
    model = model_rows(m, d, devices)
    measured = measured_rows(repeats)
    named: dict[str, Callable[[Row], str]] = {
        "form": lambda row: row["form"],
        "m x d": lambda row: f"{row['m']} x {row['d']}",
        "P": lambda row: str(row["processes"]),
        "plan": describe_plan,
        "GFLOP": lambda row: f"{row['flops'] / 1e9:.3g}",
        "MB": lambda row: f"{row['bytes'] / 1e6:.3g}",
    }
    figures: dict[str, Callable[[Row], str]] = {
        "MB counted": lambda row: f"{row['sent_bytes'] / 1e6:.3g}",
        "CPU ms": lambda row: f"{row['cpu_ms']:.1f}",
        "wall ms": lambda row: f"{row['wall_ms']:.1f}",
        "FLOPs / P = 1": lambda row: f"{row['flops_of_one_process']:.2f}",
        "CPU / P = 1": lambda row: f"{row['cpu_of_one_process']:.2f}",
    }
    console = Console(width=140)
    console.print(table("One process and one step, by the model", named, model))
    console.print(table("One process and one step, measured beside the model", named | figures, measured))
    fit = fitted(measured)
    console.print(
        f"fit: {fit['gflops']:.0f} GFLOP/s, {fit['gigabytes_per_cpu_second']:.2f} GB per CPU second, "
        f"{fit['flops_per_byte']:.0f} FLOPs a byte; off by {fit['median_error']:.0%} (median), "
        f"{fit['largest_error']:.0%} (largest)"
    )
    question = "what forward and backward of the objective cost each of P processes, float32"
    path = write("scaling", question, flops_per_byte=FLOPS_PER_BYTE, model=model, measured=measured, fit=fit)
    console.print(str(path))


if __name__ == "__main__":
    auto_cli(main)
