"""Phase 2 of the method: the front of predicted accuracy and measured latency."""
