"""The HTML report of one or several runs, and the figure of the demo."""

from mec.report.page import write_report

__all__ = ["write_report"]
