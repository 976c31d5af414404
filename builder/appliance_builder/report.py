"""What `inspect` and `plan` print. Values in, text or JSON-able values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance_builder.finished import FinishedImage, blobs_of
from appliance_builder.plan import PlannedLayer
from appliance_builder.prepare import Prepared
from appliance_builder.progress import render_size
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns with two blanks between; the last one is not padded."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@dataclass(frozen=True, slots=True)
class Inspection:
    name: str
    digest: Digest
    image: FinishedImage
    template_diff: str

    def text(self) -> str:
        labels, config = self.image.labels, self.image.config
        gpu = f"about {render_size(labels.gpu_memory_bytes)} of GPU memory" if labels.gpu_memory_bytes else "unknown"
        facts = [
            ("image", f"{self.name} ({config.platform})"),
            ("digest", str(self.digest)),
            ("model", labels.model),
            ("source", labels.source),
            (
                "parameters",
                " ".join(filter(None, [labels.parameters, labels.quantization, labels.family])) or "unknown",
            ),
            ("weights", render_size(labels.weights_bytes)),
            ("context", f"{labels.context_length} tokens" if labels.context_length else "the server's default"),
            ("needs", gpu),
            ("think", labels.think),
            ("base", labels.base),
            ("built by", f"ollama-appliance {labels.builder}, layout {labels.layout}"),
        ]
        lines = [*columns(facts), "", *self._layers()]
        return "\n".join([*lines, "", self.template_diff.rstrip()] if self.template_diff else lines)

    def json(self) -> dict[str, object]:
        labels = self.image.labels
        return {
            "image": self.name,
            "digest": str(self.digest),
            "platform": str(self.image.config.platform),
            "model": labels.model,
            "source": labels.source,
            "think": labels.think,
            "weights_bytes": labels.weights_bytes,
            "parameters": labels.parameters,
            "quantization": labels.quantization,
            "family": labels.family,
            "context_length": labels.context_length,
            "gpu_memory_bytes": labels.gpu_memory_bytes,
            "base": labels.base,
            "ollama_version": labels.ollama_version,
            "layout": labels.layout,
            "layers": [
                {
                    "role": role,
                    "digest": str(layer.digest),
                    "size": layer.size,
                    "blobs": [str(blob) for blob in blobs_of(layer)],
                }
                for role, layer in self._roles()
            ],
            "template_diff": self.template_diff,
        }

    def _roles(self) -> list[tuple[str, Descriptor]]:
        image = self.image
        return [
            *(("weights", layer) for layer in image.weights),
            *(("base", layer) for layer in image.base),
            ("model", image.model),
        ]

    def _layers(self) -> list[str]:
        rows = [("LAYER", "DIGEST", "SIZE", "HOLDS")]
        for role, layer in self._roles():
            blobs = blobs_of(layer)
            holds = blobs[0].short if len(blobs) == 1 else f"{len(blobs)} blobs" if blobs else ""
            rows.append((role, layer.digest.short, render_size(layer.size), holds))
        return columns(rows)


@dataclass(frozen=True, slots=True)
class Move:
    """What one sink does about one layer."""

    layer: PlannedLayer
    sink: str
    there: bool


@dataclass(frozen=True, slots=True)
class PlanReport:
    prepared: Prepared
    moves: Sequence[Move]
    problems: tuple[str, ...]

    def text(self) -> str:
        prepared = self.prepared
        need = prepared.gpu_memory_bytes
        facts = [
            ("image", str(prepared.name)),
            ("model", prepared.customised.model.source),
            ("template", prepared.customised.because),
            *(("base", base) for base in prepared.bases),
            ("needs", f"about {render_size(need)} of GPU memory" if need else "unknown GPU memory"),
        ]
        if whole := prepared.plan.finished_already():
            facts.append(("digest", str(whole.digest)))
        rows = [("LAYER", "DIGEST", "SIZE", "MOVES"), *(self._row(layer) for layer in prepared.plan.layers)]
        totals = [f"{render_size(size)} to {sink}" for sink, size in self.to_move().items()]
        lines = [*columns(facts), "", *columns(rows), "", f"moves {', '.join(totals)}"]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, "", prepared.customised.diff.rstrip()] if prepared.customised.diff else lines)

    def json(self) -> dict[str, object]:
        prepared = self.prepared
        whole = prepared.plan.finished_already()
        return {
            "image": str(prepared.name),
            "digest": str(whole.digest) if whole else None,
            "model": prepared.customised.model.name.short,
            "source": prepared.customised.model.source,
            "bases": list(prepared.bases),
            "gpu_memory_bytes": prepared.gpu_memory_bytes,
            "layers": [
                {
                    "role": layer.role.value,
                    "digest": str(layer.digest) if layer.digest else None,
                    "size": layer.size,
                    "blobs": [str(blob.digest) for blob in layer.blobs],
                    "moves_to": self._wanted(layer),
                }
                for layer in prepared.plan.layers
            ],
            "bytes_to_move": self.to_move(),
            "problems": list(self.problems),
            "template_diff": prepared.customised.diff,
        }

    def to_move(self) -> dict[str, int]:
        """Bytes for each sink."""
        totals = {move.sink: 0 for move in self.moves}
        for move in self.moves:
            totals[move.sink] += 0 if move.there else move.layer.size
        return totals

    def _wanted(self, layer: PlannedLayer) -> list[str]:
        return [move.sink for move in self.moves if move.layer is layer and not move.there]

    def _row(self, layer: PlannedLayer) -> tuple[str, str, str, str]:
        wanted = self._wanted(layer)
        text = ", ".join(wanted) if wanted else "nothing, it is there"
        digest = layer.digest.short if layer.digest else "(when read)"
        return layer.title, digest, render_size(layer.size), text
