"""The figure of the demo. tests/test_package.py runs the demo itself."""

from mec import demo
from mec.results import DatasetSummary
from tests.report.runs import make_result


def test_the_headline_compares_with_raw_pixels_and_the_untrained_encoder() -> None:
    rows = {name: {demo.FIRST: value} for name, value in (("encoder", 0.853), ("untrained", 0.47), ("raw pixels", 0.6))}
    headline = demo._headline(make_result(rows=rows, dataset=DatasetSummary("digits", {"test": 450, "classes": 10})))
    assert headline == (
        "One label per digit: 85 % of 450 test images are classified correctly (raw pixels 60 %, untrained 47 %)"
    )
