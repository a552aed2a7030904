"""The report of a run: one page, pictures first, and its key figures as JSON.

In:  a run directory.
Out: ``report.html`` (self-contained) and ``figures``.
Left out: measuring anything; every number here was written by the stage that measured it.
"""

from danlu.report.figures import figures, open_run, summary
from danlu.report.page import write_report

__all__ = ["figures", "open_run", "summary", "write_report"]
