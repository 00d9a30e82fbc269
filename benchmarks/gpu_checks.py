"""The first stage of on_gpu.py: what the machine is, that everything runs on it, and that replaying
changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_budget import Item
from gpu_workers import Measure, Order, Place
from measuring import median_seconds
from torch import Tensor
from training_step import random_images

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.rules import RULES
from darts_bio.runtime import select_device
from darts_bio.spaces import load_genotype
from darts_bio.strategies import STRATEGIES
from darts_bio.training.adversarial import ADVERSARIES
from darts_bio.training.meters import Meters
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

ROOT = Path(__file__).parent.parent
BOUNDS = {"none": 1e-3, "bf16": 5e-2}
"""The largest relative difference that losses of replayed and eager steps may have, as in
tests/test_graphs.py."""

# Their least sizes: what is to be seen is that they run.
SPECS = {
    "eg": "eg(population=4, samples=1, batches=1)",
    "darts_pt": "darts_pt(share=0.5, batches=1)",
    "random_paths": "random_paths(samples=8, best=2)",
}
SPECS |= {"pc_darts": "pc_darts(k=2)", "pgd": "pgd(steps=4)", "trades": "trades(steps=4)"}


def versions(place: Place, order: Order) -> dict[str, Any]:
    """Tell what the machine is: driver, libraries, processor."""
    device = select_device(place.device)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    found["python"] = platform.python_version()
    for package in (
        "timm",
        "torchvision",
        "tensorboard",
        "numpy",
        "pytest",
        "cmaes",
        "torchattacks",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        names = ("name", "total_memory", "multi_processor_count", "L2_cache_size", "major", "minor")
        found |= {name: getattr(properties, name, None) for name in names}
    if shutil.which("nvidia-smi"):
        asked = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        found["nvidia-smi"] = {
            "asked": asked,
            "told": told.stdout.strip() or told.stderr.strip()[:200],
        }
    else:
        found["nvidia-smi"] = "missing"
    return found


def ceilings(place: Place, order: Order) -> dict[str, Any]:
    """Measure what the device can do: bytes that a copy reads and writes, operations of a matrix
    product.
    """
    device = select_device(place.device)
    count, side = (2**16, 64) if place.small else (2**29, 8192)
    source, target = torch.rand(count, device=device), torch.empty(count, device=device)
    found: dict[str, Any] = {"copy_bytes": 8 * count, "product_side": side}
    found["copy_gb_s"] = 8 * count / median_seconds(lambda: target.copy_(source), device) / 1e9
    found["read_gb_s"] = 4 * count / median_seconds(lambda: source.sum(), device) / 1e9
    source = target = torch.empty(0)
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflop_s"] = (
            2 * side**3 / median_seconds(lambda a=a, b=b: a @ b, device) / 1e12
        )
    return found


def gpu_tests(place: Place, order: Order) -> dict[str, Any]:
    """Run the test files that have tests for a GPU. What was found stays found where the time ends
    before they do.
    """
    mark = "skipif(not torch.cuda.is_available()"
    files = sorted(
        str(p) for p in (ROOT / "tests").glob("test_*.py") if mark in p.read_text(encoding="utf-8")
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-o",
        "addopts=",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "1" if place.small else "4"]
    if place.small:
        command += ["-k", "TestOnGpu or without_gradients"]
    log, over = place.keep / "gpu-tests.log", False
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, *files], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code: int | None = process.wait(order.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            code, over = None, True
    return told_by_pytest(log.read_text(encoding="utf-8", errors="replace")) | {
        "code": code,
        "unfinished": over,
    }


def told_by_pytest(log: str) -> dict[str, Any]:
    """Read the outcome of each test from `pytest -v`, with or without xdist; keep the end of what
    it said.
    """
    word = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
    outcomes: dict[str, str] = {}
    for line in log.splitlines():
        if found := re.match(
            rf"(?:\[gw\d+\] \[ *\d+%\] {word} (\S+::.+))|(?:(\S+::.+?) {word}\b)", line
        ):
            name, said = (found[2], found[1]) if found[2] else (found[3], found[4])
            outcomes[name.strip()] = said
    counts = {said: list(outcomes.values()).count(said) for said in sorted(set(outcomes.values()))}
    wrong = [name for name, said in outcomes.items() if said in ("FAILED", "ERROR")]
    return {
        "counts": counts,
        "wrong": wrong,
        "end": log[-6000:] if wrong or not outcomes else log[-400:],
    }


@dataclass(frozen=True)
class Case:
    """A search, or a training, whose first steps are made replayed and eagerly."""

    name: str
    adversary: str = ""
    trained_rule: str = ""
    """The rule of a training; empty for a search."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def task(self, device: torch.device, small: bool, graphs: bool) -> Search | Retraining:
        """Make it anew, as its seed says."""
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "channels": 4 if small else 8,
            "layers": 3,
            "batch_size": 4 if small else 8,
            "epochs": 2,
        }
        options = {**sizes, "crop_padding": 1, "graphs": graphs, **self.options}
        data = random_images(24 if small else 64, 8 if small else 32)
        if not self.trained_rule:
            nodes = {
                "space": f"darts(nodes={1 if small else 2})",
                "regularizers": ("warmup(epochs=0)",),
            }
            if self.options.get("strategy") == "random":  # which refuses what has no say
                del nodes["regularizers"]
            return Search(SearchConfig(**{**nodes, **options}), data, device)
        genotype = load_genotype("bionas_darts").with_rule(self.trained_rule)
        sizes = {"auxiliary": 0.0, "cutout": 0, "drop_path": 0.0, "adversarial": self.adversary}
        config = RetrainConfig(genotype="bionas_darts", **sizes, **options)
        return Retraining.of_genotype(config, genotype, data, device)

    def __call__(self, place: Place, order: Order) -> dict[str, Any]:
        """Make three steps both ways, and compare."""
        device = select_device(place.device)
        # So that both take the same kernels.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
        tried: dict[str, tuple[list[float], dict[str, Tensor]]] = {}
        found: dict[str, Any] = {"bound": BOUNDS[str(self.options.get("amp", "none"))]}
        for way in ("eager", "replayed"):
            try:
                tried[way] = _first_steps(self.task(device, place.small, graphs=way == "replayed"))
            except Exception as error:
                # Where it does not run eagerly it is not the graphs' fault.
                message = f"{way}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                raise RuntimeError(message) from error
        losses, states = zip(*tried.values(), strict=True)
        found["losses"] = {
            way: [_plain(loss) for loss in own] for way, own in zip(tried, losses, strict=True)
        }
        pairs = list(zip(*losses, strict=True))
        found["losses_differ_by"] = _plain(
            max((abs(a - b) / abs(a) if a else abs(b) for a, b in pairs), default=0.0)
        )
        if any(map(math.isnan, (loss for own in losses for loss in own))):
            found["losses_differ_by"] = "nan"
        for part in ("weights", "strategy"):
            names = [name for name in states[0] if name.startswith(part)]
            worst = max(((_apart(states[0][n], states[1][n]), n) for n in names), default=(0.0, ""))
            found[f"{part}_differ_by"], found[f"{part}_most"] = _plain(worst[0]), worst[1]
        return found


