"""Tests leave the user's cache alone, and never find in it what they are to compute."""

from __future__ import annotations

import os
import tempfile

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="donna-ray-cache-")
