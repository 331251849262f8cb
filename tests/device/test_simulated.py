"""The simulated device: its latency model, its noise, and the mark on its results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_farm import DeviceLost, ModelError, Throttled, Workload
from device_farm.connectors.simulated import SimulatedConnector
from device_farm.testing import ConnectorConformance
from device_farm.timing.control import control_workload

EXACT = {"noise_percent": 0, "overhead_ms": 1.0, "gmacs_per_s": 0.001, "node_us": 500}


class TestConformance(ConnectorConformance):
    @pytest.fixture
    def connector(self) -> Iterator[SimulatedConnector]:
        connector = SimulatedConnector("board", {})
        yield connector
        connector.close()


def conv_and_gemm() -> Workload:
    """16 to 32 channels, 3 x 3 in 4 groups, 8 x 8 out; then a Gemm of 2 x 3 by 3 x 5."""
    shapes = {"x": [1, 16, 8, 8], "y": [1, 32, 8, 8], "a": [2, 3], "c": [2, 5]}
    x, y, a, c = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    weights = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in {"w": (32, 4, 3, 3), "b": (3, 5)}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1] * 4),
        helper.make_node("Gemm", ["a", "b"], ["c"]),
    ]
    graph = helper.make_graph(nodes, "g", [x, a], [y, c], weights)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return Workload.from_onnx(model.SerializeToString())


def test_latency_is_the_stated_model() -> None:
    macs = 32 * 8 * 8 * 4 * 9 + 2 * 5 * 3
    connector = SimulatedConnector("board", EXACT)
    measurement = connector.measure(connector.prepare(conv_and_gemm()), connector.settings)
    assert measurement.median_ms == pytest.approx(1.0 + macs / 1000 + 2 * 0.5)
    twice = SimulatedConnector("board", {**EXACT, "speed": 2})
    faster = twice.measure(twice.prepare(conv_and_gemm()), twice.settings)
    assert faster.median_ms == pytest.approx(measurement.median_ms / 2)
    assert faster.settings == measurement.settings
    digest = conv_and_gemm().digest
    assert measurement.peak_memory_mb == len(conv_and_gemm().model) / 1e6
    fixed = SimulatedConnector("board", {**EXACT, "table_ms": {digest: 7.0}})
    assert fixed.measure(fixed.prepare(conv_and_gemm()), fixed.settings).median_ms == 7.0


def test_open_sizes_are_those_given() -> None:
    proto = onnx.load_model_from_string(conv_and_gemm().model)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for dimension in value.type.tensor_type.shape.dim[2:]:
            dimension.dim_param = "side"
    model, connector = proto.SerializeToString(), SimulatedConnector("board", EXACT)
    same, twice = (
        connector.prepare(Workload.from_onnx(model, {"x": (1, 16, side, side)})).latency_ms
        for side in (8, 16)
    )
    assert same == connector.prepare(conv_and_gemm()).latency_ms
    assert twice - same == pytest.approx(3 * 32 * 8 * 8 * 4 * 9 / 1000)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("operator", ["cycle", "MaxPool", "Unheard"])
def test_what_onnx_runtime_refuses_is_not_measured(operator: str, known: bool) -> None:
    """A cycle, a pool without its size and an unknown operator, also where a table has them."""
    proto = onnx.load_model_from_string(conv_and_gemm().model)
    if operator == "cycle":
        first, second = (helper.make_node("Add", ["y", n], [m]) for n, m in ("mn", "nm"))
    else:
        first, second = helper.make_node(operator, ["y"], ["m"]), helper.make_node("Abs", "m", "n")
    proto.graph.node.extend([first, second])
    workload = Workload.from_onnx(proto.SerializeToString())
    table = {"table_ms": {workload.digest: 7.0}} if known else {}
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model"):
        SimulatedConnector("board", {**EXACT, **table}).prepare(workload)


def test_what_a_constant_leaves_out_is_not_asked_for() -> None:
    """A branch that no device reaches has an operator of which the runtime has no such form."""
    there = [helper.make_node("Abs", ["y"], ["one"])]
    double, single = ({"to": kind} for kind in (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT))
    lacking = [
        helper.make_node("Cast", ["y"], ["wide"], **double),
        helper.make_node("Erf", ["wide"], ["found"]),
        helper.make_node("Cast", ["found"], ["other"], **single),
    ]
    then, other = (
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, None)])
        for name, nodes in (("one", there), ("other", lacking))
    )
    proto = onnx.load_model_from_string(conv_and_gemm().model)
    proto.graph.initializer.append(helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True]))
    branches = {"then_branch": then, "else_branch": other}
    proto.graph.node.append(helper.make_node("If", ["true"], ["z"], **branches))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", 1, None))
    SimulatedConnector("board", EXACT).prepare(Workload.from_onnx(proto.SerializeToString()))


def test_macs_that_cannot_be_known_are_refused() -> None:
    proto = onnx.load_model_from_string(conv_and_gemm().model)
    proto.graph.node[0].input[0] = "z"
    proto.graph.node.insert(0, helper.make_node("Unknown", ["x"], ["z"], domain="com.acme"))
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(ModelError, match="shapes of its Conv, but that of 'y'"):
        SimulatedConnector("board", {}).prepare(Workload.from_onnx(proto.SerializeToString()))


def test_results_are_marked() -> None:
    connector = SimulatedConnector("board", {"model": "phone"})
    measurement = connector.measure(connector.prepare(control_workload()), connector.settings)
    assert measurement.simulated
    assert measurement.device == connector.probe().model == "phone (simulated)"


def test_seeded_noise_repeats() -> None:
    def figure(device: str, seed: int) -> float:
        connector = SimulatedConnector(device, {"seed": seed, "noise_percent": 5})
        handle = connector.prepare(control_workload())
        return connector.measure(handle, connector.settings).median_ms

    assert figure("a", 1) == figure("a", 1)
    assert len({figure("a", 1), figure("a", 2), figure("b", 1)}) == 3


def test_interleaving_takes_the_drift_out() -> None:
    """A swing of 40% in all, whose period is longer than a block of runs."""
    settings = {"noise_percent": 0, "drift_percent": 20, "drift_period_s": 1.0}
    connector = SimulatedConnector("board", settings)
    handle = connector.prepare(conv_and_gemm())
    true_ms = handle.latency_ms
    baseline = connector.prepare(control_workload()).latency_ms
    interleaved = connector.settings.model_copy(update={"interleave": True})
    figures = [connector.measure(handle, interleaved, baseline).median_ms for _ in range(5)]
    assert figures == pytest.approx([true_ms] * 5, rel=0.05)
    plain = [connector.measure(handle, connector.settings).median_ms for _ in range(10)]
    assert max(plain) / min(plain) > 1.1


def test_faults_come_as_told() -> None:
    connector = SimulatedConnector("board", {"faults_at": {1: "Throttled"}})
    handle = connector.prepare(control_workload())
    connector.measure(handle, connector.settings)
    with pytest.raises(Throttled, match="simulates"):
        connector.measure(handle, connector.settings)
    connector.measure(handle, connector.settings)
    always = SimulatedConnector("board", {"faults": {"DeviceLost": 1.0}})
    with pytest.raises(DeviceLost, match="simulates"):
        always.measure(handle, always.settings)
