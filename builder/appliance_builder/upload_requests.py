"""The requests an upload is made of, one method each. Decides nothing: when to send what is `upload`'s business."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from appliance_builder.network_errors import NetworkError
from appliance_builder.outgoing import Outgoing
from appliance_builder.registry_errors import ERROR_BYTES, RegistryError
from appliance_builder.transport import Transport
from appliance_builder.waiting import Patience
from appliance_image.digest import Digest

if TYPE_CHECKING:
    from appliance_builder.http import Answer

_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d+)")
_CANCEL_S: Final = 10.0
_STORED: Final = (200, 201, 204)
# How slowly a registry may move a finished upload to its place, or a proxy hand on the request that it has taken whole.
COMMIT_BYTES_PER_S: Final = 30_000_000


@dataclass(frozen=True, slots=True)
class Session:
    """An upload under way. Its location may hold a signed state: as good as a secret."""

    location: str
    chunk_least: int = 0
    chunk_most: int | None = None


class UploadRequests:
    def __init__(self, transport: Transport, name: str, scopes: tuple[str, ...]) -> None:
        self._transport = transport
        self._name = name
        self._scopes = scopes
        self.label = f"{transport.host}/{name}"

    def begin(self, patience: Patience | None = None) -> Session:
        reply = self._transport.call(
            "POST",
            self._url(),
            doing=f"uploading to {self.label}",
            scopes=self._scopes,
            expect=(202,),
            patience=patience,
        )
        least = reply.headers.get("oci-chunk-min-length", "")
        most = reply.headers.get("oci-chunk-max-length", "")
        return Session(
            self._location(reply.headers, reply.url),
            int(least) if least.isdecimal() else 0,
            int(most) if most.isdecimal() and int(most) else None,
        )

    @contextmanager
    def send(
        self, session: Session, body: Outgoing, *, offset: int, size: int, doing: str, ranged: bool
    ) -> Generator[Answer]:
        """One PATCH, one try. A first and only one goes without Content-Range, as Docker's do."""
        headers = {"Content-Type": "application/octet-stream"}
        if ranged and body.size:
            headers["Content-Range"] = f"{offset}-{offset + body.size - 1}"
        with self._transport.open(
            "PATCH",
            session.location,
            doing=doing,
            scopes=self._scopes,
            headers=headers,
            body=body,
            read_s=_answer_s(size),
        ) as answer:
            if answer.status < 300:
                self._transport.check_page(answer, doing)
            yield answer

    def advanced(self, session: Session, answer: Answer) -> Session:
        """The session after an accepted part: most registries name a new location each time."""
        answer.body(limit_bytes=ERROR_BYTES)  # to its end, so that the connection serves the next part
        location = answer.headers.get("location")
        if not location:
            return session
        url = self._transport.locate(location, answer.url)
        return Session(url, session.chunk_least, session.chunk_most)

    def status(self, session: Session, patience: Patience) -> tuple[Session, int] | None:
        """The session and how many bytes of it the registry has; None if it knows nothing of it (any more)."""
        try:
            reply = self._transport.call(
                "GET",
                session.location,
                doing=f"asking {self.label} how far an upload is",
                scopes=self._scopes,
                expect=(200, 202, 204),
                patience=patience,
            )
        except RegistryError as error:
            if error.transient or error.status == 401:
                raise
            return None
        size = received(reply.headers)
        if size is None:
            return None
        location = reply.headers.get("location")
        url = self._transport.locate(location, reply.url) if location else session.location
        return Session(url, session.chunk_least, session.chunk_most), size

    def put(
        self, session: Session, digest: Digest, body: bytes | Outgoing, *, doing: str, size: int = 0
    ) -> NetworkError | RegistryError | None:
        """The PUT that ends an upload, one try. An error may be ambiguous: the blob may be there all the same."""
        url = f"{session.location}{'&' if '?' in session.location else '?'}{urlencode({'digest': str(digest)})}"
        headers = {"Content-Type": "application/octet-stream"}
        try:
            with self._transport.open(
                "PUT",
                url,
                doing=doing,
                scopes=self._scopes,
                headers=headers,
                body=body,
                read_s=_answer_s(size),
            ) as answer:
                if answer.status not in _STORED:
                    return self._transport.refusal(answer, doing)
                self._transport.check_page(answer, doing)
                answer.body(limit_bytes=ERROR_BYTES)
                stored = answer.headers.get("docker-content-digest", "")
                if stored.startswith("sha256:") and stored != str(digest):
                    return RegistryError(
                        f"{doing}: the registry stored {stored}, not {digest}",
                        hint="run the command again; a proxy between may change bytes",
                        host=self._transport.host,
                        status=answer.status,
                        code="DIGEST_INVALID",
                    )
                return None
        except (NetworkError, RegistryError) as error:
            return error

    def refusal(self, answer: Answer, doing: str) -> RegistryError:
        return self._transport.refusal(answer, doing)

    def mount(self, digest: Digest, source: str) -> bool:
        query = urlencode({"mount": str(digest), "from": source})
        try:
            reply = self._transport.call(
                "POST",
                f"{self._url()}?{query}",
                doing=f"mounting {digest.short} in {self.label}",
                scopes=(*self._scopes, f"repository:{source}:pull"),
                expect=(201, 202),
            )
        except RegistryError as error:
            if error.transient:
                raise
            return False  # not this one, not from there, or not at all: sending it is always possible
        if reply.status == 202 and reply.headers.get("location"):
            self.cancel(self._location(reply.headers, reply.url))
        return reply.status == 201

    def cancel(self, location: str) -> bool:
        """One try: there is nothing to lose by a session that stays."""
        try:
            with self._transport.open(
                "DELETE", location, doing=f"cancelling an upload to {self.label}", scopes=self._scopes, read_s=_CANCEL_S
            ) as answer:
                answer.body(limit_bytes=ERROR_BYTES)
                return answer.status in (200, 202, 204, 404)
        except (NetworkError, RegistryError):
            return False

    def _location(self, headers: Mapping[str, str], base: str) -> str:
        if location := headers.get("location"):
            return self._transport.locate(location, base)
        raise RegistryError(
            f"uploading to {self.label}: the registry opened an upload without saying where",
            hint=f"check the address: is {self._transport.host} a registry",
            host=self._transport.host,
            status=202,
        )

    def _url(self) -> str:
        return self._transport.url(f"{quote(self._name)}/blobs/uploads/")


def _answer_s(size: int) -> float:
    return 60 + size / COMMIT_BYTES_PER_S


def received(headers: Mapping[str, str]) -> int | None:
    """How many bytes a Range header confirms; None without one. `0-0` stands for none: a single byte is never sent."""
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if not match:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
