"""The HTML page: contents, size, and safety against hostile names."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from mec.errors import InputError
from mec.pretraining import Run
from mec.report import page, write_report
from mec.report.record import Missing
from mec.results import DatasetSummary
from tests.report.runs import HOSTILE_NAMES, make_contents, make_result, make_views, write_run


class ParsedPage(HTMLParser):
    """All tags with their attributes, and all text outside scripts, styles and title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open_tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open_tags and self.open_tags[-1] == tag:
            self.open_tags.pop()

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open_tags else data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def render(*runs: Path) -> ParsedPage:
    return ParsedPage(page.render_page(make_contents(*runs)).decode())


def embedded_data(html: bytes) -> Any:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html.decode())
    return json.loads(block)


def test_page_has_sections_settings_and_metrics_of_two_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", num_steps=20, finished=False, backbone="vit_tiny", epochs=4)
    parsed = render(a, b)
    assert [s["id"] for s in parsed.attributes("section")] == ["results", "features", "training", "settings"]
    assert len(parsed.attributes("h1")) == 1
    assert {tag for tag, _ in parsed.tags} >= {"main", "nav", "header", "footer", "noscript"}
    assert parsed.attributes("html")[0]["lang"] == "en"
    settings, _, run = parsed.text.partition("Settings that differ")[2].partition("\nRun\n")
    assert "vit_tiny" in settings
    assert "epochs" not in settings  # the same in both
    # the last row of the finished run is that of step 39, after 78 s, and all of its 40 steps have a row
    for text in (
        "78 s, 40 steps, epoch 4 of 4",
        "38 s, 20 steps, epoch 2 of 4",
        "not finished; last update 2",
        "torch 2.11.0",
    ):
        assert text in run
    for text in ("k=20 (%)", "91.2 / 99.0", "25.0", "temperature 0.07", "0.87", "mec evaluate knn", "feature rank"):
        assert text in parsed.text
    assert all(img.get("alt") for img in parsed.attributes("img"))
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    plots = [attributes for attributes in parsed.attributes("div") if attributes.get("class") == "plot"]
    assert plots
    assert all({plot["aria-labelledby"], plot["aria-describedby"]} <= ids for plot in plots)


def write_hostile_run(folder: Path) -> Path:
    """Write a run in which every text contains markup or scripts."""
    names = HOSTILE_NAMES
    folder = write_run(folder, backbone=names[0], **{names[1]: names[2]})
    environment = dict(zip(("data", "platform", "command", "started", "precision", "python"), names, strict=True))
    numbers = {"images": 640, "batch_size": 64, "gpus": [names[2]], "packages": {names[0]: names[1]}}
    (folder / "environment.json").write_text(json.dumps(environment | numbers))
    (folder / "results.jsonl").unlink()
    make_result(
        names[0],
        rows={"encoder": {names[0]: 0.5}, names[1]: {names[0]: 0.25}},
        protocol=names[1],
        dataset=DatasetSummary(names[3], {"test": 9}),
        encoder=names[4],
        command=names[2],
        skipped={names[0]: names[2]},
    ).append_to(folder)
    (folder / "probes.csv").write_text(f'epoch,step,"{names[0]}",seconds\n1,10,0.5,1\n')
    return folder


def test_the_result_comes_first_and_settings_are_folded(tmp_path: Path) -> None:
    html = page.render_page(make_contents(write_run(tmp_path / "a"))).decode()
    assert (
        html.index("Better than") < html.index('class="map"') < html.index("chart-loss") < html.index("Main settings")
    )
    (details,) = [d for d in ParsedPage(html).attributes("details") if d.get("class") == "all-settings"]
    assert "open" not in details


