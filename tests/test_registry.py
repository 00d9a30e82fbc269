"""Registries and specs: names are looked up, options are parsed, nothing is ever evaluated."""

from __future__ import annotations

import keyword
import math
import re
import string
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from darts_bio.data.datasets import DATASETS, load_data
from darts_bio.data.given import GIVEN
from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.evaluation.attacks import ATTACKS
from darts_bio.learners import LEARNERS
from darts_bio.networks.skeletons import SKELETONS
from darts_bio.networks.stems import STEMS
from darts_bio.registry import Registry, canonical_spec, parse_spec, split_specs
from darts_bio.rules import RULES, convert
from darts_bio.rules.base import GLOBAL_LEARNERS
from darts_bio.spaces import OPERATIONS, SPACES
from darts_bio.spaces.operations import operation
from darts_bio.strategies import BLACK_BOX_STRATEGIES, REGULARIZERS, STRATEGIES
from darts_bio.strategies.darts import Darts
from darts_bio.strategies.pc_darts import PcDarts
from darts_bio.training.adversarial import ADVERSARIES

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
SCALARS = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(string.printable, max_size=6),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.lists(SCALARS, max_size=3).map(tuple))


@pytest.fixture
def colors() -> Registry[Any]:
    registry: Registry[Any] = Registry("color")

    @registry.register("red")
    @dataclass(frozen=True)
    class Red:
        """The first color.

        And more of it.
        """

        shade: int = 1
        name: str = "r"

    registry.register("green")(lambda size, shade=2: ("green", size, shade))
    return registry


