"""Help without Python types, and shell completion of the same options."""

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from mec.cli.evaluate import TASKS
from mec.cli.main import COMMANDS, completion, main
from mec.pretraining import Recipe

ALL_COMMANDS = [[name] for name in COMMANDS] + [["evaluate", task] for task in TASKS]


def help_of(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_an_example_and_no_python_types(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(words, capsys, monkeypatch)
    assert text.startswith(f"usage: mec {' '.join(words)} ")
    assert f"mec {' '.join(words)} " in text[text.index("\n") :], "an example"
    for python_word in "Union Literal Optional PathLike Sequence None True False ITEM type: CONFIG".split():
        assert python_word not in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_recipe_setting_is_listed_once_in_a_named_group(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(["pretrain"], capsys, monkeypatch)
    for field in fields(Recipe):
        if field.name == "parts":  # objects in Python
            continue
        assert len(re.findall(rf"^  --{field.name}(?:\.\w+)? ", text, re.M)) >= 1, field.name
    names = re.findall(r"^  (--[\w.]+)", text, re.M)
    assert len(names) == len(set(names))
    own_group = re.search(r"^options:\n(.*?)\n\n", text, re.M | re.S)
    assert own_group is not None
    assert own_group[1].split() == "-h, --help show this help message and exit".split()
    one_line = " ".join(text.split())
    assert "--epochs N passes over the images (default: 100)" in one_line
    assert "--view_1.crop_scale X,X" in one_line
    assert "(default: [0.2,1])" in one_line
    assert "--small_stem {true,false,null}" in one_line
    assert "--devices N|auto" in one_line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "linear"], ["paper: the probe of the paper's code", "--protocol", "--head_lr X", "--max_iter N"]),
        (["evaluate", "few-shot"], ["--shots N,...", "--trials N"]),
        (["evaluate", "finetune"], ["SwAV", "swav:", "barlow:", "--label_fraction X"]),
        (["evaluate", "detect"], ["voc07+12", "--predict PREDICT", "--batch_size N", "--architecture {c4,fpn,null}"]),
        (["export"], ["--format {timm,torchvision,detectron2,onnx,huggingface,safetensors}", "--license", "--push"]),
    ],
)
def test_help_names_the_settings_of_the_function(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(help_of(words, capsys, monkeypatch).split())
    assert [part for part in expected if part not in text] == []


def test_the_bare_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    text = capsys.readouterr().out
    assert [name for name in re.findall(r"^    (\w+) ", text, re.M) if name in COMMANDS] == list(COMMANDS)


def test_default_recipe_is_chosen_for_data_after_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 is the value of --epochs; digits, whose recipe has 32 px, is the data
    text = " ".join(help_of(["pretrain", "--epochs", "3", "digits"], capsys, monkeypatch).split())
    assert re.search(r"side of a view in pixels; [^(]* \(default: 32\)", text)


COMPLETE = """
source "$1"; shift
function=$(complete -p mec | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
$function mec "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "mec"
    path.write_text(completion("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "few"], {"few-shot"}),
        (["pretrain", "photos", "--ep"], {"--epochs"}),
        (["pretrain", "photos", "--objective.form", ""], {"reduction", "pooled", "cross"}),
        (["pretrain", "ph"], {"photos"}),
        (["pretrain", "photos", "--recipe", "my"], {"my.yaml"}),
        (["evaluate", "knn", "photos", "--k"], {"--k"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "my.yaml").touch()
    command = ["bash", "-c", COMPLETE, "bash", str(script), "mec", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=20)
    assert set(done.stdout.split()) == expected, done.stderr
