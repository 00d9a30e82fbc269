"""The page of a trained network on Hugging Face's Hub, README.md.

It begins with metadata in YAML, which `huggingface_hub.ModelCard` reads (they are described at
https://huggingface.co/docs/hub/model-cards), and goes on with text in Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from darts_bio.invocation import portable
from darts_bio.networks import parameters
from darts_bio.reports.markdown import block, code, escaped, markdown_table
from darts_bio.training.trained import Trained

CARD_FILE = "README.md"

LICENSE = "apache-2.0"
"""The license of this package, which a card names until the author of the network changes it."""


def hub_card(trained: Trained, name: str) -> str:
    """Return the page of a trained network: YAML metadata and Markdown.

    `name` is that of the network on the Hub.
    """
    made = trained.provenance
    metadata = yaml.safe_dump(_metadata(trained, name), sort_keys=False, allow_unicode=True)
    # The genotype is shown whole; its option may be a path on the machine of the run.
    recipe = {
        option: portable(value) for option, value in trained.config.items() if option != "genotype"
    }
    form = trained.form
    size = "x".join(map(str, (form["in_channels"], *trained.image_size)))
    facts = {
        "images": size,
        "classes": f"{form['num_classes']:,}",
        "form": f"{form['layers']} cells, {form['channels']} channels, {form['stem']} stem",
        "parameters": f"{_parameters(trained):,}",
        "rule of stem, preprocessing and classifier": code(trained.genotype.backbone_rule),
        "weight updates": f"{trained.step:,}",
    }
    if made.accuracy is not None:
        facts[_accuracy_in_words(trained.config)] = f"{100 * made.accuracy:.2f} %"
    if made.right is not None:
        facts["test images classified correctly"] = f"{made.right:,} of {made.images:,}"
    if made.machine:
        facts["trained on"] = escaped(made.machine)
    local, remote = json.dumps(f"local-dir:{name}"), json.dumps(f"hf-hub:OWNER/{name}")
    usage = [
        "import timm",
        "",
        "import darts_bio.models  # registers the architecture",
        "",
        f"model = timm.create_model({local}, pretrained=True).eval()  # on the Hub: {remote}",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    lines = [
        f"---\n{metadata}---",
        f"# Model card for {escaped(name)}",
        "",
        "An image classifier of darts_bio: a stack of cells whose operations were trained by the "
        "learning rules below.",
        "",
        *markdown_table(("", ""), list(facts.items())),
        "",
        "## Usage",
        "",
        *block("\n".join(usage), "python"),
        "",
        "## Genotype",
        "",
        *block(str(trained.genotype)),
        "",
        "## Recipe",
        "",
        *([*block(made.command), ""] if made.command else []),
        *block(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip(), "yaml"),
    ]
    return "\n".join(lines) + "\n"


def _metadata(trained: Trained, name: str) -> dict[str, Any]:
    """Return the metadata of the page, among them the accuracy as an evaluation result."""
    data, accuracy = _data_set(trained.config), trained.provenance.accuracy
    metadata: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": LICENSE,
        "tags": ["image-classification", "timm", "darts_bio", "neural-architecture-search"],
    }
    if data is not None:
        metadata["datasets"] = [data]
    if accuracy is not None:
        metadata["metrics"] = ["accuracy"]
        metric = {
            "type": "accuracy",
            "value": round(accuracy, 6),
            "name": _accuracy_in_words(trained.config),
        }
        # "imagefolder" is what the Hub calls images that are no data set with a name.
        subject = {"name": data or "imagefolder", "type": data or "imagefolder"}
        result = {"task": {"type": "image-classification"}, "dataset": subject, "metrics": [metric]}
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _data_set(config: Mapping[str, Any]) -> str | None:
    """Return the name of a run's data set on the Hub; None where images lay in folders."""
    name = str(config.get("dataset", ""))
    name = name.partition("/")[2] or name  # without the prefix that timm takes, such as "hfds/"
    return None if name in ("", "folder") else name


def _parameters(trained: Trained) -> int:
    """Return the number of parameters without the auxiliary head, which is not exported."""
    auxiliary = trained.network.auxiliary
    return parameters(trained.network) - (0 if auxiliary is None else parameters(auxiliary))


def _accuracy_in_words(config: Mapping[str, Any]) -> str:
    """Say which accuracy is that of the network: with `ema` that of averaged weights."""
    return "test accuracy" + (" of the averaged network" if config.get("ema") else "")
