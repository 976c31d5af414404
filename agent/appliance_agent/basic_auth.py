"""Who may ask: names and passwords of HTTP basic authentication, checked with bcrypt, which is dear, and remembered."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from collections.abc import Mapping
from enum import Enum
from typing import Final

_WAIT_S: Final = 5.0  # for the checks of others
_BCRYPT_BYTES: Final = 72  # of a password; what comes after them bcrypt has never looked at
_DECOY: Final = "$2b${cost:02d}$Q6wWqzU0h3CV3vQHYqQ5TOC9Gb9NPGH1xq8rFh8ZwJYOjRDWvGkmC"  # of no one


class Verdict(Enum):
    WELCOME = "welcome"
    UNKNOWN = "unknown"
    BUSY = "busy"  # too many wait to be checked


class BasicAuth:
    """One check at a time: bcrypt takes as much of the CPU as whoever chose its cost wanted.

    Of each user the last good password is remembered, as a keyed hash that lives as long as this object.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = {name.encode(): digest for name, digest in users.items()}
        self._decoy = _DECOY.format(cost=max((int(digest[4:6]) for digest in users.values()), default=10))
        self._key = secrets.token_bytes(32)
        self._good: dict[bytes, bytes] = {}
        self._checking = threading.Lock()

    def judge(self, authorization: str) -> Verdict:
        """Of an Authorization header; unknown users take as long as known ones with a wrong password."""
        said = _credentials(authorization)
        if said is None:
            return Verdict.UNKNOWN
        name, password = said
        if self._remembers(name, password):
            return Verdict.WELCOME
        if not self._checking.acquire(timeout=_WAIT_S):
            return Verdict.BUSY
        try:
            if self._remembers(name, password):  # by now
                return Verdict.WELCOME
            known = self._users.get(name)
            if not _matches(password, known or self._decoy) or known is None:
                return Verdict.UNKNOWN
            self._good[name] = self._digest(name, password)
            return Verdict.WELCOME
        finally:
            self._checking.release()

    def _remembers(self, name: bytes, password: bytes) -> bool:
        return hmac.compare_digest(self._good.get(name, b""), self._digest(name, password))

    def _digest(self, name: bytes, password: bytes) -> bytes:
        size = len(name).to_bytes(4, "big")
        return hashlib.blake2b(size + name + password, key=self._key).digest()


def _credentials(authorization: str) -> tuple[bytes, bytes] | None:
    scheme, _, payload = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(payload.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


def _matches(password: bytes, digest: str) -> bool:
    import bcrypt  # noqa: PLC0415 - only hosts with users pay for it

    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], digest.encode())
    except ValueError:  # a NUL in the password
        return False
