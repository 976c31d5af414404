"""What `ollama-agent status` shows on a terminal: what runs where, since when, how fast, what was done lately and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import chain

from appliance_agent.amounts import age
from appliance_agent.states import State
from appliance_agent.status import EntryStatus, GpuStatus, SlotStatus, Status
from appliance_agent.status_columns import same, short_name, since, table, tone_of
from appliance_agent.table_rows import Block, faded, shown
from appliance_agent.terminal_text import Line, Piece, Tone, clean, line_width, render, wrap
from appliance_agent.trend_columns import TrendColumns
from appliance_agent.trends import Trends

_STALE_S = 5.0  # a tick a second: older than that, the loop hangs
_RECENT_XID_S = 3600.0
_HISTORY_INDENT = 9
_LAST_ACTION_LINES = 2  # an empty one and its own
_HEADING_LINES = 2  # an empty one before it
_NO_END = 100_000
_LOW_LINES = 16  # in a lower window there is no room for it


@dataclass(frozen=True, slots=True)
class Window:
    columns: int
    lines: int | None = None  # None: as many as it takes
    colour: bool = False
    history: int = 10  # entries
    zone: tzinfo = UTC
    age_s: float = 0.0  # of the state when it was asked for
    silence: str = ""  # why there is nothing newer, with how long
    trends: Trends | None = None  # of somebody who watches
    blocks: bool = True  # the terminal can show them

    @property
    def out_of_date(self) -> bool:
        return bool(self.silence) or self.age_s > _STALE_S


def render_table(status: Status, window: Window) -> str:
    trends = TrendColumns(window.trends, window.columns, window.blocks) if window.trends else None
    heading, rows, indent = table(status, columns=window.columns, trends=trends)
    blocks = [
        Block(row, _reasons(status, slot, window, indent), slot.state, tone_of(slot))
        for slot, row in zip(status.slots, rows, strict=True)
    ]
    height = window.lines or _NO_END
    warning = _out_of_date(window)
    room = height - len(warning) - _room_for_the_last_action(status, window)
    reasons = sum(len(block.reasons) for block in blocks)
    top = _header(status, window, room - len(rows) - _HEADING_LINES, reasons)
    body = [(), heading, *shown(blocks, room - len(top) - _HEADING_LINES)] if blocks else [(), (Piece("no slots yet"),)]
    lines = [*top, *body, *_history(status, window, height - len(warning) - len(top) - len(body))]
    if window.out_of_date:
        lines = [faded(line) for line in lines]
    return "".join(
        render(line, columns=window.columns, colour=window.colour) + "\n" for line in [*lines[:1], *warning, *lines[1:]]
    )


def _room_for_the_last_action(status: Status, window: Window) -> int:
    """Lines that nothing else may take."""
    wanted = (window.lines or 0) >= _LOW_LINES and window.history and status.history
    return _LAST_ACTION_LINES if wanted else 0


def _out_of_date(window: Window) -> list[Line]:
    if window.silence:
        return _told("", window.silence, Tone.BAD, window)
    if window.age_s > _STALE_S:
        return _told("", f"the agent's loop hangs: this is the state of {age(window.age_s)} ago", Tone.BAD, window)
    return []


def _header(status: Status, window: Window, room: int, reasons: int) -> list[Line]:
    """In a low window what is merely good to know goes before slots' reasons, and problems go last."""
    lines = [_title(status, window)]
    notes = [
        *((Tone.PLAIN, _told("", text, Tone.PLAIN, window)) for text in (_versions(status), _serves(status))),
        *((Tone.BAD, _told("problem: ", text, Tone.BAD, window)) for text in _problems(status)),
        *((Tone.CARE, _told("", text, Tone.CARE, window)) for text in _news(status)),
    ]
    for tone in (Tone.PLAIN, Tone.CARE, Tone.BAD):
        for note in reversed([note for note in notes if note[0] is tone]):
            used = len(lines) + sum(len(told) for _, told in notes)
            if used > room - (reasons if tone is Tone.PLAIN else 0):
                notes.remove(note)
    return [*lines, *chain.from_iterable(told for _, told in notes)]


def _title(status: Status, window: Window) -> Line:
    host, slots = status.host, len(status.slots)
    tone = Tone.BAD if not host.serving else Tone.GOOD if host.serving == slots else Tone.CARE
    name = f" on {clean(host.name)}" if host.name else ""
    words = (
        Piece(f"ollama-agent {clean(status.agent.version)}{name}: ", Tone.STRONG),
        Piece(f"{host.serving} of {slots} slots serving", tone),
    )
    time = status.time.astimezone(window.zone).strftime("%Y-%m-%d %H:%M:%S")
    space = window.columns - line_width(words) - len(time)
    return (*words, Piece(" " * space), Piece(time, Tone.DIM)) if space >= 2 else words


def _versions(status: Status) -> str:
    engine, driver = status.engine, status.driver
    cards = [gpu for slot in status.slots for gpu in slot.gpus]
    card = same([gpu.name for gpu in cards])
    words = [
        f"Docker {engine.version}" if engine.version else "",
        f"driver {driver.version}" + (f" (CUDA {driver.cuda_version})" if driver.cuda_version else "")
        if driver.version
        else "",
        f"{len(cards)} x {short_name(card)}" if card else "",
        f"agent up {since(status, status.agent.started)}" if status.agent.started else "",
    ]
    return ", ".join(word for word in words if word)


def _serves(status: Status) -> str:
    model = same([slot.model for slot in status.slots]) or status.host.model
    image = same([slot.image for slot in status.slots]) or status.host.image
    return f"{model} from {image}" if model and image else image or ""


