import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mec.errors import InputError
from mec.models import save_encoder, untrained
from mec.models.export.export import export
from tests.models.perturbed import NARROW, perturbed_encoder

NASTY = "a|b `c` <script>\n# *d* [e](f) é"
RECIPE = {
    "backbone": "resnet18",
    "image_size": 96,
    "epochs": 20,
    "batch_size": 64,
    "seed": 3,
    "objective": {"form": "pooled", "distortion": 0.03125, "order": None},
    "optimizer": {"name": "adamw", "lr": 0.002},
    "background": "``` # not: [the end",
}
ENVIRONMENT = {
    "data": "/home/jane doe/photos",
    "images": 12345,
    "python": "3.11.2",
    "platform": "Linux-6.1",
    "cpu_cores": 8,
    "gpus": ["Accelerator X"],
    "world_size": 1,
    "precision": "32-true",
    "started": "2026-01-02T03:04:05+00:00",
    "packages": {"mec-ssl": "0.1.0", "torch": "2.11.0"},
}
RESULTS = [
    {
        "task": "few-label",
        "protocol": "nearest class mean, top-1 %",
        "data": "/home/jane doe/pets (900 train, 100 test, 3 classes)",
        "encoder": "/home/jane doe/run",
        "figures": {
            "encoder": {"1 per class": 0.8125, "1 per class std": 0.0312},
            "untrained": {"1 per class": 0.4, "1 per class std": 0.05},
            "raw pixels": {"1 per class": 0.3, "1 per class std": 0.01},
        },
        "seconds": 3.0,
        "command": "mec evaluate few-label /home/jane",
        "time": "2026-01-02T04:00:00+00:00",
    },
    {
        "task": "knn",
        "protocol": NASTY,
        "data": NASTY,
        "encoder": "run",
        "figures": {"encoder": {"k=20": 0.9, "k=20 top-5": 0.99, "k=50": 0.8}, "raw pixels": {"k=20": 0.5}},
        "seconds": 1.0,
        "command": "mec",
        "time": "2026-01-02T05:00:00+00:00",
    },
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_encoder(perturbed_encoder("resnet18", 96, options=NARROW), folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.csv").write_text("step,loss,seconds\n10,-1.0,12.5\n20,-2.0,321.5\n")
    (folder / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in RESULTS))
    return folder


def card_of(source, out: Path, **settings) -> ModelCard:
    return ModelCard.load(export(source, "huggingface", out, **settings) / "README.md")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_card_tells_the_run(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "photographs", license="Apache-2.0")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "maximum-entropy-coding" in card.data.tags
    text = card.text
    assert "# photographs\n" in text
    for row in (
        "| data | photos |",
        "| images | 12,345 |",
        "| epochs | 20 |",
        "| objective.order | null |",
        "| optimizer.learning\\_rate | 0.002 |",
        "| devices | Accelerator X |",
        "| seconds | 321.5 |",
        "| packages | python 3.11.2, mec-ssl 0.1.0, torch 2.11.0 |",
        "| features | 1 per class |\n| --- | ---: |\n| encoder | 81.2 ± 3.1 |\n| untrained | 40.0 ± 5.0 |\n| raw",
    ):
        assert row in text
    assert "few-label: pets (900 train, 100 test, 3 classes)" in text
    assert "liu2022mec" in text
    assert "apache-2.0" in text
    assert "few-label, knn" in text.split("## Limits")[1]
    # the whole recipe can be read back, whatever it holds
    fence, body = re.search(r"\n(`{4,})yaml\n(.*?)\n\1\n", text, re.DOTALL).groups()
    assert yaml.safe_load(body) == RECIPE
    assert fence == "````"
    assert "/home" not in text
    assert "jane" not in text


def test_words_of_the_run_are_words_and_not_markup(run: Path, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "e").text
    escaped = "a\\|b \\`c\\` \\<script\\> \\# \\*d\\* \\[e\\](f) é"
    assert f"### knn: {escaped}\n" in text
    assert f"\n{escaped}; measured: run" in text
    rows = (
        "| features | k=20 | k=50 |",
        "| --- | ---: | ---: |",
        "| encoder | 90.0 / 99.0 | 80.0 |",
        "| raw pixels | 50.0 | - |",
    )
    assert "\n".join(rows) in text


def test_the_code_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = perturbed_encoder("resnet18", 32, 2, options=NARROW)
    for source, name, blocks in ((run, "a b", 2), (small, "small", 1)):
        card = card_of(source, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        found = python_blocks(card.text)
        assert len(found) == blocks
        for block in found:
            names: dict = {}
            exec(compile(block, "card", "exec"), names)
            assert names["features"].shape == (2, 16)
        assert card.data.library_name == ("timm" if blocks == 2 else "mec-ssl")


def test_without_a_run_only_what_is_known_is_told(tmp_path: Path) -> None:
    encoder = perturbed_encoder("resnet18", 96, 1, options=NARROW, value_range=(0, 4095))
    card = card_of(encoder, tmp_path / "a")
    assert card.data.license == "unknown"
    assert "No license was chosen" in card.text
    assert "How it was trained is not recorded." in card.text
    assert "Nothing was measured" in card.text
    assert "0 is 0 and 4095 is 1" in card.text
    assert "1 channel." in card.text
    assert "## Training" not in card.text
    encoder.origin = "DINO's teacher of /home/jane/dino.pth"
    assert "Its origin: DINO's teacher of dino.pth." in card_of(encoder, tmp_path / "b").text
    assert "**It is untrained**" in card_of(untrained(encoder), tmp_path / "c").text


def test_a_run_that_is_not_measured_says_so(run: Path, tmp_path: Path) -> None:
    for name in ("results.jsonl", "metrics.csv", "environment.json"):
        (run / name).unlink()
    text = card_of(run / "encoder.safetensors", tmp_path / "e").text
    assert "Nothing was measured with this encoder." in text
    assert "| epochs | 20 |" in text


def test_a_set_of_the_hub_is_linked(run: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT | {"data": "hf:owner/flowers"}))
    assert card_of(run, tmp_path / "e").data.datasets == ["owner/flowers"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", "a: [b"),
        ("recipe.yaml", "words"),
        ("environment.json", "{"),
        ("results.jsonl", '{"task": "knn"'),
        ("results.jsonl", '{"task": "knn", "figures": {}}'),
        ("results.jsonl", "[1]"),
    ],
)
def test_damaged_files_of_the_run_are_named(run: Path, tmp_path: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(InputError, match=rf"encoder: .*{name}") as caught:
        card_of(run, tmp_path / "e")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e").exists()
