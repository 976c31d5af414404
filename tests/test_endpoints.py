"""How hosts are reached: plain HTTP on loopback and where it was asked for, TLS everywhere else, mirrors in place of hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance_builder.network import Network, is_loopback, parse_ca
from appliance_image.errors import ApplianceError

CA = Path("ca.pem")


@pytest.mark.parametrize(
    ("network", "host", "endpoint"),
    [
        (Network(), "docker.io", "https://registry-1.docker.io"),
        (Network(), "registry.ollama.ai", "https://registry.ollama.ai"),
        (Network(), "r.lan:5000", "https://r.lan:5000"),
        (Network(), "localhost:5000", "http://localhost:5000"),
        (Network(), "localhost", "http://localhost"),
        (Network(), "127.0.0.1:5000", "http://127.0.0.1:5000"),
        (Network(), "127.8.8.8", "http://127.8.8.8"),
        (Network(), "[::1]:5000", "http://[::1]:5000"),
        (Network(), "10.0.0.1:5000", "https://10.0.0.1:5000"),
        (Network(), "localhost.evil.example", "https://localhost.evil.example"),
        (Network(), "127.0.0.1.evil.example", "https://127.0.0.1.evil.example"),
        (Network(insecure=frozenset({"r.lan:5000"})), "r.lan:5000", "http://r.lan:5000"),
        (Network(insecure=frozenset({"r.lan:5000"})), "r.lan", "https://r.lan"),
        (Network(ca={"localhost:5000": CA}), "localhost:5000", "https://localhost:5000"),
        (Network(insecure=frozenset({"r.lan"}), ca={"r.lan": CA}), "r.lan", "https://r.lan"),
        (Network(mirrors={"docker.io": "mirror.lan"}), "docker.io", "https://mirror.lan"),
        (Network(mirrors={"docker.io": "127.0.0.1:5000"}), "docker.io", "http://127.0.0.1:5000"),
        (Network(mirrors={"docker.io": "http://mirror.lan/hub/"}), "docker.io", "http://mirror.lan/hub"),
        (Network(mirrors={"docker.io": "mirror.lan"}, insecure=frozenset({"mirror.lan"})), "docker.io", "http://mirror.lan"),
        (Network(mirrors={"docker.io": "mirror.lan"}), "r.lan", "https://r.lan"),
    ],
)  # fmt: skip
def test_a_host_is_reached_over_tls_unless_it_is_loopback_or_named_insecure(
    network: Network, host: str, endpoint: str
) -> None:
    assert network.endpoint(host) == endpoint


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.255.255.254:1", True),
        ("[::1]", True),
        ("[::2]:1", False),
        ("128.0.0.1", False),
        ("example.com", False),
        ("", False),
        ("[1.2.3.4]:1", False),
        ("[zz]", False),
        ("[::1", False),
    ],
)
def test_loopback_is_what_cannot_leave_the_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_ca_is_a_host_and_a_file_that_is_there(tmp_path: Path) -> None:
    certificate = tmp_path / "ca=1.pem"
    certificate.write_text("PEM")

    assert parse_ca(f"r.lan:5000={certificate}") == ("r.lan:5000", certificate)


@pytest.mark.parametrize("text", ["", "r.lan", "r.lan=", "=ca.pem"])
def test_a_ca_that_is_no_host_and_file_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ApplianceError, match="not HOST=FILE") as caught:
        parse_ca(text)

    assert "--ca registry.example.com=" in caught.value.hint


def test_a_ca_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match=f"no certificate file: {tmp_path}/none"):
        parse_ca(f"r.lan={tmp_path}/none")
