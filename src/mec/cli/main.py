"""The ``mec`` command. Every command calls one typed function of the package."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

import shtab
from rich.console import Console

from mec import __version__
from mec.cli import commands, pretrain
from mec.cli.evaluate import TASKS, add_task
from mec.cli.parser import Parser, Run, type_hint
from mec.cli.signals import exit_preempted_at_sigterm
from mec.errors import InputError, choices, did_you_mean, join_with_or, union_members

SCRIPT_PATHS = {
    "bash": "~/.local/share/bash-completion/completions/mec",
    "zsh": '"${fpath[1]}/_mec"',
    "fish": "~/.config/fish/completions/mec.fish",
}
"""Path from which each shell loads the script of ``mec completion``."""


def create_parsers() -> dict[str, Parser]:
    """Return the parsers of mec, all commands and all tasks, by name, such as "mec evaluate knn"; without options."""
    parser = Parser(
        prog="mec",
        usage="mec COMMAND [options]",
        description="Pretrain image encoders without labels by Maximum Entropy Coding, and evaluate them.",
        version=__version__,
        epilog="example: mec demo\nmec COMMAND --help lists every option with its default, and an example",
    )
    parsers = {"mec": parser, **_add_commands(parser, "command", {name: entry[0] for name, entry in COMMANDS.items()})}
    parser = parsers["mec evaluate"]
    parser.describe(
        "TASK DATA --encoder ENCODER [options]",
        "Evaluate an encoder on a downstream task, next to baselines.",
        "knn digits --encoder runs/digits\nmec evaluate TASK --help lists the options of a task",
    )
    return {**parsers, **_add_commands(parser, "task", {name: entry[0] for name, entry in TASKS.items()})}


def _add_commands(parser: Parser, kind: str, summaries: dict[str, str]) -> dict[str, Parser]:
    subcommands = parser.add_subcommands(
        title=f"{kind}s", metavar=kind.upper(), dest=kind, description=None, required=False
    )
    parsers = {f"{parser.prog} {name}": Parser() for name in summaries}
    for (prog, subparser), (name, summary) in zip(parsers.items(), summaries.items(), strict=True):
        subcommands.add_subcommand(name, subparser, help=summary)
        subparser.prog = prog
    return parsers


def find_command(arguments: Sequence[str]) -> tuple[Parser, Sequence[str]]:
    """Return the parser of the command, or of the task, and the arguments after its name.

    An option in place of the name is an error, which argparse would report as an unknown command.
    """
    parsers = create_parsers()
    parser = parsers["mec"]
    for kind, names in (("command", COMMANDS), ("task", TASKS)):
        word = arguments[0].partition("=")[0] if arguments else ""
        if word in ("-h", *parser.option_names()):
            parser.parse_args([word])  # prints and exits
        if not word:
            parser.error(f"expected {kind.upper()}, one of {', '.join(names)}")
        if word.startswith("-"):
            suggestion = did_you_mean(word, parser.option_names())
            parser.error(
                f"unrecognized option {word}{suggestion or f'; expected {kind.upper()} first, then its options'}"
            )
        if word not in names:
            suggestion = did_you_mean(word, names)
            parser.error(f"unknown {kind} {word!r}{suggestion or f'; expected {join_with_or(list(names))}'}")
        parser, arguments = parsers[f"{parser.prog} {word}"], arguments[1:]
        if word != "evaluate":
            break
    return parser, arguments


def parse(arguments: Sequence[str]) -> tuple[Run, dict[str, Any]]:
    """Return the function of a command line, and the values of the options to run it with."""
    parser, arguments = find_command([_normalize(argument) for argument in arguments or ["--help"]])
    run = COMMANDS[parser.prog.split()[1]][1](parser, arguments)
    return run, parser.parse_args(arguments).as_dict()


def add_completion(parser: Parser, arguments: Sequence[str]) -> Run:
    lines = "\n".join(f"  mec completion {shell} > {place}" for shell, place in SCRIPT_PATHS.items())
    parser.describe(
        "SHELL",
        "Print a script for tab completion of commands, tasks, options, choices and file names.\n"
        f"Install it once, and again after an update of mec; new terminals load it:\n\n{lines}",
        f"bash > {SCRIPT_PATHS['bash']}",
    )
    parser.add_argument(
        "shell", type=Literal["bash", "zsh", "fish"], metavar="SHELL", help="shell of your terminal (echo $SHELL)"
    )
    return completion


def completion(shell: str) -> str:
    """Return a static script, so that a key press does not start Python."""
    parsers = create_parsers()
    for name, parser in parsers.items():
        if name not in ("mec", "mec evaluate"):
            COMMANDS[parser.prog.split()[1]][1](parser, [])
        for action in parser._actions:
            # copy choices and files from the types, where jsonargparse has them, to the actions, where shtab reads them
            action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
            if action.choices is None and action.nargs != 0:
                action.choices = choices(type_hint(action)) or None
                may_be_path = any(kind is str or "PathLike" in str(kind) for kind in union_members(type_hint(action)))
                if action.choices is None and may_be_path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parsers["mec"], shell)
    return script


COMMANDS: dict[str, tuple[str, Callable[[Parser, Sequence[str]], Run]]] = {
    "demo": ("pretrain and evaluate on handwritten digits: two minutes, no download", commands.add_demo),
    "inspect": ("show how a dataset is read: splits, classes, duplicates, what is skipped", commands.add_inspect),
    "views": ("draw the augmented views of some images before training", pretrain.add_views),
    "pretrain": ("pretrain an encoder on images, without labels", pretrain.add_pretrain),
    "compare": ("pretrain and evaluate with several objectives, settings and seeds", pretrain.add_compare),
    "report": ("write one HTML page about runs: settings, curves, features, results", commands.add_report),
    "evaluate": ("evaluate an encoder on a downstream task", add_task),
    "track": ("track an object through a video, from a box or a mask in the first frame", commands.add_track),
    "embed": ("write the embedding of every image; list near-duplicates and outliers", commands.add_embed),
    "classify": ("label the images of a folder, with probabilities, from a few labeled ones", commands.add_classify),
    "export": ("export an encoder to timm, torchvision, detectron2, ONNX or Hugging Face", commands.add_export),
    "doctor": ("print versions, devices, decoder speed and disk, and what would be slow", commands.add_doctor),
    "completion": ("print a script for tab completion in bash, zsh or fish", add_completion),
}
"""Name -> summary, and a function that adds the options to a parser and returns the function to run.

