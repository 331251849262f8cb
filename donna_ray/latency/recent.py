"""Graphs of ONNX in memory: those that were used last, for a space has gigabytes of them."""

from collections import OrderedDict
from collections.abc import Callable

import onnx

__all__ = ["RecentGraphs"]

_MOST = 256 * 2**20  # bytes of all together, serialised; a trial of Ray Tune claims 512 MB


class RecentGraphs:
    """Graphs by name; where they are too large together, those go that were not used for longest.

    The last one is there in any case.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._graphs: OrderedDict[str, tuple[int, onnx.ModelProto]] = OrderedDict()

    def get(self, name: str, load: Callable[[], bytes]) -> onnx.ModelProto:
        """The graph of this name, not to be changed.

        Args:
            load: gives it, serialised; called where it is not there.
        """
        if name not in self._graphs:
            data = load()
            self._graphs[name] = len(data), onnx.load_model_from_string(data)
            self._bytes += len(data)
        self._graphs.move_to_end(name)
        while self._bytes > _MOST and len(self._graphs) > 1:
            _, (size, _) = self._graphs.popitem(last=False)
            self._bytes -= size
        return self._graphs[name][1]
