"""Named, extensible families: learning rules, operations, spaces, strategies, data sets.

A member is registered by a decorator and asked for by name or by a spec, `name` or
`name(option=value, ...)`. A spec is data: it is parsed, never evaluated.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

from darts_bio.errors import InputError, unknown_name

LONGEST_SPEC = 1000
"""Characters. Python's parser gives way at many times this depth of nesting."""

T = TypeVar("T")
M = TypeVar("M")


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`name(option=value)` as the name and its options. A bare word as a value is a string.

    >>> parse_spec("darts(lr=6e-4, betas=(0.5, 0.999))")
    ('darts', {'lr': 0.0006, 'betas': (0.5, 0.999)})
    >>> parse_spec("darts(layout=paper, operations=(none, skip_connect))")
    ('darts', {'layout': 'paper', 'operations': ('none', 'skip_connect')})
    """
    expected = (
        "expected 'name' or 'name(option=value, ...)', where a path or other text stands in "
        "quotes, found "
        f"{spec[:LONGEST_SPEC]!r}"
    )
    if len(spec) > LONGEST_SPEC:
        raise InputError(f"{expected}... of {len(spec)} characters")
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(expected) from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        raise InputError(expected)
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise InputError(expected)
        if keyword.arg in options:
            raise InputError(f"{expected}: the option {keyword.arg} is given twice")
        try:
            options[keyword.arg] = _value(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise InputError(
                f"{expected}: the value of {keyword.arg} is not a number, text, tuple or list"
            ) from None
    return node.func.id, options


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(map(_value, node.elts))
    return ast.literal_eval(node)


def canonical_spec(spec: str) -> str:
    """The one way in which a spec is written in files: what is equal is written equally.

    >>> canonical_spec(" usf() "), canonical_spec("mine(b=0.50, a=match)")
    ('usf', "mine(a='match', b=0.5)")
    """
    return write_spec(*parse_spec(spec))


def write_spec(name: str, options: Mapping[str, Any]) -> str:
    """Writes a name and its options as a spec, the options in alphabetical order.

    >>> write_spec("mine", {"b": 0.5, "a": "match"}), write_spec("usf", {})
    ("mine(a='match', b=0.5)", 'usf')
    """
    written = ", ".join(f"{option}={options[option]!r}" for option in sorted(options))
    return f"{name}({written})" if written else name


def split_specs(text: str) -> tuple[str, ...]:
    """A comma-separated list of specs; commas inside brackets or quotes do not separate.

    >>> split_specs("fa, usf, mine(a=1, b=2)")
    ('fa', 'usf', 'mine(a=1, b=2)')
    """
    parts, depth, start = [], 0, 0
    # A quoted text, with what is escaped in it, is one piece; so is every other character.
    for piece in re.finditer(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", text, re.DOTALL):
        depth += (piece[0] in "([{") - (piece[0] in ")]}")
        if piece[0] == "," and depth == 0:
            parts.append(text[start : piece.start()])
            start = piece.end()
    return tuple(part.strip() for part in [*parts, text[start:]] if part.strip())


class Registry(Generic[T]):
    """One family. `kind` is its name in error messages.

    Names are Python identifiers, so that a spec can hold them. `hyphens` admits hyphens inside them
    as well: for families that are asked for by `get` alone.

    >>> colours = Registry("colour")
    >>> @colours.register("red")
    ... class Red:
    ...     '''The first colour.'''
    >>> "red" in colours, colours.names()
    (True, ('red',))
    >>> colours.name_of(Red), colours.name_of(Red()), colours.spec(Red())
    ('red', 'red', 'red')
    """

    def __init__(self, kind: str, *, hyphens: bool = False) -> None:
        self.kind = kind
        self._hyphens = hyphens
        self._members: dict[str, T] = {}

    def register(self, name: str) -> Callable[[M], M]:
        """Decorator that adds a member. Raises ValueError if the name is taken or none that can be
        asked for.
        """
        checked = name[:1] + name[1:].replace("-", "_") if self._hyphens else name
        if not checked.isidentifier():
            but = ", hyphens aside" if self._hyphens else ""
            raise ValueError(
                f"the name of a {self.kind} must be a Python identifier{but}, found {name!r}"
            )
        if name in self._members:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")

        def add(member: M) -> M:
            self._members[name] = member  # type: ignore[assignment]
            return member

        return add

    def unregister(self, name: str) -> None:
        """Takes a member out again: for plug-ins and tests that clean up behind themselves."""
        self._members.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def get(self, name: str) -> T:
        """The member itself. Raises InputError, with close matches, if there is none of that
        name.
        """
        if name not in self._members:
            raise unknown_name(self.kind, name, self._members)
        return self._members[name]

    def name_of(self, member: Any) -> str:
        """Returns the name a member is registered by, given the member or an instance of it.

        Of several names it is the first; of something that is not registered it is the name in
        Python.
        """
        for name, known in self._members.items():
            if known is member or known is type(member):
                return name
        return str(getattr(member, "__name__", type(member).__name__))

    def spec(self, built: Any) -> str:
        """Writes a dataclass that `build` made as its spec: its name, and the options that differ
        from their defaults.

        `build` makes an equal one of it.
        """
        declared = [field for field in fields(built) if field.init] if is_dataclass(built) else []
        values = {field.name: getattr(built, field.name) for field in declared}
        return write_spec(
            self.name_of(built),
            {f.name: values[f.name] for f in declared if values[f.name] != f.default},
        )

    def build(self, spec: str) -> Any:
        """Calls the member with the spec's options. Raises InputError for an option it does not
        have.
        """
        name, options = parse_spec(spec)
        member: Any = self.get(name)
        everything = inspect.signature(member).parameters.values()
        parameters = [p for p in everything if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in everything)
        known = ", ".join(p.name for p in parameters) or "none"
        for option in options:
            if not takes_any and option not in {p.name for p in parameters}:
                raise InputError(
                    f"{self.kind} {name!r} has no option {option!r} (its options: {known})"
                )
        for p in parameters:
            if p.default is p.empty and p.name not in options:
                raise InputError(
                    f"{self.kind} {name!r} needs the option {p.name!r}, as in {name}({p.name}=...)"
                )
        return member(**options)

    def options(self, name: str) -> dict[str, Any]:
        """The options that a spec may give, with their defaults."""
        parameters = inspect.signature(self.get(name)).parameters.values()  # type: ignore[arg-type]
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def summaries(self) -> dict[str, str]:
        """Name -> the member's `summary`, or the first line of its docstring, for listings."""
        texts = {
            name: getattr(m, "summary", None) or inspect.getdoc(m) or ""
            for name, m in self._members.items()
        }
        return {name: text.split("\n")[0].strip() for name, text in texts.items()}
