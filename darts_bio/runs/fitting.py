"""Fit a recipe to a data set whose images are smaller or fewer than those it was made for."""

from __future__ import annotations

from typing import Any

from darts_bio.config import SmallImagesConfig, TrainingConfig
from darts_bio.data.datasets import ImageData
from darts_bio.networks import STEMS, AuxiliaryHead


def misfits(config: SmallImagesConfig, data: ImageData) -> dict[str, Any]:
    """Return new values, by option name, for the options that do not fit the images.

    These are a batch larger than the data set, a cutout square or a crop padding not smaller than
    the images, and an auxiliary head on images that are too small for one. An empty dictionary
    means that all options fit.
    """
    side, fitting = min(data.image_size), dict[str, Any]()
    if config.cutout >= side:
        fitting["cutout"] = side // 2
    if config.crop_padding >= side:
        fitting["crop_padding"] = side // 8
    if isinstance(config, TrainingConfig):
        images = len(data.train) - config.holdout
        if config.auxiliary and side < AuxiliaryHead.least_image_behind(STEMS.get(config.stem)):
            fitting["auxiliary"] = 0.0
    else:
        images = len(data.train) // 2  # a search trains on one half
    if config.batch_size > images >= 2:
        fitting["batch_size"] = images
    return fitting
