"""The wheel, in an environment where nothing of this checkout can be reached; and what says its version."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import mec

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 180.0


def run(*command: object, cwd: Path) -> str:
    # a user's PYTHONPATH would bring back what the environment is empty of
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["OMP_NUM_THREADS"] = "1"  # other tests use the other cores
    ended = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``python -m build`` builds it, but with the hatchling that is here: tests have no network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel, and the libraries it depends on by way of a path, for they take gigabytes."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    interpreter = folder / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return interpreter


def test_the_wheel_has_recipes_templates_and_types_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    source = {
        p.relative_to(ROOT / "src").as_posix()
        for p in (ROOT / "src" / "mec").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {n for n in names if n.startswith("mec/")} == source
    assert {Path(n).suffix for n in source} >= {".py", ".yaml", ".jinja", ".typed"}
    assert all(n.startswith("mec/") or ".dist-info/" in n for n in names)


def test_it_works_where_nothing_else_is(python: Path, tmp_path: Path) -> None:
    where = run(python, "-c", "import mec; print(mec.__file__)", cwd=tmp_path)
    assert where.startswith(str(python.parents[1]))
    command = python.with_name("mec")
    assert run(command, "--version", cwd=tmp_path).strip() == f"mec {mec.__version__}"
    run(command, "demo", "--out", "demo", "--epochs", "1", cwd=tmp_path)
    assert (tmp_path / "demo" / "encoder.safetensors").exists()
    run(command, "report", "demo", "--out", "report.html", cwd=tmp_path)
    assert 10_000 < (tmp_path / "report.html").stat().st_size < 5_000_000


def test_one_version_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version("mec-ssl") == mec.__version__ == cited["version"]
    assert re.search(rf"^## {re.escape(mec.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_citation_has_what_its_format_requires() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["preferred-citation"]["title"] == "Self-Supervised Learning via Maximum Entropy Coding"


def test_the_workflow_and_the_container_do_what_the_readme_says() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    docker = (ROOT / "Dockerfile").read_text()
    assert "RUN make demo" in docker
    assert "--entrypoint make mec test" in docker
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text())
