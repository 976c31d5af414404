"""`appliance build` and its siblings against a real registry, layouts and archives: what a user gets, and what moves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from building import APPLIANCE, MIB, OLLAMA, Site, failed, ok
from registries import Registry

from appliance_image.oci import ImageConfig, Index, Manifest

pytestmark = pytest.mark.registry


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.lay()
    return site


def sent_bytes(registry: Registry) -> int:
    return sum(entry.request_bytes for entry in registry.requests())


def test_a_pushed_image_prints_its_digest_and_keeps_the_contract(site: Site, registry: Registry) -> None:
    name = f"{registry.host}/ai/r1"

    ran = ok(site.build("r1:tiny", "-t", f"{name}:tiny", "--push"))

    assert len(ran.lines) == 1
    assert ran.lines[0].startswith(f"{name}@sha256:")
    assert ok(site.run("verify", f"{name}:tiny")).lines == [f"{name}:tiny@{ran.lines[0].partition('@')[2]}"]


def test_pushing_again_sends_nothing_and_asks_little(site: Site, registry: Registry) -> None:
    words = ("-t", f"{registry.host}/ai/r1:tiny", "--push")
    first = ok(site.build("r1:tiny", *words))
    registry.forget()

    second = ok(site.build("r1:tiny", *words))

    assert second.lines == first.lines
    assert len(registry.requests()) <= 10
    assert sent_bytes(registry) == 0


def test_another_machine_learns_the_layer_from_the_registry_and_sends_nothing(site: Site, registry: Registry) -> None:
    words = ("-t", f"{registry.host}/ai/r1:tiny", "--push")
    first = ok(site.build("r1:tiny", *words))
    site.forget()
    registry.forget()

    second = ok(site.build("r1:tiny", *words))

    assert second.lines == first.lines
    assert sent_bytes(registry) == 0


@pytest.mark.parametrize("target", ["r1:think", "r1-think:tiny"])
def test_a_think_variant_moves_no_weights(site: Site, registry: Registry, target: str) -> None:
    ok(site.build("r1:tiny", "-t", f"{registry.host}/ai/r1:tiny", "--push"))
    registry.forget()

    ok(site.build("r1-think:tiny", "-t", f"{registry.host}/ai/{target}", "--push"))
    inspected = json.loads(ok(site.run("inspect", f"{registry.host}/ai/{target}", "--json")).out)

    assert sent_bytes(registry) < 64_000
    assert inspected["think"] == "patched"
    assert '+{{- if and $last (ne .Role "assistant") }}' in inspected["template_diff"]
    ok(site.run("verify", f"{registry.host}/ai/{target}"))


def test_a_rebase_moves_the_changed_base_layers_only(site: Site, registry: Registry) -> None:
    name = f"{registry.host}/ai/r1:tiny"
    ok(site.build("r1-think:tiny", "-t", name, "--push"))
    before = json.loads(ok(site.run("inspect", name, "--json")).out)
    registry.forget()

    ok(site.run("rebase", name, *site.base("0.32.99")))
    after = json.loads(ok(site.run("inspect", name, "--json")).out)

    assert sent_bytes(registry) < 200_000
    assert after["ollama_version"] == "0.32.99"
    assert after["layers"][0] == before["layers"][0]
    assert after["layers"][-1] == before["layers"][-1]
    assert after["template_diff"] == before["template_diff"]
    ok(site.run("verify", name))


def test_building_on_the_new_base_and_rebasing_onto_it_give_the_same_image(site: Site, registry: Registry) -> None:
    rebased, built = f"{registry.host}/ai/a:1", f"{registry.host}/ai/b:1"
    ok(site.build("r1-think:tiny", "-t", rebased, "--push"))

    one = ok(site.run("rebase", rebased, *site.base("0.32.99")))
    other = ok(site.build("r1-think:tiny", "-t", built, "--push", version="0.32.99"))

    assert one.lines[0].partition("@")[2] == other.lines[0].partition("@")[2]


def test_from_image_makes_the_think_variant_without_the_model_at_hand(site: Site, registry: Registry) -> None:
    plain, thinks = f"{registry.host}/ai/r1:tiny", f"{registry.host}/ai/r1-think:tiny"
    ok(site.build("r1:tiny", "-t", plain, "--push"))
    elsewhere = Site(site.directory / "elsewhere")
    registry.forget()

    ok(elsewhere.run("build", "r1-think:tiny", "--from-image", plain, *site.base(), "-t", thinks, "--push"))

    assert sent_bytes(registry) < 64_000
    assert ok(elsewhere.run("verify", thinks)).status == 0
    direct = ok(site.build("r1-think:tiny", "-t", f"{registry.host}/ai/direct:1", "--push"))
    again = ok(site.run("inspect", thinks, "--json"))
    assert json.loads(again.out)["digest"] == direct.lines[0].partition("@")[2]


def test_an_image_that_was_patched_can_be_unpatched_from_itself(site: Site, registry: Registry) -> None:
    thinks = f"{registry.host}/ai/r1-think:tiny"
    ok(site.build("r1-think:tiny", "-t", thinks, "--push"))

    ok(
        site.run(
            "build", "r1:tiny", "--from-image", thinks, *site.base(), "-t", f"{registry.host}/ai/r1:tiny", "--push"
        )
    )
    inspected = json.loads(ok(site.run("inspect", f"{registry.host}/ai/r1:tiny", "--json")).out)

    assert inspected["think"] == "as-is"
    assert inspected["template_diff"] == ""


def test_registry_layout_and_archive_get_the_same_image_in_one_pass(site: Site, registry: Registry) -> None:
    layout, archive = site.directory / "layout", site.directory / "模型.tar"

    ran = ok(
        site.build(
            "r1-think:tiny",
            *("-t", f"{registry.host}/ai/r1:tiny", "--push"),
            *("--output", f"oci:{layout}", "--output", f"oci-archive:{archive}"),
        )
    )
    digests = {
        json.loads(ok(site.run("inspect", image, "--json")).out)["digest"]
        for image in (f"oci:{layout}", f"oci-archive:{archive}", f"{registry.host}/ai/r1:tiny")
    }

    assert len(ran.lines) == 3
    assert len(digests) == 1
    assert ok(site.run("verify", f"oci-archive:{archive}")).status == 0


def test_an_archive_on_stdout_is_the_one_in_a_file(site: Site, registry: Registry) -> None:
    archive = site.directory / "image.tar"
    words = ["build", "r1:tiny", "--from-store", str(site.store), *site.base(), "-t", "r1:tiny"]
    ok(site.run(*words, "--output", f"oci-archive:{archive}"))

    with (site.directory / "stdout.tar").open("wb") as file:
        subprocess.run([APPLIANCE, *words, "--output", "oci-archive:-"], stdout=file, env=site.environment, check=True)

    inspected = [
        json.loads(ok(site.run("inspect", f"oci-archive:{path}", "--json")).out)["digest"]
        for path in (archive, site.directory / "stdout.tar")
    ]
    assert inspected[0] == inspected[1]


def test_an_archive_carried_to_another_site_is_pushed_byte_for_byte(site: Site, registry: Registry) -> None:
    archive, name = site.directory / "image.tar", f"{registry.host}/far/r1:tiny"
    ok(site.build("r1:tiny", "-t", "r1:tiny", "--output", f"oci-archive:{archive}"))
    made = json.loads(ok(site.run("inspect", f"oci-archive:{archive}", "--json")).out)["digest"]

    pushed = ok(site.run("push", name, "--from", f"oci-archive:{archive}"))

    assert pushed.lines == [f"{registry.host}/far/r1@{made}"]
    ok(site.run("verify", name))


def test_two_platforms_share_the_weights(site: Site, registry: Registry) -> None:
    name = f"{registry.host}/ai/r1:both"
    base = site.base(platforms=("linux/amd64", "linux/arm64"))
    words = ["build", "r1:tiny", "--from-store", str(site.store), *base, "--platform", "linux/amd64,linux/arm64"]

    ok(site.run(*words, "-t", name, "--push"))
    images = [
        json.loads(ok(site.run("inspect", name, "--platform", platform, "--json")).out)
        for platform in ("linux/amd64", "linux/arm64")
    ]

    weights = [image["layers"][0]["digest"] for image in images]
    assert weights[0] == weights[1]
    uploads = [entry for entry in registry.requests("PATCH") if entry.request_bytes >= MIB]
    assert sum(1 for entry in uploads if abs(entry.request_bytes - MIB) < 8192) == 1
    assert {image["platform"] for image in images} == {"linux/amd64", "linux/arm64"}


def test_plan_says_what_would_move_and_does_nothing(site: Site, registry: Registry) -> None:
    words = [
        "r1-think:tiny",
        "--from-store",
        str(site.store),
        *site.base(),
        "-t",
        f"{registry.host}/ai/r1:tiny",
        "--push",
    ]

    planned = json.loads(ok(site.run("plan", *words, "--json")).out)
    methods = {entry.method for entry in registry.requests()}
    ok(site.run("build", *words))
    again = json.loads(ok(site.run("plan", *words, "--json")).out)
    pushed = json.loads(ok(site.run("inspect", f"{registry.host}/ai/r1:tiny", "--json")).out)

    assert methods <= {"GET", "HEAD"}
    assert all(layer["moves_to"] for layer in planned["layers"])
    assert "+{{- if and $last" in planned["template_diff"]
    assert not any(layer["moves_to"] for layer in again["layers"])
    assert again["digest"] == pushed["digest"]


def test_an_older_ollama_in_the_base_is_refused_for_a_patched_template_only(site: Site) -> None:
    layout = f"oci:{site.directory / 'layout'}"

    message, hint = failed(site.build("r1-think:tiny", "-t", "x:1", "--output", layout, version="0.12.3"))
    plain = site.build("r1:tiny", "-t", "x:1", "--output", layout, version="0.12.3")

    assert "0.12.4 or newer" in message
    assert "--base" in hint
    assert plain.status == 0


def test_an_unpatched_model_passes_through_byte_for_byte(site: Site) -> None:
    layout = site.directory / "layout"
    ok(site.build("r1:tiny", "-t", "x:1", "--output", f"oci:{layout}"))
    stored = (site.store / "manifests/registry.ollama.ai/library/r1/tiny").read_bytes()

    manifest = image_manifest(layout)
    top = (layout / "blobs/sha256" / manifest.layers[-1].digest.hex).read_bytes()

    assert stored in top


def image_manifest(layout: Path) -> Manifest:
    entry = Index.parse((layout / "index.json").read_bytes()).manifests[0]
    return Manifest.parse((layout / "blobs/sha256" / entry.digest.hex).read_bytes())


def test_the_configuration_keeps_the_base_and_adds_the_contract(site: Site) -> None:
    layout = site.directory / "layout"
    ok(site.build("r1-think:tiny", "-t", "x:1", "--output", f"oci:{layout}"))

    manifest = image_manifest(layout)
    config = ImageConfig.parse((layout / "blobs/sha256" / manifest.config.digest.hex).read_bytes())

    assert config.environment["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert config.environment["OLLAMA_MODELS"] == "/models"
    assert config.environment["OLLAMA_GO_TEMPLATE"] == "1"
    assert config.labels["io.github.ollama-appliance.ollama-version"] == OLLAMA
    assert str(site.directory) not in json.dumps(dict(config.node))
    assert len(config.diff_ids) == len(manifest.layers)
    assert manifest.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar"
