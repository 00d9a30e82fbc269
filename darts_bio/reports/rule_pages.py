"""The documentation of the learning rules, made from what is registered: a page a rule, and the
table of all.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from darts_bio.errors import InputError
from darts_bio.rules import RULES

SECTIONS = ("State", "Cost", "When")


def rule_page(name: str) -> str:
    """The page of one rule in Markdown: equation, source, state, cost, when to use it, options,
    properties.
    """
    rule: Any = RULES.get(name)
    summary, _, body = (inspect.getdoc(rule) or "").partition("\n")
    paragraphs = "\n".join(
        f"\n**{line.partition(':')[0]}.**{line.partition(':')[2]}"
        if line.split(":")[0] in SECTIONS
        else line
        for line in body.strip().splitlines()
    )
    lines = [f"# {name}", "", f"**{summary}**", "", paragraphs.strip(), ""]
    options = [f for f in fields(rule) if f.init] if is_dataclass(rule) else []
    if options:
        example = next((f"{f.name}={f.default}" for f in options), "")
        lines += [f'Options, as in `--rules "{name}({example})"`:', ""]
        lines += [f"- `{f.name}` (default `{f.default}`)" for f in options] + [""]
    member = rule()
    facts = {
        "carries the error by the values of W (weight transport)": member.transports_weights,
        "learns by the error that arrives": not member.local,
        "renews its feedback after each weight update (`draw_feedback(model, seed, update)`)": member.renews,
        "is batched in the supernet": member.batched,
    }
    lines += [f"- {text}: {'yes' if fact else 'no'}" for text, fact in facts.items()]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def rule_table() -> str:
    """All rules in Markdown: name and first line, and whether weights are transported."""
    lines = ["| rule | | weight transport |", "|---|---|---|"]
    for name, summary in RULES.summaries().items():
        try:
            transports = RULES.build(name).transports_weights
        except InputError:  # a plug-in's that has options without default
            transports = RULES.get(name).transports_weights
        text = summary.replace("|", "\\|")
        lines.append(
            f"| [`{name}`](docs/rules/{name}.md) | {text} | {'yes' if transports else 'no'} |"
        )
    return "\n".join(lines) + "\n"
