"""Common corruptions of images in the style of CIFAR-10-C (Hendrycks 2019, arXiv 1903.12261).

They are made here, not read from the authors' files. Severities are those that they publish for
32x32 images (make_cifar_c.py in their repository), and stay so at other sizes. Of their 19 kinds
there are those of noise, blur and digital processing but for glass_blur and elastic_transform, and
brightness, which they count as weather; snow, frost, fog and spatter are not here.

Deviations: draws are our own, so a corrupted image is another sample of the same law; motion_blur
is a line of whole pixels under half a Gaussian, where theirs is ImageMagick's; pixels are rounded,
not cut off, to 256 values.

A corruption is a function (pixels, severity, sources), registered by name in `CORRUPTIONS`.
Severity is counted from 0 there, and stands for the numbers of a tuple at its beginning.
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

from darts_bio.errors import InputError, check_whole
from darts_bio.evaluation.pixels import refuse_other_pixels
from darts_bio.registry import Registry
from darts_bio.runtime import generator

Corrupt = Callable[[Tensor, int, Sequence[Generator]], Tensor]
"""Maps pixels (N, C, H, W) in [0, 1] on the CPU, the severity counted from 0, and a source of draws
for each image, to pixels, which may lie outside [0, 1]."""

CORRUPTIONS: Registry[Corrupt] = Registry("corruption")
"""The corruptions, by the name that --corruptions takes."""

LEAST_SIDE = 8
"""The least side of an image, in pixels."""


def corrupt(name: str, pixels: Tensor, severity: int, seed: int, first: int = 0) -> Tensor:
    """Return corrupted images, rounded to the 256 values that a file holds.

    They are a function of the arguments alone.

    >>> pixels = torch.full((2, 3, 8, 8), 0.5)
    >>> changed = corrupt("gaussian_noise", pixels, severity=3, seed=0)
    >>> second = corrupt("gaussian_noise", pixels[1:], severity=3, seed=0, first=1)
    >>> tuple(changed.shape), torch.equal(changed[1:], second)
    ((2, 3, 8, 8), True)

    Args:
        name: A member of `CORRUPTIONS`.
        pixels: The images (N, C, H, W), in [0, 1], of 1 or 3 channels.
        severity: From 1 to 5, a whole number.
        seed: The seed of what is drawn.
        first: The number of the first image. What is drawn for image i depends on `first` + i, not
            on the batch that it is in.

    Raises:
        InputError: For another name, severity, shape or range of pixels.
    """
    change = CORRUPTIONS.get(name)
    severity = check_whole(f"corruption {name}: severity", severity, most=5)
    refuse_other_pixels(f"corruption {name}", pixels)
    if pixels.shape[1] not in (1, 3) or min(pixels.shape[2:]) < LEAST_SIDE:
        raise InputError(
            f"corruption {name}: expected images (N, 1 or 3, H, W) of at least "
            f"{LEAST_SIDE}x{LEAST_SIDE} pixels, found {tuple(pixels.shape)}"
        )
    if not len(pixels):
        return pixels.clone()
    sources = [
        generator("cpu", "corruption", seed, name, severity, first + i) for i in range(len(pixels))
    ]
    changed = change(pixels.detach().cpu().float(), severity - 1, sources)
    return ((changed.clamp(0, 1) * 255).round() / 255).to(pixels)


def _normal(pixels: Tensor, sources: Sequence[Generator]) -> Tensor:
    """Draw standard normal values (N, C, H, W), each image's from its own source."""
    return torch.stack([torch.randn(pixels.shape[1:], generator=source) for source in sources])


@CORRUPTIONS.register("gaussian_noise")
def gaussian_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Add normal noise to each value.

    >>> changed = corrupt("gaussian_noise", torch.full((1, 3, 64, 64), 0.5), severity=5, seed=0)
    >>> f"{changed.std():.2f}"
    '0.10'
    """
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return pixels + sigma * _normal(pixels, sources)


@CORRUPTIONS.register("shot_noise")
def shot_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Draw each value from a Poisson law, as if few photons were counted.

    >>> changed = corrupt("shot_noise", torch.full((1, 3, 64, 64), 0.5), severity=5, seed=0)
    >>> f"{changed.std():.2f}"  # the square root of 0.5 / 50 photons
    '0.10'
    """
    photons = (500, 250, 100, 75, 50)[severity]
    counts = [
        torch.poisson(image * photons, generator=source)
        for image, source in zip(pixels, sources, strict=True)
    ]
    return torch.stack(counts) / photons


