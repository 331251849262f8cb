"""What of the cuda connector needs no GPU."""

from __future__ import annotations

import pytest
import torch

from device_farm import DeviceError, DeviceLost
from device_farm.connectors.cuda import CudaConnector, check_architecture, parse_condition

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (13, 0)])
def test_gpus_that_the_build_has_code_for(capability: tuple[int, int]) -> None:
    check_architecture("GPU", capability, CU130)


def test_v100_is_told_which_wheel_it_needs() -> None:
    with pytest.raises(DeviceError, match=r"V100 is sm_70 .* starts at sm_75: .*whl/cu126"):
        check_architecture("Tesla V100", (7, 0), CU130)
    with pytest.raises(DeviceError, match="newer torch"):
        check_architecture("GPU", (13, 0), CU130[:-1])


def test_condition_of_a_gpu() -> None:
    well = parse_condition("580.82.07, 1980, 2619, 118.25, 41, 0x0000000000000004\n")
    assert well == {
        "driver": "580.82.07",
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "power_w": 118.25,
        "temperature_c": 41,
        "throttle_reasons": ["power cap"],
        "hot": False,
    }
    hot = parse_condition("580.82.07, 900, 2619, [N/A], 91, 0x0000000000000060\n")
    assert hot["hot"]
    assert hot["power_w"] is None
    assert len(hot["throttle_reasons"]) == 2


def test_ray_gives_a_whole_gpu() -> None:
    options = CudaConnector("gpu", {"accelerator_type": "V100"}).actor_options()
    assert options == {"num_cpus": 0, "num_gpus": 1, "accelerator_type": "V100"}


def test_two_makers_of_graphs_are_refused() -> None:
    with pytest.raises(ValueError, match="drop cuda_graph"):
        CudaConnector("gpu", {"cuda_graph": True, "compile": "max-autotune"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_a_missing_gpu_is_told_at_probe() -> None:
    assert CudaConnector.discover() == {}
    with pytest.raises(DeviceLost, match="0 that torch sees here: check nvidia-smi"):
        CudaConnector("gpu", {}).probe()
