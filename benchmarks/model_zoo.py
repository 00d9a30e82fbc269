"""Learning rules on published models: what convert accepts, what audit sees, whether it is right.

Of each module of timm the smallest model is taken, of torchvision all its classifiers, and ten models
of transformers built from small configurations. Of each one:

- `audit`, on a copy without numbers: is each weight seen under its rule, and has it a row for each
  weight that multiplies an activation in PyTorch's operations (`weight_products.py`, an oracle that
  shares no code with it)?
- up to 18 million parameters, in float64: are all gradients those of the plain model under
  `true_gradients`, and under a rule whose kernel is a copy of the weight, which takes the way of all
  rules through each product? Is that rule asked to carry the error past each weight?
- of these, one step under each rule: are gradients finite, and which rules are refused?

Parameters that begin as a constant get some noise, since behind a gain of 0 all gradients are 0.
Batches are 2 images, of 96 pixels a side where the model takes them. Two lines of JSON a model are
appended to a file, whose first line says how it was made, all audits before the first run; what it
holds is left out, so this may be interrupted. It takes some 20 minutes of CPU time, on
an AMD EPYC. `--table` prints the tables of docs/results/published-models.md.

    python benchmarks/model_zoo.py --out benchmarks/results/model_zoo.jsonl
    python benchmarks/model_zoo.py --out benchmarks/results/model_zoo.jsonl --table
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from measuring import command
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from weight_products import weight_products

from darts_bio.errors import InputError, first_line
from darts_bio.rules import RULES, InitialLaw, LearningRule, audit, convert, true_gradients
from darts_bio.rules.audit import Audit
from darts_bio.rules.carriers import rule_carriers
from darts_bio.runtime import hardware, made_by

Builder = Callable[..., nn.Module]
"""Builds a model; timm's take further options."""

CLASSES = 10
"""Classes of the models' outputs."""

SIDES = (96, 128, 160)
"""Sides of images that are tried before a model's published one, to save time."""

LARGEST = 18_000_000
"""Parameters of the largest model that is trained here; of larger ones only the audit is made."""


def timm_models() -> Iterator[tuple[str, Builder]]:
    """Yield the smallest model of each module of timm, without numbers until it is built."""
    import timm

    by_module: dict[str, list[str]] = collections.defaultdict(list)
    for name in timm.list_models():
        by_module[timm.model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    for module, names in sorted(by_module.items()):
        yield f"timm {module}", functools.partial(_smallest, tuple(names))


def _smallest(names: tuple[str, ...], **options: int) -> nn.Module:
    """Build the smallest model of those names."""
    import timm

    return timm.create_model(_smallest_name(names), num_classes=CLASSES, **options)


@functools.cache
def _smallest_name(names: tuple[str, ...]) -> str:
    """Return the name of fewest parameters among the eight of the shortest promising names."""
    import timm

    small = (
        "test",
        "pico",
        "nano",
        "atto",
        "tiny",
        "_s",
        "small",
        "mini",
        "_xs",
        "b0",
        "18",
        "lite",
    )
    likely = sorted(names, key=lambda n: (not any(part in n for part in small), len(n)))[:8]
    sizes: dict[str, int] = {}
    for name in likely:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=CLASSES)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    return min(sizes, key=lambda name: sizes[name])


def torchvision_models() -> Iterator[tuple[str, Builder]]:
    """Yield the classifiers of torchvision."""
    from torchvision import models

    for name in models.list_models(module=models):
        yield f"torchvision {name}", lambda name=name: models.get_model(name, num_classes=CLASSES)  # type: ignore[misc]


