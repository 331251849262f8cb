"""What all sections of a configuration have in common."""

from pydantic import BaseModel

from donna_ray.config.values import STRICT

__all__ = ["Section"]


class Section(BaseModel):
    """Unknown keys are refused, values do not change, numbers are finite."""

    model_config = STRICT
