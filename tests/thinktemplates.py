"""Templates for the think tests: the two of the library's deepseek-r1, byte for byte, and short ones of other shapes."""

from __future__ import annotations

from typing import Final

R1_NOW: Final = """\
{{- if .System }}{{ .System }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1}}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>
  {{- if and $.IsThinkSet (and $last .Thinking) -}}
<think>
{{ .Thinking }}
</think>
{{- end }}{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>
{{- if and $.IsThinkSet (not $.Think) -}}
<think>

</think>

{{ end }}
{{- end -}}
{{- end }}"""
R1_NOW_SHA256: Final = "c5ad996bda6eed4df6e3b605a9869647624851ac248209d22fd5e2c0cc1121d3"

R1_JANUARY_2025: Final = """\
{{- if .System }}{{ .System }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1}}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>{{- end }}
{{- end }}"""
R1_JANUARY_2025_SHA256: Final = "369ca498f347f710d068cbb38bf0b8692dd3fa30f30ca2ff755e211c94768150"

# Opens the tag but leaves an explicit false to the model.
R1_FREE: Final = (
    R1_NOW[: R1_NOW.rindex("{{- if and $.IsThinkSet")]
    + '{{- if not (and $.IsThinkSet (not $.Think)) }}{{ "<think>\\n" }}\n{{- end }}\n{{- end }}\n{{- end }}'
)

R1_TOOLS: Final = """\
{{- if .System }}{{ .System }}{{ end }}
{{- if .Tools }}
## Tools
{{- range .Tools }}
- {{ .Function.Name }}
{{ .Function }}
{{- end }}
At last, print <｜tool▁calls▁end｜>.
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1}}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "tool" }}<｜User｜><｜tool▁output▁begin｜>{{ .Content }}<｜tool▁output▁end｜>
{{- else if eq .Role "assistant" }}<｜Assistant｜>
{{- if and $.IsThinkSet (and $last .Thinking) -}}
<think>
{{ .Thinking }}
</think>
{{- end }}
{{- if .ToolCalls }}<｜tool▁calls▁begin｜>
{{- range .ToolCalls }}{{ .Function.Name }}<｜tool▁sep｜>{{ .Function.Arguments }}{{ end }}<｜tool▁calls▁end｜>
{{- else if .Content }}{{ .Content }}{{- end }}
{{- if not $last }}<｜end▁of▁sentence｜>{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>
{{- if and $.IsThinkSet (not $.Think) -}}
<think>

</think>

{{ end }}
{{- end }}
{{- end }}
"""

QWEN3: Final = """\
{{- $lastUser := -1 -}}
{{- range $n, $m := .Messages -}}
{{- if eq $m.Role "user" }}{{ $lastUser = $n }}{{ end -}}
{{- end }}
{{- if or .System .Tools }}<|im_start|>system
{{ .System }}
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end -}}
<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}
{{- if and $.IsThinkSet (eq $i $lastUser) }}
   {{- if $.Think -}}
      {{- " "}}/think
   {{- else -}}
      {{- " "}}/no_think
   {{- end -}}
{{- end }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if (and $.IsThinkSet (and .Thinking (or $last (gt $i $lastUser)))) -}}
<think>{{ .Thinking }}</think>
{{ end -}}
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) -}}
<think>

</think>

{{ end -}}
{{ end }}
{{- end }}"""

# A model that can do nothing but think, and a template with a branch for requests without messages.
QWEN3_THINKING: Final = QWEN3[: QWEN3.rindex("{{ if and $.IsThinkSet")] + "<think>\n{{ end }}\n{{- end }}"
QWEN3_LEGACY: Final = (
    "{{- if .Messages }}"
    + QWEN3
    + "\n{{- else }}{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    "{{ end }}{{ .Response }}{{ if .Response }}<|im_end|>{{ end }}"
)

# Chooses by itself, from the client's word.
V3_1: Final = """\
{{- .System }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1}}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>
{{- if and $.IsThinkSet (and $last .Thinking) -}}
<think>
{{ .Thinking }}
</think>
{{- end }}{{ .Content }}{{ if not $last }}<｜end▁of▁sentence｜>{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>
{{- if and $.IsThinkSet $.Think (not $.Tools) -}}
<think>
{{- else -}}
</think>
{{- end }}
{{- end }}
{{- end }}"""

# The header of an answer closes every user's turn, and there is no index to know the last one by.
HEADER_AFTER_USER: Final = """\
{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
<|im_start|>assistant
{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>
{{ end }}{{ end }}
"""

TWO_HEADERS: Final = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- if $last }}<｜Assistant｜>{{ end }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>
{{- range .ToolCalls }}{{ .Function.Name }}{{ end }}{{ .Content }}{{ if not $last }}<｜end▁of▁sentence｜>{{ end }}
{{- else if eq .Role "tool" }}<｜tool▁output▁begin｜>{{ .Content }}<｜tool▁output▁end｜>
{{- if $last }}<｜Assistant｜>{{ end }}
{{- end }}
{{- end }}"""

MAGISTRAL: Final = """\
{{- if and $.IsThinkSet $.Think }}[SYSTEM_PROMPT]First draft your thinking.{{ .System }}[/SYSTEM_PROMPT]
{{- else if .System }}[SYSTEM_PROMPT]{{ .System }}[/SYSTEM_PROMPT]{{ end }}
{{- range $index, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $index)) 1 }}
{{- if eq .Role "user" }}[INST]{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if and $.IsThinkSet .Thinking }}[THINK]{{ .Thinking }}[/THINK]{{ end }}
{{- range .ToolCalls }}[TOOL_CALLS]{{ .Function.Name }}{{ end }}
{{- .Content }}{{ if not $last }}</s>{{ end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS]{{ .Content }}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""

CHATML: Final = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""

LLAMA3: Final = """\
{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}<|start_header_id|>assistant<|end_header_id|>

"""

TRIMMED_ALL_OVER: Final = """\
{{- range $n, $m := .Messages -}}
<{{- $m.Role -}}>
{{- .Content -}}
{{- end -}}
<{{- "assistant" -}}>
"""

HARMONY: Final = """\
{{- range .Messages }}{{ if eq .Role "user" }}<|start|>user<|message|>{{ .Content }}<|end|>
{{- else }}{{ if .Thinking }}<|start|>assistant<|channel|>analysis<|message|>{{ .Thinking }}<|end|>{{ end -}}
<|start|>assistant<|channel|>final<|message|>{{ .Content }}<|end|>{{ end }}{{ end }}<|start|>assistant"""