Most commands import PyTorch for their options; therefore only the called one adds them.
"""


def _normalize(argument: str) -> str:
    """Accept --max-corrupt for --max_corrupt, and expand ~ in --out=~/x as the shell does in --out ~/x."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return name.replace("-", "_").replace("__", "--", 1) + equals + (os.path.expanduser(value) if equals else "")


class _ConsoleHandler(logging.Handler):
    """Prints log messages to standard error, above a progress bar if there is one. A warning with ``once`` is not
    repeated: every evaluation of a run warns of the same corrupt images."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: set[tuple[int, str]] = set()  # of this process and of the one that it was forked from

    def emit(self, record: logging.LogRecord) -> None:
        prefix = ""
        if record.levelno >= logging.WARNING:
            warning = os.getpid(), record.getMessage()
            if getattr(record, "once", False) and warning in self.warnings:
                return
            self.warnings.add(warning)
            prefix = f"{record.levelname.lower()}: "
        Console(stderr=True, soft_wrap=True).print(prefix + record.getMessage(), highlight=False, markup=False)


@contextmanager
def logging_to_console() -> Iterator[None]:
    """Print the messages of the package from level INFO on, within the block. Nested blocks print them once."""
    logger, handler = logging.getLogger("mec"), _ConsoleHandler()
    level = logger.level
    if any(isinstance(other, _ConsoleHandler) for other in logger.handlers):
        yield
        return
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _lines_in_log_files(arguments: Sequence[str]) -> AbstractContextManager[object]:
    """Return a context that logs a line every half minute in which nothing else does, unless stderr is a terminal."""
    if sys.stderr.isatty() or "--watch" in arguments:
        return nullcontext()
    from mec.engine.progress import ProgressBar

    return ProgressBar(" ".join(["mec", *itertools.takewhile(lambda a: a in {*COMMANDS, *TASKS}, arguments)]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 after one line about a mistake of the user, 130 after Ctrl-C."""
    try:
        with logging_to_console(), warnings.catch_warnings():
            arguments = sys.argv[1:] if arguments is None else arguments
            run, options = parse(arguments)
            from mec.data.decode import ignore_warnings_of_decoders

            ignore_warnings_of_decoders()
            with _lines_in_log_files(arguments):
                output = run(**options)
        if isinstance(output, str | Path):
            from mec.distributed import is_rank_zero

            if is_rank_zero():
                print(output)
    except InputError as error:
        from mec.distributed import is_rank_zero

        # an error in a loader process carries its traceback; the last line is the message
        if is_rank_zero() or not error.on_all_ranks:
            print(f"mec: {str(error).splitlines()[-1].removeprefix('mec.errors.InputError: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mec: interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> NoReturn:
    """Run ``main`` and end the process. A bug prints its traceback and exits with 1.

    C exit handlers are skipped: those of oneDNN in PyTorch 2.15 crash after some batch sizes, so that a successful run
    would end with a segmentation fault.
    """
    exit_preempted_at_sigterm(sys.argv[1:])
    try:
        status = main()
    except SystemExit as end:  # from --help and the parser
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
