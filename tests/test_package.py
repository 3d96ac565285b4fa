"""The wheel in an environment without this checkout, and the files that state the version."""

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
    # PYTHONPATH would make this checkout importable
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["OMP_NUM_THREADS"] = "1"  # other tests use the other cores
    ended = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed hatchling: tests have no network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the wheel; its dependencies, gigabytes, are reached by a path."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    interpreter = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return interpreter


def test_wheel_holds_the_source_with_recipes_templates_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    source = {
        p.relative_to(ROOT / "src").as_posix()
        for p in (ROOT / "src" / "mec").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {n for n in names if n.startswith("mec/")} == source
    assert {Path(n).suffix for n in source} >= {".py", ".yaml", ".jinja", ".typed"}
    assert all(n.startswith("mec/") or ".dist-info/" in n for n in names)


def test_wheel_works_without_the_checkout(python: Path, tmp_path: Path) -> None:
    path, installed = run(python, "-c", "import mec; print(mec.__file__, mec.__version__)", cwd=tmp_path).split()
    assert path.startswith(str(python.parents[1]))
    assert installed == mec.__version__
    run(python.with_name("mec"), "demo", "--out", "demo", "--epochs", "1", cwd=tmp_path)
    assert (tmp_path / "demo" / "encoder.safetensors").exists()
    assert 10_000 < (tmp_path / "demo" / "report.html").stat().st_size < 5_000_000


def test_every_file_states_the_same_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version("mec-ssl") == mec.__version__ == cited["version"]
    assert re.search(rf"^## {re.escape(mec.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_citation_has_the_required_fields() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["preferred-citation"]["title"] == "Self-Supervised Learning via Maximum Entropy Coding"


def test_workflow_and_container_run_the_commands_of_the_readme() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
    docker = (ROOT / "Dockerfile").read_text()
    assert "RUN make demo" in docker
    assert "--entrypoint make mec test" in docker
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text())
