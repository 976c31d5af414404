"""The labels of an appliance image as a value: what the builder writes and the agent reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance_image import contract
from appliance_image.contract import ContractError

THINK_KEPT = "as-is"
THINK_PATCHED = "patched"


@dataclass(frozen=True, slots=True)
class Labels:
    layout: int
    model: str  # the name clients use
    source: str  # name and manifest digest of what it was made from
    think: str  # THINK_KEPT or THINK_PATCHED
    weights_bytes: int
    parameters: str
    quantization: str
    family: str
    context_length: int  # tokens for each of the parallel requests
    gpu_memory_bytes: int | None  # estimate for context_length and the parallel requests
    base: str  # reference and digest
    ollama_version: str
    builder: str
    environment: tuple[str, ...]  # names of the variables that are neither the base's nor the contract's

    def render(self) -> dict[str, str]:
        texts = {
            contract.LABEL_LAYOUT: str(self.layout),
            contract.LABEL_MODEL: self.model,
            contract.LABEL_SOURCE: self.source,
            contract.LABEL_THINK: self.think,
            contract.LABEL_WEIGHTS_BYTES: str(self.weights_bytes),
            contract.LABEL_PARAMETERS: self.parameters,
            contract.LABEL_QUANTIZATION: self.quantization,
            contract.LABEL_FAMILY: self.family,
            contract.LABEL_CONTEXT_LENGTH: str(self.context_length),
            contract.LABEL_GPU_MEMORY_BYTES: "" if self.gpu_memory_bytes is None else str(self.gpu_memory_bytes),
            contract.LABEL_BASE: self.base,
            contract.LABEL_OLLAMA_VERSION: self.ollama_version,
            contract.LABEL_BUILDER: self.builder,
            contract.LABEL_ENVIRONMENT: " ".join(self.environment),
        }
        return {name: text for name, text in texts.items() if text}

    @classmethod
    def parse(cls, labels: Mapping[str, str]) -> Labels:
        layout = _number(labels, contract.LABEL_LAYOUT)
        if layout is None or contract.LABEL_MODEL not in labels:
            raise ContractError(
                "not an appliance image: its labels are missing", hint="make one with `appliance build MODEL -t IMAGE`"
            )
        if layout > contract.LAYOUT:
            raise ContractError(
                f"image has layout version {layout}, this program knows {contract.LAYOUT}",
                hint="install a newer ollama-appliance",
            )
        return cls(
            layout=layout,
            model=labels[contract.LABEL_MODEL],
            source=labels.get(contract.LABEL_SOURCE, ""),
            think=labels.get(contract.LABEL_THINK, THINK_KEPT),
            weights_bytes=_number(labels, contract.LABEL_WEIGHTS_BYTES) or 0,
            parameters=labels.get(contract.LABEL_PARAMETERS, ""),
            quantization=labels.get(contract.LABEL_QUANTIZATION, ""),
            family=labels.get(contract.LABEL_FAMILY, ""),
            context_length=_number(labels, contract.LABEL_CONTEXT_LENGTH) or 0,
            gpu_memory_bytes=_number(labels, contract.LABEL_GPU_MEMORY_BYTES),
            base=labels.get(contract.LABEL_BASE, ""),
            ollama_version=labels.get(contract.LABEL_OLLAMA_VERSION, ""),
            builder=labels.get(contract.LABEL_BUILDER, ""),
            environment=tuple(labels.get(contract.LABEL_ENVIRONMENT, "").split()),
        )


def _number(labels: Mapping[str, str], name: str) -> int | None:
    text = labels.get(name, "")
    if text and not text.isdecimal():
        raise ContractError(f"label {name} is no number: {text!r}", hint="the image was changed; build it again")
    return int(text) if text else None