def test_nothing_is_green_below_raw_pixels(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    make_result(rows={"encoder": {"k=20": 0.53}, "raw pixels": {"k=20": 0.545}}).append_to(bad)
    for runs, number in (((bad,), 0), ((good,), 2), ((good, bad), 2)):
        parsed = render(*runs)
        green = [attributes for _, attributes in parsed.tags if "ok" in (attributes.get("class") or "").split()]
        assert len(green) == number  # the verdict, and the health of the training
        assert ("Not better than raw pixels" in parsed.text) == (bad in runs)
        assert ("53.0 % with the trained encoder, against 54.5 % with raw pixels" in parsed.text) == (bad in runs)


def test_everything_that_is_passed_over_is_on_the_page_and_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    (run / "results.jsonl").write_text("{\n")
    (run / "mot" / "previews").mkdir(parents=True)
    monkeypatch.setattr(page, "analyze_features", lambda *_: Missing("no features"))
    text = ParsedPage(write_report([run]).read_text()).text
    err = capsys.readouterr().err
    for note in (
        "results.jsonl: skipped 1 damaged line (1).",
        "1 cannot be read and are not shown (mot/settings.json)",
    ):
        assert note in text
        assert note in err


def test_omitted_images_are_counted(tmp_path: Path) -> None:
    (content,) = make_contents(write_run(tmp_path / "run"), size=400_000)
    images = [content.gallery[0]] * 9
    text = ParsedPage(page.render_page([replace(content, gallery=images)]).decode()).text
    assert "of 9 images are omitted" in text


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    run = write_hostile_run(tmp_path / "<img src=x onerror=alert(3)>&")
    html = page.render_page(make_contents(run, names=[*HOSTILE_NAMES, "b\udcff"]))
    assert b"b\\udcff" in html  # not UTF-8: escaped in JSON, a question mark in HTML
    parsed = ParsedPage(html.decode())
    assert [s.get("type") for s in parsed.attributes("script")] == ["application/json", "text/plain", None]
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert all((img["src"] or "").startswith("data:image/") for img in parsed.attributes("img"))
    for name in HOSTILE_NAMES:
        assert name.strip() in parsed.text
    assert embedded_data(html)["maps"]["0"]["titles"][:-1] == list(HOSTILE_NAMES)
    assert "\u2028" not in re.findall(r'id="data">(.*?)</script>', html.decode(), re.DOTALL)[0]
    assert "49" not in re.findall(r"<h1>.*?</h1>", html.decode())[0]


def test_content_security_policy_allows_only_the_scripts_of_the_page(tmp_path: Path) -> None:
    parsed = render(write_run(tmp_path / "a"))
    (policy,) = [m["content"] for m in parsed.attributes("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert rules["script-src"].count("sha256-") == 2
    assert "connect-src" not in rules
    assert not parsed.attributes("iframe")
    assert not parsed.attributes("form")
    assert [link["rel"] for link in parsed.attributes("link")] == ["icon"]


@pytest.mark.parametrize(("runs", "size"), [(1, 300_000), (30, 200_000)])
def test_page_stays_below_5_mb(tmp_path: Path, runs: int, size: int) -> None:
    name = "n" * 200
    for n in range(runs):
        write_run(tmp_path / f"{name}{n}", num_steps=600, data="d" * 5_000)
    titles = ["t" * 3_000] * (1_000 // runs)
    html = page.render_page(make_contents(*sorted(tmp_path.iterdir()), names=titles, size=size))
    assert len(html) < 5_000_000
    assert (page.OMITTED in html.decode()) == (runs > 1)
    assert len(embedded_data(html)["curves"]["chart-loss"]["data"]) == runs


def test_too_many_runs_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 100_000)
    with pytest.raises(InputError, match="runs: the tables of 1 runs"):
        page.render_page(make_contents(write_run(tmp_path / "a")))


@pytest.fixture
def analyzed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the slow parts. Lists the arguments of each call of analyze_features."""
    calls: list[Any] = []
    missing = Missing("No checkpoint <yet>.")
    monkeypatch.setattr(page, "analyze_features", lambda *arguments: (calls.append(arguments), missing)[1])
    monkeypatch.setattr(page, "embed_views", lambda *_: make_views())
    monkeypatch.setattr(page, "load_gallery", lambda _: ([], []))
    return calls


def test_report_is_written_to_the_first_run_folder(tmp_path: Path, analyzed: Sequence[Any]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    network = torch.nn.Identity()
    path = write_report([a, Run(b, network)], data="digits", images=100)
    assert path == a / "report.html"
    assert analyzed == [(a, "digits", 50, None), (b, "digits", 50, network)]
    text = ParsedPage(path.read_text()).text
    assert text.count("No checkpoint <yet>.") == 2
    assert sorted(p.name for p in a.iterdir()) == sorted([p.name for p in b.iterdir()] + ["report.html"])


def test_missing_contents_are_explained(tmp_path: Path, analyzed: Sequence[Any]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "results.jsonl").write_text(json.dumps(make_result().as_dict()) + "\n{")
    text = ParsedPage(write_report([folder], tmp_path / "r.html").read_text()).text
    for reason in ("evaluations only", "None of these folders contains a metrics.csv", "no encoder", "1 damaged line"):
        assert reason in text
    assert analyzed == []
    bare = tmp_path / "bare run"
    bare.mkdir()
    (bare / "recipe.yaml").write_text("epochs: 1\n")
    text = ParsedPage(write_report([bare]).read_text()).text
    assert "No accuracy measured yet" in text
    assert "mec evaluate" not in text  # neither images nor an encoder
    assert "No step has been written" in text


def test_invalid_arguments_are_errors(tmp_path: Path, analyzed: Sequence[Any]) -> None:
    run = write_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    for out in ("", "report", "r.pdf", "file/r.html"):
        with pytest.raises(InputError, match="out: "):
            write_report([run], tmp_path / out)
    with pytest.raises(InputError, match="images: "):
        write_report([run], images=0)
