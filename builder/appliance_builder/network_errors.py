"""What goes wrong before a server's answer is complete, told in words: names, ports, certificates, time, cut lines."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from appliance_image.errors import ApplianceError

# What OpenSSL says when the other side answers a TLS greeting in plain HTTP.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE")


class Fault(Enum):
    NAME = auto()
    REFUSED = auto()
    UNTRUSTED = auto()
    NOT_TLS = auto()
    CONNECT_TIMEOUT = auto()
    TIMEOUT = auto()
    BROKEN = auto()
    PROXY = auto()
    PROXY_BUSY = auto()
    REQUEST = auto()


_WORDS: Final = {
    Fault.NAME: ("no address is known for {where}", "check the name, or set HTTPS_PROXY or a mirror"),
    Fault.REFUSED: ("{where} refuses connections", "check the port, and that the server runs"),
    Fault.UNTRUSTED: (
        "the certificate of {host} is not trusted: {detail}",
        "`--ca {host}=FILE` adds the authority that signed it",
    ),
    Fault.NOT_TLS: ("{host} speaks plain HTTP, not TLS", "`--insecure {host}`, if that is intended"),
    Fault.CONNECT_TIMEOUT: ("{where} does not answer", "check the address, the firewall and HTTPS_PROXY"),
    Fault.TIMEOUT: (
        "{host} was silent for {silence}",
        "run the command again; a mirror that stores a blob before it sends it may need a larger APPLIANCE_PATIENCE",
    ),
    Fault.BROKEN: ("the connection to {host} broke: {detail}", "run the command again"),
    Fault.PROXY: ("the proxy {proxy} refused: {detail}", "check HTTPS_PROXY and NO_PROXY"),
    Fault.PROXY_BUSY: (
        "the proxy {proxy} did not reach {host}: {detail}",
        "run the command again; if it stays so, check the address, HTTPS_PROXY and NO_PROXY",
    ),
    Fault.REQUEST: ("cannot ask {host}: {detail}", "check the address"),
}
_LASTING = frozenset({Fault.UNTRUSTED, Fault.NOT_TLS, Fault.PROXY, Fault.REQUEST})
_UNREACHED = frozenset({Fault.NAME, Fault.REFUSED, Fault.CONNECT_TIMEOUT, Fault.PROXY_BUSY})


class NetworkError(ApplianceError):
    def __init__(self, message: str, *, hint: str, host: str, fault: Fault) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.fault = fault

    @property
    def transient(self) -> bool:
        return self.fault not in _LASTING

    @property
    def unreached(self) -> bool:
        """Nobody was there: likely a wrong address, if that host never answered before."""
        return self.fault in _UNREACHED

    @property
    def retry_after_s(self) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class Situation:
    """What an error's message tells of the exchange: never a path with a query, never credentials."""

    doing: str
    host: str
    proxy: str | None
    read_s: float


def os_fault(error: BaseException) -> tuple[Fault, str] | None:
    """The cause that the operating system or TLS gave, and its own words, if there is one behind `error`."""
    return next((fault for fault in map(_os_fault, _causes(error)) if fault), None)


def _os_fault(cause: BaseException) -> tuple[Fault, str] | None:
    found: tuple[Fault, str] | None = None
    match cause:
        case ssl.SSLCertVerificationError():
            found = Fault.UNTRUSTED, cause.verify_message
        case ssl.SSLError() if cause.reason in _NOT_TLS:
            found = Fault.NOT_TLS, ""
        case ssl.SSLError():
            found = Fault.BROKEN, cause.reason or "TLS failed"
        case socket.gaierror():
            found = Fault.NAME, ""
        case ConnectionRefusedError():
            found = Fault.REFUSED, ""
        case OSError() if cause.strerror:
            found = Fault.BROKEN, cause.strerror.lower()
        case _:
            pass
    return found


def proxy_fault(answer: str) -> Fault:
    """By what a proxy answers to CONNECT, `503 Service Unavailable`: one of many may fail, a refusal is for good."""
    status = answer.partition(" ")[0]
    passing = status in ("408", "429") or (len(status) == 3 and status.isdecimal() and status[0] == "5")
    return Fault.PROXY_BUSY if passing else Fault.PROXY


def network_error(fault: Fault, detail: str, situation: Situation) -> NetworkError:
    host = situation.host
    where = f"the proxy {situation.proxy}" if situation.proxy and fault in _UNREACHED else host
    words = {
        "where": where,
        "host": host,
        "proxy": situation.proxy,
        "silence": f"{situation.read_s:.0f} s",
        "detail": detail or "no more is known",
    }
    message, hint = _WORDS[fault]
    text = f"{situation.doing}: {message.format_map(words)}"
    return NetworkError(text, hint=hint.format_map(words), host=host, fault=fault)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
