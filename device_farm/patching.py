"""One lock around what changes torch for all threads of a process, for a while."""

from threading import RLock

__all__ = ["PATCHING"]

PATCHING = RLock()
"""Held while torch.fx traces (it patches nn.Module) and while a module is exported."""
