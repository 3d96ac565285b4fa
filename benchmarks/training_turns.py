"""One contestant in a process of its own: takes its turns at training, and measures each."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import mec
from machine import Memory
from mec.models import create_encoder
from mec.pretraining import Recipe, SpeedSettings, TeacherSettings
from mec.pretraining.module import Pretraining
from mec.pretraining.recipe import ObjectiveSettings
from training_loops import Loop, Setting, lightly_byol, lightly_simsiam, plain

COUNTED = 4
"""Images in the step whose FLOPs are counted."""


class Meter:
    """Counts steps and times them: some to warm up, some whole, and further ones part by part.

    Splits may lie in one another: each has the time that the parts in it have not. On a GPU the device is waited for at
    either end of the whole steps only, and around each part of the further ones.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.done = setting, 0
        self.within: list[str] = []
        self.seconds: Counter[str] = Counter()
        self.at = self.started = time.perf_counter()
        self.found: dict[str, Any] = {}
        self.precision = "32-true"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        yield
        self.leave()

    def enter(self, name: str) -> None:
        self._charge()
        self.within.append(name)

    def leave(self) -> None:
        self._charge()
        self.within.pop()

    def _charge(self) -> None:
        if self.apart:
            self._wait()
        now = time.perf_counter()
        if self.within:
            self.seconds[self.within[-1]] += now - self.at
        self.at = now

    @property
    def apart(self) -> bool:
        return self.done >= self.setting.warmup + self.setting.steps

    def _wait(self) -> None:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()

    def step_done(self) -> bool:
        """Whether that was the last."""
        s = self.setting
        self.done += 1
        if self.done == s.warmup + s.steps + s.apart and s.apart:
            self._wait()
            self._keep_parts(s.apart)
        if self.done in (s.warmup, s.warmup + s.steps):
            self._wait()
            now = time.perf_counter()
            if self.done > s.warmup:
                self.found = {"seconds": (now - self.started) / s.steps, "waited": self.seconds["data"] / s.steps}
                self._keep_parts(s.steps)
            self.seconds.clear()
            self.started = now
        return self.done == s.warmup + s.steps + s.apart

    def _keep_parts(self, steps: int) -> None:
        whole = time.perf_counter() - self.started
        parts = {name: seconds / steps for name, seconds in self.seconds.items()}
        self.found["parts"] = parts | {"rest": whole / steps - sum(parts.values())}


