"""The later stages of on_gpu.py: what steps of searches and trainings cost, where the time goes, a
whole search.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_data
import torch
import torch.nn.functional as F
from gpu_budget import Item
from gpu_workers import Measure, Order, Place
from measuring import median_seconds, stopwatch
from search_step import Step
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training_step import random_images

import darts_bio
from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.rules import RULES
from darts_bio.runtime import select_device
from darts_bio.spaces import load_genotype
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

SEARCHED_RULES = ("fa", "usf", "brsf", "frsf")
STEP_NEEDED_S = 0.055
"""A search of 50 epochs is begun where a step takes no longer than this; else one of FEW_EPOCHS."""

EPOCHS, FEW_EPOCHS = 50, 5
STEP_ITEM = "b: search bf16 replayed"
TOP = 40


def search_sizes(small: bool) -> dict[str, Any]:
    """The protocol of DARTS on CIFAR-10, in the paper's space."""
    if small:
        return {
            "space": "darts(nodes=1)",
            "channels": 4,
            "layers": 3,
            "batch_size": 4,
            "image_size": 8,
        }
    return {
        "space": "darts(layout=paper)",
        "channels": 16,
        "layers": 8,
        "batch_size": 64,
        "image_size": 32,
    }


def _search(place: Place, **options: Any) -> Search:
    sizes = search_sizes(place.small)
    side = sizes.pop("image_size")
    config = SearchConfig(rules=SEARCHED_RULES, crop_padding=side // 8, **sizes, **options)
    search = Search(config, random_images(4 * config.batch_size, side), select_device(place.device))
    search.begin_epoch(0)
    return search


def step_times(
    step: Callable[[int], Any], device: torch.device, count: int, first: int = 3
) -> dict[str, Any]:
    """Time `count` steps one by one, and as many that nobody waits for, after `first` ones, which
    record and allocate.

    `host_s` is CPU time of the thread that launches a step's kernels; peak memory is that after the
    first steps.
    """
    now, start = stopwatch(device), time.perf_counter()
    for t in range(first):
        step(t)
    now()
    found: dict[str, Any] = {"first_steps_s": time.perf_counter() - start}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, host = [], []
    for t in range(first, first + count):
        begin, cpu = now(), time.thread_time()
        step(t)
        host.append(time.thread_time() - cpu)
        seconds.append(now() - begin)
    begin = now()
    for t in range(first + count, first + 2 * count):
        step(t)
    found |= {
        "running_s": (now() - begin) / count,
        "median_s": statistics.median(seconds),
        "seconds": seconds,
    }
    found["host_s"] = statistics.median(host)
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return found


def search_speed(
    place: Place, order: Order, *, amp: str, graphs: bool, memory: str = "normal"
) -> dict[str, Any]:
    """Time steps of the search at the protocol's size."""
    start = time.perf_counter()
    search = _search(place, amp=amp, graphs=graphs, memory=memory)
    built = time.perf_counter() - start
    found = step_times(search.step, search.device, 2 if place.small else 20)
    return {"built_s": built, "images_per_step": search.images_per_step, **found}


def reference_speed(place: Place, order: Order) -> dict[str, Any]:
    """Time five steps of the plain supernet, one module a candidate."""
    sizes = argparse.Namespace(
        **search_sizes(place.small), rules=",".join(SEARCHED_RULES), amp="none"
    )
    step = Step("reference", sizes, select_device(place.device))
    return step_times(lambda t: step(), step.device, 2 if place.small else 5, first=1)


def kernels(place: Place, order: Order, *, amp: str) -> dict[str, Any]:
    """List the kernels of one replayed step by the time that they take, all calls of a name
    together.
    """
    search = _search(place, amp=amp)
    on_gpu = search.device.type == "cuda"
    for t in range(3):
        search.step(t)
    now = stopwatch(search.device)
    begin = now()
    search.step(3)
    found: dict[str, Any] = {"step_s": now() - begin}
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        search.step(4)
        now()
    rows: list[dict[str, Any]] = []
    for event in profiler.key_averages():
        if str(event.device_type).endswith("CUDA") == on_gpu:
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            rows.append({"kernel": event.key[:160], "calls": event.count, "us": spent})
    rows.sort(key=lambda row: -row["us"])
    if not rows:
        return found | {
            "missing": "torch.profiler saw no kernel: CUPTI is not to be had on this machine"
        }
    copied = ("Memcpy", "Memset")
    found["kernels"] = sum(row["calls"] for row in rows if not row["kernel"].startswith(copied))
    found["copies"] = sum(row["calls"] for row in rows if row["kernel"].startswith(copied))
    return found | {
        "kernels_s": sum(row["us"] for row in rows) / 1e6,
        "names": len(rows),
        "top": rows[:TOP],
    }


def depthwise(place: Place, order: Order) -> dict[str, Any]:
    """Time depthwise convolutions as wide as the supernet's stacked ones: 4 rules on the 4 edges
    that leave an input.

    Bytes are those that have to be read and written once.
    """
    device, rows = select_device(place.device), []
    for n, channels, side in (
        [(2, 8, 8)] if place.small else [(64, 256, 32), (64, 512, 16), (64, 1024, 8)]
    ):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.channels_last, torch.contiguous_format):
                for kernel in ((3, 3), (5, 5), (7, 1)):
                    x, dy = (
                        torch.randn(n, channels, side, side, device=device, dtype=dtype).contiguous(
                            memory_format=layout
                        )
                        for _ in range(2)
                    )
                    weight = torch.randn(channels, 1, *kernel, device=device, dtype=dtype)
                    padding = [size // 2 for size in kernel]

                    def backward(
                        x: Tensor, dy: Tensor, w: Tensor, padding: list[int], mask: list[bool]
                    ) -> Any:
                        return torch.ops.aten.convolution_backward(
                            dy, x, w, None, [1, 1], padding, [1, 1], False, [0, 0], len(w), mask
                        )

                    passes = {
                        "forward": partial(F.conv2d, x, weight, padding=padding, groups=channels),
                        "input gradient": partial(
                            backward, x, dy, weight, padding, [True, False, False]
                        ),
                        "weight gradient": partial(
                            backward, x, dy, weight, padding, [False, True, False]
                        ),
                    }
                    row: dict[str, Any] = {
                        "shape": list(x.shape),
                        "window": "x".join(map(str, kernel)),
                        "type": str(dtype).removeprefix("torch."),
                        "layout": "NHWC" if layout == torch.channels_last else "NCHW",
                    }
                    for name, call in passes.items():
                        seconds = median_seconds(call, device)
                        row[name] = {"us": 1e6 * seconds, "gb_s": 2 * x.nbytes / seconds / 1e9}
                    rows.append(row)
    return {"rows": rows}


def products(place: Place, order: Order) -> dict[str, Any]:
    """Time the pointwise convolutions of the supernet as batched products: 16 members of one
    channel group each.

    The weight's gradient sums over all pixels, K = N*H*W of them, into 16 small matrices. It is
    also timed with the pixels cut into parts whose sums are added, which gives the GPU more blocks
    to work on at once.
    """
    device, rows = select_device(place.device), []
    for pixels, c in [(64, 4)] if place.small else [(65_536, 16), (16_384, 32), (4_096, 64)]:
        for dtype in (torch.float32, torch.bfloat16):
            # Members lie side by side along the channels, as in `rules.functional.rows`.
            x, dy = (
                torch.randn(pixels, 16, c, device=device, dtype=dtype).transpose(0, 1)
                for _ in range(2)
            )
            weight = torch.randn(16, c, c, device=device, dtype=dtype)
            moved = 2 * x.numel() * x.element_size()
            calls: dict[str, Callable[[], Any]] = {
                "forward": partial(torch.bmm, x, weight),
                "weight gradient": partial(torch.bmm, dy.transpose(1, 2), x),
            }
            for parts in (8, 32):
                calls[f"weight gradient in {parts} parts"] = partial(_in_parts, dy, x, parts)
            row: dict[str, Any] = {
                "members": 16,
                "pixels": pixels,
                "channels": c,
                "type": str(dtype)[6:],
            }
            for name, call in calls.items():
                seconds = median_seconds(call, device)
                row[name] = {"us": 1e6 * seconds, "gb_s": moved / seconds / 1e9}
            rows.append(row)
    return {"rows": rows}


def _in_parts(dy: Tensor, x: Tensor, parts: int) -> Tensor:
    """(M, K, C) twice to (M, C, C): the sum over K, of `parts` products."""
    a, b = (value.unflatten(1, (parts, -1)).flatten(0, 1) for value in (dy, x))
    return torch.bmm(a.transpose(1, 2), b).unflatten(0, (-1, parts)).sum(1)


def norms(place: Place, order: Order) -> dict[str, Any]:
    """Time batch norms in training, forward and backward, channels last. Bytes: each tensor read or
    written once.
    """
    device, rows = select_device(place.device), []
    for n, channels, side in (
        [(2, 8, 8)] if place.small else [(64, 256, 32), (64, 512, 16), (64, 1024, 8)]
    ):
        for dtype in (torch.float32, torch.bfloat16):
            x, dy = (
                torch.randn(n, channels, side, side, device=device, dtype=dtype).contiguous(
                    memory_format=torch.channels_last
                )
                for _ in range(2)
            )
            x.requires_grad_()
            gain, shift = (
                torch.ones(channels, device=device, requires_grad=True) for _ in range(2)
            )
            mean, variance = (
                torch.zeros(channels, device=device),
                torch.ones(channels, device=device),
            )
            forward = partial(F.batch_norm, x, mean, variance, gain, shift, training=True)
            y = forward()
            backward = partial(torch.autograd.grad, y, [x, gain, shift], dy, retain_graph=True)
            row: dict[str, Any] = {
                "shape": list(x.shape),
                "type": str(dtype).removeprefix("torch."),
            }
            # The statistics need x before it can be normalized, and the sums both tensors before dx
            # is written.
            for name, call, passes in (("forward", forward, 3), ("backward", backward, 5)):
                seconds = median_seconds(call, device)
                row[name] = {"us": 1e6 * seconds, "gb_s": passes * x.nbytes / seconds / 1e9}
            rows.append(row)
    return {"rows": rows}


def _training(place: Place, rule: str | None, *, amp: str, adversarial: str = "") -> Retraining:
    """A training of the shipped genotype by the protocol; under one rule, or with None under its
    own.
    """
    genotype = load_genotype("bionas_darts")
    sizes: dict[str, Any] = {"channels": 36, "layers": 20, "batch_size": 96}
    if place.small:
        sizes = {
            "channels": 4,
            "layers": 3,
            "batch_size": 4,
            "auxiliary": 0.0,
            "cutout": 0,
            "crop_padding": 1,
        }
    config = RetrainConfig(genotype="bionas_darts", amp=amp, adversarial=adversarial, **sizes)
    data = random_images(2 * config.batch_size, 8 if place.small else 32)
    chosen = genotype if rule is None else genotype.with_rule(rule)
    training = Retraining.of_genotype(config, chosen, data, select_device(place.device))
    training.begin_epoch(config.epochs // 2)  # drop path at half its strength
    return training


def training_speed(
    place: Place, order: Order, *, amp: str, rules: tuple[str | None, ...]
) -> dict[str, Any]:
    """Time steps of trainings under several rules (None: the genotype's own), which take turns,
    beside bp.

    A rule whose first steps fail is named among the errors, and the others go on.
    """
    device = select_device(place.device)
    now, start = stopwatch(device), time.perf_counter()
    tasks: dict[str, Retraining] = {}
    errors: dict[str, str] = {}
    for rule in ("bp", *rules):
        name = rule or "its own"
        try:
            task = _training(place, rule, amp=amp)
            for t in range(3):  # which record and allocate
                task.step(t)
            now()
        except Exception as error:
            if rule == "bp":
                raise
            errors[name] = f"{type(error).__name__}: {error}"[:300]
        else:
            tasks[name] = task
    names = list(tasks)
    found: dict[str, Any] = {"first_steps_s": time.perf_counter() - start, "errors": errors}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for t in range(3, 5 if place.small else 18):
        for name in names[t % len(names) :] + names[: t % len(names)]:
            begin = now()
            tasks[name].step(t)
            seconds[name].append(now() - begin)
    found["median_s"] = {name: statistics.median(values) for name, values in seconds.items()}
    found["ratio_to_bp"] = {
        name: statistics.median(
            own / bp for own, bp in zip(seconds[name], seconds["bp"], strict=True)
        )
        for name in names[1:]
    }
    return found | {"seconds": seconds, "batch_size": tasks["bp"].images_per_step}


def adversarial_speed(place: Place, order: Order, *, amp: str) -> dict[str, Any]:
    """Time steps against examples of seven steps of PGD, under the genotype's rules."""
    training = _training(place, None, amp=amp, adversarial="pgd(steps=7)")
    return step_times(training.step, training.device, 2 if place.small else 6, first=2)


class Clock(Listener):
    """Hears how fast a search goes, and ends it in good order once its seconds are over."""

    def __init__(self, seconds: float) -> None:
        self.began, self.end = time.monotonic(), time.monotonic() + seconds
        self.at_step: list[float] = []
        self.marks: list[float] = []
        self.numbers: list[Numbers] = []
        self._ends: threading.Timer | None = None

    def on_start(self, progress: Progress) -> None:
        """From here on a signal ends the run in good order."""
        left = max(0.0, self.end - time.monotonic())
        self._ends = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
        self._ends.daemon = True
        self._ends.start()

    def on_step(self, progress: Progress, images: int) -> None:
        self.at_step.append(time.monotonic())

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self.marks.append(time.monotonic())
        self.numbers.append(numbers)

    def stop(self) -> None:
        if self._ends is not None:
            self._ends.cancel()


def whole_search(place: Place, order: Order) -> dict[str, Any]:
    """Search pairs on CIFAR-10 in bf16, from the checkpoint where there is one, for the seconds
    that are granted.

    All epochs where a step is fast enough, else a few, from which the whole is projected. Where
    there is no CIFAR-10 the images are random, of the same number and size, and the epochs few.
    """
    data, words = gpu_data.training_images(place.keep, place.small)
    epochs = (
        EPOCHS
        if order.needed["running_s"] <= STEP_NEEDED_S and words == gpu_data.NAME
        else FEW_EPOCHS
    )
    epochs = order.before.get("epochs", epochs)
    sizes = search_sizes(place.small)
    sizes.pop("image_size")
    out = place.keep / f"search-{'-'.join(words.split())}-{epochs}"
    clock = Clock(order.seconds)
    found = darts_bio.search(
        data,
        out=str(out),
        resume="auto",
        device=place.device,
        amp="bf16",
        rules=SEARCHED_RULES,
        epochs=epochs,
        progress=False,
        tensorboard=False,
        listener=clock,
        **sizes,
    )
    clock.stop()
    # The first steps of a call record.
    pace = [
        later - earlier
        for earlier, later in zip(clock.at_step[3:], clock.at_step[4:], strict=False)
    ]
    result: dict[str, Any] = {
        "data": words,
        "epochs": epochs,
        "step": found.step,
        "folder": out.name,
    }
    result["epochs_done"], result["unfinished"] = len(found.epochs), not found.finished
    result["seconds"] = order.before.get("seconds", 0.0) + time.monotonic() - clock.began
    result["steps_an_epoch"] = len(data.train) // 2 // int(sizes["batch_size"])
    result["numbers"] = [dict(numbers) for numbers in found.epochs]
    if pace:
        result["s_a_step"] = statistics.mean(pace)
        result["whole_search_s"] = EPOCHS * result["steps_an_epoch"] * result["s_a_step"]
    if len(clock.marks) > 1:
        result["s_an_epoch"] = (clock.marks[-1] - clock.marks[0]) / (len(clock.marks) - 1)
        result["whole_search_s"] = EPOCHS * result["s_an_epoch"]
    if found.finished:
        result["genotype"] = str(found.genotype)
    return order.before | result


def rule_items() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Trainings under every rule by name: precision, and as many rules as fit into the GPU's memory
    beside bp.
    """
    others = [rule for rule in RULES if rule != "bp"]
    threes = [tuple(others[i : i + 3]) for i in range(0, len(others), 3)]
    found = {f"c: training bf16, {' '.join(rules)}": ("bf16", rules) for rules in threes}
    return found | {f"c: training fp32, {' '.join(threes[0])}": ("none", threes[0])}


SEARCH_ITEM = Item("d: search of pairs on CIFAR-10", 540, least=45, after=STEP_ITEM)


def measures(small: bool) -> dict[Item, Measure]:
    """List the items of the stages, in order of worth."""
    found: dict[Item, Measure] = {
        Item(STEP_ITEM, 30): partial(search_speed, amp="bf16", graphs=True),
        Item("b: search fp32 replayed", 30): partial(search_speed, amp="none", graphs=True),
        Item("b: kernels bf16", 30): partial(kernels, amp="bf16"),
        Item("b: depthwise convolutions", 20): depthwise,
        Item("b: batched products", 8): products,
        Item("b: batch norms", 8): norms,
        Item("b: search fp32 batched", 25): partial(search_speed, amp="none", graphs=False),
        Item("b: search bf16 batched", 25): partial(search_speed, amp="bf16", graphs=False),
        Item("b: search fp32 reference", 40): reference_speed,
        Item("b: kernels fp32", 30): partial(kernels, amp="none"),
        Item("b: search bf16 replayed, memory low", 35): partial(
            search_speed, amp="bf16", graphs=True, memory="low"
        ),
    }
    for amp, name in (("bf16", "bf16"), ("none", "fp32")):
        found[Item(f"c: training {name}, its rules", 40)] = partial(
            training_speed, amp=amp, rules=(None,)
        )
        found[Item(f"c: training {name}, adversarial", 40)] = partial(adversarial_speed, amp=amp)
    for name, (amp, rules) in rule_items().items():
        found[Item(name, 45)] = partial(training_speed, amp=amp, rules=rules)
    found[SEARCH_ITEM] = whole_search
    return found
