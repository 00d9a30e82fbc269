"""The small commands: what can be named in an option, and what a genotype looks like.

python -m darts_bio list
python -m darts_bio rules usf
python -m darts_bio audit bionas_darts
python -m darts_bio genotype
python -m darts_bio genotype darts_v2
python -m darts_bio genotype "Genotype(normal=[('sep_conv_3x3_u', 1), ...], ...)" --json mine.json --svg mine.svg
python -m darts_bio export RUN --onnx model.onnx --program model.pt2 --hub FOLDER
python -m darts_bio timm train.py DATA --model darts_bio_imagenet --model-kwargs genotype=darts_v2 rule=fa
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darts_bio.command_line import import_plugins
from darts_bio.errors import InputError
from darts_bio.registry import Registry, split_specs


def list_names(arguments: argparse.Namespace) -> None:
    """Prints every registered name with a line about it, and its options with their defaults."""
    from darts_bio.data.datasets import DATASETS
    from darts_bio.evaluation.attacks import ATTACKS
    from darts_bio.evaluation.corruptions import CORRUPTIONS
    from darts_bio.rules import RULES
    from darts_bio.spaces import OPERATIONS, SPACES, shipped_names
    from darts_bio.strategies import COSTS, REGULARIZERS, STRATEGIES
    from darts_bio.training.adversarial import ADVERSARIES

    families: list[tuple[str, Registry[Any] | tuple[str, ...], bool]] = [
        ("learning rules   --rules, --backbone-rule", RULES, True),
        ("operations", OPERATIONS, False),
        ("spaces   --space", SPACES, True),
        ("strategies   --strategy", STRATEGIES, True),
        ("costs   --objective", COSTS, False),
        ("regularizers   --regularizers", REGULARIZERS, True),
        ("adversaries   --adversarial", ADVERSARIES, True),
        ("attacks   --attacks, --transfer", ATTACKS, True),
        ("corruptions   --corruptions", CORRUPTIONS, False),
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
    from darts_bio.reports.rule_pages import rule_page, rule_table

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
        from darts_bio.reports.genotype_table import genotype_tables

        if arguments.json or arguments.svg:
            raise InputError("genotype: --json and --svg need a genotype X to write")
        print(genotype_tables(), end="")
        return
    from darts_bio.figures.cells import draw_genotype
    from darts_bio.spaces import is_nb201, load_genotype, to_nb201_text
    from darts_bio.training.run_folder import write_text

    genotype = load_genotype(arguments.source)
    texts = {arguments.json: genotype.to_json(), arguments.svg: draw_genotype(genotype).svg()}
    texts.pop(None, None)
    refuse_existing(*texts)
    for path, text in texts.items():
        write_text(Path(path), text)
        print(f"wrote {path}")
    print(genotype)
    if is_nb201(genotype):
        print(to_nb201_text(genotype))


def refuse_existing(*paths: str | None) -> None:
    """Raises InputError for a file that is there already; a path of None is none."""
    from darts_bio.training.run_folder import writing

    for path in filter(None, paths):
        with writing(Path(path)):
            if Path(path).exists():
                raise InputError(f"{path}: exists; remove it first, or choose another name")


def export(arguments: argparse.Namespace) -> None:
    """Writes a trained network in the forms that are asked for, and prints which."""
    from darts_bio.interop.export import export_program, refuse_missing_onnx, save_for_hub, write_onnx, write_program
    from darts_bio.interop.hub_card import logged_accuracy
    from darts_bio.training.trained import load_trained

    onnx, program, hub = arguments.onnx, arguments.program, arguments.hub
    if not (onnx or program or hub):
        raise InputError("export: expected something to write; give --onnx FILE, --program FILE.pt2 or --hub DIR")
    if arguments.batch is not None and (arguments.batch < 1 or not (onnx or program)):
        raise InputError(f"--batch: expected at least 1, with --onnx or --program, found {arguments.batch}")
    refuse_existing(onnx, program)
    if onnx:
        refuse_missing_onnx()
    trained = load_trained(arguments.source)
    if hub:
        save_for_hub(trained, Path(hub), logged_accuracy(arguments.source, trained))
        print(f'wrote {hub}: after "import darts_bio.models", timm.create_model("local-dir:{hub}", pretrained=True)')
    if not (onnx or program):
        return
    images = "x".join(map(str, (arguments.batch or "N", trained.form["in_channels"], *trained.image_size)))
    exported = export_program(trained, arguments.batch)
    for path, write in ((onnx, write_onnx), (program, write_program)):
        if path:
            write(exported, Path(path))
            print(f"wrote {path}: pixels {images} in [0, 1] to logits of {trained.form['num_classes']} classes")


def run_timm(arguments: argparse.Namespace) -> None:
    """Runs a script of timm's as Python would, with the models of this package registered."""
    script = Path(arguments.script)
    if not script.is_file():
        raise InputError(
            f"{script}: expected a script of timm's, such as train.py or validate.py, found no such file; get it from "
            "https://github.com/huggingface/pytorch-image-models (of the version of timm that is installed)"
        )
    importlib.import_module("darts_bio.models")
    before = sys.argv, sys.path
    sys.argv, sys.path = [arguments.script, *arguments.arguments], [str(script.resolve().parent), *sys.path]
    try:
        runpy.run_path(arguments.script, run_name="__main__")
    finally:
        sys.argv, sys.path = before


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
    exporter = commands.add_parser(
        "export",
        help="write a trained network as an ONNX model, a program of torch.export or a folder of timm's",
        description="Writes a trained network. ONNX models and programs take float pixels (N, C, H, W) in [0, 1], "
        "since the run's normalisation is inside, and give logits. timm's folder takes images as timm normalises them.",
    )
    exporter.add_argument("source", metavar="RUN", help="run folder of a training, or its checkpoint.pt")
    exporter.add_argument("--onnx", metavar="FILE", help="ONNX model")
    exporter.add_argument("--program", metavar="FILE.pt2", help="program for torch.export.load")
    exporter.add_argument("--hub", metavar="DIR", help='new folder for timm.create_model("local-dir:DIR") or the Hub')
    exporter.add_argument("--batch", type=int, metavar="N", help="fix the number of images at once (default: any)")
    exporter.set_defaults(run=export)
    timm = commands.add_parser("timm", help="run a script of timm's with this package's models registered")
    timm.add_argument("script", metavar="SCRIPT", help="your copy of timm's train.py, validate.py, ...")
    timm.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own, as it takes them")
    timm.set_defaults(run=run_timm)
    for command in (lister, genotype, rules, auditor, exporter, timm):
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
