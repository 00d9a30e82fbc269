"""The README and the pages in docs/: their code runs, and their links lead somewhere.

The code of the tutorials, which are notebooks, is run by test_tutorials.py.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import darts_bio
import darts_bio.strategies
from darts_bio.rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TUTORIALS = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.ipynb"))]


def blocks(page: Path) -> list[str]:
    """The blocks of Python code of a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def around(name: str) -> dict[str, Any]:
    """What the code of a page takes for granted."""
    torch.manual_seed(0)
    if name == "docs/features.md":
        return {"images": torch.rand(20, 3, 32, 32)}
    if name == "docs/learners.md":
        return {"darts_bio": darts_bio, "torch": torch, "batches": [digits(16)] * 2}
    if name == "docs/many-runs.md":
        Path("runs").mkdir()
        return {"darts_bio": darts_bio}
    if name == "docs/robustness.md":
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        return {"model": model, "pixels": torch.rand(4, 3, 8, 8), "labels": torch.arange(4)}
    return {}


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 64), torch.arange(count) % 10


@pytest.fixture
def rules_kept() -> Iterator[None]:
    """Take off the rules that a page has registered."""
    before = set(RULES)
    yield
    for name in set(RULES) - before:
        RULES.unregister(name)


WITH_CODE = [
    # The README's first lines are a whole search and a training; a benchmark's API is not here; that
    # of trackers is run by test_trackers.py.
    pytest.param(name, marks=pytest.mark.slow if name == "README.md" else ())
    for name, page in zip(NAMES, PAGES, strict=True)
    if blocks(page) and name not in ("docs/search/nb201.md", "docs/trackers.md")
]


@pytest.mark.usefixtures("rules_kept")
@pytest.mark.parametrize("name", WITH_CODE)
def test_its_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = around(name)
    for number, block in enumerate(blocks(ROOT / name), 1):
        exec(compile(block, f"{name}, block {number}", "exec"), names)


@pytest.mark.parametrize("name", [*NAMES, *TUTORIALS])
def test_its_links_lead_to_files_and_headings(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name in TUTORIALS:
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        # These are made for the site (docs/site_hooks.py).
        made = {"options.md", "genotypes.md", "contributing.md", "changelog.md"}
        assert place.exists() or path in made, f"{name}: {target}"
        if anchor:
            assert anchor in anchors(place), f"{name}: {target}"


def test_the_api_page_has_every_exported_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: ([\w.]+)\.(\w+)$", text, re.MULTILINE)
    bases = {"GradientStrategy", "AlphaState"}  # of extensions: exported by darts_bio.strategies
    assert {name for _, name in shown} - bases == set(darts_bio.__all__) - {"__version__"}
    for module, name in shown:
        exporter = darts_bio.strategies if name in bases else darts_bio
        assert getattr(importlib.import_module(module), name) is getattr(exporter, name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip() for heading in headings)
    return {heading.lower().replace(" ", "-") for heading in plain}
