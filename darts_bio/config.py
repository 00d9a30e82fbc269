"""What a run is made of, once: frozen dataclasses from which the command line, the YAML files and the checks follow.

A value comes from the first of these that gives one: the command line, the file of `--config`, the run folder that
`--resume` goes on from, the preset of the data set, that of the space, the default (the protocol of DARTS, arXiv
1806.09055).

This module imports no PyTorch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.registry import canonical_spec, parse_spec, split_specs

CONFIG_FILE = "config.yaml"


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    identity: bool = True,
) -> Any:
    """A field of a configuration.

    `minimum` is the least value, `below` a bound that is not reached. `identity` says whether a checkpoint of one value
    is of no use under another; where it is False the value may change when a run is resumed.
    """
    metadata = {"help": help, "minimum": minimum, "below": below, "metavar": metavar, "identity": identity}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What search and retraining have in common. Raises InputError for a value that is out of bounds."""

    dataset: str = option("digits", "digits, cifar10, cifar100, imagenet16-120 or folder", metavar="NAME")
    data_dir: str | None = option(None, "where the data set lies, or is downloaded to", metavar="DIR", identity=False)
    image_size: int | None = option(None, "side the images of --dataset folder are resized to", minimum=4)
    train_images: int | None = option(None, "train on this many images only, drawn by the seed", minimum=2)

    channels: int = option(16, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(8, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)

    epochs: int = option(50, "passes over the training images", minimum=1)
    batch_size: int = option(64, "images a step", minimum=2)
    optimizer: str = option("sgd", "of the weights: sgd, or one of timm's such as adamw or lion", metavar="NAME")
    lr: float = option(0.025, "learning rate of the weights at the start of its cosine", minimum=0)
    lr_min: float = option(0.001, "learning rate of the weights at the end", minimum=0)
    momentum: float = option(0.9, "momentum of the weights' optimizer, where it has one", minimum=0, below=1)
    weight_decay: float = option(3e-4, "weight decay of the weights", minimum=0)
    clip: float = option(5.0, "largest norm of the weights' gradient; 0 for no bound", minimum=0)
    crop_padding: int = option(4, "pixels an image is padded by before a random crop; 0 for none", minimum=0)
    flip: bool = option(True, "mirror images at random")
    cutout: int = option(0, "side of the square blanked at random; 0 for none", minimum=0)

    seed: int = option(0, "fixes weights, feedback, alpha, the order of the data and its augmentation", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", identity=False)
    amp: Literal["none", "bf16"] = option("none", "bf16: autocast to bfloat16")
    graphs: bool = option(True, "on a GPU, replay the passes of the network as CUDA graphs", identity=False)
    log_every: int = option(50, "steps between two records of the running numbers", minimum=1)

    out: str | None = option(
        None, "run folder, new or empty (default: runs/KIND-DATASET-TIME)", metavar="DIR", identity=False
    )
    resume: bool = option(False, "go on with the run in --out from its checkpoint", identity=False)
    plugin: tuple[str, ...] = option((), "modules to import first, such as my_package.my_rule", identity=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.metadata)

    def identity(self) -> dict[str, Any]:
        """The values that a checkpoint is bound to, as plain data."""
        names = [f.name for f in fields(self) if f.metadata["identity"]]
        return {name: _plain(value) for name, value in asdict(self).items() if name in names}

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """How the identity of an earlier run differs from this one's, an option an entry: "channels was 8, is 16".

        An option that it lacks is newer than that run, and had its default then.
        """
        defaults = {f.name: _plain(f.default) for f in fields(self)}
        return [
            f"{name} was {identity.get(name, defaults[name])}, is {here}"
            for name, here in self.identity().items()
            if identity.get(name, defaults[name]) != here
        ]

    def to_yaml(self) -> str:
        """Every value but where this run lies, as `--config` and `--resume` read it."""
        values = {k: _plain(v) for k, v in asdict(self).items() if k not in ("out", "resume")}
        return yaml.safe_dump(values, sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """A search. The defaults are those of DARTS on CIFAR-10."""

    space: str = option("darts", "search space, such as darts or 'darts(layout=paper)'", metavar="SPEC")
    rules: tuple[str, ...] = option(
        ("fa", "usf", "brsf", "frsf"), "learning rules that operations are paired with; bp alone is plain DARTS"
    )
    strategy: str = option("darts", "search strategy, such as darts or 'darts(lr=6e-4)'", metavar="SPEC")
    objective: tuple[str, ...] = option(
        (), "costs added to the validation loss: parameters, multiply_adds, weight_transport, as 'NAME(weight=0.1)'"
    )
    regularizers: tuple[str, ...] = option(
        (), "such as 'warmup(epochs=15)', 'entropy(weight=0.1)', skip_stop, eigenvalue_stop, factorised"
    )
    supernet: str | None = option(
        None, "run folder of a search whose trained supernet this one starts from", metavar="RUN"
    )
    table: str | None = option(
        None, "JSON or CSV file of NAS-Bench-201's accuracies, to look the cell up in", metavar="FILE", identity=False
    )
    arch_gradient: Literal["rule", "true"] = option(
        "rule", "whether alpha's gradient goes down through the rules' error or the exact one"
    )
    backbone_rule: str = option("bp", "learning rule of stem, preprocessing and classifier", metavar="RULE")
    memory: Literal["normal", "low"] = option(
        "normal", "low: the supernet keeps 40 % less, at a quarter to a third more time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules:
            raise InputError("--rules: expected at least one learning rule, found none; use for example --rules fa,usf")
        object.__setattr__(self, "rules", tuple(map(canonical_spec, self.rules)))
        object.__setattr__(self, "objective", tuple(map(canonical_spec, self.objective)))
        object.__setattr__(self, "regularizers", tuple(map(canonical_spec, self.regularizers)))
        object.__setattr__(self, "backbone_rule", canonical_spec(self.backbone_rule))
        for name in ("rules", "objective", "regularizers"):
            given = getattr(self, name)
            twice = sorted({spec for spec in given if given.count(spec) > 1})
            if twice:
                what = "rule" if name == "rules" else "of them"
                raise InputError(f"--{name}: expected each {what} once, found {', '.join(twice)} more than once")


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(RunConfig):
    """A genotype's network trained from scratch. The defaults are those of DARTS on CIFAR-10."""

    genotype: str = option(
        "",
        "a shipped name, a JSON file, a search's run folder, DARTS-style or NAS-Bench-201 text; required",
        metavar="X",
    )
    channels: int = option(36, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(20, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)
    epochs: int = option(600, "passes over the training images", minimum=1)
    batch_size: int = option(96, "images a step", minimum=2)
    lr_min: float = option(0.0, "learning rate of the weights at the end", minimum=0)
    cutout: int = option(16, "side of the square blanked at random; 0 for none", minimum=0)
    auxiliary: float = option(0.4, "weight of the auxiliary head's loss; 0 leaves the head out", minimum=0)
    alignment_every: int = option(
        0, "measure how near learning is to backpropagation every N epochs; 0 for never", minimum=0, identity=False
    )
    drop_path: float = option(0.2, "probability of dropping an edge at the end, growing from 0", minimum=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.genotype:
            raise InputError(
                "--genotype is required: a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text"
            )


C = TypeVar("C", bound=RunConfig)

PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    # Sized for two CPU cores: 8x8 images of digits, on which a mirror image is another shape.
    SearchConfig: {
        "digits": {
            "space": "darts(nodes=2)",
            "strategy": "darts(lr=0.01)",
            "channels": 8,
            "layers": 3,
            "epochs": 6,
            "batch_size": 64,
            "lr": 0.1,
            "crop_padding": 1,
            "flip": False,
            "log_every": 5,
        }
    },
    RetrainConfig: {
        "digits": {
            "channels": 16,
            "layers": 3,
            "epochs": 30,
            "batch_size": 64,
            "lr": 0.1,
            "crop_padding": 1,
            "flip": False,
            "cutout": 0,
            "auxiliary": 0.0,
            "drop_path": 0.0,
            "log_every": 10,
        }
    },
}


SPACE_PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    # The benchmark's network and its training (arXiv 2001.00326). A data set's preset goes before.
    SearchConfig: {"nb201": {"layers": 15}},
    RetrainConfig: {
        "nb201": {
            "channels": 16,
            "layers": 15,
            "epochs": 200,
            "batch_size": 256,
            "optimizer": "nesterov",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "clip": 0.0,
            "cutout": 0,
            "auxiliary": 0.0,
            "drop_path": 0.0,
        }
    },
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    minimum, below = metadata["minimum"], metadata["below"]
    if value is None or (minimum is None and below is None):
        return
    # Written so that "not a number" fails both.
    low_enough = below is None or value < below
    if not (value >= minimum and low_enough and value != float("inf")):
        bounds = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise InputError(f"{_flag(name)}: expected {bounds}, found {value}")


def _convert(name: str, hint: Any, value: Any) -> Any:
    """`value`, a text of the command line or what YAML made of one, as the field's type."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(t for t in get_args(hint) if t is not type(None))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str) and "\0" not in value:
        return value
    if get_origin(hint) is tuple:
        if isinstance(value, str):
            return split_specs(value)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise unknown_name(f"value of {_flag(name)}", str(value), get_args(hint))
    if hint in (int, float) and not isinstance(value, bool):
        try:
            if hint is float or isinstance(value, str) or value == int(value):
                return hint(value)
        except (TypeError, ValueError, OverflowError):
            pass
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise InputError(f"{_flag(name)}: expected {expected.get(hint, 'names separated by commas')}, found {value!r}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def _parser(cls: type[RunConfig], description: str) -> _Parser:
    parser = _Parser(
        description=description,
        epilog="`python -m darts_bio list` shows all names. Defaults are the protocol; a data set or "
        "a space that has a preset has some of its own.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
    )
    hints = get_type_hints(cls)
    for f in sorted(fields(cls), key=lambda f: f.name != "genotype"):
        default = ",".join(f.default) if isinstance(f.default, tuple) else f.default
        shown = [] if default in (None, "", False) else [str(default)]
        presets = [*PRESETS[cls].items(), *SPACE_PRESETS[cls].items()]
        shown += [f"{name}: {preset[f.name]}" for name, preset in presets if f.name in preset]
        text = (f.metadata["help"] + (f" [{'; '.join(shown)}]" if shown else "")).replace("%", "%%")
        if hints[f.name] is bool:
            action: Any = "store_true" if f.name == "resume" else argparse.BooleanOptionalAction
            parser.add_argument(_flag(f.name), action=action, help=text)
            continue
        kind = hints[f.name]
        choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
        metavar = (
            f.metadata["metavar"] or choices or {str: "NAME"}.get(kind, "A,B,..." if get_origin(kind) is tuple else "N")
        )
        parser.add_argument(_flag(f.name), metavar=metavar, help=text)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    return parser


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would let a later key replace an earlier one of the same name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, cls: type[RunConfig]) -> dict[str, Any]:
    """Options from a YAML file; `-` and `_` in names are the same. Raises InputError for unknown ones and bad files."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that there is not
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())[:200]})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected lines of the form 'option: value', found {type(data).__name__}")
    hints, values = get_type_hints(cls), {}
    known = {f.name for f in fields(cls)} - {"resume"}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: {unknown_name('option', str(key), known)}")
        try:
            values[name] = _convert(name, hints[name], value)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return values


SpaceOf = Callable[[Mapping[str, Any]], str]
"""From the values that are given to the spec of the space that a run is about."""


def _searched_space(values: Mapping[str, Any]) -> str:
    return values.get("space", SearchConfig.space)


def parse(cls: type[C], argv: Sequence[str], description: str, space_of: SpaceOf = _searched_space) -> C:
    """The configuration that a command line asks for. Raises InputError for anything that it cannot mean."""
    tokens = [token.partition("=") for token in argv]
    normal = [(a.replace("_", "-") if a.startswith("--") else a) + sep + b for a, sep, b in tokens]
    parser = _parser(cls, description)
    namespace, unknown = parser.parse_known_args(normal)
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise (
            unknown_name("option", name, known)
            if name.startswith("-")
            else InputError(f"expected options only, found {name!r} (see --help)")
        )
    given, hints = vars(namespace), get_type_hints(cls)
    file = given.pop("config", None)
    given = {name: _convert(name, hints[name], value) for name, value in given.items()}
    if file is not None:
        given = read_yaml(Path(file), cls) | given
    base: dict[str, Any] = {}
    if given.get("resume"):
        base = _resumed(given.get("out"), cls)
    values = base | given
    dataset = values.get("dataset", next(f.default for f in fields(cls) if f.name == "dataset"))
    if not base:
        values = dict(PRESETS[cls].get(dataset, {})) | values
        space, _ = parse_spec(space_of(values))
        values = dict(SPACE_PRESETS[cls].get(space, {})) | values
    return cls(**values)


def _resumed(out: str | None, cls: type[RunConfig]) -> dict[str, Any]:
    if out is None:
        raise InputError("--resume needs --out DIR, the folder of the run to go on with")
    path = Path(out) / CONFIG_FILE
    try:
        found = path.is_file()
    except OSError as error:
        raise InputError(f"--out {out[:80]}...: not a folder's name ({first_line(error)})") from None
    if not found:
        raise InputError(f"--resume: {path} does not exist, so {out} holds no run; start one without --resume")
    return read_yaml(path, cls)


def run_script(
    cls: type[C],
    main: Callable[[C], int],
    description: str,
    argv: Sequence[str] | None = None,
    space_of: SpaceOf = _searched_space,
) -> int:
    """Parses the command line, imports the plug-ins, runs `main`; returns the exit code.

    An InputError, from wherever it comes, is one line on standard error and exit code 2.
    """
    try:
        config = parse(cls, sys.argv[1:] if argv is None else argv, description, space_of)
        import_plugins(config.plugin)
        return main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the run takes signals itself, or a second one
        print("interrupted", file=sys.stderr)
        return 130


def import_plugins(modules: Sequence[str]) -> None:
    """Imports users' modules, whose decorators register what they add. The working directory is searched as well."""
    if modules and "" not in sys.path:
        sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            if not isinstance(error, ImportError):
                raise InputError(
                    f"--plugin {module}: its import failed with {type(error).__name__} ({first_line(error)}), "
                    f"raised at {_users_line(error)}"
                ) from error
            raise InputError(
                f"--plugin {module}: cannot be imported ({first_line(error)}); expected a module, such as "
                "my_package.my_rule, that is installed or lies in the working directory"
            ) from None


def _users_line(error: BaseException) -> str:
    """Where a plug-in's import went wrong: the last line of it that is not of this package or of Python's importing."""
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f for f in frames if not f.filename.startswith((own, "<frozen importlib")) and "importlib" not in f.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:  # it has no frame of its own
        return f"{error.filename}:{error.lineno}"
    place = (theirs or frames)[-1]
    return f"{place.filename}:{place.lineno}"
