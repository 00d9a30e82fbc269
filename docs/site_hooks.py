"""What the site holds beside the pages in this folder, for `mkdocs build`.

Three pages of the repository lie elsewhere (`PAGES`), the page of all options is written from the
dataclasses that declare them, and each tutorial is a page made from its notebook. A file that a page
links to, such as a benchmark's data, is copied to `repository/`, so that the site needs no network
and no checkout.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import notebooks
from mkdocs.structure.files import File, Files

from darts_bio.config import RUNS, flag
from darts_bio.config.options import plain

ROOT = Path(__file__).parent.parent
PAGES = {
    "genotypes/README.md": "genotypes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie outside of docs/, and what they are called on the site."""
NOTEBOOKS = "docs/tutorials"
"""The folder of the notebooks, each of which is a page of its name."""
COPIES = "repository"
"""The folder of the site with the files that pages link to."""
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, of options and of notebooks, and the files that pages link to."""
    for place, name in PAGES.items():
        content = (ROOT / place).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "options.md", content=options_page()))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        text, figures = notebooks.markdown(notebooks.read(path), path.stem)
        for name, content in {f"{path.stem}.md": text, **figures}.items():
            place = f"{NOTEBOOKS}/{name}".removeprefix("docs/")
            files.append(File.generated(config, place, content=content))
    to_read = list(files.documentation_pages())
    while to_read:
        for target in _targets(to_read.pop()):
            name = _page_of(target) or f"{COPIES}/{target}"
            if (ROOT / target).is_file() and files.get_file_from_path(name) is None:
                copy = File.generated(config, name, abs_src_path=str(ROOT / target))
                files.append(copy)
                if copy.is_documentation_page():  # such as a benchmark's report, with its figures
                    to_read.append(copy)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Have links to files of the repository lead to where the site has them."""
    here = posixpath.dirname(page.file.src_uri)

    def on_the_site(match: re.Match[str]) -> str:
        target = _in_repository(page.file, match[2])
        if target is None or not (ROOT / target).is_file():
            return match[0]  # an address, or a link that MkDocs shall complain about
        there = _page_of(target) or f"{COPIES}/{target}"
        return f"{match[1]}{posixpath.relpath(there, here or '.')}{match[3]}"

    text = _LINK.sub(on_the_site, markdown)
    notebook = Path(page.file.src_uri).with_suffix(".ipynb")
    if (ROOT / "docs" / notebook).is_file():
        text += (
            f"\n[This page as a notebook]({notebook.name})\n"  # a file, where others mean the page
        )
    return text


def _targets(page: File) -> list[str]:
    """Return the files that a page links to, as paths in the repository."""
    targets = [_in_repository(page, match[2]) for match in _LINK.finditer(page.content_string)]
    return [target for target in targets if target is not None]


def _in_repository(page: File, link: str) -> str | None:
    """Return where a page's link leads, as a path in the repository; None if out of it."""
    if ":" in link or link.startswith("/"):
        return None
    place = {name: place for place, name in PAGES.items()}.get(page.src_uri, f"docs/{page.src_uri}")
    if page.src_uri.startswith(f"{COPIES}/"):
        place = page.src_uri.removeprefix(f"{COPIES}/")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    return None if target.startswith("..") else target


def _page_of(target: str) -> str | None:
    """Return the page of the site that a file of the repository is or is made into, or None."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith(f"{NOTEBOOKS}/") and target.endswith(".ipynb"):
        target = target.removesuffix(".ipynb") + ".md"
    return target.removeprefix("docs/") if target.startswith("docs/") else None


def options_page() -> str:
    """Return a page with all options of each command, their defaults, and what they do.

    >>> "--epochs" in options_page()
    True
    """
    lines = [
        "# All options",
        "",
        "From the dataclasses that declare them. A protocol, that of a data set or space among them, has",
        "other values for some: `--help` shows them. How to write them: [the command line](command-line.md).",
    ]
    for command, config in RUNS.items():
        lines += ["", f"## {command}", "", "| option | default | |", "|---|---|---|"]
        for f in fields(config):
            if "help" in f.metadata:
                lines.append(
                    f"| `{flag(f.name)}` | {_default(f.default)} | {_cell(f.metadata['help'])} |"
                )
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    """Return a default as a cell of a table."""
    if value in (None, "", ()):
        return ""
    return (
        f"`{_cell(','.join(map(str, value)) if isinstance(value, tuple) else str(plain(value)))}`"
    )


def _cell(text: str) -> str:
    """Return a text that may stand in a cell of a table."""
    return text.replace("|", "\\|")
