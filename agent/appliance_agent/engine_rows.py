"""Our containers as last seen: each is inspected when it is new, has changed, or an event names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance_agent.containers import ContainerSeen
from appliance_agent.engine_connection import EngineConnection
from appliance_agent.engine_json import Json, parse_row, row_name
from appliance_agent.engine_socket import EngineSilentError

_LOCKED_S: Final = 5.0  # a container that cannot be inspected is not asked for so long


@dataclass(frozen=True, slots=True)
class _Row:
    state: str
    name: str
    complete: bool  # whether it could be inspected
    container: ContainerSeen


class EngineRows:
    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._locked: dict[str, float] = {}  # until when

    @property
    def containers(self) -> tuple[ContainerSeen, ...]:
        return tuple(sorted((row.container for row in self._rows.values()), key=lambda each: (each.slot, each.id)))

    def forget(self) -> None:
        """Another life of the engine: everything is to be inspected again."""
        self._rows, self._locked = {}, {}

    def look_at(self, connection: EngineConnection, container_id: str, now_s: float) -> None:
        """Raises EngineSilentError; until the next listing it is then as it was."""
        try:
            container = connection.inspect(container_id)
        except EngineSilentError:
            self._locked[container_id] = now_s + _LOCKED_S
            raise
        if container is None:
            self._rows.pop(container_id, None)
        else:
            self._rows[container_id] = _Row(container.status, container.name, complete=True, container=container)

    def take(self, connection: EngineConnection, listing: Sequence[Json], now_s: float) -> None:
        known, self._rows = self._rows, {}
        self._locked = {id_: until_s for id_, until_s in self._locked.items() if until_s > now_s}
        for row in listing:
            if found := self._taken(connection, row, known.get(str(row["Id"]))):
                self._rows[found.container.id] = found

    def _taken(self, connection: EngineConnection, row: Json, before: _Row | None) -> _Row | None:
        id_, state, name = str(row["Id"]), str(row.get("State", "")), row_name(row)
        if before and before.complete and (before.state, before.name) == (state, name):
            return before
        if id_ not in self._locked:
            try:
                container = connection.inspect(id_)
                return _Row(state, name, complete=True, container=container) if container else None
            except EngineSilentError:
                pass
        # A start that hangs, in a hook for a dead GPU for example, holds the container's lock.
        return _Row(state, name, complete=False, container=parse_row(row, before.container if before else None))