class TestRegistry:
    @pytest.mark.parametrize(
        "registry", [RULES, OPERATIONS, SPACES], ids=lambda registry: registry.kind
    )
    def test_every_name_of_the_package_is_taken_once(self, registry: Registry[Any]) -> None:
        """Registering a second member under a name raises, and the first one stays."""
        assert registry.names()
        for name in registry.names():
            member = registry.get(name)
            with pytest.raises(ValueError, match=f"{registry.kind} '{name}' is registered already"):
                registry.register(name)(member)
            assert registry.get(name) is member

    @pytest.mark.parametrize("careless", [True, False])
    def test_a_word_in_place_of_a_number_is_refused(self, careless: bool) -> None:
        """Whether or not the member looks at it: a plug-in may leave that out."""
        halves: Registry[Any] = Registry("half")

        @halves.register("of")
        @dataclass(frozen=True)
        class Of:
            share: float = 0.5
            signed: bool = True

            def __post_init__(self) -> None:
                assert careless or self.share > 0

        message = "half 'of': share: expected a number, as its default 0.5 is, found 'abc'"
        with pytest.raises(InputError, match=re.escape(message)):
            halves.build("of(share=abc)")
        with pytest.raises(InputError, match="signed: expected True or False, .* found 'yes'"):
            halves.build("of(share=0.3, signed=yes)")
        assert halves.build("of(share=0.3)").share == 0.3

    def test_a_float_is_one_however_it_is_written(self, colors: Registry[Any]) -> None:
        """A tensor that is made of it would hold integers; specs stay as they were written."""

        @colors.register("hot")
        @dataclass(frozen=True)
        class Hot:
            heat: float = 0.5
            other: float | None = None
            count: int = 1
            either: int | float = 1
            sure: bool = False

        for written in ("hot(heat=3)", "hot(heat=3.0)"):
            built = colors.build(written)
            assert torch.full((), built.heat).is_floating_point()
            assert colors.spec(built) == "hot(heat=3)"
            assert built == Hot(heat=3) == Hot(heat=3.0)
        others = colors.build("hot(heat=True, other=2, count=3, either=4, sure=True)")
        found = [type(getattr(others, field.name)) for field in fields(others)]
        assert found == [bool, float, int, int, bool]
        assert colors.build(f"hot(heat={'9' * 400})").heat == int("9" * 400)
        assert canonical_spec("hot(heat=3)") == "hot(heat=3)"
        assert canonical_spec("hot(heat=3.0)") == "hot(heat=3.0)"

    def test_a_notebook_may_run_a_cell_again(self) -> None:
        """Its definition takes the place of the one before; another by the name is refused."""
        colors: Registry[Any] = Registry("color")
        cell = "@colors.register('red')\ndef red(shade={}):\n    return shade\n"
        program = {"__name__": "__main__", "colors": colors}
        exec(cell.format(1), program)
        exec(cell.format(2), program)
        assert colors.build("red") == 2
        with pytest.raises(ValueError, match="color 'red' is registered already"):
            exec(cell.replace("def red", "def crimson").format(3), program)
        with pytest.raises(ValueError, match="color 'red' is registered already"):
            exec(cell.format(3), program | {"__name__": "a_plugin"})
        assert colors.build("red") == 2

    def test_a_notebook_may_define_an_operation_again(self) -> None:
        cell = (
            "@operation('mine', weighted=({},))\ndef mine(channels, stride, rule, supernet): ...\n"
        )
        program = {"__name__": "__main__", "operation": operation}
        try:
            exec(cell.format(1), program)
            exec(cell.format(2), program)
            assert OPERATIONS.get("mine").weighted == {2}
            with pytest.raises(ValueError, match="operation 'mine' is registered already"):
                exec(cell.replace("def mine", "def other").format(1), program)
        finally:
            OPERATIONS.unregister("mine")

    @pytest.mark.parametrize(
        "registry", [RULES, OPERATIONS, SPACES], ids=lambda registry: registry.kind
    )
    def test_every_member_has_a_summary_of_one_line(self, registry: Registry[Any]) -> None:
        for name, summary in registry.summaries().items():
            assert summary, name
            assert "\n" not in summary

    def test_names_must_be_identifiers(self, colors: Registry[Any]) -> None:
        """Others could not be asked for by a spec."""
        for name in ("", "light red", "light-red", "red()", "1st", "a.b"):
            with pytest.raises(ValueError, match="must be a Python identifier"):
                colors.register(name)
        assert colors.names() == ("red", "green")

    def test_hyphens_where_no_spec_asks(self) -> None:
        registry: Registry[Any] = Registry("color", hyphens=True)
        registry.register("light-red-2")(int)
        assert registry.get("light-red-2") is int
        for name in ("", "-", "-red", "light red", "1-red", "light-red()"):
            with pytest.raises(
                ValueError, match="must be a Python identifier, hyphens aside, found"
            ):
                registry.register(name)
        assert registry.names() == ("light-red-2",)

    def test_a_member_is_told_by_the_first_of_its_names(self, colors: Registry[Any]) -> None:
        red, green = colors.get("red"), colors.get("green")
        colors.register("crimson")(red)
        assert colors.name_of(red) == colors.name_of(red(2)) == "red"
        assert colors.name_of(green) == "green"
        colors.unregister("red")
        assert colors.name_of(red) == "crimson"
        colors.unregister("crimson")
        assert colors.name_of(red) == colors.name_of(red()) == "Red"

    def test_a_spec_has_what_differs_from_the_defaults_in_alphabetical_order(
        self, colors: Registry[Any]
    ) -> None:
        red = colors.get("red")
        assert [colors.spec(red(*options)) for options in ((), (2,), (1, "x"), (2, "x"))] == [
            "red",
            "red(shade=2)",
            "red(name='x')",
            "red(name='x', shade=2)",
        ]

    def test_fields_that_cannot_be_options_are_refused(self) -> None:
        """A class that is no dataclass takes the options of its base alone, and a field of a method's
        name takes that method's place.
        """

        class Undecorated(Darts):
            pause: ClassVar[float] = 1.0
            rate: float = 0.5

        class Plain:
            rate: float = 0.5

        for member in (Undecorated, Plain):
            message = (
                f"strategy 'mine': its field rate is no option, as {member.__name__} is no "
                "dataclass of its own; put @dataclass(frozen=True) above it"
            )
            with pytest.raises(ValueError, match=re.escape(message)):
                STRATEGIES.register("mine")(member)

        @dataclass(frozen=True)
        class Noted(Darts):
            notes: str = ""

        message = (
            "strategy 'mine': its field notes would hide the method Darts.notes; choose another "
            "name"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            STRATEGIES.register("mine")(Noted)
        assert "mine" not in STRATEGIES

    @pytest.mark.parametrize(
        ("registry", "base"),
        [
            (RULES, "LearningRule"),
            (LEARNERS, "LearningMethod"),
            (SPACES, "Space"),
            (STEMS, "Stem"),
            (SKELETONS, "Skeleton"),
            (STRATEGIES, "Strategy"),
            (BLACK_BOX_STRATEGIES, "BlackBoxStrategy"),
            (REGULARIZERS, "Regularizer"),
            (ADVERSARIES, "Adversary"),
            (ATTACKS, "Attack"),
        ],
    )
    def test_classes_of_another_kind_are_refused(self, registry: Registry[Any], base: str) -> None:
        @dataclass(frozen=True)
        class Alone:
            size: int = 1

        message = (
            f"{registry.kind} 'alone': expected a subclass of {base}, found Alone; derive it from "
            f"that, as in class Alone({base})"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            registry.register("alone")(Alone)
        assert "alone" not in registry

    def test_classes_whose_options_are_those_of_another_are_welcome(
        self, colors: Registry[Any]
    ) -> None:
        class Renamed(Darts):
            pause: ClassVar[float] = 1.0

        class Made:
            size: int  # what __init__ sets

            def __init__(self, shade: int = 2) -> None:
                self.size = shade

        for name, member in (("renamed", Renamed), ("made", Made)):
            colors.register(name)(member)
        assert colors.options("renamed") == STRATEGIES.options("darts")
        assert colors.options("made") == {"shade": 2}

    def test_unregister_frees_the_name(self, colors: Registry[Any]) -> None:
        colors.unregister("red")
        assert "red" not in colors
        colors.register("red")(int)
        assert list(colors) == ["green", "red"]

    def test_what_is_not_listed_is_known_and_nowhere_named(self, colors: Registry[Any]) -> None:
        colors.register("infrared", listed=False)(int)
        assert colors.get("infrared") is int
        assert "infrared" in colors.names()
        assert list(colors.summaries()) == ["red", "green"]
        with pytest.raises(InputError, match=r"\(known: green, red;"):
            colors.get("infra")
        colors.unregister("infrared")
        colors.register("infrared")(int)
        assert "infrared" in colors.summaries()

    def test_a_member_is_registered_as_it_is(self, colors: Registry[Any]) -> None:
        def blue() -> None:
            """The third color."""

        assert colors.register("blue")(blue) is blue
        assert colors.get("blue") is blue
        assert colors.summaries() == {
            "red": "The first color.",
            "green": "",
            "blue": "The third color.",
        }

    def test_build_passes_options(self, colors: Registry[Any]) -> None:
        assert colors.build("red(shade=5, name=dark)") == colors.get("red")(5, "dark")
        assert colors.build("green(size=3, shade=7)") == ("green", 3, 7)
        assert colors.build("green(size=3)") == ("green", 3, 2)

    def test_an_unknown_option_lists_the_options(self, colors: Registry[Any]) -> None:
        with pytest.raises(
            InputError,
            match=r"color 'red' has no option 'shape': did you mean 'shade'\? \(its options: shade, name\)",
        ):
            colors.build("red(shape=1)")

    def test_a_member_that_takes_any_option_gets_them(self, colors: Registry[Any]) -> None:
        colors.register("any")(lambda *more, **options: (more, options))
        assert colors.build("any") == ((), {})
        assert colors.build("any(a=1, b=x)") == ((), {"a": 1, "b": "x"})

    def test_a_member_without_options_says_so(self) -> None:
        with pytest.raises(
            InputError, match=r"learning rule 'bp' has no option 'x' \(its options: none\)"
        ):
            RULES.build("bp(x=1)")

    def test_an_option_that_is_missing_is_an_input_error(self, colors: Registry[Any]) -> None:
        """A member may have options without default; leaving one out is the user's mistake."""
        with pytest.raises(InputError, match="size"):
            colors.build("green")

    @pytest.mark.parametrize(
        ("registry", "typo", "meant"),
        [
            (RULES, "ufs", "usf"),
            (RULES, "brfs", "brsf"),
            (RULES, "BRSF", "brsf"),
            (SPACES, "DARTS", "darts"),
            (OPERATIONS, "sep_conv3x3", "sep_conv_3x3"),
            (SPACES, "dart", "darts"),
        ],
    )
    def test_a_typo_is_answered_by_what_was_meant(
        self, registry: Registry[Any], typo: str, meant: str
    ) -> None:
        for ask in (registry.get, registry.build):
            with pytest.raises(InputError) as caught:
                ask(typo)
            message = str(caught.value)
            assert message.startswith(f"unknown {registry.kind} '{typo}': did you mean '{meant}'")
            assert all(name in message for name in registry.names())

    def test_a_name_like_no_other_gets_the_list_without_a_guess(self) -> None:
        message = str(unknown_name("learning rule", "zzzzz", RULES.names()))
        assert "did you mean" not in message
        assert message.endswith(f"(known: {', '.join(sorted(RULES.names()))})")
        with pytest.raises(InputError, match=r"; your own: name its module by --plugin\)$"):
            RULES.get("zzzzz")


VALUE_FAMILIES: tuple[Registry[Any], ...] = (
    RULES,
    LEARNERS,
    SPACES,
    STRATEGIES,
    BLACK_BOX_STRATEGIES,
    REGULARIZERS,
    ATTACKS,
    ADVERSARIES,
)


OPTIONS = [
    (registry, name, option, value)
    for registry in VALUE_FAMILIES
    for name in registry.names()
    for option in registry.options(name)
    for value in ("-1", "'?'")
]
WELCOME = {
    ("random", "genotype", "-1"),  # a path, which is looked for when the search begins
    ("random", "genotype", "'?'"),
    ("entropy", "weight", "-1"),  # keeps shares even
}


class TestMembersThatAreValues:
    """Rules, spaces, strategies, regularizers, attacks, adversaries: frozen dataclasses, whose
    fields are options.
    """

    @pytest.mark.parametrize(
        ("registry", "name"),
        [pytest.param(r, name, id=f"{r.kind}-{name}") for r in VALUE_FAMILIES for name in r],
    )
    def test_are_equal_frozen_and_written_as_they_are_asked_for(
        self, registry: Registry[Any], name: str
    ) -> None:
        member, equal = registry.build(name), registry.build(name)
        assert member == equal
        assert hash(member) == hash(equal)
        assert registry.name_of(member) == registry.name_of(type(member)) == name
        assert registry.spec(member) == name
        assert {f.name: getattr(member, f.name) for f in fields(member)} == registry.options(name)
        with pytest.raises(FrozenInstanceError):
            member.option = 1
        # An option of a method's name would take that method's place.
        inherited = {
            attribute: value
            for base in type(member).__mro__[1:]
            for attribute, value in vars(base).items()
        }
        assert not any(callable(inherited.get(f.name)) for f in fields(member))

    @pytest.mark.parametrize(
        ("registry", "spec"),
        [
            (SPACES, "darts(layout='paper', nodes=2)"),
            (SPACES, "nb201(operations=('none', 'skip_connect'))"),
            (SPACES, "by_depth(cells=5, space='darts(nodes=2)')"),
            (STRATEGIES, "darts(betas=(0.9, 0.99), order=2)"),
            (STRATEGIES, "pc_darts(k=2, lr=0.0003)"),
            (STRATEGIES, "eg(population=8, step=0.2)"),
            (STRATEGIES, "darts_pt(base='drnas(lr=0.1)')"),
            (REGULARIZERS, "eigenvalue_stop(every=2)"),
            (ATTACKS, "pgd(steps=3)"),
        ],
    )
    def test_a_spec_is_read_back_as_an_equal_member(
        self, registry: Registry[Any], spec: str
    ) -> None:
        member = registry.build(spec)
        assert registry.spec(member) == spec
        assert (
            registry.build(registry.spec(member))
            == member
            != registry.build(registry.name_of(member))
        )

    def test_an_option_at_its_default_is_not_written(self) -> None:
        assert (
            STRATEGIES.spec(STRATEGIES.build("pc_darts(lr=6e-4, k=2, init=0.001)"))
            == "pc_darts(k=2)"
        )

    @pytest.mark.parametrize(
        ("registry", "name", "option", "value"),
        [
            pytest.param(*place, id=f"{place[1]}-{place[2]}-{place[3]}")
            for place in OPTIONS
            if place[1:] not in WELCOME
        ],
    )
    def test_check_their_options(
        self, registry: Registry[Any], name: str, option: str, value: str
    ) -> None:
        """No other option of any of them can be -1, nor can any be this text."""
        with pytest.raises(InputError, match=rf"\b{option}\b"):
            registry.build(f"{name}({option}={value})")

    @pytest.mark.parametrize(
        ("registry", "name", "option"),
        [
            pytest.param(registry, name, option, id=f"{name}-{option}")
            for registry in VALUE_FAMILIES
            for name in registry.names()
            for option, default in registry.options(name).items()
            if isinstance(default, (int, float)) and not isinstance(default, bool)
        ],
    )
    @pytest.mark.parametrize("value", ["True", "1e999"])
    def test_true_and_infinity_are_no_numbers(
        self, registry: Registry[Any], name: str, option: str, value: str
    ) -> None:
        with pytest.raises(InputError, match=rf"\b{option}\b"):
            registry.build(f"{name}({option}={value})")

    def test_know_the_options_that_may_be_anything(self) -> None:
        assert {place[1:] for place in OPTIONS} > WELCOME
        assert STRATEGIES.build("random(genotype='?')").genotype == "?"
        assert REGULARIZERS.build("entropy(weight=-1)").weight == -1


class TestParseSpec:
    @given(name=NAMES, options=st.dictionaries(NAMES, VALUES, max_size=4))
    def test_whatever_is_written_is_read_back(self, name: str, options: dict[str, Any]) -> None:
        """Lists as tuples, which are values."""
        text = ", ".join(f"{key}={value!r}" for key, value in options.items())
        expected = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.items()
        }
        assert parse_spec(f" {name}({text}) ") == (name, expected)
        assert parse_spec(name) == (name, {})

    def test_a_spec_within_a_spec_is_its_text(self) -> None:
        text = "f(a=g(y=(1, h()), x=1.50), b=[g(), g(x=1)])"
        assert parse_spec(text) == ("f", {"a": "g(x=1.5, y=(1, 'h'))", "b": ("g", "g(x=1)")})
        assert canonical_spec(canonical_spec(text)) == canonical_spec(text)

    def test_specs_nested_deeply_are_refused_before_they_grow(self) -> None:
        for depth in (20, 40, 200):
            with pytest.raises(InputError, match="expected 'name'"):
                parse_spec("a(b=" * depth + "c" + ")" * depth)

    def test_types_are_those_of_the_literals(self) -> None:
        _, options = parse_spec(
            "f(a=1, b=1.0, c=True, d=None, e='x', f=x, g=(1, (x, 'y')), h=[1, x], i=-1)"
        )
        expected = [1, 1.0, True, None, "x", "x", (1, ("x", "y")), (1, "x"), -1]
        assert [(type(v), v) for v in options.values()] == [(type(v), v) for v in expected]

    @pytest.mark.parametrize(
        "spec",
        [
            "",
            " ",
            "1",
            "'usf'",
            "a.b",
            "a.b()",
            "a()()",
            "a[0]",
            "a b",
            "a, b",
            "a; b",
            "a = b",
            "a(1)",
            "a('x', k=1)",
            "a(*b)",
            "a(**kw)",
            "a(k=1, **kw)",
            "a(k=",
            "a(k=1",
            "a(k=1))",
            "a(k)",
            "a(k=b(1))",
            "a(k=b(x=c.d))",
            "a(k=b.c)",
            "a(k=b(c(d())))",
            "a(k=[b(*c)])",
            "a(k=(b.c, 1))",
            "a(k=(*b, 1))",
            "a(k=b + 1)",
            "a(k=[x for x in (1, 2)])",
            "a(k=lambda: 1)",
            "a(k=f'{x}')",
            "a(k=(y := 1))",
            "a(k={[]: 1})",
            "a(k=1 if True else 2)",
            "lambda: 1",
            "(lambda: 1)()",
            "import os",
            "__import__('os')",
            "__import__('os').system('x')",
            "a(k=__import__('os').system('x'))",
            "yield",
            "await a",
            "a\x00",
            "\ud800",
            "(" * 300 + "a" + ")" * 300,
            pytest.param("-" * 500 + "1", id="deep"),
            pytest.param("a(k=" + "-" * 500 + "1)", id="deep-value"),
            pytest.param("a(k=" + "1+" * 5000 + "1)", id="deep-sum"),
            pytest.param("-" * 200_000 + "1", id="too-deep-for-the-parser"),
            pytest.param("a" + ".b" * 50_000, id="too-long-for-the-parser"),
            pytest.param("a(k=" + "9" * 5000 + ")", id="more-digits-than-python-reads"),
        ],
    )
    def test_anything_else_is_an_input_error_that_says_what_was_expected(self, spec: str) -> None:
        with pytest.raises(
            InputError, match=re.escape("expected 'name' or 'name(option=value, ...)'")
        ):
            parse_spec(spec)

    def test_an_option_given_twice_is_an_input_error(self) -> None:
        with pytest.raises(InputError, match="k"):
            parse_spec("a(k=1, k=2)")

    @pytest.mark.parametrize(
        "template",
        [
            "open({path!r}, 'w')",
            "a(k=open({path!r}, 'w'))",
            "__import__('pathlib').Path({path!r}).touch()",
            "a(k=__import__('pathlib').Path({path!r}).touch())",
            "a(k=[open({path!r}, 'w') for _ in (1,)])",
            "a(k=f\"{{open({path!r}, 'w')}}\")",
            "(lambda: open({path!r}, 'w'))()",
            "a(**{{'k': open({path!r}, 'w')}})",
        ],
    )
    def test_nothing_is_evaluated(self, template: str, tmp_path: Path) -> None:
        path = tmp_path / "evaluated"
        spec = template.format(path=str(path))
        for ask in (parse_spec, RULES.build, SPACES.build):
            with pytest.raises(InputError):
                ask(spec)
        assert not path.exists()

    @given(st.text(max_size=30) | st.text("a(k=1,')[]{}:*. \n-", max_size=30))
    def test_any_text_is_read_or_is_an_input_error(self, text: str) -> None:
        try:
            name, options = parse_spec(text)
        except InputError:
            return
        assert name.isidentifier()
        assert all(key.isidentifier() for key in options)


class TestCanonicalSpec:
    @given(NAMES, st.dictionaries(NAMES, VALUES, max_size=3), st.randoms())
    def test_equal_specs_are_written_equally(
        self, name: str, options: dict[str, Any], random: Any
    ) -> None:
        """Whatever the order and the spaces, and reading it gives what was written."""
        shuffled = random.sample(list(options.items()), len(options))
        spec = f" {name}( {' , '.join(f'{key} = {value!r}' for key, value in shuffled)} )"
        canonical = canonical_spec(spec)
        straight = ", ".join(f"{key}={value!r}" for key, value in options.items())
        assert canonical == canonical_spec(canonical) == canonical_spec(f"{name}({straight})")
        assert parse_spec(canonical) == parse_spec(spec)


class TestSplitSpecs:
    @given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4))
    def test_a_list_of_specs_is_split_where_it_was_joined(
        self, members: list[tuple[str, dict[str, Any]]]
    ) -> None:
        """Whatever the options hold, commas, brackets and quotes in texts among them."""
        specs = [
            f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
            for name, options in members
        ]
        assert split_specs(", ".join(specs)) == tuple(specs)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ()),
            (" , ,", ()),
            ("bp", ("bp",)),
            ("fa,usf , brsf", ("fa", "usf", "brsf")),
            ("a(x=(1, 2)),b(y=[3, {4: 5}])", ("a(x=(1, 2))", "b(y=[3, {4: 5}])")),
        ],
    )
    def test_examples(self, text: str, parts: tuple[str, ...]) -> None:
        assert split_specs(text) == parts


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (0, {"above": 0, "most": 1}, "a number above 0 and at most 1"),
        (1.5, {"most": 1}, "a number of at least 0 and at most 1"),
        (math.nan, {"most": 1}, "a number of at least 0 and at most 1"),
        (True, {"most": 1}, "a number of at least 0 and at most 1"),
        (-math.inf, {"above": -math.inf}, "a number"),
    ],
)
def test_bounds_of_a_number_are_told(value: Any, bounds: Any, expected: str) -> None:
    check_number("--x", bounds.get("most", 7.0), **bounds)
    with pytest.raises(InputError, match=re.escape(f"--x: expected {expected}, found {value}")):
        check_number("--x", value, **bounds)


