"""Trained networks without their run: the folders that `export RUN --hub DIR` writes.

config.json         timm's configuration of the model; under "darts_bio" the run's own records
model.safetensors   the weights, feedback among them
README.md           the card on Hugging Face's Hub

A network that the package ships is such a folder, genotypes/NAME beside genotypes/NAME.json. Numbers
and names are read from JSON and tensors from safetensors, so nothing in a folder is executed; a
digest reveals changed weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_bio.bounded import LARGEST_EXPORT, LARGEST_WEIGHTS, open_file, parse_json, read_text
from darts_bio.errors import InputError, brief, close_names, first_line, unknown_name
from darts_bio.invocation import portable
from darts_bio.spaces import Genotype, from_json, shipped_folder, shipped_names
from darts_bio.storage.checksum import digest
from darts_bio.training.provenance import Provenance, share

EXPORT_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RECORD = "darts_bio"
"""The field of config.json that timm passes over."""
FORMAT = 1
"""The version of that field's content."""
LARGEST_WHOLE = 2**63 - 1
"""No count in that file is larger; PyTorch takes no larger one."""
ARCHITECTURE = "darts_bio_"
"""What the name of a model for timm begins with; the name of its stem follows."""


def shipped_networks() -> tuple[str, ...]:
    """Return the names of the shipped trained networks, which `load_trained` takes.

    >>> print(*shipped_networks())
    cifar10_rule_aware digits_rule_aware
    """
    return tuple(sorted(path.parent.name for path in shipped_folder().glob(f"*/{EXPORT_FILE}")))


def located(source: str | Path) -> Path:
    """Return the folder of a shipped trained network by its name; any other source is a path.

    A shipped name wins over a folder of that name: write ./NAME for a folder of that name.

    Raises InputError if there is no such path, though a shipped network has a name much like it, or
    a genotype of that name is shipped without weights.

    >>> located("digits_rule_aware").name, located("runs/mine").name
    ('digits_rule_aware', 'mine')
    >>> located("digits_rule_awar")
    Traceback (most recent call last):
    darts_bio.errors.InputError: unknown trained network 'digits_rule_awar': did you mean \
'digits_rule_aware' or 'cifar10_rule_aware'? (known: cifar10_rule_aware, digits_rule_aware)
    """
    name, names = str(source), shipped_networks()
    if name in names:
        return shipped_folder() / name
    if not os.path.exists(source) and close_names(name, names):
        raise unknown_name("trained network", name, names)
    if not os.path.exists(source) and name in shipped_names():
        raise InputError(
            f"{name}: expected a trained network, found a genotype without weights; train it "
            f"(--genotype {name}), or take one of {', '.join(names)}"
        )
    return Path(source)


def is_export(folder: Path) -> bool:
    """Tell whether a folder is of the kind that `export --hub` writes; a run folder is not.

    >>> is_export(located("digits_rule_aware")), is_export(Path("runs/none"))
    (True, False)
    """
    return (folder / EXPORT_FILE).is_file()


def record_of(
    options: Mapping[str, Any], step: int, provenance: Provenance, weights: bytes
) -> dict[str, Any]:
    """Return what config.json says under "darts_bio", as plain data.

    Args:
        options: Those of the run; folders are left out of them.
        step: The updates that the weights have had.
        provenance: Where the weights come from.
        weights: The content of model.safetensors.

    Raises:
        InputError: There are more bytes of weights than `read_weights` takes.
    """
    if len(weights) > LARGEST_WEIGHTS:
        raise InputError(
            f"expected a network of at most {LARGEST_WEIGHTS:,} bytes of weights, found "
            f"{len(weights):,}; keep its run folder, which load_trained reads as well"
        )
    return {
        "format": FORMAT,
        "options": {name: portable(value) for name, value in options.items()},
        "step": step,
        **asdict(provenance),
        "bytes": len(weights),
        "digest": digest(weights),
    }


@dataclass(frozen=True)
class Export:
    """The content of config.json, checked; the weights are read by `read_weights`.

    Attributes:
        genotype: The genotype.
        form: The keywords with which `build_network` builds the network.
        classes: The classes' names.
        mean: The mean of each channel, on pixels in [0, 1].
        std: The standard deviation of each channel, likewise.
        image_size: The height and width of the images.
        options: The options of the run.
        step: The updates that the weights have had.
        provenance: Where the weights come from.
        size: The bytes of model.safetensors.
        digest: Its digest.
    """

    genotype: Genotype
    form: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    options: dict[str, Any]
    step: int
    provenance: Provenance
    size: int
    digest: str


