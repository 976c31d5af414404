"""The image contract, layout version 1: every constant that influences the bytes of an appliance image.

Anything that changes a layer digest is here or in `layer.py`; golden digests in the tests hold both.
Change a byte and `LAYOUT` must grow, because caches and registries find layers by (blobs, LAYOUT).
"""

from __future__ import annotations

from typing import Final

from appliance_image.errors import ApplianceError

LAYOUT: Final = 1

MODELS_DIRECTORY: Final = "/models"
MTIME: Final = 1_700_000_000  # 2023-11-14: any constant but 0, which `docker images` shows as 56 years ago
FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755

MEBIBYTE: Final = 1024 * 1024
OWN_LAYER_BYTES: Final = 64 * MEBIBYTE  # a blob of this size gets a layer of its own
PACKED_LAYER_BYTES: Final = 512 * MEBIBYTE  # smaller ones share layers of up to this size
MODEL_LAYERS_MAX: Final = 20  # Huawei SWR refuses more in one push; engines stop at 125 in all

PREFIX: Final = "io.github.ollama-appliance."
LABEL_LAYOUT: Final = PREFIX + "layout"
LABEL_MODEL: Final = PREFIX + "model"
LABEL_SOURCE: Final = PREFIX + "source"
LABEL_THINK: Final = PREFIX + "think"
LABEL_WEIGHTS_BYTES: Final = PREFIX + "weights.bytes"
LABEL_PARAMETERS: Final = PREFIX + "parameters"
LABEL_QUANTIZATION: Final = PREFIX + "quantization"
LABEL_FAMILY: Final = PREFIX + "family"
LABEL_CONTEXT_LENGTH: Final = PREFIX + "context-length"
LABEL_GPU_MEMORY_BYTES: Final = PREFIX + "gpu-memory.bytes"
LABEL_BASE: Final = PREFIX + "base"
LABEL_OLLAMA_VERSION: Final = PREFIX + "ollama-version"
LABEL_BUILDER: Final = PREFIX + "builder"
LABEL_ENVIRONMENT: Final = PREFIX + "environment"

ANNOTATION_BLOBS: Final = PREFIX + "blobs"  # on a weights layer: the digests it holds, in order, separated by a blank
ANNOTATION_LAYOUT: Final = LABEL_LAYOUT
ANNOTATION_TEMPLATE: Final = PREFIX + "template.before"  # on the model layer: the template before it was patched

# The key pair that `ollama serve` writes at its first start needs a home that can be written; /dev/shm can,
# for any user and under a read-only root, and what lies there never reaches an image or a volume.
HOME: Final = "/dev/shm/ollama"  # noqa: S108 - a tmpfs of the container's own, not a shared one

# Before 0.30 the search for GPUs writes a file to the temporary directory; where it cannot, Ollama computes on the CPU.
TEMPORARY: Final = "/dev/shm"  # noqa: S108 - as above, and there before the server is

ENVIRONMENT: Final = {
    "HOME": HOME,
    "TMPDIR": TEMPORARY,
    "OLLAMA_MODELS": MODELS_DIRECTORY,
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
}
ENVIRONMENT_PATCHED: Final = {"OLLAMA_GO_TEMPLATE": "1"}  # from 0.30 on a Jinja template in the GGUF wins otherwise

OLLAMA_MINIMUM_FOR_THINK: Final = (0, 12, 4)  # older servers do not think unasked, 0.9.0 to 0.11.6 mis-parse

MODEL_MEDIA_PREFIX: Final = "application/vnd.ollama.image."
TEXT_KINDS: Final = frozenset({"template", "prompt", "params", "system", "license", "messages"})


class ContractError(ApplianceError):
    pass
