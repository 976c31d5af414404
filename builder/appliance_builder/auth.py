"""Authorization headers for one registry: what it demands is remembered, tokens are cached by scope and renewed early."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlencode, urlsplit

from appliance_builder.challenge import Basic, Bearer, Challenge, merged_scopes, parse_challenge
from appliance_builder.credentials import CredentialError, CredentialLookup, Credentials
from appliance_builder.network import is_loopback
from appliance_builder.registry_errors import ERROR_BYTES, RegistryError, login_hint, registry_error
from appliance_builder.waiting import Waiting, retry_after_s

if TYPE_CHECKING:
    from appliance_builder.http import Http

_CLIENT: Final = "ollama-appliance"
_DEFAULT_LIFE_S: Final = 60.0  # the token specification's, where a registry says nothing
_MARGIN_S: Final = 15.0
_LOGIN_REFUSED: Final = frozenset({400, 401, 403})  # 400: an identity token, as OAuth 2 has it

Scopes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    ends: float


class Authorizer:
    def __init__(self, host: str, http: Http, *, credentials: CredentialLookup, waiting: Waiting) -> None:
        self._host = host
        self._http = http
        self._lookup = credentials
        self._waiting = waiting
        self._challenge: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._extra: dict[Scopes, Scopes] = {}
        self._credentials: tuple[Credentials | None] | None = None
        self._lock = threading.RLock()

    def header(self, scopes: Iterable[str]) -> str | None:
        """None as long as the registry has demanded nothing, or nothing that could be given."""
        with self._lock:
            match self._challenge:
                case None:
                    return None
                case Basic():
                    credentials = self._known_credentials()
                    return _basic(credentials) if credentials and credentials.password else None
                case Bearer() as bearer:
                    return f"Bearer {self._token(bearer, merged_scopes(scopes)).text}"

    def refused(self, challenge_text: str, scopes: Iterable[str], *, used: str | None) -> bool:
        """Learn from a 401. Whether another try may help: with a first, a newer or a wider token."""
        with self._lock:
            challenge = parse_challenge(challenge_text)
            if challenge is None:
                return False
            asked = merged_scopes(scopes)
            known = self._tokens.get(asked)
            renewed = known is not None and used != f"Bearer {known.text}"  # by another thread, meanwhile
            if not renewed:
                self._tokens.pop(asked, None)
            if isinstance(challenge, Bearer) and challenge.scope:
                self._extra[asked] = merged_scopes((*self._extra.get(asked, ()), *challenge.scope.split()))
            first = used is None
            self._challenge = challenge
            if isinstance(challenge, Basic):
                credentials = self._known_credentials()
                if first or credentials is None:
                    return credentials is not None
                return used != _basic(credentials) or self._other_login()
            return True

    def _token(self, bearer: Bearer, asked: Scopes) -> _Token:
        known = self._tokens.get(asked)
        if known is None or known.ends <= self._waiting.clock():
            known = self._tokens[asked] = self._fetch(bearer, merged_scopes((*asked, *self._extra.get(asked, ()))))
        return known

    def _fetch(self, bearer: Bearer, scopes: Scopes) -> _Token:
        try:
            return self._ask(bearer, scopes)
        except RegistryError as error:
            if error.status not in _LOGIN_REFUSED or not self._other_login():
                raise
        return self._ask(bearer, scopes)

    def _ask(self, bearer: Bearer, scopes: Scopes) -> _Token:
        credentials = self._known_credentials()
        if credentials and not self._private(bearer.realm):
            place = urlsplit(bearer.realm).netloc.rpartition("@")[2]
            raise CredentialError(
                f"{self._host} wants its login sent unencrypted to {place}", hint=f"`--insecure {place}` allows it"
            )
        doing = f"logging in to {self._host}"
        asked_at = self._waiting.clock()
        method, url, headers, body = _token_request(bearer, scopes, credentials)
        with self._http.exchange(method, url, doing=doing, headers=headers, body=body) as answer:
            content = answer.body(limit_bytes=ERROR_BYTES)
            told_s = retry_after_s(answer.headers, self._waiting.now())
            if answer.status == 200 and (token := _parse_token(content, asked_at)):
                return token
            error = registry_error(self._host, doing, answer.status, answer.headers, content, retry_after_s=told_s)
            if not error.transient:
                error.hint = login_hint(self._host)
            raise error

    def _known_credentials(self) -> Credentials | None:
        if self._credentials is None:
            self._credentials = (self._lookup(self._host),)
        return self._credentials[0]

    def _other_login(self) -> bool:
        """Whether the one that was refused has been replaced: helpers of clouds give passwords for an hour or less."""
        refused = self._known_credentials()
        if refused is not None:
            self._credentials = (self._lookup(self._host),)
        return refused != self._known_credentials()

    def _private(self, realm: str) -> bool:
        parts = urlsplit(realm)
        place = parts.netloc.rpartition("@")[2]
        return parts.scheme == "https" or is_loopback(place) or place in self._http.network.insecure


def _token_request(
    bearer: Bearer, scopes: Scopes, credentials: Credentials | None
) -> tuple[str, str, Mapping[str, str], bytes | None]:
    if credentials and credentials.identity_token:
        fields = {
            "grant_type": "refresh_token",
            "service": bearer.service,
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            "refresh_token": credentials.identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return "POST", bearer.realm, headers, urlencode(fields).encode()
    query = [("service", bearer.service)] if bearer.service else []
    query += [("scope", scope) for scope in scopes]
    url = f"{bearer.realm}{'&' if '?' in bearer.realm else '?'}{urlencode(query)}"
    return "GET", url, {"Authorization": _basic(credentials)} if credentials else {}, None


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def _parse_token(content: bytes, asked_at: float) -> _Token | None:
    try:
        node = cast("object", json.loads(content))
    except ValueError:
        return None
    fields = cast("dict[str, object]", node) if isinstance(node, dict) else {}
    text = fields.get("token") or fields.get("access_token")
    life = fields.get("expires_in")
    life_s = float(life) if isinstance(life, int | float) and life > 0 else _DEFAULT_LIFE_S
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        return None
    return _Token(text, asked_at + max(life_s - _MARGIN_S, life_s / 2))