@CORRUPTIONS.register("impulse_noise")
def impulse_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Set some values to 0 or 1 (salt and pepper).

    >>> corrupt("impulse_noise", torch.full((1, 3, 64, 64), 0.2), severity=5, seed=0).unique()
    tensor([0.0000, 0.2000, 1.0000])
    """
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    # (2, N, C, H, W): whether a value is replaced, and by which of the two
    draws = torch.stack(
        [torch.rand(2, *pixels.shape[1:], generator=source) for source in sources], 1
    )
    return torch.where(draws[0] < share, (draws[1] < 0.5).float(), pixels)


@CORRUPTIONS.register("speckle_noise")
def speckle_noise(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Add normal noise in proportion to each value, so black stays black.

    >>> corrupt("speckle_noise", torch.zeros(1, 3, 8, 8), severity=5, seed=0).max()
    tensor(0.)
    """
    return pixels + pixels * (0.06, 0.1, 0.12, 0.16, 0.2)[severity] * _normal(pixels, sources)


def _gaussian(sigma: float, radius: int) -> Tensor:
    """Return the weights (2 * radius + 1,) of a Gaussian, which sum to 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return (weights / weights.sum()).float()


def _filter(pixels: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """Convolve each channel with a symmetric kernel (h, w) of odd sides, padding by `mode`."""
    height, width = kernel.shape
    padded = F.pad(pixels, (width // 2, width // 2, height // 2, height // 2), mode=mode)
    channels = pixels.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, height, width), groups=channels)


@CORRUPTIONS.register("gaussian_blur")
def gaussian_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Blur by a Gaussian, cut off at four standard deviations.

    >>> bar = torch.zeros(1, 1, 9, 9)
    >>> bar[..., 4] = 1.0
    >>> corrupt("gaussian_blur", bar, severity=5, seed=0)[0, 0, 4, 2:7]
    tensor([0.0549, 0.2431, 0.4000, 0.2431, 0.0549])
    """
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
    weights = _gaussian(sigma, int(4 * sigma + 0.5))
    # A Gaussian is separable: along rows, then along columns.
    return _filter(_filter(pixels, weights[None], "replicate"), weights[:, None], "replicate")


@CORRUPTIONS.register("defocus_blur")
def defocus_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Blur by a disk whose border is smoothed, as a lens does that is out of focus.

    >>> point = torch.zeros(1, 1, 9, 9)
    >>> point[..., 4, 4] = 1.0
    >>> corrupt("defocus_blur", point, severity=4, seed=0)[0, 0, 3:6, 3:6]
    tensor([[0.0000, 0.2000, 0.0000],
            [0.2000, 0.2000, 0.2000],
            [0.0000, 0.2000, 0.0000]])
    """
    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
    offsets = torch.arange(-3, 4)
    disk = (offsets[:, None].square() + offsets.square() <= radius**2).float()  # (7, 7)
    border = _gaussian(smoothing, 1)
    smoothing_kernel = torch.outer(border, border)  # (3, 3)
    kernel = F.conv2d((disk / disk.sum())[None, None], smoothing_kernel[None, None], padding=1)[
        0, 0
    ]
    return _filter(pixels, kernel, "reflect")


@CORRUPTIONS.register("motion_blur")
def motion_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Blur along a line, at most 45 degrees from the horizontal, with weights of half a Gaussian.

    >>> pixels = torch.zeros(1, 1, 16, 16)
    >>> pixels[..., 8:] = 1.0
    >>> changed = corrupt("motion_blur", pixels, severity=3, seed=0)
    >>> bool((changed[..., 4:8] > 0).any()), changed[..., 8:].unique()
    (True, tensor([1.]))
    """
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    weights = _gaussian(sigma, 2 * radius)[2 * radius :]  # from the peak on
    draws = torch.cat([torch.rand(1, generator=source) for source in sources])  # (N,)
    angle = draws * (math.pi / 2) - math.pi / 4
    height, width = pixels.shape[2:]
    rows, columns = torch.arange(height), torch.arange(width)
    image = torch.arange(len(pixels)).view(-1, 1, 1, 1)
    channel = torch.arange(pixels.shape[1]).view(-1, 1, 1)
    total = torch.zeros_like(pixels)
    # The mean of copies that are shifted along each image's line, step by step.
    for step, weight in enumerate(weights / weights.sum()):
        down = (step * torch.sin(angle)).round().long()[:, None]  # (N, 1)
        right = (step * torch.cos(angle)).round().long()[:, None]
        y = (rows + down).clamp(0, height - 1)  # (N, H); the border is repeated
        x = (columns + right).clamp(0, width - 1)  # (N, W)
        total += weight * pixels[image, channel, y[:, None, :, None], x[:, None, None, :]]
    return total


