"""Common corruptions: the published severities, seeded draws, and closed forms where there are
any.
"""

from __future__ import annotations

import colorsys
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.evaluation.corruptions import CORRUPTIONS, corrupt


def smooth(n: int = 6, channels: int = 3, side: int = 32) -> Tensor:
    """Images of a few soft shapes, on the grid of 256 values."""
    coarse = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return (
        F.interpolate(coarse, (side, side), mode="bicubic").clamp(0.05, 0.95) * 255
    ).round() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEach:
    @pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8)])
    def test_images_of_256_values_that_depend_on_the_arguments_alone(
        self, name: str, channels: int, side: int
    ) -> None:
        pixels = smooth(channels=channels, side=side)
        before, state = pixels.clone(), torch.get_rng_state()
        for severity in (1, 5):
            changed = corrupt(name, pixels, severity, seed=3)
            assert changed.shape == pixels.shape
            assert 0 <= changed.min() <= changed.max() <= 1
            assert torch.allclose((changed * 255).round() / 255, changed, atol=1e-6)
            assert torch.equal(corrupt(name, pixels, severity, seed=3), changed)
            parts = [corrupt(name, pixels[i : i + 2], severity, seed=3, first=i) for i in (0, 2, 4)]
            assert torch.equal(torch.cat(parts), changed)
        assert torch.equal(pixels, before)
        assert torch.equal(torch.get_rng_state(), state)

    def test_more_severe_is_further_from_the_image(self, name: str) -> None:
        pixels = smooth()
        errors = [
            (corrupt(name, pixels, severity, seed=0) - pixels).square().mean().item()
            for severity in range(1, 6)
        ]
        assert errors[0] > 0
        if name == "saturate":  # first less of it, then more
            assert errors[0] < errors[1]
            assert errors[2] < errors[3] < errors[4]
        else:
            assert errors == sorted(errors)