def read_export(folder: Path) -> Export:
    """Return what the config.json of a folder that `export --hub` wrote says.

    Raises:
        InputError: The file cannot be read, or is not one of this kind. The message names the field.

    >>> read_export(located("digits_rule_aware")).form["layers"]
    3
    """
    path = folder / EXPORT_FILE
    document = parse_json(read_text(path, LARGEST_EXPORT), str(path))
    if not isinstance(document, dict) or RECORD not in document:
        raise InputError(
            f"{path}: expected a file that `export RUN --hub DIR` of this version writes, found no "
            f'{RECORD!r} in it; timm.create_model("local-dir:DIR") reads others'
        )
    fields = _Fields(document, path)
    record, arguments, images = (
        _Fields(fields.take(name, dict), path, f"{name}.")
        for name in (RECORD, "model_args", "pretrained_cfg")
    )
    if record.take("format", int) != FORMAT:
        raise InputError(
            f"{path}: {RECORD}.format: expected {FORMAT}, found {record.take('format', int)}; it "
            "needs another version of darts_bio"
        )
    genotype = from_json(
        json.dumps(arguments.take("genotype", dict)), f"{path}: model_args.genotype"
    )
    form = {name: arguments.whole(name) for name in ("channels", "layers", "num_classes")}
    form["in_channels"] = arguments.whole("in_chans")
    size = images.take("input_size", list)
    if len(size) != 3 or any(type(side) is not int for side in size):
        raise images.fault("input_size", "channels, height and width", size)
    accuracy = None if record.is_null("accuracy") else record.take("accuracy", float, int)
    if accuracy is not None and share(accuracy) is None:
        raise record.fault("accuracy", "a share of images", accuracy)
    return Export(
        genotype,
        {
            **form,
            "auxiliary": False,
            "stem": fields.take("architecture", str).removeprefix(ARCHITECTURE),
        },
        tuple(fields.take("label_names", list)),
        images.numbers("mean"),
        images.numbers("std"),
        (size[1], size[2]),
        record.take("options", dict),
        record.whole("step"),
        Provenance(
            record.take("command", str),
            record.take("machine", str),
            share(accuracy),
            record.whole("images"),
        ),
        record.whole("bytes", LARGEST_WEIGHTS),
        record.take("digest", str),
    )


def read_weights(folder: Path, export: Export) -> dict[str, Tensor]:
    """Return the tensors in model.safetensors, on the CPU.

    Raises InputError if the file cannot be read, or is not of the size and digest that the export
    names. A file of another size is not read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS_FILE
    try:
        with open_file(path) as file:
            found = os.fstat(file.fileno()).st_size
            # Bounded, since the file may grow while it is read.
            content = file.read(export.size) if found == export.size else None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); put back the file that was exported"
        ) from None
    if content is None or digest(content) != export.digest:
        what = "others or damaged ones" if content is not None else f"{found:,} bytes"
        raise InputError(
            f"{path}: expected the weights that {EXPORT_FILE} beside it names by their digest, of "
            f"{export.size:,} bytes, found {what}; put back the file that was exported"
        )
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a safetensors file ({first_line(error)})") from None


class _Fields:
    """The fields of an object of a JSON file, each of which is checked as it is taken."""

    def __init__(self, fields: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self._fields, self._path, self._prefix = fields, path, prefix

    def take(self, name: str, *kinds: type) -> Any:
        """Return the field's value; raise InputError unless it is of one of these types."""
        value = self._fields.get(name)
        if type(value) not in kinds:
            raise self.fault(name, " or ".join(kind.__name__ for kind in kinds), value)
        return value

    def whole(self, name: str, most: int = LARGEST_WHOLE) -> int:
        """Return a whole number; raise InputError unless it is from 0 to `most`."""
        value: int = self.take(name, int)
        if not 0 <= value <= most:
            raise self.fault(name, f"a whole number from 0 to {most:,}", value)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return the numbers of a list; raise InputError unless all are finite as torch.float32."""
        values: list[Any] = self.take(name, list)
        largest = torch.finfo(torch.float32).max
        # Compared before they are floats: a whole number may be too large to become one.
        if not all(type(value) in (float, int) and abs(value) <= largest for value in values):
            raise self.fault(name, "a list of finite numbers", values)
        return tuple(map(float, values))

    def is_null(self, name: str) -> bool:
        """Tell whether the field is null or missing."""
        return self._fields.get(name) is None

    def fault(self, name: str, expected: str, value: Any) -> InputError:
        """Return the error for a field that is not as expected."""
        return InputError(
            f"{self._path}: {self._prefix}{name}: expected {expected}, found {brief(value)}; put "
            "back the file that was exported"
        )
