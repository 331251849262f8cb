"""One device of a farm, as its operator writes it down."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

__all__ = ["DeviceSpec"]


class DeviceSpec(BaseModel):
    """A device: its name, the kind of connector, and that connector's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    """How measurements ask for it; unique in the farm."""
    connector: str = Field(min_length=1)
    """One of `device_farm.connector_names()`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the connector's `settings_type` takes."""
    reserve: bool = True
    """Whether Ray reserves the CPUs or GPUs that it needs; False where its user holds them."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """What its process takes of a node besides, by Ray's names: it runs where they are."""
