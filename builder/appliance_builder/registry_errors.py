"""What a registry's refusal means: its own words, whether it may pass, and what the user can do. Decides only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, cast

from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB

ERROR_BYTES: Final = 64 * 1024
_TRANSIENT: Final = frozenset({408, 425, 429, 499, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529})
_SHOWN_CHARACTERS: Final = 300

_HINTS: Final = {
    403: "this login may not do that here: ask for the right, or `{login}` as somebody else",
    404: "check the address: is {host} a registry, and does the project exist there",
    405: "{host} does not allow this: is it a registry, and not a read-only one",
    413: "the registry, or a proxy before it, limits a request's size: `--chunk-size 64` sends smaller ones "
    "(nginx: `client_max_body_size 0`)",
    415: "{host} does not take this kind of content: is it a registry for container images",
    429: "{host} limits requests: `{login}` often raises the limit, else try again later",
    507: "{host} has no space left: free some, then run the command again",
}
_CODE_HINTS: Final = {
    "NAME_UNKNOWN": "check the repository's name; some registries want the project to be created first",
    "MANIFEST_UNKNOWN": "check the tag",
    "NAME_INVALID": "check the repository's name",
    "DENIED": "this login may not do that here: ask for the right, or `{login}` as somebody else",
    "DIGEST_INVALID": "bytes changed on the way or on disk: run the command again",
    "MANIFEST_BLOB_UNKNOWN": "the registry lost a layer it had confirmed: run the command again",
    "TOOMANYREQUESTS": "{host} limits requests: `{login}` often raises the limit, else try again later",
    "UNSUPPORTED": "{host} does not allow this: is it a registry, and not a read-only one",
}


class RegistryError(ApplianceError):
    def __init__(
        self, message: str, *, hint: str, host: str, status: int, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        return self.status in _TRANSIENT


def registry_error(
    host: str, doing: str, status: int, headers: Mapping[str, str], body: bytes, *, retry_after_s: float | None = None
) -> RegistryError:
    code, words = _registry_words(body)
    hints = {"host": host, "login": _login(host)}
    if _is_page(headers, body) and status not in (*_TRANSIENT, 413):
        message = f"{host} answered with a web page ({status}), not as a registry"
        hint = "check the address: a login page or a proxy may stand before it"
    elif status == 400 and b"HTTP" in body and b"HTTPS" in body:
        message, hint = (
            f"{host} speaks TLS, not plain HTTP",
            f"`--ca {host}=FILE` with the authority of its certificate",
        )
    else:
        message = f"{host} answered {' '.join(filter(None, (str(status), code)))}" + (f": {words}" if words else "")
        hint = _hint(status, code).format_map(hints)
    return RegistryError(
        f"{doing}: {message}", hint=hint, host=host, status=status, code=code, retry_after_s=retry_after_s
    )


def login_hint(host: str) -> str:
    return f"`{_login(host)}`"


def _login(host: str) -> str:
    return "docker login" if host == DOCKER_HUB else f"docker login {host}"


def _hint(status: int, code: str) -> str:
    if status == 401:
        return "`{login}`"
    fallback = (
        "{host} is in trouble, out of space perhaps: run the command again, what is there stays"
        if status >= 500
        else ""
    )
    return _CODE_HINTS.get(code) or _HINTS.get(status) or fallback or "check the address and the rights on {host}"


def _registry_words(body: bytes) -> tuple[str, str]:
    """Code and message of the first of the errors that the distribution specification lets a registry give."""
    try:
        node: object = json.loads(body)
    except ValueError:
        return "", ""
    fields = cast("dict[str, object]", node) if isinstance(node, dict) else {}
    errors = fields.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        fields = cast("dict[str, object]", errors[0])
    code, words = fields.get("code", fields.get("error")), fields.get("message", fields.get("details"))
    return _one_line(code), _one_line(words)


def _one_line(value: object) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "".join(character for character in text if character.isprintable())[:_SHOWN_CHARACTERS]


def _is_page(headers: Mapping[str, str], body: bytes) -> bool:
    return "text/html" in headers.get("content-type", "") or body.lstrip()[:9].lower().startswith(
        (b"<!doctype", b"<html")
    )
