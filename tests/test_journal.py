from hypothesis import given
from hypothesis import strategies as st

from appliance_builder.journal import (
    Journal,
    Segments,
    parse_journal,
    render_dropped,
    render_header,
    render_present,
)
from appliance_image.digest import Digest

SEGMENTS = Segments(100, 16)
FIRST, SECOND = Digest.of(b"first"), Digest.of(b"second")
TEXT = (
    render_header(SEGMENTS)
    + render_present(0, FIRST)
    + render_present(6, SECOND)
    + render_dropped(0)
    + render_present(0, SECOND)
)


def test_a_blob_is_cut_into_equal_segments_and_a_shorter_last_one() -> None:
    spans = [SEGMENTS.span(index) for index in range(SEGMENTS.count)]

    assert spans == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 80), (80, 96), (96, 100)]


def test_an_empty_blob_has_no_segments_and_is_complete() -> None:
    assert Segments(0).count == 0
    assert Journal(Segments(0)).complete


def test_what_was_rendered_is_parsed() -> None:
    parsed = parse_journal(TEXT)

    assert parsed == (Journal(SEGMENTS, {0: SECOND, 6: SECOND}), len(TEXT))


def test_present_bytes_count_the_short_last_segment_as_it_is() -> None:
    assert Journal(SEGMENTS, {0: FIRST, 6: SECOND}).present_bytes == 20


def test_a_journal_cut_at_any_byte_keeps_every_whole_line_before_the_cut() -> None:
    states: dict[int, dict[int, Digest]] = {}
    present: dict[int, Digest] = {}
    end = len(render_header(SEGMENTS))
    states[end] = {}
    for line, change in (
        (render_present(0, FIRST), {0: FIRST}),
        (render_present(6, SECOND), {6: SECOND}),
        (render_dropped(0), {}),
        (render_present(0, SECOND), {0: SECOND}),
    ):
        end += len(line)
        present = {**present, **change} if change else {6: SECOND}
        states[end] = present

    for cut in range(len(TEXT) + 1):
        whole = [place for place in states if place <= cut]
        expected = (Journal(SEGMENTS, states[max(whole)]), max(whole)) if whole else None
        assert parse_journal(TEXT[:cut]) == expected


@given(st.binary(max_size=200))
def test_what_follows_the_last_whole_line_changes_nothing(tail: bytes) -> None:
    torn = tail.replace(b"\n", b"?")

    assert parse_journal(TEXT + torn) == parse_journal(TEXT)


@given(st.binary())
def test_no_bytes_make_the_parser_fail_or_promise_more_than_there_are(text: bytes) -> None:
    parsed = parse_journal(text)

    assert parsed is None or parsed[1] <= len(text)


def test_records_behind_a_damaged_line_are_not_believed() -> None:
    damaged = render_header(SEGMENTS) + b"\0" * 70 + b"\n" + render_present(0, FIRST)

    assert parse_journal(damaged) == (Journal(SEGMENTS, {}), len(render_header(SEGMENTS)))


def test_a_record_of_a_segment_that_the_blob_does_not_have_is_not_believed() -> None:
    text = render_header(SEGMENTS)

    assert parse_journal(text + render_present(7, FIRST)) == (Journal(SEGMENTS, {}), len(text))
