"""A run's report in its two forms: report.md, and report.html beside it for a browser.

The page is the same Markdown, rendered by markdown-it-py (CommonMark and tables). HTML in the text
is shown as text, since names and paths come from whoever made the run. The figures of the folder are
part of the page, which loads nothing: its Content-Security-Policy forbids all requests, and all
scripts but the one that is given by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from darts_bio.reports.card import CARD_FILE
from darts_bio.storage.whole_files import write_text

T = TypeVar("T")

PAGE_FILE = "report.html"
"""The report for a browser, beside `CARD_FILE`."""
MOST_ROWS = 200
"""Rows of a table of epochs, and frames of a time-lapse; of longer runs some are left out."""
FIGURE_BYTES = 1_000_000
"""The most bytes that the figures of a page take together; further ones are linked to."""


@dataclass(frozen=True)
class Widget:
    """HTML that stands in the page alone, below the heading of that text, and its script.

    `hint` is a paragraph of the text that tells of it, which the page leaves out.
    """

    heading: str
    html: str
    script: str
    hint: str = ""


def write_report(folder: Path, text: str, widget: Widget | None = None) -> None:
    """Write a run's report: report.md, which is the text, and report.html.

    Args:
        folder: The run's folder, with the figures that the text shows.
        text: The report in Markdown.
        widget: What the page has beside it.

    Raises:
        InputError: If the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     write_report(Path(place), "# A <b>run</b>")
    ...     print(sorted(path.name for path in Path(place).iterdir()))
    ...     "<h1>A &lt;b&gt;run&lt;/b&gt;</h1>" in (Path(place) / PAGE_FILE).read_text()
    ['report.html', 'report.md']
    True
    """
    write_text(folder / CARD_FILE, text)
    write_text(folder / PAGE_FILE, page(folder, text, widget))


def page(folder: Path, text: str, widget: Widget | None = None) -> str:
    """Return the whole page; the arguments are those of `write_report`."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name, render in (("image", _figure), ("link_open", _link), ("fence", _fence)):
        parser.add_render_rule(name, render)
    for name, (before, after) in WRAPPED.items():
        parser.add_render_rule(f"{name}_open", _constant(before))
        parser.add_render_rule(f"{name}_close", _constant(after))
    env: dict[str, Any] = {"folder": folder, "left": FIGURE_BYTES}
    tokens = parser.parse(text, env)
    if widget is not None and widget.hint:
        tokens = _without(tokens, widget.hint)
    headings = [i for i, token in enumerate(tokens) if token.type == "heading_open"]
    title = _plain(tokens[headings[0] + 1]) if headings else folder.name
    place = len(tokens)
    if widget is not None:
        found = [i for i in headings if tokens[i + 1].content == widget.heading]
        place = found[0] + 3 if found else place  # behind its opening, its text, its closing
    body = parser.renderer.render(tokens[:place], parser.options, env)
    script = ""
    if widget is not None:
        body += widget.html
        script = f"<script>{widget.script}</script>\n"
    body += parser.renderer.render(tokens[place:], parser.options, env)
    style = resources.files("darts_bio.reports").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(widget)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n{script}</body>\n</html>\n"
    )


WRAPPED = {"table": ('<div class="wide"><table>\n', "</table></div>\n")}
"""Blocks that scroll within themselves where they are wider than the page."""


def _policy(widget: Widget | None) -> str:
    """Return the page's Content-Security-Policy."""
    script = ""
    if widget is not None:
        digest = base64.b64encode(hashlib.sha256(widget.script.encode()).digest()).decode()
        script = f"; script-src 'sha256-{digest}'"
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'{script}"
    )


def _without(tokens: Sequence[Token], paragraph: str) -> list[Token]:
    """Return the tokens but for those of paragraphs with this Markdown."""
    left = list(tokens)
    for i in reversed(range(1, len(left) - 1)):
        if left[i].content == paragraph and left[i - 1].type == "paragraph_open":
            del left[i - 1 : i + 2]
    return left


def _plain(token: Token) -> str:
    """Return the text of a heading or an image, without its markup."""
    return "".join(child.content for child in token.children or ())


def _constant(html: str) -> Any:
    """Return a rule that renders a token as this HTML."""
    return lambda renderer, tokens, idx, options, env: html


def _figure(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    idx: int,
    options: Any,
    env: MutableMapping[str, Any],
) -> str:
    """Render an image: a figure of the run's folder as part of the page, of all else the text."""
    token = tokens[idx]
    alt = escape(_plain(token))
    name = str(token.attrGet("src"))
    path = env["folder"] / name
    if PurePosixPath(name).name != name or path.suffix != ".svg" or not path.is_file():
        return alt
    svg = path.read_text(encoding="utf-8")
    if len(svg) > env["left"]:
        return f'<a href="{escape(name)}">{alt}</a> (too large for this page)'
    env["left"] -= len(svg)
    # For the style, by which a phone scrolls along a wide figure rather than shrink its texts.
    width = re.search(r'<svg[^>]* width="([\d.]+)(pt)?"', svg)
    style = f' style="--width: {width[1]}{width[2] or "px"}"' if width else ""
    return f'<span class="figure"{style}>{svg.strip()}</span>'


def _fence(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    idx: int,
    options: Any,
    env: MutableMapping[str, Any],
) -> str:
    """Render a block of code; one in YAML, all options of a run, is unfolded by a click."""
    html = renderer.fence(tokens, idx, options, env)
    if tokens[idx].info != "yaml":
        return html
    return f"<details><summary>all options</summary>\n{html}</details>\n"


def _link(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    idx: int,
    options: Any,
    env: MutableMapping[str, Any],
) -> str:
    """Render a link; one to another report leads to its page."""
    token = tokens[idx]
    target = str(token.attrGet("href"))
    if target.split("/")[-1] == CARD_FILE:
        token.attrSet("href", target.removesuffix(CARD_FILE) + PAGE_FILE)
    return renderer.renderToken(tokens, idx, options, env)
