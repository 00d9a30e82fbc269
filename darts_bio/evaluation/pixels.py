"""What images have to be before they are attacked or corrupted."""

from __future__ import annotations

import torch
from torch import Tensor

from darts_bio.errors import InputError


def refuse_other_pixels(where: str, pixels: Tensor) -> None:
    """Raise InputError unless pixels are images (N, C, H, W) in [0, 1], float32 or float64.

    Fewer digits do not hold a change by 1/255 to its bound. N may be 0.

    >>> refuse_other_pixels("attack", 255 * torch.ones(1, 1, 8, 8))
    Traceback (most recent call last):
    darts_bio.errors.InputError: attack: expected pixels in [0, 1], found 255 to 255; divide bytes \
by 255, undo a normalization first

    Args:
        where: The words that the message begins with.
        pixels: The images.
    """
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        found = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise InputError(f"{where}: expected a tensor of images (N, C, H, W), found {found}")
    if pixels.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{where}: expected pixels of float32 or float64, found {pixels.dtype}; convert them "
            "(bytes: images.float() / 255)"
        )
    if not pixels.numel():
        return
    least, most = pixels.min(), pixels.max()
    if not (least >= 0 and most <= 1):  # nor for NaN
        raise InputError(
            f"{where}: expected pixels in [0, 1], found {least:.3g} to {most:.3g}; divide bytes by "
            "255, undo a normalization first"
        )
