"""Step 6: results.json, the truth about a run, and report.html, a view of it."""

from donna_ray.report.step import report_step

__all__ = ["report_step"]
