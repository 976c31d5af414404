"""Recipes: what a file may say, which file a name means, and what the shipped ones come to."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_builder import models_table, recipe_files
from appliance_builder.memory import CARDS
from appliance_builder.recipe_schema import parse
from appliance_builder.recipes import DEFAULT_BASE, Recipe, RecipeError, ThinkMode, resolve
from appliance_image.digest import Digest
from appliance_image.reference import ModelName

_SHIPPED = recipe_files.shipped()
_EXAMPLE = _SHIPPED / "template.toml.example"
_PIN = "sha256:edba8017331d15236e57480eb45406c0d721db77a4cdcf234df500fc2ad3960c"

_FULL = f"""
description = "ours"
base = "registry.lan/ollama:0.32.15"
source = "hf.co/team/model"
think = "patch"
think_opening = "<think>"
think_closing = "</think>"
default_tag = "small"
template = '''
{{{{ .Prompt }}}}
'''
system = "be brief"
license = "free"
context_length = 4096
num_parallel = 2
[parameters]
temperature = 1
stop = ["<|end|>", "."]
use_mmap = false
[environment]
OLLAMA_KV_CACHE_TYPE = "q8_0"
[tags.small]
[tags."32b"]
manifest = "{_PIN}"
parameter_size = "32.8B"
weights_gb = 20
num_parallel = 3
architecture = {{ layers = 64, kv_heads = 8, head_dim = 128 }}
[tags."32b".parameters]
top_p = 0.5
temperature = 0.6
[tags."32b".environment]
OLLAMA_KV_CACHE_TYPE = "f16"
A = "b"
"""


def _recipe(text: str, tag: str | None = None) -> Recipe:
    return parse(text, name="model", where="model.toml").at(tag)


def _mistakes(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, name="model", where="model.toml")
    return caught.value.message


def test_a_file_that_says_everything_is_read_whole() -> None:
    recipe = _recipe(_FULL, "32b")

    assert (recipe.name, recipe.tag, recipe.description) == ("model", "32b", "ours")
    assert str(recipe.base) == "registry.lan/ollama:0.32.15"
    assert recipe.source == ModelName("hf.co", "team", "model", "32b")
    assert (recipe.think, recipe.think_opening, recipe.think_closing) == (ThinkMode.PATCH, "<think>", "</think>")
    assert (recipe.template, recipe.system, recipe.license) == ("{{ .Prompt }}", "be brief", "free")
    assert (recipe.context_length, recipe.num_parallel) == (4096, 3)
    assert recipe.manifest == Digest.parse(_PIN)
    assert (recipe.weights_bytes, recipe.parameter_size) == (20_000_000_000, "32.8B")


def test_a_tag_goes_over_what_the_file_says_for_all() -> None:
    recipe = _recipe(_FULL, "32b")

    assert recipe.parameters == {"temperature": 0.6, "top_p": 0.5, "stop": ["<|end|>", "."], "use_mmap": False}
    assert recipe.environment == {"OLLAMA_KV_CACHE_TYPE": "f16", "A": "b"}


def test_a_file_that_says_nothing_is_the_plain_model() -> None:
    recipe = _recipe("")

    assert recipe == Recipe("model", "latest", "", DEFAULT_BASE, ModelName.parse("model:latest"), ThinkMode.KEEP)


def test_without_a_tag_the_default_tag_is_meant() -> None:
    assert _recipe(_FULL).tag == "small"


def test_the_only_tag_is_the_default() -> None:
    assert _recipe("[tags.7b]").tag == "7b"


def test_of_several_tags_none_is_the_default_unless_the_file_says_so() -> None:
    assert _recipe("[tags.7b]\n[tags.8b]").tag == "latest"


def test_a_tag_that_is_not_listed_is_allowed_and_its_memory_is_unknown() -> None:
    recipe = _recipe(_FULL, "70b")

    assert recipe.source.tag == "70b"
    assert (recipe.context_length, recipe.num_parallel) == (4096, 2)
    assert (recipe.weights_bytes, recipe.gpu_memory_bytes, recipe.manifest) == (None, None, None)


def test_a_source_with_a_tag_keeps_it() -> None:
    assert _recipe('source = "qwen3:8b-q8_0"', "desk").source == ModelName.parse("qwen3:8b-q8_0")


@pytest.mark.parametrize(
    ("lines", "kv_bytes"),
    [
        ("architecture = { layers = 64, kv_heads = 8, head_dim = 128 }", 2 * 2**30),
        ("architecture = { layers = 61, kv_bytes_per_token = 70_272 }", 70_272 * 8192),
        (
            "architecture = { layers = 24, window_layers = 12, window = 128, kv_heads = 8, head_dim = 64 }",
            (192 + 18) * 2**20,
        ),
        (
            "num_parallel = 2\narchitecture.layers = 64\narchitecture.kv_heads = 8\narchitecture.head_dim = 128\nenvironment.OLLAMA_KV_CACHE_TYPE = 'q8_0'",
            2 * 1088 * 2**20,
        ),
    ],
)
def test_gpu_memory_is_estimated_from_the_shape_of_the_model(lines: str, kv_bytes: int) -> None:
    recipe = _recipe(f"[tags.x]\nweights_gb = 10\n{lines}")

    assert recipe.estimate is not None
    assert recipe.estimate.kv_bytes == kv_bytes
    assert recipe.gpu_memory_bytes == recipe.estimate.total_bytes


def test_gpu_memory_may_be_stated() -> None:
    recipe = _recipe("[tags.x]\ngpu_memory_gb = 24.5")

    assert (recipe.gpu_memory_bytes, recipe.estimate) == (24_500_000_000, None)


def test_num_ctx_is_the_context_that_counts() -> None:
    assert _recipe("[parameters]\nnum_ctx = 2048").context_length == 2048


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("base = ", "not TOML"),
        ("bsae = 'x'", "bsae: unknown key, did you mean `base`?"),
        ("zzz = 1", "zzz: unknown key"),
        ("base = 3", "base: should be a text, not the number 3"),
        ("base = ''", "base: is empty"),
        ("base = 'A B'", "base: not an image reference: 'A B'"),
        ("source = 'a/b/c/d'", "source: not a model name: 'a/b/c/d'"),
        ("think = 'always'", "think: should be `keep` or `patch`, not `always`"),
        ("think = true", "think: should be a text, not true"),
        ("think_opening = '<think>'", "think_opening: stands only together with `think_closing`"),
        ("context_length = '8k'", "context_length: should be a whole number, not the text '8k'"),
        ("context_length = 1", "context_length: should be from 64 to 16777216, not 1"),
        ("context_length = true", "context_length: should be a whole number, not true"),
        ("num_parallel = 1.5", "num_parallel: should be a whole number, not the number 1.5"),
        ("parameters = 3", "parameters: should be a table, not the number 3"),
        ("[parameters]\ntemprature = 1", "parameters.temprature: unknown key, did you mean `temperature`?"),
        ("[parameters]\ntop_p = 1.5", "parameters.top_p: should be from 0 to 1, not 1.5"),
        ("[parameters]\ntop_p = nan", "parameters.top_p: should be a number"),
        ("[parameters]\nstop = 'x'", "parameters.stop: should be a list of texts"),
        ("[parameters]\nstop = [1]", "parameters.stop: should be a list of texts"),
        ("[parameters]\nuse_mmap = 1", "parameters.use_mmap: should be true or false, not the number 1"),
        ("context_length = 100\n[parameters]\nnum_ctx = 200", "context_length: differs from `num_ctx`"),
        ("[environment]\nA = 1", "environment.A: should be a text, not the number 1"),
        ('[environment]\n"A B" = "1"', 'environment."A B": not the name of a variable'),
        ("[environment]\nOLLAMA_MODELS = '/x'", "environment.OLLAMA_MODELS: belongs to the image"),
        ("[environment]\nOLLAMA_CONTEXT_LENGTH = '1'", "OLLAMA_CONTEXT_LENGTH: has a key of its own, `context_length`"),
        ("[environment]\nOLLAMA_HOST = ':1'", "environment.OLLAMA_HOST: cannot be changed"),
        ("[environment]\nOLLAMA_GO_TEMPLATE = '0'", "environment.OLLAMA_GO_TEMPLATE: can only be `1`"),
        ("default_tag = '8b'\n[tags.7b]", "default_tag: is none of the tags"),
        ("tags = []", "tags: should be a table, not a list"),
        ("[tags]\n7b = 1", "tags.7b: should be a table, not the number 1"),
        ('[tags."a b"]', "tags: not a model name: 'model:a b'"),
        ("[tags.7b]\nmanifest = 'sha256:12'", "tags.7b.manifest: not a sha256 digest: 'sha256:12'"),
        ("[tags.7b]\nweights = 3", "tags.7b.weights: unknown key, did you mean `weights_gb`?"),
        ("weights_gb = 3", "weights_gb: unknown key"),
        ('[tags."1.5b"]\nweights_gb = -3', 'tags."1.5b".weights_gb: should be from 0.001 to 100000, not -3'),
        ("[tags.x]\narchitecture = { layers = 1, kv_heads = 1, head_dim = 1 }", "architecture: needs `weights_gb`"),
        (
            "[tags.x]\nweights_gb = 1\ngpu_memory_gb = 3\narchitecture = { layers = 1, kv_bytes_per_token = 2 }",
            "tags.x.gpu_memory_gb: stands only without `architecture`",
        ),
        ("[tags.x]\nweights_gb = 1\narchitecture = { kv_bytes_per_token = 2 }", "architecture.layers: is missing"),
        ("[tags.x]\nweights_gb = 1\narchitecture = { layers = 2, kv_heads = 2 }", "kv_heads: stands with `head_dim`"),
        (
            "[tags.x]\nweights_gb = 1\narchitecture = { layers = 2, kv_heads = 2, head_dim = 2, window = 5 }",
            "architecture.window: stands with",
        ),
        ("when = 2026-11-23", "when: unknown key"),
        ("description = 2026-11-23", "description: should be a text, not a date or time"),
    ],
)
def test_a_mistake_is_told_with_its_key(text: str, mistake: str) -> None:
    assert mistake in _mistakes(text)


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    told = _mistakes("bsae = 1\nthink = 'x'\n[tags.7b]\nwieghts_gb = 1\n[environment]\nHOME = '/'")

    assert told.startswith("model.toml: 4 mistakes\n")
    for key in ("bsae", "think", "tags.7b.wieghts_gb", "environment.HOME"):
        assert f"\n  {key}: " in told


@pytest.mark.parametrize("name", ["a b", "", "a:b", "x" * 90])
def test_a_file_is_called_as_a_model_can_be(name: str) -> None:
    with pytest.raises(RecipeError):
        parse("", name=name, where="x.toml")


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    try:
        product = parse(text, name="model", where="x")
    except RecipeError:
        return
    assert product.at(None).name == "model"


_SCALARS = st.one_of(st.integers(), st.booleans(), st.floats(), st.just("x"), st.just(""))


@given(
    key=st.sampled_from(["base", "source", "think", "tags", "parameters", "environment", "num_parallel"]), at=_SCALARS
)
def test_a_key_of_any_type_is_read_or_refused(key: str, at: object) -> None:
    text = f"{key} = {json.dumps(at)}".replace("NaN", "nan").replace("Infinity", "inf")

    told = ""
    try:
        _recipe(text)
    except RecipeError as error:
        told = error.message

    assert told == "" or key in told


# Which recipe a name means.


def _directory(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / f"{name.replace('_', '-')}.toml").write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "name", "tag", "source", "think"),
    [
        ("llama3:70b", "llama3", "70b", "llama3:70b", ThinkMode.KEEP),
        ("llama3", "llama3", "latest", "llama3:latest", ThinkMode.KEEP),
        ("magistral-think:24b", "magistral-think", "24b", "magistral:24b", ThinkMode.PATCH),
        ("magistral-think", "magistral-think", "latest", "magistral:latest", ThinkMode.PATCH),
        ("team/r1-think:x", "team/r1-think", "x", "team/r1:x", ThinkMode.PATCH),
        ("hf.co/team/r1:Q4_K_M", "hf.co/team/r1", "Q4_K_M", "hf.co/team/r1:Q4_K_M", ThinkMode.KEEP),
        ("localhost:5000/team/r1", "localhost:5000/team/r1", "latest", "localhost:5000/team/r1:latest", ThinkMode.KEEP),
        ("registry.ollama.ai/library/llama3:70b", "llama3", "70b", "llama3:70b", ThinkMode.KEEP),
    ],
)
def test_a_name_without_a_recipe_is_the_plain_model(
    text: str, name: str, tag: str, source: str, think: ThinkMode
) -> None:
    recipe = resolve(text, None)

    assert (recipe.name, recipe.tag, recipe.think) == (name, tag, think)
    assert recipe.source == ModelName.parse(source)
    assert (recipe.base, recipe.context_length, recipe.num_parallel) == (DEFAULT_BASE, 8192, 1)


def test_a_recipe_of_that_name_wins(tmp_path: Path) -> None:
    directory = _directory(tmp_path / "a", r1_think='source = "other"\nthink = "keep"')

    recipe = resolve("r1-think:7b", recipe_files.find("r1-think:7b", directories=[directory]))

    assert (recipe.name, recipe.source.short, recipe.think) == ("r1-think", "other:7b", ThinkMode.KEEP)


def test_the_think_name_of_a_recipe_has_its_settings(tmp_path: Path) -> None:
    directory = _directory(tmp_path / "a", r1="context_length = 999\n[tags.7b]")

    recipe = resolve("r1-think", recipe_files.find("r1-think", directories=[directory]))

    assert (recipe.name, recipe.source.short) == ("r1-think", "r1:7b")
    assert (recipe.think, recipe.context_length) == (ThinkMode.PATCH, 999)


def test_the_first_directory_wins(tmp_path: Path) -> None:
    user, machine = _directory(tmp_path / "u", r1="num_parallel = 7"), _directory(tmp_path / "m", r1="", r2="")
    directories = [tmp_path / "missing", user, machine]

    found = recipe_files.find("r1", directories=directories)

    assert found is not None
    assert found.at(None).num_parallel == 7
    assert [product.name for product in recipe_files.all_products(directories)] == ["r1", "r2"]


@pytest.mark.parametrize("text", ["team/r1:7b", "hf.co/team/r1", "r2"])
def test_a_recipe_is_for_the_library_name_only(tmp_path: Path, text: str) -> None:
    assert recipe_files.find(text, directories=[_directory(tmp_path / "a", r1="")]) is None


def test_a_recipe_file_given_by_hand_is_used_whatever_it_is_called(tmp_path: Path) -> None:
    product = recipe_files.load(_directory(tmp_path / "a", desk="num_parallel = 3") / "desk.toml")

    recipe = resolve("team/r1:7b", product)

    assert (recipe.name, recipe.source.short, recipe.num_parallel) == ("team/r1", "team/r1:7b", 3)


def test_a_recipe_that_patches_does_not_ask_the_library_for_a_think_model(tmp_path: Path) -> None:
    product = recipe_files.load(_directory(tmp_path / "a", r1_think='think = "patch"') / "r1-think.toml")

    assert resolve("r1-think:7b", product).source.short == "r1:7b"


@pytest.mark.parametrize("body", [b"\xff\xfe", b"#" * (1024 * 1024 + 1)])
def test_a_file_that_cannot_be_a_recipe_is_an_error_that_names_it(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(body)

    with pytest.raises(RecipeError, match=r"x\.toml"):
        recipe_files.load(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        recipe_files.load(tmp_path / "x.toml")


# What is shipped.


def test_the_shipped_recipes_are_these() -> None:
    names = [product.name for product in recipe_files.all_products([_SHIPPED])]

    assert names == ["deepseek-r1", "deepseek-r1-think", "gpt-oss", "qwen3"]


def test_the_think_recipe_differs_from_the_plain_one_in_nothing_else() -> None:
    plain, patched = (recipe_files.load(_SHIPPED / f"{name}.toml") for name in ("deepseek-r1", "deepseek-r1-think"))

    assert patched.think is ThinkMode.PATCH
    assert plain.think is ThinkMode.KEEP
    assert (patched.common, patched.variants) == (plain.common, plain.variants)
    assert (patched.source, patched.default_tag) == (plain.source, plain.default_tag)
    assert patched.variants["32b"] == plain.variants["32b"]


@pytest.mark.parametrize(
    ("model", "cards"),
    [
        ("deepseek-r1:7b", {16: 1}),
        ("deepseek-r1:14b", {16: 1}),
        ("deepseek-r1:32b", {16: 2, 24: 1}),
        ("deepseek-r1:70b", {24: 2, 48: 1, 80: 1}),
        ("deepseek-r1:671b", {80: 6, 141: 3}),
        ("qwen3:8b", {16: 1}),
        ("qwen3:30b", {24: 1}),
        ("qwen3:32b", {24: 1}),
        ("qwen3:235b", {80: 2}),
        ("gpt-oss:20b", {16: 1}),
        ("gpt-oss:120b", {80: 1}),
    ],
)
def test_a_shipped_recipe_fits_the_cards_its_comment_names(model: str, cards: dict[int, int]) -> None:
    recipe = resolve(model, recipe_files.find(model, directories=[_SHIPPED]))

    assert recipe.estimate is not None
    for gigabytes, gpus in cards.items():
        assert recipe.estimate.bytes_on_each(gpus) <= CARDS[gigabytes]
        assert gpus == 1 or recipe.estimate.bytes_on_each(gpus - 1) > CARDS[gigabytes]


def test_the_32b_model_is_pinned_and_weighed_exactly() -> None:
    recipe = resolve("deepseek-r1-think:32b", recipe_files.find("deepseek-r1-think:32b", directories=[_SHIPPED]))

    assert recipe.manifest == Digest.parse(_PIN)
    assert recipe.weights_bytes == 19_851_335_552
    assert recipe.source == ModelName.parse("deepseek-r1:32b")


def test_the_example_is_no_recipe_until_it_is_given_a_name(tmp_path: Path) -> None:
    path = tmp_path / "desk.toml"
    path.write_bytes(_EXAMPLE.read_bytes())

    recipe = recipe_files.load(path).at(None)

    assert recipe.tag == "32b"
    assert recipe.gpu_memory_bytes is not None
    assert "template" not in [product.name for product in recipe_files.all_products([_SHIPPED])]


# What `appliance models` shows.


def test_the_table_has_a_line_for_each_tag() -> None:
    products = recipe_files.all_products([_SHIPPED])

    lines = models_table.render(products).splitlines()

    assert lines[0].split("  ")[0] == "MODEL"
    assert len(lines) == 1 + sum(len(product.tags) for product in products)
    line = next(line for line in lines if line.startswith("deepseek-r1-think:32b"))
    assert " ".join(line.split()) == (
        "deepseek-r1-think:32b ~19.9 GB ~23.2 GB 1 x 24 GB 1 x 8192 patch edba8017331d ollama/ollama:0.32.15"
    )


def test_what_is_unknown_is_a_dash() -> None:
    line = models_table.render([parse("", name="model", where="x")]).splitlines()[1]

    assert " ".join(line.split()) == "model:latest - - - 1 x 8192 keep - ollama/ollama:0.32.15"


def test_no_recipes_are_told_in_words() -> None:
    assert models_table.render([]) == "no recipes\n"


def test_programs_get_bytes_and_numbers_of_cards() -> None:
    shown = json.loads(json.dumps(models_table.as_json([parse(_FULL, name="model", where="x")])))

    (product,) = shown["recipes"]
    small, large = product["tags"]
    assert (product["name"], product["default_tag"], product["think"]) == ("model", "small", "patch")
    assert (small["weights_bytes"], small["gpus"], small["source"]) == (None, None, "hf.co/team/model:small")
    assert (large["weights_bytes"], large["manifest"], large["gpus"]["24"]) == (20_000_000_000, _PIN, 2)
