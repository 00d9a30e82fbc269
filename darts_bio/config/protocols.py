"""Protocols: recipes by name, of a paper, a data set or a space, for the options that a user does
not give.

>>> sorted(PROTOCOLS.get("digits").values)
['search', 'train']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from darts_bio.config.schema import CommandConfig
from darts_bio.errors import unknown_name
from darts_bio.registry import Registry, parse_spec


@dataclass(frozen=True)
class Protocol:
    """Values of options, by the command that they are for: `{"train": {"epochs": 100}}`."""

    summary: str
    values: Mapping[str, Mapping[str, Any]]


PROTOCOLS: Registry[Protocol] = Registry("protocol", hyphens=True)

PROTOCOLS.register("darts")(
    Protocol(
        "the protocol of DARTS, which the defaults are (arXiv 1806.09055)",
        {"train": {}, "train-imagenet": {}},
    )
)
PROTOCOLS.register("digits")(
    Protocol(
        "sized for two CPU cores: 8x8 images of digits, on which a mirror image is another shape",
        {
            "search": {
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
            },
            "train": {
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
            },
        },
    )
)
PROTOCOLS.register("imagenet16-120")(
    Protocol(
        "NAS-Bench-201's augmentation of 16x16 images, which are too small for an auxiliary head "
        "(arXiv 2001.00326)",
        {
            "search": {"crop_padding": 2},
            "train": {"crop_padding": 2, "cutout": 0, "auxiliary": 0.0},
        },
    )
)
PROTOCOLS.register("nb201")(
    Protocol(
        "NAS-Bench-201's network and training (arXiv 2001.00326)",
        {
            "search": {"layers": 15},
            "train": {
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
            },
        },
    )
)
PROTOCOLS.register("fast")(
    Protocol(
        "a short recipe of today's usual parts; what it reaches has not been measured",
        {
            "train": {
                "epochs": 100,
                "batch_size": 128,
                "optimizer": "nesterov",
                "lr": 0.1,
                "warmup": 5,
                "weight_decay": 5e-4,
                "label_smoothing": 0.1,
                "drop_path": 0.1,
                "ema": 0.999,
                "amp": "bf16",
            }
        },
    )
)
PROTOCOLS.register("p_darts")(
    Protocol(
        "the other published schedule for ImageNet (arXiv 1904.12760, 1907.05737)",
        {"train-imagenet": {"batch_size": 1024, "schedule": "linear", "lr": 0.5, "warmup": 5}},
    )
)
PROTOCOLS.register("modern")(
    Protocol(
        "today's usual parts on ImageNet; what it reaches has not been measured",
        {
            "train-imagenet": {
                "epochs": 300,
                "batch_size": 1024,
                "optimizer": "nesterov",
                "schedule": "cosine",
                "lr": 0.5,
                "warmup": 5,
                "mixup": 0.1,
                "auto_augment": "rand-m5-mstd0.5",
                "color_jitter": 0.0,
                "ema": 0.9999,
                "amp": "bf16",
            }
        },
    )
)


def values_of(command: str) -> dict[str, Mapping[str, Any]]:
    """Give the values for a command by the name of the protocol."""
    members = {name: PROTOCOLS.get(name) for name in PROTOCOLS}
    return {
        name: member.values[command] for name, member in members.items() if command in member.values
    }


def preset(
    cls: type[CommandConfig], given: Mapping[str, Any], space_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, Any]:
    """Give the values of the protocol that is asked for, or those of the space and, over them, of
    the data set.

    `given` holds the options that the user gave; `space_of` names the space that they are about.
    Raises InputError for a protocol that there is not.
    """
    protocols = values_of(cls.command)
    protocol = given.get("protocol", "auto")
    if protocol != "auto":
        if protocol not in protocols:
            raise unknown_name("protocol", protocol, ("auto", *protocols))
        return dict(protocols[protocol])
    dataset = given.get("dataset", getattr(cls, "dataset", None))
    if not protocols or dataset is None:
        return {}
    own = dict(protocols.get(dataset, {}))
    space, _ = parse_spec(space_of({**own, **given}))
    return {**protocols.get(space, {}), **own}
