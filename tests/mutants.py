"""Seeded faults in the package, and whether the tests notice them.

    pip install coverage
    python tests/mutants.py --seed 0 --count 100

A mutant is the project with one small fault in `darts_bio`: an operator, a constant or a condition
that is another, a statement or an argument that is missing, arguments in another order. For each
one the tests that run the changed line are run, until one fails. Faults are put into a temporary
copy, so the files of the project stay as they are.

Kept libraries were looked at first. mutmut 3 changes no class variables, no defaults and no
decorated functions, changes the texts of errors, and draws no sample; cosmic-ray and poodle start
Python anew for each mutant, which takes longer here (4 s for PyTorch alone) than most tests do.
This script forks a process that has imported PyTorch.

What was measured and found lies in `--keep`; the same command goes on where it was stopped. Test
files that have changed are measured anew, and `--again` tries the survivors once more.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "darts_bio"
ROOMS = ("rules", "spaces", "networks", "strategies", "training", "data")
FIRST_ROUND_S, SECOND_ROUND_S = 20.0, 600.0
"""Measured seconds of the tests of the first round, one of each test function, and of the second,
all others."""

# The mutants


@dataclass(frozen=True)
class Mutant:
    """A piece of a file, and what stands in its place."""

    file: str
    line: int
    start: int
    """The first byte of the piece."""
    end: int
    kind: str
    before: str
    after: str

    @property
    def key(self) -> str:
        text = "\0".join([self.file, str(self.start), self.before, self.after])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def what(self) -> str:
        before, after = (" ".join(text.split())[:70] for text in (self.before, self.after))
        return f"{self.file}:{self.line}: {self.kind}: {before}  ->  {after}"

    def source(self, root: Path) -> bytes:
        source = (root / self.file).read_bytes()
        return source[: self.start] + self.after.encode() + source[self.end :]


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
# Of `x.method(...)` only x is left.
METHODS = {
    *("abs", "abs_", "bool", "clamp", "clamp_", "clamp_max", "clamp_min", "clone", "detach"),
    *("double", "exp", "float", "int", "log", "lower", "relu", "sign", "sort", "sqrt", "square"),
    *("squeeze", "strip", "transpose", "t"),
}
TEXTS = {"InputError", "Damaged", "unknown_name", "warn", "print", "NotImplementedError"}
TEXTS |= {"ValueError", "TypeError", "RuntimeError", "first_line"}
TRIVIAL = {"property", "dataclass", "abstractmethod", "staticmethod", "classmethod", "overload"}
TRIVIAL |= {"register", "contextmanager", "wraps", "cached_property", "setter"}


def name_of(node: ast.AST) -> str:
    """Return the last part of a (called) name."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return getattr(node, "attr", getattr(node, "id", ""))