def transformers_models() -> Iterator[tuple[str, Builder]]:
    """Yield models of transformers, each of two layers of 32 channels; none where it is missing."""
    try:
        import transformers as tr
    except ImportError:
        return
    size = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**size, "intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 64}
    known: dict[str, tuple[Any, Any]] = {
        "GPT-2": (
            tr.GPT2LMHeadModel,
            tr.GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=99, n_positions=64),
        ),
        "BERT": (tr.BertForSequenceClassification, tr.BertConfig(**text)),
        "RoBERTa": (tr.RobertaForSequenceClassification, tr.RobertaConfig(**text)),
        "Llama": (tr.LlamaForCausalLM, tr.LlamaConfig(**text)),
        "Mistral": (tr.MistralForCausalLM, tr.MistralConfig(**text, num_key_value_heads=2)),
        "T5": (
            tr.T5EncoderModel,
            tr.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=99),
        ),
        "ALBERT": (tr.AlbertForSequenceClassification, tr.AlbertConfig(**text, embedding_size=16)),
        "DistilBERT": (
            tr.DistilBertForSequenceClassification,
            tr.DistilBertConfig(dim=32, n_heads=2, n_layers=2, hidden_dim=64, vocab_size=99),
        ),
        "ViT": (
            tr.ViTForImageClassification,
            tr.ViTConfig(**size, intermediate_size=64, image_size=32, patch_size=8),
        ),
        "ConvNeXt": (
            tr.ConvNextForImageClassification,
            tr.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], image_size=64),
        ),
    }
    for name, (kind, configuration) in known.items():
        yield f"transformers {name}", lambda kind=kind, c=configuration: kind(c)  # type: ignore[misc]


def inputs_of(name: str, model: nn.Module, side: int | None = None) -> dict[str, Tensor] | Tensor:
    """Return two inputs for a model, drawn with seed 0; images of that side, or as published."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("transformers"):
        if (
            "image" in str(getattr(model, "main_input_name", ""))
            or "pixel" in model.main_input_name
        ):  # type: ignore[operator]
            side = int(model.config.image_size)  # type: ignore[union-attr]
            return {"pixel_values": torch.randn(2, 3, side, side, generator=generator)}
        return {"input_ids": torch.randint(1, 90, (2, 12), generator=generator)}
    configuration = getattr(model, "default_cfg", None)
    size = configuration["input_size"] if isinstance(configuration, Mapping) else (3, 224, 224)
    if name == "torchvision inception_v3":
        size = (3, 299, 299)
    if side is not None:
        size = (3, side, side)
    return torch.randn(2, *size, generator=generator)


def first_output(output: Any) -> Tensor:
    """Return the first tensor of a model's output."""
    if hasattr(output, "logits"):
        return output.logits
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the gradients of half the mean square of a model's output, after a run from seed 0."""
    torch.manual_seed(0)
    model.zero_grad()
    output = first_output(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))
    output.square().mean().div(2).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def in_float64(inputs: Any) -> Any:
    """Return inputs with floating-point numbers in float64, which take gradients too."""
    if isinstance(inputs, Mapping):
        return {name: in_float64(value) for name, value in inputs.items()}
    return inputs.double().requires_grad_() if inputs.is_floating_point() else inputs


def without_numbers(build: Builder) -> nn.Module:
    """Return a model on the meta device, where its weights have shapes and take no memory."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # its constructor reads numbers
        return build().to("meta")


def look_at(name: str, build: Builder) -> dict[str, Any]:
    """Return what audit sees of a model, and what it misses."""
    model = without_numbers(build)
    inputs = tree_map(lambda tensor: tensor.to("meta"), inputs_of(name, model))
    audited = audit(convert(model, "fa", inputs=inputs), inputs)
    return {
        "name": name_in_library(name, model),
        "kind": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": len(audited.rows),
        "other": audited.other,
        "without_a_rule": [row.name for row in audited.rows if row.rule is None],
        "unseen": audited.unseen,
        "products": sorted({p for row in audited.rows for p in row.products or ()}),
        "missed": missed(model, audited, inputs),
    }


def name_in_library(name: str, model: nn.Module) -> str:
    """Return what a library calls a model: of a module of timm, the one that was taken."""
    configuration = getattr(model, "default_cfg", None)
    if isinstance(configuration, Mapping):
        return str(configuration["architecture"])
    return name.rpartition(" ")[2]


def run(name: str, build: Builder) -> dict[str, Any]:
    """Return how a model's gradients differ from the plain model's, and how each rule fares."""
    side, options = smallest_side(build, without_numbers(build))
    model = disturbed(build(**options))
    inputs = inputs_of(name, model, side)
    with torch.no_grad():
        output = first_output(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))
    width = output.shape[-1]
    return {
        "input": [list(tensor.shape) for tensor in tree_leaves(inputs)],
        **differences(model, inputs),
        "rules": {rule: one_step(model, rule, inputs, width) for rule in RULES.names()},
    }


def missed(model: nn.Module, audited: Audit, inputs: Any) -> list[str]:
    """Return the names of parameters in products that an audit has no row of.

    Of a parameter that modules share one of its rows will do.
    """
    names: dict[nn.Parameter, set[str]] = collections.defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] |= {name, name.rpartition(".")[0]}
    rows = {row.name for row in audited.rows}
    found = weight_products(model, inputs)
    parameters = dict(model.named_parameters())
    return sorted(name for name in found if not names[parameters[name]] & rows)


def smallest_side(build: Builder, empty: nn.Module) -> tuple[int | None, dict[str, int]]:
    """Return the least of the sides in `SIDES` of images that a model takes, and options to build it.

    None if it takes none of them, as a model of text does, or not as it takes the published size.

    Args:
        build: Builds the model; where one is made for images of one size, `img_size` may say which.
        empty: The model, built without options on the meta device.
    """
    for name in ((), ("img_size",)):
        for side in SIDES:
            options = dict.fromkeys(name, side)
            try:
                with torch.device("meta"):
                    model = build(**options) if options else empty
                    images = torch.empty(2, 3, side, side)
                    model(images)
                convert(model, "fa", inputs=images)  # not where tables are resized for it
            except Exception:
                continue
            return side, options
    return None, {}


def disturbed(model: nn.Module) -> nn.Module:
    """Add normal noise of 0.1 to all parameters that are a constant, in place; return the model.

    Many models begin with gains of 0, or a readout of 0, behind which all gradients are 0.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Copied(LearningRule):
    """The error goes through a copy of the weight: K = W + B, and B is zero."""

    asked: ClassVar[set[str]] = set()
    """The names of the weights that errors went past."""

    name: str = ""
    """The name of its weight."""

    carries = "values"

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": torch.zeros(law.shape)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        self.asked.add(self.name)
        return weight + state["kernel"]


