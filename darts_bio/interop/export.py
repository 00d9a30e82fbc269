"""A trained network for other programs: an ONNX model, a program of torch.export, or a folder of
timm's.

The first two take pixels (N, C, H, W) in [0, 1], float32; the normalisation of the run is inside.
They hold the weights alone: predicting takes no learning rule, so there is no feedback in them and
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
from darts_bio.training.run_folder import is_filled, replacing, writing
from darts_bio.training.trained import PixelNetwork, Trained


def inference_network(trained: Trained) -> PixelNetwork:
    """The trained network in evaluation mode, without rules, feedback and auxiliary head."""
    direct = [
        f"{n}.operation."
        for n, module in trained.network.named_modules()
        if isinstance(module, DirectOperation)
    ]
    weights = {}
    for name, weight in trained.network.state_dict().items():
        outer = next((prefix for prefix in direct if name.startswith(prefix)), "")
        if not (name.startswith("auxiliary.") or name.rsplit(".", 1)[-1].startswith(PREFIX)):
            weights[outer.removesuffix("operation.") + name.removeprefix(outer)] = weight
    with torch.random.fork_rng(devices=[]):
        network = build_network(
            trained.genotype.with_rule("bp"), **{**trained.form, "auxiliary": False}
        )
    network.load_state_dict(weights)
    return PixelNetwork(network, trained.mean, trained.std).eval()


def export_program(trained: Trained, batch: int | None = None) -> ExportedProgram:
    """The program of `inference_network`, for any number of images at once, or for `batch` of
    them.
    """
    pixels = torch.zeros(batch or 2, trained.form["in_channels"], *trained.image_size)
    shapes = None if batch else ({0: Dim("batch")},)
    with torch.no_grad(), _quiet():
        return torch.export.export(inference_network(trained), (pixels,), dynamic_shapes=shapes)


def write_program(program: ExportedProgram, path: Path) -> None:
    """Writes what `torch.export.load(path).module()` runs. Raises InputError if the disk
    refuses.
    """
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def refuse_missing_onnx() -> None:
    """Raises InputError unless what writes ONNX models is installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx: needs {' and '.join(missing)}; {install_hint('onnx')}")


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes the program as an ONNX model, `pixels` to `logits`, in one file. Raises InputError if
    a package is missing or the disk refuses.
    """
    refuse_missing_onnx()
    with torch.no_grad(), _quiet():
        names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["logits"]}
        names["dynamic_shapes"] = ({0: "batch"},) if program.range_constraints else None
        model = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert model is not None
    with replacing(path) as temporary:
        temporary.write_bytes(model.model_proto.SerializeToString())


def save_for_hub(trained: Trained, directory: Path, accuracy: float | None = None) -> None:
    """Writes a trained network as a folder of timm's: weights, config.json, and a README.md for
    Hugging Face's Hub.

    After `import darts_bio.models`, `timm.create_model("local-dir:DIRECTORY", pretrained=True)`
    gives the network, and so does `"hf-hub:NAME"` where the folder was uploaded. (timm 1.0.20 reads
    no safetensors from folders: there, add `pretrained_cfg_overlay={"source": "", "file":
    "DIRECTORY/model.safetensors"}`.) Feedback goes with it, the auxiliary head does not.
    `accuracy`, in [0, 1], is that on the test images, for the README.md; None if unknown. Raises
    InputError if the folder is not new and empty, cannot be written, or the network has a stem of
    its own.
    """
    from safetensors.torch import save
    from timm import create_model

    # save_for_hf around it asks for a huggingface_hub that fits timm, which a folder on disk has no
    # use for.
    from timm.models._hub import save_config_for_hf

    from darts_bio.interop.hub_card import CARD_FILE, hub_card
    from darts_bio.interop.timm_models import default_cfgs

    form, variant = trained.form, f"darts_bio_{trained.form['stem']}"
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
    used: dict[str, Any] = {
        "input_size": (form["in_channels"], *trained.image_size),
        "num_classes": form["num_classes"],
        "mean": trained.mean,
        "std": trained.std,
        "pool_size": None,
    }
    if (
        "crop_share" in trained.config
    ):  # of images that lay in files; others are measured whole, as their stem has it
        used["crop_pct"] = trained.config["crop_share"]
    with torch.random.fork_rng(devices=[]):
        model = create_model(variant, pretrained_cfg_overlay=used, **arguments)
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
        partial = directory.with_name(f".{directory.name}.partial")
        try:
            partial.mkdir(exist_ok=True)
            (partial / "model.safetensors").write_bytes(save(model.state_dict()))
            labels: Any = {"label_names": list(trained.classes)}
            config: Any = (
                partial / "config.json"
            )  # text by its annotation, which timm 1.0.20 does not take
            save_config_for_hf(model, config, model_config=labels, model_args=arguments)
            (partial / CARD_FILE).write_text(
                hub_card(trained, directory.name, accuracy), encoding="utf-8"
            )
            partial.replace(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it exporters do not tell of their inner workings; what they cannot do they raise all
    the same.
    """
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
