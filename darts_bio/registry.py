"""Named, extensible families: learning rules, operations, spaces, strategies, data sets.

A member is registered by a decorator and asked for by name or by a spec, `name` or
`name(option=value, ...)`. A spec is data: it is parsed, never evaluated.
"""

from __future__ import annotations

import ast
import inspect
import numbers
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

from darts_bio.errors import InputError, close_names, unknown_name

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
"""A text in quotes, with the escapes in it."""
WAY_OF_ONES_OWN = "your own: name its module by --plugin"
"""What the error for an unknown name says of members that are no part of this package."""
LONGEST_SPEC = 1000
"""The most characters of a spec. Python's parser gives way at many times this depth of nesting."""

T = TypeVar("T")
"""What all members of a registry are."""
M = TypeVar("M")
"""The member that is decorated, whose own type the decorator keeps."""


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec, `name(option=value, ...)`, into its name and its options.

    A value is a number, a text, True, False, None, or a tuple or list of these, which becomes a
    tuple. A bare word is a text, and so is a spec.

    Raises:
        InputError: The text is no spec, is longer than `LONGEST_SPEC`, or gives an option twice.

    >>> parse_spec("darts(lr=6e-4, betas=(0.5, 0.999))")
    ('darts', {'lr': 0.0006, 'betas': (0.5, 0.999)})
    >>> parse_spec("darts(layout=paper, operations=(none, skip_connect))")
    ('darts', {'layout': 'paper', 'operations': ('none', 'skip_connect')})
    >>> parse_spec("by_depth(space=darts(nodes=2), cells=5)")
    ('by_depth', {'space': 'darts(nodes=2)', 'cells': 5})
    """
    expected = (
        "expected 'name' or 'name(option=value, ...)', where a path or other text stands in "
        f"quotes, found {spec[:LONGEST_SPEC]!r}"
    )
    if len(spec) > LONGEST_SPEC:
        raise InputError(f"{expected}... of {len(spec)} characters")
    # Python's own grammar parses the text, but nothing of it is evaluated.
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InputError(f"{expected}{_slip(spec)}") from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise InputError(f"{expected}{_slip(spec)}")
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:  # name(**options)
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


def _slip(spec: str) -> str:
    """Return what is likely to be wrong with a text that is no spec, or "" if nothing is likely.

    >>> _slip("darts(order=2"), _slip("hebbian(rate=0,5)"), _slip("darts 2")
    ('; close its brackets', '; decimals take a point, as in 0.5', '')
    >>> _slip("Kolen-Pollack")
    "; did you mean 'kolen_pollack'?"
    """
    unquoted = _QUOTED.sub("", spec)
    if any(unquoted.count(one) != unquoted.count(other) for one, other in ("()", "[]", "{}")):
        return "; close its brackets"
    if re.search(r"=\s*-?\d+,\d+\s*[,)]", unquoted):
        return "; decimals take a point, as in 0.5"
    if re.fullmatch(r"[A-Za-z]\w*(?:[ -]+[A-Za-z]\w*)+", spec.strip()):
        return f"; did you mean {re.sub('[ -]+', '_', spec.strip().lower())!r}?"
    return ""


def _value(node: ast.expr) -> Any:
    """Return the value that a syntax tree writes out; raise ValueError if it is not plain data."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(map(_value, node.elts))
    if isinstance(node, ast.Call):
        # Quotes within quotes double their backslashes at every level of nesting.
        text = canonical_spec(ast.unparse(node))
        if len(text) > LONGEST_SPEC:
            raise ValueError
        return text
    return ast.literal_eval(node)


def canonical_spec(spec: str) -> str:
    """Return a spec in the one form that files hold, so that equal specs are equal texts.

    Options stand in alphabetical order; raises InputError as `parse_spec` does.

    >>> canonical_spec(" usf() "), canonical_spec("mine(b=0.50, a=match)")
    ('usf', "mine(a='match', b=0.5)")
    """
    return write_spec(*parse_spec(spec))


