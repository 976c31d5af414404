"""Does what was decided at the Docker Engine: one action in the thread of the caller, with a deadline for every call.

Every action says where things should be, not how they get there: done twice, or found half done, it ends the same.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Final, assert_never

from appliance_agent.config import Config
from appliance_agent.containers import EngineSeen
from appliance_agent.docker_door import DockerDoor
from appliance_agent.engine_board import EngineBoard
from appliance_agent.engine_source import DockerSource
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.hands_create import Creation
from appliance_agent.hands_pull import QUIET_S, Pull
from appliance_agent.hands_remove import KILL_S, remove
from appliance_agent.slots import Decision, Done
from appliance_agent.states import Action
from appliance_image.errors import ApplianceError

_SEEN_S: Final = 3.0  # how long the source may take to see what was done; it takes milliseconds


class DockerHands:
    """May be called by several threads at once. `clock` is CLOCK_MONOTONIC."""

    def __init__(
        self,
        config: Config,
        source: DockerSource,
        gpus: Callable[[], GpuSnapshot],
        *,
        clock: Callable[[], float],
        kill_s: float = KILL_S,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._engine = config.engine
        self._prefix = config.container.name_prefix
        self._source = source
        self._gpus = gpus
        self._clock = clock
        self._kill_s = kill_s
        self._quiet_s = quiet_s

    def act(self, decision: Decision) -> Done:
        try:
            return self._act(decision)
        except ApplianceError as error:
            return Done(decision.action, decision.slot, ok=False, error=error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001 - the loop must hear of every end
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"a mistake in this program: {type(error).__name__}: {error} ({where.name}, line {where.lineno})"
            return Done(decision.action, decision.slot, ok=False, error=text, hint="please report it")

    def _act(self, decision: Decision) -> Done:
        match decision.action:
            case Action.CREATE:
                return self._create(decision)
            case Action.REMOVE:
                return self._remove(decision)
            case Action.PULL:
                return self._pull(decision)
            case _:
                assert_never(decision.action)

    def _create(self, decision: Decision) -> Done:
        if decision.spec is None:
            raise ValueError("a decision to create without a specification")
        gpus = [gpu for uuid in decision.spec.plan.gpus if (gpu := self._gpus().gpu(uuid))]
        with closing(self._door()) as door:
            done = Creation(door, decision.spec, prefix=self._prefix, gpus=gpus).run()
        if done.ok:
            self._wait_for_start(self._source.board, done.container_id)
        else:
            self._source.look()  # who has the name or the port, is the image there
        return done

    def _remove(self, decision: Decision) -> Done:
        id_ = decision.container_id
        with closing(self._door()) as door:
            done = remove(door, decision, clock=self._clock, kill_s=self._kill_s)
        if done.ok:
            self._source.board.wait_for(lambda seen: all(each.id != id_ for each in seen.containers), timeout_s=_SEEN_S)
        return done

    def _pull(self, decision: Decision) -> Done:
        pull = Pull(
            self._engine,
            self._source.wanted_image,
            root=self._root(),
            tell=self._source.pulling,
            clock=self._clock,
            quiet_s=self._quiet_s,
        )
        image = pull.run()
        self._source.pulled(image)
        return Done(decision.action, decision.slot, ok=True)

    def _wait_for_start(self, board: EngineBoard, container_id: str) -> None:
        def is_listed(seen: EngineSeen) -> bool:
            return any(each.id == container_id and each.status != "created" for each in seen.containers)

        board.wait_for(is_listed, timeout_s=_SEEN_S)

    def _root(self) -> str:
        facts = self._source.seen().facts
        return facts.root if facts else ""

    def _door(self) -> DockerDoor:
        return DockerDoor.open(self._engine.socket, timeout_s=self._engine.timeout_s)
