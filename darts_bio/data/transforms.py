"""What is done to an image before it becomes a tensor, by timm; all give bytes, which are
normalised on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from darts_bio.config import ImageNetConfig
from darts_bio.errors import InputError, first_line

# Of the channels, on pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR_STD = (0.24703233, 0.24348505, 0.26158768)

Transform = Callable[[Image.Image], np.ndarray]
"""From an image in RGB to (3, S, S) uint8."""


def training_transform(config: ImageNetConfig) -> Transform:
    """A random crop (8 to 100 % of the area, of an aspect ratio of 3/4 to 4/3), mirrored, and
    altered in colour or by a policy. Raises InputError for a policy that there is not.
    """
    if config.color_jitter > 1:
        raise InputError(f"--color-jitter: expected 0 to 1, found {config.color_jitter}")
    jitter = config.color_jitter
    return _by_timm(
        config.auto_augment,
        config.image_size,
        hflip=0.5 if config.flip else 0.0,
        color_jitter=(jitter, jitter, jitter, jitter / 2),
    )


def policy_transform(policy: str, side: int) -> Transform:
    """A policy alone, on square images. Raises InputError if there is no such policy."""
    return _by_timm(policy, side, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0)


def centre_transform(config: ImageNetConfig) -> Transform:
    """The centre, of a side that is `crop_share` of the shorter one."""
    from timm.data import create_transform

    return create_transform(
        config.image_size, use_prefetcher=True, crop_pct=config.crop_share, interpolation="bilinear"
    )


def _by_timm(policy: str, side: int, **options: Any) -> Transform:
    from timm.data import create_transform

    try:
        return create_transform(
            side,
            is_training=True,
            use_prefetcher=True,  # bytes, that is
            auto_augment=policy or None,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            **options,
        )
    except (
        Exception
    ) as error:  # of an assertion, a conversion or a look-up, where nothing else is given freely
        raise InputError(
            f"--auto-augment {policy}: not a policy of timm's ({first_line(error)}); expected one "
            "such as "
            "rand-m9-mstd0.5 or original"
        ) from None