def _problems(status: Status) -> list[str]:
    found = list(status.host.problems)
    if not status.engine.up:
        found.append(status.engine.because or "the Docker Engine does not answer")
    if not status.driver.up and any(slot.gpus for slot in status.slots):
        found.append(status.driver.because or "NVML does not answer")
    if status.agent.reload_problem:
        found.append(status.agent.reload_problem)
    return list(dict.fromkeys(found))


def _news(status: Status) -> list[str]:
    host, pull, found = status.host, status.host.pull, list[str]()
    if host.down:
        found.append("taken down on purpose")
    if host.rolling:
        found.append(f"rolling: {host.rolling}")
    if pull and pull.running:
        share = (
            f", {pull.done_bytes / pull.total_bytes:.0%} of {pull.total_bytes / 1e9:.1f} GB" if pull.total_bytes else ""
        )
        found.append(f"pulls {host.image or 'the image'}{share}")
    if pull and pull.error and not pull.running:
        found.append(f"the last pull failed: {pull.error}" + (f" ({pull.hint})" if pull.hint else ""))
    if host.refused:
        found.append(f"release {host.refused.release} is refused: {host.refused.because}")
    return found


def _reasons(status: Status, slot: SlotStatus, window: Window, indent: int) -> list[Line]:
    """Below the row of a slot that is not simply ready: why, and what comes next."""
    texts = [_why(status, slot), *(_gpu_trouble(status, gpu) for gpu in slot.gpus)]
    room = max(window.columns - indent, 20)
    lines = chain.from_iterable(wrap(clean(text), room, lines=2) for text in texts if text)
    tone = Tone.CARE if tone_of(slot) is Tone.GOOD else tone_of(slot)
    return [(Piece(" " * indent), Piece(line, tone)) for line in lines]


def _why(status: Status, slot: SlotStatus) -> str:
    words: list[str] = []
    if slot.state_number != State.READY or slot.pending:
        words.append(slot.quarantine.because if slot.quarantine else slot.because or slot.health or "")
    elif slot.canary and slot.canary.outcome != "ok":
        words.append(f"the last canary: {slot.canary.detail or slot.canary.outcome.replace('_', ' ')}")
    if slot.pending:
        words.append(f"{slot.pending.action} for {since(status, slot.pending.since)}")
    if slot.quarantine and slot.quarantine.until:
        words.append(f"probation in {age((slot.quarantine.until - status.time).total_seconds())}")
    elif slot.next_try:
        words.append(f"next try in {age((slot.next_try - status.time).total_seconds())}")
    return "; ".join(word for word in words if word)


def _gpu_trouble(status: Status, gpu: GpuStatus) -> str:
    words: list[str] = []
    if status.driver.up and gpu.problem:
        words.append(gpu.problem)
    if gpu.recovery_action:
        words.append(f"the driver asks for {gpu.recovery_action.replace('_', ' ').replace('gpu', 'GPU')}")
    if gpu.last_xid is not None and gpu.last_xid_time and _seconds(status, gpu.last_xid_time) < _RECENT_XID_S:
        words.append(f"XID {gpu.last_xid} {since(status, gpu.last_xid_time)} ago")
    index = "" if gpu.index is None else f" {gpu.index}"
    return f"GPU{index}: {', '.join(words)}" if words else ""


def _history(status: Status, window: Window, left: int) -> list[Line]:
    """The newest entries that fit, newest last; without their heading if that saves the last one."""
    entries = [_entry(status, entry, window) for entry in status.history[-window.history :]] if window.history else []
    if not entries or left < _LAST_ACTION_LINES:
        return []
    if left == _LAST_ACTION_LINES:
        return [(), entries[-1][0]]
    room = left - _LAST_ACTION_LINES
    while len(entries) > 1 and sum(len(entry) for entry in entries) > room:
        entries.pop(0)
    return [(), (Piece("LATELY", Tone.DIM),), *list(chain.from_iterable(entries))[:room]]


def _entry(status: Status, entry: EntryStatus, window: Window) -> list[Line]:
    time = _clock(entry.time, status.time, window.zone)
    where = "host" if entry.slot is None else f"slot {entry.slot}"
    text = clean(f"{entry.action}: {entry.because}")
    evidence = clean(f" ({entry.evidence})") if entry.evidence else ""
    room = max(window.columns - len(time) - len(where) - 3, 20)
    whole = len(wrap(text + evidence, room, lines=3)) <= 2  # a part of the evidence says nothing
    first, *rest = wrap(text + evidence if whole else text, room, lines=2)
    indent = " " * _HISTORY_INDENT
    return [
        (Piece(f"{time} ", Tone.DIM), Piece(f"{where}: ", Tone.STRONG), Piece(first)),
        *((Piece(indent + line),) for line in rest),
    ]


def _clock(then: datetime | None, now: datetime, zone: tzinfo) -> str:
    if then is None:
        return "--:--:--"
    local = then.astimezone(zone)
    return local.strftime("%H:%M:%S" if local.date() == now.astimezone(zone).date() else "%b %d %H:%M:%S")


def _seconds(status: Status, then: datetime) -> float:
    return (status.time - then).total_seconds()


def _told(label: str, text: str, tone: Tone, window: Window) -> list[Line]:
    lines = wrap(clean(text), max(window.columns - len(label), 20), lines=2) if text else []
    return [
        (Piece(label if number == 0 else " " * len(label), tone), Piece(line, tone))
        for number, line in enumerate(lines)
    ]
