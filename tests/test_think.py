from __future__ import annotations

import hashlib

import pytest
from goracle import Answer, Message, Question, ask
from thinktemplates import (
    CHATML,
    HARMONY,
    HEADER_AFTER_USER,
    LLAMA3,
    MAGISTRAL,
    QWEN3,
    QWEN3_LEGACY,
    QWEN3_THINKING,
    R1_FREE,
    R1_JANUARY_2025,
    R1_JANUARY_2025_SHA256,
    R1_NOW,
    R1_NOW_SHA256,
    R1_TOOLS,
    TRIMMED_ALL_OVER,
    TWO_HEADERS,
    V3_1,
)

from appliance_builder import think
from appliance_builder.gotemplate import parse
from appliance_builder.think import ThinkError, Thinking, patch
from appliance_builder.thinktags import Tags, infer_tags

RECIPE = {"opening_tag": "<think>", "closing_tag": "</think>"}
OPEN, SOFT = "<think>\n", "<think>\n\n</think>\n\n"
# The template, the tags a recipe must bring, the header of an answer, the tails for true (and unset) and for false.
PATCHED: dict[str, tuple[str, dict[str, str], str, str, str]] = {
    "r1 now": (R1_NOW, {}, "<｜Assistant｜>", OPEN, SOFT),
    "r1 january 2025": (R1_JANUARY_2025, RECIPE, "<｜Assistant｜>", OPEN, SOFT),
    "r1 free": (R1_FREE, {}, "<｜Assistant｜>", OPEN, SOFT),
    "r1 tools": (R1_TOOLS, {}, "<｜Assistant｜>", OPEN, SOFT),
    "qwen3": (QWEN3, {}, "<|im_start|>assistant\n", OPEN, SOFT),
    "qwen3 with a final newline": (QWEN3 + "\n", {}, "<|im_start|>assistant\n", OPEN, SOFT),
    "qwen3 legacy": (QWEN3_LEGACY, {}, "<|im_start|>assistant\n", OPEN, SOFT),
    "header after user": (HEADER_AFTER_USER, RECIPE, "<|im_start|>assistant\n", OPEN, SOFT),
    "two headers": (TWO_HEADERS, RECIPE, "<｜Assistant｜>", OPEN, SOFT),
    "magistral": (MAGISTRAL, {}, "[/INST]", "[THINK]", ""),
    "chatml": (CHATML, RECIPE, "<|im_start|>assistant\n", OPEN, SOFT),
    "llama3": (LLAMA3, RECIPE, "<|start_header_id|>assistant<|end_header_id|>\n\n", OPEN, SOFT),
    "trimmed": (TRIMMED_ALL_OVER, RECIPE, "<assistant>", OPEN, SOFT),
}
LEFT_ALONE = {"qwen3 that only thinks": QWEN3_THINKING, "deepseek v3.1": V3_1}
cases = pytest.mark.parametrize("name", PATCHED)

HELLO = (Message("user", "Hello"),)
HISTORY = (*HELLO, Message("assistant", "Hi."), Message("user", "Once more"))
WITH_SYSTEM = (Message("system", "Be brief."), *HISTORY)
PREFILLED = (*HISTORY, Message("assistant", "Sure", thinking="They greet again."))
TOOLS = (*HISTORY, Message("assistant", "", calls=("weather",)), Message("tool", "sunny"))


def questions(template: str, messages: tuple[Message, ...]) -> list[Question]:
    system = "".join(message.content for message in messages if message.role == "system")
    return [Question(template, messages, system, think=said) for said in (None, True, False)]


def render(template: str, messages: tuple[Message, ...]) -> list[str]:
    """For think unset, true and false."""
    answers: list[Answer] = ask(questions(template, messages))
    assert [answer.error for answer in answers] == ["", "", ""]
    return [answer.prompt for answer in answers]


def patched(name: str) -> str:
    template, recipe, *_ = PATCHED[name]
    return patch(template, **recipe).template


@cases
@pytest.mark.parametrize("chat", [HELLO, HISTORY, WITH_SYSTEM], ids=["hello", "history", "system"])
def test_the_prompt_ends_in_the_opening_tag_unless_the_client_says_false(name: str, chat: tuple[Message, ...]) -> None:
    _, _, header, opened, closed = PATCHED[name]

    unset, true, false = render(patched(name), chat)

    assert unset.endswith(header + opened)
    assert true.endswith(header + opened)
    assert false.endswith(header + closed)


