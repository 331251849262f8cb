"""Phase 2 of the method: the front of predicted accuracy and measured latency."""

from donna_ray.search.step import search_step

__all__ = ["search_step"]
