"""The former place of `donna_ray.reference.timm_models`, until version 0.2."""

from donna_ray.reference.timm_models import create_timm_model, preprocessing_of

__all__ = ["create_timm_model", "preprocessing_of"]
