"""Step 4 of the method: the front of predicted accuracy and measured latency.

``step.search_step`` runs it; ``ask_tell.Search`` is one search without Ray, ``tuner`` puts Ray Tune
around it.
"""
