"""Real engines take the fake toolkit for NVIDIA's: what is accepted, what is refused, what a container gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import BASE_VERSION, CDI_GPUS, MakeEngine
from docker.errors import APIError
from engines import EngineKind, PrivateEngine
from loadedimages import load_standin, python_inside, python_with

GPU = "GPU-11111111-2222-3333-4444-555555555555"
ASKED = (
    'import os; print(os.environ["NVIDIA_VISIBLE_DEVICES"], [n for n in sorted(os.listdir("/dev")) if "nvidia" in n])'
)


def test_an_engine_with_the_hook_accepts_a_gpu_by_its_uuid(gpu_engine: PrivateEngine, small_base: Path) -> None:
    image = load_standin(gpu_engine, small_base, version=BASE_VERSION)

    said = python_inside(gpu_engine, image, ASKED, "--gpus", f"device={GPU}")

    assert said.split()[0] == GPU
    assert gpu_engine.toolkit.hook_calls()[-1] == GPU


def test_a_gpu_that_the_host_does_not_have_is_refused_as_by_nvidia(make_engine: MakeEngine, small_base: Path) -> None:
    engine = make_engine("classic", gpu_hook=True)
    image = load_standin(engine, small_base, version=BASE_VERSION)
    engine.toolkit.limit([GPU])

    python_inside(engine, image, ASKED, "--gpus", f"device={GPU}")
    refused = python_inside(engine, image, ASKED, "--gpus", "device=GPU-gone", check=False)
    engine.toolkit.fail("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch")
    mismatch = python_inside(engine, image, ASKED, "--gpus", f"device={GPU}", check=False)

    assert "device error: GPU-gone: unknown device" in refused
    assert "driver/library version mismatch" in mismatch


@pytest.mark.parametrize("kind", ["classic", "containerd"])
def test_a_hook_that_comes_after_the_engine_is_found_at_its_next_start(
    make_engine: MakeEngine, small_base: Path, kind: EngineKind
) -> None:
    engine = make_engine(kind)
    image = load_standin(engine, small_base, version=BASE_VERSION)
    engine.toolkit.install_hook()

    before = python_inside(engine, image, ASKED, "--gpus", f"device={GPU}", check=False)
    engine.stop()
    engine.start()
    after = python_inside(engine, image, ASKED, "--gpus", f"device={GPU}")

    assert 'could not select device driver "" with capabilities: [[gpu]]' in before
    assert after.split()[0] == GPU


def test_an_engine_with_cdi_injects_the_devices_of_its_specification(
    cdi_engine: PrivateEngine, small_base: Path
) -> None:
    image = load_standin(cdi_engine, small_base, version=BASE_VERSION)

    said = python_with(cdi_engine, image, ASKED, cdi_request(CDI_GPUS[3]))
    with pytest.raises(APIError, match=r"unresolvable CDI devices nvidia.com/gpu=GPU-gone"):
        python_with(cdi_engine, image, ASKED, cdi_request("GPU-gone"))

    assert said.strip() == "void ['nvidia3', 'nvidiactl']"


def cdi_request(uuid: str) -> dict[str, object]:
    return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}"]}]}


def test_a_runtime_nvidia_starts_containers(cdi_engine: PrivateEngine, small_base: Path) -> None:
    image = load_standin(cdi_engine, small_base, version=BASE_VERSION)
    before = len(cdi_engine.toolkit.runtime_calls())

    said = python_inside(cdi_engine, image, ASKED, "--runtime=nvidia", f"--env=NVIDIA_VISIBLE_DEVICES={CDI_GPUS[0]}")

    assert said.split()[0] == CDI_GPUS[0]
    assert len(cdi_engine.toolkit.runtime_calls()) == before + 1