class Mutations:
    """All mutants of one file, in the order of the text, as alternatives of each place."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.bytes = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.places: list[list[Mutant]] = []
        self.body(ast.parse(source).body, names=set())
        self.places.sort(key=lambda mutants: (mutants[0].start, mutants[0].end))

    def span(self, node: Any) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def put(self, node: Any, *alternatives: tuple[str, str | ast.AST]) -> None:
        """Note alternatives of a place: (kind, text or tree)."""
        start, end = self.span(node)
        before = self.bytes[start:end].decode()
        mutants = []
        for kind, new in alternatives:
            after = new if isinstance(new, str) else f"({ast.unparse(new)})"
            mutants.append(Mutant(self.file, node.lineno, start, end, kind, before, after))
        if mutants:
            self.places.append(mutants)

    # Statements

    def body(self, statements: list[ast.stmt], names: set[str]) -> None:
        for statement in statements:
            self.statement(statement, names)

    def statement(self, node: ast.stmt, names: set[str]) -> None:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Assert():
                return  # a docstring, or what no test is about
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if node.name in ("__repr__", "extra_repr"):
                    return
                self.decorators(node)
                for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                    self.expression(default)
                self.body(node.body, set())
            case ast.ClassDef():
                self.decorators(node)
                self.body(node.body, set())
            case ast.Raise():
                self.put(node, ("statement removed", "pass"))
                return  # what it says is a text
            case ast.Return(value=None) | ast.Pass() | ast.Global() | ast.Nonlocal():
                return
            case ast.Return(value=value):
                is_text = isinstance(value, (ast.JoinedStr, ast.Constant))
                if not is_text or getattr(value, "value", None) in (True, False):
                    self.put(node, ("returned value", "return None"))
                self.expression(value)
            case ast.Continue():
                self.put(node, ("statement", "break"))
            case ast.Break():
                self.put(node, ("statement", "continue"))
            case ast.Expr(value=value):
                if name_of(value) in TEXTS:
                    return
                if isinstance(value, ast.Call):
                    self.put(node, ("statement removed", "pass"))
                self.expression(value)
            case ast.Assign(targets=targets, value=value):
                name = name_of(targets[0])
                is_type = name[:1].isupper() and not name.isupper()
                if name == "__all__" or (is_type and isinstance(value, (ast.BinOp, ast.Subscript))):
                    return
                if all(isinstance(t, (ast.Attribute, ast.Subscript)) for t in targets) or all(
                    isinstance(t, ast.Name) and t.id in names for t in targets
                ):
                    self.put(node, ("statement removed", "pass"))
                names |= {t.id for t in targets if isinstance(t, ast.Name)}
                self.expression(value)
            case ast.AugAssign(value=value):
                self.put(node, ("statement removed", "pass"))
                self.expression(value)
            case ast.AnnAssign(value=value):
                if value is not None and name_of(node.annotation) != "TypeAlias":
                    self.expression(value)
            case ast.If(test=test):
                if name_of(test) != "TYPE_CHECKING":
                    self.condition(test)
                    self.body(node.body, names)
                    self.body(node.orelse, names)
            case ast.While(test=test):
                self.condition(test)
                self.body(node.body, names)
            case ast.For():
                self.expression(node.iter)
                self.body(node.body, names)
                self.body(node.orelse, names)
            case ast.With():
                for item in node.items:
                    if item.optional_vars is None:
                        null = '__import__("contextlib").nullcontext()'
                        self.put(item.context_expr, ("context removed", null))
                    self.expression(item.context_expr)
                self.body(node.body, names)
            case ast.Try():
                for statements in (node.body, node.orelse, node.finalbody):
                    self.body(statements, names)
                for handler in node.handlers:
                    self.body(handler.body, names)
            case ast.Delete():
                self.put(node, ("statement removed", "pass"))
            case ast.Match():
                for case in node.cases:
                    self.body(case.body, names)

    def decorators(self, node: Any) -> None:
        for decorator in node.decorator_list:
            if name_of(decorator) not in TRIVIAL and "register" not in ast.unparse(decorator):
                self.put(decorator, ("decorator removed", "(lambda same: same)"))

    # Expressions

    def condition(self, node: ast.expr) -> None:
        self.put(node, ("condition negated", ast.UnaryOp(ast.Not(), node)))
        self.expression(node)

    def expression(self, node: ast.AST | None) -> None:
        match node:
            case None | ast.JoinedStr():
                return
            case ast.Call():
                if self.call(node):
                    return
            case ast.Compare():
                for i, op in enumerate(node.ops):
                    other = copy.copy(node)
                    other.ops = list(node.ops)
                    other.ops[i] = COMPARISONS[type(op)]()
                    self.put(node, ("comparison", other))
            case ast.BinOp(op=op) if type(op) in ARITHMETIC:
                if not any(isinstance(side, ast.JoinedStr) for side in (node.left, node.right)):
                    other_op = copy.copy(node)
                    other_op.op = ARITHMETIC[type(op)]()
                    self.put(node, ("arithmetic", other_op))
            case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
                if not isinstance(operand, ast.Constant):
                    self.put(node, ("sign or negation removed", operand))
            case ast.BoolOp(op=op):
                other_bool = copy.copy(node)
                other_bool.op = ast.Or() if isinstance(op, ast.And) else ast.And()
                self.put(node, ("boolean", other_bool))
            case ast.IfExp():
                self.condition(node.test)
                self.expression(node.body)
                self.expression(node.orelse)
                return
            case ast.Constant():
                self.constant(node)
                return
            case ast.Lambda():
                self.expression(node.body)
                return
            case ast.comprehension():
                self.expression(node.iter)
                for test in node.ifs:
                    self.condition(test)
                return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.expr, ast.comprehension, ast.keyword)):
                self.expression(child.value if isinstance(child, ast.keyword) else child)

    def call(self, node: ast.Call) -> bool:
        """Note the mutants of a call; return whether its arguments are texts."""
        name = name_of(node)
        if name in TEXTS:
            return True
        alternatives: list[tuple[str, str | ast.AST]] = []
        for i in range(len(node.args) - 1):
            pair = node.args[i : i + 2]
            alike = ast.dump(pair[0]) == ast.dump(pair[1])
            if not alike and not any(isinstance(x, ast.Starred) for x in pair):
                swapped = copy.copy(node)
                swapped.args = [*node.args[:i], *reversed(pair), *node.args[i + 2 :]]
                alternatives.append(("arguments swapped", swapped))
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in (None, "strict"):
                fewer = copy.copy(node)
                fewer.keywords = node.keywords[:i] + node.keywords[i + 1 :]
                alternatives.append(("argument removed", fewer))
        if name in METHODS and isinstance(node.func, ast.Attribute):
            alternatives.append(("call removed", node.func.value))
        self.put(node, *alternatives)
        return False

    def constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.put(node, ("constant", str(not value)))
        elif isinstance(value, int):
            self.put(node, ("constant", str(value + 1)), ("constant", f"({value - 1})"))
        elif isinstance(value, float):
            self.put(node, ("constant", f"{value + 1}"), ("constant", f"{value * 1.5}"))
        elif isinstance(value, str) and value and not any(c.isspace() for c in value):
            self.put(node, ("constant", repr(value + "x")))


def all_places(rooms: list[str], root: Path) -> Iterator[list[Mutant]]:
    for room in rooms:
        for path in sorted((root / PACKAGE / room).rglob("*.py")):
            yield from Mutations(path.relative_to(root).as_posix(), path.read_bytes()).places


def sample(rooms: list[str], seed: int, count: int, root: Path) -> list[Mutant]:
    """Draw mutants of different places.

    A kind is drawn as often as the root of how many there are of it, since every other possible
    mutant is a constant or a swap, which few tests overlook.
    """
    source = random.Random(seed)
    kinds: dict[str, list[Mutant]] = {}
    for place in all_places(rooms, root):
        for mutant in place:
            kinds.setdefault(mutant.kind, []).append(mutant)
    for mutants in kinds.values():
        source.shuffle(mutants)
    shares = [len(mutants) ** 0.5 for mutants in kinds.values()]
    drawn: dict[tuple[str, int, int], Mutant] = {}
    while len(drawn) < count and any(kinds.values()):
        (mutants,) = source.choices(list(kinds.values()), shares)
        if mutants:
            mutant = mutants.pop()
            drawn.setdefault((mutant.file, mutant.start, mutant.end), mutant)
    return list(drawn.values())


# The processes that run tests


def copy_project(place: Path) -> Path:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def import_libraries() -> None:
    """Import what takes long, and nothing of the package."""
    import hypothesis
    import pytest
    import timm.data
    import torch
    import torchvision

    assert all((hypothesis, pytest, timm.data, torch, torchvision))
    assert PACKAGE not in sys.modules


def in_fork(work: Callable[[], Any], log: Path, limit: float) -> Any:
    """Return what `work` returns in a fork of this process, as JSON.

    None if the fork ends otherwise, "time" if it has not ended after `limit` seconds.
    """
    with tempfile.NamedTemporaryFile("r") as answer:
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                with open(log, "wb") as file:
                    for stream in (1, 2):
                        os.dup2(file.fileno(), stream)
                Path(answer.name).write_text(json.dumps(work()))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        ended, deadline = 0, time.monotonic() + limit
        try:
            while not ended and time.monotonic() < deadline:
                time.sleep(0.05)
                ended, _ = os.waitpid(child, os.WNOHANG)
        finally:
            # With the processes it has started.
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(child, 0)
        if not ended:
            return "time"
        text = answer.read()
        return json.loads(text) if text else None


def run_pytest(tree: Path, arguments: list[str], plugin: object) -> int:
    import pytest

    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p).resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(tree)
    sys.argv = ["pytest"]
    options = [
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    return int(pytest.main([*options, *arguments], plugins=[plugin]))


# Which tests run which lines


class Contexts:
    """Tells coverage which test runs, and measures how long it takes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds, self.failed = coverage, {}, set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed or (report.skipped and report.when != "teardown"):
            self.failed.add(report.nodeid)


