"""Errors that a user can act on. The command line prints their text alone and exits with 2."""

__all__ = [
    "BlockError",
    "ConfigError",
    "DivergedError",
    "DonnaError",
    "MemoryLimitError",
    "MissingArtifactError",
    "RunLockedError",
]


class DonnaError(Exception):
    """What rule was broken, by which value, and what to do about it."""


class ConfigError(DonnaError):
    """A configuration that cannot be run."""


class BlockError(DonnaError):
    """What a block raises on a worker, though it runs on a CPU: of one block, not of all."""


class DivergedError(DonnaError):
    """A training whose loss or logits are no longer finite: of one network, not of all."""


class MemoryLimitError(DonnaError):
    """What does not fit a worker's memory in the smallest parts: one block or network, not all."""


class MissingArtifactError(DonnaError):
    """A step was asked for alone, and a step before it has not been run."""


class RunLockedError(DonnaError):
    """Another process works on the same run folder."""
