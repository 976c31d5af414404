"""What a host pays for a change: pull, upgrade the base, pull again, on real engines of both stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from building import MIB, Site, ok
from engines import Engine
from registries import Registry

PAD_BYTES = 70 * MIB  # enough for a layer of its own


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.lay("r1:big", pad_bytes=PAD_BYTES)
    return site


def weights_layer(site: Site, name: str) -> str:
    return str(json.loads(ok(site.run("inspect", name, "--json")).out)["layers"][0]["digest"])


def pulled(engine: Engine, registry: Registry, name: str) -> tuple[str, list[str]]:
    """What the engine said, and the blobs it fetched."""
    registry.forget()
    said = engine.run_cli("pull", name).stdout
    fetched = [entry.path.rpartition("/")[2] for entry in registry.requests("GET") if "/blobs/" in entry.path]
    return said, fetched


def test_an_upgraded_base_and_a_think_variant_leave_the_weights_where_they_are(
    site: Site, engine: Engine, registry: Registry
) -> None:
    engine.expose(*registry.ports)
    name = f"{registry.host}/ai/r1:big"
    ok(site.build("r1:big", "-t", name, "--push", version="0.32.14"))
    weights = weights_layer(site, name)

    _, first = pulled(engine, registry, name)
    ok(site.run("rebase", name, *site.base("0.32.15")))
    upgrade, second = pulled(engine, registry, name)
    ok(site.build("r1-think:big", "-t", f"{name}-think", "--push"))
    variant, third = pulled(engine, registry, f"{name}-think")

    assert weights in first
    assert weights not in second
    assert weights not in third
    if engine.kind == "classic":  # a containerd store does not mention every layer that it has
        line = f"{weights.removeprefix('sha256:')[:12]}: Already exists"
        assert line in upgrade
        assert line in variant
    assert len(third) <= 2  # the configuration and the model's small layer


def test_what_was_pulled_runs(site: Site, engine: Engine, registry: Registry) -> None:
    engine.expose(*registry.ports)
    name = f"{registry.host}/ai/r1:runs"
    ok(site.build("r1-think:big", "-t", name, "--push"))
    engine.run_cli("pull", name)

    said = engine.run_cli("run", "--rm", "--read-only", "--user", "65534:65534", name, "--version").stdout

    assert "version" in said