def measure(tree: Path, tests: str) -> dict[str, Any]:
    """Run tests, and return their seconds, and which of them run which lines of which file."""
    import coverage

    place = Path(tempfile.mkdtemp(prefix="coverage-"))
    config = place / "config"
    # In processes that a test starts the context is that test.
    config.write_text(
        f"[run]\nsource = {tree / PACKAGE}\ndata_file = {place / 'data'}\nparallel = true\n"
        "context = ${PYTEST_CURRENT_TEST-}\n"
    )
    os.environ["COVERAGE_PROCESS_START"] = str(config)
    measuring = coverage.Coverage(
        data_file=str(place / "main"), source=[str(tree / PACKAGE)], config_file=False
    )
    plugin = Contexts(measuring)
    measuring.start()
    code = run_pytest(tree, [tests], plugin)
    measuring.stop()
    measuring.save()
    processes = [measuring.get_data()]
    for path in place.glob("data.*"):
        data = coverage.CoverageData(str(path))
        try:
            data.read()
        except coverage.exceptions.CoverageException:  # of a process that was ended while it wrote
            continue
        processes.append(data)
    lines: dict[str, dict[int, set[str]]] = {}
    for data in processes:
        for file in data.measured_files():
            tests_of_line = lines.setdefault(Path(file).relative_to(tree).as_posix(), {})
            for line, contexts in data.contexts_by_lineno(file).items():
                # PYTEST_CURRENT_TEST has " (call)" at its end.
                names = {c.rsplit(" (", 1)[0] if c.endswith(")") else c for c in contexts}
                tests_of_line.setdefault(line, set()).update(names & plugin.seconds.keys())
    shutil.rmtree(place)
    return {
        "code": code,
        "seconds": {t: s for t, s in plugin.seconds.items() if t not in plugin.failed},
        "failed": sorted(plugin.failed),
        "lines": {
            file: {line: sorted(run_by) for line, run_by in tests_of_line.items() if run_by}
            for file, tests_of_line in lines.items()
        },
    }


