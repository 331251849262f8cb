"""The block families that come with the package, one file each; importing registers them."""

from donna_ray.space.blocks import inverted_residual

__all__ = ["inverted_residual"]
