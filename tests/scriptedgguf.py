"""A language model of a few hundred kB that real Ollama servers run and that always says the same.

    <think>⏎Okay, the user wants a short answer.</think>⏎⏎Hello from tiny model!

It goes on from the last token of the prompt: behind `<think>⏎` with the thinking, behind `</think>⏎⏎` with the answer,
behind anything else from the start. How it works: attention and feed-forward weights are zero, so what reaches the
output matrix is the vector of the last token, and each row of that matrix is the vector of the token before the row's
own. Vectors are random signs, so a wrong row scores about the root of the width where the right one scores the width.
A token can have one successor only: a script must not say the same piece twice, but it can begin anew without end.

Every byte of a prompt counts as one token, special tokens and an empty line as one, and the begin token comes first.
The file also carries `standin.script`, so the stand-in says the same. The same arguments give the same bytes.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

THINK = "Okay, the user wants a short answer."
ANSWER = "Hello from tiny model!"
WIDTH = 128
HIDDEN = 64
HEADS = 2

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_CONTROL = (_BEGIN, _END, "<｜User｜>", "<｜Assistant｜>")
_TAGS = ("<think>", "</think>")

# What servers look for in a Jinja template: `tool_calls` (it can call tools), the split at the tag (it can think).
JINJA = """\
{{- bos_token }}
{%- for message in messages %}
{%- set content = message['content'] or '' %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + content }}
{%- elif message['role'] == 'assistant' %}
{%- for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}{%- endfor %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- else %}{{ content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""

Matrix = NDArray[np.float16]


def script_pieces(think: str, answer: str, words: int = 0) -> list[str]:
    """The tokens of the script; `words` more of them make the answer long. Raises ValueError."""
    pieces = ["<think>", "\n", *_words(think), "</think>", "\n\n"] if think else []
    pieces += [*_words(answer), *(f" word{number}" for number in range(1, words + 1))]
    if twice := sorted(piece for piece, count in Counter(pieces).items() if count > 1):
        raise ValueError(f"said twice, but a token has one successor: {twice}")
    return pieces


def write_scripted_gguf(
    path: Path,
    *,
    think: str = THINK,
    answer: str = ANSWER,
    words: int = 0,
    jinja: str = JINJA,
    endless: bool = False,
    hidden: int = HIDDEN,
) -> None:
    """Without `think` the script is the answer alone; without `jinja` the file holds no chat template. `endless` says
    the script again and again. `hidden` makes the file larger and each token dearer: 768 bytes and as many operations
    each."""
    pieces = script_pieces(think, answer, words)
    tokens = [*_alphabet().values(), *_new_tokens(pieces), *_CONTROL, *_TAGS]
    writer = gguf.GGUFWriter(str(path), "qwen2")
    _add_shape(writer, hidden)
    _add_tokenizer(writer, tokens, jinja)
    writer.add_string("standin.script", "".join(pieces))
    if endless:
        writer.add_bool("standin.endless", True)
    _add_tensors(writer, *_matrices(tokens, pieces, endless=endless), hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _words(text: str) -> list[str]:
    return re.findall(r"\s?\S+", text)


def _alphabet() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte: itself if it can be seen, else one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)}


def _spelled(text: str) -> str:
    if text in _CONTROL or text in _TAGS:
        return text
    alphabet = _alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def _new_tokens(pieces: list[str]) -> list[str]:
    known = {*_alphabet().values(), *_TAGS}
    wanted = dict.fromkeys(_spelled(piece) for piece in ("\n\n", *pieces))
    return [token for token in wanted if token not in known]


def _add_shape(writer: gguf.GGUFWriter, hidden: int) -> None:
    writer.add_name("scripted")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str], jinja: str) -> None:
    special = dict.fromkeys(_CONTROL, gguf.TokenType.CONTROL) | dict.fromkeys(_TAGS, gguf.TokenType.USER_DEFINED)
    newline = _spelled("\n")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([special.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([f"{newline} {newline}"])  # so that an empty line in a prompt is one token
    writer.add_bos_token_id(tokens.index(_BEGIN))
    writer.add_eos_token_id(tokens.index(_END))
    writer.add_pad_token_id(tokens.index(_END))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if jinja:
        writer.add_chat_template(jinja)


def _signs(number: int) -> Matrix:
    bits = np.frombuffer(hashlib.sha256(f"token {number}".encode()).digest(), np.uint8)
    return (np.unpackbits(bits)[:WIDTH].astype(np.float16) * 2 - 1).astype(np.float16)


def _matrices(tokens: list[str], pieces: list[str], *, endless: bool) -> tuple[Matrix, Matrix]:
    """Token vectors and output matrix."""
    place = {token: number for number, token in enumerate(tokens)}
    chain = [place[_spelled(piece)] for piece in pieces]
    start = _signs(0)  # the vector of every token that is not in the script
    embedding = np.tile(start, (len(tokens), 1))
    output = np.zeros_like(embedding)
    vector = start
    for number, token in enumerate(chain, 1):
        output[token] = vector
        vector = _signs(number)
        embedding[token] = vector
    output[place[_END]] = vector
    if endless:
        embedding[chain[-1]] = start
    return embedding, output


def _add_tensors(writer: gguf.GGUFWriter, embedding: Matrix, output: Matrix, hidden: int) -> None:
    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def nothing(rows: int, columns: int) -> Matrix:
        return np.zeros((rows, columns), np.float16)

    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("blk.0.attn_norm.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.weight", nothing(WIDTH, WIDTH))
        writer.add_tensor(f"blk.0.{name}.bias", zeros)
    writer.add_tensor("blk.0.attn_output.weight", nothing(WIDTH, WIDTH))
    writer.add_tensor("blk.0.ffn_norm.weight", ones)
    writer.add_tensor("blk.0.ffn_gate.weight", nothing(hidden, WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", nothing(hidden, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", nothing(WIDTH, hidden))
