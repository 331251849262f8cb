"""Linear algebra on one thread: small matrices gain nothing, and the device may be this CPU."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """While it is open, BLAS and OpenMP have one thread in this process; it takes 30 us to open.

    Only libraries that are loaded when it is called first: NumPy's and SciPy's, which its callers
    import.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1)
    return limited


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded: 4 ms
