"""Run the tutorials, which are notebooks, and show them as pages of the site.

    python docs/notebooks.py docs/tutorials/*.ipynb     runs each anew, and writes its outputs into it

A notebook is a JSON file (nbformat 4), and its code is plain Python, so that neither running nor
showing one needs Jupyter: the tests run the tutorials where only this package is installed, and the
site's pages load nothing from elsewhere. A cell whose outputs depend on the processor, such as
accuracies, has the tag `varies`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIES = "varies"
"""The tag of cells whose outputs are not the same on all processors."""
TEXT, FIGURE = "text/plain", "image/svg+xml"

Output = dict[str, Any]
"""An output of a cell, as nbformat 4 has it."""


def read(path: Path) -> dict[str, Any]:
    """Return the notebook in a file.

    >>> notebook = read(Path(__file__).parent / "tutorials" / "own-rule.ipynb")
    >>> notebook["nbformat"], "".join(notebook["cells"][0]["source"]).splitlines()[0]
    (4, '# A learning rule of your own')
    """
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, notebook: dict[str, Any]) -> None:
    """Write a notebook as Jupyter does, so that a change in it is a change of a few lines."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def code_cells(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Go through the code cells of a notebook; yields each with its code."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell, "".join(cell["source"])


def varies(cell: dict[str, Any]) -> bool:
    """Tell whether a cell's outputs may differ from processor to processor."""
    return VARIES in cell["metadata"].get("tags", ())


def outputs(notebook: dict[str, Any]) -> list[list[Output]]:
    r"""Run the code cells in the current folder, in one namespace; return the outputs of each.

    They are what a cell prints on standard output, and the value of its last line: a figure where
    it can show itself as SVG, else its text.

    >>> cell = {"cell_type": "code", "source": ["print(1)\n", "2 + 3"]}
    >>> [kind["output_type"] for kind in outputs({"cells": [cell]})[0]]
    ['stream', 'execute_result']
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    return [
        _outputs_of(code, number, names) for number, (_, code) in enumerate(code_cells(notebook), 1)
    ]


def _outputs_of(code: str, number: int, names: dict[str, Any]) -> list[Output]:
    """Run the code of a cell; return its outputs."""
    tree = ast.parse(code, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    found: list[Output] = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        found.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        figure = getattr(value, "_repr_svg_", None)
        text = value.label if figure else repr(value)
        data = {TEXT: text.splitlines(keepends=True)}
        if figure:
            data[FIGURE] = figure().splitlines(keepends=True)
        result = {"output_type": "execute_result", "execution_count": number}
        found.append({**result, "data": data, "metadata": {}})
    return found


def run(path: Path) -> list[list[Output]]:
    """Run the notebook in a file, in a process and a fresh folder of its own; return its outputs.

    Raises RuntimeError, with what the process wrote on standard error, if a cell raises.
    """
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(Path(__file__).resolve()), "--here", str(path.resolve())]
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{path}: {done.stderr}")
    return json.loads(done.stdout)


def markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, str]]:
    r"""Return a notebook as the text of a page, and the figures of the page by file name.

    >>> text, figures = markdown({"cells": [{"cell_type": "markdown", "source": ["# A"]}]}, "a")
    >>> text, figures
    ('# A\n', {})
    """
    parts, figures = [], dict[str, str]()
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(_fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if FIGURE in data:
                file = f"{name}-{len(figures) + 1}.svg"
                figures[file] = "".join(data[FIGURE])
                parts.append(f"![{''.join(data[TEXT])}]({file})")
            else:
                parts.append(_fenced("".join(data.get(TEXT, output.get("text", ""))), "text"))
    return "\n\n".join(parts) + "\n", figures


def _fenced(text: str, language: str) -> str:
    """Return a text between fences that are longer than any in it."""
    longest = max(map(len, re.findall(r"^`{3,}", text, re.MULTILINE)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def main(arguments: list[str]) -> None:
    """Write the outputs of the notebooks that are named; with --here print those of one."""
    if arguments[0] == "--here":
        print(json.dumps(outputs(read(Path(arguments[1])))))
        return
    for path in map(Path, arguments):
        notebook = read(path)
        pairs = zip(code_cells(notebook), run(path), strict=True)
        for number, ((cell, _), found) in enumerate(pairs, 1):
            cell.update(execution_count=number, outputs=found)
        write(path, notebook)
        print(f"{path}: written", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
