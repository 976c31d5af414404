"""A real Prometheus finds the agent by /sd, scrapes it and can be asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest
import snapshots
import soundhost
from authority import make_authority, make_client
from engines import wait_until
from freeport import free_port
from webclient import current
from webguard import WITH_TLS, guarded, users

from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front

CONFIGURATION = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: appliance
    http_sd_configs: [{{url: "{scheme}://127.0.0.1:{port}/sd", refresh_interval: 1s{access}}}]
    {access_again}
    relabel_configs:
      - {{source_labels: [__meta_appliance_host], target_label: host}}
"""


class Prometheus:
    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._port = port
        self.process = process

    def ask(self, query: str) -> dict[str, float]:
        """Values by the labels that tell them apart."""
        url = f"http://127.0.0.1:{self._port}/api/v1/query?query={quote(query)}"
        try:
            with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return {}
        return {" ".join(sorted(each["metric"].values())): float(each["value"][1]) for each in result}

    def says(self, query: str, true: Callable[[dict[str, float]], bool]) -> None:
        """Now or after another scrape: one that takes longer than its second leaves no value of anything."""
        wait_until(lambda: true(self.ask(query)), timeout_s=60, what=query)


@pytest.fixture(params=["plain", "guarded"])
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    """Guarded: with TLS, a certificate of the client and a password."""
    if request.param == "plain":
        made = Front(MetricsConfig("127.0.0.1", 0))
        made.open()
        made.publish(current(snapshots.bad_night()))
        yield made
        made.close()
        return
    make_authority(tmp_path)
    make_client(tmp_path)
    mutual = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
    with guarded(tmp_path / "web.yml", WITH_TLS + mutual + users(prometheus="sesame")) as made:
        made.publish(current(snapshots.bad_night()))
        yield made


def configured(port: int, directory: Path) -> str:
    if not (directory / "web.yml").exists():
        return CONFIGURATION.format(scheme="http", port=port, access="", access_again="")
    files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
    access = {
        "tls_config": {name: str(directory / file) for name, file in files.items()},
        "basic_auth": {"username": "prometheus", "password": "sesame"},
    }
    flow = json.dumps(access).strip("{}")  # JSON is YAML
    lines = "\n    ".join(f"{name}: {json.dumps(value)}" for name, value in access.items())
    return CONFIGURATION.format(scheme="https", port=port, access=f", {flow}" + "}", access_again=lines)


@pytest.fixture
def prometheus(front: Front, tmp_path: Path) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus: sudo apt-get install prometheus")
    port = free_port()
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(configured(front.port, tmp_path))
    words = [
        program, f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield Prometheus(port, process)
        process.kill()


def test_prometheus_finds_the_agent_and_sees_its_slots(front: Front, prometheus: Prometheus) -> None:
    target = f"127.0.0.1:{front.port}"

    prometheus.says("max by (host, instance) (up)", lambda said: said == {f"{target} gpuhost7": 1})
    prometheus.says('sum(appliance_backend_state{state="ready"})', lambda said: said == {"": 3})
    prometheus.says('appliance_backend_state{state="quarantined"} == 1 and on (gpu) appliance_gpu_info', bool)
    joined = 'appliance_gpu_temperature_celsius{sensor="core"} * on (gpu, uuid) group_left (name) appliance_gpu_info'
    prometheus.says(joined, lambda said: len(said) == 7)
    prometheus.says("scrape_samples_scraped > 500", bool)


def test_what_changes_between_two_scrapes_is_counted(front: Front, prometheus: Prometheus) -> None:
    wait_until(lambda: bool(prometheus.ask("up == 1")), timeout_s=60, what="a scrape that succeeded")
    front.events.canary(7, soundhost.canary())
    front.publish(replace(snapshots.bad_night(), ticks=int(time.monotonic())))

    wait_until(
        lambda: any(prometheus.ask('increase(appliance_probe_attempts_total{gpu="7"}[1m])').values()),
        timeout_s=60, what="the first increase",
    )  # fmt: skip
