"""The report: one self-contained HTML page, drawn from JSON records alone. Imports no torch."""

from d2unlearn.report.html import build

__all__ = ["build"]
