"""The web-config file in force: read again when it or a certificate changed; a broken one leaves the last good one.

The files are looked at whenever somebody connects or asks, as exporter-toolkit does, so that a certificate may be
renewed without a word to the agent.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from appliance_agent.basic_auth import BasicAuth, Verdict
from appliance_agent.http_head import Answer, Request
from appliance_agent.web_config import ClientAuth, Tls, WebConfig, WebConfigError, parse

_MAX_BYTES: Final = 1024 * 1024
_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENTS: Final = {
    ClientAuth.NONE: ssl.CERT_NONE,
    ClientAuth.IF_GIVEN: ssl.CERT_OPTIONAL,
    ClientAuth.REQUIRED: ssl.CERT_REQUIRED,
}
_ALREADY: Final = "X-Content-Type-Options"  # is in every answer
_WHO = Answer(
    HTTPStatus.UNAUTHORIZED,
    b"name and password, please\n",
    headers={"WWW-Authenticate": 'Basic realm="ollama-agent", charset="UTF-8"'},
)
_LATER = Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many passwords are being checked\n", headers={"Retry-After": "1"})

_LOG = logging.getLogger(__name__)

_Seen = tuple[tuple[int, ...] | None, ...]  # of each file what tells one state from another


@dataclass(frozen=True, slots=True)
class _InForce:
    config: WebConfig
    tls: ssl.SSLContext | None
    auth: BasicAuth | None
    headers: Mapping[str, str]


class WebAccess:
    """A `web.Door`. `problem` is a sentence while the files on disk are not what is in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._in_force: _InForce | None = None
        self._files: tuple[Path, ...] = (path,)
        self._seen: _Seen = ()
        self.problem = ""

    def open(self) -> None:
        """Raises WebConfigError."""
        self._seen = _signatures(self._files)
        self._read()

    def tls(self) -> ssl.SSLContext | None:
        return self._now().tls

    def headers(self) -> Mapping[str, str]:
        return self._now().headers

    def refusal(self, request: Request) -> Answer | None:
        auth = self._now().auth
        verdict = auth.judge(request.headers.get("authorization", "")) if auth else Verdict.WELCOME
        return {Verdict.WELCOME: None, Verdict.UNKNOWN: _WHO, Verdict.BUSY: _LATER}[verdict]

    def _now(self) -> _InForce:
        with self._lock:
            seen = _signatures(self._files)
            if seen != self._seen:
                self._seen = seen
                self._read_again()
            if self._in_force is None:
                raise RuntimeError("open comes first")
            return self._in_force

    def _read_again(self) -> None:
        try:
            self._read()
        except WebConfigError as error:
            self.problem = f"the old web_config stays in force: {error.message}"
            _LOG.error("%s; %s", self.problem, error.hint)
        else:
            self.problem = ""
            _LOG.warning("%s is in force", self._path)

    def _read(self) -> None:
        config = parse(_text(self._path), path=self._path)
        files = (self._path, *(config.tls.files if config.tls else ()))
        if files != self._files:
            self._files = files
            self._seen = _signatures(files)
        context = _context(config.tls) if config.tls else None
        kept = self._in_force
        auth = BasicAuth(config.users) if config.users else None
        if kept and kept.config.users == config.users:
            auth = kept.auth  # what it remembers is still true
        headers = {name: value for name, value in config.headers.items() if name != _ALREADY}
        self._in_force = _InForce(config, context, auth, headers)


def _signatures(files: tuple[Path, ...]) -> _Seen:
    return tuple(_signature(file) for file in files)


def _signature(file: Path) -> tuple[int, ...] | None:
    try:
        told = os.stat(file)  # noqa: PTH116 - for each request
    except OSError:
        return None
    return (told.st_mtime_ns, told.st_ctime_ns, told.st_size, told.st_ino)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        hint = f"`web_config` in [metrics] names it; user ollama-agent must be able to read it: `ls -l {path}`"
        raise WebConfigError(f"web_config cannot be read: {path}: {error.strerror or error}", hint=hint) from error
    if len(content) > _MAX_BYTES:
        raise WebConfigError(f"larger than 1 MiB: {path}", hint="`web_config` in [metrics] names a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WebConfigError(f"not UTF-8: {path}", hint="save the file as UTF-8") from error


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = _VERSIONS[tls.min_version], _VERSIONS[tls.max_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # The password is asked for on the terminal otherwise.
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise _unfit(f"certificate {tls.certificate} with key {tls.key}", error) from error
    if tls.client_authority:
        try:
            context.load_verify_locations(tls.client_authority)
        except (OSError, ValueError) as error:
            raise _unfit(f"client_ca_file {tls.client_authority}", error) from error
    context.verify_mode = _CLIENTS[tls.client_auth]
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _unfit(what: str, error: Exception) -> WebConfigError:
    reason = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    words = reason or getattr(error, "reason", None) or str(error)
    hint = (
        "both are PEM files that user ollama-agent can read, and belong together: `openssl x509 -noout -text -in FILE`"
    )
    return WebConfigError(f"{what}: {str(words).replace('_', ' ').lower()}", hint=hint)