@cases
@pytest.mark.parametrize("chat", [HELLO, HISTORY, WITH_SYSTEM], ids=["hello", "history", "system"])
def test_but_for_its_tail_the_prompt_is_what_it_was(name: str, chat: tuple[Message, ...]) -> None:
    template, _, header, opened, closed = PATCHED[name]
    surplus = "\n" if template.endswith("end }}\n") or name == "trimmed" else ""
    before = [prompt.removesuffix(surplus) for prompt in render(template, chat)]

    after = render(patched(name), chat)

    for old, new, tail in zip(before, after, (opened, opened, closed), strict=True):
        assert new == old if old.endswith(header + tail) else new == old + tail


@cases
def test_an_answer_that_is_gone_on_with_gets_no_tag(name: str) -> None:
    template, *_ = PATCHED[name]
    chat = (*HELLO, Message("assistant", "Sure"))
    closes_every_turn = name in {"chatml", "llama3", "trimmed"}  # these begin a new answer in any case

    before, after = render(template, chat), render(patched(name), chat)

    if not closes_every_turn:
        assert [prompt.rstrip() for prompt in after] == [prompt.rstrip() for prompt in before]


@cases
def test_the_thinking_of_a_last_answer_stands_between_the_tags(name: str) -> None:
    tags = infer_tags(parse(patched(name)))

    _, true, _ = render(patched(name), PREFILLED)

    assert [part.strip() for part in true.split("They greet again.")[0].rpartition(tags.opening)[1:]] == [
        tags.opening,
        "",
    ]
    assert true.split("They greet again.")[1].lstrip().startswith(tags.closing)


@cases
def test_ollama_finds_the_tags(name: str) -> None:
    opening = "[THINK]" if name == "magistral" else "<think>"

    assert infer_tags(parse(patched(name))) == Tags(opening, opening.replace("<", "</").replace("[", "[/"))


@cases
def test_patching_twice_changes_nothing_more(name: str) -> None:
    _, recipe, *_ = PATCHED[name]
    once = patched(name)

    again = [patch(once), patch(once, **recipe)]

    assert [(twice.template, twice.changed) for twice in again] == [(once, False), (once, False)]
    assert think.classify(once) is Thinking.FORCED


@cases
def test_a_patched_template_does_not_end_in_a_newline_of_its_own(name: str) -> None:
    assert patched(name)[-1] not in "\r\n\t "


@cases
def test_the_servers_of_early_2025_take_the_patched_template(name: str) -> None:
    (answer,) = ask([Question(patched(name), HISTORY, old=True)])

    assert answer.error == ""
    assert answer.prompt.endswith(PATCHED[name][3])


@pytest.mark.parametrize("name", ["r1 tools", "qwen3", "two headers"])
def test_after_a_tools_result_the_model_thinks_too(name: str) -> None:
    _, _, header, opened, closed = PATCHED[name]

    unset, true, false = render(patched(name), TOOLS)

    assert unset.endswith(header + opened)
    assert true.endswith(header + opened)
    assert false.endswith(header + closed)


def test_where_a_tools_result_is_followed_by_something_else_it_stays_so() -> None:
    change = patch(MAGISTRAL)

    assert render(change.template, TOOLS) == render(MAGISTRAL, TOOLS)
    assert "after a tool's result the prompt ends otherwise" in change.because


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_template_that_decides_by_itself_is_left_as_it_is(name: str) -> None:
    change = patch(LEFT_ALONE[name])

    assert change.template == LEFT_ALONE[name]
    assert not change.changed
    assert change.opening == "<think>"


def test_the_reason_says_that_a_model_cannot_but_think() -> None:
    assert patch(QWEN3_THINKING).because == (
        "its template ends every prompt in `<think>` already, also after `think: false`"
    )


@pytest.mark.parametrize(
    ("template", "recipe", "source", "size", "sha256"),
    [
        (R1_NOW, {}, R1_NOW_SHA256, 627, "99824d61f3409d7df5d41e01673b2ebc6819943a4c512642e67d694f1de4862b"),
        (
            R1_JANUARY_2025,
            RECIPE,
            R1_JANUARY_2025_SHA256,
            614,
            "ed5beffbce88015b8deda4ab1086c596effc448e8f545ba76b1731549be99bd4",
        ),
    ],
    ids=["now", "january 2025"],
)
def test_the_librarys_templates_come_out_byte_for_byte(
    template: str, recipe: dict[str, str], source: str, size: int, sha256: str
) -> None:
    written = patch(template, **recipe).template.encode()

    assert hashlib.sha256(template.encode()).hexdigest() == source
    assert (len(written), hashlib.sha256(written).hexdigest()) == (size, sha256)


