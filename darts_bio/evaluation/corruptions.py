"""Common corruptions of images in the style of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv
1903.12261), made here.

The severities are those that the authors publish for 32x32 images (make_cifar_c.py in their
repository), and stay so at other sizes. Of their 19 kinds there are those of noise, blur and
digital processing but for glass_blur and elastic_transform, and brightness, which they count as
weather; snow, frost, fog and spatter are not here. Deviations: draws are ours, so a corrupted image
is another sample of the same law; motion_blur is a line of whole pixels under half a Gaussian,
where theirs is ImageMagick's; pixels are rounded, not cut off, to 256 values.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from darts_bio.errors import InputError
from darts_bio.registry import Registry
from darts_bio.runtime import generator

Corrupt = Callable[[Tensor, int, Sequence[Generator]], Tensor]
"""Pixels (N, C, H, W) in [0, 1] on the CPU, the severity counted from 0, and a source of draws for
each image, to pixels, which may lie outside [0, 1]."""

CORRUPTIONS: Registry[Corrupt] = Registry("corruption")

LEAST_SIDE = 8


def corrupt(name: str, pixels: Tensor, severity: int, seed: int, first: int = 0) -> Tensor:
    """Corrupted images, rounded to the 256 values that a file holds; a function of the arguments
    alone.

    pixels: (N, C, H, W) in [0, 1], of 1 or 3 channels; severity: 1 to 5. What is drawn for image i
    depends on `first` + i, not on the batch that it is in. Raises InputError for anything else.
    """
    change = CORRUPTIONS.get(name)
    if severity not in range(1, 6):
        raise InputError(f"corruption {name}: expected a severity from 1 to 5, found {severity}")
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3) or min(pixels.shape[2:]) < LEAST_SIDE:
        raise InputError(
            f"corruption {name}: expected images (N, 1 or 3, H, W) of at least "
            f"{LEAST_SIDE}x{LEAST_SIDE} pixels, found "
            f"{tuple(pixels.shape)}"
        )
    if pixels.min() < 0 or pixels.max() > 1:
        raise InputError(
            f"corruption {name}: expected pixels in [0, 1], found {pixels.min():.3g} to "
            f"{pixels.max():.3g}; undo their "
            "normalisation first"
        )
    sources = [
        generator("cpu", "corruption", seed, name, severity, first + i) for i in range(len(pixels))
    ]
    changed = change(pixels.detach().cpu().float(), severity - 1, sources)
    return ((changed.clamp(0, 1) * 255).round() / 255).to(pixels)


def _normal(pixels: Tensor, sources: Sequence[Generator]) -> Tensor:
    return torch.stack([torch.randn(pixels.shape[1:], generator=source) for source in sources])


@CORRUPTIONS.register("gaussian_noise")
def gaussian_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Normal noise on each value."""
    return pixels + (0.04, 0.06, 0.08, 0.09, 0.10)[severity] * _normal(pixels, sources)


@CORRUPTIONS.register("shot_noise")
def shot_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Poisson noise of few photons."""
    photons = (500, 250, 100, 75, 50)[severity]
    counted = [
        torch.poisson(image * photons, generator=s)
        for image, s in zip(pixels, sources, strict=True)
    ]
    return torch.stack(counted) / photons


@CORRUPTIONS.register("impulse_noise")
def impulse_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Some values become 0 or 1."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    draw = torch.stack(
        [torch.rand(2, *pixels.shape[1:], generator=source) for source in sources], 1
    )
    return torch.where(draw[0] < share, (draw[1] < 0.5).float(), pixels)


@CORRUPTIONS.register("speckle_noise")
def speckle_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Normal noise in proportion to each value."""
    return pixels + pixels * (0.06, 0.1, 0.12, 0.16, 0.2)[severity] * _normal(pixels, sources)


def _gaussian(sigma: float, radius: int) -> Tensor:
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-at.square() / (2 * sigma**2))
    return (weights / weights.sum()).float()


