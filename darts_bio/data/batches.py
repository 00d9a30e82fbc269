"""Images as one uint8 tensor on the device, and seeded batches of them.

Batch t of a run is a function of (seed, name of the stream, t) alone, so a checkpoint need not hold
where the data stood. The name keeps streams apart: a search has one for w and one for alpha.

1. Which images: `order.ShuffledOrder` shuffles each epoch by a generator of its own.
2. How each is altered: `Batches.batch` draws crop, mirroring and cutout of the whole batch from a
   generator seeded by ("augment", seed, name, t), on the CPU, so that every device and every
   number of processes sees the same draws.
3. The pixels: the device reads crop and mirror image by a single indexed read, normalizes them, and
   blanks the cutout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from darts_bio.data.order import ShuffledOrder
from darts_bio.errors import InputError
from darts_bio.runtime import Caller, call, fill, generator

Measured = Literal["valid", "test"]
"""Images that are never trained on: those held out of the training images, or the test images."""


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 with their labels (N,) int64.

    >>> split = Split(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6))
    >>> len(split), split[2:4].labels.tolist(), split[torch.tensor([5, 0])].labels.tolist()
    (6, [2, 3], [5, 0])
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        """Return the images and labels that a slice, a mask (N,) or a tensor of numbers selects."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """Return the same images and labels on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation (C,) of each channel, on pixels in [0, 1].

    Called with bytes it returns floats of mean 0 and standard deviation 1:

    >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    >>> normalization = Normalization.of(images)
    >>> normalization.mean.tolist(), normalization.std.tolist()
    ([0.5], [0.5])
    >>> [round(value, 4) for value in normalization(images).flatten().tolist()]
    [-1.0, 1.0]
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Normalization:
        """Measure uint8 images (N, C, H, W), without rounding sums over millions of pixels.

        Bytes take 256 values, so the counts of these say all; sums over them are in float64.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack(
            [channel.flatten().int().bincount(minlength=256) for channel in images.unbind(1)]
        )  # (C, 256)
        shares = counts.double().cpu() / counts[0].sum().item()
        mean = shares @ values
        # The bound keeps a channel of one value from a division by zero.
        std = (shares @ values.square() - mean.square()).clamp_min(1e-12).sqrt()
        return cls(mean.float(), std.float())

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 (N, C, H, W) to float32 of mean 0 and standard deviation 1."""
        # (x / 255 - mean) / std as one multiplication and addition
        scale, shift = 1 / (255 * self.std), -self.mean / self.std
        return torch.addcmul(shift.view(1, -1, 1, 1), images.float(), scale.view(1, -1, 1, 1))

    def to(self, device: torch.device) -> Normalization:
        """Return the same mean and standard deviation on a device."""
        return Normalization(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a training image, drawn for every image by itself.

    Nothing is changed by default; CIFAR's usual recipe is a crop, a flip and cutout:

    >>> Augmentation(crop_padding=4, flip=True, cutout=16)
    Augmentation(crop_padding=4, flip=True, cutout=16)

    Attributes:
        crop_padding: Black pixels that are added on each side before a crop of the image's own size
            is taken from a random place.
        flip: Whether half of the images are mirrored left to right.
        cutout: Side in pixels of a square that is set to 0, the mean, after normalizing; its center
            is anywhere in the image (cutout, arXiv 1708.04552). 0 leaves the image whole.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0


class Batches:
    """An endless sequence of augmented, normalized batches of a split.

    `batch(t)` depends on (seed, name, t) alone. An epoch is `per_epoch` batches; the images of an
    epoch that do not fill a batch are left out.

    >>> split = Split(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10))
    >>> batches = Batches(
    ...     split, 4, Normalization.of(split.images), Augmentation(crop_padding=2, flip=True),
    ...     seed=0, name="train", device=torch.device("cpu"),
    ... )
    >>> x, labels = batches.batch(7)
    >>> batches.per_epoch, tuple(x.shape), x.dtype
    (2, (4, 3, 8, 8), torch.float32)
    >>> torch.equal(labels, batches.batch(7)[1])
    True
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalization: Normalization,
        augmentation: Augmentation,
        *,
        seed: int,
        name: str,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        altered: Callable[[int], Tensor] | None = None,
        run: Caller = call,
    ) -> None:
        """Put the split on the device.

        Args:
            split: The images to draw from.
            batch_size: Images of a batch, of all processes together.
            normalization: How bytes become floats.
            augmentation: What is done to each image at random.
            seed: The seed of order and augmentation.
            name: The name of the stream; streams of other names have other draws.
            device: Where images lie and batches are made.
            share: (i, n) makes `batch` return the i-th of n equal parts of each batch.
            altered: Maps t to the images (N, C, H, W) uint8 of this part of batch t, which then
                take the place of the split's own.
            run: Runs what is computed on the device, and may record it (`training.graphs`); a batch
                is then good until the next one is made.

        Raises:
            InputError: If a batch is larger than the split, or crop padding or cutout as large as
                the images.
        """
        self.run = run
        self._order = ShuffledOrder(len(split), batch_size, seed=seed, name=name, share=share)
        # A row of draws an image, of as many columns: the image's number (1), its shift down and to
        # the right (2), whether it is mirrored (1 or none), the center of its cutout (2 or none).
        self._widths = [1, 2, int(augmentation.flip), 2 * bool(augmentation.cutout)]
        share_size = len(range(batch_size)[self._order.share])
        # One tensor in one place, filled anew for each batch: a recorded computation reads from it.
        self._draws = torch.zeros(share_size, sum(self._widths), dtype=torch.int64, device=device)
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
        self._normalisation, self._augmentation = normalization.to(device), augmentation
        self._padding, self._altered = (augmentation.crop_padding,) * 4, altered
        self._images = torch.nn.functional.pad(split.images, self._padding).to(device)
        self._labels = split.labels.to(device)
        self._size = tuple(split.images.shape[2:])
        self._side = torch.tensor(self._size)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return this part of batch t: images (N, C, H, W) float32 and labels (N,)."""
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
        share_draws = torch.cat(draws, dim=1)[self._order.share]
        numbers = self._order.indices(t).unsqueeze(1)
        fill(self._draws, torch.cat([numbers, share_draws], dim=1))
        altered = [] if self._altered is None else [self._altered(t)]
        batch: tuple[Tensor, Tensor] = self.run(self._from_draws, *altered)
        return batch

    def _from_draws(self, altered: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the batch that the draws describe, of the split's images or of altered ones.

        Args:
            altered: Images (N, C, H, W) uint8, image i in the place of the i-th of the batch.
        """
        augmentation, (height, width) = self._augmentation, self._size
        index, shift, mirrored, center = self._draws.split(self._widths, dim=1)
        index = index.squeeze(1)  # (N, 1) -> (N,)
        images, image_index = self._images, index
        if altered is not None:
            images = torch.nn.functional.pad(altered, self._padding)
            image_index = torch.arange(len(index), device=self._device)
        # Which pixel of the padded image each pixel of the result is: rows (N, H), columns (N, W).
        rows = torch.arange(height, device=self._device) + shift[:, :1]
        columns = torch.arange(width, device=self._device).expand(len(index), -1)
        if augmentation.flip:
            # before the shift, which moves the crop and must not be mirrored with it
            columns = torch.where(mirrored.bool(), width - 1 - columns, columns)
        columns = columns + shift[:, 1:]
        channels = torch.arange(self._images.shape[1], device=self._device)
        # Four indices that broadcast to (N, C, H, W) crop and mirror in one read.
        pixels = images[
            image_index.view(-1, 1, 1, 1),
            channels.view(1, -1, 1, 1),
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        x = self._normalisation(pixels)
        if augmentation.cutout:
            x = x * ~_square(center, augmentation.cutout, height, width)
        return x, self._labels[index]


def _square(center: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return a mask (N, 1, H, W) of the square around each center (N, 2), cut off at the border."""
    first = center - side // 2
    # Place of each row and column within the square: inside from 0 to side - 1.
    rows = torch.arange(height, device=center.device) - first[:, :1]  # (N, H)
    columns = torch.arange(width, device=center.device) - first[:, 1:]  # (N, W)
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)


def in_order(
    split: Split, batch_size: int, normalization: Normalization
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images once, in order, without augmentation; the last batch may be smaller.

    Each batch is images (N, C, H, W) float32, normalized, and labels (N,).

    >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
    >>> [labels.tolist() for _, labels in in_order(split, 2, Normalization.of(split.images))]
    [[0, 1], [2, 3], [4]]
    """
    for start in range(0, len(split), batch_size):
        batch = split[slice(start, start + batch_size)]
        yield normalization(batch.images), batch.labels
