"""Kill runs at their file operations, damage their checkpoints, and see whether that can be told.

    python benchmarks/faults.py
    python benchmarks/faults.py --kinds eg,darts_pt,queries,ema --points 30 --seeds 3
    python benchmarks/faults.py --kinds flips,destroyed
    python benchmarks/faults.py --kinds ranks --processes 4 --points 20
    python benchmarks/faults.py --kinds signals

Of each kind and seed a tiny run on the digits is made that nothing disturbs, and `--points` others
that SIGKILL ends at a file operation drawn at random (before it, or in the middle of a write) and
that are then gone on with by the same command. Right is a run whose checkpoint, genotype, records
and TensorBoard events are those of the undisturbed one, bit for bit. `flips` reads a checkpoint with
one flipped bit, 1,000 times; `destroyed` spoils the last checkpoint of a run 100 times and goes on
from the one before. `ranks` makes a search in `--processes`, kills one of them at a step drawn at
random, `--points` times, and goes on: right is where all have ended 60 s after the kill. `signals`
sends each signal that is handled in each phase of a search, a training, and the measures of `eg` and
`darts_pt` (`tests/signaling.py`): right is a run that left by the exit code which is documented, lost
no step that it had begun, and once gone on with is the undisturbed one. Runs on the CPU, in forks,
on Linux; some minutes a kind. Results, a JSON object a line: `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, command

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from killing import equal, events_of, killed, operations, records_of
from several import several
from signaling import PHASES, SIGNALED, Phase, files_of, saved_step, signaled

from darts_bio.config import RetrainConfig, RobustnessConfig, SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.figures.drawing import Drawing
from darts_bio.runs import robustness
from darts_bio.runs.running import Watching
from darts_bio.runs.search import search
from darts_bio.runs.train import train
from darts_bio.runtime import STOP_SIGNALS, hardware
from darts_bio.spaces import load_genotype
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.training.search import Search

Config = SearchConfig | RetrainConfig | RobustnessConfig
SIZES: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "log_every": 1,
    "crop_padding": 1,
    "epochs": 2,
    "save_every": 0.0,
}
SEARCH = SearchConfig(
    space="darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))",
    rules=("usf", "brsf"),
    **SIZES,
)
TRAIN = RetrainConfig(
    genotype="darts_v2", drop_path=0.3, auxiliary=0.0, cutout=3, alignment_every=1, **SIZES
)
SEARCHES = {
    "darts": "darts",
    "darts2": "darts(order=2)",
    "rule_aware": "rule_aware",
    "pc_darts": "pc_darts(k=2)",
    "gdas": "gdas",
    "snas": "snas",
    "drnas": "drnas",
    "fair_darts": "fair_darts",
    "eg": "eg(population=4, samples=3, batches=1)",
    "darts_pt": "darts_pt(share=0.4, batches=1)",
    "random_paths": "random_paths",
    "random": "random",
}
TRAINED = "trained"
"""The training that `robustness` attacks, beside its runs."""
TRAININGS: dict[str, dict[str, Any]] = {
    "train": {},
    "ema": {"ema": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.001},
    "mixup": {"mixup": 0.2},
    "adversarial": {"adversarial": "pgd(eps=8)"},
}
RUNS = {
    **{
        kind: replace(SEARCH, strategy=spec, regularizers=("warmup(epochs=0)",) * (kind in ("eg",)))
        for kind, spec in SEARCHES.items()
    },
    "queries": replace(SEARCH, strategy="random_search", queries=3, epochs=1),
    **{kind: replace(TRAIN, **options) for kind, options in TRAININGS.items()},
    "robustness": RobustnessConfig(
        checkpoint=(TRAINED,),
        attacks=("fgsm", "pgd(steps=2)"),
        eps=(2.0, 8.0),
        images=8,
        batch_size=4,
    ),
}
"""A configuration of each kind of run."""
LEFT_WITHIN_S = 60
"""Seconds within which all processes of a run have ended once one was killed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--kinds",
        default=",".join([*RUNS, "flips", "destroyed", "ranks", "signals"]),
        metavar="NAMES",
    )
    parser.add_argument("--points", type=int, default=20, help="kills a run")
    parser.add_argument("--processes", type=int, default=2, help="of the kind ranks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.jsonl", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Drawing.image = fingerprint  # type: ignore[method-assign]
    trials: dict[str, tuple[int, int]] = {}
    with options.out.open("w") as file:
        machine = hardware(torch.device("cpu"))
        file.write(json.dumps({"command": command(), "hardware": machine}) + "\n")
        for kind in options.kinds.split(","):
            for seed in range(options.seeds):
                for trial in trials_of(kind, seed, options.points, options.processes):
                    done, right = trials.get(kind, (0, 0))
                    trials[kind] = done + 1, right + trial["right"]
                    file.write(json.dumps({"kind": kind, "seed": seed, **trial}) + "\n")
                    file.flush()
            print(f"{kind}: {trials[kind][1]} of {trials[kind][0]} right", flush=True)


def trials_of(kind: str, seed: int, points: int, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the result of each trial of a kind."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        if kind == "signals":
            for signaled_kind in PHASES:
                yield from signals(signaled_kind, seed, Path(place))
            return
        config = replace(RUNS[kind if kind in RUNS else "darts"], seed=seed)
        if isinstance(config, RobustnessConfig):
            trained = str(whole.with_name(TRAINED))
            killed(partial(run, TRAIN, Path(trained)))
            config = replace(config, checkpoint=(trained,))
        if kind == "ranks":
            yield from ranks(config, whole, seed, points, processes)
            return
        if killed(partial(run, config, whole)):
            raise AssertionError("nothing kills a run that nothing disturbs")
        if kind == "flips":
            yield from flips(whole, seed)
        elif kind == "destroyed":
            yield from destroyed(config, whole, seed)
        else:
            yield from kills(config, whole, seed, points)


def run(config: Config, out: Path) -> None:
    """Make a run with TensorBoard's events, or go on with it."""
    data = load_data("digits", train_images=16 if isinstance(config, RetrainConfig) else 32)
    config = replace(config, out=str(out))
    watching = Watching(tensorboard=True)

    def make(config: Config) -> None:
        if isinstance(config, SearchConfig):
            search(config, "faults", data, watching)
        elif isinstance(config, RobustnessConfig):
            robustness.SAVE_EVERY_S = 0.0
            robustness.measure_robustness(config, "faults", None, True, data)
        else:
            train(config, "faults", None, data, watching)

    try:
        make(config)
    except InputError as error:
        if "or go on with it by --resume" not in str(error):
            raise
        make(replace(config, resume=True))


def are_equal(one: Path, other: Path) -> bool:
    """Whether two runs hold the same checkpoint, genotype, records and events."""
    texts = [path / "results.json" for path in (one, other)]
    if all(text.exists() for text in texts):
        results = [json.loads(text.read_text()) for text in texts]
        events = [
            {key: times for key, times in events_of(path).items() if "text_summary" not in key[1]}
            for path in (one, other)
        ]  # without the report, which says how long it took
        return results[0] == results[1] and events[0] == events[1]
    kind = "train" if (one / "curves.svg").exists() else "search"
    first, second = (read_checkpoint(path / "checkpoint.pt", kind) for path in (one, other))
    return (
        equal(first, second)
        and load_genotype(one) == load_genotype(other)
        and records_of(one) == records_of(other)
        and events_of(one) == events_of(other)
    )


def kills(config: Config, whole: Path, seed: int, points: int) -> Iterator[dict[str, Any]]:
    """Kill runs at operations drawn at random, up to the number that a whole run makes."""
    draws, made = random.Random(seed), operations(partial(run, config, whole.with_name("counted")))
    for at in sorted(draws.sample(range(1, made + 1), min(points, made))):
        out, start = whole.with_name(str(at)), time.monotonic()
        was_killed = killed(partial(run, config, out), at)
        killed(partial(run, config, out))
        yield {
            "at": at,
            "of": made,
            "killed": was_killed,
            "right": are_equal(out, whole),
            "seconds": round(time.monotonic() - start, 2),
        }


def flips(whole: Path, seed: int, count: int = 1000) -> Iterator[dict[str, Any]]:
    """Read a checkpoint with a flipped bit."""
    content, path = (whole / "checkpoint.pt").read_bytes(), whole.with_name("checkpoint.pt")
    for bit in random.Random(seed).sample(range(8 * len(content)), count):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read_checkpoint(path, "search")
            refused = False
        except InputError:
            refused = True
        yield {"bit": bit, "right": refused}


def destroyed(config: Config, whole: Path, seed: int, count: int = 100) -> Iterator[dict[str, Any]]:
    """Spoil the last checkpoint of a run that was killed, and go on from the one before."""
    draws, made = random.Random(seed), operations(partial(run, config, whole.with_name("counted")))
    damages: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda content: content[: draws.randrange(len(content))],
        "other bytes": lambda content: draws.randbytes(len(content)),
        "a hole": lambda content: bytes(512) + content[512:],
        "text": lambda content: b"hello",
    }
    for trial in range(count):
        out, name = whole.with_name(f"destroyed-{trial}"), draws.choice(list(damages))
        at = draws.randrange(made // 3, made + 1)
        killed(partial(run, config, out), at)
        content = damages[name]((out / "checkpoint.pt").read_bytes())
        (out / "checkpoint.pt").unlink()  # the one before may be the same file on the disk
        (out / "checkpoint.pt").write_bytes(content)
        killed(partial(quietly, config, out))
        yield {"at": at, "damage": name, "right": are_equal(out, whole)}


def ranks(
    config: Config, whole: Path, seed: int, points: int, processes: int
) -> Iterator[dict[str, Any]]:
    """Kill one of several processes at a step, see the others leave, and go on with all."""
    draws = random.Random(seed)
    ended = several(processes, process, config, whole, None, place=whole.parent)
    if any(each.code for each in ended):
        raise AssertionError(f"a run that nothing disturbs failed: {ended}")
    steps = int(read_checkpoint(whole / "checkpoint.pt", "search")["step"])
    for number in range(points):
        out, place = whole.with_name(f"{number}"), whole.parent
        victim, at = draws.randrange(processes), draws.randrange(steps)
        # A busy machine may take longer for the beginning: what counts is the time since the kill.
        ended = several(processes, process, config, out, (victim, at), place=place, seconds=300)
        seconds = time.monotonic() - float(time_of_kill(out).read_text())
        codes = [each.code for each in ended]
        expected = [-signal.SIGKILL if rank == victim else 2 for rank in range(processes)]
        again = several(processes, process, config, out, None, place=place)
        yield {
            "processes": processes,
            "rank": victim,
            "step": at,
            "codes": codes,
            "seconds": round(seconds, 2),
            "right": codes == expected
            and seconds < LEFT_WITHIN_S
            and not any(each.code for each in again)
            and are_equal(out, whole),
        }


def signals(kind: str, seed: int, place: Path) -> Iterator[dict[str, Any]]:
    """Send each signal in each phase of a run, first one in each; go on with it."""
    config, whole = replace(SIGNALED[kind], seed=seed), place / f"{kind}-whole"
    if signaled(config, whole)[0] != 0:
        raise AssertionError("a run that nothing disturbs failed")
    for turn in range(len(STOP_SIGNALS)):
        for nth, phase in enumerate(PHASES[kind]):
            number = STOP_SIGNALS[(nth + turn) % len(STOP_SIGNALS)]
            yield {"run": kind, **signal_in(PHASES[kind][phase], phase, number, config, whole)}


def signal_in(
    phase: Phase,
    name: str,
    number: signal.Signals,
    config: SearchConfig | RetrainConfig,
    whole: Path,
) -> dict[str, Any]:
    """Send a signal in a phase of a run, and compare with the undisturbed one, `whole`."""
    out = whole.with_name(f"{whole.name}-{name}-{number.name}".replace(" ", "-"))
    code, begun = signaled(config, out, phase, number)
    kept = saved_step(out, config.command)
    again, _ = signaled(config, out)
    equal = are_equal(out, whole) and files_of(out) == files_of(whole)
    shutil.rmtree(out)
    return {
        "phase": name,
        "signal": number.name,
        "outcome": phase.outcome,
        "code": code,
        "steps_begun": begun,
        "steps_lost": begun - kept,
        "right": code == phase.exit_code(number) and begun == kept and again == 0 and equal,
    }


def time_of_kill(out: Path) -> Path:
    """Where a process of the run `out` that is killed writes when (`time.monotonic`)."""
    return out.with_name(f"{out.name}-killed")


def process(rank: int, config: Config, out: Path, kill: tuple[int, int] | None) -> None:
    """Be one of several processes of a run; the rank `kill[0]` is killed at the step `kill[1]`."""
    whole_step = Search.step

    def step(self: Search, t: int) -> Any:
        if kill == (rank, t):
            time_of_kill(out).write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_step(self, t)

    Search.step = step  # type: ignore[method-assign]
    try:
        quietly(replace(config, resume="auto"), out)
    except InputError as error:
        print(error)
        sys.exit(2)


def quietly(config: Config, out: Path) -> None:
    """Go on with a run, without the warning that it goes on from the checkpoint before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(config, out)


def fingerprint(drawing: Drawing, scale: float = 1.0) -> np.ndarray:
    """Stands for a painted picture (1, N, 3): painting takes longer than such a run."""
    return np.frombuffer(hashlib.sha512(drawing.svg().encode()).digest()[:63], np.uint8).reshape(
        1, 21, 3
    )


if __name__ == "__main__":
    main()
