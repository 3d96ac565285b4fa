"""The HTML report of one or several runs."""

from mec.report.page import write_report

__all__ = ["write_report"]
