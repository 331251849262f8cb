"""This host's CPU, in this process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from farms import model_number
from onnx import TensorProto, helper, numpy_helper

from device_farm import DeviceError, DeviceLost, ModelError, Workload
from device_farm.connectors import onnxruntime as onnxruntime_connector
from device_farm.connectors import peak_memory
from device_farm.connectors.cpu import OtherWork
from device_farm.connectors.onnx_session import reference_outputs
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from device_farm.connectors.peak_memory import peak_memory_mb
from device_farm.testing import ConnectorConformance
from device_farm.timing.control import control_workload

QUICK = {"blocks": 3, "runs_per_block": 3, "warmup_runs": 1, "precision_percent": 1000}


class TestConformance(ConnectorConformance):
    @pytest.fixture
    def connector(self) -> Iterator[OnnxRuntimeConnector]:
        connector = OnnxRuntimeConnector("cpu", {})
        yield connector
        connector.close()


def test_environment_tells_what_was_true() -> None:
    connector = OnnxRuntimeConnector("cpu", QUICK)
    usable = sorted(os.sched_getaffinity(0))
    handle = connector.prepare(control_workload())
    measurement = connector.measure(handle, connector.settings, 0.5)
    environment = measurement.environment
    assert environment["affinity"] == [usable[-1]]
    assert environment["control_baseline_ms"] == 0.5
    drift = environment["control_ms"] / 0.5 - 1
    assert environment["control_drift_percent"] == pytest.approx(100 * drift)
    assert environment["clock"] == "thread"
    slowdown = environment["wall_over_thread_time"]
    assert environment["oversubscribed"] is (slowdown > 1.05)
    assert environment["other_work_percent"] >= 0
    assert environment["before"].keys() == environment["after"].keys()
    assert sorted(os.sched_getaffinity(0)) == usable


def test_another_one_on_the_same_core_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host of so many cores that it takes nothing of them all."""
    monkeypatch.setattr(OtherWork, "percent", lambda _: 0.0)
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "blocks": 20, "runs_per_block": 20})
    handle = connector.prepare(control_workload())
    spin = f"import os; os.sched_setaffinity(0, {{{max(os.sched_getaffinity(0))}}})\nwhile True: 0"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        measurement = connector.measure(handle, connector.settings, 0.5)
        other.kill()
    assert measurement.environment["other_work_percent"] >= 25


def test_memory_is_that_of_the_model_whatever_ran_before() -> None:
    """The weights twice, for the runtime reads and repacks them; nothing of it is the process's."""
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    large, small = (
        connector.measure(connector.prepare(product(side)), connector.settings).peak_memory_mb
        for side in (2000, 1000)
    )
    assert large is not None
    assert small is not None
    assert 16 <= large <= 40
    assert 4 <= small <= 12


def test_a_model_that_cannot_run_alone_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    peak_memory._program.cache_clear()
    monkeypatch.setattr(peak_memory, "_PROGRAM", Path("/no/such/program.py"))
    with pytest.raises(DeviceError, match=r"does not \(.*(status 2|Broken pipe)"):
        peak_memory_mb(product(2), 1)
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    measurement = connector.measure(connector.prepare(product(2)), connector.settings)
    assert measurement.peak_memory_mb is None
    assert "must run the model" in measurement.environment["peak_memory_not_told"]


def test_what_a_process_of_its_own_ends_by_is_told_and_the_next_one_answers() -> None:
    broken = replace(product(2), model=b"no model")
    with pytest.raises(DeviceError, match="InvalidProtobuf"):
        peak_memory_mb(broken, 1)
    assert peak_memory_mb(product(2), 1) < 1
    peak_memory.end_program()
    assert peak_memory_mb(product(2), 1) < 1