@CORRUPTIONS.register("zoom_blur")
def zoom_blur(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Return the mean of the image and of enlargements of its center.

    >>> pixels = torch.zeros(1, 1, 32, 32)
    >>> pixels[..., 4:28, 4:28] = 1.0
    >>> changed = corrupt("zoom_blur", pixels, severity=5, seed=0)
    >>> changed[0, 0, 16, 16], bool(changed[0, 0, 16, 3] > 0)
    (tensor(1.), True)
    """
    enlargements = 1 + 0.01 * torch.arange(6 + 5 * severity, dtype=torch.float64)
    total = pixels.clone()
    for factor in enlargements.tolist():
        total += _zoomed(pixels, factor)
    return total / (len(enlargements) + 1)


def _zoomed(pixels: Tensor, factor: float) -> Tensor:
    """Enlarge the center of images by a factor, so that it fills their (H, W)."""
    sides = pixels.shape[2:]
    inner = [math.ceil(side / factor) for side in sides]
    top, left = ((side - length) // 2 for side, length in zip(sides, inner, strict=True))
    center = pixels[:, :, top : top + inner[0], left : left + inner[1]]
    large = F.interpolate(
        center, [round(length * factor) for length in inner], mode="bilinear", align_corners=True
    )
    # Rounding up has left it a pixel or so too large.
    top, left = ((length - side) // 2 for length, side in zip(large.shape[2:], sides, strict=True))
    return large[:, :, top : top + sides[0], left : left + sides[1]]


@CORRUPTIONS.register("brightness")
def brightness(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Raise the value of a pixel, in hue, saturation and value.

    >>> corrupt("brightness", torch.full((1, 1, 8, 8), 0.1), severity=5, seed=0).unique()
    tensor([0.4000])
    """
    value = pixels.amax(1, keepdim=True)
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity]).clamp(max=1)
    # Scaling all channels alike keeps hue and saturation; black has neither, and becomes gray.
    return torch.where(value > 0, pixels * brighter / value.clamp_min(1e-12), brighter)


@CORRUPTIONS.register("contrast")
def contrast(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Move all values toward the mean of their channel.

    >>> pixels = torch.zeros(1, 1, 8, 8)
    >>> pixels[..., 4:] = 1.0
    >>> corrupt("contrast", pixels, severity=4, seed=0).unique()
    tensor([0.3490, 0.6510])
    """
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


@CORRUPTIONS.register("saturate")
def saturate(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Lower the saturation at severities 1 and 2, and raise it from 3 on.

    Pixels without a hue count as red, as the authors' do; images of one channel stay as they are.

    >>> pixels = torch.tensor([0.8, 0.4, 0.4]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    >>> corrupt("saturate", pixels, severity=3, seed=0)[0, :, 0, 0]
    tensor([0.8000, 0.2000, 0.2000])
    """
    if pixels.shape[1] == 1:
        return pixels
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[severity]
    value = pixels.amax(1, keepdim=True)
    spread = value - pixels.amin(1, keepdim=True)
    saturation = spread / value.clamp_min(1e-12)
    changed = (saturation * factor + more).clamp(0, 1)
    # How far each channel is below the value, from 0 for the largest to 1 for the smallest, says
    # the hue. Where all are equal it is that of red (hue 0): green and blue are the smallest.
    red = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    below = torch.where(spread > 0, (value - pixels) / spread.clamp_min(1e-12), red)
    return value - value * changed * below


def _by_file(pixels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as a function of Pillow images changes them."""
    # (N, C, H, W) -> (N, H, W, C); Pillow takes gray images as (H, W)
    arrays = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]
    changed = torch.from_numpy(np.stack([np.asarray(change(image)) for image in images]))
    # (N, H, W, C) or (N, H, W) -> (N, C, H, W)
    return changed.view(arrays.shape).permute(0, 3, 1, 2).float() / 255


@CORRUPTIONS.register("pixelate")
def pixelate(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Shrink the image and enlarge it again, both by the means of areas.

    >>> ramp = (torch.arange(8.0) / 8).expand(1, 1, 8, 8)
    >>> len(ramp.unique()), len(corrupt("pixelate", ramp, severity=5, seed=0).unique())
    (8, 5)
    """
    share, (height, width) = (0.95, 0.9, 0.85, 0.75, 0.65)[severity], pixels.shape[2:]
    small, box = (int(width * share), int(height * share)), Image.Resampling.BOX
    return _by_file(pixels, lambda image: image.resize(small, box).resize((width, height), box))


@CORRUPTIONS.register("jpeg_compression")
def jpeg_compression(pixels: Tensor, severity: int, sources: Sequence[Generator]) -> Tensor:
    """Save the image as a JPEG file of low quality, and read that.

    >>> changed = corrupt("jpeg_compression", torch.rand(1, 3, 16, 16), severity=5, seed=0)
    >>> tuple(changed.shape)
    (1, 3, 16, 16)
    """
    quality = (80, 65, 58, 50, 40)[severity]

    def saved(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_file(pixels, saved)
