"""The tutorials: their code runs, shows what they say it shows, and names what exists."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, forked

sys.path.insert(0, str(ROOT / "docs"))
import notebooks
from notebooks import FIGURE, TEXT, code_cells, varies

import darts_bio
from darts_bio.config import RetrainConfig, RobustnessConfig, SearchConfig

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
QUICK = {"own-rule", "rules-on-your-model"}
"""Those that take two seconds; the others search and train for longer."""
CALLS = {"search": SearchConfig, "train": RetrainConfig, "attack": RobustnessConfig}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in TUTORIALS
    ],
)
def test_a_run_gives_the_outputs_that_it_holds(path: Path, tmp_path: Path) -> None:
    done = forked(str(ROOT / "docs" / "notebooks.py"), "--here", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for (cell, code), found in zip(
        code_cells(notebooks.read(path)), json.loads(done.stdout), strict=True
    ):
        if varies(cell):  # as many outputs, of the same kinds
            assert kinds(found) == kinds(cell["outputs"]), code
        else:
            assert found == cell["outputs"], code


def kinds(outputs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", ()))) for output in outputs]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_what_it_names_exists(path: Path) -> None:
    """Without running it: imports, names of modules, and options of the Python functions."""
    code = "\n".join(code for _, code in code_cells(notebooks.read(path)))
    names: dict[str, Any] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name: importlib.import_module(a.name) for a in node.names}
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            names |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            assert not inspect.ismodule(module) or hasattr(module, node.attr), ast.unparse(node)
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).removeprefix("darts_bio.") in CALLS
        ):
            function = ast.unparse(node.func).removeprefix("darts_bio.")
            known = {f.name for f in fields(CALLS[function])}
            known |= set(inspect.signature(getattr(darts_bio, function)).parameters)
            given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            assert given <= known, f"{function}: {given - known}"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_is_short_and_says_where_to_go_on(path: Path) -> None:
    notebook = notebooks.read(path)
    assert len(list(code_cells(notebook))) <= 10
    assert notebook["cells"][-1]["source"][0] == "## Where to go on\n"


def test_a_cell_has_what_it_prints_and_the_value_of_its_last_line() -> None:
    figure = "class Figure:\n  label = 'a circle'\n  _repr_svg_ = lambda self: '<svg/>'\nFigure()"
    cells = ["x = 1\nprint(x)\nprint(2)", "x + 1", "x = 3", "x", figure, "None"]
    notebook = {"cells": [{"cell_type": "code", "source": [cell]} for cell in cells]}
    printed, value, nothing, changed, shown, none = notebooks.outputs(notebook)
    assert [output["text"] for output in printed] == [["1\n", "2\n"]]
    assert value[0]["data"] == {TEXT: ["2"]}
    assert value[0]["execution_count"] == 2
    assert changed[0]["data"] == {TEXT: ["3"]}
    assert shown[0]["data"] == {TEXT: ["a circle"], FIGURE: ["<svg/>"]}
    assert nothing == none == []


def test_a_page_has_code_text_and_figures_of_its_notebook() -> None:
    text = {"output_type": "stream", "name": "stdout", "text": ["```\n", "x\n"]}
    figure = {"output_type": "execute_result", "data": {TEXT: ["a circle"], FIGURE: ["<svg/>"]}}
    cell = {"cell_type": "code", "source": ["f()"], "metadata": {}, "outputs": [text, figure]}
    page, figures = notebooks.markdown({"cells": [cell]}, "page")
    assert page == ("```python\nf()\n```\n\n````text\n```\nx\n````\n\n![a circle](page-1.svg)\n")
    assert figures == {"page-1.svg": "<svg/>"}


def test_the_examples_of_its_functions_run() -> None:
    assert doctest.testmod(notebooks).failed == 0
