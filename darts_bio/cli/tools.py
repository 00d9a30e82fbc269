"""The small commands: what can be named in an option, what a genotype looks like, what a run's
network becomes.
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
    from darts_bio.data.datasets import DATASETS
    from darts_bio.evaluation.attacks import ATTACKS
    from darts_bio.evaluation.corruptions import CORRUPTIONS
    from darts_bio.networks import STEMS
    from darts_bio.rules import RULES
    from darts_bio.spaces import OPERATIONS, SPACES, TEXT_FORMS, shipped_names
    from darts_bio.strategies import COSTS, REGULARIZERS, STRATEGIES
    from darts_bio.training.adversarial import ADVERSARIES
    from darts_bio.training.schedules import SCHEDULES

    families: list[tuple[str, Registry[Any] | tuple[str, ...], bool]] = [
        ("learning rules   --rules, --backbone-rule", RULES, True),
        ("operations", OPERATIONS, False),
        ("spaces   --space", SPACES, True),
        ("strategies   --strategy", STRATEGIES, True),
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
                print(
                    f"  {'':16} "
                    f"({', '.join(f'{option}={value!r}' for option, value in options.items())})"
                )
    return 0


def show_rules(config: RulesConfig) -> int:
    """Print the page of a rule, or the table of all."""
    from darts_bio.reports.rule_pages import rule_page, rule_table

    print(rule_page(config.name) if config.name else rule_table(), end="")
    return 0


def show_audit(config: AuditConfig) -> int:
    """Print which layers of a genotype's network learn by which rule."""
    from darts_bio.networks import build_network
    from darts_bio.rules import audit
    from darts_bio.spaces import load_genotype

    print(
        audit(
            build_network(
                load_genotype(config.source), channels=config.channels, layers=config.layers
            )
        )
    )
    return 0


def show_genotype(config: GenotypeConfig) -> int:
    """Print a genotype; write it as JSON and as a figure where asked to. Without one, print what
    shipped ones cost.
    """
    if config.source is None:
        from darts_bio.reports.genotype_table import genotype_tables

        print(genotype_tables(), end="")
        return 0
    from darts_bio.figures.cells import draw_genotype
    from darts_bio.spaces import load_genotype, text_of
    from darts_bio.training.run_folder import write_text

    genotype = load_genotype(config.source)
    texts = {config.json: genotype.to_json(), config.svg: draw_genotype(genotype).svg()}
    texts.pop(None, None)
    _refuse_existing(*texts)
    for path, content in texts.items():
        write_text(Path(path or ""), content)
        print(f"wrote {path}")
    print(genotype)
    if text := text_of(genotype):
        print(text)
    return 0


def _refuse_existing(*paths: str | None) -> None:
    """Raise InputError for a file that is there already, or cannot be; a path of None is none."""
    from darts_bio.training.run_folder import writing

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
    """Write a trained network in the forms that are asked for, and print which."""
    from darts_bio.interop.export import (
        export_program,
        refuse_missing_onnx,
        save_for_hub,
        write_onnx,
        write_program,
    )
    from darts_bio.interop.hub_card import logged_accuracy
    from darts_bio.training.trained import load_trained

    onnx, program, hub = config.onnx, config.program, config.hub
    _refuse_existing(onnx, program)
    if onnx:
        refuse_missing_onnx()
    trained = load_trained(config.source)
    if hub:
        save_for_hub(trained, Path(hub), logged_accuracy(config.source, trained))
        print(
            f'wrote {hub}: after "import darts_bio.models", timm.create_model("local-dir:{hub}", pretrained=True)'
        )
    if not (onnx or program):
        return 0
    images = "x".join(
        map(str, (config.batch or "N", trained.form["in_channels"], *trained.image_size))
    )
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
            "such file; get it from "
            "https://github.com/huggingface/pytorch-image-models (of the version of timm that is "
            "installed)"
        )
    importlib.import_module("darts_bio.models")
    before = sys.argv, sys.path
    sys.argv, sys.path = (
        [config.script, *config.arguments],
        [str(script.resolve().parent), *sys.path],
    )
    try:
        runpy.run_path(config.script, run_name="__main__")
    finally:
        sys.argv, sys.path = before
    return 0
