"""Trained networks without their run: the folders that `export RUN --hub DIR` writes.

config.json         timm's configuration of the model; under "darts_bio" the run's own records
model.safetensors   the weights, feedback among them
README.md           the card on Hugging Face's Hub

A network that the package ships is such a folder, genotypes/NAME beside genotypes/NAME.json. Numbers
and names are read from JSON and tensors from safetensors, so nothing in a folder is executed; a
digest tells weights that are not as they were written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from darts_bio.bounded import LARGEST_GENOTYPE, open_file, parse_json, read_text
from darts_bio.errors import InputError, brief, close_names, first_line, unknown_name
from darts_bio.invocation import portable
from darts_bio.spaces import Genotype, from_json, shipped_folder
from darts_bio.storage.checksum import digest
from darts_bio.training.provenance import Provenance

EXPORT_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RECORD = "darts_bio"
"""The field of config.json that timm passes over."""
FORMAT = 1
"""The version of that field's content."""
ARCHITECTURE = "darts_bio_"
"""What the name of a model for timm begins with; the name of its stem follows."""


def shipped_networks() -> tuple[str, ...]:
    """Return the names of the shipped trained networks, which `load_trained` takes.

    >>> print(*shipped_networks())
    digits_rule_aware
    """
    return tuple(sorted(path.parent.name for path in shipped_folder().glob(f"*/{EXPORT_FILE}")))


def located(source: str | Path) -> Path:
    """Return the folder of a shipped trained network by its name; any other source is a path.

    Raises InputError if there is no such path, though a shipped network has a name much like it.

    >>> located("digits_rule_aware").name, located("runs/mine").name
    ('digits_rule_aware', 'mine')
    >>> located("digits_rule_awar")
    Traceback (most recent call last):
    darts_bio.errors.InputError: unknown trained network 'digits_rule_awar': did you mean \
'digits_rule_aware'? (known: digits_rule_aware)
    """
    name, names = str(source), shipped_networks()
    if name in names:
        return shipped_folder() / name
    if not os.path.exists(source) and close_names(name, names):
        raise unknown_name("trained network", name, names)
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
    """
    return {
        "format": FORMAT,
        "options": {name: portable(value) for name, value in options.items()},
        "step": step,
        **asdict(provenance),
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
        digest: The digest of model.safetensors.
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
    digest: str


def read_export(folder: Path) -> Export:
    """Return what the config.json of a folder that `export --hub` wrote says.

    Raises:
        InputError: The file cannot be read, or is not one of this kind. The message names the field.

    >>> read_export(located("digits_rule_aware")).form["layers"]
    3
    """
    path = folder / EXPORT_FILE
    document = parse_json(read_text(path, LARGEST_GENOTYPE), str(path))
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
    form = {name: arguments.take(name, int) for name in ("channels", "layers", "num_classes")}
    form["in_channels"] = arguments.take("in_chans", int)
    size = images.numbers("input_size", int)
    if len(size) != 3:
        raise images.fault("input_size", "channels, height and width", size)
    accuracy = None if record.is_null("accuracy") else float(record.take("accuracy", float, int))
    if not 0 <= (accuracy or 0) <= 1:
        raise record.fault("accuracy", "a share of images", accuracy)
    return Export(
        genotype,
        {
            **form,
            "auxiliary": False,
            "stem": fields.take("architecture", str).removeprefix(ARCHITECTURE),
        },
        tuple(fields.take("label_names", list)),
        tuple(map(float, images.numbers("mean", float, int))),
        tuple(map(float, images.numbers("std", float, int))),
        (size[1], size[2]),
        record.take("options", dict),
        record.take("step", int),
        Provenance(
            record.take("command", str),
            record.take("machine", str),
            accuracy,
            record.take("images", int),
        ),
        record.take("digest", str),
    )


def read_weights(folder: Path, expected: str) -> dict[str, Tensor]:
    """Return the tensors in model.safetensors, on the CPU.

    `expected` is the file's digest. Raises InputError if the file cannot be read or has another.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS_FILE
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); put back the file that was exported"
        ) from None
    if digest(content) != expected:
        raise InputError(
            f"{path}: expected the weights that {EXPORT_FILE} beside it names by their digest, found "
            "others or damaged ones; put back the file that was exported"
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
            raise self.fault(name, _in_words(kinds), value)
        return value

    def numbers(self, name: str, *kinds: type) -> list[Any]:
        """Return the numbers of a list; raise InputError if it is none, or holds other things."""
        values: list[Any] = self.take(name, list)
        if any(type(value) not in kinds for value in values):
            raise self.fault(name, f"a list of {_in_words(kinds)}", values)
        return values

    def is_null(self, name: str) -> bool:
        return self._fields.get(name) is None

    def fault(self, name: str, expected: str, value: Any) -> InputError:
        """Return the error for a field that is not as expected."""
        return InputError(
            f"{self._path}: {self._prefix}{name}: expected {expected}, found {brief(value)}; put "
            "back the file that was exported"
        )


def _in_words(kinds: tuple[type, ...]) -> str:
    """Return the types as a message calls them: (float, int) -> "float or int"."""
    return " or ".join(kind.__name__ for kind in kinds)
