"""A contestant in its own process: train for a turn on request, and measure it."""

from __future__ import annotations

import gc
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
from torch.utils.flop_counter import FlopCounterMode

import mec
from machine import Memory
from mec.models import create_encoder
from mec.pretraining import Recipe, SpeedSettings, TeacherSettings
from mec.pretraining.module import Pretraining
from mec.pretraining.settings import ObjectiveSettings
from training_loops import Loop, Settings, lightly_byol, lightly_simsiam, plain

FLOP_IMAGES = 4
"""Images in the step whose FLOPs are counted."""


class Meter:
    """Count and time steps: warm-up steps, timed steps, then further steps whose phases are timed.

    Phases may be nested: the time of a phase excludes that of the phases in it. A GPU is synchronized before and after
    all timed steps together, and around each phase of the further steps.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.steps_done = settings, 0
        self.active_phases: list[str] = []
        self.seconds: Counter[str] = Counter()
        self.last_change = self.started = time.perf_counter()
        self.measurements: dict[str, Any] = {}
        self.precision = "32-true"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.enter(name)
        yield
        self.leave()

    def enter(self, name: str) -> None:
        self._add_elapsed()
        self.active_phases.append(name)

    def leave(self) -> None:
        self._add_elapsed()
        self.active_phases.pop()

    def _add_elapsed(self) -> None:
        if self.is_timing_phases:
            self._synchronize()
        now = time.perf_counter()
        if self.active_phases:
            self.seconds[self.active_phases[-1]] += now - self.last_change
        self.last_change = now

    @property
    def is_timing_phases(self) -> bool:
        return self.steps_done >= self.settings.warmup + self.settings.steps

    def _synchronize(self) -> None:
        if self.settings.device == "cuda":
            torch.cuda.synchronize()

    def step_done(self) -> bool:
        """Count a step, and return whether it was the last."""
        s = self.settings
        self.steps_done += 1
        if self.steps_done == s.warmup + s.steps + s.phase_steps and s.phase_steps:
            self._synchronize()
            self._record_phases(s.phase_steps)
        if self.steps_done in (s.warmup, s.warmup + s.steps):
            self._synchronize()
            now = time.perf_counter()
            if self.steps_done > s.warmup:
                self.measurements = {
                    "seconds": (now - self.started) / s.steps,
                    "data_wait": self.seconds["data"] / s.steps,
                }
                self._record_phases(s.steps)
            self.seconds.clear()
            self.started = now
        return self.steps_done == s.warmup + s.steps + s.phase_steps

    def _record_phases(self, steps: int) -> None:
        total = time.perf_counter() - self.started
        phases = {name: seconds / steps for name, seconds in self.seconds.items()}
        self.measurements["phases"] = phases | {"rest": total / steps - sum(phases.values())}


class _PhaseTimer(lightning.Callback):
    """Time the phases of mec's steps, and stop the run after the last step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.meter.precision, network = trainer.precision, module.network
        self._time_calls(module, "views", "views")
        self._time_calls(module, "objective", "objective")
        self._time_calls(module, "network", "forward")
        if network.teacher is not None:
            self._time_calls(network, "teacher_features", "teacher")
            self._time_calls(network.teacher, "1", "teacher")
            self._time_calls(network, "update_teacher", "teacher")
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda *_: self.meter.enter("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self.meter.leave())
        self.meter.enter("data")

    def _time_calls(self, owner: Any, name: str, phase: str) -> None:
        """Add the time of calls of a module or method to a phase."""
        function = getattr(owner, name)
        if isinstance(function, torch.nn.Module):
            owner, name, function = function, "forward", function.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.meter.phase(phase):
                return function(*args, **kwargs)

        setattr(owner, name, timed)

    def on_train_batch_start(self, *_: Any) -> None:
        self.meter.leave()

    def on_before_backward(self, *_: Any) -> None:
        self.meter.enter("backward")

    def on_after_backward(self, *_: Any) -> None:
        self.meter.leave()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = self.meter.step_done()
        self.meter.enter("data")


def _recipe(settings: Settings, paper: bool, precision: Any, compiled: bool) -> Recipe:
    """Return the packaged recipe for images of this size, in the paper's or the default form."""
    recipe = mec.load_recipe("cifar10-resnet18" if settings.has_small_images else "imagenet-resnet50")
    objective = ObjectiveSettings("cross", 1 / 32, 4, 8) if paper else ObjectiveSettings()
    return replace(
        recipe,
        backbone=settings.backbone,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        epochs=2,  # _PhaseTimer stops the run within the first
        workers=settings.workers,
        precision=precision,
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        devices=1,
        objective=objective,
        teacher=TeacherSettings(enabled=paper),
        speed=SpeedSettings(compile=compiled),
    )


class _Mec:
    def __init__(self, settings: Settings, paper: bool, precision: str = "auto", compiled: bool = False) -> None:
        self.settings, self.recipe = settings, _recipe(settings, paper, precision, compiled)

    def turn(self, meter: Meter) -> None:
        data = self.settings.images if self.settings.has_small_images else self.settings.images / "list.txt"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            mec.pretrain(data, out, self.recipe, callbacks=[_PhaseTimer(meter)])

    def count_flops(self) -> None:
        encoder = create_encoder(self.recipe.backbone, self.recipe.image_size, 3, self.recipe.small_stem)
        module = Pretraining(self.recipe, encoder, FLOP_IMAGES, 1)
        x1, x2 = torch.randn(2, FLOP_IMAGES, 3, self.settings.image_size, self.settings.image_size)
        module.objective(*module.network(x1, x2)).backward()


class _Plain:
    def __init__(self, settings: Settings, make_loop: Callable[[Settings], Loop]) -> None:
        self.settings, self.make_loop = settings, make_loop
        self.loop: Loop | None = None

    def turn(self, meter: Meter) -> None:
        self.loop = self.loop or self.make_loop(self.settings)
        size, device = self.settings.image_size, self.settings.device
        if device == "cuda":  # fail on a batch that is too large before the loader starts
            self.loop.step(tuple(torch.randn(2, self.settings.batch_size, 3, size, size, device=device)), _untimed)  # type: ignore[arg-type]
        batches, is_last = iter(self.loop.batches()), False
        while not is_last:
            with meter.phase("data"):
                views = next(batches)
            self.loop.step(views, meter.phase)
            is_last = meter.step_done()

    def count_flops(self) -> None:
        x1, x2 = torch.randn(2, FLOP_IMAGES, 3, self.settings.image_size, self.settings.image_size)
        self.make_loop(replace(self.settings, device="cpu")).step((x1, x2), _untimed)


def _untimed(name: str) -> Any:
    return nullcontext()


PLAIN = "plain PyTorch"
PAPER, POOLED = "mec, paper's form", "mec, default form"


def contestants(compiled: bool) -> dict[str, Callable[[Settings], Any]]:
    """Name -> contestant. The paper's form also runs in float32, to separate the effect of mec's default precision."""
    by_name: dict[str, Callable[[Settings], Any]] = {
        PLAIN: lambda s: _Plain(s, plain),
        PAPER: lambda s: _Mec(s, True, compiled=compiled),
        POOLED: lambda s: _Mec(s, False, compiled=compiled),
        "lightly, SimSiam": lambda s: _Plain(s, lightly_simsiam),
        "lightly, BYOL": lambda s: _Plain(s, lightly_byol),
    }
    return by_name | {f"{PAPER}, 32-true": lambda s: _Mec(s, True, "32-true")}


def serve(pipe: Connection, name: str, settings: Settings, compiled: bool) -> None:
    """Send the FLOPs per image of a step, then the measurements of a turn for each message received; or the failure."""
    torch.set_num_threads(settings.threads)
    try:
        contestant = contestants(compiled)[name](settings)
        with FlopCounterMode(display=False) as counter:
            contestant.count_flops()
        pipe.send({"flops": counter.get_total_flops() / FLOP_IMAGES})
        memory_before = None
        while pipe.recv():
            gc.collect()
            with Memory() as memory:
                meter = Meter(settings)
                contestant.turn(meter)
            memory_before = memory.before if memory_before is None else memory_before
            on_cuda = settings.device == "cuda"
            mib = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else memory.peak - memory_before
            pipe.send(meter.measurements | {"mib": mib, "precision": meter.precision})
    except ModuleNotFoundError as error:
        pipe.send({"failed": f"not installed ({error.name})"})
    except torch.OutOfMemoryError:
        pipe.send({"failed": "out of memory"})
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        pipe.send({"failed": f"{type(error).__name__}: {error}"})
