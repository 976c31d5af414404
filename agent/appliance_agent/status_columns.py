"""The table of slots: what each column says, how useful it is, and which ones fit into a window. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from appliance_agent.amounts import age, amount
from appliance_agent.states import Reason, State
from appliance_agent.status import EntryStatus, SlotStatus, Status
from appliance_agent.table_layout import GAP, Column, before, fitting, heading_of, row_of, total
from appliance_agent.terminal_text import Line, Piece, Tone, clean, fit
from appliance_agent.trend_columns import TrendColumns

_LATELY_COLUMNS = 26  # less room says nothing
_CARE_RATIO, _BAD_RATIO = 0.8, 0.5  # of the slot's usual tokens/s
_HOT_CELSIUS = 85
_FULL = 0.97
_WIDE = 140  # with room for the last action beside trends
_GIB = 1024**3
_OF_GPUS = frozenset({"GPU", "NAME", "UUID", "UTIL", "MEMORY", "TEMP", "POWER"})  # without any, not worth a column
_TONES = {
    State.READY: Tone.GOOD,
    State.DEGRADED: Tone.BAD,
    State.FAILED: Tone.BAD,
    State.QUARANTINED: Tone.BAD,
    State.BLOCKED: Tone.BAD,
    State.ABSENT: Tone.DIM,
    State.STOPPED: Tone.DIM,
}


def table(status: Status, *, columns: int, trends: TrendColumns | None = None) -> tuple[Line, list[Line], int]:
    """Headings, one line for each slot, and where the state begins in a line."""
    wanted = _columns(status, trends)
    if status.slots and not any(slot.gpus for slot in status.slots):
        wanted = [column for column in wanted if column.title.partition(" ")[0] not in _OF_GPUS]
    lately = GAP + _LATELY_COLUMNS if trends and columns >= _WIDE and status.history else 0
    shown = fitting(wanted, columns - lately)
    left = columns - total(shown) - GAP
    if left >= _LATELY_COLUMNS and status.history:
        shown.append(_lately(status, left))
    rows = [row_of(shown, row) for row in range(len(status.slots))]
    return heading_of(shown), rows, before(shown, "STATE")


def tone_of(slot: SlotStatus) -> Tone:
    known = slot.state_number in {int(state) for state in State}
    return _TONES.get(State(slot.state_number), Tone.CARE) if known else Tone.CARE


def since(status: Status, then: datetime | None) -> str:
    return age((status.time - then).total_seconds()) if then else "-"


def short_name(name: str) -> str:
    return name.removeprefix("NVIDIA ").strip()


def image_tags(references: Sequence[str | None]) -> list[str]:
    """What differs: `32b` and `32b-v2` of one repository, `r1:32b` and `qwen3:8b` of two."""
    named = [_last_part(reference) for reference in references if reference]
    one = len({name for name, _ in named}) == 1
    texts = [_last_part(reference) if reference else ("", "") for reference in references]
    return [tag if one else f"{name}:{tag}" if name else "" for name, tag in texts]


def _last_part(reference: str) -> tuple[str, str]:
    """Repository and tag, or the beginning of the digest where there is no tag."""
    name, _, digest = reference.partition("@")
    repository, _, tag = name.rsplit("/", 1)[-1].partition(":")
    return repository, tag or digest.removeprefix("sha256:")[:8] or "latest"


def same(values: Sequence[str | None]) -> str | None:
    """The value, if all have the same."""
    return values[0] if values and len(set(values)) == 1 else None


def restarts(slot: SlotStatus) -> int:
    return sum(count for reason, count in slot.restarts.items() if reason != Reason.START.value)


def _columns(status: Status, trends: TrendColumns | None) -> list[Column]:
    """What all slots have in common stands above the table; where they differ, it is worth a column."""
    slots = status.slots

    def column(title: str, keep: int, cell: Callable[[SlotStatus], Piece], *, right: bool = False) -> Column:
        return Column(title, keep, tuple(cell(slot) for slot in slots), right)

    one_model = same([slot.model for slot in slots]) is not None
    one_image = same([slot.image for slot in slots]) is not None
    one_card = same([slot.gpus[0].name if slot.gpus else None for slot in slots]) is not None
    return [
        column("SLOT", 100, lambda slot: Piece(str(slot.slot), Tone.STRONG), right=True),
        column("GPU", 95, _gpu_index, right=True),
        column("NAME", 11 if one_card else 30, _gpu_name),
        column("UUID", 20, _gpu_uuid),
        column("STATE", 101, lambda slot: Piece(slot.state, tone_of(slot))),
        column("FOR", 90, lambda slot: Piece(since(status, slot.since)), right=True),
        column("MODEL", 12 if one_model else 82, lambda slot: Piece(fit(clean(slot.model or "-"), 28))),
        Column("IMAGE", 13 if one_image else 83, _images(slots)),
        column("PORT", 60, lambda slot: Piece(str(slot.port)), right=True),
        column("1ST TOKEN", 92 if trends else 80, _first_token, right=True),
        column("TOKENS/S", 85, _tokens, right=True),
        column("OF USUAL", 76, _of_usual, right=True),
        *([column("SENT", 73, _sent, right=True), trends.users(slots)] if trends else []),
        column("CANARY", 40, lambda slot: Piece(_canary_age(status, slot)), right=True),
        column("UTIL", 74 if trends else 72, _utilization, right=True),
        *([trends.utilization(slots)] if trends else []),
        column("MEMORY", 65, _memory, right=True),
        column("TEMP", 55, _temperature, right=True),
        column("POWER", 25, _power, right=True),
        column("RESTARTS", 78, _restarts, right=True),
    ]


def _lately(status: Status, room: int) -> Column:
    last: dict[int | None, EntryStatus] = {entry.slot: entry for entry in status.history}
    cells: list[Piece] = []
    for slot in status.slots:
        entry = last.get(slot.slot)
        text = f"{since(status, entry.time)} ago {entry.action}: {entry.because}" if entry else ""
        cells.append(Piece(fit(clean(text), room), Tone.DIM))
    return Column("LATELY", 0, tuple(cells))


def _gpu_index(slot: SlotStatus) -> Piece:
    if not slot.gpus:
        return Piece("CPU")
    indexes = [gpu.index for gpu in slot.gpus]
    text = ",".join("?" if index is None else str(index) for index in indexes)
    known = [index for index in indexes if index is not None]
    if len(known) == len(indexes) > 2 and known == list(range(known[0], known[0] + len(known))):
        text = f"{known[0]}-{known[-1]}"
    return Piece(text, Tone.PLAIN if all(gpu.up for gpu in slot.gpus) else Tone.BAD)


def _gpu_name(slot: SlotStatus) -> Piece:
    if not slot.gpus:
        return Piece("-")
    name = fit(clean(short_name(slot.gpus[0].name or "-")), 22)
    count = len(slot.gpus)
    return Piece(f"{count} x {name}" if count > 1 else name)


def _gpu_uuid(slot: SlotStatus) -> Piece:
    if not slot.gpus:
        return Piece("-")
    first = fit(clean(slot.gpus[0].uuid), 14).removesuffix("..")
    others = len(slot.gpus) - 1
    return Piece(f"{first} +{others}" if others else first)


def _images(slots: Sequence[SlotStatus]) -> tuple[Piece, ...]:
    tags = image_tags([slot.image for slot in slots])
    unknown = [(slot.image_id or "-").removeprefix("sha256:")[:12] for slot in slots]
    return tuple(Piece(fit(clean(tag or other), 28)) for tag, other in zip(tags, unknown, strict=True))


def _first_token(slot: SlotStatus) -> Piece:
    """How the last canary failed, if it did; else how long it waited."""
    if slot.canary and slot.canary.outcome != "ok":
        return Piece(clean(slot.canary.outcome).replace("_", " "), Tone.BAD)
    seconds = slot.good_canary.time_to_first_token_seconds if slot.good_canary else None
    if seconds is None:
        return Piece("-")
    return Piece(f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s")


def _tokens(slot: SlotStatus) -> Piece:
    speed = slot.good_canary.tokens_per_second if slot.good_canary else None
    fresh = slot.canary is None or slot.canary.outcome == "ok"
    return Piece("-" if speed is None else f"{speed:.1f}", Tone.PLAIN if fresh else Tone.DIM)


def _of_usual(slot: SlotStatus) -> Piece:
    speed = slot.good_canary.tokens_per_second if slot.good_canary else None
    if speed is None or not slot.baseline_tokens_per_second:
        return Piece("-")
    ratio = speed / slot.baseline_tokens_per_second
    if slot.canary and slot.canary.outcome != "ok":
        return Piece(f"{ratio:.0%}", Tone.DIM)
    return Piece(f"{ratio:.0%}", Tone.BAD if ratio < _BAD_RATIO else Tone.CARE if ratio < _CARE_RATIO else Tone.PLAIN)


def _canary_age(status: Status, slot: SlotStatus) -> str:
    return f"{since(status, slot.canary.time)} ago" if slot.canary and slot.canary.time else "-"


def _known(values: Sequence[float | int | None]) -> list[float]:
    """Nothing, unless each of them is known."""
    return [float(value) for value in values if value is not None] if None not in values else []


def _utilization(slot: SlotStatus) -> Piece:
    ratio = slot.utilization_ratio
    return Piece("-" if ratio is None else f"{ratio:.0%}")


def _sent(slot: SlotStatus) -> Piece:
    rate = slot.sent_bytes_per_second
    return Piece("-" if rate is None else f"{amount(rate)}B/s")


def _memory(slot: SlotStatus) -> Piece:
    used, total = (
        _known([gpu.memory_used_bytes for gpu in slot.gpus]),
        _known([g.memory_total_bytes for g in slot.gpus]),
    )
    if not used or not total:
        return Piece("-")
    tone = Tone.CARE if sum(used) > _FULL * sum(total) else Tone.PLAIN
    return Piece(f"{sum(used) / _GIB:.0f}/{sum(total) / _GIB:.0f} GiB", tone)


def _temperature(slot: SlotStatus) -> Piece:
    known = _known([gpu.temperature_celsius for gpu in slot.gpus])
    return (
        Piece(f"{max(known):.0f} C", Tone.CARE if max(known) >= _HOT_CELSIUS else Tone.PLAIN) if known else Piece("-")
    )


def _power(slot: SlotStatus) -> Piece:
    known = _known([gpu.power_watts for gpu in slot.gpus])
    return Piece(f"{sum(known):.0f} W" if known else "-")


def _restarts(slot: SlotStatus) -> Piece:
    count = restarts(slot)
    return Piece(str(count), Tone.CARE if count else Tone.DIM)
