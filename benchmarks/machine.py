"""Record the machine of a benchmark, its peak memory and its results."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mec.results import Result

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """Name of the CPU model, or its architecture where the system has no name for it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(name: str, question: str, **results: Any) -> Path:
    """Write benchmarks/results/``name``.json: the question, command, date and machine, then ``results``."""
    # folders differ from machine to machine: record only the last part of a path
    arguments = [Path(a).name if os.sep in a else a for a in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    date = datetime.now(timezone.utc).date().isoformat()
    header = {"question": question, "command": command, "date": date, "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(header | results, indent=2) + "\n")
    return path


def metrics_with_std(result: Result) -> dict[str, dict[str, float]]:
    """Row -> metric -> value; a metric of several trials is followed by "NAME std"."""
    rows: dict[str, dict[str, float]] = {}
    for row, metrics in result.rows.items():
        rows[row] = {}
        for metric in metrics:
            rows[row][metric.name] = metric.value
            if metric.std is not None:
                rows[row][f"{metric.name} std"] = metric.std
    return rows


class Memory:
    """Track the peak anonymous memory of the process, in MiB. Mapped files do not count."""

    def __enter__(self) -> Memory:
        self.before = self.peak = self._now()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._now())
            time.sleep(0.01)

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
