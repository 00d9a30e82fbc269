r"""Text of any origin in Markdown: names of files, classes, networks and options, commands, YAML.

A name may hold line breaks, table bars, links and tags. Whatever a report does not say itself goes
through one of these functions, so that it is shown as it is and can be nothing else.

>>> escaped("a\n# [98 %](x) <b>")
'a # \\[98 %\\](x) \\<b>'
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from darts_bio.config import RunConfig
from darts_bio.data.given import GIVEN
from darts_bio.errors import one_line, printable

LONGEST_NAME = 2_000
"""Characters of a name in a report; longer ones lose their middle."""


class Markdown(str):
    """Text that is Markdown already, which `escaped` leaves as it is."""


def escaped(text: str) -> Markdown:
    r"""Return a text as Markdown that shows it on one line; what is Markdown already stays as it is.

    >>> escaped("a|b`c`"), escaped(Markdown("[seed](a.md)"))
    ('a\\|b\\`c\\`', '[seed](a.md)')
    """
    if isinstance(text, Markdown):
        return text
    return Markdown(re.sub(r"[\\`*\[\]<|&~]", r"\\\g<0>", one_line(text, LONGEST_NAME)))


def images_in_words(dataset: str) -> Markdown:
    """Return the name of a data set, or what stands for images that were handed over in Python.

    >>> images_in_words("cifar10"), images_in_words("given")
    ('cifar10', 'images given in Python')
    """
    return escaped("images given in Python" if dataset == GIVEN else dataset)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and its noun, in the plural where it is not one.

    >>> counted(1, "skip"), counted(2, "skip"), counted(0, "process", "processes")
    ('1 skip', '2 skips', '0 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def code(text: str, most: int = LONGEST_NAME) -> Markdown:
    """Return a text as code within a line.

    >>> print(code("pgd(eps=4)"), code("a`b"))
    `pgd(eps=4)` ``a`b``
    """
    text = one_line(text, most)
    ticks = "`" * (1 + _longest_run(text))
    blank = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return Markdown(f"{ticks}{blank}{text}{blank}{ticks}")


def link(text: str, target: str) -> Markdown:
    r"""Return a link to a file of the run's folder, which the report names itself.

    >>> print(link("seed|0", "seed-0/report.md"))
    [seed\|0](seed-0/report.md)
    """
    return Markdown(f"[{escaped(text)}]({target})")


def block(text: str, language: str = "") -> list[str]:
    r"""Return the lines of a block of code, which ends where the text does, whatever stands in it.

    >>> print(*block("a: 1", "yaml"), sep="\n")
    ```yaml
    a: 1
    ```
    """
    ticks = "`" * max(3, 1 + _longest_run(text))
    return [f"{ticks}{language}", *map(printable, text.split("\n")), ticks]


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Return the lines of a Markdown table, whose cells are escaped.

    >>> print("\n".join(markdown_table(("rule", "layers"), [("usf", "12"), ("a|b", "3")])))
    | rule | layers |
    | --- | --- |
    | usf | 12 |
    | a\|b | 3 |
    """
    # In a table a bar ends a cell even in code, unless a backslash stands before it.
    cells = [
        [re.sub(r"(?<!\\)\|", r"\\|", escaped(cell)) for cell in row]
        for row in (head, ["---"] * len(head), *rows)
    ]
    return [f"| {' | '.join(row)} |" for row in cells]


def recipe(config: RunConfig, command: str) -> list[str]:
    """Return the lines that tell how to do a run again: the command and all options.

    >>> from darts_bio.config import SearchConfig
    >>> recipe(SearchConfig(data_dir="/home/me/data", out="runs/a"), "darts-bio search")[:4]
    ['## Recipe', '', '`darts-bio search`', '']
    """
    options = block(config.to_yaml(folders=False).rstrip(), "yaml")
    return ["## Recipe", "", code(command, LONGEST_COMMAND), "", *options]


def repeat_entry(command: str) -> str:
    """Return the entry of the list at a report's head on how to make the run again.

    >>> repeat_entry("darts-bio search --dataset digits")
    '**Repeat:** `darts-bio search --dataset digits`'
    """
    return f"**Repeat:** {code(command, LONGEST_COMMAND)}"


def slowed(scale: float) -> list[str]:
    """Return the lines on a learning rate that was lowered since the run had diverged.

    `scale` is what the schedule's rates were multiplied by at last (`--rollbacks`).

    >>> slowed(1.0), slowed(0.25)
    ([], ["- diverged and went back: at the end with 0.25 of the weights' learning rate asked for"])
    """
    if scale == 1:
        return []
    return [
        f"- diverged and went back: at the end with {scale:g} of the weights' learning rate asked for"
    ]


LONGEST_COMMAND = 10_000
"""Characters of a command in a report; longer ones lose their middle."""
