"""Debian's Prometheus as a process of its own: it scrapes agents and can be asked, and is gone with its starter."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engines import wait_until
from freeport import free_port
from picture_source import PrometheusApi

JOB = "ollama-agent"


class PrometheusUnavailableError(Exception):
    pass


@dataclass
class Prometheus:
    """`targets` are addresses by the name that their host is to have."""

    directory: Path
    targets: Mapping[str, str]
    interval_s: int = 1
    rules: Sequence[Path] = ()
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "prometheus.log"

    def start(self) -> None:
        """Raises PrometheusUnavailableError."""
        program = shutil.which("prometheus")
        if program is None:
            raise PrometheusUnavailableError("no prometheus here: sudo apt-get install prometheus")
        self.port = self.port or free_port()
        self.directory.mkdir(exist_ok=True)
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(json.dumps(self._configuration(), indent=1))  # JSON is YAML
        words = [
            *("setpriv", "--pdeathsig", "TERM", program, f"--config.file={configuration}"),
            *(f"--storage.tsdb.path={self.directory}/data", f"--web.listen-address=127.0.0.1:{self.port}"),
            "--log.level=warn",
        ]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C is for who started it, and who then ends it.
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._scrapes_or_ended, timeout_s=60, what="Prometheus to scrape the agent")
        except TimeoutError as error:
            self.close()
            raise PrometheusUnavailableError(f"{error}\n{self.log.read_text()}") from None
        if not self.running:
            raise PrometheusUnavailableError(f"Prometheus ended at once:\n{self.log.read_text()}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    # --- looks -------------------------------------------------------------------------------------------------------

    @property
    def api(self) -> PrometheusApi:
        return PrometheusApi(self.url)

    def rules_loaded(self) -> int:
        return sum(len(group["rules"]) for group in self.api.ask("rules")["groups"])

    # -----------------------------------------------------------------------------------------------------------------

    def _configuration(self) -> dict[str, object]:
        scraped = [{"targets": [address], "labels": {"instance": host}} for host, address in self.targets.items()]
        every = f"{self.interval_s}s"
        return {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(path.resolve()) for path in self.rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": scraped}],
        }

    def _scrapes_or_ended(self) -> bool:
        if not self.running:
            return True
        with contextlib.suppress(OSError):
            active = self.api.ask("targets", state="active")["activeTargets"]
            return len(active) == len(self.targets) and all(each["health"] == "up" for each in active)
        return False
