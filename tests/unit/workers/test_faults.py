"""What may pass is told from what never does, and a worker that hangs from one that works."""

from __future__ import annotations

import errno
from itertools import count

import pytest

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.workers import faults
from donna_ray.workers.faults import STALLED_S, Pulse, may_pass

ECC = "CUDA error: uncorrectable ECC error encountered"


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (RuntimeError(ECC), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. Words"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False),
        (RuntimeError("CUDA error: no kernel image is available for execution"), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (raised_from(ValueError("a batch is missing"), RuntimeError(ECC)), True),
        (raised_from(DonnaError("The store must answer."), OSError(errno.EIO, "")), False),
        (raised_from(RuntimeError(ECC), ConfigError("A rule.")), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError(ECC), False),
        (MemoryError(), False),
    ],
)
def test_faults_of_the_machine_may_pass(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes


def test_only_a_worker_that_does_not_move_has_stopped() -> None:
    now, batches = [0.0], [0]
    pulse = Pulse(lambda: batches[0], lambda: now[0])
    for _ in range(5):
        now[0] += STALLED_S
        batches[0] += 1
        assert not pulse.has_stopped()
    now[0] += STALLED_S
    assert not pulse.has_stopped()
    now[0] += 1
    assert pulse.has_stopped()
    pulse.begin()  # another unit
    assert not pulse.has_stopped()


def test_limit_is_read_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(lambda: 0, map(float, count()).__next__)
    assert not pulse.has_stopped()
    monkeypatch.setattr(faults, "STALLED_S", 0.5)
    assert pulse.has_stopped()
