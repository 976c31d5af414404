"""What a server tells about models, runners and itself: lists, `show`, and lines for the logs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from standin_answers import Profile, Stats, compact, rfc3339
from standin_engine import Runner, slog
from standin_gguf import Gguf, GgufError
from standin_speech import SCRIPT, Plan, Voice
from standin_store import Model

if TYPE_CHECKING:
    from standin_settings import Settings

PLAIN_TEMPLATE = "{{ .Prompt }}"


def is_readable(model: Model) -> bool:
    try:
        model.gguf()
    except (GgufError, OSError) as error:
        slog("ERROR", "images.go:92", "couldn't open model file", error=error)
        return False
    return True


def voice(model: Model, name: str) -> Voice:
    """The model as it can speak. A file nobody can read has the default script; it will not get to speak."""
    template, system = model.text("template", "prompt"), model.text("system")
    try:
        gguf = model.gguf()
    except (GgufError, OSError):
        return Voice(name, template, "", SCRIPT, endless=False, system=system)
    script = gguf.text("standin.script") or SCRIPT
    jinja, endless = gguf.text("tokenizer.chat_template"), gguf.metadata.get("standin.endless") is True
    return Voice(name, template, jinja, script, endless=endless, system=system)


def _details(model: Model, *, parent: str = "") -> dict[str, object]:
    config = model.config
    return {
        "parent_model": parent,
        "format": config.get("model_format", ""),
        "family": config.get("model_family", ""),
        "families": config.get("model_families"),
        "parameter_size": config.get("model_type", ""),
        "quantization_level": config.get("file_type", ""),
    }


def _parent(model: Model) -> str:
    return model.weights.origin if model.weights else ""


def _lengths(gguf: Gguf) -> dict[str, object]:
    family = gguf.text("general.architecture")
    names = ("context_length", "embedding_length")
    return {name: gguf.number(f"{family}.{name}") for name in names if gguf.number(f"{family}.{name}")}


def _tag(profile: Profile, model: Model) -> dict[str, object]:
    details, more = _details(model, parent=_parent(model) if profile.new else ""), {}
    if profile.new and is_readable(model):
        details.update(_lengths(model.gguf()))
        more["capabilities"] = voice(model, model.name.short).capabilities(profile)
    name = {"name": model.name.short, "model": model.name.short, "modified_at": rfc3339(model.modified_ns)}
    return {**name, "size": model.size, "digest": model.digest, "details": details, **more}


def tags(profile: Profile, models: list[Model]) -> str:
    return compact({"models": [_tag(profile, model) for model in models]})


def v1_models(models: list[Model]) -> str:
    rows = [
        {"id": model.name.short, "object": "model", "created": model.modified_ns // 10**9, "owned_by": "library"}
        for model in models
    ]
    return compact({"object": "list", "data": rows}) + "\n"


def running(profile: Profile, rows: list[tuple[Runner, int]], now_ns: int) -> str:
    """The answer of /api/ps; the number beside a runner is what lies in video memory."""
    models = []
    for runner, video_bytes in rows:
        model = runner.model
        name = {"name": model.name.short, "model": model.name.short, "size": runner.size, "digest": model.digest}
        row = {**name, "details": _details(model), "expires_at": rfc3339(runner.expiry_ns(now_ns))}
        row["size_vram"] = video_bytes
        models.append(row if profile.old else {**row, "context_length": runner.num_ctx})
    return compact({"models": models})


def rendered(name: str, speech: Plan, now_ns: int) -> str:
    message = {"role": "", "content": ""}
    head = {"model": name, "created_at": rfc3339(now_ns), "message": message, "done": False}
    return compact({**head, "_debug_info": {"rendered_template": speech.prompt}})


# --- show ------------------------------------------------------------------------------------------------------------


def show(profile: Profile, model: Model, voice: Voice, *, verbose: bool) -> str:
    """The answer of /api/show for a model whose file can be read."""
    gguf, system = model.gguf(), model.text("system")
    native = voice.selected(profile) == "gguf_chat_template"
    fields: dict[str, object] = {
        "license": "\n".join(model.texts("license")),
        "modelfile": _modelfile(model),
        "parameters": "\n".join(f"{key:<30} {_go_value(value)}" for key, value in _parameters(model)),
        "template": voice.jinja if native else voice.template or PLAIN_TEMPLATE,
        "system": system,
    }
    fields = {key: value for key, value in fields.items() if value}
    fields["details"] = _details(model, parent=_parent(model))
    fields["model_info"] = _model_info(gguf, verbose=verbose)
    if not profile.old:
        fields["tensors"] = [
            {"name": tensor.name, "type": tensor.type_name, "shape": list(tensor.shape)} for tensor in gguf.tensors
        ]
        fields["capabilities"] = voice.capabilities(profile)
    return compact({**fields, "modified_at": rfc3339(model.modified_ns)})


def _model_info(gguf: Gguf, *, verbose: bool) -> dict[str, object]:
    hidden = {"general.name", "tokenizer.chat_template"}
    info = {key: value for key, value in gguf.metadata.items() if key not in hidden}
    info["general.parameter_count"] = gguf.parameters
    if not verbose:
        info = {key: None if isinstance(value, list) else value for key, value in info.items()}
    return dict(sorted(info.items()))


def _parameters(model: Model) -> list[tuple[str, object]]:
    pairs = sorted(model.parameters.items())
    return [(key, item) for key, value in pairs for item in (value if isinstance(value, list) else [value])]


def _go_value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _quoted(text: str) -> str:
    if "\n" not in text and text == text.strip(" "):
        return text
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _modelfile(model: Model) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name.short}",
        "",
        f"FROM {model.weights.path if model.weights else ''}",
        f"TEMPLATE {_quoted(model.text('template', 'prompt') or PLAIN_TEMPLATE)}",
        *(f"SYSTEM {_quoted(text)}" for text in model.texts("system")),
        *(f"PARAMETER {key} {_quoted(str(value))}" for key, value in _parameters(model)),
        *(f"LICENSE {_quoted(text)}" for text in model.texts("license")),
    ]
    return "\n".join(lines) + "\n"


# --- logs ------------------------------------------------------------------------------------------------------------


def go_duration(ns: int) -> str:
    """As Go prints one: 84.397µs, 1.5s, 2m3s."""
    if ns >= 60 * 10**9:
        minutes, seconds = divmod(ns // 10**9, 60)
        return f"{minutes // 60}h{minutes % 60}m{seconds}s" if minutes >= 60 else f"{minutes}m{seconds}s"
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if ns >= size:
            return f"{ns / size:.9f}".rstrip("0").rstrip(".") + unit
    return f"{ns}ns"


def log_start(settings: Settings) -> None:
    shown = sorted(f"{key}:{value}" for key, value in os.environ.items() if key.startswith(("OLLAMA_", "CUDA_")))
    text = f"map[{' '.join(shown)}]"
    if settings.profile.old:
        stamp = time.strftime("%Y/%m/%d %H:%M:%S")
        sys.stderr.write(f'{stamp} routes.go:1186: INFO server config env="{text}"\n')
        sys.stderr.flush()
    else:
        slog("INFO", "routes.go:1554", "server config", env=text)


def log_devices(settings: Settings) -> None:
    """The line on a GPU is not from a recording: those machines had none."""
    where = {"id": "cpu", "library": "cpu"}
    if settings.gpu:
        where = {"id": settings.gpu, "library": "CUDA"}
    slog("INFO", "types.go:60", "inference compute", **where, compute="", name=where["library"])


def log_template(voice: Voice, profile: Profile, name: str) -> None:
    slog("INFO", "images.go:381", "template selection", model=name, selected=voice.selected(profile))


def log_launch(task: int) -> None:
    """Of llama-server, when it turns to a request, from 0.30 on."""
    sys.stderr.write(f"slot launch_slot_: id  0 | task {task} | processing task, is_child = 0\n")
    sys.stderr.flush()


def log_release(task: int) -> None:
    """And when it is done with it, however that ended."""
    sys.stderr.write(f"slot      release: id  0 | task {task} | stop processing: n_tokens = 12, truncated = 0\n")
    sys.stderr.flush()


def log_timing(stats: Stats, task: int) -> None:
    """The lines of llama-server after each request, from 0.30 on."""
    rows = [
        ("prompt eval time", stats.prompt_ns, stats.prompt_tokens, True),
        ("       eval time", stats.eval_ns, stats.tokens, True),
        ("      total time", stats.prompt_ns + stats.eval_ns, stats.prompt_tokens + stats.tokens, False),
    ]
    for label, ns, tokens, with_rate in rows:
        ms = max(ns / 1e6, 0.001)
        rate = f" ({ms / tokens:8.2f} ms per token, {tokens / ms * 1000:8.2f} tokens per second)" if with_rate else ""
        sys.stderr.write(
            f"slot print_timing: id  0 | task {task} | {label} = {ms:10.2f} ms / {tokens:5d} tokens{rate}\n"
        )
    sys.stderr.flush()