def _filter(pixels: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """Each channel under a kernel (h, w) of odd sides, which is symmetric."""
    height, width = kernel.shape
    padded = F.pad(pixels, (width // 2, width // 2, height // 2, height // 2), mode=mode)
    channels = pixels.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, height, width), groups=channels)


@CORRUPTIONS.register("gaussian_blur")
def gaussian_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Under a Gaussian, cut off at four standard deviations."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
    weights = _gaussian(sigma, int(4 * sigma + 0.5))
    return _filter(_filter(pixels, weights[None], "replicate"), weights[:, None], "replicate")


@CORRUPTIONS.register("defocus_blur")
def defocus_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Under a disc whose border is smoothed."""
    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
    at = torch.arange(-3, 4)
    disc = (at[:, None].square() + at.square() <= radius**2).float()
    border = _gaussian(smoothing, 1)
    kernel = F.conv2d(
        (disc / disc.sum())[None, None], torch.outer(border, border)[None, None], padding=1
    )[0, 0]
    return _filter(pixels, kernel, "reflect")


@CORRUPTIONS.register("motion_blur")
def motion_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Along a line, at most 45 degrees from the horizontal, under half a Gaussian."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    weights = _gaussian(sigma, 2 * radius)[2 * radius :]
    angle = (
        torch.cat([torch.rand(1, generator=source) for source in sources]) * (math.pi / 2)
        - math.pi / 4
    )
    height, width = pixels.shape[2:]
    rows, columns = torch.arange(height), torch.arange(width)
    image, channel = (
        torch.arange(len(pixels)).view(-1, 1, 1, 1),
        torch.arange(pixels.shape[1]).view(-1, 1, 1),
    )
    total = torch.zeros_like(pixels)
    for step, weight in enumerate(weights / weights.sum()):
        down, right = ((step * f(angle)).round().long()[:, None] for f in (torch.sin, torch.cos))
        y, x = (rows + down).clamp(0, height - 1), (columns + right).clamp(0, width - 1)
        total += weight * pixels[image, channel, y[:, None, :, None], x[:, None, None, :]]
    return total


@CORRUPTIONS.register("zoom_blur")
def zoom_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """The mean of the image and of enlargements of its centre."""
    enlargements = 1 + 0.01 * torch.arange(6 + 5 * severity, dtype=torch.float64)
    total = pixels.clone()
    for factor in enlargements.tolist():
        total += _zoomed(pixels, factor)
    return total / (len(enlargements) + 1)


def _zoomed(pixels: Tensor, factor: float) -> Tensor:
    sides = pixels.shape[2:]
    inner = [math.ceil(side / factor) for side in sides]
    top, left = ((side - part) // 2 for side, part in zip(sides, inner, strict=True))
    centre = pixels[:, :, top : top + inner[0], left : left + inner[1]]
    large = F.interpolate(
        centre, [round(part * factor) for part in inner], mode="bilinear", align_corners=True
    )
    top, left = ((now - side) // 2 for now, side in zip(large.shape[2:], sides, strict=True))
    return large[:, :, top : top + sides[0], left : left + sides[1]]


@CORRUPTIONS.register("brightness")
def brightness(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """More value, in hue, saturation and value."""
    value = pixels.amax(1, keepdim=True)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity]).clamp(max=1)
    return torch.where(value > 0, pixels * brighter / value.clamp_min(1e-12), brighter)


@CORRUPTIONS.register("contrast")
def contrast(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Nearer to the mean of each channel."""
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


@CORRUPTIONS.register("saturate")
def saturate(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Less saturation at severities 1 and 2, more from 3 on.

    Pixels without a hue count as red, as the authors' do; images of one channel stay as they are.
    """
    if pixels.shape[1] == 1:
        return pixels
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[severity]
    value = pixels.amax(1, keepdim=True)
    spread = value - pixels.amin(1, keepdim=True)
    saturation = spread / value.clamp_min(1e-12)
    wanted = (saturation * factor + more).clamp(0, 1)
    # What a channel lacks to the value, in proportion; without a hue (0) that is green and blue.
    red = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    lack = torch.where(spread > 0, (value - pixels) / spread.clamp_min(1e-12), red)
    return value - value * wanted * lack


def _by_file(pixels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Each image as one of Pillow's, changed."""
    shown = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in shown]
    changed = torch.from_numpy(np.stack([np.asarray(change(image)) for image in images]))
    return changed.view(shown.shape).permute(0, 3, 1, 2).float() / 255


@CORRUPTIONS.register("pixelate")
def pixelate(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Smaller, and large again, by areas."""
    share, (height, width) = (0.95, 0.9, 0.85, 0.75, 0.65)[severity], pixels.shape[2:]
    small, box = (int(width * share), int(height * share)), Image.Resampling.BOX
    return _by_file(pixels, lambda image: image.resize(small, box).resize((width, height), box))


@CORRUPTIONS.register("jpeg_compression")
def jpeg_compression(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Saved as a JPEG file of low quality."""
    quality = (80, 65, 58, 50, 40)[severity]

    def saved(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_file(pixels, saved)
