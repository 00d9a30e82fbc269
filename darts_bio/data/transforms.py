"""What is done to an image before it becomes a tensor, by timm.

All transforms give bytes, which are normalized on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from darts_bio.config import ImageNetConfig
from darts_bio.errors import InputError, check_number, first_line

# Of the channels red, green and blue, on pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR_STD = (0.24703233, 0.24348505, 0.26158768)

Transform = Callable[[Image.Image], np.ndarray]
"""Maps an image in RGB to (3, S, S) uint8, which timm gives as a tensor: `numpy.asarray` takes it."""


def training_transform(config: ImageNetConfig) -> Transform:
    """Return a random crop that is mirrored, and altered in color or by a policy.

    The crop is 8 to 100 % of the area, of an aspect ratio from 3/4 to 4/3, resized to
    `config.image_size`. Raises InputError for a policy that timm does not know and for color jitter
    above 1.

    >>> transform = training_transform(ImageNetConfig(genotype="bionas_darts", image_size=32))
    >>> np.asarray(transform(Image.new("RGB", (60, 40)))).shape
    (3, 32, 32)
    """
    check_number("--color-jitter", config.color_jitter, most=1)
    jitter = config.color_jitter
    return _by_timm(
        config.auto_augment,
        config.image_size,
        hflip=0.5 if config.flip else 0.0,
        # brightness, contrast, saturation, hue
        color_jitter=(jitter, jitter, jitter, jitter / 2),
    )


def policy_transform(policy: str, side: int) -> Transform:
    """Return a policy of timm's alone, without crop or mirror image, for square images.

    Raises InputError if there is no such policy.

    >>> transform = policy_transform("rand-m9-mstd0.5", 32)
    >>> np.asarray(transform(Image.new("RGB", (32, 32)))).shape
    (3, 32, 32)
    """
    return _by_timm(policy, side, hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0)


def center_transform(config: ImageNetConfig) -> Transform:
    """Return the deterministic transform of images that are measured: resize, then crop the center.

    The crop's side is `config.crop_share` of the image's shorter side.

    >>> transform = center_transform(ImageNetConfig(genotype="bionas_darts", image_size=32))
    >>> np.asarray(transform(Image.new("RGB", (60, 40)))).shape
    (3, 32, 32)
    """
    from timm.data import create_transform

    return create_transform(
        config.image_size, use_prefetcher=True, crop_pct=config.crop_share, interpolation="bilinear"
    )


def _by_timm(policy: str, side: int, **options: Any) -> Transform:
    """Build timm's training transform; raises InputError for a policy that timm does not know."""
    from timm.data import create_transform

    try:
        return create_transform(
            side,
            is_training=True,
            # timm's name for a transform that ends in bytes, to be normalized on the device
            use_prefetcher=True,
            auto_augment=policy or None,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            **options,
        )
    except Exception as error:
        # A failed assertion, conversion or look-up; only the policy is the user's own text here.
        raise InputError(
            f"--auto-augment {policy}: not a policy of timm's ({first_line(error)}); expected one "
            "such as rand-m9-mstd0.5 or original"
        ) from None
