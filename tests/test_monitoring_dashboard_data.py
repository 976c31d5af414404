"""A real Prometheus scrapes the whole agent on a real engine: every panel of the dashboards has something to show."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakenvml
import pytest
from agenthost import METRICS_PORT, AgentHost, build_images
from dashboard_overview import OVERVIEW
from dashboardlint import expressions, label_values
from engines import PrivateEngine, wait_until
from gpuphysics import Physics
from picture import drawn
from realprometheus import JOB, Prometheus, PrometheusUnavailableError

FOLDER = Path(__file__).parent.parent / "monitoring/grafana/dashboards"
BOARDS = ("ollama-appliance-overview", "ollama-appliance-gpu")
HOST = "gpuhost7"
VALUES = {
    "$__rate_interval": "8s",
    "$job": JOB,
    "$instance": ".+",
    "$gpu": ".+",
}  # of all variables


def board(uid: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{uid}.json").read_text())
    return loaded


def substituted(expr: str) -> str:
    for name, value in VALUES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


@dataclass(frozen=True, slots=True)
class Night:
    """What a host went through, and the Prometheus that saw it."""

    prometheus: Prometheus
    began_s: float

    def is_there(self, expr: str) -> bool:
        """Whether there is any number, and be it one that is gone again."""
        found = self.prometheus.api.between(substituted(expr), self.began_s, time.time(), 1)
        return any(math.isfinite(value) for series in found for _, value in series.points)


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fakenvml.build(tmp_path_factory.mktemp("nvml"))
    except fakenvml.GccMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def night(gpu_engine: PrivateEngine, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Users ask, a container is killed, another one hangs, a GPU reports an XID and gets warm."""
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    directory = tmp_path_factory.mktemp("night")
    host = AgentHost(gpu_engine, directory, nvml_library)
    prometheus = Prometheus(directory / "prometheus", {HOST: f"127.0.0.1:{gpu_engine.forward(METRICS_PORT)}"})
    with contextlib.ExitStack() as stack:
        stack.callback(host.close)
        stack.callback(prometheus.close)
        began_s = time.time()
        host.start()
        try:
            prometheus.start()
        except PrometheusUnavailableError as error:
            pytest.skip(str(error))
        stack.enter_context(Physics(host.graphics, lambda place: 0.95 - 0.4 * place))
        host.wait_ready()
        stack.enter_context(users(host))
        break_things(host)
        yield Night(prometheus, began_s)


@contextlib.contextmanager
def users(host: AgentHost) -> Iterator[None]:
    """One at each slot, who asks again and again, whatever comes back."""
    over = threading.Event()

    def ask(slot: int) -> None:
        while not over.wait(0.3):
            with contextlib.suppress(Exception):  # it is broken on purpose, in every way
                host.chat(slot, tokens=20, timeout_s=20)

    threads = [threading.Thread(target=ask, args=(slot,)) for slot in range(host.count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def break_things(host: AgentHost) -> None:
    before = host.ids()
    host.engine.run_cli("kill", before[0])
    host.fault(1, "hang_before_first_token")
    with host.graphics.changing() as world:
        world.xid(world.gpus[1], 43)
        world.gpus[1].uncorrected_ecc_errors = 1
        world.gpus[1].remapped_rows = (0, 1, True, False)
    host.wait(lambda: all(host.ids().get(slot, old) != old for slot, old in before.items()), "both to be replaced")
    host.wait_ready()


@pytest.mark.parametrize("uid", BOARDS)
def test_every_panel_and_every_mark_has_data(night: Night, uid: str) -> None:
    asked = [(where, expr) for where, expr in expressions(board(uid)) if not where_is_variable(uid, where)]
    empty = list(asked)

    def all_there() -> bool:
        empty[:] = [each for each in empty if not night.is_there(each[1])]
        return not empty

    with contextlib.suppress(TimeoutError):
        wait_until(all_there, timeout_s=45, what="every query to have data")

    assert [f"{where}: {substituted(expr)}" for where, expr in empty] == []


def where_is_variable(uid: str, where: str) -> bool:
    return where in {variable["name"] for variable in board(uid)["templating"]["list"]}


@pytest.mark.parametrize("uid", BOARDS)
def test_every_variable_has_values(night: Night, uid: str) -> None:
    wanted = {"job": [JOB], "instance": [HOST], "gpu": ["0", "1"]}
    queries = {each["name"]: each["query"] for each in board(uid)["templating"]["list"] if each["type"] == "query"}

    found = {}
    for name, query in queries.items():
        series, label = label_values(query)
        found[name] = night.prometheus.api.label_values(label, substituted(series))

    assert found == wanted


def test_the_table_has_one_line_for_each_gpu(night: Night) -> None:
    """What is joined has the same labels in every column."""
    table = next(panel for panel in board(BOARDS[0])["panels"] if panel["type"] == "table")

    for target in table["targets"]:
        found = night.prometheus.api.at(substituted(target["expr"]), time.time())

        assert all(dict(series.labels) == {"instance": HOST, "gpu": series.labels["gpu"]} for series in found)
        assert len({series.labels["gpu"] for series in found}) == len(found)


def test_the_picture_has_something_in_every_panel(night: Night) -> None:
    shown = list[str | None]()

    def full() -> bool:
        svg = drawn(night.prometheus.api, minutes=max((time.time() - night.began_s) / 60, 1))
        shown[:] = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        return "no data" not in shown

    with contextlib.suppress(TimeoutError):
        wait_until(full, timeout_s=45, what="what is asked of the driver every 10 s to have changed")

    assert {panel.title for panel in OVERVIEW.panels} <= set(shown)
    assert "no data" not in shown