class TestClosedForms:
    def test_noise(self) -> None:
        gray = torch.full((1, 3, 256, 256), 0.5)
        for severity, std in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
            assert corrupt("gaussian_noise", gray, severity, 0).std().item() == pytest.approx(
                std, rel=0.01
            )
        for severity, std in enumerate((0.06, 0.1, 0.12, 0.16, 0.2), 1):
            assert corrupt("speckle_noise", gray, severity, 0).std().item() == pytest.approx(
                std / 2, rel=0.01
            )
        for severity, photons in enumerate((500, 250, 100, 75, 50), 1):
            found = corrupt("shot_noise", gray, severity, 0)
            assert found.mean().item() == pytest.approx(0.5, abs=0.001)
            assert found.std().item() == pytest.approx((0.5 / photons) ** 0.5, rel=0.02)
        for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
            found = corrupt("impulse_noise", gray, severity, 0)
            assert ((found == 0) | (found == 1)).float().mean().item() == pytest.approx(
                share, rel=0.05
            )
            assert (found == 1).float().mean().item() == pytest.approx(share / 2, rel=0.05)

    def test_gaussian_blur_and_zoom_are_scipys(self) -> None:
        pixels = smooth()
        for severity, sigma in enumerate((0.4, 0.6, 0.7, 0.8, 1.0), 1):
            expected = gaussian_filter(
                pixels.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4
            )
            assert (
                np.abs(corrupt("gaussian_blur", pixels, severity, 0).numpy() - expected).max()
                < 0.51 / 255
            )
        image, total = pixels.numpy(), pixels.numpy().astype(np.float64)
        for factor in np.arange(1, 1.0599, 0.01):
            inner = int(np.ceil(32 / factor))
            top = (32 - inner) // 2
            large = zoom(
                image[:, :, top : top + inner, top : top + inner], (1, 1, factor, factor), order=1
            )
            top = (large.shape[2] - 32) // 2
            total += large[:, :, top : top + 32, top : top + 32]
        assert np.abs(corrupt("zoom_blur", pixels, 1, 0).numpy() - total / 7).max() < 0.51 / 255

    def test_a_disc_keeps_what_is_flat_and_spreads_a_point(self) -> None:
        point = torch.zeros(1, 3, 33, 33)
        point[:, :, 16, 16] = 1
        for severity in range(1, 6):
            spread = corrupt("defocus_blur", point, severity, 0)
            assert spread.sum((2, 3)) == pytest.approx(torch.ones(1, 3).numpy(), abs=0.05)
            assert torch.equal(spread, spread.flip(2))
            assert torch.equal(spread, spread.transpose(2, 3))
        # Severity 5 is a disc of 9 pixels, but little smoothed: 0.1 of a pixel.
        assert corrupt("defocus_blur", point, 5, 0)[0, 0, 15:18, 15:18].mean() == pytest.approx(
            1 / 9, abs=0.01
        )

    def test_motion_blurs_along_a_line(self) -> None:
        point = torch.zeros(40, 1, 33, 33)
        point[:, :, 16, 16] = 1
        blurred = corrupt("motion_blur", point, 5, 0)
        assert blurred.sum((1, 2, 3)).numpy() == pytest.approx(np.ones(40), abs=0.05)
        lit = (blurred > 0).nonzero()
        reached = lit[:, 3] - 16
        assert reached.min() >= -18
        assert (
            reached.max() == 0
        )  # the line is read towards the right, so that a point spreads to the left
        assert ((lit[:, 2] - 16).abs() <= reached.abs() + 1).all()

    def test_colors(self) -> None:
        pixels = smooth(2, side=8)
        pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0.0, 0.4

        def by_hsv(severity: int, name: str) -> Tensor:
            factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[
                severity - 1
            ]
            brighter = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
            found = torch.empty_like(pixels)
            for i in range(len(pixels)):
                for y in range(8):
                    for x in range(8):
                        h, s, v = colorsys.rgb_to_hsv(*pixels[i, :, y, x].tolist())
                        if name == "saturate":
                            s = min(1.0, s * factor + more)
                        else:
                            v = min(1.0, v + brighter)
                        found[i, :, y, x] = torch.tensor(colorsys.hsv_to_rgb(h, s, v))
            return found

        for name in ("saturate", "brightness"):
            for severity in (1, 3, 5):
                found = corrupt(name, pixels, severity, 0)
                assert (found - by_hsv(severity, name)).abs().max() < 0.51 / 255

    def test_grey_images(self) -> None:
        pixels = smooth(channels=1)
        assert torch.equal(corrupt("saturate", pixels, 5, 0), pixels)
        assert torch.allclose(
            corrupt("brightness", pixels, 3, 0), (pixels + 0.15).clamp(max=1), atol=0.51 / 255
        )

    def test_contrast(self) -> None:
        pixels = smooth()
        mean = pixels.mean((2, 3), keepdim=True)
        for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
            expected = mean + factor * (pixels - mean)
            assert (corrupt("contrast", pixels, severity, 0) - expected).abs().max() < 0.51 / 255

    def test_files(self) -> None:
        pixels = smooth()
        shown = Image.fromarray((pixels[1] * 255).round().byte().permute(1, 2, 0).numpy())
        file = io.BytesIO()
        shown.save(file, "JPEG", quality=40)
        small = shown.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        for name, expected in (("jpeg_compression", Image.open(file)), ("pixelate", small)):
            found = (corrupt(name, pixels, 5, 0)[1] * 255).round().byte().permute(1, 2, 0)
            assert np.array_equal(found.numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("name", "pixels", "severity", "expected"),
    [
        ("fog", smooth(), 1, "unknown corruption 'fog'"),
        (
            "contrast",
            smooth(),
            6,
            "contrast: severity: expected a whole number from 1 to 5, found 6",
        ),
        ("contrast", smooth(), 1.0, "contrast: severity: expected a whole number from 1 to 5"),
        (
            "contrast",
            smooth(channels=2),
            1,
            r"expected images \(N, 1 or 3, H, W\) of at least 8x8 pixels, found \(6, 2",
        ),
        ("contrast", smooth(side=7), 1, r"at least 8x8 pixels, found \(6, 3, 7, 7\)"),
        (
            "contrast",
            smooth() * 2 - 1,
            1,
            r"expected pixels in \[0, 1\], found -.*; divide bytes by 255, undo",
        ),
        ("contrast", smooth() * torch.nan, 1, r"expected pixels in \[0, 1\], found nan to nan"),
        ("contrast", smooth() > 0.5, 1, "expected pixels of float32 or float64, found torch.bool"),
        ("contrast", smooth().round().byte(), 1, "float64, found torch.uint8; convert them"),
    ],
)
def test_refused(name: str, pixels: Tensor, severity: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        corrupt(name, pixels, severity, 0)


def test_of_no_image_there_is_nothing_to_corrupt() -> None:
    assert corrupt("contrast", smooth()[:0], 1, 0).shape == (0, 3, 32, 32)
