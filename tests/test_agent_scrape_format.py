"""Which format a scraper gets, and that both say the same."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import snapshots
import soundhost
from hypothesis import example, given, settings
from hypothesis import strategies as some
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from scraped import Scraped, probed, with_probes, without_process
from webclient import current
from webguard import ask

from appliance_agent.catalogue import CATALOGUE
from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front
from appliance_agent.metric import Kind
from appliance_agent.scrape_format import Format, chosen
from appliance_agent.snapshot import Snapshot
from appliance_agent.text_format import LABEL_MAX

NIGHTS = ["good_night", "bad_night", "without_gpus", "unknown", "in_groups", "mig"]
PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_TEXT_ONLY = "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.4"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (PROMETHEUS_2_42, Format.OPENMETRICS),
        (PROMETHEUS_3, Format.OPENMETRICS),
        (PROMETHEUS_3_TEXT_ONLY, Format.TEXT),
        ("text/plain; version=1.0.0; escaping=underscores", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Format.TEXT),
        ("application/json", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", Format.OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', Format.OPENMETRICS),
        ("application/openmetrics-text ; version = 1.0.0 ; q = 0.5 , text/plain;q=0.4", Format.OPENMETRICS),
        ("application/openmetrics-text, text/plain", Format.OPENMETRICS),
        ("application/openmetrics-text;q=0.5, text/plain", Format.TEXT),
        ("application/openmetrics-text;q=0.5, */*", Format.TEXT),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.2, */*", Format.OPENMETRICS),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=0.000, text/plain;q=0", Format.TEXT),
        ("application/openmetrics-text;q=2", Format.TEXT),
        ("application/openmetrics-text;version=2.0.0", Format.TEXT),
        ("application/openmetrics-text;version=0.0.1", Format.TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
         + PROMETHEUS_3.replace("q=0.6", "q=0.5"), Format.OPENMETRICS),
        ("application/openmetrics-text-not", Format.TEXT),
        ('text/plain; note="a,application/openmetrics-text"', Format.TEXT),
    ],
)  # fmt: skip
def test_openmetrics_is_for_whoever_names_it_and_likes_nothing_better(accept: str, form: Format) -> None:
    assert chosen(accept) is form


@given(some.text(alphabet='application/openmetrics-text;version=1.0.0,q= \t"\\*\u00e9', max_size=200))
def test_any_header_has_an_answer(accept: str) -> None:
    assert chosen(accept) in Format


def test_no_header_takes_long() -> None:
    for piece in ("a/b;", "a/b;c=d", ',;"', 'a/b;c="\\', "a ", ";=", "a/b;q=0.1,"):
        assert chosen(piece * (8192 // len(piece))) is Format.TEXT


@pytest.mark.parametrize(("accept", "form"), [(PROMETHEUS_3, Format.OPENMETRICS), ("", Format.TEXT)])
def test_the_answer_says_which_format_it_is(accept: str, form: Format) -> None:
    front = Front(MetricsConfig("127.0.0.1", 0))
    front.open()
    try:
        front.publish(current(snapshots.good_night(2)))
        plain = ask(front, "/metrics", Accept=accept)
        packed = ask(front, "/metrics", Accept=accept, Accept_Encoding="gzip")
    finally:
        front.close()

    assert plain.headers["content-type"] == packed.headers["content-type"] == form.value
    assert plain.headers["vary"] == "Accept, Accept-Encoding"
    assert plain.body.endswith(b"# EOF\n") is (form is Format.OPENMETRICS)
    assert gzip.decompress(packed.body)[:500] == plain.body[:500]


def both(scraped: Scraped) -> tuple[str, str]:
    """Of the same moment."""
    scraped.now_s += 2
    return (
        scraped.exposition.body(Format.TEXT, gzip=False).decode(),
        scraped.exposition.body(Format.OPENMETRICS, gzip=False).decode(),
    )


Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str, families: Callable[[str], object]) -> Read:
    found: Read = {}
    for family in families(text):  # type: ignore[attr-defined]
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


@pytest.mark.parametrize("name", NIGHTS)
def test_a_strict_parser_of_openmetrics_reads_the_same_values(name: str) -> None:
    make: Callable[[], Snapshot] = getattr(snapshots, name)
    text, openmetrics = both(probed(Scraped(make())))

    assert read(openmetrics, openmetrics_families) == read(text, text_families)


def test_types_of_openmetrics_are_the_catalogues() -> None:
    _, openmetrics = both(with_probes())
    kinds = {family.name: family.type for family in openmetrics_families(openmetrics)}  # type: ignore[no-untyped-call]

    for metric in CATALOGUE:
        name = metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name
        assert kinds.get(name, metric.kind.value) == metric.kind.value
    assert not any(name.endswith(("_total", "_created")) for name in kinds)
    assert openmetrics.endswith("\n# EOF\n")
    assert "_created" not in openmetrics


def test_before_the_first_snapshot_both_formats_are_whole() -> None:
    text, openmetrics = both(Scraped(None))

    assert read(openmetrics, openmetrics_families) == read(text, text_families)


def test_each_body_is_made_once() -> None:
    scraped = with_probes()
    scraped.now_s += 2
    wanted = list(itertools.product(Format, (False, True)))
    first = [scraped.exposition.body(form, gzip=packed) for form, packed in wanted]
    again = [scraped.exposition.body(form, gzip=packed) for form, packed in wanted]

    assert all(one is other for one, other in zip(first, again, strict=True))
    assert [gzip.decompress(body) for body in first[1::2]] == first[::2]


ODD = some.text(alphabet=some.characters(codec="utf-8"), max_size=40)


def named(base: Snapshot, image: str, model: str, card: str, path: str) -> Snapshot:
    """The same host, with these names wherever a name comes from elsewhere."""
    release = replace(soundhost.release(image=image), model=model)
    gpus = tuple(replace(gpu, name=card, pci_bus_id=path) for gpu in base.gpus.gpus)
    containers = tuple(
        replace(seen, release_hash=release.hash, release=release, image_id=path) for seen in base.engine.containers
    )
    return replace(
        base,
        version=path,
        gpus=replace(base.gpus, gpus=gpus, driver_version=path),
        engine=replace(base.engine, containers=containers),
        host=replace(base.host, wanted=release, good=release),
    )


@cache
def usual_count() -> int:
    return len(read(both(Scraped(named(snapshots.bad_night(), "a", "b", "c", "d")))[0], text_families))


@settings(max_examples=25, deadline=None)
@given(ODD, ODD.filter(bool), ODD, ODD)
@example("registry.lan/a\\b", 'the "best"\n# EOF\n', "H100\\", "/var/模型/\u2028\r\n{}=,")
@example("a", "other", "", "")
def test_whatever_names_a_host_has_both_formats_give_them_back(image: str, model: str, card: str, path: str) -> None:
    base = snapshots.bad_night()
    snapshot = named(base, image, model, card, path)

    for words, families in zip(both(Scraped(snapshot)), (text_families, openmetrics_families), strict=True):
        series = read(words, families)
        found = [dict(labels) for (_, labels) in series]

        assert len(series) == usual_count()
        assert {card} <= {labels["name"] for labels in found if "driver_version" in labels} <= {card, ""}
        assert {labels["driver_version"] for labels in found if "driver_version" in labels} == {path}
        assert {image} <= {labels["image"] for labels in found if "image" in labels} <= {image, ""}
        whole = model if model != "other" else "other:latest"
        assert {whole} <= {labels["model"] for labels in found if "model" in labels} <= {model, whole, "", "other"}
        assert {labels["version"] for labels in found if "python_version" in labels} == {path}


@given(some.text(alphabet=some.characters(exclude_categories=()), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_what_is_no_text_at_all_breaks_no_scrape(noise: str) -> None:
    """JSON may hold half of a surrogate pair."""
    words, openmetrics = both(Scraped(replace(snapshots.good_night(1), version=noise)))

    assert read(openmetrics, openmetrics_families).keys() == read(words, text_families).keys()


def test_a_name_without_end_is_cut() -> None:
    text, _ = both(Scraped(replace(snapshots.good_night(1), version="x" * 100_000)))

    versions = {dict(labels).get("version", "") for _, labels in read(text, text_families)}
    assert "x" * LABEL_MAX in versions
    assert len(text) < 100_000


def test_openmetrics_costs_no_second_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    scraped = with_probes()
    rendered = 0
    render = scraped.exposition._render  # noqa: SLF001 - the dear part

    def counted(snapshot: Snapshot | None) -> object:
        nonlocal rendered
        rendered += 1
        return render(snapshot)

    monkeypatch.setattr(scraped.exposition, "_render", counted)
    both(scraped)

    assert rendered == 1
    assert without_process(both(scraped)[0])
