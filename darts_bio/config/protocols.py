"""Protocols: named recipes of a paper, a data set or a space for options that are not given.

>>> sorted(PROTOCOLS.get("digits").values)
['search', 'train']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from darts_bio.config.common import CommandConfig
from darts_bio.errors import unknown_name
from darts_bio.registry import Registry, parse_spec


@dataclass(frozen=True)
class Protocol:
    """A recipe: values of options, by the command that they are for.

    >>> quick = Protocol("ten epochs", {"train": {"epochs": 10}})
    >>> quick.values["train"]["epochs"]
    10
    """

    summary: str
    values: Mapping[str, Mapping[str, Any]]


PROTOCOLS: Registry[Protocol] = Registry("protocol", hyphens=True)
"""All protocols by name; by default a run takes those of its data set and its space."""

PROTOCOLS.register("darts")(
    Protocol(
        "the protocol of DARTS, from which the defaults are taken (arXiv 1806.09055)",
        {"search": {}, "train": {}, "train-imagenet": {}},
    )
)
PROTOCOLS.register("pc_darts")(
    Protocol(
        "the search of PC-DARTS (arXiv 1907.05737; train_search.py of the published code)",
        {"search": {"strategy": "pc_darts", "batch_size": 256, "lr": 0.1}},
    )
)
PROTOCOLS.register("gdas")(
    Protocol(
        "the search of GDAS (arXiv 1910.04465; GDAS-NASNet-CIFAR.config of the published code)",
        {
            "search": {
                "strategy": "gdas",
                "epochs": 250,
                "batch_size": 256,
                "optimizer": "nesterov",
                "weight_decay": 5e-4,
            }
        },
    )
)
PROTOCOLS.register("fair_darts")(
    Protocol(
        "the search of Fair DARTS: no `none`, and a threshold for edges (arXiv 1911.12126; published "
        "train_search.py)",
        {
            "search": {
                "space": "darts(kept_edges=None, operations=(max_pool_3x3, avg_pool_3x3, "
                "skip_connect, sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5))",
                "strategy": "fair_darts(threshold=0.85)",
                "batch_size": 128,
                "lr": 0.005,
            }
        },
    )
)
PROTOCOLS.register("darts_pt")(
    Protocol(
        "the search of DARTS-PT, which has no `none`: 50 epochs of DARTS, then 17 choices with 5 "
        "epochs after each but the last, measured on all validation images (arXiv 2108.04392)",
        {
            "search": {
                "space": "darts(operations=(max_pool_3x3, avg_pool_3x3, skip_connect, "
                "sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5))",
                "strategy": "darts_pt(share=0.3846, batches=390)",
                "epochs": 130,
            }
        },
    )
)
PROTOCOLS.register("eg_nas")(
    Protocol(
        "the search of EG-NAS, which has no `none`: on a quarter of the channels (AAAI 2024; "
        "train_search.py of the published code)",
        {
            "search": {
                "space": "darts(operations=(avg_pool_3x3, max_pool_3x3, skip_connect, "
                "sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5))",
                "strategy": "eg(published=True)",
                "regularizers": ("partial_channels(k=4)",),
                "batch_size": 256,
                "lr": 0.1,
                "lr_min": 0.0,
            }
        },
    )
)
PROTOCOLS.register("drnas")(
    Protocol(
        "the progressive search of DrNAS (arXiv 2006.10355; DARTS-space/train_search.py of the "
        "published code)",
        {
            "search": {
                "space": "darts(operations=(max_pool_3x3, avg_pool_3x3, skip_connect, "
                "sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5))",
                "strategy": "drnas",
                "channels": 36,
                "layers": 20,
                "epochs": 25,
                "lr": 0.1,
                "lr_min": 0.0,
                "regularizers": ("warmup(epochs=10)",),
                "stages": (
                    "stage(regularizers=partial_channels(k=6))",
                    "stage(candidates=4, keeps_weights=True, regularizers=partial_channels(k=4))",
                ),
            }
        },
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
                "choice_epochs": 10,
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
            # DARTS' but for this (configs/nas-benchmark/algos/DARTS.config of the published code).
            "search": {"layers": 15, "optimizer": "nesterov", "weight_decay": 5e-4},
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
        "a short recipe of parts that are usual today; its accuracy has not been measured",
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
        "the search of P-DARTS (arXiv 1904.12760; published train_search.py), and the other published "
        "schedule for ImageNet (arXiv 1904.12760, 1907.05737)",
        {
            "search": {
                "strategy": "darts(lr=6e-4)",
                "batch_size": 96,
                "layers": 5,
                "epochs": 25,
                "lr_min": 0.0,
                "regularizers": ("warmup(epochs=10)", "skip_limit(most=2)"),
                "stages": (
                    "stage",
                    "stage(candidates=5, layers=11, regularizers=skip_dropout(rate=0.4))",
                    "stage(candidates=3, layers=17, regularizers=skip_dropout(rate=0.7))",
                ),
            },
            "train-imagenet": {"batch_size": 1024, "schedule": "linear", "lr": 0.5, "warmup": 5},
        },
    )
)
PROTOCOLS.register("modern")(
    Protocol(
        "parts that are usual today on ImageNet; its accuracy has not been measured",
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
    """Return the option values that protocols have for a command, by the protocol's name.

    >>> values_of("train")["nb201"]["epochs"]
    200
    """
    protocols = {name: PROTOCOLS.get(name) for name in PROTOCOLS}
    return {
        name: protocol.values[command]
        for name, protocol in protocols.items()
        if command in protocol.values
    }


def preset(
    cls: type[CommandConfig], given: Mapping[str, Any], space_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, Any]:
    """Return the option values of the named protocol, or those that belong to the space and data.

    By default (protocol "auto") the protocol of the space is used, and over it that of the data
    set.

    Args:
        cls: The configuration of the command.
        given: The options that the user gave.
        space_of: Returns the name of the space that a run of such options is about.

    Raises:
        InputError: For an unknown protocol.
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
    dataset_values = dict(protocols.get(dataset, {}))
    # The data set's protocol may name the space, as that of the digits does.
    space, options = parse_spec(space_of({**dataset_values, **given}))
    while "space" in options:  # one that is made of another, such as by_depth(space=nb201)
        space, options = parse_spec(str(options["space"]))
    return {**protocols.get(space, {}), **dataset_values}
