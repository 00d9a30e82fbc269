"""The page of a trained network on Hugging Face's Hub: README.md, metadata in YAML before text in
Markdown.

The metadata are those of https://huggingface.co/docs/hub/model-cards, which
`huggingface_hub.ModelCard` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from darts_bio.networks import parameters
from darts_bio.training.run_folder import METRICS_FILE, checkpoint_of, read_records
from darts_bio.training.trained import Trained

CARD_FILE = "README.md"

LICENSE = "apache-2.0"
"""The license of this package, which a card names until its author names another."""


def logged_accuracy(source: str | Path, trained: Trained) -> float | None:
    """Look up the test accuracy in [0, 1] that a run logged of the weights that
    `load_trained(source)` gave.

    None if it measured none at that step: it was stopped within an epoch, or its metrics.jsonl is
    not there.
    """
    records = read_records(checkpoint_of(Path(source)).parent / METRICS_FILE, trained.step)
    measured = [
        record
        for record in records
        if record["event"] == "epoch" and record["step"] == trained.step
    ]
    result = "test_averaged/accuracy" if trained.config.get("ema") else "test/accuracy"
    return measured[-1].get(result) if measured else None


def hub_card(trained: Trained, name: str, accuracy: float | None = None) -> str:
    """Write the page of a trained network, as Markdown.

    `name` is what the network is called there; `accuracy`, in [0, 1], is that on the test images,
    None if unknown.
    """
    metadata = yaml.safe_dump(
        _metadata(trained, name, accuracy), sort_keys=False, allow_unicode=True
    )
    # The genotype is shown whole; its option may be a path on the machine of the run.
    recipe = {option: value for option, value in trained.config.items() if option != "genotype"}
    size = "x".join(map(str, (trained.form["in_channels"], *trained.image_size)))
    facts = {
        "images": size,
        "classes": f"{trained.form['num_classes']:,}",
        "form": f"{trained.form['layers']} cells, {trained.form['channels']} channels, {trained.form['stem']} stem",
        "parameters": f"{_parameters(trained):,}",
        "rule of stem, preprocessing and classifier": f"`{trained.genotype.backbone_rule}`",
        "weight updates": f"{trained.step:,}",
    }
    if accuracy is not None:
        facts[_accuracy_in_words(trained.config)] = f"{100 * accuracy:.2f} %"
    lines = [
        f"---\n{metadata}---",
        f"# Model card for {name}",
        "",
        "An image classifier of darts_bio: a stack of cells whose operations were trained by the "
        "learning rules below.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {fact} | {value} |" for fact, value in facts.items()),
        "",
        "## Usage",
        "",
        "```python",
        "import timm",
        "",
        "import darts_bio.models  # registers the architecture",
        "",
        f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # on the Hub: "hf-hub:OWNER/{name}"',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
        "## Genotype",
        "",
        "```",
        str(trained.genotype),
        "```",
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _metadata(trained: Trained, name: str, accuracy: float | None) -> dict[str, Any]:
    data = _data_set(trained.config)
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
    """Name the data set of a run as the Hub does, without timm's prefix; None where images lay in
    folders.
    """
    name = str(config.get("dataset", ""))
    name = name.partition("/")[2] or name
    return None if name in ("", "folder") else name


def _parameters(trained: Trained) -> int:
    """Count parameters without the auxiliary head, which is not exported."""
    auxiliary = trained.network.auxiliary
    return parameters(trained.network) - (0 if auxiliary is None else parameters(auxiliary))


def _accuracy_in_words(config: Mapping[str, Any]) -> str:
    return "test accuracy" + (" of the averaged network" if config.get("ema") else "")
