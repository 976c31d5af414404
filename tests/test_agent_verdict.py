"""The verdict, as a table of cases: what is known of a container, and what it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence, Load, Outcome, Running
from appliance_agent.slots import Pace
from appliance_agent.states import Health
from appliance_agent.verdict import Case, judge

NOW = 10_000.0
BORN = NOW - 3600
CONFIG = HealthConfig()
OK = Canary(NOW - 5, NOW - 4.8, Outcome.OK, first_token_s=0.1, tokens=9, tokens_per_s=40.0)
FAILED = Canary(NOW - 5, NOW - 4.8, Outcome.STREAM_ERROR, "unexpected EOF")
BUSY = Canary(NOW - 30, NOW - 30, Outcome.SERVER_BUSY, "server busy")
LOADED = Load(BORN, BORN + 60, Outcome.OK)
PACE = Pace("hash", 40.0, 20)
SOUND = Evidence(
    container_id="c", watched_since_s=BORN, answered_s=NOW - 1, loaded=True, model_bytes=100, vram_bytes=100,
    load=LOADED, canaries=(OK,), peers=0, compute_ratio=0.0, on_gpu=True, on_gpu_since_s=BORN,
)  # fmt: skip
WAITING = Running(NOW - 9)
SAYING = Running(NOW - 20, NOW - 19, NOW - 11, 4)


def verdict(evidence: Evidence, *, pace: Pace | None = PACE, trusted_since_s: float = 0.0) -> Health:
    return judge(Case(evidence, CONFIG, NOW, trusted_since_s=trusted_since_s, pace=pace)).health


CASES: list[tuple[str, Health, dict[str, Any]]] = [
    ("all is well", Health.READY, {}),
    ("the server has not begun to listen", Health.STARTING, {"answered_s": None, "watched_since_s": NOW - 20}),
    ("it never begins to listen", Health.GONE, {"answered_s": None}),
    ("it takes connections and answers nothing", Health.WEDGED,
     {"answered_s": None, "watched_since_s": NOW - 70, "silent_since_s": NOW - 61}),
    ("the same, and it still reads its store", Health.STARTING,
     {"answered_s": None, "watched_since_s": NOW - 70, "silent_since_s": NOW - 61, "progress_s": NOW - 9}),
    ("connections fail for a moment", Health.READY, {"refused_since_s": NOW - 2}),
    ("connections fail", Health.GONE, {"refused_since_s": NOW - 6}),
    ("nothing was asked yet", Health.LOADING, {"load": None, "canaries": ()}),
    ("a container of before the agent, whose first canary waits", Health.WEDGED,
     {"load": None, "canaries": (), "canary": WAITING}),
    ("the same, and users' tokens flow", Health.BUSY,
     {"load": None, "canaries": (), "canary": WAITING, "peers": 3, "flow_s": NOW - 1}),
    ("the same, and the canary has come just now", Health.LOADING,
     {"load": None, "canaries": (), "canary": Running(NOW - 2)}),
    ("a load that goes on for an hour and moves", Health.LOADING,
     {"load": Load(BORN), "canaries": (), "progress_s": NOW - 20}),
    ("a load in which nothing moves", Health.WEDGED, {"load": Load(BORN), "canaries": (), "progress_s": NOW - 301}),
    ("a load that began just now", Health.LOADING, {"load": Load(NOW - 200), "canaries": ()}),
    ("the model did not load", Health.FAILING,
     {"load": Load(BORN, NOW - 1, Outcome.HTTP_ERROR, "out of memory"), "canaries": ()}),
    ("it did not load once, and answers now", Health.READY, {"load": Load(BORN, NOW - 9, Outcome.HTTP_ERROR)}),
    ("a load met a full queue", Health.LOADING, {"load": Load(BORN, NOW - 1, Outcome.SERVER_BUSY), "canaries": ()}),
    ("loaded, no canary yet", Health.LOADING, {"canaries": ()}),
    ("loaded, not on the GPU", Health.ON_CPU, {"on_gpu": False, "on_gpu_since_s": NOW - 9}),
    ("loaded, not on the GPU for a moment", Health.READY, {"on_gpu": False, "on_gpu_since_s": NOW - 3}),
    ("unloaded by a client, so not on the GPU", Health.READY,
     {"loaded": False, "on_gpu": False, "on_gpu_since_s": NOW - 99}),
    ("NVML does not tell", Health.READY, {"on_gpu": None}),
    ("on the CPU while the API says it is in GPU memory (#12323)", Health.ON_CPU,
     {"on_gpu": False, "on_gpu_since_s": NOW - 99, "vram_bytes": 100}),
    ("loaded anew, and the canary waits for it", Health.LOADING, {"canary": WAITING, "loading_since_s": NOW - 10}),
    ("loaded anew, so not listed, and no canary is sent", Health.LOADING, {"loaded": False, "loading_since_s": NOW - 10}),
    ("loaded anew for an hour, and it moves", Health.LOADING,
     {"canary": Running(NOW - 3600), "loading_since_s": NOW - 3601, "progress_s": NOW - 20}),
    ("the same, and nothing moves", Health.WEDGED,
     {"canary": Running(NOW - 301), "loading_since_s": NOW - 302, "progress_s": NOW - 301}),
    ("loaded anew, so not on the GPU", Health.READY,
     {"on_gpu": False, "on_gpu_since_s": NOW - 60, "loading_since_s": NOW - 62}),
    ("the same, and it has just ended", Health.READY,
     {"on_gpu": False, "on_gpu_since_s": NOW - 60, "loading_ended_s": NOW - 1}),
    ("loaded anew on the CPU", Health.ON_CPU, {"on_gpu": False, "on_gpu_since_s": NOW - 60, "loading_ended_s": NOW - 9}),
    ("another model is loaded, and ours answers", Health.STALLED, {"canary": SAYING, "loading_since_s": NOW - 15}),
    ("a canary that waits a little", Health.READY, {"canary": Running(NOW - 7)}),
    ("a canary that waits, and nobody else is there", Health.WEDGED, {"canary": WAITING}),
    ("the same, and the GPU spins", Health.WEDGED, {"canary": WAITING, "compute_ratio": 1.0, "compute_s": NOW}),
    ("a canary that waits behind users whose tokens flow", Health.BUSY,
     {"canary": Running(NOW - 600), "peers": 3, "flow_s": NOW - 1, "compute_ratio": 0.9, "compute_s": NOW}),
    ("a canary that waits, users are finished meanwhile", Health.BUSY,
     {"canary": Running(NOW - 600), "peers": 3, "answer_line_s": NOW - 4}),
    ("a long prompt is read: no byte, but it computes", Health.BUSY,
     {"canary": Running(NOW - 120), "peers": 1, "compute_ratio": 1.0, "compute_s": NOW}),
    ("it computes for ever and nobody gets a byte", Health.WEDGED,
     {"canary": Running(NOW - 301), "peers": 1, "compute_ratio": 1.0, "compute_s": NOW}),
    ("users wait, and nothing computes", Health.WEDGED,
     {"canary": WAITING, "peers": 5, "flow_s": NOW - 60, "compute_s": NOW - 60}),
    ("users wait, it computed a moment ago", Health.BUSY,
     {"canary": WAITING, "peers": 5, "compute_s": NOW - 5}),
    ("neither connections nor computing can be seen", Health.BUSY,
     {"canary": WAITING, "peers": None, "compute_ratio": None}),
    ("the same, for five minutes", Health.WEDGED,
     {"canary": Running(NOW - 301), "peers": None, "compute_ratio": None}),
    ("the last bytes were those of a user who left", Health.WEDGED,
     {"canary": WAITING, "peers": 0, "flow_s": NOW - 8.5}),
    ("all users left a moment ago, the canary was behind them", Health.BUSY,
     {"canary": Running(NOW - 60), "peers": 0, "peers_s": NOW - 1}),
    ("all users left, and the canary still gets nothing", Health.WEDGED,
     {"canary": Running(NOW - 60), "peers": 0, "peers_s": NOW - 8.5}),
    ("an answer that stops in the middle", Health.STALLED, {"canary": SAYING}),
    ("an answer that pauses", Health.READY, {"canary": replace(SAYING, last_token_s=NOW - 8)}),
    ("an answer that stops while users get theirs", Health.BUSY, {"canary": SAYING, "peers": 2, "flow_s": NOW}),
    ("one failed canary", Health.READY, {"canaries": (OK, FAILED)}),
    ("three failed canaries", Health.FAILING, {"canaries": (OK, FAILED, FAILED, FAILED)}),
    ("three failed, but a user was served since", Health.READY,
     {"canaries": (OK, FAILED, FAILED, FAILED), "answer_line_s": NOW - 1}),
    ("two failed, none was ever good", Health.LOADING, {"canaries": (FAILED, FAILED)}),
    ("timeouts count as failures", Health.FAILING,
     {"canaries": (replace(FAILED, outcome=Outcome.TIMEOUT),) * 3}),
    ("the queue is full, and tokens flow", Health.BUSY, {"canaries": (OK, BUSY), "peers": 9, "flow_s": NOW}),
    ("the queue is full, and nothing moves", Health.WEDGED, {"canaries": (OK, BUSY), "peers": 9}),
    ("the queue was full, then all users left", Health.BUSY, {"canaries": (OK, BUSY), "peers": 0, "peers_s": NOW - 9}),
    ("the queue is full though all users left", Health.WEDGED,
     {"canaries": (OK, BUSY), "peers": 0, "peers_s": NOW - 40}),
    ("slow three times", Health.SLOW, {"canaries": (OK, *(replace(OK, tokens_per_s=15.0),) * 3)}),
    ("slow twice", Health.READY, {"canaries": (OK, *(replace(OK, tokens_per_s=15.0),) * 2)}),
    ("slow because it was shared", Health.READY,
     {"canaries": (OK, *(replace(OK, tokens_per_s=15.0, alone=False),) * 3)}),
    ("half of the model is not in GPU memory", Health.SLOW, {"vram_bytes": 50}),
    ("old versions do not tell what is in GPU memory", Health.READY, {"vram_bytes": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("health", "changes"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_verdict(health: Health, changes: dict[str, Any]) -> None:
    assert verdict(replace(SOUND, **changes)) is health


def test_slow_is_not_judged_before_a_baseline_was_learned() -> None:
    slow = replace(SOUND, canaries=(replace(OK, tokens_per_s=1.0),) * 3)

    assert verdict(slow, pace=Pace("hash", 40.0, 2)) is Health.READY
    assert verdict(slow, pace=None) is Health.READY


def test_time_in_which_the_agent_itself_stood_still_counts_for_nothing() -> None:
    waiting = replace(SOUND, canary=Running(NOW - 500))

    assert verdict(waiting) is Health.WEDGED
    assert verdict(waiting, trusted_since_s=NOW - 2) is Health.READY
    assert verdict(replace(SOUND, canary=SAYING), trusted_since_s=NOW - 2) is Health.READY
    assert verdict(replace(SOUND, refused_since_s=NOW - 500), trusted_since_s=NOW - 2) is Health.READY


MOMENTS = st.one_of(st.none(), st.floats(NOW - 5000, NOW))


@given(
    canary=st.one_of(st.none(), st.builds(Running, st.floats(NOW - 5000, NOW))),
    flow_s=MOMENTS,
    compute_s=MOMENTS,
    answer_line_s=MOMENTS,
    peers=st.one_of(st.none(), st.integers(0, 50)),
    ratio=st.one_of(st.none(), st.floats(0, 1)),
    canaries=st.lists(st.sampled_from([OK, FAILED, BUSY]), max_size=20).map(tuple),
)
def test_whoever_is_served_just_now_is_never_called_wedged(
    *,
    canary: Running | None,
    flow_s: float | None,
    compute_s: float | None,
    answer_line_s: float | None,
    peers: int | None,
    ratio: float | None,
    canaries: tuple[Canary, ...],
) -> None:
    """Nor anything else that leads to a restart."""
    evidence = replace(
        SOUND, canary=canary, flow_s=flow_s, compute_s=compute_s, answer_line_s=NOW, peers=peers,
        compute_ratio=ratio, canaries=(OK, *canaries, OK),
    )  # fmt: skip

    assert verdict(evidence) in (Health.READY, Health.BUSY)
    assert verdict(replace(evidence, answer_line_s=answer_line_s, flow_s=NOW, peers=2)) in (Health.READY, Health.BUSY)


def test_every_verdict_says_why_in_words() -> None:
    for _, _, changes in CASES:
        because = judge(Case(replace(SOUND, **changes), CONFIG, NOW, pace=PACE)).because

        assert because
        assert "None" not in because
