"""Authenticated requests to one registry host: challenges, redirects, retries, and refusals in words. Knows no
manifests and no blobs."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from appliance_builder.auth import Authorizer
from appliance_builder.credentials import CredentialLookup, stored_credentials
from appliance_builder.network import is_loopback
from appliance_builder.network_errors import NetworkError
from appliance_builder.outgoing import Outgoing
from appliance_builder.registry_errors import ERROR_BYTES, RegistryError, registry_error
from appliance_builder.waiting import Note, Patience, Waiting, retry_after_s, silent

if TYPE_CHECKING:
    from appliance_builder.http import Answer, Http

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 5
_FIRST_CONTACT_S: Final = 5.0  # for a host that never answered: likely a wrong address
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer read to its end, or to the limit that was given."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: bytes


class Transport:
    def __init__(
        self,
        host: str,
        http: Http,
        *,
        credentials: CredentialLookup = stored_credentials,
        waiting: Waiting | None = None,
        note: Note = silent,
    ) -> None:
        self.host = host
        self._http = http
        self._endpoint = http.network.endpoint(host)
        # Who answers, and whose login is used: a mirror never gets the one of the registry it stands for.
        self.place = urlsplit(self._endpoint).netloc if host in http.network.mirrors else host
        self._waiting = waiting or Waiting()
        self._note = note
        self._auth = Authorizer(self.place, http, credentials=credentials, waiting=self._waiting)
        self._answered = False

    def url(self, path: str) -> str:
        return f"{self._endpoint}/v2/{path}"

    def patience(self, note: Note | None = None, *, at_least_s: float = 0) -> Patience:
        return Patience(self._waiting, note or self._note, at_least_s=at_least_s)

    def call(
        self,
        method: str,
        url: str,
        *,
        doing: str,
        scopes: Collection[str],
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit_bytes: int = ERROR_BYTES,
        patience: Patience | None = None,
    ) -> Reply:
        """A whole small exchange that may be made again; RegistryError for a status that is not expected."""
        patience = patience or self.patience()
        while True:
            try:
                with self.open(method, url, doing=doing, scopes=scopes, headers=headers, body=body) as answer:
                    if answer.status in expect:
                        content = answer.body(limit_bytes=limit_bytes)
                        self._refuse_page(answer, content, doing)
                        return Reply(answer.status, answer.headers, answer.url, content)
                    raise self.refusal(answer, doing)
            except (NetworkError, RegistryError) as error:
                if not self.retry(error, patience):
                    raise

    def check_page(self, answer: Answer, doing: str) -> None:
        """For accepted requests: a login page before a registry accepts everything, and does nothing."""
        if "text/html" in answer.headers.get("content-type", ""):
            self._refuse_page(answer, answer.body(limit_bytes=ERROR_BYTES), doing)

    def retry(self, error: NetworkError | RegistryError, patience: Patience) -> bool:
        """Wait, if it may help; False if it is of no use or the time is up."""
        if not error.transient:
            return False
        first = isinstance(error, NetworkError) and error.unreached and not self._answered
        return patience.wait(error, budget_s=_FIRST_CONTACT_S if first else None)

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        doing: str,
        scopes: Collection[str],
        headers: Mapping[str, str] | None = None,
        body: bytes | Outgoing | None = None,
        read_s: float | None = None,
    ) -> Generator[Answer]:
        """One try, whatever its status. Goes where GET and HEAD are redirected to, and logs in where that is demanded.

        A 401 to a body that cannot be sent again is handed out; the next try has a new token.
        """
        login_tried = False
        redirects = 0
        while True:
            used = self._auth.header(scopes) if self._own(url) else None
            fields = {**(headers or {}), **({"Authorization": used} if used else {})}
            with self._http.exchange(
                *(method, url), doing=doing, headers=fields, body=body, read_s=read_s, answer_s=self._waiting.answer_s
            ) as answer:
                self._answered = True
                target = self._redirect(method, answer, redirects)
                again = False
                if answer.status == 401 and self._own(url) and not (login_tried and used):
                    text = answer.headers.get("www-authenticate", "")
                    again = self._auth.refused(text, scopes, used=used) and not isinstance(body, Outgoing)
                if target is None and not again:
                    yield answer
                    return
                answer.body(limit_bytes=ERROR_BYTES)  # an answer read to its end leaves a connection to use again
            login_tried |= again and used is not None
            if target is not None:
                url, redirects = target, redirects + 1

    def refusal(self, answer: Answer, doing: str) -> RegistryError:
        told_s = retry_after_s(answer.headers, self._waiting.now())
        try:
            body = answer.body(limit_bytes=ERROR_BYTES)
        except NetworkError:  # the status is what counts
            body = b""
        own = self._own(answer.url)
        host = self.place if own else urlsplit(answer.url).netloc
        error = registry_error(host, doing, answer.status, answer.headers, body, retry_after_s=told_s)
        if not own and not error.transient:
            error.hint = f"{self.place} gave a link to its storage, which refuses it: check this machine's clock and "
            error.hint += "the proxy between"
        return error

    def locate(self, location: str, base: str) -> str:
        """A Location header, relative or absolute. A registry behind TLS that believes it speaks plain HTTP is corrected."""
        url = urljoin(base, location)
        wanted, own = urlsplit(url), urlsplit(base)
        if wanted.netloc == own.netloc and wanted.scheme != own.scheme:
            return wanted._replace(scheme=own.scheme).geturl()
        return url

    def _refuse_page(self, answer: Answer, content: bytes, doing: str) -> None:
        """By its words: some registries give that type to empty answers."""
        if "text/html" in answer.headers.get("content-type", "") and content.lstrip().startswith(b"<"):
            raise registry_error(self.place, doing, answer.status, answer.headers, content)

    def _redirect(self, method: str, answer: Answer, redirects: int) -> str | None:
        location = answer.headers.get("location")
        if method not in ("GET", "HEAD") or answer.status not in _REDIRECTS or not location:
            return None
        url = self.locate(location, answer.url)
        place = urlsplit(url).netloc
        if redirects == _MOST_REDIRECTS or not self._allowed(url):
            why = f"{_MOST_REDIRECTS} times" if redirects == _MOST_REDIRECTS else f"to {place} without encryption"
            raise RegistryError(
                f"{self.host} redirects {why}",
                hint=f"check the registry's configuration; `--insecure {place}` allows plain HTTP there",
                host=self.host,
                status=answer.status,
            )
        return url

    def _allowed(self, url: str) -> bool:
        parts = urlsplit(url)
        plain = not self._endpoint.startswith("https:") or parts.netloc in self._http.network.insecure
        return parts.scheme == "https" or (parts.scheme == "http" and (plain or is_loopback(parts.netloc)))

    def _own(self, url: str) -> bool:
        """Whether a URL is the registry's own, so that credentials may go there."""
        return _origin(url) == _origin(self._endpoint)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
