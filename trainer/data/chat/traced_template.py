"""Render a chat template once, and record for each character which message it was copied from or written for.

The template's language is that of transformers: filters and globals come from its Jinja environment. The compiled code
differs in three ways. Strings become ``Traced`` strings, which keep the origin of their characters. Loops over messages
record the current message. Text written inside such a loop gets the number of this message. The rendered text is the
same; ``chat_text.py`` compares it with the rendering by transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

from .traced_filters import traced_filters
from .traced_text import Traced, formatted, joined, traced_through

PLACE = "trireme_place"
"""Name of the ``Place`` among the variables of a template."""


class Turn(dict[str, Any]):
    """A message that knows its number."""

    number = -1


class Place:
    """The place of a template during rendering: the message that it writes, and the loops around it."""

    def __init__(self) -> None:
        self.turn: int | None = None
        self.outer: list[tuple[int | None, bool]] = []
        """The loops around this place: the message at which each began, and whether it runs over messages."""

    def begin(self) -> None:
        """A loop begins."""
        self.outer.append((self.turn, False))

    def enter(self, item: Any) -> None:
        """The next round of a loop begins."""
        self.turn, _ = self.outer[-1]
        # A loop within a loop looks for something, such as the name of a tool that was called.
        if isinstance(item, Turn) and not any(over_messages for _, over_messages in self.outer[:-1]):
            self.outer[-1], self.turn = (self.turn, True), item.number

    def assigned(self, value: Any) -> None:
        """A variable is set. Loops over indices choose their message in this way."""
        if isinstance(value, Turn) and self.outer and not any(over_messages for _, over_messages in self.outer):
            self.turn = value.number

    def end(self) -> None:
        """A loop is over."""
        self.turn, _ = self.outer.pop()

    def said(self, value: Any) -> Traced:
        """Text that the template writes at this message, marked with it."""
        text, turn = str(value), self.turn
        text = text if isinstance(text, Traced) else Traced(text)
        return text if turn is None else text.marked(lambda mark: mark.at(turn))


class _Instrumented(NodeTransformer):
    """Adds the calls of ``Place`` to a template."""

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        said = [nodes.Const(each.data) if isinstance(each, nodes.TemplateData) else each for each in node.nodes]
        node.nodes = [_call("said", each) for each in said]
        return node

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:
        self.generic_visit(node)
        if isinstance(node.target, nodes.Name):
            node.body.insert(0, _statement("enter", nodes.Name(node.target.name, "load")))
        else:
            node.body.insert(0, _statement("enter", nodes.Const(None)))
        return [_statement("begin"), node, _statement("end")]

    def visit_Assign(self, node: nodes.Assign) -> list[nodes.Node]:
        self.generic_visit(node)
        if not isinstance(node.target, nodes.Name):
            return [node]
        return [node, _statement("assigned", nodes.Name(node.target.name, "load"))]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        function = nodes.EnvironmentAttribute("joined_texts")
        return nodes.Call(function, [nodes.List(node.nodes)], [], None, None)


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    function = nodes.EnvironmentAttribute(f"place_{method}")
    return nodes.Call(function, [nodes.Name(PLACE, "load"), *arguments], [], None, None)


def _statement(method: str, *arguments: nodes.Expr) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call(method, *arguments))


class _Code(CodeGenerator):
    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        changed = _Instrumented().visit(node)
        for each in changed.find_all(nodes.Node):
            each.set_environment(self.environment)
            each.lineno = each.lineno or 1
        super().visit_Template(changed, frame)


class _Generation(Extension):
    """The tag ``{% generation %}``, with which a template itself says what the model writes."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own attribute

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    def marked(self, caller: Callable[[], str]) -> str:
        return joined([caller()]).marked(lambda mark: mark.said_by_model())


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, in which texts stay traced."""

    code_generator_class = _Code
    concat = staticmethod(joined)  # type: ignore[assignment]
    intercepted_binops = frozenset({"%"})
    place_said = staticmethod(Place.said)
    place_begin = staticmethod(Place.begin)
    place_enter = staticmethod(Place.enter)
    place_end = staticmethod(Place.end)
    place_assigned = staticmethod(Place.assigned)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        own = _compile_jinja_template("").environment
        self.filters.update(traced_filters(own.filters))
        self.globals.update(own.globals)

    @staticmethod
    def joined_texts(parts: list[Any]) -> Traced:
        return joined(map(str, parts))

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` in the sandbox, traced."""
        plain = super().wrap_str_format(value)
        if plain is None:
            return None

        def write(given: Any) -> str:
            return str.__str__(plain(*given[0], **given[1]))

        return lambda *args, **values: traced_through(write, (args, values), value.__self__)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return formatted(left, right)
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=64)
def tracing_template(template: str) -> Any:
    """The compiled template.

    Raises:
        jinja2.TemplateError: it is no template.
    """
    return TracingEnvironment().from_string(template)


@lru_cache(maxsize=64)
def has_generation(template: str) -> bool:
    """Whether a template has blocks ``{% generation %}``.

    Raises:
        jinja2.TemplateError: it is no template.
    """
    calls = TracingEnvironment().parse(template).find_all(nodes.ExtensionAttribute)
    return any(each.identifier == _Generation.identifier for each in calls)


def traced_rendering(template: str, variables: dict[str, Any]) -> Traced:
    """The text of a template, traced.

    Raises:
        jinja2.TemplateError: the template refuses what it is given.
    """
    return tracing_template(template).render({**variables, PLACE: Place()})
