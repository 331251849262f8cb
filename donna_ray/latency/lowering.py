"""From a candidate to the ONNX model that a device measures, without exporting it.

Each part (stem, a block at its stage, head) is exported once; the model of a candidate is stitched
from the graphs of its parts. Latency does not depend on the weights: blocks keep initial ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import compose
from torch import nn

from donna_ray.latency.recent import RecentGraphs
from donna_ray.onnx_export import export_onnx
from donna_ray.onnx_half import half_network, half_part, with_float_ends
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, build_block, network_id, record_id, register_modules
from donna_ray.storage.artifacts import Artifact, write_atomic
from donna_ray.training.loop import seeded

__all__ = ["CandidateModel", "HalfLowering", "Lowering", "lowering_of", "stitch"]


class CandidateModel(bytes):
    """A network's serialised ONNX model.

    Attributes:
        network: id of the network.
    """

    network: str


class Lowering:
    """Builds the ONNX models of candidates. Graphs are cached in a folder, shared by processes.

    Args:
        reference: gives stem, head and the stages' shapes.
        folder: of the cached graphs.
        modules: that register the blocks' families, in whatever process it is used.
    """

    def __init__(self, reference: StagedNetwork, folder: Path, modules: Sequence[str] = ()) -> None:
        self._reference, self._folder, self._modules = reference, folder, modules
        self._graphs = RecentGraphs()

    def reference(self) -> bytes:
        """The reference itself, likewise."""
        return export_onnx(self._reference, self._reference.input_shape)

    def model(self, specs: Sequence[BlockSpec]) -> CandidateModel:
        """The candidate of these blocks as a serialised ONNX model; the same bytes each time."""
        register_modules(self._modules)
        reference, last = self._reference, len(specs)
        head_shape = reference.shapes[-1].output
        parts = [
            self._graph("stem", lambda: reference.stem, reference.input_shape, ("input", "edge0")),
            *(self._block(number, spec) for number, spec in enumerate(specs)),
            self._graph("head", lambda: reference.head, head_shape, (f"edge{last}", "output")),
        ]
        model = CandidateModel(self._whole(parts).SerializeToString(deterministic=True))
        model.network = network_id(specs)
        return model

    def _whole(self, parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
        return stitch(parts)

    def _block(self, number: int, spec: BlockSpec) -> onnx.ModelProto:
        shape = self._reference.shapes[number]

        def block() -> nn.Module:
            with seeded(0):
                return build_block(spec, shape)

        name, edges = f"stage{number}-{record_id(spec)}", (f"edge{number}", f"edge{number + 1}")
        return self._graph(name, block, shape.input, edges)

    def _graph(
        self, name: str, make: Callable[[], nn.Module], shape: Sequence[int], edges: tuple[str, str]
    ) -> onnx.ModelProto:
        def load() -> bytes:
            path = self._folder / f"{name}.graph"
            data = _kept(path)
            if data is None:
                part = exported_part(make(), shape, name.partition("-")[0], edges)
                data = part.SerializeToString(deterministic=True)
                write_atomic(path, hashlib.sha256(data).digest() + data)
            return data

        return self._graphs.get(name, load)


def _kept(path: Path) -> bytes | None:
    """A cached graph, behind its SHA-256; None where it is missing, torn or altered."""
    data = path.read_bytes() if path.exists() else b""
    size = hashlib.sha256().digest_size
    return data[size:] if hashlib.sha256(data[size:]).digest() == data[:size] else None


class HalfLowering(Lowering):
    """Like ``Lowering``, to models in half precision: each part is made one once, and kept."""

    def __init__(self, reference: StagedNetwork, folder: Path, modules: Sequence[str] = ()) -> None:
        super().__init__(reference, folder, modules)
        self._halves = RecentGraphs()

    def reference(self) -> bytes:
        """The reference itself, likewise."""
        return half_network(super().reference())

    def _whole(self, parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
        return with_float_ends(stitch(parts))

    def _graph(
        self, name: str, make: Callable[[], nn.Module], shape: Sequence[int], edges: tuple[str, str]
    ) -> onnx.ModelProto:
        def load() -> bytes:
            part = super(HalfLowering, self)._graph(name, make, shape, edges)
            return half_part(part).SerializeToString(deterministic=True)

        return self._halves.get(name, load)


def lowering_of(
    run: Run, reference: Artifact, teacher: StagedNetwork, *, half: bool = False
) -> Lowering:
    """To the models that are measured; the cached graphs, which are float, are in the run folder.

    Args:
        half: the models are in half precision.
    """
    graphs = run.root / "search" / "graphs" / reference_identity(reference)
    kind = HalfLowering if half else Lowering
    return kind(teacher, graphs, run.config.space.modules)


def exported_part(
    module: nn.Module, shape: Sequence[int], name: str, edges: tuple[str, str]
) -> onnx.ModelProto:
    """A part of a network for ``stitch``.

    Args:
        module: takes and gives one tensor.
        shape: of its input, without the batch.
        name: before the names of all that is in it.
        edges: names of its input and output.
    """
    part = onnx.load_model_from_string(export_onnx(module, shape, names=edges))
    return compose.add_prefix(part, f"{name}/", rename_inputs=False, rename_outputs=False)


def stitch(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model of parts in sequence.

    Args:
        parts: the output of each has the name of the next one's input; all other names differ.
    """
    model = onnx.ModelProto()
    model.CopyFrom(parts[0])
    for part in parts[1:]:
        model.graph.node.extend(part.graph.node)
        model.graph.initializer.extend(part.graph.initializer)
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(parts[-1].graph.output)
    return model
