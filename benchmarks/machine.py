"""What a benchmark's figures were measured on, and where its table goes."""

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

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """As the system calls it; the architecture where it does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
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


def write(name: str, question: str, **figures: Any) -> Path:
    """benchmarks/results/``name``.json: the question, the command, the machine, then ``figures``."""
    # a path says nothing on another machine; its last part does
    shown = [Path(a).name if os.sep in a else a for a in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])
    date = datetime.now(timezone.utc).date().isoformat()
    head = {"question": question, "command": command, "date": date, "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(head | figures, indent=2) + "\n")
    return path


class Memory:
    """The most memory of its own, in MiB, that the process takes while this runs; a mapped file is not its own."""

    def __enter__(self) -> Memory:
        self.before = self.most = self._now()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, self._now())
            time.sleep(0.01)

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
