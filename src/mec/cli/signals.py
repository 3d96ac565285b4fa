"""SIGTERM outside of a training: without heavy imports, so that it is handled from the first moment on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

from mec.errors import EXIT_PREEMPTED

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def exit_preempted_at_sigterm(arguments: Sequence[str]) -> None:
    """Let SIGTERM end the process at once with status 75, if the command line is one that can be continued: all that
    such a command has computed is on disk at any moment. Trainings replace the handler while they run."""
    if not (hint := _how_to_continue([*arguments])) or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    pid, is_rank_zero = os.getpid(), all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a process that was forked meanwhile
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if is_rank_zero:
            os.write(2, f"SIGTERM: stopped, nothing is lost; {hint}\n".encode())
        os._exit(EXIT_PREEMPTED)

    signal.signal(signal.SIGTERM, end)


def _how_to_continue(arguments: Sequence[str]) -> str:
    """Return what continues a command after its interruption; "" for one that starts again."""
    command, task = (*arguments, "", "")[:2]
    if command in ("embed", "compare"):
        return "run the command again to continue"
    has_folder = any(a.partition("=")[0] == "--out" or _is_run(a.rpartition("=")[2]) for a in arguments)
    can_resume = command == "pretrain" or (command == "evaluate" and task in ("linear", "finetune", "detect"))
    return "continue with --resume" if can_resume and has_folder else ""


def _is_run(argument: str) -> bool:
    """Return whether an argument is a run folder, in which an evaluation without --out keeps its checkpoints."""
    return os.path.exists(os.path.join(os.path.expanduser(argument), "recipe.yaml"))