class TestNumbersOfNumPy:
    """What a loop over an array hands over is a number of its own types."""

    @pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3)])
    def test_whole_numbers_are_what_python_counts_by(self, number: Any) -> None:
        checked = check_whole("k", number, 3, 3)
        assert (type(checked), checked) == (int, 3)
        with pytest.raises(InputError, match="k: expected a whole number of at least 4, found "):
            check_whole("k", number, 4)

    @pytest.mark.parametrize("wrong", [True, np.True_, 3.0, np.float64(3), "3", None, np.ones(2)])
    def test_others_are_none(self, wrong: Any) -> None:
        with pytest.raises(InputError, match="k: expected a whole number of at least 1, found "):
            check_whole("k", wrong)

    def test_a_spec_has_them_as_python_writes_them(self) -> None:
        built = PcDarts(k=np.int64(2), lr=np.float64(0.5))  # type: ignore[arg-type]
        assert STRATEGIES.spec(built) == "pc_darts(k=2, lr=0.5)"
        assert STRATEGIES.build(STRATEGIES.spec(built)) == built

    def test_feedback_is_that_of_the_same_seed(self) -> None:
        layer = nn.Linear(4, 3)
        one, other = (convert(layer, "fa", seed=seed) for seed in (3, np.int64(3)))
        assert torch.equal(one.feedback_kernel, other.feedback_kernel)


class TestNamesOfAnotherKind:
    """What a newcomer tries: each message says where to go on."""

    @pytest.mark.parametrize("name", LEARNERS)
    def test_a_global_learner_is_no_rule(self, name: str) -> None:
        expected = rf"^'{name}' is no learning rule: .*darts_bio.learner\(model, \"{name}\"\)"
        with pytest.raises(InputError, match=expected):
            convert(nn.Linear(2, 2), name)

    def test_all_are_known(self) -> None:
        assert sorted(GLOBAL_LEARNERS) == sorted(LEARNERS)

    @pytest.mark.parametrize("spec", ["Kolen-Pollack", "kolen pollack", "KOLEN_POLLACK-"])
    def test_a_name_as_papers_write_it(self, spec: str) -> None:
        with pytest.raises(InputError) as caught:
            convert(nn.Linear(2, 2), spec)
        assert ("; did you mean 'kolen_pollack'?" in str(caught.value)) == (spec[-1] != "-")

    def test_images_given_in_python_have_no_name_on_a_command_line(self) -> None:
        with pytest.raises(InputError, match=r"'digit': did you mean 'digits'") as caught:
            load_data("digit")
        assert GIVEN in DATASETS
        assert GIVEN not in str(caught.value)
