"""Names as Docker and Ollama read them: what is understood, what is filled in, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_image.digest import Digest, DigestError
from appliance_image.errors import ApplianceError
from appliance_image.reference import ImageReference, ModelName, NameSyntaxError

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag"),
    [
        ("ubuntu", "docker.io", "library/ubuntu", None),
        ("ubuntu:24.04", "docker.io", "library/ubuntu", "24.04"),
        ("ollama/ollama:0.32.15", "docker.io", "ollama/ollama", "0.32.15"),
        ("a/b/c", "docker.io", "a/b/c", None),
        ("docker.io/ubuntu", "docker.io", "library/ubuntu", None),
        ("docker.io/ollama/ollama", "docker.io", "ollama/ollama", None),
        ("index.docker.io/library/ubuntu", "docker.io", "library/ubuntu", None),
        ("registry-1.docker.io/ollama/ollama", "docker.io", "ollama/ollama", None),
        ("registry.example.com/r1", "registry.example.com", "r1", None),
        ("registry.example.com/ai/deepseek-r1:32b", "registry.example.com", "ai/deepseek-r1", "32b"),
        ("localhost/r1", "localhost", "r1", None),
        ("localhost:5000/r1:32b", "localhost:5000", "r1", "32b"),
        ("localhost:5000", "docker.io", "library/localhost", "5000"),
        ("127.0.0.1:5000/ai/r1", "127.0.0.1:5000", "ai/r1", None),
        ("[::1]:5000/ai/r1:32b", "[::1]:5000", "ai/r1", "32b"),
        ("[2001:db8::1]/r1", "[2001:db8::1]", "r1", None),
        ("REGISTRY/r1", "REGISTRY", "r1", None),
        ("Registry.Example.com/r1", "Registry.Example.com", "r1", None),
        ("r.lan/a_b/c__d/e---f/g.h", "r.lan", "a_b/c__d/e---f/g.h", None),
        ("r.lan/r1:V1.0_rc-2", "r.lan", "r1", "V1.0_rc-2"),
        ("r.lan/r1:" + "t" * 128, "r.lan", "r1", "t" * 128),
    ],
)
def test_an_image_reference_is_read_as_docker_reads_it(text: str, host: str, repository: str, tag: str | None) -> None:
    assert ImageReference.parse(text) == ImageReference(host, repository, tag)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":32b",
        "/r1",
        "r.lan/",
        "r.lan//r1",
        "r.lan/r1/",
        "r.lan/r1:",
        "r.lan/r1:.hidden",
        "r.lan/r1:-dash",
        "r.lan/r1:a b",
        "r.lan/r1:" + "t" * 129,
        "r.lan/-r1",
        "r.lan/r1-",
        "r.lan/r1_",
        "r.lan/a___b",
        "r.lan/a..b",
        "r.lan/R1",
        "Ubuntu",
        "under_score.lan/r1",
        "r.lan:port/r1",
        "r.lan:123456/r1",
        "-r.lan/r1",
        "[::1/r1",
        "[::g]/r1",
        "https://r.lan/r1",
        "r.lan/r1\n",
        " r.lan/r1",
        "r.lan/r1:32b\n",
        "深度求索/r1",
        "r.lan/深度求索",
        "r.lan/r1:最新",
        "r.lan/r1:٣",
    ],
)
def test_what_is_no_image_reference_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(NameSyntaxError) as caught:
        ImageReference.parse(text)

    assert repr(text) in caught.value.message
    assert "registry.example.com/ai/deepseek-r1:32b" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["r1@", "r1@sha256:abc", f"r1@sha512:{HEX}{HEX}", f"r1@sha256:{HEX.upper()}", f"r1@{HEX}"]
)
def test_a_broken_digest_is_named_as_such(text: str) -> None:
    with pytest.raises(DigestError, match="not a sha256 digest"):
        ImageReference.parse(text)


def test_a_digest_wins_over_a_tag_and_both_are_kept() -> None:
    both = ImageReference.parse(f"r.lan/r1:32b@sha256:{HEX}")

    assert both == ImageReference("r.lan", "r1", "32b", Digest(HEX))
    assert both.manifest == f"sha256:{HEX}"
    assert str(both) == f"r.lan/r1:32b@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "name", "manifest", "canonical", "whole"),
    [
        ("ubuntu", "ubuntu", "latest", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("ollama/ollama:1", "ollama/ollama", "1", "docker.io/ollama/ollama:1", "ollama/ollama:1"),
        ("localhost:5000/x:y", "localhost:5000/x", "y", "localhost:5000/x:y", "localhost:5000/x:y"),
        ("library.lan/library/x", "library.lan/library/x", "latest", "library.lan/library/x:latest", "library.lan/library/x:latest"),
    ],
)  # fmt: skip
def test_a_reference_is_written_as_docker_shows_it(
    text: str, name: str, manifest: str, canonical: str, whole: str
) -> None:
    reference = ImageReference.parse(text)

    assert (reference.name, reference.manifest, reference.canonical, str(reference)) == (
        name,
        manifest,
        canonical,
        whole,
    )


def test_a_reference_pinned_to_a_digest_has_no_tag() -> None:
    pinned = ImageReference.parse("r.lan/r1:32b").at(Digest(HEX))

    assert str(pinned) == f"r.lan/r1@sha256:{HEX}"


_PARTS = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,5})?", fullmatch=True)


@given(
    st.sampled_from(["docker.io", "r.lan", "localhost:5000", "[::1]:5000", "10.0.0.1"]),
    st.lists(_PARTS, min_size=1, max_size=3),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
)
def test_what_is_written_is_read_back_the_same(host: str, parts: list[str], tag: str | None) -> None:
    if host == "docker.io" and len(parts) > 1:
        parts[0] = parts[0].replace(".", "-")  # Docker drops its host from what it shows, so its users have no dots
    first = ImageReference.parse("/".join([host, *parts]) + (f":{tag}" if tag else ""))
    again = ImageReference.parse(str(first))

    assert (again.host, again.repository) == (first.host, first.repository)
    assert again.manifest == first.manifest


@given(st.text(max_size=40))
def test_any_text_is_either_a_name_or_an_error_for_people(text: str) -> None:
    for parse in (ImageReference.parse, ModelName.parse):
        try:
            found: object = parse(text)
        except ApplianceError as error:
            found = error.message and error.hint

        assert found


@pytest.mark.parametrize(
    ("text", "path", "short"),
    [
        ("deepseek-r1", "registry.ollama.ai/library/deepseek-r1/latest", "deepseek-r1:latest"),
        ("deepseek-r1:32b", "registry.ollama.ai/library/deepseek-r1/32b", "deepseek-r1:32b"),
        ("library/deepseek-r1:32b", "registry.ollama.ai/library/deepseek-r1/32b", "deepseek-r1:32b"),
        ("registry.ollama.ai/library/r1:7b", "registry.ollama.ai/library/r1/7b", "r1:7b"),
        ("someone/r1", "registry.ollama.ai/someone/r1/latest", "someone/r1:latest"),
        ("hf.co/user/Repo.GGUF:Q4_K_M", "hf.co/user/Repo.GGUF/Q4_K_M", "hf.co/user/Repo.GGUF:Q4_K_M"),
        ("mirror.lan:8080/library/r1:7b", "mirror.lan:8080/library/r1/7b", "mirror.lan:8080/library/r1:7b"),
        ("Llama3:8B-Instruct", "registry.ollama.ai/library/Llama3/8B-Instruct", "Llama3:8B-Instruct"),
        ("_private/_model:_tag", "registry.ollama.ai/_private/_model/_tag", "_private/_model:_tag"),
        ("qwen2.5-coder:1.5b", "registry.ollama.ai/library/qwen2.5-coder/1.5b", "qwen2.5-coder:1.5b"),
        ("m" * 80, f"registry.ollama.ai/library/{'m' * 80}/latest", f"{'m' * 80}:latest"),
    ],
)
def test_a_model_name_is_filled_in_as_ollama_does(text: str, path: str, short: str) -> None:
    name = ModelName.parse(text)

    assert (name.path, str(name)) == (path, short)
    assert ModelName.parse(name.short) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "r1:",
        ":32b",
        "/r1",
        "a//r1",
        "h.lan/ns/",
        "a/b/c/d",
        "https://h.lan/ns/r1",
        "h.lan/name.space/r1",
        "h.lan/ns:1/r1",
        ".hidden",
        "-dash",
        "../../etc/passwd",
        "h.lan/../r1",
        "h.lan/ns/..",
        "r1:..",
        "r1:a:b",
        "r1:a b",
        "r1@sha256:" + HEX,
        "r1\n",
        "深度求索",
        "深度求索:32b",
        "r1:三十二",
        "r1/ß",
        "m" * 81,
        "r1:" + "t" * 81,
    ],
)
def test_what_is_no_model_name_is_refused_and_never_becomes_a_path(text: str) -> None:
    with pytest.raises(NameSyntaxError) as caught:
        ModelName.parse(text)

    assert caught.value.message == f"not a model name: {text!r}"
    assert "deepseek-r1:32b" in caught.value.hint


@given(st.text(alphabet="ab./_:-~\\\0\n深", max_size=30))
def test_the_path_of_a_model_has_four_parts_and_none_leads_away(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except NameSyntaxError:
        return
    parts = name.path.split("/")

    assert len(parts) == 4
    assert not {"", ".", ".."} & set(parts)


@pytest.mark.parametrize("written", [f"sha256:{HEX}", f"sha256-{HEX}"])
def test_a_digest_is_read_in_both_spellings(written: str) -> None:
    digest = Digest.parse(written)

    assert (str(digest), digest.file_name, digest.short) == (f"sha256:{HEX}", f"sha256-{HEX}", HEX[:12])


@pytest.mark.parametrize(
    "text", ["", HEX, f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"SHA256:{HEX}", f"sha256_{HEX}", f"sha256:{HEX}\n"]
)
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(DigestError) as caught:
        Digest.parse(text)

    assert repr(text) in caught.value.message
