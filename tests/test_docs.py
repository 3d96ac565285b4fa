"""Every block of the README and the docs runs, or a line above it gives the reason why not.

``<!-- not run: REASON -->`` marks a block that cannot run here; the parser still checks its mec commands.
``<!-- continues -->`` marks a block of Python that continues the one before.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mec.cli.main import main, parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^\s*(```+)\s*(\w*)")
MARK = re.compile(r"<!-- (not run: .+|continues) -->$")
ARCHITECTURE = "--backbone test_resnet --backbone_options {} --small_stem false".split()
TRAINING = [
    *ARCHITECTURE,
    *"--image_size 32 --epochs 1 --batch_size 8 --workers 0 --projector.hidden_dim 16 --projector.output_dim 8".split(),
]
FAST_OPTIONS = {
    "pretrain": [*TRAINING, "--probe_every", "0", "--devices", "1", "--accelerator", "cpu"],
    "views": TRAINING,
    "finetune": ["--epochs", "1", "--trials", "1", "--workers", "0"],
}
"""Options appended to a command of the docs so that it takes seconds; the last of repeated options counts."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == opening[1])
        above = next((line for line in reversed(lines[:at]) if line.strip()), "")
        mark = MARK.search(above.strip())
        indent = len(lines[at]) - len(lines[at].lstrip())
        text = "\n".join(line[indent:] for line in lines[at + 1 : end])
        yield Block(page, at + 1, opening[2], text, mark[1] if mark else "")
        at = end + 1


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def scripts() -> list[Any]:
    """Return the Python blocks, each with those that continue it."""
    groups: list[list[Block]] = []
    for block in (b for b in BLOCKS if b.language in ("python", "py", "pycon")):
        if block.mark == "continues":
            groups[-1].append(block)
        else:
            groups.append([block])
    return [pytest.param(blocks, id=str(blocks[0])) for blocks in groups if not blocks[0].mark]


def commands(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ").splitlines()
    return [line for line in joined if shlex.split(line, comments=True)]


def arguments_of(line: str) -> list[str]:
    """Return the arguments of a command, up to a redirection or pipe of the shell."""
    words = itertools.takewhile(lambda word: word not in (">", "|", "&&"), shlex.split(line, comments=True)[1:])
    return list(words)


SHELL = [pytest.param(b, id=str(b)) for b in BLOCKS if b.language in ("sh", "bash", "shell", "console")]


def test_every_block_has_a_language_and_every_mark_a_block() -> None:
    assert not [str(b) for b in BLOCKS if not b.language]
    marks = sum(len(re.findall(r"^\s*<!-- (?:not run|continues)", p.read_text(), re.MULTILINE)) for p in PAGES)
    assert marks == sum(bool(b.mark) for b in BLOCKS)


@pytest.mark.parametrize("blocks", scripts())
def test_python_runs(blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "block"}
    for block in blocks:
        # keep the line numbers of the page in tracebacks
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 30 photographs of three classes, the same ones without classes as new/, and an encoder
    pretrained on them, as runs/photographs and runs/adapted."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for kind, color in (("ant", 60), ("bee", 130), ("cat", 190)):
        (folder / "photographs" / kind).mkdir(parents=True)
        for n in range(10):
            noise = rng.integers(-50, 50, (48, 64, 3)) + color
            file = folder / "photographs" / kind / f"{n}.jpg"
            Image.fromarray(noise.astype(np.uint8)).save(file)
            (folder / "new").mkdir(exist_ok=True)
            shutil.copy(file, folder / "new" / f"{kind}-{n}.jpg")
    out = folder / "runs" / "photographs"
    assert main(["pretrain", str(folder / "photographs"), "--out", str(out), *FAST_OPTIONS["pretrain"]]) == 0
    shutil.copytree(out, out.with_name("adapted"))
    return folder


@pytest.fixture(scope="module")
def executed() -> set[tuple[str, ...]]:
    """Return the arguments of the evaluations and exports that have run: pages repeat them, with the same encoder."""
    return set()


@pytest.mark.parametrize("block", [p for p in SHELL if not p.values[0].mark])
def test_commands_run(
    block: Block, workspace: Path, executed: set[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shutil.copytree(workspace, tmp_path / "here")
    monkeypatch.chdir(here)
    for line in commands(block):
        words = shlex.split(line, comments=True)
        assert words[0] == "mec", f"{block}: {words[0]} is not run by this test: mark the block"
        arguments = arguments_of(line)
        if tuple(arguments) in executed:
            continue
        if arguments[0] in ("evaluate", "export"):
            executed.add(tuple(arguments))
        name = arguments[1] if arguments[0] == "evaluate" else arguments[0]
        if name == "pretrain" and "--out" in arguments and "--resume" not in arguments:
            shutil.rmtree(here / arguments[arguments.index("--out") + 1], ignore_errors=True)
        if "--help" not in arguments:
            options = FAST_OPTIONS.get(name, [])
            # the encoder to start from determines the architecture
            arguments += options[len(ARCHITECTURE) :] if "--init" in arguments else options
        try:
            status = main(arguments)
        except SystemExit as end:  # from --help
            status = int(end.code or 0)
        assert status == 0, f"{block}: {line}"


@pytest.mark.parametrize("block", [p for p in SHELL if p.values[0].mark])
def test_parser_accepts_commands_that_are_not_run(block: Block) -> None:
    for line in commands(block):
        arguments = arguments_of(line)
        if shlex.split(line, comments=True)[0] == "mec" and "--help" not in arguments:
            parse(arguments)


def test_relative_links_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
