"""The values of metrics: absent is not zero, and what counts goes on counting."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import snapshots
import soundhost
from scraped import Scraped, with_probes

from appliance_agent import catalogue, catalogue_gpu, catalogue_slots
from appliance_agent.evidence import Outcome
from appliance_agent.gpus import GpuReading, RecoveryAction, Xid
from appliance_agent.metrics_gpu import XidTally
from appliance_agent.states import Reason, State


def test_before_the_first_tick_only_the_process_is_known() -> None:
    names = {name for name, _ in Scraped(None).series() if name.startswith("appliance_")}

    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} == {
        catalogue.TICK_DURATION.name,
        catalogue.LOOP_LAG.name,
        catalogue_slots.LOG_LINES.name,
    }


def test_what_a_card_does_not_support_is_absent_and_never_zero() -> None:
    base = snapshots.good_night(1)
    bare = GpuReading(at_s=soundhost.NOW.mono_s)
    scraped = Scraped(replace(base, gpus=replace(base.gpus, readings={soundhost.uuid(0): bare})))

    names = {name.removeprefix("appliance_") for name, _ in scraped.series() if name.startswith("appliance_gpu_")}

    assert names == {"gpu_info", "gpu_up", "gpu_last_collect_timestamp_seconds", "gpu_xid_errors_total"}
    assert scraped.value("gpu_up", gpu="0", uuid=soundhost.uuid(0)) == 1


@pytest.mark.parametrize(
    "reading",
    [
        GpuReading(at_s=soundhost.NOW.mono_s, lost=True, power_w=300.0),
        GpuReading(at_s=soundhost.NOW.mono_s, reset_required=True, power_w=300.0),
        GpuReading(at_s=soundhost.NOW.mono_s, error="unknown error", power_w=300.0),
        GpuReading(at_s=soundhost.NOW.mono_s - 11, power_w=300.0),
    ],
    ids=["lost", "wants a reset", "error", "old"],
)
def test_a_gpu_that_is_not_sound_is_down_and_has_no_readings(reading: GpuReading) -> None:
    base = snapshots.good_night(1)
    scraped = Scraped(replace(base, gpus=replace(base.gpus, readings={soundhost.uuid(0): reading})))
    who = {"gpu": "0", "uuid": soundhost.uuid(0)}

    assert scraped.value("gpu_up", **who) == 0
    assert scraped.value("gpu_power_watts", **who) is None
    assert (
        scraped.value("gpu_last_collect_timestamp_seconds", interval="1s", **who)
        == soundhost.BOOT_WALL_S + reading.at_s
    )


def test_while_nvml_is_down_no_gpu_is_up() -> None:
    base = snapshots.good_night(2)
    scraped = Scraped(replace(base, gpus=replace(base.gpus, up=False)))

    assert scraped.values("gpu_up", "gpu") == {"0": 0, "1": 0}
    assert scraped.value("nvml_up") == 0


def test_a_host_that_wants_no_gpu_says_nothing_of_nvml() -> None:
    assert Scraped(snapshots.without_gpus()).value("nvml_up") is None
    assert {name for name, _ in Scraped(snapshots.without_gpus()).series() if "_gpu_" in name} == set()


def test_a_card_that_is_gone_from_the_bus_keeps_its_slot_and_its_uuid() -> None:
    base = snapshots.good_night(2)
    gone = replace(base.gpus, gpus=base.gpus.gpus[1:], readings={soundhost.uuid(1): soundhost.reading(1)})

    scraped = Scraped(replace(base, gpus=gone))

    assert scraped.values("gpu_up", "uuid") == {soundhost.uuid(0): 0, soundhost.uuid(1): 1}
    assert scraped.values("gpu_power_watts", "gpu") == {"1": 301.5}


def test_a_slot_that_is_gone_leaves_no_series_behind() -> None:
    scraped = with_probes()
    before = {dict(labels).get("gpu") for _, labels in scraped.series()} - {None}
    scraped.snapshot = snapshots.good_night(3)

    after = {dict(labels).get("gpu") for _, labels in scraped.series()} - {None}

    assert before == {str(slot) for slot in range(8)}
    assert after == {"0", "1", "2"}


def test_a_slot_is_in_one_state() -> None:
    states: dict[str, list[str]] = {}
    for (name, labels), value in with_probes().series().items():
        if name == "appliance_backend_state" and value == 1:
            states.setdefault(dict(labels)["gpu"], []).append(dict(labels)["state"])

    assert states == {
        "0": ["ready"], "1": ["degraded"], "2": ["loading"], "3": ["quarantined"],
        "4": ["ready"], "5": ["waiting"], "6": ["starting"], "7": ["ready"],
    }  # fmt: skip


def test_in_a_rolling_change_each_slot_shows_the_release_that_it_runs() -> None:
    series = Scraped(snapshots.half_way()).series()

    infos = [dict(labels) for name, labels in series if name == "appliance_backend_info"]
    assert {info["gpu"]: (info["image"], info["model"]) for info in infos} == {
        "0": (f"{soundhost.IMAGE}-v2", soundhost.MODEL),
        "1": (soundhost.IMAGE, soundhost.MODEL),
    }


def test_series_that_will_count_are_there_from_the_first_scrape() -> None:
    """Or else `increase()` does not see the first event."""
    text = Scraped(snapshots.good_night(1)).text()

    for reason in Reason:
        assert f'appliance_backend_restarts_total{{gpu="0",reason="{reason.value}"}} ' in text
    for state in State:
        assert f'appliance_backend_state{{gpu="0",state="{state.name.lower()}"}} ' in text
    for outcome in set(Outcome) - {Outcome.OK}:
        assert f'appliance_probe_failures_total{{gpu="0",reason="{outcome.value}"}} 0\n' in text
    for label in catalogue_gpu.XID_LABELS:
        assert f'appliance_gpu_xid_errors_total{{gpu="0",uuid="{soundhost.uuid(0)}",xid="{label}"}} 0\n' in text
    assert 'appliance_probe_attempts_total{gpu="0"} 0\n' in text
    assert 'appliance_probe_time_to_first_token_seconds_count{gpu="0"} 0\n' in text
    assert "appliance_probe_success{" not in text


def test_probes_are_counted_with_their_outcome_and_times() -> None:
    scraped = with_probes()

    assert {slot for slot, count in scraped.values("probe_attempts_total", "gpu").items() if count} == {"0", "1", "2"}
    assert scraped.values("probe_success", "gpu") == {"0": 1, "1": 1, "2": 0}
    assert scraped.values("probe_last_success_timestamp_seconds", "gpu") == {
        "0": soundhost.NOW.wall_s - 4,
        "1": soundhost.NOW.wall_s - 4,
    }
    assert scraped.value("probe_failures_total", gpu="2", reason="timeout") == 1
    assert scraped.value("probe_generated_tokens_total", gpu="0") == 8
    assert scraped.value("probe_time_to_first_token_seconds_bucket", gpu="0", le="0.1") == 0
    assert scraped.value("probe_time_to_first_token_seconds_bucket", gpu="0", le="0.25") == 1
    assert scraped.value("probe_time_per_output_token_seconds_bucket", gpu="0", le="0.025") == 1
    assert scraped.value("probe_time_per_output_token_seconds_sum", gpu="0") == pytest.approx(1 / 41.5)
    assert scraped.value("probe_time_per_output_token_seconds_count", gpu="2") == 0


def test_the_driver_asks_for_one_action_or_none() -> None:
    scraped = with_probes()
    wanted = {
        (dict(labels)["gpu"], dict(labels)["action"]): value
        for (name, labels), value in scraped.series().items()
        if name == "appliance_gpu_recovery_action_required"
    }

    assert {key for key, value in wanted.items() if value} == {("4", "gpu_reset")}
    assert {action for _, action in wanted} == {action.name.lower() for action in RecoveryAction} - {"none"}
    assert {slot for slot, _ in wanted} == {"0", "1", "2", "4", "5", "6", "7"}


def test_of_a_mig_device_memory_and_activity_are_its_own_and_power_is_the_cards() -> None:
    scraped = Scraped(snapshots.mig())

    assert scraped.values("gpu_memory_total_bytes", "gpu") == {"0": 40 * 1024**3, "1": 40 * 1024**3}
    assert scraped.values("gpu_dram_active_ratio", "gpu") == {"0": 0.5, "1": 0.5}
    assert scraped.values("gpu_power_watts", "gpu") == {"": 300.5}
    assert scraped.values("gpu_power_watts", "uuid") == {soundhost.uuid(0): 300.5}
    assert scraped.values("gpu_up", "gpu") == {"": 1, "0": 1, "1": 1}
    assert scraped.values("gpu_info", "parent_uuid") == {soundhost.uuid(0): 1, "": 1}
    assert [
        scraped.value("gpu_xid_errors_total", gpu=gpu, uuid=f"MIG-0000000{gpu}-5a1e-4c0f-9d3b-0123456789ab", xid="79")
        for gpu in ("0", "1")
    ] == [1, 1]


def test_an_xid_of_one_mig_instance_is_told_of_its_device_alone() -> None:
    base = snapshots.mig()
    there = tuple(replace(xid(1, 94), instance=instance) for instance in (2, None, 5))
    scraped = Scraped(replace(base, gpus=replace(base.gpus, xids=there)))
    counts = {
        (gpu, labels["gpu"]): value
        for (name, told), value in scraped.series().items()
        if name == "appliance_gpu_xid_errors_total" and (labels := dict(told))["xid"] == "94"
        for gpu in [labels["uuid"][:12]]
    }

    assert counts == {("MIG-00000000", "0"): 1, ("MIG-00000001", "1"): 2}


def test_a_reload_that_failed_is_told_and_the_time_of_the_good_one_stays() -> None:
    base = snapshots.good_night(1)
    scraped = Scraped(replace(base, reload_problem="line 3 is wrong"))

    assert scraped.value("config_last_reload_successful") == 0
    assert scraped.value("config_last_reload_success_timestamp_seconds") == base.reloaded_wall_s


def xid(number: int, code: int = 79, index: int = 0) -> Xid:
    return Xid(soundhost.uuid(index), code, float(number))


def test_xids_go_on_counting_when_the_snapshot_forgets_the_old_ones() -> None:
    tally, seen = XidTally(), tuple(xid(number) for number in range(1, 1001))
    for end in range(1, 1001, 7):
        tally = tally.after(seen[max(end - 200, 0) : end])
    tally = tally.after(seen[-200:])

    assert tally.counts == {(soundhost.uuid(0), None, "79"): 1000}
    assert tally.after(seen[-200:]) is tally
    assert XidTally().after(()) == XidTally()


def test_two_xids_of_the_same_moment_are_two() -> None:
    tally = XidTally().after((xid(1, 48), xid(1, 63), xid(1, 63, 1)))

    assert tally.counts == {
        (soundhost.uuid(0), None, "48"): 1,
        (soundhost.uuid(0), None, "other"): 1,
        (soundhost.uuid(1), None, "other"): 1,
    }


def test_an_xid_is_counted_once_however_often_it_is_scraped() -> None:
    scraped = with_probes()
    first, again = (scraped.values("gpu_xid_errors_total", "xid") for _ in range(2))
    who = {"gpu": "3", "uuid": soundhost.uuid(3), "xid": "79"}

    assert first == again
    assert scraped.value("gpu_xid_errors_total", **who) == 1
    assert scraped.value("gpu_xid_last_timestamp_seconds", **who) == soundhost.NOW.wall_s - 312
