"""What leaves as a package: one version everywhere, a README for a package index, hints that name
real extras.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import darts_bio

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["project"]["version"] == darts_bio.__version__
    assert citation["license"] == project["project"]["license"]


def test_the_readme_of_a_package_index_links_to_addresses_only(project: dict[str, Any]) -> None:
    text = readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links == [
        link for link in re.findall(r"\]\(([^)\s]+)\)", readme) if link.startswith("http")
    ]
    assert len(text.splitlines()) > 0.9 * len(readme.splitlines())


def test_install_hints_name_extras_that_exist(project: dict[str, Any]) -> None:
    folders = ("darts_bio", "search", "evaluate", "benchmarks")
    sources = "\n".join(
        p.read_text(encoding="utf-8") for f in folders for p in (ROOT / f).rglob("*.py")
    )
    documents = "\n".join(
        p.read_text(encoding="utf-8") for p in ROOT.rglob("*.md") if ".venv" not in p.parts
    )
    hinted = set(re.findall(r"install_hint\(['\"](\w+)", sources))
    hinted |= set(re.findall(r"darts-bio\[(\w+)\]", sources + documents))
    assert {"attacks", "evolution", "onnx"} <= hinted
    assert hinted <= set(project["project"]["optional-dependencies"])
