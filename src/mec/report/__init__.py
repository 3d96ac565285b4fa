"""What run folders show: one HTML page, and the demo's image."""

from mec.report.page import write_report

__all__ = ["write_report"]
