"""The page in a real browser: drawn, pointed at, zoomed, on a phone, in the dark, on paper, without scripts."""

import contextlib
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mec.report.page import make_page
from mec.report.watch import Live, server_of
from tests.report import test_watch
from tests.report.folders import NASTY, metric, shown, write_metrics, write_run
from tests.report.test_page import nasty_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TITLES = ("north east.jpg", *NASTY, "last.jpg")
looks = test_watch.looks


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy run and one that is out to do harm, side by side."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "plain"), nasty_run(folder / "<img src=x onerror=alert(4)>")]
    path = folder / "report.html"
    path.write_bytes(make_page(shown(*runs, names=TITLES)))
    return path


class Trouble(list[str]):
    """What a page asked of the network, complained about, or ran although it was text."""

    def watch(self, page: Any, file: Path) -> None:
        page.on("console", lambda m: self.append(m.text))
        page.on("pageerror", lambda e: self.append(str(e)))
        page.on("dialog", lambda d: (self.append(d.message), d.dismiss()))
        page.on("request", lambda r: r.url.startswith(("data:", "blob:", file.as_uri())) or self.append(r.url))


def open_page(browser: Any, file: Path, trouble: Trouble, **options: Any) -> Any:
    page = browser.new_page(**options)
    trouble.watch(page, file)
    page.goto(file.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=30_000)
    return page


@pytest.fixture(scope="module")
def shared(browser: Any, file: Path) -> tuple[Any, Trouble]:
    trouble = Trouble()
    return open_page(browser, file, trouble), trouble


@pytest.fixture
def desk(shared: tuple[Any, Trouble]) -> Iterator[Any]:
    """One page for all that leave it as it was: opening it takes a second."""
    page, trouble = shared
    yield page
    assert trouble == []


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    trouble, pages = Trouble(), []

    def another(**options: Any) -> Any:
        pages.append(open_page(browser, file, trouble, **options))
        return pages[-1]

    yield another
    for page in pages:
        page.close()
    assert trouble == []


def until(page: Any, condition: str) -> None:
    """Playwright's own way evaluates text in the page, which the page forbids."""
    for _ in range(150):
        with contextlib.suppress(playwright.Error):  # it is being loaded anew
            if page.evaluate(condition):
                return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {condition}")


def colors(page: Any) -> list[str]:
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, document.querySelector('#chart-loss .js-line').style.stroke,"
        " document.querySelector('#chart-loss .xtick text').style.fill]"
    )


def test_everything_is_drawn(desk: Any) -> None:
    page = desk
    for section in ("run", "learning", "learned", "good"):
        assert page.locator(f"section#{section} h2").is_visible()
    charts = page.locator("section#learning .plot")
    assert charts.count() == 10  # seven of metrics.csv, two probes of the one run and one of the other
    for number in range(charts.count()):
        assert charts.nth(number).locator(".js-line").count() in (1, 2)
    assert page.locator("#map-0 .point").count() == len(TITLES)
    assert page.locator("#chart-spectrum .scatterlayer .js-line").count() == 2
    assert page.locator("#trouble").is_hidden()
    assert "radius of convergence 1" in page.locator("#chart-spectral_norm").text_content()
    assert "<img src=x onerror=alert(4)>" in page.locator(".runs").text_content()


def test_pointing_at_a_image_shows_it(desk: Any) -> None:
    page = desk
    seen: list[str] = []
    for number in range(len(TITLES)):
        point = page.locator("#map-0 .point").nth(number)
        point.scroll_into_view_if_needed()
        for _ in range(20):  # a busy machine may drop a movement
            point.hover(force=True)
            page.wait_for_timeout(200)
            if (
                page.locator("#card-0.chosen strong").count()
                and page.locator("#card-0 strong").text_content() not in seen
            ):
                break
            page.mouse.move(0, 0)
        seen.append(page.locator("#card-0 strong").text_content())
    assert {text.strip() for text in seen} == {title.strip() for title in TITLES}
    window, sprite = (page.locator(f"#card-0 {part}").bounding_box() for part in (".window", ".sprite"))
    assert sprite["width"] == pytest.approx(4 * window["width"])  # four columns of images
    assert page.locator("#card-0 .sprite").is_visible()
    assert "cluster" in page.locator("#card-0 figcaption").text_content()


def test_map_by_keyboard(desk: Any) -> None:
    page = desk
    page.evaluate("delete document.getElementById('map-0').chosen")
    page.locator("#map-0").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#card-0 strong").text_content() == TITLES[0]  # the one farthest right
    page.keyboard.press("ArrowRight")
    assert page.locator("#card-0 strong").text_content() == TITLES[0]
    page.keyboard.press("ArrowUp")
    assert page.locator("#card-0 strong").text_content() != TITLES[0]


