"""Observes the Docker Engine in a thread of its own: events at once, listings now and then, a ping to see it alive.

Nothing that only an event says is published: each is confirmed by a question. So an engine that is being stopped, which
takes no more questions while its containers end, is seen to be away, and not its containers to have died.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from appliance_agent.beat import beat
from appliance_agent.config import Config
from appliance_agent.containers import EngineSeen, ImageSeen, PullSeen
from appliance_agent.engine_board import EngineBoard
from appliance_agent.engine_connection import EngineConnection
from appliance_agent.engine_json import managed_by, parse_obstacles
from appliance_agent.engine_rows import EngineRows
from appliance_agent.engine_settings import EngineSettings
from appliance_agent.engine_socket import EngineAwayError, EngineError, EngineSilentError, Ping, Pong
from appliance_agent.ports import Wake
from appliance_agent.spec import SlotPlan

_LIST_S: Final = 10.0
_LIST_ALL_S: Final = 30.0
_GIVEN_WAY_S: Final = 0.5  # an end is told before the listing shows it
_IMAGE_S: Final = 60.0  # while it is not there
_SETTINGS_S: Final = 10.0  # after no answer
_PING_S: Final = 5.0
_AGAIN_S: Final = 0.3  # an engine that is away
_PATIENCE_S: Final = 1.0  # a ping gets at least so long
_CLOSE_S: Final = 15.0
_NEVER: Final = float("inf")


class DockerSource:
    """Call `start`, and `close` in the end; everything public may be called from any thread."""

    def __init__(self, config: Config, wake: Wake, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = EngineBoard(wake)
        self._path = config.engine.socket
        self._timeout_s = config.engine.timeout_s
        self._prefix = config.container.name_prefix
        self._address = config.address
        self._clock = clock
        self._plans: tuple[SlotPlan, ...] = ()
        self._wanted = ""
        self._closing = False
        self._kicked = False
        self._kick = -1  # a descriptor that ends the thread's waiting
        self._thread = threading.Thread(target=self._run, name="engine-source", daemon=True)
        # What only the thread touches:
        self._ping = Ping(self._path)
        self._asked_s = 0.0
        self._answered_s = clock()
        self._hurry = False  # it did not answer another question
        self._connection: EngineConnection | None = None
        self._life: EngineConnection | None = None  # the last that was published
        self._rows = EngineRows()
        self._news: dict[str, None] = {}  # containers to inspect, in order
        self._due = dict.fromkeys(("ping", "list", "all", "image", "facts"), 0.0)

    def start(self) -> DockerSource:
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()
        return self

    def seen(self) -> EngineSeen:
        return self.board.seen

    def want_image(self, reference: str) -> None:
        self._wanted = reference
        self.look()

    @property
    def wanted_image(self) -> str:
        return self._wanted

    def expect(self, plans: tuple[SlotPlan, ...]) -> None:
        if plans != self._plans:
            self._plans = plans
            self.look()

    def configure(self, config: Config) -> None:
        """What may change while it runs: the address that ports are published at."""
        if config.address != self._address:
            self._address = config.address
            self.look()

    def look(self) -> None:
        """At everything, now: the containers of all, the image, the engine's settings."""
        self._kicked = True
        if self._kick >= 0:
            os.eventfd_write(self._kick, 1)

    def pulling(self, pull: PullSeen) -> None:
        self.board.publish(pull=pull)

    def pulled(self, image: ImageSeen) -> None:
        """A pull ended well, and this is what the name means now."""
        self.board.publish(image=image, pull=None)

    def close(self) -> None:
        self._closing = True
        if self._kick < 0:
            return
        self.look()
        self._thread.join(timeout=self._timeout_s + _CLOSE_S)
        if not self._thread.is_alive():
            kick, self._kick = self._kick, -1
            os.close(kick)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._round()
                self._sleep()
        finally:
            self._ping.close()
            self._disconnect()

    def _round(self) -> None:
        if self._kicked:
            self._kicked = False
            self._due |= dict.fromkeys(("list", "all", "image", "facts"), 0.0)
        try:
            self._ask_whether_it_lives()
            if self._connection:
                self._take_events(self._connection)
                if self.seen().up:
                    self._inspect_news(self._connection)
                    self._look_around(self._connection)
        except EngineAwayError as error:
            self._away(error)
        except EngineSilentError:
            self._due["ping"] = min(self._due["ping"], self._clock())  # tells a frozen engine from a slow answer
        except EngineError as error:
            self.board.publish(because=error.message)

    def _ask_whether_it_lives(self) -> None:
        now_s = self._clock()
        if self._ping.socket is None and now_s >= self._due["ping"]:
            next_s = beat(now_s + min(_PING_S, self._timeout_s / 2)) if self.seen().up else now_s + _AGAIN_S
            self._due["ping"] = next_s
            if self._asked_s <= self._answered_s:  # the first question without an answer counts
                self._asked_s = now_s
            with contextlib.suppress(EngineSilentError):  # its queue is full; judged below like any silence
                self._ping.begin()
        if self._ping.socket and _readable(self._ping.socket) and (pong := self._ping.finish()):
            self._answered_s, self._hurry = self._clock(), False
            self._connect(pong)
        elif now_s >= self._silence_ends_s():
            self._mark_down(f"the Docker Engine has not answered for {now_s - self._answered_s:.0f} s")

    def _silence_ends_s(self) -> float:
        wait_s = self._asked_s + _PATIENCE_S
        return wait_s if self._hurry else max(self._answered_s + self._timeout_s, wait_s)

    def _connect(self, pong: Pong) -> None:
        """After an answer. If the events did not break off meanwhile, the engine has only been quiet."""
        if self._connection and self.seen().up:
            return
        if self._connection is None:
            self._connection = EngineConnection.open(
                self._path, pong, prefix=self._prefix, timeout_s=self._timeout_s / 2
            )
        connection, now_s, seen = self._connection, self._clock(), self.seen()
        another = self._life is not None and not connection.is_same_life(self._life)
        self._rows.forget()
        self._rows.take(connection, connection.ours(), now_s)
        self._life = connection
        self._due |= {"list": now_s + _LIST_S, "all": 0.0, "image": 0.0, "facts": 0.0}
        self.board.publish(
            at_s=now_s,
            up=True,
            because="",
            since_s=self._clock(),
            epoch=seen.epoch + another,
            containers=self._rows.containers,
        )

    def _take_events(self, connection: EngineConnection) -> None:
        if _readable(connection.socket):
            happened = connection.events()
            self._news |= dict.fromkeys(happened.ours)
            if happened.gave_way and self.seen().obstacles:
                self._due["all"] = min(self._due["all"], self._clock() + _GIVEN_WAY_S)

    def _inspect_news(self, connection: EngineConnection) -> None:
        while self._news:
            id_ = next(iter(self._news))
            del self._news[id_]
            try:
                self._rows.look_at(connection, id_, self._clock())
            except EngineSilentError:
                self._due["list"], self._hurry = 0.0, True
                raise
            self.board.publish(containers=self._rows.containers)

    def _look_around(self, connection: EngineConnection) -> None:
        now_s = self._clock()
        if now_s >= min(self._due["list"], self._due["all"]):
            self._list(connection, now_s, everybody=now_s >= self._due["all"])
        if self._wanted and now_s >= self._due["image"]:
            self._due["image"] = now_s + _IMAGE_S
            image = connection.image(self._wanted)
            if image.id:
                self._due["image"] = _NEVER
            self.board.publish(image=image)
        self._learn(connection.settings)

    def _learn(self, settings: EngineSettings) -> None:
        """An engine may be up for long before it tells its settings."""
        now_s = self._clock()
        try:
            if now_s >= self._due["facts"] and not settings.sockets:
                self._due["facts"] = _NEVER
                settings.ask(now_s)
            if facts := settings.take(now_s):
                self.board.publish(facts=facts)
        except EngineError:
            self._due["facts"] = now_s + _SETTINGS_S
            raise

    def _list(self, connection: EngineConnection, now_s: float, *, everybody: bool) -> None:
        self._due["list"] = beat(now_s + _LIST_S)
        obstacles = self.seen().obstacles
        if everybody:
            self._due["all"] = beat(now_s + _LIST_ALL_S)
            listing = connection.everybodys()
            obstacles = parse_obstacles(listing, self._plans, prefix=self._prefix, address=self._address)
            listing = [row for row in listing if managed_by(row.get("Labels") or {}, self._prefix)]
        else:
            listing = connection.ours()
        self._rows.take(connection, listing, now_s)
        self._answered_s = self._clock()
        self.board.publish(at_s=now_s, because="", containers=self._rows.containers, obstacles=obstacles)

    def _away(self, error: EngineAwayError) -> None:
        """Also an engine that stops: it would wait for those who listen to its events."""
        if self._connection:
            self._due["ping"] = 0.0
        self._ping.close()
        self._disconnect()
        self._answered_s, self._hurry = self._clock(), False
        self._mark_down(f"{error.message}: {error.hint}")

    def _mark_down(self, because: str) -> None:
        seen = self.seen()
        since_s = self._clock() if seen.up or not seen.since_s else seen.since_s
        self.board.publish(up=False, because=because, since_s=since_s)

    def _disconnect(self) -> None:
        self._news.clear()
        if self._connection:
            self._connection.close()
        self._connection = None

    def _sleep(self) -> None:
        poll = select.poll()
        sockets = [self._ping.socket] if self._ping.socket else []
        if self._connection:
            sockets += [self._connection.socket, *(self._connection.settings.sockets if self.seen().up else ())]
        for descriptor in (self._kick, *(each.fileno() for each in sockets)):
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, self._next_s() - self._clock()) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._kick)

    def _next_s(self) -> float:
        now_s = self._clock()
        ping_s = self._due["ping"]
        if self._ping.socket:
            ends_s = self._silence_ends_s()
            ping_s = ends_s if ends_s > now_s else now_s + _PATIENCE_S  # for how long it is silent is told anew
        if not self.seen().up or self._connection is None:
            return ping_s
        image_s = self._due["image"] if self._wanted else _NEVER
        settings = self._connection.settings
        settings_s = settings.ends_s if settings.sockets else self._due["facts"]
        return min(ping_s, self._due["list"], self._due["all"], settings_s, image_s)


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])
