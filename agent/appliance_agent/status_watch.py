"""`status --watch`: the table drawn anew again and again, in place, with the last minutes of each slot, until the person leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from appliance_agent.amounts import age
from appliance_agent.status_client import Told
from appliance_agent.status_json import parse
from appliance_agent.status_table import Window, render_table
from appliance_agent.terminal_screen import Event, LeaveError, Screen, Signals
from appliance_agent.trends import Trends
from appliance_image.errors import ApplianceError

Ask = Callable[[], Told]


def watch(ask: Ask, window: Callable[[], Window], out: TextIO, *, period_s: float) -> None:
    """Returns when the person leaves; the last table stays on the screen. Raises when the first answer fails."""
    view = _View(ask, window, period_s)
    signals = Signals()
    with signals.handled():
        screen = Screen(out, signals)
        with screen.entered():
            if _follow(view, screen, signals, period_s) is Event.GONE:
                return
        if screen.in_place:
            out.write(view.shown(whole=True))
            out.flush()


def _follow(view: _View, screen: Screen, signals: Signals, period_s: float) -> Event:
    """What ended it."""
    next_s = time.monotonic()
    while True:
        screen.draw(view.shown())
        event = Event.RESIZED
        next_s = max(next_s + period_s, time.monotonic())
        while event is Event.RESIZED:
            event = screen.wait(next_s)
            if event is Event.RESIZED:
                screen.draw(view.shown())
        if event is not Event.TIME:
            return event
        try:
            with signals.breakable():
                view.look()
        except LeaveError:
            return Event.LEAVE


class _View:
    """The last answer, what the ones before it were like, and how long ago it came."""

    def __init__(self, ask: Ask, window: Callable[[], Window], period_s: float) -> None:
        """Raises what `ask` and `parse` raise."""
        self._ask = ask
        self._window = window
        self._trends = Trends(period_s=period_s)
        self._problem = ""
        self._take(ask())

    def look(self) -> None:
        try:
            self._take(self._ask())
            self._problem = ""
        except ApplianceError as error:
            self._problem = error.message

    def shown(self, *, whole: bool = False) -> str:
        """Higher than the window, if the whole of it is asked for."""
        now_s = time.monotonic()
        self._trends.go_on(now_s)
        window = self._place()
        if self._problem:
            old_s = now_s - self._answered_s + self._age_s
            window = replace(window, silence=f"this is the state of {age(old_s)} ago: {self._problem}")
        return render_table(self._status, replace(window, lines=None) if whole else window)

    def _take(self, told: Told) -> None:
        self._status = parse(told.text)
        self._age_s = told.age_s  # of the state when it came
        self._answered_s = time.monotonic()
        if not self._place().out_of_date:
            self._trends.add(self._status, self._answered_s)

    def _place(self) -> Window:
        return replace(self._window(), age_s=self._age_s, trends=self._trends)