def test_what_hangs_is_ended_and_the_next_model_has_a_program_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.py"
    program.write_text("import time\ntime.sleep(60)\n")
    peak_memory.end_program()
    with monkeypatch.context() as hanging:
        hanging.setattr(peak_memory, "_PROGRAM", program)
        hanging.setattr(peak_memory, "_LIMIT_S", 0.1)
        for _ in range(3):
            with pytest.raises(DeviceError, match=r"not within 0\.1 s"):
                peak_memory_mb(product(2), 1)
    assert peak_memory_mb(product(2), 1) < 1


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_a_model_at_which_the_runtime_crashes_is_refused(
    crashing: bytes, kernel_tells: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_tells:  # as in a sandbox without /proc/self/clear_refs
        program = tmp_path / "program.py"
        program.write_text(peak_memory._PROGRAM.read_text().replace("clear_refs", "no_such_file"))
        monkeypatch.setattr(peak_memory, "_PROGRAM", program)
    peak_memory._program.cache_clear()
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    with pytest.raises(ModelError, match=r"crashes at this one \(SIGSEGV\): export it"):
        connector.prepare(Workload.from_onnx(crashing))
    assert connector.measure(connector.prepare(control_workload()), connector.settings).n >= 9


@pytest.mark.parametrize(
    ("number", "of_model"),
    [*((each, True) for each in ("SEGV", "ABRT", "BUS", "FPE", "ILL")), ("KILL", False)],
)
def test_signals_that_end_it(
    number: str, of_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL comes from outside, as where memory runs out, and says nothing of the model."""
    program = tmp_path / "program.py"
    dies = f"lambda *_: run_alone.os.kill(run_alone.os.getpid(), run_alone.signal.SIG{number})"
    folder = str(peak_memory._PROGRAM.parent)
    program.write_text(
        f"import sys\nsys.path.append({folder!r})\nimport run_alone\n"
        f"run_alone.growth = {dies}\nrun_alone.main()\n"
    )
    monkeypatch.setattr(peak_memory, "_PROGRAM", program)
    peak_memory._program.cache_clear()
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    if of_model:
        with pytest.raises(ModelError, match=rf"\(SIG{number}\)"):
            connector.prepare(product(2))
    else:
        measurement = connector.measure(connector.prepare(product(2)), connector.settings)
        assert "signal 9" in measurement.environment["peak_memory_not_told"]
    peak_memory.end_program()


def test_a_model_runs_alone_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    answers = iter(["no room", "9000000"])

    def answer(workload: Workload, _: int) -> str:
        asked.append(workload.digest)
        return next(answers)

    monkeypatch.setattr(peak_memory, "_answer", answer)
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    for side, megabytes in ((2, None), (2, None), (3, 9)):
        handle = connector.prepare(product(side))
        assert connector.measure(handle, connector.settings).peak_memory_mb == megabytes
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["file", "allow_pickle", "arr_0", "a/b.npy"])
def test_memory_is_told_whatever_an_input_is_named(name: str) -> None:
    assert peak_memory_mb(product(2, name), 1) < 1


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_a_latency_counts_where_no_file_can_be_written(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for a full disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path if folder == "full" else tmp_path / "no"))
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if folder == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        measurement = connector.measure(connector.prepare(product(100)), connector.settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, at_limit)
    assert measurement.peak_memory_mb is None
    assert "TMPDIR" in measurement.environment["peak_memory_not_told"]


def product(side: int, name: str = "x") -> Workload:
    """A vector times a square matrix of 4 * side**2 bytes."""
    x, y = (
        helper.make_tensor_value_info(each, TensorProto.FLOAT, [1, side]) for each in (name, "y")
    )
    weight = numpy_helper.from_array(np.ones((side, side), np.float32), "w")
    node = helper.make_node("MatMul", [name, "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    opset = helper.make_opsetid("", 17)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return Workload.from_onnx(proto.SerializeToString())


def test_a_dedicated_host_is_timed_by_the_wall_clock() -> None:
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    measurement = connector.measure(connector.prepare(control_workload()), connector.settings)
    assert measurement.environment["clock"] == "wall"
    assert "control_baseline_ms" not in measurement.environment


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads_run_on_the_cores_named() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "threads": 2, "cores": [second, first]})
    assert connector.actor_options() == {"num_cpus": 2}
    before = _affinities()
    handle = connector.prepare(control_workload())
    measurement = connector.measure(handle, connector.settings, 0.5)
    assert measurement.environment["affinity"] == [second, first]
    pool = {task: cores for task, cores in _affinities().items() if task not in before}
    assert {first} in pool.values()  # a thread takes its core once it runs, after it was made


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_threads_have_a_baseline_before_anything_is_prepared() -> None:
    assert OnnxRuntimeConnector("cpu", {**QUICK, "threads": 2}).calibrate() > 0


def test_identity_depends_on_settings_and_baseline_only_on_placement() -> None:
    usual, quick, placed = (
        OnnxRuntimeConnector("cpu", settings).probe()
        for settings in ({}, QUICK, {"cores": [min(os.sched_getaffinity(0))]})
    )
    assert len({info.settings_digest for info in (usual, quick, placed)}) == 3
    assert usual.control_digest == quick.control_digest != placed.control_digest


def test_another_provider_is_named_in_what_it_measures() -> None:
    """Azure's is in every build; it takes no operator, so the CPU runs them all."""
    azure = OnnxRuntimeConnector("cpu", {**QUICK, "provider": "AzureExecutionProvider"})
    info, usual = azure.probe(), OnnxRuntimeConnector("cpu", QUICK).probe()
    assert info.model == f"{usual.model} with AzureExecutionProvider"
    assert info.control_digest != usual.control_digest
    measurement = azure.measure(azure.prepare(control_workload()), azure.settings, 0.5)
    assert measurement.device == info.model
    facts = measurement.environment
    assert facts["providers"] == ["AzureExecutionProvider", "CPUExecutionProvider"]
    assert facts["clock"] == "wall"


def test_a_provider_that_computes_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference_outputs(control_workload())
    monkeypatch.setattr(
        onnxruntime_connector,
        "reference_outputs",
        lambda _: {name: values * 1.05 for name, values in right.items()},
    )
    OnnxRuntimeConnector("cpu", QUICK).prepare(control_workload())
    azure = OnnxRuntimeConnector("cpu", {**QUICK, "provider": "AzureExecutionProvider"})
    with pytest.raises(ModelError, match=r"up to 0\.02 of its largest .* differs by 0\.0476"):
        azure.prepare(control_workload())


def test_a_sequence_is_compared_too() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
    proto = helper.make_model(
        helper.make_graph([node], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    settings = {**QUICK, "provider": "AzureExecutionProvider", "interleave": False}
    azure = OnnxRuntimeConnector("cpu", settings)
    model = azure.prepare(Workload.from_onnx(proto.SerializeToString()))
    assert azure.measure(model, azure.settings).n >= 9


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_gpus_of_nvidia_are_another_connectors(provider: str) -> None:
    with pytest.raises(ValueError, match="of the connector cuda: use that"):
        OnnxRuntimeConnector("gpu", {"provider": provider})


def test_a_provider_that_this_build_lacks_is_told() -> None:
    connector = OnnxRuntimeConnector("npu", {"provider": "RknpuExecutionProvider"})
    with pytest.raises(DeviceError, match=r"one of Azure.*but got 'RknpuExecutionProvider'"):
        connector.probe()


def test_absent_core_is_told_at_probe() -> None:
    connector = OnnxRuntimeConnector("cpu", {"cores": [4095]})
    with pytest.raises(DeviceLost, match="4095"):
        connector.probe()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": 0}, "threads: .* got 0"),
        ({"threads": 2, "cores": [0]}, "2 distinct cores"),
        ({"colour": "red"}, "colour: .*Known: .*threads"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OnnxRuntimeConnector("cpu", settings)


def test_model_that_fails_at_run_time() -> None:
    """Gathers row 1 (the made-up index is 0 or 1) of a table without rows."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, [64])
    table = helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", 2])
    picked = helper.make_tensor_value_info("picked", TensorProto.FLOAT, [64, 2])
    node = helper.make_node("Gather", ["table", "index"], ["picked"])
    graph = helper.make_graph([node], "g", [table, index], [picked])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    connector = OnnxRuntimeConnector("cpu", {**QUICK, "interleave": False})
    handle = connector.prepare(Workload.from_onnx(model.SerializeToString()))
    with pytest.raises(ModelError, match="cannot run"):
        connector.measure(handle, connector.settings)


def _affinities() -> dict[str, set[int]]:
    return {task: os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}


def greedy() -> Workload:
    """A model that is sound, but needs 4 TB."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    y.type.tensor_type.ClearField("shape")
    size = helper.make_tensor("size", TensorProto.INT64, [2], [1 << 20, 1 << 20])
    graph = helper.make_graph([helper.make_node("Expand", ["x", "size"], ["y"])], "g", [x], [y])
    graph.initializer.append(size)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return Workload.from_onnx(model.SerializeToString())


def test_want_of_memory_is_not_the_models_fault_by_itself() -> None:
    connector = OnnxRuntimeConnector("cpu", QUICK)
    with pytest.raises(DeviceError, match=r"device 'cpu' lacks memory .*: end what") as caught:
        connector.measure(connector.prepare(greedy()), connector.settings, 0.5)
    assert type(caught.value) is DeviceError
    assert connector.measure(connector.prepare(control_workload()), connector.settings, 0.5).n >= 9


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_models_loaded_before_make_room(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    connector = OnnxRuntimeConnector("cpu", QUICK)
    connector.prepare(control_workload())
    session = onnxruntime.InferenceSession

    def full(*arguments: object, **more: object) -> onnxruntime.InferenceSession:
        if connector._prepared:
            raise error
        return session(*arguments, **more)

    monkeypatch.setattr("onnxruntime.InferenceSession", full)
    assert connector.prepare(Workload.from_onnx(model_number(1)))


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.FLOAT])
def test_integers_that_were_made_up_may_be_the_cause(kind: int) -> None:
    """A table of one row has no index 1; a Reshape to (5,) of 4 values fails whatever they are."""
    ids = helper.make_tensor_value_info("ids", kind, [1, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    operator = ("Gather", ["w", "ids"]) if kind == TensorProto.INT64 else ("Reshape", ["ids", "s"])
    weights = [
        numpy_helper.from_array(np.ones((1, 4), np.float32), "w"),
        numpy_helper.from_array(np.array([5]), "s"),
    ]
    graph = helper.make_graph(
        [helper.make_node(*operator, ["y"])], "g", [ids], [result], initializer=weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match="cannot") as caught:
        reference_outputs(Workload.from_onnx(model.SerializeToString()))
    blamed = "made up for 'ids', 0 and 1, may be the cause" in str(caught.value)
    assert blamed is (kind == TensorProto.INT64)
