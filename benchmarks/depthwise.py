"""How long the gradients of depthwise convolutions take by oneDNN alone, and in our forms.

    python benchmarks/depthwise.py

Both ways take turns on the same tensors: 64 maps of 64 channels, channels last in memory, one
thread. Prints medians (least to most), and writes benchmarks/results/depthwise-cpu.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, run, timing_device, write_timings

from darts_bio.rules.convolution import convolution_gradients

MAPS, CHANNELS = 64, 64
CONVOLUTIONS = ((5, 1, 16), (5, 1, 8), (5, 1, 4), (3, 1, 2), (3, 2, 8), (5, 2, 8), (5, 2, 16))
"""Window, dilation and the side of the map."""


def ways(window: int, dilation: int, side: int) -> dict[str, Callable[[], Any]]:
    """Return what finds the gradients of a convolution: dW, and dx where pixels are apart."""
    shape = (MAPS, CHANNELS, side, side)
    x, dy = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight, padding = torch.randn(CHANNELS, 1, window, window), dilation * (window // 2)
    geometry = [[1, 1], [padding, padding], [dilation, dilation]]
    wanted = (dilation > 1, True, False)

    def alone() -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, *geometry, False, [0, 0], CHANNELS, wanted
        )

    def here() -> Any:
        return convolution_gradients(dy, x, weight, None, *geometry, CHANNELS, wanted)

    for one, other in zip(alone(), here(), strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
    return {"oneDNN": alone, "here": here}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=15, metavar="N")
    parser.add_argument("--json", type=Path, default=RESULTS / "depthwise-cpu.json", metavar="FILE")
    options = parser.parse_args()
    device = timing_device("cpu")
    torch.manual_seed(0)
    print("| window | oneDNN, ms | here, ms |\n|---|---|---|")
    rows = []
    for window, dilation, side in CONVOLUTIONS:
        seconds: dict[str, list[float]] = {"oneDNN": [], "here": []}
        calls = ways(window, dilation, side)
        for _ in range(options.turns):
            for name, call in calls.items():
                start = time.process_time()
                call()
                seconds[name].append(1000 * (time.process_time() - start))
        apart = f", pixels {dilation} apart," if dilation > 1 else ""
        cells = [f"{window} x {window}{apart} on {side} x {side}"]
        cells += [
            f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in seconds.values()
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        rows.append({"window": window, "dilation": dilation, "side": side, "milliseconds": seconds})
    write_timings(options.json, device, {"maps": MAPS, "channels": CHANNELS, "rows": rows})


if __name__ == "__main__":
    run(main)