def write_spec(name: str, options: Mapping[str, Any]) -> str:
    """Return a name and its options as a spec, the options in alphabetical order.

    >>> write_spec("mine", {"b": 0.5, "a": "match"}), write_spec("usf", {})
    ("mine(a='match', b=0.5)", 'usf')
    """
    written = ", ".join(f"{option}={_plain(options[option])!r}" for option in sorted(options))
    return f"{name}({written})" if written else name


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's own, whose text `parse_spec` reads; others as they are."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def split_specs(text: str) -> tuple[str, ...]:
    """Split a list of specs at its commas, but for those inside brackets or quotes.

    >>> split_specs("fa, usf, mine(a=1, b=2)")
    ('fa', 'usf', 'mine(a=1, b=2)')
    """
    specs, depth, start = [], 0, 0
    # A quoted text is one token; so is every other character.
    for token in re.finditer(f"{_QUOTED.pattern}|.", text, re.DOTALL):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if token[0] == "," and depth == 0:
            specs.append(text[start : token.start()])
            start = token.end()
    specs.append(text[start:])
    return tuple(spec.strip() for spec in specs if spec.strip())


def _takes_floats(annotation: Any) -> bool:
    """Return whether an option is declared to be a float, or a float and something but an int.

    >>> [_takes_floats(annotation) for annotation in (float, "float | None", "int | float", int)]
    [True, True, False, False]
    """
    declared = inspect.formatannotation(annotation).strip("'\"").split(" | ")
    return "float" in declared and "int" not in declared


def _as_declared(value: Any, annotation: Any) -> Any:
    """Return the value of an option, a whole number as a float where a float is declared.

    Of an integer, torch.full would make a tensor of integers.
    """
    if type(value) is not int or not _takes_floats(annotation):
        return value
    try:
        return float(value)
    except OverflowError:  # no number that an option takes, which says so itself
        return value


def _definition(member: object) -> tuple[str | None, str | None]:
    """Return where a class or function is defined: its module and its name there."""
    return getattr(member, "__module__", None), getattr(member, "__qualname__", None)


def _mistake_in_fields(member: type) -> str | None:
    """Return why the fields of a class cannot be its options, and what to do; None if they can.

    >>> class Still:
    ...     rate: float = 0.1
    >>> _mistake_in_fields(Still)
    'its field rate is no option, as Still is no dataclass of its own; put @dataclass(frozen=True) above it'
    """
    bases = member.__mro__[1:]
    if not _is_dataclass_itself(member):
        # Where an __init__ is written out, its parameters are the options.
        maker = next(cls for cls in member.__mro__ if "__init__" in vars(cls))
        if maker is object or _is_dataclass_itself(maker):
            for name, annotation in inspect.get_annotations(member).items():
                if "ClassVar" not in str(annotation):
                    return (
                        f"its field {name} is no option, as {member.__name__} is no dataclass of "
                        "its own; put @dataclass(frozen=True) above it"
                    )
    for field in fields(member) if is_dataclass(member) else ():
        for base in bases:
            # A property may be: a space has kept_edges as an option, its base computes them.
            if inspect.isroutine(vars(base).get(field.name)):
                return (
                    f"its field {field.name} would hide the method {base.__name__}.{field.name}; "
                    "choose another name"
                )
    return None


def _is_dataclass_itself(cls: type) -> bool:
    """Return whether a class is a dataclass, and not only a subclass of one."""
    return "__dataclass_fields__" in vars(cls)


