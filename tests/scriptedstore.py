"""A store with the models that the recordings were made with, in kind: one that can think, the same patched to
think always, and one that talks without end."""

from collections.abc import Sequence
from pathlib import Path

from ollamastore import Absent, Config, StoredModel, blob_path, lay_model, manifest_path
from scriptedgguf import write_scripted_gguf
from tinygguf import write_tiny_gguf

STOPS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
MODIFIED_S = 1_700_000_000.0  # long ago, so that a listed age does not change while a test runs
LICENSE = "A licence for tests.\n" + "Permission is hereby granted to nobody in particular.\n" * 40

_TURNS = """\
{{- if .System }}{{ .System }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>
{{- if and $.IsThinkSet .Thinking }}<think>
{{ .Thinking }}
</think>
{{- end }}{{ .Content }}<｜end▁of▁sentence｜>
{{- end }}
{{- end }}<｜Assistant｜>
"""
THINKING_TEMPLATE = (
    _TURNS
    + """\
{{- if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}"""
)
PATCHED_TEMPLATE = (
    _TURNS
    + """\
{{- if not (and $.IsThinkSet (not $.Think)) }}{{ "<think>\\n" }}{{ end }}"""
)


def lay_scripted_models(store: Path, work: Path, *, newest: bool = False) -> list[StoredModel]:
    """`newest`: the way a server from 0.32 on writes the configs of created models."""
    work.mkdir(parents=True, exist_ok=True)
    model, tiny = work / "scripted.gguf", work / "tiny.gguf"
    write_scripted_gguf(model)
    write_tiny_gguf(tiny, script="on and on and on ", endless=True, metadata={"qwen2.embedding_length": 128})
    size = "158.61K" if newest else "158K"
    base = lay_model(
        store,
        "deepseek-r1:32b",
        {"model": model, "template": THINKING_TEMPLATE, "license": LICENSE, "params": {"stop": STOPS}},
        config=Config(model_type="32.8B", file_type="Q4_K_M"),
        modified_s=MODIFIED_S,
    )
    patched = lay_model(
        store,
        "deepseek-r1-think:32b",
        {"model": model, "license": LICENSE, "template": PATCHED_TEMPLATE, "params": {"stop": STOPS}},
        config=Config(has_rootfs=not newest),
        origins={"model": base.name, "license": base.name},
        created=True,
        modified_s=MODIFIED_S,
    )
    endless = lay_model(
        store,
        "tiny:latest",
        {"model": tiny, "params": {"num_thread": 1}},
        config=Config(model_type=size),
        created=True,
        modified_s=MODIFIED_S,
    )
    return [base, patched, endless]


def lay_broken_models(store: Path, work: Path) -> Sequence[str]:
    """Their names: the weights are not there, are cut short, the manifest is no JSON."""
    work.mkdir(parents=True, exist_ok=True)
    model = work / "scripted.gguf"
    write_scripted_gguf(model)
    lay_model(store, "blobless:latest", {"model": Absent(f"sha256:{'f' * 64}", 330000)})
    cut = lay_model(store, "truncated:latest", {"model": model, "template": THINKING_TEMPLATE})
    blob = blob_path(store, cut.layers[0].digest)
    blob.write_bytes(blob.read_bytes()[:200_000])
    broken = manifest_path(store, "notjson:latest")
    broken.parent.mkdir(parents=True)
    broken.write_text('{"schemaVersion": 2, ')
    return ("blobless:latest", "truncated:latest", "notjson:latest")
