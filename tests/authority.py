"""Keys and certificates made by openssl when a test needs them: a private authority, and signed registry tokens."""

import base64
import json
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CA = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
_CLIENT = ("extendedKeyUsage=clientAuth",)
_SERVER = ("subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.example.com", "extendedKeyUsage=serverAuth")


@dataclass(frozen=True, slots=True)
class Authority:
    """`certificate` is what a client must trust; the server side uses `server_context`."""

    certificate: Path
    server_certificate: Path
    server_key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_certificate, self.server_key)
        return context


def make_authority(directory: Path, *, key_usage: bool = True) -> Authority:
    """Without `key_usage` as companies have made theirs for years, and as RFC 5280 does not allow."""
    _certificate(directory / "ca", _CA if key_usage else _CA[:1], signed_by=None)
    _certificate(directory / "server", _SERVER, signed_by=directory / "ca")
    return Authority(directory / "ca.crt", directory / "server.crt", directory / "server.key")


def make_client(directory: Path) -> tuple[Path, Path]:
    """A certificate and its key for a client, of the authority that was made there."""
    _certificate(directory / "client", _CLIENT, signed_by=directory / "ca")
    return directory / "client.crt", directory / "client.key"


@dataclass(frozen=True, slots=True)
class TokenSigner:
    certificate: Path
    key: Path

    def sign(self, claims: Mapping[str, object]) -> str:
        pem = self.certificate.read_text()
        chain = ["".join(pem.split("-----")[2].split())]
        head = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = _openssl("dgst", "-sha256", "-sign", str(self.key), stdin=text)
        return (text + b"." + _base64url(signature)).decode()


def make_token_signer(directory: Path) -> TokenSigner:
    _certificate(directory / "token", _CA, signed_by=None)
    return TokenSigner(directory / "token.crt", directory / "token.key")


def _certificate(stem: Path, extensions: tuple[str, ...], *, signed_by: Path | None) -> None:
    words = ["req", "-x509", "-batch", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={stem.name}"]
    words += ["-keyout", f"{stem}.key", "-out", f"{stem}.crt"]
    for extension in extensions:
        words += ["-addext", extension]
    if signed_by:
        words += ["-CA", f"{signed_by}.crt", "-CAkey", f"{signed_by}.key"]
    _openssl(*words)


def _openssl(*words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], check=True, input=stdin, capture_output=True).stdout


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
