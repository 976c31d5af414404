"""The engine's settings, asked for without waiting: `/info` alone takes 20 s where a Swarm has lost its quorum."""

from __future__ import annotations

import json
import socket
from typing import Final, cast

from appliance_agent.cdi_files import cdi_names
from appliance_agent.containers import EngineFacts
from appliance_agent.engine_json import Json, parse_facts
from appliance_agent.engine_socket import EngineError, dial
from appliance_agent.http_answer import HttpAnswer, HttpAnswerError

LIMIT_S: Final = 60.0
_RECEIVE_BYTES: Final = 65536


class EngineSettings:
    """Used by one thread: `ask`, wait until one of `sockets` can be read or for `ends_s`, `take`."""

    def __init__(self, path: str, api_version: str) -> None:
        self._path = path
        self._api_version = api_version
        self._questions: dict[str, _Question] = {}
        self._answers: dict[str, Json] = {}
        self.ends_s = 0.0

    @property
    def sockets(self) -> list[socket.socket]:
        """Of the questions that have no answer yet."""
        return [question.socket for question in self._questions.values()]

    def ask(self, now_s: float) -> None:
        self.close()
        self.ends_s = now_s + LIMIT_S
        try:
            for what in ("version", "info"):
                self._questions[what] = _Question(dial(self._path, timeout_s=0), f"/v{self._api_version}/{what}")
        except BaseException:
            self.close()
            raise

    def take(self, now_s: float) -> EngineFacts | None:
        """None while something is missing. After an EngineError nothing is asked any more."""
        try:
            self._take(now_s)
        except BaseException:
            self.close()
            raise
        if self._questions or not self._answers:
            return None
        version, info = self._answers.pop("version"), self._answers.pop("info")
        specified = () if "DiscoveredDevices" in info else cdi_names(info.get("CDISpecDirs") or ())
        return parse_facts(version, info, specified)

    def _take(self, now_s: float) -> None:
        for what, question in list(self._questions.items()):
            if (answer := question.take()) is not None:
                self._answers[what] = answer
                self._questions.pop(what).socket.close()
        if self._questions and now_s >= self.ends_s:
            missing = " and ".join(f"`docker {what}`" for what in self._questions)
            raise EngineError(f"the Docker Engine has not answered {missing} for {LIMIT_S:.0f} s")

    def close(self) -> None:
        for question in self._questions.values():
            question.socket.close()
        self._questions.clear()
        self._answers.clear()


class _Question:
    def __init__(self, sock: socket.socket, target: str) -> None:
        self.socket = sock
        self._target = target
        self._answer = HttpAnswer()
        self._body = b""
        self._is_sent = False

    def take(self) -> Json | None:
        try:
            if not self._is_sent:
                self.socket.sendall(f"GET {self._target} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                self._is_sent = True
            while not self._answer.ended:
                data = self.socket.recv(_RECEIVE_BYTES)
                self._body += self._answer.feed(data)
                if not data:
                    self._answer.close()
            return self._value()
        except BlockingIOError:
            return None
        except (OSError, HttpAnswerError, ValueError) as error:
            raise EngineError(f"asking the engine for {self._target}: {error}") from error

    def _value(self) -> Json:
        value = cast("Json", json.loads(self._body))
        if self._answer.status != 200:
            reason = str(value.get("message", "no reason given"))
            raise EngineError(f"asking the engine for {self._target}: {reason}", status=self._answer.status)
        return value
