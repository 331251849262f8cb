"""The version of this distribution, which has `device_farm` and `donna_ray`."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
"""An installation without metadata, such as a copied folder, has it too."""