def test_map_by_touch(opened: Callable[..., Any]) -> None:
    page = opened(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    page.locator("#map-1 .point").first.scroll_into_view_if_needed()
    page.locator("#map-1 .point").first.tap(force=True)
    page.wait_for_selector("#card-1.chosen strong")


def test_colors_by_label_or_cluster(desk: Any) -> None:
    page = desk
    assert page.locator("#map-0 .legendtext").all_text_contents() == ["x", "y"]
    page.locator("input[data-map='0'][value=cluster]").focus()
    page.keyboard.press("Space")
    assert page.locator("#map-0 .legendtext").all_text_contents() == ["cluster 0", "cluster 1"]
    assert page.locator("#map-1 .legendtext").all_text_contents() == ["x", "y"]


def test_zooming_one_curve_zooms_all(desk: Any) -> None:
    page = desk
    page.locator("#chart-loss .nsewdrag").scroll_into_view_if_needed()
    box = page.locator("#chart-loss .nsewdrag").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, middle, steps=5)
    page.mouse.up()
    of = "id => document.getElementById(id)._fullLayout.xaxis.range"
    until(page, "document.getElementById('chart-lr')._fullLayout.xaxis.range[1] < 25")
    assert page.evaluate(of, "chart-loss") == page.evaluate(of, "chart-lr") == pytest.approx([10, 20], abs=2)
    for _ in range(20):  # on a busy machine two clicks may lie too far apart to be a double one
        page.mouse.dblclick(box["x"] + 50, middle)
        page.wait_for_timeout(500)
        if shown_again := page.evaluate(of, "chart-lr")[1] > 35:
            break
    assert shown_again


def test_epochs_and_hidden_runs(desk: Any) -> None:
    page = desk
    last = "document.getElementById('chart-loss').data.map(t => [Math.max(...t.x), t.visible])"
    assert page.evaluate(last) == [[39, True], [39, True]]
    page.locator("input[name=across][value=epoch]").check(force=True)
    assert page.evaluate(last) == [[3.9, True], [3.9, True]]
    (button := page.locator("button[data-run='1']")).click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(last)[1][1] == "legendonly"
    assert page.locator("#chart-loss .js-line").count() == 1
    button.click()
    page.locator("input[name=across][value=step]").check(force=True)
    assert page.evaluate(last) == [[39, True], [39, True]]


def test_no_sideways_scrolling(opened: Callable[..., Any]) -> None:
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 360
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    for width in (360, 320, 768):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_timeout(400)  # charts follow after a tenth of a second
        assert page.evaluate(wide) <= width


def test_dark_and_back(opened: Callable[..., Any]) -> None:
    page = opened(color_scheme="dark")
    dark = colors(page)
    assert dark[0] == "rgb(20, 23, 27)"
    page.emulate_media(color_scheme="light")
    until(page, "getComputedStyle(document.body).backgroundColor == 'rgb(251, 251, 249)'")
    page.wait_for_timeout(100)
    assert all(a != b for a, b in zip(dark, colors(page), strict=True))


def test_on_paper(opened: Callable[..., Any]) -> None:
    page = opened(color_scheme="dark")
    page.set_viewport_size({"width": 720, "height": 1000})
    page.emulate_media(media="print")
    until(page, "document.querySelector('.recipe').open")
    page.wait_for_timeout(200)
    assert colors(page)[0] == "rgb(251, 251, 249)"
    assert page.locator("nav").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    fits = "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg').clientWidth <= p.clientWidth)"
    assert page.evaluate(fits)
    page.emulate_media(media="screen")
    until(page, "!document.querySelector('.recipe').open")


def test_without_scripts(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("noscript").is_visible()
    assert page.locator("table.facts").first.is_visible()
    assert page.locator("table.figures").first.is_visible()
    assert "0.025 at 39" in page.locator("#chart-loss-summary").text_content()  # 1 / (1 + 39)
    assert page.locator("#chart-loss-summary").is_visible()
    assert page.locator(".sprite").first.is_visible()
    assert page.locator(".neighbors img").first.is_visible()
    assert page.locator(".plot").first.is_hidden()


def test_a_browser_that_cannot_inflate_says_so(browser: Any, file: Path) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert "This browser cannot draw the charts" in page.locator("#trouble").text_content()
    assert page.locator("#trouble").is_visible()
    assert page.locator("#chart-loss-summary").is_visible()
    page.close()


def test_what_is_put_into_the_page_does_not_run(browser: Any, tmp_path: Path) -> None:
    html = make_page(shown(write_run(tmp_path / "a"))).replace(b"<main>", b"<main><script>window.ran = 1</script>", 1)
    (tmp_path / "r.html").write_bytes(html)
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.evaluate("window.ran") is None
    page.close()


def test_page_follows_the_run(browser: Any, looks: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=20, ended=False)
    trouble: list[str] = []
    with server_of(Live([run], None, 10, lambda _: None), None) as server:
        served = threading.Thread(target=http.server.HTTPServer.serve_forever, args=(server, 0.05))
        served.start()
        page = browser.new_page()
        page.on("console", lambda m: trouble.append(m.text))
        page.goto(f"http://localhost:{server.server_port}/")
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        page.locator("input[name=across][value=epoch]").check(force=True)
        page.evaluate("scrollTo({top: 600, behavior: 'instant'})")
        write_metrics(run, [metric(step) for step in range(30)])
        until(page, "document.getElementById('run').textContent.includes('30 steps')")
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        assert page.evaluate("Math.max(...document.getElementById('chart-loss').data[0].x)") == 2.9
        assert page.evaluate("scrollY") == pytest.approx(600, abs=2)
        assert trouble == []
        server.shutdown()
        served.join()
        server.server_close()
        until(page, "document.getElementById('live').textContent.includes('no longer')")
        page.close()
