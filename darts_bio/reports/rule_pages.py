"""Pages on the learning rules, made from the registry: one per rule, and a table of all."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from darts_bio.errors import InputError
from darts_bio.rules import RULES

SECTIONS = ("State", "Cost", "When")
"""Words that begin a paragraph, before a colon, in the docstring of a rule."""


def rule_page(name: str) -> str:
    """Return the page of one rule in Markdown, made from its docstring, options and properties.

    Raises InputError for a rule that is not registered.
    """
    rule: Any = RULES.get(name)
    summary, _, body = (inspect.getdoc(rule) or "").partition("\n")
    body_lines = []
    for line in body.strip().splitlines():
        word, _, rest = line.partition(":")
        body_lines.append(f"\n**{word}.**{rest}" if word in SECTIONS else line)
    paragraphs = "\n".join(body_lines)
    lines = [f"# {name}", "", f"**{summary}**", "", paragraphs.strip(), ""]
    options = [f for f in fields(rule) if f.init] if is_dataclass(rule) else []
    if options:
        example = next((f"{f.name}={f.default}" for f in options), "")
        lines += [f'Options, as in `--rules "{name}({example})"`:', ""]
        lines += [f"- `{f.name}` (default `{f.default}`)" for f in options] + [""]
    default_rule = rule()
    renews = "renews its feedback after each weight update (`draw_feedback(model, seed, update)`)"
    properties = {
        "learns by the error that arrives": not default_rule.local,
        renews: default_rule.renews,
        "is batched in the supernet": default_rule.batched,
    }
    lines.append(f"- what carries the error down: {default_rule.carries}")
    lines += [f"- {text}: {'yes' if holds else 'no'}" for text, holds in properties.items()]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def rule_table() -> str:
    """Return the table of all rules in Markdown: name, summary, what carries the error down."""
    lines = ["| rule | | error carried by |", "|---|---|---|"]
    for name, summary in RULES.summaries().items():
        try:
            carries = str(RULES.build(name).carries)
        except InputError:  # a rule of a plug-in, with options that have no default
            carries = str(RULES.get(name).carries)
        text = summary.replace("|", "\\|")
        lines.append(f"| [`{name}`](docs/rules/{name}.md) | {text} | {carries} |")
    return "\n".join(lines) + "\n"
