"""Cards that get busy, warm and thirsty when there is work: what a world of `fakenvml` says moves with the load."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Self

from agentgraphics import Graphics
from fakenvml import FakeGpu

_STEP_S = 0.5
_FOLLOWS_S, _WARMS_S = 1.5, 25.0  # until it is two thirds of the way to where it will be
_IDLE_W, _BUSY_W = 68.0, 585.0
_COOL_C, _HOT_C, _SLOWDOWN_C = 33.0, 72.0, 90
_CAPPED = 0.93  # above this load the power cap holds clocks down now and then
_IDLE_BIT, _CAP_BIT, _HEAT_BIT = 0x1, 0x4, 0x20
_PCIE_BYTES_PER_S = 60e6


class Physics:
    """`load` says how busy a card is, 0 to 1, by its place in the list; `heat` are degrees that it has too much."""

    def __init__(self, graphics: Graphics, load: Callable[[int], float]) -> None:
        self.heat: dict[int, float] = {}
        self._graphics = graphics
        self._load = load
        self._degrees: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        before_s = time.monotonic()
        while not self._over.wait(_STEP_S):
            now_s = time.monotonic()
            with self._graphics.changing() as world:
                for place, gpu in enumerate(world.gpus):
                    self._move(place, gpu, now_s - before_s, now_s)
            before_s = now_s

    def _move(self, place: int, gpu: FakeGpu, passed_s: float, now_s: float) -> None:
        ripple = 0.04 * math.sin(now_s / 3.1 + 2 * place) + 0.03 * math.sin(now_s / 1.3 + place)
        load = self._load(place)
        wanted = min(max(load * (1 + ripple), 0.0), 1.0)
        before = gpu.utilization_ratio or 0.0
        work(gpu, before + (wanted - before) * _part(passed_s, _FOLLOWS_S), passed_s)
        degrees = self._degrees.get(place, float(gpu.temperature_c or _COOL_C))
        target = _COOL_C + (_HOT_C - _COOL_C) * (gpu.utilization_ratio or 0.0) + 0.7 * place + self.heat.get(place, 0.0)
        self._degrees[place] = degrees + (target - degrees) * _part(passed_s, _WARMS_S)
        warm(gpu, self._degrees[place], passed_s)


def work(gpu: FakeGpu, load: float, passed_s: float) -> None:
    gpu.utilization_ratio = load
    gpu.memory_activity_ratio = 0.8 * load
    gpu.gpm = (0.74 * load, 0.28 * load, 0.69 * load)
    gpu.power_w = _IDLE_W + (_BUSY_W - _IDLE_W) * load
    gpu.energy_j = (gpu.energy_j or 0.0) + gpu.power_w * passed_s
    gpu.performance_state = 0 if load > 0.01 else 8
    gpu.pcie_receive_bytes = (gpu.pcie_receive_bytes or 0) + int(_PCIE_BYTES_PER_S * load * passed_s)
    gpu.pcie_transmit_bytes = (gpu.pcie_transmit_bytes or 0) + int(_PCIE_BYTES_PER_S / 3 * load * passed_s)
    gpu.pcie_generation, gpu.pcie_lanes = (5 if load > 0.01 else 1), 16
    capped = load > _CAPPED
    gpu.clock_event_reasons = _CAP_BIT if capped else 0 if load > 0.01 else _IDLE_BIT
    gpu.sm_clock_mhz = 1755 if capped else 1980 if load > 0.01 else 345
    gpu.sw_power_cap_s = (gpu.sw_power_cap_s or 0.0) + (passed_s * (load - _CAPPED) * 10 if capped else 0.0)


def warm(gpu: FakeGpu, degrees: float, passed_s: float) -> None:
    gpu.temperature_c = round(degrees)
    gpu.memory_temperature_c = round(degrees) + 9
    gpu.thermal_margin_c = _SLOWDOWN_C - round(degrees)
    if degrees >= _SLOWDOWN_C - 5:
        gpu.sw_thermal_s = (gpu.sw_thermal_s or 0.0) + passed_s * 0.6
        gpu.clock_event_reasons = (gpu.clock_event_reasons or 0) | _HEAT_BIT
        gpu.sm_clock_mhz = 1410


def _part(passed_s: float, two_thirds_s: float) -> float:
    return 1 - math.exp(-passed_s / two_thirds_s)
