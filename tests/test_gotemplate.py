from __future__ import annotations

import re

import pytest
from goracle import Question, ask
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance_builder.goliterals import number, unquote
from appliance_builder.gotemplate import fields, parse, variables
from appliance_builder.gotokens import Kind, TemplateError, tokens
from appliance_builder.gotree import Action, Body, Branch, Node, Text, bodies

TAKEN = [
    "",
    "text only",
    "{{ .A }}",
    "{{.A}}{{ .B.C.D }}{{ $ }}{{ $.A.B }}",
    "a {{- .A -}} b",
    "a \n\t{{- 3 -}}\r\n b",
    "a {{-3}} b",
    "a {{- -3 -}} b",
    "a{{ .A -}}\n\n{{- .B }}c",
    "{{/* a }} comment */}}x{{- /* two */ -}} y",
    'a{{ "}}" }}b{{ `}}\n"` }}c{{ \'}\' }}',
    r'{{ "\"\\ \n \x41 é \U0001F600 \101" }}',
    "{{ if .A }}a{{ else if .B }}b{{ else }}c{{ end }}",
    "{{ if and (eq .A 1) (not .B) }}a{{ end }}",
    "{{ range .A }}{{ if .B }}{{ continue }}{{ end }}{{ break }}{{ else }}none{{ end }}",
    "{{ range $i, $_ := .A }}{{ $i }}{{ end }}{{ range $x := .A }}{{ $x.B }}{{ end }}",
    "{{ with .A }}{{ . }}{{ else }}none{{ end }}{{ with $x := .A }}{{ $x }}{{ end }}",
    "{{ $x := 1 }}{{ $x = 2 }}{{ $x }}",
    "{{ $undeclared = 1 }}",  # Go only minds when it runs
    '{{ define "x" }}body{{ end }}{{ template "x" }}{{ template "x" . }}{{ block "y" .A }}b{{ end }}',
    '{{ .A | printf "%s" | len }}',
    "{{ .A | }}",
    "{{ (index .A 1).B }}{{ (.A).B.C }}",
    "{{ len .A}}{{ nil }}{{ true }}{{ 1.5e3 }}{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1_000 }}{{ 1i }}{{ 1+2i }}{{ 'a' }}",
    "{{\n.A\n}}",
    "{{ json .A }}{{ currentDate }}{{ yesterdayDate }}{{ toTypeScriptType .A }}",
    "<｜User｜>{{ .Größe }}▁",
    "}} { }",
]
REFUSED = [
    ("{{", "1:1", "never closed"),
    ("a\nbc{{ .A", "2:3", "never closed"),
    ("{{ if .A }}x", "1:12", "no `end`"),
    ("x{{ end }}", "1:2", "unexpected `end`"),
    ("{{ else }}", "1:1", "unexpected `else`"),
    ("{{ if .A }}{{ else }}{{ else }}{{ end }}", "1:22", "unexpected `else`"),
    ("{{ if }}{{ end }}", "1:7", "a value is missing"),
    ("{{ }}", "1:4", "a value is missing"),
    ('{{ "a }}', "1:4", "string is never closed"),
    ("{{ `a }}", "1:4", "raw string is never closed"),
    ("{{ 'a }}", "1:4", "character constant is never closed"),
    (r'{{ "\q" }}', "1:4", "not a value"),
    ("{{ 'ab' }}", "1:4", "not a value"),
    ("{{/* a", "1:1", "comment"),
    ("{{/* a */ b */}}", "1:1", "comment"),
    ("{{ (.A }}", "1:1", "`(` is never closed"),
    ("{{ .A) }}", "1:6", "without `(`"),
    ("{{ nofunction .A }}", "1:4", "no function `nofunction`"),
    ("{{ $x }}", "1:4", "no variable `$x`"),
    ("{{ if $x := .A }}{{ end }}{{ $x }}", "1:30", "no variable `$x`"),
    ("{{ break }}", "1:4", "outside `range`"),
    ("{{ range .A }}{{ else }}{{ continue }}{{ end }}", "1:28", "outside `range`"),
    ("{{ 08 }}", "1:4", "not a value"),
    ("{{ 1a }}", "1:4", "not a number"),
    ("{{ $x, $y := .A }}", "1:6", "too many variables"),
    ("{{ range $i, 1 := .A }}{{ end }}", "1:12", "can only set variables"),
    ("{{ .A | 1 }}", "1:9", "cannot stand behind"),
    ("{{ .A$ }}", "1:6", "cannot be part of a name"),
    ("{{ .A\x01 }}", "1:6", "cannot be part of a name"),
    ("{{ \x01 }}", "1:4", "no meaning"),
    ("{{ a:b }}", "1:5", "followed by `=`"),
    ('{{ if .A }}{{ define "x" }}{{ end }}{{ end }}', "1:15", "unexpected 'define'"),
    ("{{ template .A }}", "1:13", "must be a string"),
    ('{{ define "x" }}a{{ end }}{{ define "x" }}b{{ end }}', "1:27", "second definition"),
    ("{{ true.A }}", "1:10", "a field of something"),
    ("{{ end }", "1:1", "never closed"),
]


def texts(body: Body) -> list[str]:
    found: list[str] = []
    for node in body.nodes:
        if isinstance(node, Text):
            found.append(node.text)
        elif isinstance(node, Branch):
            found += texts(node.body) + (texts(node.otherwise) if node.otherwise else [])
    return found


def all_nodes(body: Body) -> list[Node]:
    return [node for inner, _ in bodies(body) for node in inner.nodes]


def test_what_go_takes_is_taken_with_the_same_texts() -> None:
    answers = ask([Question(source) for source in TAKEN])

    for source, answer in zip(TAKEN, answers, strict=True):
        assert answer.parsed, (source, answer.error)
        assert tuple(texts(parse(source).body)) == answer.texts, source


