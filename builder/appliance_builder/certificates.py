"""Whom TLS connections trust: the system's authorities and, for one host, those the user added. Reads files only."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from appliance_image.errors import ApplianceError

# Where distributions keep the bundle; a Python built elsewhere looks in its own builder's place.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_ENGINE_DIRECTORY = Path("/etc/docker/certs.d")


def trust(host: str, added: Path | None) -> ssl.SSLContext:
    """A context for `host`; an authority that the host's Docker Engine was given for it counts as well."""
    context = ssl.create_default_context()
    # Python 3.13's own idea: it refuses authorities of companies that Docker, curl and browsers accept.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not ({"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys()):
        bundle = next((path for path in _BUNDLES if Path(path).is_file()), None)
        _load(context, [Path(bundle)] if bundle else [])
    _load(context, _engine_authorities(host))
    _load(context, [added] if added else [])
    return context


def _engine_authorities(host: str) -> list[Path]:
    try:
        return sorted((_ENGINE_DIRECTORY / host).glob("*.crt"))
    except OSError:  # not for this user to read
        return []


def _load(context: ssl.SSLContext, files: Iterable[Path]) -> None:
    for path in files:
        try:
            context.load_verify_locations(path)
        except PermissionError:
            continue
        except (OSError, ssl.SSLError) as error:
            raise ApplianceError(
                f"not a certificate file: {path}", hint="give the authority's certificate in PEM format"
            ) from error