class Registry(Generic[T]):
    """A family of members that are registered under a name and looked up or built by it.

    Iteration, `len` and `in` are over the members' names, in the order of their registration.

    Args:
        kind: What a member is, for error messages: "learning rule".
        base: What a class has to be a subclass of to be a member, as others call its methods.
        hyphens: Whether names may hold hyphens. A name is otherwise a Python identifier, so that a
            spec can hold it; hyphens are for families whose members are looked up by `get` alone.
        elsewhere: What errors say, by name, of names that belong to another family.

    >>> from dataclasses import dataclass
    >>> schedules = Registry("schedule")
    >>> @schedules.register("constant")
    ... @dataclass(frozen=True)
    ... class Constant:
    ...     '''The same rate in all epochs.'''
    ...     rate: float = 0.1
    >>> "constant" in schedules, list(schedules)
    (True, ['constant'])
    >>> schedules.build("constant(rate=0.5)")
    Constant(rate=0.5)
    >>> schedules.get("constnat")
    Traceback (most recent call last):
    darts_bio.errors.InputError: unknown schedule 'constnat': did you mean 'constant'? (known: constant)
    """

    def __init__(
        self,
        kind: str,
        *,
        base: type = object,
        hyphens: bool = False,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self._base = kind, base
        self._hyphens, self._elsewhere = hyphens, elsewhere or {}
        self._unlisted: set[str] = set()
        self._members: dict[str, T] = {}
        self._definitions: dict[str, tuple[str | None, str | None]] = {}

    def register(
        self, name: str, *, listed: bool = True, made_of: object = None
    ) -> Callable[[M], M]:
        """Return a decorator that adds a class or function under a name, and gives it back as is.

        What a script or a notebook defines takes the place of what it defined before by the same
        name, so a cell may be run again.

        Args:
            name: What specs call it.
            listed: Whether errors and listings name it to a user; it is known in any case.
            made_of: The class or function that the member was made of, if it is none itself.

        Raises:
            ValueError: The name is taken already, or no identifier; or the fields of a class cannot
                be options, as it is no dataclass of its own or a field hides a method; or the class
                is no subclass of the registry's base. It is no `InputError`, since the mistake is
                in code.

        >>> colors = Registry("color")
        >>> @colors.register("red")
        ... class Red:
        ...     '''The first color.'''
        >>> colors.names()
        ('red',)
        """
        checked = name[:1] + name[1:].replace("-", "_") if self._hyphens else name
        if not checked.isidentifier():
            exception = ", hyphens aside" if self._hyphens else ""
            raise ValueError(
                f"the name of a {self.kind} must be a Python identifier{exception}, found {name!r}"
            )

        def add(member: M) -> M:
            place = _definition(member if made_of is None else made_of)
            again = place[0] == "__main__" and self._definitions.get(name) == place
            if name in self._members and not again:
                raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
            if inspect.isclass(member) and (mistake := _mistake_in_fields(member)):
                raise ValueError(f"{self.kind} {name!r}: {mistake}")
            if inspect.isclass(member) and not issubclass(member, self._base):
                base = self._base.__name__
                raise ValueError(
                    f"{self.kind} {name!r}: expected a subclass of {base}, found {member.__name__}; "
                    f"derive it from that, as in class {member.__name__}({base})"
                )
            self._members[name] = member  # type: ignore[assignment]
            self._definitions[name] = place
            if not listed:
                self._unlisted.add(name)
            return member

        return add

    def unregister(self, name: str) -> None:
        """Remove a member, if it is there: for plug-ins and tests that clean up after themselves.

        >>> colors = Registry("color")
        >>> _ = colors.register("red")(object())
        >>> colors.unregister("red")
        >>> len(colors)
        0
        """
        self._members.pop(name, None)
        self._definitions.pop(name, None)
        self._unlisted.discard(name)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def names(self) -> tuple[str, ...]:
        """Return the members' names, in the order of their registration."""
        return tuple(self._members)

    def get(self, name: str) -> T:
        """Return the member of that name, as it was registered.

        Raises:
            InputError: There is none; the message suggests close matches.
        """
        if name not in self._members:
            if name in self._elsewhere:
                raise InputError(f"{name!r} is no {self.kind}: {self._elsewhere[name]}")
            listed = self._members.keys() - self._unlisted
            raise unknown_name(self.kind, name, listed, own=WAY_OF_ONES_OWN)
        return self._members[name]

    def name_of(self, member: Any) -> str:
        """Return the name of a member, given the member or an instance of it.

        A member registered under several names has the first of them; something that is not
        registered has its name in Python.

        >>> colors = Registry("color")
        >>> @colors.register("red")
        ... class Red:
        ...     '''The first color.'''
        >>> colors.name_of(Red), colors.name_of(Red()), colors.name_of(dict)
        ('red', 'red', 'dict')
        """
        for name, registered in self._members.items():
            if registered is member or registered is type(member):
                return name
        return str(getattr(member, "__name__", type(member).__name__))

    def spec(self, built: Any) -> str:
        """Return the spec from which `build` makes an object equal to this one, a dataclass.

        It names the options that differ from their defaults. Whole numbers are written as such, as
        they mostly are where they are asked for.

        >>> from darts_bio.strategies import STRATEGIES
        >>> STRATEGIES.spec(STRATEGIES.build("darts(order=2, lr=3e-4)"))
        'darts(order=2)'
        """
        options = {}
        for field in fields(built) if is_dataclass(built) else ():
            if field.init:
                value = getattr(built, field.name)
                if value != field.default:
                    whole = isinstance(value, float) and value.is_integer()
                    options[field.name] = (
                        int(value) if whole and _takes_floats(field.type) else value
                    )
        return write_spec(self.name_of(built), options)

    def build(self, spec: str) -> Any:
        """Call the member that a spec names with the spec's options, and return the result.

        Raises:
            InputError: There is no such member, it lacks one of the options, it needs one that the
                spec does not give, or one whose default is a number is given a word.

        >>> from darts_bio.training.adversarial import ADVERSARIES
        >>> ADVERSARIES.build("pgd(eps=4, steps=3)").eps
        4.0
        >>> ADVERSARIES.build("pgd(epsilon=4)")
        Traceback (most recent call last):
        darts_bio.errors.InputError: adversary 'pgd' has no option 'epsilon': did you mean 'eps' or 'steps'? \
(its options: eps, step, steps, gradient)
        """
        name, options = parse_spec(spec)
        member: Any = self.get(name)
        if inspect.isabstract(member):
            missing = ", ".join(sorted(member.__abstractmethods__))
            raise InputError(
                f"{self.kind} {name!r}: expected all methods of {member.__mro__[1].__name__}, found "
                f"no {missing}; write what is missing"
            )
        signature = inspect.signature(member).parameters.values()
        parameters = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        accepted = [p.name for p in parameters]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature)
        for option in options:
            if not takes_any and option not in accepted:
                raise InputError(
                    f"{self.kind} {name!r} has no option {option!r}"
                    f"{close_names(option, accepted)} (its options: "
                    f"{', '.join(accepted) or 'none'})"
                )
        for p in parameters:
            if p.default is p.empty and p.name not in options:
                raise InputError(
                    f"{self.kind} {name!r} needs the option {p.name!r}, as in {name}({p.name}=...)"
                )
        for p in parameters:
            if p.name in options:
                options[p.name] = _as_declared(options[p.name], p.annotation)
        words = [
            p
            for p in parameters
            if isinstance(p.default, (int, float)) and isinstance(options.get(p.name), str)
        ]
        try:
            made = member(**options)
        except TypeError:  # of a member that does with the word what goes with numbers alone
            if not words:
                raise
        if words:
            expected = "True or False" if isinstance(words[0].default, bool) else "a number"
            raise InputError(
                f"{self.kind} {name!r}: {words[0].name}: expected {expected}, as its default "
                f"{words[0].default!r} is, found {options[words[0].name]!r}"
            )
        return made

    def options(self, name: str) -> dict[str, Any]:
        """Return the options that a spec may give to a member, with their defaults.

        >>> from darts_bio.training.adversarial import ADVERSARIES
        >>> ADVERSARIES.options("pgd")
        {'eps': 8.0, 'step': 2.0, 'steps': 7, 'gradient': 'true'}
        """
        parameters = inspect.signature(self.get(name)).parameters.values()  # type: ignore[arg-type]
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def summaries(self) -> dict[str, str]:
        """Return a line on each listed member, by its name.

        It is the member's attribute `summary`, or the first line of its docstring.

        >>> colors = Registry("color")
        >>> @colors.register("red")
        ... class Red:
        ...     '''The first color.
        ...
        ...     Details are not listed.
        ...     '''
        >>> colors.summaries()
        {'red': 'The first color.'}
        """
        texts = {
            name: getattr(m, "summary", None) or inspect.getdoc(m) or ""
            for name, m in self._members.items()
            if name not in self._unlisted
        }
        return {name: text.split("\n")[0].strip() for name, text in texts.items()}
