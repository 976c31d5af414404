"""The fault matrix on a real engine: everything that can go wrong at least once, on a host with four slots.

APPLIANCE_TEST_FULL=1 takes every pair of faults, which lasts hours.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agenthost import build_images
from covering import Row, pairwise
from engines import PrivateEngine
from hostordeal import HostOrdeal
from ordeal import COLUMNS

FULL = os.environ.get("APPLIANCE_TEST_FULL") == "1"
QUICK_ROWS = (
    ("exit 0+exit 137", "driver mismatch", "none", "kill", "steady"),
    ("hang at connect+stall", "lost+throttling+XID restart", "event gap", "none", "steady"),
    ("out of memory+segmentation fault", "NVML hang", "none", "standstill", "steady"),
    ("none", "library missing", "port taken", "bad file", "start"),
    ("hang before first token+never loads", "reset required+XID observe+ECC", "socket gone", "none", "steady"),
    ("garbage+on CPU", "drain and reset+XID reset", "name taken", "kill", "steady"),
    ("slow+busy 503", "reshuffle", "image missing", "none", "drain"),
    ("error 500", "one more", "frozen", "standstill", "upgrade"),
    ("dead 503+cannot be killed", "MIG", "none", "none", "steady"),
    ("none", "one fewer+XID reboot", "restart", "none", "steady"),
)


def rows() -> list[Row]:
    return pairwise(COLUMNS) if FULL else [dict(zip(COLUMNS, row, strict=True)) for row in QUICK_ROWS]


@pytest.fixture(scope="module")
def agent_engine(gpu_engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> PrivateEngine:
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    return gpu_engine


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row.values()).replace(" ", "_"))
def test_the_promises_hold_on_a_real_engine(
    row: Row, agent_engine: PrivateEngine, nvml_library: Path, tmp_path: Path
) -> None:
    HostOrdeal(row, agent_engine, tmp_path, nvml_library).run()


def test_every_fault_is_among_the_cases() -> None:
    for number, (name, words) in enumerate(COLUMNS.items()):
        found = {word for row in QUICK_ROWS for word in row[number].split("+")}

        assert found | {"none"} == set(words) | {"none"}, name
