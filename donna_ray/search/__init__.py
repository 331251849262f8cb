"""Phase 2 of the method: an evolutionary search on predicted accuracy and measured latency."""

from donna_ray.search.scenario import search_step

__all__ = ["search_step"]
