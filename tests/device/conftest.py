"""A real local Ray for a module, and a third party's connector installed for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from phone import Adb, Phone

from device_farm import DeviceSpec

HERE = Path(__file__).parent


@pytest.fixture(scope="module")  # the tests of other folders have a Ray of their own
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray

    site = tmp_path_factory.mktemp("site")
    distribution = site / "scripted-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Name: scripted\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[device_farm.connectors]\nscripted = scripted_connector:ScriptedConnector\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for path in (HERE.parent.parent, HERE, site):
            patch.syspath_prepend(path)
        paths = [str(site), str(HERE), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def adb(tmp_path: Path) -> Iterator[Adb]:
    if shutil.which("adb") is None:
        pytest.skip("needs Android's client: apt-get install adb")
    adb = Adb(tmp_path)
    yield adb
    adb("kill-server")


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., DeviceSpec]:
    """Makes the spec of a scripted device; all of them are in one pool."""

    def spec(name: str, *acts: str, **settings: Any) -> DeviceSpec:
        (tmp_path / f"{name}.script").write_text("\n".join(acts))
        known = {"folder": str(tmp_path), **settings}
        return DeviceSpec(name=name, connector="scripted", settings=known)

    return spec


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    phone = Phone(tmp_path / "phone").start()
    yield phone
    phone.kill()
