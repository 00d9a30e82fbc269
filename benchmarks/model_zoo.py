"""Learning rules on published models: what convert accepts, what audit sees, whether it is right.

Of each module of timm the smallest model is taken, of torchvision all its classifiers, and ten models
of transformers built from small configurations. Of each one:

- `audit`, on a copy without numbers: is each weight product seen, and which functions are they?
- in float64: are all gradients those of the plain model under `true_gradients`, and under a rule whose
  kernel is a copy of the weight, which takes the way of all rules through each product?
- one step under each rule: are losses and gradients finite, and which rules are refused?

One line of JSON a model is appended to a file, and models that it holds are left out, so the run may
be interrupted. With 2 images of the models' published size it takes about two hours of one core of an
Intel Xeon with AVX-512, most of it for the largest models; `--seconds` leaves the rest for later.

    python benchmarks/model_zoo.py --out benchmarks/results/model_zoo.jsonl
    python benchmarks/model_zoo.py --out benchmarks/results/model_zoo.jsonl --table
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import darts_bio
from darts_bio.errors import InputError, first_line
from darts_bio.rules import RULES, InitialLaw, LearningRule, audit, convert, true_gradients

CLASSES = 10
"""Classes of the models' outputs."""

LARGEST = 12_000_000
"""Parameters of the largest model that is trained here; of larger ones only the audit is made."""


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield the smallest model of each module of timm, without numbers until it is built."""
    import timm

    by_module: dict[str, list[str]] = collections.defaultdict(list)
    for name in timm.list_models():
        by_module[timm.model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    for module, names in sorted(by_module.items()):
        yield f"timm {module}", lambda names=names: _smallest(names)  # type: ignore[misc]


def _smallest(names: list[str]) -> nn.Module:
    """Build the model of fewest parameters among the eight of the shortest promising names."""
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
    return timm.create_model(min(sizes, key=lambda name: sizes[name]), num_classes=CLASSES)


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield the classifiers of torchvision."""
    from torchvision import models

    for name in models.list_models(module=models):
        yield f"torchvision {name}", lambda name=name: models.get_model(name, num_classes=CLASSES)  # type: ignore[misc]


def transformers_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
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


def inputs_of(name: str, model: nn.Module) -> dict[str, Tensor] | Tensor:
    """Return two inputs for a model, drawn with seed 0."""
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
    """Return inputs with floating-point numbers in float64."""
    if isinstance(inputs, Mapping):
        return {name: in_float64(value) for name, value in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


def examine(name: str, build: Callable[[], nn.Module]) -> dict[str, Any]:
    """Return what is found of a model, as a line of the result."""
    began = time.perf_counter()
    torch.manual_seed(0)
    model = build()
    inputs = inputs_of(name, model)
    size = sum(parameter.numel() for parameter in model.parameters())
    line: dict[str, Any] = {"model": name, "kind": type(model).__name__, "parameters": size}
    audited = audit(convert(model, "fa", inputs=inputs), inputs)
    line["weights"], line["other"] = len(audited.rows), audited.other
    line["without_a_rule"] = [row.name for row in audited.rows if row.rule is None]
    line["unseen"] = audited.unseen
    line["products"] = sorted({p for row in audited.rows for p in row.products or ()})
    if size <= LARGEST:
        line["exact"], line["copied"] = largest_differences(model, inputs)
        with torch.no_grad():
            output = first_output(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))
        width = output.shape[-1]
        line["rules"] = {
            rule: one_step(model, rule, inputs, width) for rule in RULES.names() if rule != "copied"
        }
    line["seconds"] = round(time.perf_counter() - began, 1)
    return line


@RULES.register("copied")
@dataclass(frozen=True)
class Copied(LearningRule):
    """The error goes through a copy of the weight: K = W + B, and B is zero."""

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": torch.zeros(law.shape)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight + state["kernel"]


def largest_differences(model: nn.Module, inputs: Any) -> tuple[float, float]:
    """Return the largest differences of a gradient from the plain model's, relative to all of them.

    Both in float64: of the model converted to fa under `true_gradients`, and under `Copied`.
    """
    plain = copy.deepcopy(model).double()
    given = in_float64(inputs)
    expected = gradients(plain, given)
    total = torch.stack([g.norm() for g in expected.values()]).norm()

    def difference(found: dict[str, Tensor]) -> float:
        return max(float((found[n] - g).norm() / total) for n, g in expected.items())

    converted = convert(plain, "fa", inputs=given)
    with true_gradients(converted):
        exact = difference(gradients(converted, given))
    return exact, difference(gradients(convert(plain, "copied", inputs=given), given))


def one_step(model: nn.Module, rule: str, inputs: Any, width: int) -> str:
    """Return whether a step under a rule has finite gradients, or why the rule is refused.

    `width` is the number of values at the model's output.
    """
    outputs = {"outputs": width} if rule == "dfa" else {}
    try:
        converted = convert(model, rule, inputs=inputs, **outputs)
        found = gradients(converted, inputs)
    except InputError as error:
        return f"refused: {first_line(error)}"
    return "finite" if all(bool(g.isfinite().all()) for g in found.values()) else "not finite"


def table(lines: list[dict[str, Any]]) -> str:
    """Return the result in Markdown: counts, and each model that is not as expected."""
    trained = [line for line in lines if "exact" in line]
    worst = max((line["exact"] for line in trained), default=0.0)
    copied = max((line["copied"] for line in trained), default=0.0)
    unseen = [line for line in lines if line.get("unseen") or line.get("without_a_rule")]
    refused = collections.Counter(
        (rule, answer.partition(": ")[2])
        for line in trained
        for rule, answer in line["rules"].items()
        if answer.startswith("refused")
    )
    parts = [
        f"{len(lines)} models, {sum('error' not in line for line in lines)} accepted; of "
        f"{len(lines) - len(unseen)} every weight is seen in a product under its rule.",
        f"{len(trained)} of at most {LARGEST:,} parameters: largest relative difference of "
        f"gradients from the plain model's under true_gradients {worst:.1e}, through copies of the "
        f"weights {copied:.1e} (float64).",
    ]
    parts += [f"- {line['model']}: {line['error']}" for line in lines if "error" in line]
    parts += [
        f"- {line['model']}: not seen {line['unseen']}, without a rule {line['without_a_rule']}"
        for line in unseen
    ]
    parts += [f"- {rule}, {count} models: {why}" for (rule, why), count in refused.most_common()]
    return "\n".join(parts)


def main() -> None:
    """Examine the models that the result lacks, or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--table", action="store_true", help="print the table of the results")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.out.open()] if options.out.exists() else []
    if not options.table:
        warnings.filterwarnings("ignore")
        began, known = time.perf_counter(), {line["model"] for line in lines}
        for source in (transformers_models, torchvision_models, timm_models):
            for name, build in source():
                if name in known or time.perf_counter() - began > options.seconds:
                    continue
                try:
                    line = examine(name, build)
                except Exception as error:
                    line = {"model": name, "error": f"{type(error).__name__}: {first_line(error)}"}
                lines.append(line)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(name, line.get("copied", line.get("error", "audit only")), flush=True)
    print(f"darts_bio {darts_bio.__version__}, torch {torch.__version__}")
    print(table(lines))


if __name__ == "__main__":
    main()
