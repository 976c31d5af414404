"""A plan carried out: which sink has which bytes afterwards, and that nothing has a name unless everything is right."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from samples import AMD64, ARM64, WEIGHTS, Bytes, base, base_contents, model, settings, weights_contents

from appliance_builder.built import Built, LayerOutline
from appliance_builder.execute import execute
from appliance_builder.layer_bytes import CorruptBlobError
from appliance_builder.plan import KnownLayer, Plan, PlannedLayer, plan_build
from appliance_builder.ports import Content, Payload, Transfer
from appliance_builder.progress import LineReporter
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, weights_layer
from appliance_image.oci import Platform

BLOBS = tuple(Blob(Digest.of(body), len(body)) for body in WEIGHTS)
BOTTOM = b"".join(
    part if isinstance(part, bytes) else dict(zip(BLOBS, WEIGHTS, strict=True))[part]
    for part in weights_layer(BLOBS).parts
)


class Memory:
    """A sink that keeps what a registry would: blobs by digest, and an image only when all its blobs are there."""

    digests_first = False

    def __init__(
        self, label: str = "memory", *, there: Sequence[bytes] = (), platforms: frozenset[Platform] = frozenset()
    ) -> None:
        self.label = label
        self.blobs = {Digest.of(body): body for body in there}
        self.named: Built | None = None
        self.elsewhere: dict[Digest, bytes] = {}  # in another repository: can be adopted
        self.received = 0
        self.staged: list[bytes] = []
        self._platforms = platforms

    def preflight(self, total_bytes: int) -> None:
        """Memory is there."""

    def finished(self, built: Built) -> str | None:
        return self._line(built) if self.named == built else None

    def has(self, layer: LayerOutline) -> bool:
        wanted = not self._platforms or layer.platforms & self._platforms
        return not wanted or layer.descriptor.digest in self.blobs

    def adopt(self, layer: LayerOutline) -> bool:
        digest = layer.descriptor.digest
        if digest in self.elsewhere:
            self.blobs[digest] = self.elsewhere[digest]
        return digest in self.elsewhere

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        assert media_type.startswith("application/vnd.oci.image.layer.v1.tar")
        body = bytearray()
        for chunk in payload.read():
            self.took(chunk)
            body += chunk
            self.received += len(chunk)
            transfer.advance(len(chunk))
        self.staged.append(bytes(body))
        self.blobs[payload.earned_digest()] = self.staged.pop()

    def took(self, chunk: bytes) -> None:
        """For sinks that fail while they take."""

    def commit(self, built: Built) -> str:
        for image in built.images:
            if self._platforms and image.platform not in self._platforms:
                continue
            for layer in image.manifest.layers:
                assert Digest.of(self.blobs[layer.digest]) == layer.digest
                assert len(self.blobs[layer.digest]) == layer.size
        self.named = built
        return self._line(built)

    def abort(self) -> None:
        self.staged.clear()

    def _line(self, built: Built) -> str:
        return f"{self.label}@{built.digest}"


class DigestsFirst(Memory):
    """Like an archive on stdout: the name of a blob is written before its bytes."""

    digests_first = True

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        announced = payload.known_digest
        assert announced is not None
        super().write(payload, media_type, transfer)
        assert Digest.of(self.blobs[announced]) == announced


class Full(Memory):
    """A disk that is full after some bytes."""

    def took(self, chunk: bytes) -> None:
        if self.received + len(chunk) > 50_000:
            raise ApplianceError("the disk is full", hint="free some")


class GoesBack(Memory):
    """Loses its connection once in each layer and takes the rest on its own."""

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        live = payload.read()
        first = next(live)
        rest = b"".join(payload.read(len(first)))
        self.blobs[payload.earned_digest()] = first + rest


@dataclass
class Told:
    good_layers: dict[tuple[Blob, ...], Digest] = field(default_factory=dict)
    bad_blobs: list[Digest] = field(default_factory=list)

    def good(self, layer: PlannedLayer, digest: Digest) -> None:
        self.good_layers[layer.blobs] = digest

    def bad(self, layer: PlannedLayer, error: CorruptBlobError) -> None:
        assert layer.blobs or not layer.plan
        self.bad_blobs.append(error.digest)


class Breaks(Bytes):
    """A source that ends in the middle, in whatever way."""

    def __init__(self, body: bytes, error: BaseException) -> None:
        super().__init__(body)
        self._error = error

    def read(self, offset: int = 0) -> Iterator[bytes]:
        yield self.body[offset : self.size // 2]
        raise self._error


def planned(
    *platforms: Platform,
    weights: Mapping[Digest, Content] | None = None,
    bases: Callable[[Platform], Mapping[Digest, Content]] = base_contents,
    known: KnownLayer | None = None,
) -> Plan:
    return plan_build(
        model(),
        [(base(platform), bases(platform)) for platform in platforms or (AMD64,)],
        lambda _: settings(model()),
        weights=weights_contents() if weights is None else weights,
        known=lambda _: known,
        as_index=len(platforms) > 1,
    )


def carry_out(plan: Plan, *sinks: Memory, told: Told | None = None) -> list[str]:
    return execute(plan, sinks, settled=told or Told(), reporter=LineReporter(io.StringIO()))


def expected() -> Built:
    plan = planned()
    return plan.finish({layer: Digest.of(b"".join(layer.content.read())) for layer in plan.layers})


def test_every_sink_has_every_byte_of_the_same_image_and_the_source_was_read_once() -> None:
    weights = weights_contents()
    first, second = Memory("first"), Memory("second")

    lines = carry_out(planned(weights=weights), first, second)

    assert lines == [f"first@{expected().digest}", f"second@{expected().digest}"]
    assert first.named == second.named == expected()
    assert first.blobs == second.blobs
    assert first.blobs[Digest.of(BOTTOM)] == BOTTOM
    assert {content.delivered for content in weights.values()} == {len(body) for body in WEIGHTS}


def test_a_sink_that_has_a_layer_receives_none_of_its_bytes() -> None:
    known = KnownLayer(Digest.of(BOTTOM))
    weights = weights_contents()
    sink = Memory(there=[BOTTOM])

    carry_out(planned(weights=weights, known=known), sink)

    assert sink.named == expected()
    assert sink.received == sum(layer.size for layer in planned().layers[1:])
    assert {content.delivered for content in weights.values()} == {0}


def test_a_layer_in_another_repository_is_taken_from_there() -> None:
    sink = Memory()
    sink.elsewhere = {Digest.of(BOTTOM): BOTTOM}

    carry_out(planned(known=KnownLayer(Digest.of(BOTTOM))), sink)

    assert sink.named == expected()
    assert sink.received == sum(layer.size for layer in planned().layers[1:])


def test_one_sink_has_it_all_and_the_other_gets_it_all() -> None:
    everything = [b"".join(layer.content.read()) for layer in planned().layers]
    has, lacks = Memory("has", there=everything), Memory("lacks")

    carry_out(planned(known=KnownLayer(Digest.of(BOTTOM))), has, lacks)

    assert has.received == 0
    assert lacks.received == sum(map(len, everything))
    assert has.named == lacks.named == expected()


def test_a_sink_that_needs_digests_first_gets_the_same_image_as_one_that_does_not() -> None:
    stdout, other = DigestsFirst("stdout"), Memory("other")

    carry_out(planned(), stdout, other)

    assert stdout.named == other.named == expected()
    assert stdout.blobs == other.blobs


def test_a_sink_that_goes_back_in_every_layer_gets_the_same_bytes() -> None:
    restless, calm = GoesBack("restless"), Memory("calm")

    carry_out(planned(), restless, calm)

    assert restless.blobs == calm.blobs
    assert restless.named == calm.named == expected()


def test_two_platforms_share_the_weights_that_move_once() -> None:
    weights = weights_contents()
    sink = Memory()

    carry_out(planned(AMD64, ARM64, weights=weights), sink)

    assert sink.named is not None
    assert [image.platform for image in sink.named.images] == [AMD64, ARM64]
    assert {content.delivered for content in weights.values()} == {len(body) for body in WEIGHTS}


def test_a_sink_of_one_platform_takes_no_bytes_of_another() -> None:
    engine = Memory("load", platforms=frozenset({AMD64}))

    carry_out(planned(AMD64, ARM64), engine)

    assert engine.named is not None
    assert engine.received == sum(layer.size for layer in planned(AMD64).layers)


def _damaged(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


@pytest.mark.parametrize("sinks", [[Memory], [Memory, Memory], [DigestsFirst], [DigestsFirst, GoesBack]])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", [0, -1])
def test_a_damaged_blob_of_the_model_leaves_nothing_with_a_name(
    sinks: list[type[Memory]], which: int, place: int
) -> None:
    weights: dict[Digest, Content] = dict(weights_contents())
    weights[BLOBS[which].digest] = Bytes(_damaged(WEIGHTS[which], place % len(WEIGHTS[which])))
    made, told = [kind() for kind in sinks], Told()

    with pytest.raises(CorruptBlobError, match=str(BLOBS[which].digest)):
        carry_out(planned(weights=weights), *made, told=told)

    assert [sink.named for sink in made] == [None] * len(made)
    assert [sink.staged for sink in made] == [[]] * len(made)
    assert all(Digest.of(body) == digest for sink in made for digest, body in sink.blobs.items())
    assert told == Told({}, [BLOBS[which].digest])


def test_a_damaged_layer_of_the_base_leaves_nothing_with_a_name() -> None:
    def damaged(platform: Platform) -> Mapping[Digest, Content]:
        contents = dict(base_contents(platform))
        digest, content = contents.popitem()
        return {**contents, digest: Bytes(_damaged(b"".join(content.read()), 30))}

    sink, told = Memory(), Told()

    with pytest.raises(CorruptBlobError, match="a layer is damaged"):
        carry_out(planned(bases=damaged), sink, told=told)

    assert sink.named is None
    assert list(told.good_layers) == [BLOBS]


def test_a_known_layer_that_is_not_what_was_known_leaves_nothing_with_a_name() -> None:
    sink, told = Memory(), Told()
    wrong = Digest.of(b"an annotation that lies")

    with pytest.raises(CorruptBlobError, match=f"expected {wrong}, found {Digest.of(BOTTOM)}"):
        carry_out(planned(known=KnownLayer(wrong)), sink, told=told)

    assert sink.named is None
    assert sink.blobs == {}
    assert told == Told({}, [wrong])


@pytest.mark.parametrize("error", [ApplianceError("gone", hint=""), KeyboardInterrupt(), OSError("broken")])
@pytest.mark.parametrize("sinks", [[Memory], [Memory, GoesBack], [DigestsFirst, Memory]])
def test_a_source_that_breaks_or_a_person_who_interrupts_leaves_nothing_with_a_name(
    error: BaseException, sinks: list[type[Memory]]
) -> None:
    weights: dict[Digest, Content] = dict(weights_contents())
    weights[BLOBS[1].digest] = Breaks(WEIGHTS[1], error)
    made = [kind() for kind in sinks]

    with pytest.raises(type(error)) as caught:
        carry_out(planned(weights=weights), *made)

    assert caught.value is error
    assert all(sink.named is None and not sink.staged for sink in made)


@pytest.mark.parametrize("order", [[Full, Memory], [Memory, Full], [Full, GoesBack]])
def test_the_failure_of_one_sink_is_told_and_leaves_no_name_in_any(order: list[type[Memory]]) -> None:
    made = [kind() for kind in order]

    with pytest.raises(ApplianceError, match="the disk is full"):
        carry_out(planned(), *made)

    assert all(sink.named is None and not sink.staged for sink in made)


def test_what_failed_once_is_finished_by_a_second_run_that_moves_only_what_is_missing() -> None:
    def damaged(platform: Platform) -> Mapping[Digest, Content]:
        return {digest: Breaks(b"".join(content.read()), OSError("broken"))
                for digest, content in base_contents(platform).items()}  # fmt: skip

    sink, told = Memory(), Told()
    with pytest.raises(OSError, match="broken"):
        carry_out(planned(bases=damaged), sink, told=told)
    sink.received = 0

    carry_out(planned(known=KnownLayer(told.good_layers[BLOBS])), sink)

    assert sink.named == expected()
    assert sink.received == sum(layer.size for layer in planned().layers[1:])


def test_a_layer_that_was_read_to_its_end_is_worth_remembering() -> None:
    told = Told()

    carry_out(planned(), Memory(), told=told)

    assert told == Told({BLOBS: Digest.of(BOTTOM)}, [])


def test_without_a_sink_the_digests_are_earned_all_the_same() -> None:
    told = Told()

    assert carry_out(planned(), told=told) == []
    assert told.good_layers == {BLOBS: Digest.of(BOTTOM)}


def test_a_layer_that_nobody_read_is_not_remembered_and_its_blobs_are_not_called_good() -> None:
    told = Told()

    carry_out(planned(known=KnownLayer(Digest.of(BOTTOM))), Memory(there=[BOTTOM]), told=told)

    assert told == Told()


class CannotCleanUp(Full):
    def abort(self) -> None:
        raise OSError("read-only file system")


def test_a_sink_that_cannot_clean_up_neither_hides_the_error_nor_keeps_the_others_from_it() -> None:
    stuck, other = CannotCleanUp("stuck"), Memory()
    other.staged.append(b"left by an upload")
    said = io.StringIO()

    with pytest.raises(ApplianceError, match="the disk is full"):
        execute(planned(), [stuck, other], settled=Told(), reporter=LineReporter(said))

    assert other.staged == []
    assert "warning: stuck: could not clean up: read-only file system" in said.getvalue()
