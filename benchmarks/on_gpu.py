"""Every figure that needs a GPU, one after the other: tests, layouts, steps, a search, attacks, a training on CIFAR-10.

    python benchmarks/on_gpu.py --data-dir data --minutes 9        again with the same --out until nothing is left
    python benchmarks/on_gpu.py --device cpu --quick               tries the script itself, at the smallest sizes

What is done stays done: finished stages are kept in --out (on_gpu.json beside the files that they wrote), and the
search and the training are stopped in good order at the end of the time and go on at the next call. Prints a table of
what was measured beside what was expected before anything had been. The expectations are estimates for a card of the
H200's class: a step at full size moves about 405 GB in float32, 94 ms at 4.3 TB/s; a launch takes about 5 us.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import run, stopwatch, timing_device

from darts_bio.errors import InputError
from darts_bio.runtime import hardware

HERE = Path(__file__).parent
ROOT = HERE.parent
STEP_BYTES = 405e9
"""What a step at full size moves in float32, counted on the batched supernet."""

FULL_BATCH = 64

EXPECTED = {
    "tests": "all green",
    "layouts": "bf16 channels last the fastest; otherwise --amp bf16 is of no use here",
    "small": "replayed >= 8 x the reference",
    "large": "replayed >= 8 x the reference",
    "full": "float32: replayed about 0.1 s a step, 1 to 1.5 x the memory-bound floor",
    "full-bf16": "about 0.05 to 0.07 s a step, 1,800 to 2,500 images/s",
    "training": "each rule of the feedback family <= 1.05 x bp",
    "speed": ">= 3 x the plain loop",
    "search": "50 epochs in 17 to 23 minutes",
    "masking": "by the true gradient no network is robust, by the rule's fa, dfa and the mixture seem so",
    "fast": "test accuracy less than 0.5 points below that of --protocol darts (97.24 % published for DARTS_V2)",
}
LONG = ("search", "fast")
"""Stages that have a run folder of their name, and go on from it. (masking sees to that itself.)"""


def commands(arguments: argparse.Namespace, out: Path) -> dict[str, list[str]]:
    """The stages that are scripts."""

    def run_folder(name: str) -> list[str]:
        return ["--out", str(out / name), "--resume", "auto"]

    quick, device = arguments.quick, ["--device", arguments.device]
    step = [sys.executable, str(HERE / "search_step.py"), *device, "--nets", "reference,batched,low memory,replayed"]
    tiny = ["--channels", "4", "--layers", "3", "--batch-size", "2", "--image-size", "8", "--steps", "2"]
    tiny += ["--space", "darts(nodes=1)"]
    large = ["--channels", "16", "--layers", "8", "--image-size", "32"]
    full = [*large, "--batch-size", str(FULL_BATCH), "--steps", "10"]
    sizes = {"small": [], "large": large, "full": full, "full-bf16": [*full, "--amp", "bf16"]}
    stages = {"tests": [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", str(ROOT / "tests" / "test_graphs.py")]}
    for name, own in sizes.items():
        stages[name] = [*step, *(tiny if quick else own), "--json", str(out / f"search_step-{name}.json")]
    protocol = ["--channels", "36", "--layers", "20", "--batch-size", "96"]
    small = ["--channels", "4", "--layers", "3", "--batch-size", "4", "--steps", "4"]
    stages["training"] = [sys.executable, str(HERE / "training_step.py"), *device]
    stages["training"] += [*(small if quick else protocol), "--json", str(out / "training_step.json")]
    search = [sys.executable, str(ROOT / "search" / "run.py"), *device, *run_folder("search")]
    cifar = ["--dataset", "cifar10", "--data-dir", arguments.data_dir, "--amp", "bf16"]
    cifar += ["--space", "darts(layout=paper)"]
    stages["search"] = [*search, *(["--epochs", "2"] if quick else cifar)]
    stages["speed"] = [sys.executable, str(HERE / "training_speed.py"), *device, "--data-dir", arguments.data_dir]
    stages["speed"] += [*(small if quick else ["--amp", "bf16", "--steps", "30", "--workers", "8"])]
    stages["speed"] += ["--json", str(out / "training_speed.json")]
    fast = [sys.executable, str(ROOT / "evaluate" / "train_cifar.py"), *device, "--genotype", "darts_v2"]
    protocol = ["--dataset", "cifar10", "--data-dir", arguments.data_dir, "--protocol", "fast"]
    stages["fast"] = [*fast, *run_folder("fast"), *(["--epochs", "2"] if quick else protocol)]
    masking = [sys.executable, str(HERE / "masking.py"), *device, "--out", str(out / "masking")]
    masking += ["--results", str(out / "masking-report")]
    tiny = ["--dataset", "digits", "--channels", "4", "--epochs", "2", "--train-images", "500", "--images", "20"]
    tiny += ["--seeds", "1", "--networks", "bp,fa"]
    whole = ["--channels", "32", "--epochs", "30", "--train-images", "50000", "--images", "1000"]
    stages["masking"] = [*masking, *(tiny if quick else [*whole, "--data-dir", arguments.data_dir])]
    return stages


def layouts(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds, forward and backward, of a depthwise convolution as wide as a stacked one, by type and layout."""
    device = timing_device(arguments.device)
    now = stopwatch(device)
    shape = (2, 32, 8, 8) if arguments.quick else (64, 320, 32, 32)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for size in (3, 5):
                x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
                weight = torch.randn(shape[1], 1, size, size, device=device, dtype=dtype, requires_grad=True)
                seconds = []
                for _ in range(13):
                    start = now()
                    F.conv2d(x, weight, padding=size // 2, groups=shape[1]).sum().backward()
                    seconds.append(now() - start)
                name = f"{dtype} {layout} {size}x{size}".replace("torch.", "")
                found[name] = 1000 * statistics.median(seconds[3:])
    return found


def run_for(command: list[str], seconds: float) -> int:
    """The command's exit code; after so many seconds it is asked to stop, and given a minute for it."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def measured(name: str, state: dict[str, Any], out: Path) -> str:
    """One line about a finished stage."""
    if name == "layouts":
        return "; ".join(f"{key}: {value:.2f} ms" for key, value in state["milliseconds"].items())
    if name.startswith(("small", "large", "full")):
        result = json.loads((out / f"search_step-{name}.json").read_text(encoding="utf-8"))
        seconds, ratio = result["nets"]["replayed"]["median_s"], result["ratio_to_reference"]["replayed"]
        line = f"replayed {ratio:.2f} x the reference, {seconds:.4f} s a step"
        if result["batch_size"] == FULL_BATCH:
            line += (
                f", {2 * FULL_BATCH / seconds:.0f} images/s, {STEP_BYTES / seconds / 1e12:.2f} TB/s if all were float32"
            )
        return line
    if name == "training":
        ratios = json.loads((out / "training_step.json").read_text(encoding="utf-8"))["median_ratio_to_bp"]
        return ", ".join(f"{rule} {ratio:.3f}" for rule, ratio in ratios.items())
    if name == "speed":
        rates = json.loads((out / "training_speed.json").read_text(encoding="utf-8"))["images_per_second"]
        return ", ".join(f"{training}: {rate:.0f} images/s" for training, rate in rates.items())
    return f"{state['seconds'] / 60:.1f} minutes in {state['calls']} call(s), exit code {state['code']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", metavar="NAME")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="where CIFAR-10 lies")
    parser.add_argument("--out", default="runs/on-gpu", metavar="DIR", help="results, kept between calls")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="N", help="no stage goes on for longer than this")
    parser.add_argument("--only", metavar="A,B,...", help=f"of {', '.join(EXPECTED)}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to try the script")
    arguments = parser.parse_args()
    device = timing_device(arguments.device)
    wanted = arguments.only.split(",") if arguments.only else list(EXPECTED)
    if unknown := [name for name in wanted if name not in EXPECTED]:
        raise InputError(f"--only: expected some of {', '.join(EXPECTED)}, found {', '.join(unknown)}")
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    record, end = out / "on_gpu.json", time.monotonic() + 60 * arguments.minutes
    states: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    stages = commands(arguments, out)
    for name in wanted:
        left = end - time.monotonic()
        if states.get(name, {}).get("done") or left < 10:
            continue
        if name == "layouts":
            states[name] = {"done": True, "milliseconds": layouts(arguments)}
        else:
            command = stages[name]
            print(f"\n$ {shlex.join(command)}", flush=True)
            start, before = time.monotonic(), states.get(name, {"seconds": 0.0, "calls": 0})
            code = run_for(command, left)
            states[name] = {
                "done": code == 0,
                "code": code,
                "seconds": before["seconds"] + time.monotonic() - start,
                "calls": before["calls"] + 1,
            }
        states[name]["hardware"] = hardware(device)
        record.write_text(json.dumps(states, indent=2) + "\n", encoding="utf-8")
    print("\n| stage | | measured | expected |\n|---|---|---|---|")
    for name in wanted:
        state = states.get(name)
        done = "done" if state and state["done"] else "open"
        if state and (state["done"] or name in LONG):
            line = measured(name, state, out)
        else:
            line = f"exit code {state['code']}" if state else "not begun"
        print(f"| {name} | {done} | {line} | {EXPECTED[name]} |")


if __name__ == "__main__":
    run(main)
