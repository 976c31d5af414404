"""Go's text/template language as a tree that knows where each node stands; it says what is written, never what it yields.

Accepts what `Parse` of Go accepts with the functions Ollama registers. Every node has `start` and `end`, offsets
into the source, so that text can be put in at exact places while all else stays byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance_builder.goliterals import number, unquote
from appliance_builder.gotokens import Kind, TemplateError, Token, tokens
from appliance_builder.gotree import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Command,
    Comment,
    Constant,
    Definition,
    Dot,
    Field,
    Function,
    Jump,
    Node,
    Operand,
    Paren,
    Pipe,
    Template,
    Text,
    Variable,
)

GO_FUNCTIONS: Final = frozenset(
    ("and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println", "urlquery")
) | {"eq", "ge", "gt", "le", "lt", "ne"}
OLLAMA_FUNCTIONS: Final = GO_FUNCTIONS | {"json", "currentDate", "yesterdayDate", "toTypeScriptType"}
_DEEPEST: Final = 100  # Go goes further; a prompt never does, and Python's stack ends sooner


def parse(source: str, *, functions: frozenset[str] = OLLAMA_FUNCTIONS) -> Template:
    return _Parser(source, functions).template()


def variables(template: Template) -> frozenset[str]:
    """Every variable named in the source."""
    return frozenset(token.text for token in tokens(template.source) if token.kind is Kind.VARIABLE)


def fields(template: Template) -> frozenset[str]:
    """Every field named in the source, of whatever: what Ollama calls the variables of a template."""
    return frozenset(token.text[1:] for token in tokens(template.source) if token.kind is Kind.FIELD)


@dataclass(frozen=True, slots=True)
class _Closing:
    """An `end` or `else`: no node, but where a body stops."""

    start: int
    word: Token


class _Parser:
    """A cursor over the tokens and the variables in scope, alive only within `parse`."""

    def __init__(self, source: str, functions: frozenset[str]) -> None:
        self._source = source
        self._functions = functions
        self._tokens = [token for token in tokens(source) if token.kind is not Kind.TRIMMED]
        self._at = 0
        self._scope = ["$"]
        self._ranges = 0
        self._depth = 0
        self._definitions: list[Definition] = []

    def template(self) -> Template:
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            node = self._define() if self._keyword_ahead("define") else self._node()
            if isinstance(node, _Closing):
                raise self._error(node.start, f"an unexpected `{node.word.text}`")
            nodes.append(node)
        body = Body(0, len(self._source), tuple(nodes))
        return Template(self._source, body, tuple(self._definitions))

    def _node(self) -> Node | _Closing:
        token = self._next()
        match token.kind:
            case Kind.TEXT:
                return Text(token.start, token.end, token.text)
            case Kind.COMMENT:
                return Comment(token.start, token.end)
            case Kind.LEFT:
                return self._action(token)
            case _:
                raise self._error(token.start, f"an unexpected {token.text!r}")

    def _action(self, left: Token) -> Node | _Closing:
        word = self._peek()
        if word.kind is not Kind.KEYWORD or word.text in {"nil", "define"}:
            pipe = self._pipe("command", Kind.RIGHT)
            right = self._tokens[self._at - 1]
            return Action(left.start, right.end, pipe, (len(left.text) > 2, len(right.text) > 2))
        self._next()
        match word.text:
            case "if" | "with" | "range":
                return self._branch(left.start, word)
            case "break" | "continue":
                return self._jump(left, word)
            case "template":
                return self._call(left)
            case "block":
                return self._block(left)
            case "end":
                self._expect(Kind.RIGHT, "`end`")
            case _:
                if not _is_keyword(self._peek(), "if", "with"):
                    self._expect(Kind.RIGHT, "`else`")
        return _Closing(left.start, word)

    def _body(self) -> tuple[Body, _Closing]:
        nodes: list[Node] = []
        start = self._tokens[self._at - 1].end
        while self._at < len(self._tokens):
            node = self._node()
            if isinstance(node, _Closing):
                return Body(start, node.start, tuple(nodes)), node
            nodes.append(node)
        raise self._error(start, "this block has no `end`")

    def _branch(self, start: int, word: Token) -> Branch:
        self._deeper(word)
        known = len(self._scope)
        pipe = self._pipe(word.text, Kind.RIGHT)
        self._ranges += word.text == "range"
        body, closing = self._body()
        self._ranges -= word.text == "range"
        otherwise = None if closing.word.text == "end" else self._otherwise(word, closing)
        del self._scope[known:]
        self._depth -= 1
        end = self._tokens[self._at - 1].end
        return Branch(start, end, word.text, pipe, body, otherwise)  # type: ignore[arg-type]  # one of the three

    def _otherwise(self, word: Token, opening: _Closing) -> Body:
        """`{{ else if x }}…{{ end }}` is `{{ else }}{{ if x }}…{{ end }}{{ end }}` with one `end`."""
        if word.text in {"if", "with"} and self._at < len(self._tokens) and _is_keyword(self._peek(), word.text):
            branch = self._branch(opening.start, self._next())
            return Body(branch.start, branch.end, (branch,))
        body, closing = self._body()
        if closing.word.text != "end":
            raise self._error(closing.start, f"an unexpected `{closing.word.text}` after `else`")
        return body

    def _jump(self, left: Token, word: Token) -> Jump:
        right = self._expect(Kind.RIGHT, f"`{word.text}`")
        if not self._ranges:
            raise self._error(word.start, f"`{word.text}` outside `range`")
        return Jump(left.start, right.end, word.text)  # type: ignore[arg-type]  # one of the two

    def _call(self, left: Token) -> Call:
        name = self._template_name()
        if self._peek().kind is Kind.RIGHT:
            return Call(left.start, self._next().end, name, None)
        pipe = self._pipe("template clause", Kind.RIGHT)
        return Call(left.start, self._tokens[self._at - 1].end, name, pipe)

    def _block(self, left: Token) -> Call:
        name = self._template_name()
        pipe = self._pipe("block clause", Kind.RIGHT)
        end = self._definition(left, name).end
        return Call(left.start, end, name, pipe)

    def _define(self) -> Definition:
        left = self._next()
        self._next()
        name = self._template_name()
        self._expect(Kind.RIGHT, "`define`")
        return self._definition(left, name)

    def _definition(self, left: Token, name: str) -> Definition:
        """The body of a `define` or `block`: a template of its own, with nothing in scope but `$`."""
        self._deeper(left)
        scope, ranges, self._scope, self._ranges = self._scope, self._ranges, ["$"], 0
        body, closing = self._body()
        if closing.word.text != "end":
            raise self._error(closing.start, f"an unexpected `{closing.word.text}` in a definition")
        self._scope, self._ranges = scope, ranges
        self._depth -= 1
        definition = Definition(left.start, self._tokens[self._at - 1].end, name, body)
        if any(other.name == name and _says(other) and _says(definition) for other in self._definitions):
            raise self._error(left.start, f"a second definition of {name!r}")
        self._definitions.append(definition)
        return definition

    def _template_name(self) -> str:
        token = self._next()
        name = unquote(token.text) if token.kind in {Kind.STRING, Kind.RAW} else None
        if name is None:
            raise self._error(token.start, "the name of a template must be a string")
        return name

    def _pipe(self, context: str, closing: Kind) -> Pipe:
        start = self._peek().start
        names, assigns = self._declarations(context)
        commands: list[Command] = []
        while (token := self._peek()).kind is not closing:
            commands.append(self._command(token, context))
            first = commands[-1].arguments[0]
            if len(commands) > 1 and isinstance(first, (Constant, Dot)):
                raise self._error(first.start, "a value cannot stand behind a `|`")
        if not commands:
            raise self._error(token.start, f"a value is missing in this {context}")
        self._next()
        return Pipe(start, commands[-1].end, names, assigns, tuple(commands))

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while (variable := self._peek()).kind is Kind.VARIABLE:
            after = self._peek(1)
            comma = after.kind is Kind.MARK and after.text == ","
            if not comma and after.kind not in {Kind.ASSIGN, Kind.DECLARE}:
                break
            self._next()
            self._next()
            names.append(variable.text)
            self._scope.append(variable.text)
            if not comma:
                return tuple(names), after.kind is Kind.ASSIGN
            if context != "range" or len(names) > 1:
                raise self._error(after.start, f"too many variables in this {context}")
            if self._peek().kind not in {Kind.VARIABLE, Kind.RIGHT, Kind.CLOSE}:
                raise self._error(after.start, "`range` can only set variables")
        return tuple(names), False

    def _command(self, token: Token, context: str) -> Command:
        arguments: list[Operand] = []
        while (operand := self._operand()) is not None:
            arguments.append(operand)
            if self._tokens[self._at].kind is not Kind.SPACE:
                break
        follows = self._peek()
        if not arguments or follows.kind not in {Kind.PIPE, Kind.RIGHT, Kind.CLOSE}:
            raise self._error(follows.start, f"an unexpected {follows.text!r} in this {context}")
        if follows.kind is Kind.PIPE:
            self._next()
        return Command(token.start, arguments[-1].end, tuple(arguments))

    def _operand(self) -> Operand | None:
        term = self._term()
        path: list[str] = []
        end = self._tokens[self._at - 1].end
        while term is not None and self._tokens[self._at].kind is Kind.FIELD:
            field = self._next()
            path.append(field.text[1:])
            end = field.end
        if not path or term is None:
            return term
        match term:
            case Field(start, _, first):
                return Field(start, end, (*first, *path))
            case Variable(start, _, name):
                return Variable(start, end, name, tuple(path))
            case Function(start) | Paren(start):
                return Chain(start, end, term, tuple(path))
            case _:
                raise self._error(end, "a field of something that has none")

    def _term(self) -> Operand | None:
        token = self._peek()
        match token.kind:
            case Kind.WORD:
                if token.text not in self._functions:
                    raise self._error(token.start, f"there is no function `{token.text}`")
                term: Operand = Function(token.start, token.end, token.text)
            case Kind.VARIABLE:
                if token.text not in self._scope:
                    raise self._error(token.start, f"there is no variable `{token.text}`")
                term = Variable(token.start, token.end, token.text)
            case Kind.FIELD:
                term = Field(token.start, token.end, (token.text[1:],))
            case Kind.DOT:
                term = Dot(token.start, token.end)
            case Kind.OPEN:
                return self._paren(self._next())
            case _:
                constant = self._constant(token)
                if constant is None:
                    return None
                term = constant
        self._next()
        return term

    def _paren(self, opened: Token) -> Paren:
        self._deeper(opened)
        pipe = self._pipe("parenthesis", Kind.CLOSE)
        self._depth -= 1
        return Paren(opened.start, self._tokens[self._at - 1].end, pipe)

    def _constant(self, token: Token) -> Constant | None:
        value: str | float | bool | None
        match token.kind:
            case Kind.KEYWORD if token.text == "nil":
                return Constant(token.start, token.end, None)
            case Kind.BOOL:
                return Constant(token.start, token.end, token.text == "true")
            case Kind.STRING | Kind.RAW:
                value = unquote(token.text)
            case Kind.CHARACTER:
                text = unquote(token.text)
                value = ord(text) if text is not None and len(text) == 1 else None
            case Kind.NUMBER:
                value = number(token.text)
            case Kind.COMPLEX:
                value = 0.0  # no prompt has one; it only must not be refused
            case _:
                return None
        if value is None:
            raise self._error(token.start, f"{token.text} is not a value")
        return Constant(token.start, token.end, value)

    def _keyword_ahead(self, word: str) -> bool:
        if self._tokens[self._at].kind is not Kind.LEFT:
            return False
        return _is_keyword(self._peek(1), word)

    def _peek(self, count: int = 0) -> Token:
        """The next token that is not a space, or the one `count` behind it; an action always ends in `}}`."""
        ahead = [token for token in self._tokens[self._at : self._at + 2 * count + 2] if token.kind is not Kind.SPACE]
        return ahead[min(count, len(ahead) - 1)]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return self._next() if token.kind is Kind.SPACE else token

    def _expect(self, kind: Kind, context: str) -> Token:
        token = self._next()
        if token.kind is not kind:
            raise self._error(token.start, f"an unexpected {token.text!r} in {context}")
        return token

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(token.start, f"more than {_DEEPEST} blocks within each other")

    def _error(self, offset: int, reason: str) -> TemplateError:
        return TemplateError(self._source, offset, reason)


def _is_keyword(token: Token, *words: str) -> bool:
    return token.kind is Kind.KEYWORD and token.text in words


def _says(definition: Definition) -> bool:
    """Go lets an empty definition be defined again."""
    return any(
        node.text.strip() if isinstance(node, Text) else not isinstance(node, Comment) for node in definition.body.nodes
    )
