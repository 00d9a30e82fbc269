"""Images as one uint8 tensor on the device, and seeded batches of them.

Batch t of a run is a pure function of (seed, name of the stream, t), so the order of the data needs
no state in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from darts_bio.data.order import ShuffledOrder
from darts_bio.errors import InputError
from darts_bio.runtime import Run, call, fill, generator

Measured = Literal["valid", "test"]
"""Images that are never trained on: those held out of the training images, or the test images."""


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Normalisation:
    """Mean and std of each channel, on pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Normalisation:
        """Measured on uint8 images (N, C, H, W), exactly: from the counts of the 256 values."""
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack(
            [channel.flatten().int().bincount(minlength=256) for channel in images.unbind(1)]
        )
        shares = counts.double().cpu() / counts[0].sum().item()
        mean = shares @ values
        std = (shares @ values.square() - mean.square()).clamp_min(1e-12).sqrt()
        return cls(mean.float(), std.float())

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to float32 of mean 0 and std 1."""
        scale, shift = 1 / (255 * self.std), -self.mean / self.std
        return torch.addcmul(shift.view(1, -1, 1, 1), images.float(), scale.view(1, -1, 1, 1))

    def to(self, device: torch.device) -> Normalisation:
        return Normalisation(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with black, mirror image, and a blanked square (cutout, arXiv
    1708.04552): each drawn for every image by itself.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0


class Batches:
    """An endless sequence of augmented, normalised batches of a split; an epoch leaves out what
    does not fill one.

    `batch(t)` depends on (seed, name, t) alone. With `share` = (i, n) it is the i-th of n equal
    parts of that batch. `altered(t)` may give the images of that part, uint8, in the place of those
    of the split. What is computed on the device is handed to `run`, which may record it
    (`training.graphs`); a batch is then good until the next one. Raises InputError if a batch is
    larger than the split, or the augmentation larger than the images.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalisation: Normalisation,
        augmentation: Augmentation,
        *,
        seed: int,
        name: str,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        altered: Callable[[int], Tensor] | None = None,
        run: Run = call,
    ) -> None:
        self.run = run
        self._order = ShuffledOrder(len(split), batch_size, seed=seed, name=name, share=share)
        self._widths = [1, 2, int(augmentation.flip), 2 * bool(augmentation.cutout)]
        own = len(range(batch_size)[self._order.share])
        self._draws = torch.zeros(own, sum(self._widths), dtype=torch.int64, device=device)
        """A row an image: its number, its shift (2), whether it is mirrored, the center of what is
        cut out (2)."""
        smallest = min(split.images.shape[2:])
        for option, value in (
            ("--cutout", augmentation.cutout),
            ("--crop-padding", augmentation.crop_padding),
        ):
            if value >= smallest:
                raise InputError(
                    f"{option}: expected less than {smallest}, the side of the images, found "
                    f"{value}"
                )
        self.per_epoch = self._order.per_epoch
        self._stream, self._device = (seed, name), device
        self._normalisation, self._augmentation = normalisation.to(device), augmentation
        self._padding, self._altered = (augmentation.crop_padding,) * 4, altered
        self._images = torch.nn.functional.pad(split.images, self._padding).to(device)
        self._labels = split.labels.to(device)
        self._size = tuple(split.images.shape[2:])
        self._side = torch.tensor(self._size)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return batch t: images (N, C, H, W) float32 and labels (N,)."""
        source = generator("cpu", "augment", *self._stream, t)
        augmentation, n = self._augmentation, self._order.batch_size
        # Drawn for the whole batch, so that a part of it does not depend on how many parts there
        # are.
        draws = [torch.randint(2 * augmentation.crop_padding + 1, (n, 2), generator=source)]
        if augmentation.flip:
            draws.append((torch.rand(n, 1, generator=source) < 0.5).long())
        if augmentation.cutout:
            draws.append((torch.rand(n, 2, generator=source) * self._side).long())
        # All in one tensor, which is one copy to a GPU.
        own = torch.cat(draws, dim=1)[self._order.share]
        fill(self._draws, torch.cat([self._order.indices(t).unsqueeze(1), own], dim=1))
        altered = [] if self._altered is None else [self._altered(t)]
        batch: tuple[Tensor, Tensor] = self.run(self._drawn, *altered)
        return batch

    def _drawn(self, altered: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the batch that was drawn, of the split's images or of those that were altered."""
        augmentation, (height, width) = self._augmentation, self._size
        index, shift, mirrored, center = self._draws.split(self._widths, dim=1)
        index = index.squeeze(1)
        images, of_images = self._images, index
        if altered is not None:
            images = torch.nn.functional.pad(altered, self._padding)
            of_images = torch.arange(len(index), device=self._device)
        rows = torch.arange(height, device=self._device) + shift[:, :1]
        columns = torch.arange(width, device=self._device).expand(len(index), -1)
        if augmentation.flip:
            columns = torch.where(mirrored.bool(), width - 1 - columns, columns)
        columns = columns + shift[:, 1:]
        channels = torch.arange(self._images.shape[1], device=self._device).view(1, -1, 1, 1)
        pixels = images[
            of_images.view(-1, 1, 1, 1), channels, rows[:, None, :, None], columns[:, None, None, :]
        ]
        x = self._normalisation(pixels)
        if augmentation.cutout:
            x = x * ~_square(center, augmentation.cutout, height, width)
        return x, self._labels[index]


def _square(centre: Tensor, side: int, height: int, width: int) -> Tensor:
    """(N, 1, H, W) bool: the square of that side around each centre (N, 2), cut off at the
    border.
    """
    first = centre - side // 2
    rows = torch.arange(height, device=centre.device) - first[:, :1]
    columns = torch.arange(width, device=centre.device) - first[:, 1:]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)


def in_order(
    split: Split, batch_size: int, normalisation: Normalisation
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(split), batch_size):
        part = split[slice(start, start + batch_size)]
        yield normalisation(part.images), part.labels
