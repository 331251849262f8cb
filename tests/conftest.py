"""Tests leave the user's cache alone, and never find in it what they are to compute."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

_cache = tempfile.TemporaryDirectory(prefix="donna-ray-cache-")  # removed at the end
os.environ["XDG_CACHE_HOME"] = _cache.name
settings.register_profile("shared host", deadline=None)  # where time says nothing
settings.load_profile("shared host")
