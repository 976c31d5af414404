"""What of a server's answer can be compared with another's: the bytes, less times, sizes, digests and numbers."""

import json
import re

_MASKS = (
    (r'"(created_at|modified_at)":"[^"]*"', r'"\1":"*"'),
    (r'"expires_at":"(23\d\d)?[^"]*"', r'"expires_at":"\1*"'),
    (r'"(\w+_duration|size|size_vram|created)":\d+', r'"\1":0'),
    (r'"id":"chatcmpl-\d+"', '"id":"chatcmpl-0"'),
    (r'"context":\[[^\]]*\]', '"context":[]'),
    (r'"digest":"[0-9a-f]{64}"', '"digest":"*"'),
    (r"sha256-[0-9a-f]{64}", "sha256-*"),
    (r"offset\+size \(\d+\) exceeds file size \(\d+\)", "offset+size (*) exceeds file size (*)"),
)
# 0.5.11 counts whole milliseconds there and leaves a zero out, so it is there on some days only
_UNSTEADY = r',"(prompt_eval|eval)_duration":0'


def mask(text: str, *, store: str = "/models", old: bool = False) -> str:
    text = text.replace(store, "/models")
    for pattern, replacement in _MASKS:
        text = re.sub(pattern, replacement, text)
    return re.sub(_UNSTEADY, "", text) if old else text


def essence(path: str, text: str, *, store: str = "/models", old: bool = False) -> str:
    """The masked body of a plain answer; of the long answers only what does not depend on the model file."""
    text = mask(text, store=store, old=old)
    if '"error"' in text[:10]:
        return text
    if path == "/api/show":
        return _show(json.loads(text))
    if path in {"/api/tags", "/v1/models"}:
        document = json.loads(text)
        for rows in document.values():
            if isinstance(rows, list):
                rows.sort(key=lambda row: str(row.get("name") or row.get("id")))  # ties come in any order
        return json.dumps(document, separators=(",", ":"))
    return text


def _show(document: dict[str, object]) -> str:
    tensors, info = document.get("tensors"), document["model_info"]
    shown: dict[str, object] = {
        "fields": list(document),
        "details": document["details"],
        "parameters": document.get("parameters"),
        "capabilities": document.get("capabilities"),
        "model_info": [key for key in info if not key.startswith("standin.")] if isinstance(info, dict) else None,
        "lists": "shown" if isinstance(info, dict) and info.get("tokenizer.ggml.tokens") else "hidden",
        "tensors": [row["name"] + " " + row["type"] for row in tensors] if isinstance(tensors, list) else None,
        "modelfile": re.findall(r"^[A-Z]+ [^ ]*", str(document["modelfile"]).partition("LICENSE")[0], re.MULTILINE),
    }
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