def test_the_reason_names_the_places() -> None:
    assert patch(R1_JANUARY_2025, **RECIPE).because == (
        "the prompt ends in `<think>` at 7:56 except for a client that says `think: false`, who gets an empty block; "
        "a `.Thinking` block stands before the answers of the history, for Ollama to find the tags"
    )


def test_only_what_is_put_in_differs() -> None:
    assert think.render_diff(R1_NOW, patch(R1_NOW).template) == (
        "--- template\n"
        "+++ template that thinks\n"
        "@@ -10,5 +10,5 @@\n"
        " {{- end }}{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}\n"
        " {{- end }}\n"
        '-{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>\n'
        '+{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>'
        '{{ if not (and $.IsThinkSet (not $.Think)) }}{{ "<think>\\n" }}{{ end }}\n'
        " {{- if and $.IsThinkSet (not $.Think) -}}\n"
        " <think>\n"
    )
    assert think.render_diff(R1_NOW, R1_NOW) == ""


REFUSED = {
    "it shows no thinking": (LLAMA3, {}, None, "nothing in its template shows"),
    "it has no roles": ("{{ .System }}\n<|user|>{{ .Prompt }}<|assistant|>{{ .Response }}", RECIPE, "2:12", "no roles"),
    "it is a bare prompt": ("{{ .Prompt }}", {}, "1:4", "no roles"),
    "it speaks in channels": (HARMONY, {}, "3:19", "a channel of its own"),
    "it is no template": ("{{ range .Messages }}", RECIPE, "1:22", "no `end`"),
    "it has no header": (
        '{{ range .Messages }}{{ if eq .Role "user" }}<u>{{ .Content }}</u>{{ else }}<a>{{ .Content }}</a>{{ end }}{{ end }}',
        RECIPE,
        "1:63",
        "does not end in what stands before an answer",
    ),
    "it ends in a value": (
        "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}",
        RECIPE,
        "1:35",
        "ends in a value",
    ),
    "it calls another": (
        '{{ define "m" }}<{{ .Role }}>{{ .Content }}{{ end }}{{ range .Messages }}{{ template "m" . }}{{ end }}<assistant>',
        RECIPE,
        "1:103",
        "writes no answers",
    ),
    "it never shows an answer": (
        '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}<a>{{ end }}{{ end }}',
        RECIPE,
        "1:60",
        "writes no answers",
    ),
    "its end depends": (
        (
            '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}{{ if .Images }}<a>{{ else }} <a>{{ end }}{{ end }}'
            '{{ if eq .Role "assistant" }}<a>{{ .Content }}{{ end }}{{ end }}'
        ),
        RECIPE,
        "1:76",
        "can end here and at",
    ),
    "its tag depends": (
        CHATML + "{{ if .Tools }}<think>\n{{ end }}{{ if .System }}{{ end }}",
        RECIPE,
        "3:10",
        "nobody knows when",
    ),
    "it closes the thinking": (
        R1_NOW.replace("and $.IsThinkSet (not $.Think)", "true"),
        {},
        None,
        "closes the thinking",
    ),
    "it ends in blanks": (
        "{{ range .Messages }}{{ .Role }}:{{ .Content }}\n{{ end }}",
        RECIPE,
        "1:34",
        "ends in a value",
    ),
    "it ends so after any turn": (
        '{{ range .Messages }}{{ if eq .Role "user" }}<u>{{ .Content }}</u>{{ else }}{{ .Content }}!{{ end }}\n{{ end }}',
        RECIPE,
        "1:101",
        "also after an answer that is not finished",
    ),
    "the recipe says otherwise": (R1_NOW, {"opening_tag": "[THINK]", "closing_tag": "[/THINK]"}, None, "other tags"),
    "the recipe has no tags": (LLAMA3, {"opening_tag": "think", "closing_tag": "/think"}, None, "not a pair of tags"),
    "the recipe has half a pair": (LLAMA3, {"opening_tag": "<think>"}, None, "not a pair of tags"),
    "a with is in between": (
        '{{ range $m := .Messages }}{{ with "x" }}<{{ $m.Role }}>{{ $m.Content }}{{ end }}{{ end }}<assistant>',
        RECIPE,
        "1:57",
        "not written directly in `range .Messages`",
    ),
    "its index is not one": (
        "{{ range $i, $m := .Messages }}<{{ .Role }}>{{ $i = 0 }}{{ .Content }}{{ end }}<assistant>",
        RECIPE,
        "1:1",
        "set again",
    ),
    "its range is not ollama's": (
        "{{ range $.Messages }}<{{ .Role }}>{{ .Content }}{{ end }}<assistant>",
        RECIPE,
        "1:36",
        "not written directly in `range .Messages`",
    ),
    "it writes answers twice": (
        (
            "{{ range .Messages }}{{ if .Images }}<{{ .Role }}>{{ .Content }}{{ else }}<{{ .Role }}>{{ .Content }}{{ end }}"
            "{{ end }}<assistant>"
        ),
        RECIPE,
        "1:51",
        "writes answers of the history here and at 1:88",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_the_place(name: str) -> None:
    template, recipe, place, reason = REFUSED[name]

    with pytest.raises(ThinkError) as caught:
        patch(template, **recipe)

    assert reason in caught.value.reason
    assert (str(caught.value.place) if caught.value.place else None) == place
    assert caught.value.hint


def test_too_many_ways_are_refused() -> None:
    branches = "".join(f"{{{{ if .A{number} }}}}{number}{{{{ end }}}}" for number in range(14))

    with pytest.raises(ThinkError, match="too many ways"):
        patch(branches + CHATML, **RECIPE)


@pytest.mark.parametrize(
    ("template", "thinking", "roles"),
    [
        (R1_NOW, Thinking.ABLE, True),
        (R1_FREE, Thinking.FORCED, True),
        (R1_JANUARY_2025, Thinking.UNKNOWN, True),
        (QWEN3, Thinking.ABLE, True),
        (QWEN3_THINKING, Thinking.FORCED, True),
        (CHATML.rstrip("\n") + "\n<think>\n", Thinking.FORCED, True),
        (HARMONY, Thinking.UNKNOWN, True),
        ("{{ .Prompt }}", Thinking.UNKNOWN, False),
    ],
)
def test_a_template_shows_what_it_does_today(template: str, thinking: Thinking, roles: bool) -> None:
    assert think.classify(template) is thinking
    assert think.has_roles(template) is roles


def test_a_template_that_only_lacks_the_block_gets_just_that() -> None:
    forced = CHATML + "<think>\n"
    change = patch(forced)

    assert change.changed
    assert infer_tags(parse(change.template)) == Tags("<think>", "</think>")
    assert render(change.template, HISTORY) == render(forced, HISTORY)


def test_a_renderer_in_the_configuration_is_refused_by_name() -> None:
    with pytest.raises(ThinkError, match=r"renderer `deepseek3\.1`, which writes the prompt in place of the template"):
        think.check_config(renderer="deepseek3.1", parser="deepseek3")


def test_a_parser_that_cannot_begin_within_thinking_is_refused_by_name() -> None:
    with pytest.raises(ThinkError, match="parser `harmony`"):
        think.check_config(renderer="", parser="harmony")


def test_what_splits_the_answer_is_said() -> None:
    assert think.check_config(renderer="", parser="").endswith("its tags split the answer")
    assert "the parser `deepseek3` splits" in think.check_config(renderer="", parser="deepseek3")


@pytest.mark.parametrize(
    ("wanted", "parser", "needed"), [(True, "", True), (True, "deepseek3", False), (False, "", False)]
)
def test_the_go_template_is_asked_for_where_it_is_relied_upon(wanted: bool, parser: str, needed: bool) -> None:
    assert think.needs_go_template(think=wanted, parser=parser) is needed


# Found the way Ollama finds them; the expectations are those of its own tests, told in other templates.
@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [
        ("{{ range .Messages }}{{ if .Thinking }} <t>\n{{ .Thinking }}\n</t> {{ end }}{{ end }}", "<t>", "</t>"),
        ("{{ range .Messages }}{{ range .Other }}<t>{{ .Thinking }}</t>{{ end }}{{ end }}", "", ""),
        ("{{ range $.Messages }}<t>{{ .Thinking }}</t>{{ end }}", "", ""),
        ("{{ range .Messages }}{{ $m := . }}{{ $m.Thinking }}{{ end }}", "", ""),
        ('{{ range .Messages }}{{ if .Thinking }}{{ "<t>" }}{{ .Thinking }}</t>{{ end }}{{ end }}', "", "</t>"),
        ("{{ range .Messages }}a{{ if (and true .Thinking) }}<t>{{ .Thinking }}</t>{{ end }}b{{ end }}", "<t>", "</t>"),
        ("{{ range .Messages }}{{/* c */}}<t>{{ .Thinking }}</t>{{/* d */}}{{ end }}", "<t>", "</t>"),
    ],
)
def test_tags_are_the_texts_around_the_last_thinking(template: str, opening: str, closing: str) -> None:
    assert infer_tags(parse(template)) == Tags(opening, closing)