def _first_steps(task: Search | Retraining) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of three steps, and what is trained after them, on the CPU."""
    losses = []
    if not task.finished:
        task.begin_epoch(0)
        for t in range(3):
            meters = Meters()
            meters.add(*task.step(t).values())
            losses.append(meters.read()["train/loss"])
        if task.measures:
            task.begin_epoch(task.epochs - 1)
            task.end_epoch(task.epochs - 1)
    state = task.state_dict()
    network = state.get("supernet", state.get("network"))
    return losses, dict(_tensors(network, "weights")) | dict(
        _tensors(state.get("strategy"), "strategy")
    )


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value.detach().double().cpu()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{name}.{number}")


def _apart(one: Tensor, other: Tensor) -> float:
    """|one - other| / |one|; infinite where that is no number."""
    length = one.norm().item()
    found = (one - other).norm().item() / (length or 1.0)
    return found if math.isfinite(found) else math.inf


def _plain(value: float) -> float | str:
    """A number as JSON has it: others as text."""
    return value if math.isfinite(value) else str(value)


def cases() -> list[Case]:
    """Every strategy, rule and adversary, in both precisions, and searches in both kinds of
    memory.
    """
    found: list[Case] = []
    strategies = [*(SPECS.get(name, name) for name in STRATEGIES), "darts(order=2)"]
    for memory in ("normal", "low"):
        for amp in ("none", "bf16"):
            for strategy in strategies:
                options = {"strategy": strategy, "amp": amp, "memory": memory}
                found.append(Case(f"search by {strategy}, {amp}, memory {memory}", options=options))
    for amp in ("none", "bf16"):
        for rule in (*RULES, "usf(scale='match')"):
            found.append(
                Case(f"search under {rule}, {amp}", options={"rules": (rule,), "amp": amp})
            )
        for rule in RULES:
            found.append(
                Case(f"training under {rule}, {amp}", trained_rule=rule, options={"amp": amp})
            )
        for name in ADVERSARIES:
            adversary = SPECS.get(name, name)
            options = {"amp": amp}
            found.append(
                Case(
                    f"training against {name}, {amp}", adversary, trained_rule="fa", options=options
                )
            )
    for rule in RULES:
        found.append(Case(f"search with backbone {rule}", options={"backbone_rule": rule}))
    return found


def measures(small: bool) -> dict[Item, Measure]:
    """List the items of the stage, in order of worth."""
    found: dict[Item, Measure] = {
        Item("a: versions", 3, together=True): versions,
        Item("a: ceilings", 8): ceilings,
        Item("a: tests", 75, together=True): gpu_tests,
    }
    for case in cases():
        # darts_pt measures every candidate of every edge at the end of an epoch.
        found[Item(f"a: {case.name}", 12 if "darts_pt" in case.name else 4, together=True)] = case
    return found


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Bring the cases together: how many were compared, and what of them is to be looked at.

    `results` holds the record's entries by name; those of other items are passed over.
    """
    own = {f"a: {case.name}" for case in cases()}
    compared = {
        n: entry["result"]
        for n, entry in results.items()
        if n in own and entry["outcome"] == "done"
    }
    apart = {
        n: r["losses_differ_by"]
        for n, r in compared.items()
        if not _within(r["losses_differ_by"], r["bound"])
    }
    failed = {
        n: e.get("error", "")
        for n, e in results.items()
        if n in own and e["outcome"] in ("failed", "cut off")
    }
    return {"cases": len(own), "compared": len(compared), "apart": apart, "failed": failed}


def _within(value: float | str, bound: float) -> bool:
    return not isinstance(value, str) and value <= bound