def digest(path: Path) -> str:
    """Return a digest of a file, or of the Python files of a folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


class Coverage:
    """The tests that run a line, and how long each takes."""

    def __init__(self, keep: Path, tree: Path, groups: list[str]) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = {}
        place = keep / "coverage"
        place.mkdir(exist_ok=True)
        for group in groups:
            results = place / f"{Path(group).stem}-{digest(tree / group)}.json"
            if not results.exists():
                began = time.monotonic()
                measured = in_fork(lambda group=group: measure(tree, group), keep / "log", 3600)
                if not isinstance(measured, dict):
                    raise SystemExit(f"{group} could not be measured: see {keep / 'log'}")
                results.write_text(json.dumps(measured))
                seconds, count = time.monotonic() - began, len(measured["seconds"])
                print(f"{group}: {count} tests, {seconds:.0f} s", flush=True)
                for test in measured["failed"]:
                    print(f"  does not pass, and is left out: {test}", flush=True)
            measured = json.loads(results.read_text())
            passed = measured["seconds"]
            self.seconds |= passed
            for file, lines in measured["lines"].items():
                tests_of_line = self.lines.setdefault(file, {})
                for line, tests in lines.items():
                    run_by = {test for test in tests if test in passed}
                    tests_of_line.setdefault(int(line), set()).update(run_by)

    def of(self, mutant: Mutant, source: bytes) -> set[str]:
        """Return the tests that run the mutant's lines.

        What runs at the import has an effect later: then those that run some line of the class or
        function around it, or of the functions that use the name it is given. Failing that, and for
        what no test is seen to run, as in the workers of a loader, those of the file.
        """
        lines, tree = self.lines.get(mutant.file, {}), ast.parse(source)
        last = mutant.line + mutant.before.count("\n")

        def running(first: int, last: int) -> set[str]:
            return set().union(*(lines.get(n, ()) for n in range(first, last + 1)))

        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        bodies = [(f.body[0].lineno, f.end_lineno or 0) for f in functions]
        if any(first <= mutant.line <= last for first, last in bodies):
            return running(mutant.line, last) or set().union(*lines.values())
        names = {
            name_of(target)
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and node.lineno <= mutant.line <= (node.end_lineno or 0)
            for target in getattr(node, "targets", [getattr(node, "target", None)])
        }
        if names:
            users = [
                body
                for function, body in zip(functions, bodies, strict=True)
                if any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(function))
            ]
            tests = set().union(*(running(*body) for body in users))
            return tests or set().union(*lines.values())
        classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        around = [
            node
            for node in [*functions, *classes]
            if min([node, *node.decorator_list], key=lambda n: n.lineno).lineno <= mutant.line
            and last <= (node.end_lineno or 0)
        ]
        for node in sorted(around, key=lambda node: node.lineno, reverse=True):
            inside = [
                body
                for function, body in zip(functions, bodies, strict=True)
                if node.lineno <= function.lineno <= (node.end_lineno or 0)
            ]
            tests = set().union(*(running(*body) for body in inside))
            if tests:
                return tests
        return set().union(*lines.values())


# One mutant


class Chosen:
    """Keeps the chosen tests alone, in the order chosen, and notes the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.place, self.failed = {test: i for i, test in enumerate(tests)}, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"import ({report.nodeid})"