@pytest.mark.parametrize(("source", "place", "reason"), REFUSED)
def test_a_refusal_names_line_and_column_and_the_reason(source: str, place: str, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(source)

    assert str(caught.value.place) == place
    assert reason in caught.value.reason
    assert place in caught.value.message
    assert caught.value.hint


def test_what_is_refused_go_refuses_too() -> None:
    answers = ask([Question(source) for source, _, _ in REFUSED])

    assert [source for (source, _, _), answer in zip(REFUSED, answers, strict=True) if answer.parsed] == []


def test_else_with_is_taken_as_since_go_1_23() -> None:
    source = "{{ with .A }}a{{ else with .B }}b{{ end }}"
    (answer,) = ask([Question(source)])

    assert texts(parse(source).body) == ["a", "b"]
    assert answer.parsed == (answer.go >= (1, 23))


def test_a_dash_trims_only_beside_a_blank() -> None:
    assert texts(parse("a {{-3}} b {{- 3 }} c {{ 3 -}} d {{ 3 }}-}}").body) == ["a ", " b", " c ", "d ", "-}}"]


@pytest.mark.parametrize("source", TAKEN)
def test_every_node_stands_where_it_says(source: str) -> None:
    for node in all_nodes(parse(source).body):
        written = source[node.start : node.end]
        if isinstance(node, Text):
            assert written == node.text
        else:
            assert written.startswith("{{")
            assert written.endswith("}}")


def test_an_else_if_is_a_branch_within_the_else() -> None:
    source = "{{ if .A }}a{{ else if .B }}b{{ else }}c{{ end }}d"
    outer = parse(source).body.nodes[0]

    assert isinstance(outer, Branch)
    assert outer.otherwise is not None
    inner = outer.otherwise.nodes[0]
    assert isinstance(inner, Branch)
    assert source[inner.start : inner.end] == "{{ else if .B }}b{{ else }}c{{ end }}"
    assert source[outer.end :] == "d"


def test_names_are_listed_wherever_they_stand() -> None:
    template = parse("{{ range $i, $m := .Messages }}{{ if (eq (len $.Tools) 1) }}{{ $m.Content }}{{ end }}{{ end }}")

    assert fields(template) == {"Messages", "Tools", "Content"}
    assert variables(template) == {"$", "$i", "$m"}


def test_an_action_tells_which_sides_trim() -> None:
    actions = [node for node in all_nodes(parse("{{ .A }}{{- .A }}{{ .A -}}").body) if isinstance(node, Action)]

    assert [action.trims for action in actions] == [(False, False), (True, False), (False, True)]


def test_blocks_nested_beyond_all_measure_are_refused_with_their_place() -> None:
    with pytest.raises(TemplateError, match="1:1003: more than 100 blocks"):
        parse("{{if .A}} " * 200 + "{{end}}" * 200)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ('"a"', "a"),
        (r'"\xe4\xbd\xa0"', "你"),
        ("`a\r\n\\n`", "a\n\\n"),
        (r'"\'"', None),
        (r"'\''", "'"),
        (r'"\ud800"', None),
    ],
)
def test_strings_have_the_value_they_have_in_go(literal: str, value: str | None) -> None:
    assert unquote(literal) == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [("017", 15), ("-0x10", -16), ("1e3", 1000.0), ("0x1p4", 16.0), ("089", None), ("-", None), ("9" * 20, None)],
)
def test_numbers_have_the_value_they_have_in_go(literal: str, value: float | None) -> None:
    assert number(literal) == value


ATOMS = [
    "{{",
    "{{-_",
    "_-}}",
    "}}",
    "{{end}}",
    "{{else}}",
    "{{if_.A}}",
    "{{range_$i,_$v_:=_.B}}",
    "{{with_.C}}",
    "{{break}}",
    "{{$i}}",
    "{{/*_c_*/}}",
    "if",
    "else",
    "end",
    "range",
    "with",
    "define",
    "template",
    "block",
    '"x"',
    "`y}}`",
    "'c'",
    "$",
    "$x",
    ":=",
    "=",
    "|",
    "(",
    ")",
    ",",
    ".",
    ".A",
    ".B.C",
    "1",
    "-3",
    "0x1",
    "08",
    "true",
    "nil",
    "eq",
    "len",
    "not",
    "-",
    '"',
    "'",
    "\\",
    "/*",
    "*/",
    "é",
    "你",
    "\x01",
    "{",
    "}",
    "text",
]
soup = st.lists(st.sampled_from([*(atom.replace("_", " ") for atom in ATOMS), " ", "\n"]), max_size=14).map("".join)
wrapped = st.one_of(soup, soup.map("{{{{ {} }}}}".format), soup.map("{{{{if .A}}}} {} {{{{end}}}}".format))


@given(st.one_of(st.text(), wrapped))
def test_the_tokens_joined_are_the_source(source: str) -> None:
    try:
        found = tokens(source)
    except TemplateError:
        return

    assert "".join(token.text for token in found) == source
    assert all(source[token.start : token.end] == token.text for token in found)
    assert all("{{" not in token.text for token in found if token.kind is Kind.TEXT)


@settings(max_examples=25, deadline=None)
@given(st.lists(wrapped, min_size=40, max_size=40))
def test_go_agrees_on_whatever_is_thrown_at_it(sources: list[str]) -> None:
    for source, answer in zip(sources, ask([Question(source) for source in sources]), strict=True):
        if answer.go < (1, 23) and re.search(r"else\s+with", source):
            continue
        try:
            found: list[str] | None = texts(parse(source).body)
        except TemplateError:
            found = None

        assert found == (list(answer.texts) if answer.parsed else None), (source, answer.error)
