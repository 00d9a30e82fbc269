"""Export a trained network as an ONNX model, a torch.export program or a timm folder.

The first two take pixels (N, C, H, W) in [0, 1], float32, since the run's normalization is part of
them. They hold the weights alone: prediction needs no learning rule, so they have no feedback and
no auxiliary head.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from darts_bio.errors import InputError, install_hint
from darts_bio.networks import build_network
from darts_bio.rules import DirectOperation
from darts_bio.rules.carriers import PREFIX
from darts_bio.storage.run_folder import is_filled
from darts_bio.storage.whole_files import replacing, writing
from darts_bio.training.exported import (
    ARCHITECTURE,
    EXPORT_FILE,
    RECORD,
    WEIGHTS_FILE,
    record_of,
)
from darts_bio.training.trained import PixelNetwork, Trained


def inference_network(trained: Trained) -> PixelNetwork:
    """Build the trained network without rules, feedback and auxiliary head, in evaluation mode.

    It maps pixels (N, C, H, W) in [0, 1] to logits (N, num_classes).
    """
    # A rule that sends the error directly wraps an operation in a module, whose child it then is.
    # The network under bp has no such modules, so the wrapper's part of a weight's name goes:
    # "X.operation.weight" -> "X.weight".
    wrapper_prefixes = [
        f"{module_name}.operation."
        for module_name, module in trained.network.named_modules()
        if isinstance(module, DirectOperation)
    ]
    weights = {}
    for name, weight in trained.network.state_dict().items():
        is_feedback = name.rsplit(".", 1)[-1].startswith(PREFIX)
        if is_feedback or name.startswith("auxiliary."):
            continue
        wrapper = next((prefix for prefix in wrapper_prefixes if name.startswith(prefix)), "")
        weights[wrapper.removesuffix("operation.") + name.removeprefix(wrapper)] = weight
    # Building draws weights, to be overwritten, which must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        network = build_network(
            trained.genotype.with_rule("bp"), **{**trained.form, "auxiliary": False}
        )
    network.load_state_dict(weights)
    return PixelNetwork(network, trained.mean, trained.std).eval()


def export_program(trained: Trained, batch: int | None = None) -> ExportedProgram:
    """Export `inference_network` as a program for batches of any size, or of `batch` images."""
    # An example of the input. A size of 1 would be taken as fixed, so the free size is shown by 2.
    pixels = torch.zeros(batch or 2, trained.form["in_channels"], *trained.image_size)
    shapes = None if batch else ({0: Dim("batch")},)
    with torch.no_grad(), _quiet():
        program = torch.export.export(inference_network(trained), (pixels,), dynamic_shapes=shapes)
    for node in program.graph.nodes:  # the paths of this machine's source files, line by line
        node.meta.pop("stack_trace", None)
    return program


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a program that `torch.export.load(path).module()` runs.

    Raises InputError if the disk refuses.
    """
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def refuse_missing_onnx() -> None:
    """Raise InputError unless the packages that write ONNX models are installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx: needs {' and '.join(missing)}; {install_hint('onnx')}")


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write the program as an ONNX model with input `pixels` and output `logits`, in one file.

    Raises InputError if a package is missing or the disk refuses.
    """
    refuse_missing_onnx()
    with torch.no_grad(), _quiet():
        options: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["logits"]}
        # A program has range constraints if its batch size is free.
        options["dynamic_shapes"] = ({0: "batch"},) if program.range_constraints else None
        model = torch.onnx.export(program, dynamo=True, verbose=False, **options)
    assert model is not None
    with replacing(path) as temporary:
        temporary.write_bytes(model.model_proto.SerializeToString())


def save_for_hub(trained: Trained, directory: Path) -> None:
    """Write a trained network as a timm folder: weights, config.json, and a README.md for the Hub.

    `load_trained` reads the folder, with what the run recorded. In timm, after `import
    darts_bio.models`, `timm.create_model("local-dir:DIRECTORY", pretrained=True)` returns the
    network, and so does `"hf-hub:NAME"` where the folder was uploaded to Hugging Face's Hub. (timm
    1.0.20 reads no safetensors from folders: there, add
    `pretrained_cfg_overlay={"source": "", "file": "DIRECTORY/model.safetensors"}`.) The folder
    holds the feedback too, but not the auxiliary head.

    Args:
        trained: The network.
        directory: The folder to make.

    Raises:
        InputError: If the folder exists and is not empty, cannot be written, or the network has a
            stem that timm's models do not have.
    """
    from safetensors.torch import save
    from timm import create_model

    # timm's save_for_hf, which calls this function, insists on a huggingface_hub that fits timm,
    # though a folder on disk does not need it.
    from timm.models._hub import save_config_for_hf

    from darts_bio.interop.hub_card import CARD_FILE, hub_card
    from darts_bio.interop.timm_models import default_cfgs

    form, variant = trained.form, f"{ARCHITECTURE}{trained.form['stem']}"
    if variant not in default_cfgs:
        raise InputError(
            f"expected a stem that timm's models have, cifar or imagenet, found {form['stem']!r}"
        )
    arguments = {
        "genotype": json.loads(trained.genotype.to_json()),
        "channels": form["channels"],
        "layers": form["layers"],
        "num_classes": form["num_classes"],
        "in_chans": form["in_channels"],
        "seed": trained.config.get("seed", 0),
    }
    pretrained_cfg: dict[str, Any] = {
        "input_size": (form["in_channels"], *trained.image_size),
        "num_classes": form["num_classes"],
        "mean": trained.mean,
        "std": trained.std,
        "pool_size": None,
    }
    # Images from files are cropped before they are measured; others are measured whole, which is
    # what the model's own configuration says.
    if "crop_share" in trained.config:
        pretrained_cfg["crop_pct"] = trained.config["crop_share"]
    with torch.random.fork_rng(devices=[]):
        model = create_model(variant, pretrained_cfg_overlay=pretrained_cfg, **arguments)
    weights = trained.network.state_dict()
    model.load_state_dict(
        {name: weight for name, weight in weights.items() if not name.startswith("auxiliary.")}
    )
    with writing(directory):
        if is_filled(directory):
            raise InputError(
                f"{directory}: exists and is not empty; remove it first, or choose another name"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed, so that the folder is whole or not there.
        partial = directory.with_name(f".{directory.name}.partial")
        try:
            partial.mkdir(exist_ok=True)
            content = save(model.state_dict())
            (partial / WEIGHTS_FILE).write_bytes(content)
            record = record_of(trained.config, trained.step, trained.provenance, content)
            more: Any = {"label_names": list(trained.classes), RECORD: record}
            # timm annotates the path as text, but timm 1.0.20 takes a Path only.
            config_path: Any = partial / EXPORT_FILE
            save_config_for_hf(model, config_path, model_config=more, model_args=arguments)
            card = hub_card(trained, directory.name)
            (partial / CARD_FILE).write_text(card, encoding="utf-8")
            partial.replace(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and log messages of exporters; errors are raised as ever."""
    saved_level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(saved_level)
