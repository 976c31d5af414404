"""The files that tests are made of: tiny and scripted models, and stores laid by hand."""

import hashlib
import os
from pathlib import Path

import gguf
import pytest
from ollamastore import Absent, Config, Source, lay_model
from scriptedgguf import script_pieces, write_scripted_gguf
from scriptedstore import lay_scripted_models
from standinserver import OllamaServer
from tinygguf import write_tiny_gguf


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- GGUF ------------------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_tiny_file(tmp_path: Path) -> None:
    written = [write_tiny_gguf(tmp_path / name, script="Hi.", pad_bytes=3_000_001, seed=5) for name in ("a", "b")]

    assert written[0] == written[1]
    assert written[0].sha256 == sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert written[0].size == (tmp_path / "a").stat().st_size > 3_000_001
    assert write_tiny_gguf(tmp_path / "c", pad_bytes=3_000_001, seed=6).sha256 != written[0].sha256


@pytest.mark.parametrize("pad_bytes", [0, 1, 31, 32, 33, 2**20 + 1])
def test_a_tiny_file_is_a_gguf_that_other_programs_read(tmp_path: Path, pad_bytes: int) -> None:
    write_tiny_gguf(
        tmp_path / "tiny.gguf", script="Grüße.", pad_bytes=pad_bytes, metadata={"a.b": ["x", "y"], "c": 0.5}
    )
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")

    assert reader.fields["standin.script"].contents() == "Grüße."
    assert reader.fields["a.b"].contents() == ["x", "y"]
    assert reader.fields["c"].contents() == 0.5
    assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == 512 + pad_bytes


def test_the_same_arguments_give_the_same_scripted_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scripted_gguf(tmp_path / name)

    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert sha256(tmp_path / "a") == "a071e597f111e6bf3b1a9da9f76b5089f71de5c6a8af1cfcd79735762627194d"


def test_a_script_that_says_a_piece_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="said twice"):
        script_pieces("no", "no no no")


@pytest.mark.ollama
def test_a_real_server_says_the_script_that_is_asked_for(tmp_path: Path) -> None:
    write_scripted_gguf(tmp_path / "model.gguf", think="First I count.", answer="One two three.", words=100)
    lay_scripted_models(tmp_path / "store", tmp_path)
    lay_model(tmp_path / "store", "counts:1", {"model": tmp_path / "model.gguf"})
    server = OllamaServer(tmp_path / "store", tmp_path / "home", command=(os.environ["OLLAMA_BIN"],))
    with server:
        answer = server.ask(
            "POST", "/api/generate", {"model": "counts:1", "prompt": "Go.", "stream": False, "raw": True}
        )

    words = "".join(f" word{number}" for number in range(1, 101))
    said = f"\\u003cthink\\u003e\\nFirst I count.\\u003c/think\\u003e\\n\\nOne two three.{words}"
    assert f'"response":"{said}"' in answer.text
    assert '"eval_count":111' in answer.text


# --- stores ----------------------------------------------------------------------------------------------------------

TEMPLATE_2025 = "sha256:369ca498f347f710d068cbb38bf0b8692dd3fa30f30ca2ff755e211c94768150"
TEMPLATE_NOW = "sha256:c5ad996bda6eed4df6e3b605a9869647624851ac248209d22fd5e2c0cc1121d3"
WEIGHTS = "sha256:6150cb382311b69f09cc0f9a1b69fc029cbd742b66bb8ec531aa5ecf5c613e93"
LICENSE = "sha256:6e4c38e1172f42fdbff13edf9a7a017679fb82b0fde415a3e8b3c31c6ed4a4e4"
PARAMS = "sha256:f4d24e9138dd4603380add165d2b0d970bef471fac194b436ebd50e6147c6588"
STOPS: Source = {"stop": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]}


@pytest.mark.parametrize(
    ("template", "size", "model_id"), [(TEMPLATE_2025, 387, "38056bbcbb2d"), (TEMPLATE_NOW, 556, "edba8017331d")]
)
def test_the_published_deepseek_r1_32b_comes_out_byte_for_byte(
    tmp_path: Path, template: str, size: int, model_id: str
) -> None:
    layers = {
        "model": Absent(WEIGHTS, 19_851_335_552),
        "template": Absent(template, size),
        "license": Absent(LICENSE, 1065),
        "params": STOPS,
    }
    config = Config(model_type="32.8B", file_type="Q4_K_M", diff_ids=[WEIGHTS, TEMPLATE_2025, LICENSE, PARAMS])
    model = lay_model(tmp_path, "deepseek-r1:32b", layers, config=config)

    assert model.digest.startswith(model_id)
    assert model.config.digest == "sha256:c7f3ea903b50b3c9a42221b265ade4375d1bb5e3b6b6731488712886a8c41ff0"
    assert model.layers[3].digest == PARAMS
    assert model.manifest_path == tmp_path / "manifests/registry.ollama.ai/library/deepseek-r1/32b"
    assert sha256(model.manifest_path) == model.digest


def test_what_create_makes_of_a_model_comes_out_byte_for_byte(tmp_path: Path) -> None:
    model = lay_model(
        tmp_path,
        "deepseek-r1-think:32b",
        {
            "model": Absent("sha256:ded778454e616169e86bc482acd584e2b429a7004f9c32520b6ae9bca1ef70dc", 330176),
            "license": Absent(LICENSE, 1065),
            "template": Absent("sha256:2e59eddf3df9b8b07611e1035a4b68de4dd6025a45cd042fba28e86d59874ff7", 559),
            "params": STOPS,
        },
        origins={"model": "deepseek-r1:32b", "license": "deepseek-r1:32b"},
        created=True,
    )

    assert model.digest == "8c1b3c0c6e21b1731b7a41f8225ae60ac35e1e7cb4fbaa1851b78a21b7534941"
    assert model.config.size == 484


def test_a_store_has_the_modes_of_a_real_one_and_several_licenses(tmp_path: Path) -> None:
    store = tmp_path / "store"
    model = lay_model(store, "host:5000/team/m:1", {"template": "{{ .Prompt }}", "license": ["one", "two"]})
    modes = {path.stat().st_mode & 0o777 for path in store.rglob("*") if path.is_file()}

    assert [layer.kind for layer in model.layers] == ["template", "license", "license"]
    assert model.manifest_path == store / "manifests/host:5000/team/m/1"
    assert modes == {0o644}