def rounds(tests: set[str], seconds: dict[str, float]) -> list[list[str]]:
    """Return the tests in two rounds: the fastest of each test function, then all others.

    A round is as long as its limit allows, and goes file by file, since pytest reads a whole file
    whichever of its tests are run.
    """
    ranked = sorted(tests, key=lambda test: (seconds[test], test))
    fastest: dict[str, str] = {}
    for test in ranked:
        fastest.setdefault(test.partition("[")[0], test)
    first = within(FIRST_ROUND_S, list(fastest.values()), seconds)
    second = within(SECOND_ROUND_S, [test for test in ranked if test not in first], seconds)
    return [by_file(tests) for tests in (first, second) if tests]


def within(limit: float, ranked: list[str], seconds: dict[str, float]) -> list[str]:
    """Return the first tests that take no longer together, but at least one."""
    totals = itertools.accumulate(seconds[test] for test in ranked)
    return [
        t
        for i, (t, total) in enumerate(zip(ranked, totals, strict=True))
        if total <= limit or i == 0
    ]


def by_file(tests: list[str]) -> list[str]:
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    return sorted(tests, key=lambda test: files.index(test.partition("::")[0]))


def attempt(tree: Path, tests: list[str]) -> str:
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    plugin = Chosen(tests)
    code = run_pytest(tree, ["-x", *files], plugin)
    return plugin.failed or ("" if code in (0, 5) else f"pytest's exit code {code}")


