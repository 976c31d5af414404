"""Makes a slot's container and starts it. The engine is asked to, and what it answers says how things stand."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from appliance_agent.complaints import about_start
from appliance_agent.container_json import render
from appliance_agent.device_nodes import device_nodes
from appliance_agent.docker_door import DockerDoor
from appliance_agent.engine_json import Json, labels_of, managed_by, parse_container
from appliance_agent.engine_socket import EngineError, EngineSilentError
from appliance_agent.gpus import Gpu
from appliance_agent.hands_remove import disappears
from appliance_agent.slots import Done
from appliance_agent.spec import ContainerSpec
from appliance_agent.states import Action

_START_S: Final = 120.0  # without persistence mode the driver alone takes many seconds for eight GPUs
_CREATE_S: Final = 60.0
_REMOVE_S: Final = 60.0
_TRIES: Final = 4  # names that are freed and taken while one looks


class Creation:
    def __init__(self, door: DockerDoor, spec: ContainerSpec, *, prefix: str, gpus: Sequence[Gpu]) -> None:
        self._door = door
        self._spec = spec
        self._prefix = prefix
        self._gpus = gpus

    def run(self) -> Done:
        for _ in range(_TRIES):
            try:
                made = self._create()
            except EngineError as refused:
                if refused.status != 409:
                    return self._failed(refused)
                if done := self._settle_with_holder():
                    return done
                continue
            return self._start(made)
        error = f"the name {self._spec.plan.name} is taken again and again"
        return self._done(error=error, hint="`docker events` shows by whom")

    def _create(self) -> str:
        body = render(self._spec, prefix=self._prefix, nodes=device_nodes(self._gpus))
        parameters = {"name": self._spec.plan.name}
        doing = f"making container {self._spec.plan.name}"
        answer: Json = self._door.ask(
            "POST", "/containers/create", doing=doing, body=body, within_s=_CREATE_S, parameters=parameters
        )
        return str(answer["Id"])

    def _settle_with_holder(self) -> Done | None:
        """Whoever has the name: adopted, removed so that there can be another try (None), or left alone."""
        name = self._spec.plan.name
        try:
            body: Json = self._door.get(f"/containers/{name}/json", doing=f"inspecting container {name}")
        except EngineError as error:
            if error.status == 404:
                return None  # gone already
            raise
        if not managed_by(labels_of(body), self._prefix):
            hint = f"`docker rm -f {name}`, or choose another `container.name_prefix`"
            return self._done(error=f"container {name} is there and not the agent's", hint=hint, obstacle=True)
        holder = parse_container(body)
        if holder.slot == self._spec.plan.index and holder.spec_hash == self._spec.hash:
            if holder.status in ("running", "paused"):
                return self._done(container_id=holder.id)
            if holder.status == "created":
                return self._start(holder.id)
        self._remove(holder.id)
        return None

    def _start(self, container_id: str) -> Done:
        doing = f"starting container {self._spec.plan.name}"
        try:
            self._door.ask("POST", f"/containers/{container_id}/start", doing=doing, within_s=_START_S)
        except EngineSilentError:
            raise
        except EngineError as error:
            with contextlib.suppress(EngineError):
                self._remove(container_id)
            return self._failed(error)
        return self._done(container_id=container_id)

    def _remove(self, container_id: str) -> None:
        try:
            self._door.ask(
                "DELETE",
                f"/containers/{container_id}",
                doing=f"removing container {self._spec.plan.name}",
                within_s=_REMOVE_S,
                parameters={"v": "1", "force": "1"},
            )
        except EngineError as error:
            if error.status == 404 or (error.status == 409 and disappears(self._door, container_id)):
                return  # somebody else did it
            raise

    def _failed(self, error: EngineError) -> Done:
        if error.status is None:
            return self._done(error=error.message, hint=error.hint)
        complaint = about_start(error.message, self._spec)
        done = self._done(error=complaint.message, hint=complaint.hint, obstacle=complaint.obstacle)
        return replace(done, host_wide=complaint.host_wide, release=complaint.release)

    def _done(self, *, container_id: str = "", error: str = "", hint: str = "", obstacle: bool = False) -> Done:
        return Done(
            Action.CREATE,
            self._spec.plan.index,
            ok=not error,
            error=error,
            hint=hint,
            container_id=container_id,
            obstacle=obstacle,
        )
