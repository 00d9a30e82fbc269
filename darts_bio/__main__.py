"""The small commands: what can be named in an option, and what a genotype looks like.

python -m darts_bio list
python -m darts_bio rules usf
python -m darts_bio audit bionas_darts
python -m darts_bio genotype
python -m darts_bio genotype darts_v2
python -m darts_bio genotype "Genotype(normal=[('sep_conv_3x3_u', 1), ...], ...)" --json mine.json --svg mine.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darts_bio.command_line import import_plugins
from darts_bio.errors import InputError
from darts_bio.registry import Registry, split_specs


def list_names(arguments: argparse.Namespace) -> None:
    """Prints every registered name with a line about it, and its options with their defaults."""
    from darts_bio.rules import RULES
    from darts_bio.spaces import OPERATIONS, SPACES, shipped_names
    from darts_bio.strategies import COSTS, REGULARIZERS, STRATEGIES
    from darts_bio.training.data import DATASETS

    families: list[tuple[str, Registry[Any] | tuple[str, ...], bool]] = [
        ("learning rules   --rules, --backbone-rule", RULES, True),
        ("operations", OPERATIONS, False),
        ("spaces   --space", SPACES, True),
        ("strategies   --strategy", STRATEGIES, True),
        ("costs   --objective", COSTS, False),
        ("regularizers   --regularizers", REGULARIZERS, True),
        ("data sets   --dataset", DATASETS, False),
        ("genotypes   --genotype", shipped_names(), False),
    ]
    for title, members, has_options in families:
        print(title)
        summaries = members.summaries() if isinstance(members, Registry) else dict.fromkeys(members, "")
        for name, summary in summaries.items():
            print(f"  {name:16} {summary}".rstrip())
            options = members.options(name) if has_options and isinstance(members, Registry) else {}
            if options:
                print(f"  {'':16} ({', '.join(f'{option}={value!r}' for option, value in options.items())})")


def show_rules(arguments: argparse.Namespace) -> None:
    """Prints the page of a rule, or the table of all."""
    from darts_bio.monitoring.rule_pages import rule_page, rule_table

    print(rule_page(arguments.name) if arguments.name else rule_table(), end="")


def show_audit(arguments: argparse.Namespace) -> None:
    """Prints which layers of a genotype's network learn by which rule."""
    from darts_bio.networks import build_network
    from darts_bio.rules import audit
    from darts_bio.spaces import load_genotype

    print(audit(build_network(load_genotype(arguments.source), channels=arguments.channels, layers=arguments.layers)))


def show_genotype(arguments: argparse.Namespace) -> None:
    """Prints a genotype; writes it as JSON and as a figure where asked to. Without one, what the shipped ones cost."""
    if arguments.source is None:
        from darts_bio.monitoring.genotype_table import genotype_tables

        if arguments.json or arguments.svg:
            raise InputError("genotype: --json and --svg need a genotype X to write")
        print(genotype_tables(), end="")
        return
    from darts_bio.monitoring.cell_figure import draw_genotype
    from darts_bio.spaces import is_nb201, load_genotype, to_nb201_text
    from darts_bio.training.run_folder import write_text, writing

    genotype = load_genotype(arguments.source)
    texts = {arguments.json: genotype.to_json(), arguments.svg: draw_genotype(genotype).svg()}
    texts.pop(None, None)
    for path in texts:
        with writing(Path(path)):
            if Path(path).exists():
                raise InputError(f"{path}: exists; remove it first, or choose another name")
    for path, text in texts.items():
        write_text(Path(path), text)
        print(f"wrote {path}")
    print(genotype)
    if is_nb201(genotype):
        print(to_nb201_text(genotype))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m darts_bio", description="Small commands beside the scripts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    lister = commands.add_parser("list", help="every name that an option takes")
    lister.set_defaults(run=list_names)
    genotype = commands.add_parser("genotype", help="show, import or draw a genotype, or the table of shipped ones")
    genotype.add_argument(
        "source",
        nargs="?",
        metavar="X",
        help="a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text",
    )
    genotype.add_argument("--json", metavar="FILE", help="write it as a genotype file")
    genotype.add_argument("--svg", metavar="FILE", help="draw its cells")
    genotype.set_defaults(run=show_genotype)
    rules = commands.add_parser("rules", help="the table of learning rules, or the page of one")
    rules.add_argument("name", nargs="?", metavar="RULE")
    rules.set_defaults(run=show_rules)
    auditor = commands.add_parser("audit", help="which layers of a genotype's network transport weights")
    auditor.add_argument("source", metavar="X", help="a genotype, named as above")
    auditor.add_argument("--channels", type=int, default=36, metavar="N")
    auditor.add_argument("--layers", type=int, default=20, metavar="N")
    auditor.set_defaults(run=show_audit)
    for command in (lister, genotype, rules, auditor):
        command.add_argument("--plugin", default="", metavar="A,B,...", help="modules to import first")
    arguments = parser.parse_args(argv)
    try:
        import_plugins(split_specs(arguments.plugin))
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