@contextlib.contextmanager
def in_place(mutant: Mutant, number: int, tree: Path) -> Iterator[None]:
    """Put a mutant into the copy of the project while the context lasts."""
    path = tree / mutant.file
    original, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(mutant.source(tree))
        # Python tells by time and size whether a file is as it was when it was compiled.
        os.utime(path, (times.st_atime, times.st_mtime + 10 + number))
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, (times.st_atime, times.st_mtime))


def try_mutant(mutant: Mutant, number: int, tree: Path, keep: Path, tests: Coverage) -> str:
    """Return the test that catches a mutant, "" if none does.

    What fails has to fail again by itself, and to pass without the fault; a test that does not is
    left out. A time limit counts if without the fault half of it is enough; where it is not, since
    the machine does other work, the limit is doubled.
    """

    def outcome(chosen: list[str], limit: float, faulty: bool = True) -> str:
        with in_place(mutant, number, tree) if faulty else contextlib.nullcontext():
            caught = in_fork(lambda: attempt(tree, chosen), keep / "log", limit)
        return {"time": "time limit", None: "end of the process"}.get(caught, caught)

    for chosen in rounds(tests.of(mutant, (tree / mutant.file).read_bytes()), tests.seconds):
        limit = 90 + 6 * sum(tests.seconds[test] for test in chosen)
        while chosen:
            caught = outcome(chosen, limit)
            if not caught:
                break
            again = [caught] if caught in chosen else chosen
            without = outcome(again, limit / 2, faulty=False)
            if not without and (again is chosen or outcome(again, limit)):
                return caught
            print(f"without the fault: {without or 'passed'}: {caught}", flush=True)
            if without == "time limit":
                limit *= 2
            elif caught in chosen:
                chosen = [test for test in chosen if test != caught]
            else:
                raise SystemExit(f"without the fault: {without}: see {keep / 'log'}")
    return ""


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| package | mutants | caught | survived |", "| --- | --- | --- | --- |"]
    rooms = [room for room in ROOMS if any(f"/{room}/" in r["file"] for r in results)]
    for room in [*rooms, ""]:
        count = [bool(r["caught"]) for r in results if f"/{room}/" in r["file"] or not room]
        caught = sum(count)
        lines.append(f"| {room or 'all'} | {len(count)} | {caught} | {len(count) - caught} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rooms", default=",".join(ROOMS), help="packages of darts_bio")
    parser.add_argument("--keep", type=Path, default=ROOT / ".cache" / "mutants")
    parser.add_argument("--tests", nargs="+", help="files to choose from; by default all")
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    parser.add_argument("--list", action="store_true", help="show the mutants, and run nothing")
    options = parser.parse_args()
    mutants = sample(options.rooms.split(","), options.seed, options.count, ROOT)
    if options.list:
        print("\n".join(mutant.what for mutant in mutants))
        return
    keep: Path = options.keep.resolve()
    keep.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(keep / "bytecode")
    import_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: ends what was started
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        tree = copy_project(Path(place).resolve())
        every = [f"tests/{path.name}" for path in sorted((tree / "tests").glob("test_*.py"))]
        tests = Coverage(keep, tree, options.tests or [*every, PACKAGE])
        file = keep / "results.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        for number, mutant in enumerate(mutants):
            before = results.get(mutant.key)
            if before is None or (options.again and not before["caught"]):
                began = time.monotonic()
                caught = try_mutant(mutant, number, tree, keep, tests)
                seconds = round(time.monotonic() - began, 1)
                results[mutant.key] = asdict(mutant) | {"caught": caught, "seconds": seconds}
                file.write_text(json.dumps(results, indent=1))
            caught = results[mutant.key]["caught"]
            outcome = f"caught by {caught}" if caught else "SURVIVED"
            print(f"{number + 1}. {mutant.what}\n    {outcome}", flush=True)
    print(table([results[mutant.key] for mutant in mutants]))


if __name__ == "__main__":
    main()