class _Clock(lightning.Callback):
    """Marks the parts of mec's steps, and ends the run after the last."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.meter.precision, network = trainer.precision, module.network
        self._mark(module, "views", "views")
        self._mark(module, "objective", "objective")
        self._mark(module, "network", "forward")
        if network.teacher is not None:
            self._mark(network, "teacher_features", "teacher")
            self._mark(network.teacher, "1", "teacher")
            self._mark(network, "update_teacher", "teacher")
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda *_: self.meter.enter("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self.meter.leave())
        self.meter.enter("data")

    def _mark(self, owner: Any, name: str, part: str) -> None:
        """Charge calls of a module or method to a part."""
        called = getattr(owner, name)
        if isinstance(called, torch.nn.Module):
            owner, name, called = called, "forward", called.forward

        def marked(*arguments: Any, **named: Any) -> Any:
            with self.meter.part(part):
                return called(*arguments, **named)

        setattr(owner, name, marked)

    def on_train_batch_start(self, *_: Any) -> None:
        self.meter.leave()

    def on_before_backward(self, *_: Any) -> None:
        self.meter.enter("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.meter.leave()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = self.meter.step_done()
        self.meter.enter("data")


def _recipe(setting: Setting, paper: bool, precision: Any, compiled: bool) -> Recipe:
    """The recipe packaged for such images, in the paper's form or in the default's."""
    recipe = mec.load_recipe("cifar10-resnet18" if setting.small else "imagenet-resnet50")
    objective = ObjectiveSettings("cross", order=4, warmup_factor=8) if paper else ObjectiveSettings()
    return replace(
        recipe,
        backbone=setting.backbone,
        image_size=setting.size,
        batch_size=setting.batch,
        epochs=2,  # it is stopped within the first
        workers=setting.workers,
        precision=precision,
        accelerator="gpu" if setting.device == "cuda" else "cpu",
        devices=1,
        objective=objective,
        teacher=TeacherSettings(enabled=paper),
        speed=SpeedSettings(compile=compiled),
    )


class _Mec:
    def __init__(self, setting: Setting, paper: bool, precision: str = "auto", compiled: bool = False) -> None:
        self.setting, self.recipe = setting, _recipe(setting, paper, precision, compiled)

    def turn(self, meter: Meter) -> None:
        data = self.setting.images if self.setting.small else self.setting.images / "list.txt"
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
            out = Path(folder) / "run"
            mec.pretrain(data, out, self.recipe, console=Console(file=nowhere), callbacks=[_Clock(meter)])

    def count(self) -> None:
        encoder = create_encoder(self.recipe.backbone, self.recipe.image_size, 3, self.recipe.small_stem)
        module = Pretraining(self.recipe, encoder, COUNTED, 1, 0)
        x1, x2 = torch.randn(2, COUNTED, 3, self.setting.size, self.setting.size)
        module.objective(*module.network(x1, x2)).backward()


class _Plain:
    def __init__(self, setting: Setting, loop: Callable[[Setting], Loop]) -> None:
        self.setting, self.make = setting, loop
        self.loop: Loop | None = None

    def turn(self, meter: Meter) -> None:
        self.loop = self.loop or self.make(self.setting)
        size, device = self.setting.size, self.setting.device
        if device == "cuda":  # too large a batch is found out before the loader is asked for it
            self.loop.step(tuple(torch.randn(2, self.setting.batch, 3, size, size, device=device)), _unmeasured)  # type: ignore[arg-type]
        batches, last = iter(self.loop.batches()), False
        while not last:
            with meter.part("data"):
                views = next(batches)
            self.loop.step(views, meter.part)
            last = meter.step_done()

    def count(self) -> None:
        x1, x2 = torch.randn(2, COUNTED, 3, self.setting.size, self.setting.size)
        self.make(replace(self.setting, device="cpu")).step((x1, x2), _unmeasured)


def _unmeasured(name: str) -> Any:
    return nullcontext()


PLAIN = "plain PyTorch"
PAPER, POOLED = "mec, paper's form", "mec, default form"


def contestants(compiled: bool) -> dict[str, Callable[[Setting], Any]]:
    """By name; what mec's default precision gains is told by a row of the paper's form in float32."""
    found: dict[str, Callable[[Setting], Any]] = {
        PLAIN: lambda s: _Plain(s, plain),
        PAPER: lambda s: _Mec(s, True, compiled=compiled),
        POOLED: lambda s: _Mec(s, False, compiled=compiled),
        "lightly, SimSiam": lambda s: _Plain(s, lightly_simsiam),
        "lightly, BYOL": lambda s: _Plain(s, lightly_byol),
    }
    return found | {f"{PAPER}, 32-true": lambda s: _Mec(s, True, "32-true")}


def serve(pipe: Connection, name: str, setting: Setting, compiled: bool) -> None:
    """Answers first with its step's FLOPs an image, then each question with the figures of a turn; or what failed."""
    torch.set_num_threads(setting.threads)
    try:
        contestant = contestants(compiled)[name](setting)
        with FlopCounterMode(display=False) as counter:
            contestant.count()
        pipe.send({"flops": counter.get_total_flops() / COUNTED})
        before = None
        while pipe.recv():
            gc.collect()
            with Memory() as memory:
                meter = Meter(setting)
                contestant.turn(meter)
            before = memory.before if before is None else before
            on_device = torch.cuda.max_memory_allocated() / 2**20 if setting.device == "cuda" else memory.most - before
            pipe.send(meter.found | {"mib": on_device, "precision": meter.precision})
    except ModuleNotFoundError as error:
        pipe.send({"failed": f"not installed ({error.name})"})
    except torch.OutOfMemoryError:
        pipe.send({"failed": "out of memory"})
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        pipe.send({"failed": f"{type(error).__name__}: {error}"})
