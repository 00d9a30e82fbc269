"""The small commands: list names, show rules and genotypes, audit, export, run scripts of timm.

Each function takes the command's configuration, prints, and returns the exit code 0.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

from darts_bio.config import (
    PROTOCOLS,
    AuditConfig,
    ExportConfig,
    GenotypeConfig,
    ListConfig,
    RulesConfig,
    TimmConfig,
)
from darts_bio.errors import InputError
from darts_bio.registry import Registry


def list_names(config: ListConfig) -> int:
    """Print every registered name with a line about it, and its options with their defaults."""
    # Here and below imports stand in the functions: only commands that use PyTorch import it.
    from darts_bio.data.datasets import DATASETS
    from darts_bio.evaluation.attacks import ATTACKS
    from darts_bio.evaluation.corruptions import CORRUPTIONS
    from darts_bio.learners import LEARNERS
    from darts_bio.networks import STEMS
    from darts_bio.rules import RULES
    from darts_bio.spaces import OPERATIONS, SPACES, TEXT_FORMS, shipped_names
    from darts_bio.strategies import BLACK_BOX_STRATEGIES, COSTS, REGULARIZERS, STRATEGIES
    from darts_bio.training.adversarial import ADVERSARIES
    from darts_bio.training.exported import shipped_networks
    from darts_bio.training.schedules import SCHEDULES

    # Title, members, and whether the members have options of their own.
    families: list[tuple[str, Registry[Any] | tuple[str, ...], bool]] = [
        ("learning rules   --rules, --backbone-rule", RULES, True),
        ("global learners   darts_bio.learner(model, NAME)", LEARNERS, True),
        ("operations", OPERATIONS, False),
        ("spaces   --space", SPACES, True),
        ("strategies   --strategy", STRATEGIES, True),
        ("strategies without a supernet   --strategy", BLACK_BOX_STRATEGIES, True),
        ("costs   --objective", COSTS, False),
        ("regularizers   --regularizers", REGULARIZERS, True),
        ("stems   --stem", STEMS, False),
        ("protocols   --protocol", PROTOCOLS, False),
        ("schedules   --schedule", SCHEDULES, False),
        ("adversaries   --adversarial", ADVERSARIES, True),
        ("attacks   --attacks, --transfer", ATTACKS, True),
        ("corruptions   --corruptions", CORRUPTIONS, False),
        ("data sets   --dataset", DATASETS, False),
        ("text forms of genotypes   --genotype", TEXT_FORMS, False),
        ("genotypes   --genotype", shipped_names(), False),
        (
            "trained networks   --checkpoint, darts_bio.load_trained(NAME)",
            shipped_networks(),
            False,
        ),
    ]
    for title, members, has_options in families:
        print(title)
        summaries = (
            members.summaries() if isinstance(members, Registry) else dict.fromkeys(members, "")
        )
        for name, summary in summaries.items():
            print(f"  {name:16} {summary}".rstrip())
            options = members.options(name) if has_options and isinstance(members, Registry) else {}
            if options:
                option_texts = [f"{option}={value!r}" for option, value in options.items()]
                print(f"  {'':16} ({', '.join(option_texts)})")
    return 0


def show_rules(config: RulesConfig) -> int:
    """Print the page of a learning rule, or the table of all rules where none is named."""
    from darts_bio.reports.rule_pages import rule_page, rule_table

    print(rule_page(config.name) if config.name else rule_table(), end="")
    return 0


def show_audit(config: AuditConfig) -> int:
    """Print by which rule the weights of a genotype's network learn, and what carries their errors."""
    from darts_bio.networks import build_network
    from darts_bio.rules import audit
    from darts_bio.spaces import load_genotype
    from darts_bio.storage.whole_files import write_text

    _refuse_existing(config.json)
    genotype = load_genotype(config.source)
    network = build_network(genotype, channels=config.channels, layers=config.layers)
    print(f"a network of {config.channels} channels and {config.layers} cells for RGB images:")
    result = audit(network)
    if config.rows:
        print(result.table(), end="\n\n")
    print(result)
    if config.json is not None:
        write_text(Path(config.json), result.to_json())
        print(f"wrote {config.json}")
    return 0


def show_genotype(config: GenotypeConfig) -> int:
    """Print a genotype, and write it as JSON and as an SVG figure if the options name files.

    Without a genotype, print the tables of the shipped ones.
    """
    if config.source is None:
        from darts_bio.reports.genotype_table import genotype_tables

        print(genotype_tables(), end="")
        return 0
    from darts_bio.figures.cells import draw_genotype
    from darts_bio.spaces import load_genotype, text_of
    from darts_bio.storage.whole_files import write_text

    genotype = load_genotype(config.source)
    contents = {config.json: genotype.to_json(), config.svg: draw_genotype(genotype).svg()}
    contents.pop(None, None)  # an option that is not given
    _refuse_existing(*contents)
    for path, content in contents.items():
        write_text(Path(path or ""), content)
        print(f"wrote {path}")
    print(genotype)
    text = text_of(genotype)
    if text:
        print(text)
    return 0


def _refuse_existing(*paths: str | None) -> None:
    """Raise InputError if a file exists already, or its folder does not; skip paths of None."""
    from darts_bio.storage.whole_files import writing

    for path in filter(None, paths):
        with writing(Path(path)):
            if Path(path).exists():
                raise InputError(f"{path}: exists; remove it first, or choose another name")
            if not Path(path).absolute().parent.is_dir():
                raise InputError(
                    f"{path}: expected a file in a folder that exists; make {Path(path).parent} "
                    "first"
                )


def export(config: ExportConfig) -> int:
    """Write a trained network in each form that the options name a file for, and print those."""
    from darts_bio.interop.export import (
        export_program,
        refuse_missing_onnx,
        save_for_hub,
        write_onnx,
        write_program,
    )
    from darts_bio.training.trained import load_trained

    onnx, program, hub = config.onnx, config.program, config.hub
    # Everything that can be refused is, before the checkpoint is read and a file is written.
    _refuse_existing(onnx, program)
    if onnx:
        refuse_missing_onnx()
    trained = load_trained(config.source)
    if hub:
        save_for_hub(trained, Path(hub))
        print(
            f'wrote {hub}: after "import darts_bio.models", '
            f'timm.create_model("local-dir:{hub}", pretrained=True)'
        )
    if not (onnx or program):
        return 0
    shape = (config.batch or "N", trained.form["in_channels"], *trained.image_size)
    images = "x".join(map(str, shape))
    exported = export_program(trained, config.batch)
    for path, write in ((onnx, write_onnx), (program, write_program)):
        if path:
            write(exported, Path(path))
            print(
                f"wrote {path}: pixels {images} in [0, 1] to logits of "
                f"{trained.form['num_classes']} classes"
            )
    return 0


def run_timm(config: TimmConfig) -> int:
    """Run a script of timm's as Python would, with the models of this package registered."""
    script = Path(config.script)
    if not script.is_file():
        raise InputError(
            f"{script}: expected a script of timm's, such as train.py or validate.py, found no "
            "such file; get it from https://github.com/huggingface/pytorch-image-models (of the "
            "version of timm that is installed)"
        )
    importlib.import_module("darts_bio.models")  # registers them
    saved_argv, saved_path = sys.argv, sys.path
    # As `python SCRIPT ARGS` sets them: the script may import its neighbors.
    sys.argv = [config.script, *config.arguments]
    sys.path = [str(script.resolve().parent), *sys.path]
    try:
        runpy.run_path(config.script, run_name="__main__")
    finally:
        sys.argv, sys.path = saved_argv, saved_path
    return 0
