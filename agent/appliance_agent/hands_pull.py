"""Fetches the image: the engine does, with the login of the agent's user; here it is watched and its end is judged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from appliance_agent.complaints import Complaint, about_pull
from appliance_agent.config import Engine
from appliance_agent.containers import ImageSeen, PullSeen
from appliance_agent.docker_door import DockerDoor, knock
from appliance_agent.engine_connection import resolve
from appliance_agent.engine_socket import EngineAwayError, EngineError, EngineSilentError, EngineStream
from appliance_agent.pull_progress import PullProgress
from appliance_agent.registry_login import registry_header
from appliance_image.errors import ApplianceError
from appliance_image.reference import ImageReference

_TELL_S: Final = 0.5
_HEAD_S: Final = 120.0  # the engine answers when the registry has
QUIET_S: Final = 30.0  # then the engine is asked whether it lives


@dataclass(frozen=True, slots=True)
class Pull:
    engine: Engine
    reference: str
    root: str  # where the engine keeps its data, for advice
    tell: Callable[[PullSeen], None]
    clock: Callable[[], float]
    quiet_s: float = QUIET_S

    def run(self) -> ImageSeen:
        """What the name means afterwards. Raises an ApplianceError that `tell` has told as well."""
        progress = PullProgress()
        try:
            name = ImageReference.parse(self.reference)
            self.tell(PullSeen(running=True, done_bytes=0, total_bytes=0))
            with closing(self._open(name)) as stream:
                progress = self._watched(stream)
            return self._found()
        except ApplianceError as error:
            self.tell(
                PullSeen(
                    running=False,
                    done_bytes=progress.done_bytes,
                    total_bytes=progress.total_bytes,
                    error=error.message,
                    hint=error.hint,
                    failed_at_s=self.clock(),
                )
            )
            raise

    def _open(self, name: ImageReference) -> EngineStream:
        login = registry_header(name.host, self.engine.docker_config)
        pong = knock(self.engine.socket, timeout_s=self.engine.timeout_s)
        try:
            return EngineStream.open(
                self.engine.socket,
                "POST",
                f"/v{pong.api_version}/images/create",
                doing=f"pulling {self.reference}",
                timeout_s=_HEAD_S,
                headers={"X-Registry-Auth": login} if login else {},
                fromImage=f"{name.host}/{name.repository}",
                tag=name.manifest,
            )
        except (EngineAwayError, EngineSilentError):
            raise
        except EngineError as error:
            raise self._refused(error.message, error.status) from error

    def _watched(self, stream: EngineStream) -> PullProgress:
        progress, told, told_s = PullProgress(), PullProgress(), self.clock()
        while not stream.ended:
            left_s = max(0.0, told_s + _TELL_S - self.clock())
            try:
                lines = stream.read(timeout_s=self.quiet_s if progress is told else left_s)
            except EngineSilentError:
                lines = []
                if progress is told:
                    knock(self.engine.socket, timeout_s=self.engine.timeout_s)  # it may work without a word
            for line in lines:
                progress = progress.after(line)
            if progress.error:
                raise self._refused(progress.error, None)
            if progress is not told and self.clock() >= told_s + _TELL_S:
                told, told_s = progress, self.clock()
                self.tell(PullSeen(running=True, done_bytes=progress.done_bytes, total_bytes=progress.total_bytes))
        return progress

    def _found(self) -> ImageSeen:
        with closing(DockerDoor.open(self.engine.socket, timeout_s=self.engine.timeout_s)) as door:
            image = resolve(door, self.reference)
        if not image.id:
            raise EngineError(f"{self.reference} was pulled and is not there")
        return image

    def _refused(self, text: str, status: int | None) -> EngineError:
        host = ImageReference.parse(self.reference).host
        said = text.removeprefix(f"pulling {self.reference}: ")
        complaint: Complaint = about_pull(said, status, reference=self.reference, host=host, root=self.root)
        return EngineError(f"pulling {self.reference}: {complaint.message}", hint=complaint.hint, status=status)