def differences(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Return by how much gradients differ from the plain model's, in float64.

    `exact` is of the model converted to fa under `true_gradients`, `copied` under `Copied`: the norm
    of a parameter's difference by that of its gradient (or by 1e-4 of all gradients together, for
    those that are zero but for rounding), the largest of all parameters. `without_gradient` are the
    matrices about which this says nothing, since their gradient is less than 1e-12 of all, and
    `unasked` the weights whose rule was never asked to carry an error.
    """
    plain = copy.deepcopy(model).double()
    given = in_float64(inputs)
    expected = gradients(plain, given)
    total = torch.stack([g.norm() for g in expected.values()]).norm()

    def difference(found: dict[str, Tensor]) -> float:
        apart = [
            (found[n] - g).norm() / g.norm().clamp(min=1e-4 * total) for n, g in expected.items()
        ]
        return float(torch.stack(apart).max())

    converted = convert(plain, "fa", inputs=given)
    with true_gradients(converted):
        exact = difference(gradients(converted, given))
    RULES.register("copied")(Copied)
    try:
        converted = convert(plain, "copied", inputs=given)
    finally:
        RULES.unregister("copied")
    names = []
    for name, carrier in rule_carriers(converted):
        if isinstance(carrier.rule, Copied):  # gains that a weight is computed with are under bp
            names.append(name)
            carrier.rule = Copied(name)
    Copied.asked.clear()
    copied = difference(gradients(converted, given))
    unasked = [name for name in names if name not in Copied.asked]
    without = [
        name
        for name, parameter in plain.named_parameters()
        if parameter.dim() >= 2 and (name not in expected or expected[name].norm() < 1e-12 * total)
    ]
    return {"exact": exact, "copied": copied, "without_gradient": without, "unasked": unasked}


def one_step(model: nn.Module, rule: str, inputs: Any, width: int) -> str:
    """Return whether a step under a rule has finite gradients, or why the rule is refused.

    `width` is the number of values at the model's output.
    """
    outputs = {"outputs": width} if rule == "dfa" else {}
    try:
        converted = convert(model, rule, inputs=inputs, **outputs)
        found = gradients(converted, inputs)
    except InputError as error:
        return f"refused: {str(error).splitlines()[0].partition('. Leave it')[0]}"
    return "finite" if all(bool(g.isfinite().all()) for g in found.values()) else "not finite"


REASONS = {
    "share their weight": "two modules share a weight",
    "regroups its samples": "samples are regrouped",
    "computed from others": "a weight is computed from others",
    "no one dimension that counts channels": "channels of several dimensions",
    "has a weight of its own": "each head has a weight of its own",
    "transposed convolution": "a transposed convolution",
}
"""Words for a refusal, by a phrase of its message."""


def reason(answer: str) -> str:
    """Return why a rule is refused, without the names of weights."""
    found = [words for phrase, words in REASONS.items() if phrase in answer]
    return found[0] if found else answer.removeprefix("refused: ")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the result in Markdown: a table of libraries, one of rules, and what is not as expected."""
    rows = [
        "| library | models | accepted | weights | missed | run | true_gradients | copies |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        groups[line["model"].split()[0]].append(line)
    for library, of_library in {**groups, "all": lines}.items():
        accepted = [line for line in of_library if "error" not in line]
        run = [line for line in accepted if "exact" in line]
        missing = sum(
            len(line[name]) for line in accepted for name in ("missed", "unseen", "without_a_rule")
        )
        worst = [f"{max((line[n] for line in run), default=0):.1e}" for n in ("exact", "copied")]
        counts = [
            len(of_library),
            len(accepted),
            sum(line["weights"] for line in accepted),
            missing,
        ]
        cells = [library, *(f"{count:,}" for count in (*counts, len(run))), *worst]
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", "| rule | finite | refused | why |", "|---|---|---|---|"]
    run = [line for line in lines if "rules" in line]
    for rule in dict.fromkeys(rule for line in run for rule in line["rules"]):
        answers = [line["rules"][rule] for line in run if rule in line["rules"]]
        refused = collections.Counter(reason(a) for a in answers if a.startswith("refused"))
        why = "; ".join(f"{words} ({count})" for words, count in refused.most_common())
        rows.append(f"| {rule} | {answers.count('finite')} | {refused.total()} | {why} |")
    rows.append("")
    for line in lines:
        for name in ("error", "unseen", "without_a_rule", "missed", "without_gradient", "unasked"):
            if line.get(name):
                rows.append(f"- {line['model']}: {name}: {line[name]}")
        spoilt = [rule for rule, answer in line.get("rules", {}).items() if answer == "not finite"]
        if spoilt:
            rows.append(f"- {line['model']}: not finite: {', '.join(spoilt)}")
    return "\n".join(rows)


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose models are looked at."""
    return {
        name: version(name)
        for name in ("timm", "torchvision", "transformers")
        if importlib.util.find_spec(name)
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file of results says of each model, by the models' names.

    Its first line says how it was made, each other one a part of what there is about a model.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines()[1:]:
        line = json.loads(text)
        found.setdefault(line["model"], {}).update(line)
    return found


def main() -> None:
    """Examine the models that the result lacks, or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--audits", action="store_true", help="audit the models, and run none")
    parser.add_argument("--table", action="store_true", help="print the table of the results")
    options = parser.parse_args()
    if not options.out.exists():
        machine = {"hardware": hardware(torch.device("cpu")), "made": made_by(), **versions()}
        options.out.write_text(json.dumps({"command": command(), **machine}) + "\n")
    if not options.table:
        warnings.filterwarnings("ignore")
        examine(options.out, time.perf_counter() + options.seconds, options.audits)
    print(table(list(read(options.out).values())))


def examine(path: Path, until: float, audits: bool) -> None:
    """Write what a file of results lacks: the audits of all models, then runs from the smallest on."""
    models = {
        name: build
        for source in (transformers_models, timm_models, torchvision_models)
        for name, build in source()
    }
    parts = {"weights": look_at} if audits else {"weights": look_at, "rules": run}
    for key, part in parts.items():
        sizes = {name: line.get("parameters", 0) for name, line in read(path).items()}
        for name in sorted(models, key=lambda name: sizes.get(name, 0)):
            known = read(path).get(name, {})
            if key in known or "error" in known or time.perf_counter() > until:
                continue
            if part is run and known.get("parameters", 0) > LARGEST:
                continue
            began = time.process_time()
            torch.manual_seed(0)
            try:
                line = part(name, models[name])
            except Exception as error:
                line = {"error": f"{type(error).__name__}: {first_line(error)}"}
            line[f"seconds_{part.__name__}"] = round(time.process_time() - began, 1)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"model": name, **line}) + "\n")
            print(name, part.__name__, line.get("copied", line.get("error", "")), flush=True)


if __name__ == "__main__":
    main()
