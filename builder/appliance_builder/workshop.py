"""The neighbours of one command, opened when they are first needed and closed together: registries, engine, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from appliance_builder.archive_sink import ArchiveSink
from appliance_builder.blobcache import BlobCache
from appliance_builder.config import BuilderConfig, network
from appliance_builder.download import Downloads
from appliance_builder.images import OpenImage, existing_directory, open_source, split_scheme
from appliance_builder.layer_cache import LayerCache
from appliance_builder.layout import Location, open_archive, open_layout
from appliance_builder.layout_sink import LayoutSink
from appliance_builder.ollama_registry import OllamaRegistry
from appliance_builder.pace import Pace
from appliance_builder.ports import Reporter, Sink
from appliance_builder.quirks import quirks_for
from appliance_builder.registry import Repository
from appliance_builder.registry_sink import RegistrySink
from appliance_builder.request import Targets
from appliance_builder.transport import Transport
from appliance_builder.waiting import Waiting
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.reference import ImageReference, ModelName

if TYPE_CHECKING:
    from appliance_builder.engine import Engine
    from appliance_builder.http import Http


class Workshop:
    def __init__(
        self,
        config: BuilderConfig,
        reporter: Reporter,
        environ: Mapping[str, str],
        *,
        chunk_bytes: int | None = None,
    ) -> None:
        self.config = config
        self._chunk_bytes = chunk_bytes
        self.network = network(config)
        self.reporter = reporter
        self.environ = environ
        self.cache_directory = config.cache
        self.layers = LayerCache(config.cache / "layers.jsonl")
        self.blobs = BlobCache(config.cache / "blobs")
        self._downloads: Downloads | None = None
        self._closing = ExitStack()
        self._http: Http | None = None
        self._engine: Engine | None = None
        self._transports: dict[str, Transport] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def http(self) -> Http:
        if self._http is None:
            from appliance_builder.http import Http  # noqa: PLC0415 - 0.2 s for httpx, which a load never needs

            self._http = self._closing.enter_context(Http(self.network, environ=self.environ))
        return self._http

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            from appliance_builder.engine import Engine  # noqa: PLC0415 - 0.2 s for docker, which a push never needs

            self._engine = self._closing.enter_context(Engine.connect(self.environ))
        return self._engine

    @property
    def downloads(self) -> Downloads:
        if self._downloads is None:
            made = Downloads(self.blobs, self.reporter, connections=self.config.connections, pace=self._pace())
            self._downloads = self._closing.enter_context(made)
        return self._downloads

    def transport(self, host: str) -> Transport:
        if host not in self._transports:
            self._transports[host] = Transport(host, self.http, waiting=self._waiting(), note=self._note)
        return self._transports[host]

    def _note(self, text: str) -> None:
        if text:
            self.reporter.step(text)

    def _waiting(self) -> Waiting:
        patience_s = self.config.patience_s
        return Waiting() if patience_s is None else Waiting(patience_s=patience_s, answer_s=patience_s / 2)

    def _pace(self) -> Pace:
        patience_s = self.config.patience_s
        usual = Pace()
        if patience_s is None:
            return usual
        return replace(usual, patience_s=patience_s, doubt_s=min(patience_s, usual.doubt_s))

    def model_registry(self, name: ModelName) -> OllamaRegistry:
        return OllamaRegistry(name, self.transport(name.host), self.downloads)

    def repository(self, reference: ImageReference, *, push: bool = False) -> Repository:
        return Repository(self.transport(reference.host), reference.repository, push=push)

    def open_image(self, text: str) -> OpenImage:
        scheme, rest = split_scheme(text)
        if scheme == "oci:":
            return open_source(text, self._closing.enter_context(open_layout(Location.parse(rest))))
        if scheme == "oci-archive:":
            return open_source(text, self._closing.enter_context(open_archive(Location.parse(rest))))
        if scheme == "docker-daemon:":
            spool = self.cache_directory / "spool"
            return open_source(text, self._closing.enter_context(self.engine.export(rest, spool=spool)))
        reference = ImageReference.parse(text)
        return open_source(text, self.repository(reference), reference)

    def sinks(self, targets: Targets, name: ImageReference, *, mount_from: Mapping[str, Sequence[str]]) -> list[Sink]:
        """`mount_from`: for each registry host, repositories that may hold layers of this image."""
        sinks: list[Sink] = [self._output(text, name) for text in targets.outputs]
        if targets.push:
            sinks.append(self._registry_sink(name, mount_from.get(name.host, ())))
        if targets.load or not sinks:
            from appliance_builder.engine_sink import EngineSink  # noqa: PLC0415 - as above

            sinks.append(EngineSink(self.engine, name, self.reporter))
        return sinks

    def _registry_sink(self, name: ImageReference, others: Sequence[str]) -> RegistrySink:
        def mount_from(layer: Digest) -> list[str]:
            return list(dict.fromkeys([*self.layers.repositories(layer, host=name.host), *others]))

        return RegistrySink(
            self.repository(name, push=True),
            name,
            quirks=quirks_for(name.host, chunk_bytes=self._chunk_bytes),
            mount_from=mount_from,
            sessions=self.cache_directory / "uploads",
        )

    def _output(self, text: str, name: ImageReference) -> Sink:
        scheme, rest = split_scheme(text)
        if scheme == "oci:" and rest:
            location = Location.parse(rest)
            return LayoutSink(location.path, name, ref_name=location.name)
        if scheme == "oci-archive:" and rest:
            if rest == "-":
                return ArchiveSink.to_stdout(name)
            existing_directory(Path(rest).absolute().parent)
            return ArchiveSink.to_file(Path(rest), name)
        raise ApplianceError(f"not an output: {text!r}", hint="use `--output oci:DIR` or `--output oci-archive:FILE`")
