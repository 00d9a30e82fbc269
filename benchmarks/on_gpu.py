"""The first minutes on a GPU: all that has to be seen there, in order of worth, in as many calls as
it takes.

    python benchmarks/on_gpu.py --minutes 9                        again with the same --keep until nothing is left
    python benchmarks/on_gpu.py --minutes 9 --stages b,c           some of the stages only
    python benchmarks/on_gpu.py --pack parts --data-dir data       before: CIFAR-10 in parts/1, parts/2, parts/3
    python benchmarks/on_gpu.py --minutes 9 --parts parts/1        with each call some parts; they stay in --keep
    python benchmarks/on_gpu.py --device cpu --dry-run             tries the script itself, at the smallest sizes

Stages, with their shares of the time (written for one NVIDIA H200 and 16 cores, no network needed):

    a   3 min   versions; ceilings of copies and matrix products; the tests that need a GPU; every strategy, rule and
                adversary for three steps, replayed against eager, at small sizes
    b   5 min   a step of the search at the protocol's size (C=16, 8 cells, batch 64): replayed, batched, the reference;
                its kernels by the profiler; convolutions, products and batch norms against the ceilings
    c   6 min   a step of a training (C=36, 20 cells, batch 96): rules against bp, adversarial
    d   9 min   the search of pairs on CIFAR-10: 50 epochs if a step takes at most 55 ms, else 5 and a projection;
                without the data 5 epochs on random images

What does not fit into the minutes that are left is passed over, with a word, and made in the next
call; what has ended is never made again (remove it from the results to have it made anew), what
failed once the code has changed. Results are written after each measurement, to --keep and to
--json: a call that is killed loses the measurement it was at, and the search no more than the steps
since its last checkpoint. At the end a table shows what was expected beside what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_data
import gpu_speeds
from gpu_budget import PATIENCE, Decision, Item, State, plan
from gpu_workers import GRACE_S, Measure, Order, Place, Worker
from measuring import RESULTS, command, run

from darts_bio.errors import InputError
from darts_bio.runtime import hardware, select_device, worker_count

ROOT = Path(__file__).parent.parent
SHARES = {"a": 180.0, "b": 300.0, "c": 390.0, "d": 540.0}
AT_ONCE = 6
"""Measurements at most that are made together, where there are two cores for each."""

RESERVE_S = 15.0
"""Seconds that a call takes before it can measure, and at its end: imports, ending processes, the
table."""


def measures(small: bool) -> dict[Item, Measure]:
    """All measurements, in order of worth."""
    return gpu_checks.measures(small) | gpu_speeds.measures(small)


def code_digest() -> str:
    """Name the code that is measured: another text for other code."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted([*(ROOT / "darts_bio").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Record:
    """Keeps what has been found, by item: outcome, result or error, seconds, tries. Saved whole
    after each change.
    """

    def __init__(
        self, files: list[Path], machine: str, small: bool, earlier: Path | None = None
    ) -> None:
        """Begin with what the files, which are written, hold, and what `earlier`, which is only
        read, does.

        Raises InputError if that is of another machine.
        """
        self.files, self.code = files, code_digest()
        self.machine, self.small = machine, small
        self.entries: dict[str, dict[str, Any]] = {}
        self.calls: list[dict[str, Any]] = []
        for file in [*files, *([earlier] if earlier else [])]:
            if file.exists():
                self._merge(file)

    def _merge(self, file: Path) -> None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            there = (found["hardware"], found["dry_run"])
            entries, calls = dict(found["items"]), list(found["calls"])
        except (LookupError, TypeError, ValueError):
            raise InputError(
                f"{file}: expected results of this script, found something else; move it away"
            ) from None
        if there != (self.machine, self.small):
            raise InputError(
                f"{file}: holds results of {there[0]}{' (a dry run)' if there[1] else ''}, found "
                f"{self.machine} here; "
                "move it away, or name another --keep or --json"
            )
        self.entries = merged(self.entries, entries)
        self.calls += [call for call in calls if call not in self.calls]

    def states(self) -> dict[str, State]:
        """Return what the plan has to know. What failed with other code than this is as if it had
        never been tried.
        """
        return {
            name: State(e["outcome"], e["last"], e["tries"], e["spent"])
            for name, e in self.entries.items()
            if e["outcome"] != "failed" or e["code"] == self.code
        }

    def begin(self, name: str) -> None:
        before = self.entries.get(name, {})
        same = before.get("code") == self.code
        self.entries[name] = {
            **before,
            "outcome": "begun",
            "last": before.get("last", 0.0),
            "tries": (before.get("tries", 0) if same else 0) + 1,
            "spent": before.get("spent", 0.0),
            "code": self.code,
            "at": _now(),
        }
        self.save()

    def end(self, name: str, found: Mapping[str, Any]) -> None:
        """`found` holds the outcome, the seconds, and the result or the error."""
        entry = self.entries[name]
        seconds = found["seconds"]
        entry |= {key: value for key, value in found.items() if key != "seconds"}
        entry |= {"last": seconds, "spent": entry["spent"] + seconds, "at": _now()}
        if entry["outcome"] != "failed":
            entry.pop("error", None)
            entry.pop("where", None)
        self.save()

    def save(self) -> None:
        whole = {
            "what": "python benchmarks/on_gpu.py",
            "hardware": self.machine,
            "dry_run": self.small,
            "calls": self.calls,
            "table": table(self.entries),
            "items": self.entries,
        }
        text = json.dumps(whole, indent=1) + "\n"
        for file in self.files:
            temporary = file.with_name(f".{file.name}.partial")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, file)


def merged(
    one: Mapping[str, dict[str, Any]], other: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Bring two records of the same measurements together: what is done stands, else what is
    newer.
    """

    def rank(entry: dict[str, Any]) -> tuple[bool, str]:
        return entry["outcome"] == "done", entry["at"]

    names = [*one, *(name for name in other if name not in one)]
    return {name: max((e[name] for e in (one, other) if name in e), key=rank) for name in names}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Running:
    """A measurement that a worker is at, and when it is cut off."""

    item: Item
    began: float
    ends: float


class Call:
    """One call: makes what fits until its minutes are over, each measurement in a worker."""

    def __init__(
        self, place: Place, items: list[Item], record: Record, end: float, waiting: dict[str, str]
    ) -> None:
        self.place, self.items, self.record, self.waiting = place, items, record, waiting
        self.end, self.stopped = end, False
        self.at_once = max(1, min(AT_ONCE, worker_count(None) // 2))
        self.tried: set[str] = set()
        self.busy: dict[Worker, Running] = {}
        self.idle: list[Worker] = []

    def stop(self, number: int, frame: Any) -> None:
        """Answer a signal: what can end in good order does so, and nothing more is begun."""
        self.stopped = True
        for worker, running in self.busy.items():
            worker.ask_to_stop()
            running.ends = min(running.ends, time.monotonic() + GRACE_S)

    def decisions(self) -> list[Decision]:
        at = {running.item.name for running in self.busy.values()}
        return plan(
            [item for item in self.items if item.name not in at],
            self.record.states(),
            self.end - time.monotonic(),
            SHARES,
            at_once=self.at_once,
            tried=self.tried,
            waiting=self.waiting,
            patience=20 if self.place.small else PATIENCE,
        )

    def __call__(self) -> list[Decision]:
        """Measure; return what was not, and why."""
        try:
            while True:
                decisions = [] if self.stopped else self.decisions()
                chosen = next((decision for decision in decisions if decision.seconds), None)
                worker = self._worker(chosen.item) if chosen is not None else None
                if chosen is not None and worker is not None:
                    self._begin(chosen, worker)
                elif self.busy or chosen is not None:
                    self._watch()
                else:
                    return [d for d in self.decisions() if not d.seconds or self.stopped]
        finally:
            for worker in [*self.idle, *self.busy]:
                worker.end()

    def _may_begin(self, item: Item) -> bool:
        if not self.busy:
            return True
        alone = any(not running.item.together for running in self.busy.values())
        return item.together and not alone and len(self.busy) < self.at_once

    def _begin(self, decision: Decision, worker: Worker) -> None:
        item, now = decision.item, time.monotonic()
        before = self.record.entries.get(item.name, {}).get("result", {})
        needed = self.record.entries.get(item.after, {}).get("result", {})
        self.record.begin(item.name)
        self.tried.add(item.name)
        worker.tell(Order(item.name, decision.seconds, before, needed))
        # One that goes on in the next call ends itself.
        self.busy[worker] = Running(
            item, now, now + decision.seconds + (GRACE_S if item.least else 0.0)
        )
        if not self.idle:  # the next one imports meanwhile
            self.idle.append(Worker(self.place, "on_gpu"))

    def _worker(self, item: Item) -> Worker | None:
        """One that waits to be told, and has done nothing yet if time is to be measured; None while
        there is none.
        """
        if not self._may_begin(item):
            return None
        if not item.together:
            for worker in [worker for worker in self.idle if worker.used]:
                self.idle.remove(worker)
                worker.end()
        while len(self.idle) < (self.at_once - len(self.busy) if item.together else 1):
            self.idle.append(Worker(self.place, "on_gpu"))
        for worker in self.idle:
            if worker.ready():
                self.idle.remove(worker)
                return worker
            if not worker.process.is_alive() and not self.stopped:
                raise InputError(
                    "a process that was to measure died at its start; see its message above"
                )
        return None

    def _watch(self) -> None:
        """Hear of what ends, and cut off what takes too long."""
        wait([w.connection for w in self.busy or self.idle], 0.5)
        for worker, running in list(self.busy.items()):
            found = self._heard(worker, running)
            if found is None:
                continue
            del self.busy[worker]
            self.record.end(running.item.name, found)
            print(said(running.item.name, self.record.entries[running.item.name]), flush=True)
            if running.item.together and found["outcome"] == "done":
                self.idle.append(worker)
            else:  # after an error the GPU may be of no more use to that process
                worker.end()

    def _heard(self, worker: Worker, running: Running) -> dict[str, Any] | None:
        seconds = time.monotonic() - running.began
        if worker.connection.poll():
            try:
                found: dict[str, Any] = worker.connection.recv()
            except (EOFError, ConnectionError):
                if self.stopped:
                    return {
                        "outcome": "cut off",
                        "seconds": 0.0,
                    }  # says nothing of how long it takes
                return {"outcome": "failed", "seconds": seconds, "error": worker.death()}
            return found
        if time.monotonic() > running.ends:
            return {"outcome": "cut off", "seconds": 0.0 if self.stopped else seconds}
        return None


def said(name: str, entry: Mapping[str, Any]) -> str:
    """A line about a measurement that has ended."""
    short = {
        k: v
        for k, v in entry.get("result", {}).items()
        if isinstance(v, (int, float)) or (isinstance(v, str) and len(v) < 60)
    }
    words = entry.get("error") or ", ".join(f"{k} {_short(v)}" for k, v in short.items())
    return f"{name}: {entry['outcome']} after {entry['last']:.1f} s{'; ' if words else ''}{words}"[
        :400
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


STEP_BYTES, NAIVE_BYTES = 405e9, 520e9
"""Bytes that a step at the protocol's size moves in float32, counted: batched, and one module a
candidate."""

LAUNCH_S, NAIVE_KERNELS, COPY_GB_S = 5e-6, 119_000, 4300.0
STEPS = 50 * 390


def _bound(found: Mapping[str, Any], moved: float) -> float:
    """Milliseconds in which the memory moves so many bytes: at the measured bandwidth, else at
    COPY_GB_S.
    """
    return moved / (found.get("a: ceilings", {}).get("copy_gb_s") or COPY_GB_S) / 1e6


def _step(result: Mapping[str, Any]) -> str:
    peak = f", {result['peak_bytes'] / 1e9:.1f} GB at most" if "peak_bytes" in result else ""
    return (
        f"{1000 * result['running_s']:.1f} ms a step, host {1000 * result['host_s']:.1f} ms{peak}"
    )


def _kernels(result: Mapping[str, Any]) -> str:
    if "missing" in result:
        return str(result["missing"])
    share = result["kernels_s"] / result["step_s"]
    first = "; ".join(
        f"{row['calls']} x {row['kernel'][:40]} {row['us'] / 1000:.1f} ms"
        for row in result["top"][:3]
    )
    return f"{result['kernels']} kernels, {result['copies']} copies, busy for {share:.0%} of the step; {first}"


def _rates(result: Mapping[str, Any]) -> str:
    """GB/s from the least to the most of each pass, by type."""
    spans: dict[tuple[str, str], list[float]] = {}
    for row in result["rows"]:
        for name, value in row.items():
            if isinstance(value, dict):
                kind = row["type"] + (f" {row['layout']}" if "layout" in row else "")
                spans.setdefault((kind, name), []).append(value["gb_s"])
    return "; ".join(f"{k} {n} {min(v):.0f} to {max(v):.0f} GB/s" for (k, n), v in spans.items())


def _ratios(result: Mapping[str, Any]) -> str:
    times = f"bp {1000 * result['median_s']['bp']:.1f} ms"
    ratios = [f"{rule} {ratio:.3f}" for rule, ratio in result["ratio_to_bp"].items()]
    return ", ".join(
        [times, *ratios, *(f"{rule} failed: {error}" for rule, error in result["errors"].items())]
    )


def _whole(result: Mapping[str, Any]) -> str:
    done = f"{result['data']}: {result['epochs_done']} of {result['epochs']} epochs"
    if "whole_search_s" in result:
        done += f"; 50 epochs are {result['whole_search_s'] / 60:.1f} min"
    accuracy = result["numbers"][-1].get("valid/accuracy") if result["numbers"] else None
    return done + (f"; validation accuracy {accuracy:.3f}" if accuracy is not None else "")


Results = Mapping[str, Any]
EXPECTED: list[tuple[str, Callable[[Any], str], Callable[[Results], str]]] = [
    (
        "a: ceilings",
        lambda r: ", ".join(f"{n} {r[n]:.0f}" for n in r if n.endswith("_s")),
        lambda f: (
            "copy 4,300 GB/s; products 790 TFLOP/s in bf16; by the datasheet (dense) 67 in fp32, "
            "495 in TF32"
        ),
    ),
    (
        "a: tests",
        lambda r: ", ".join(f"{n} {k.lower()}" for k, n in r["counts"].items()),
        lambda f: "none failed",
    ),
    (
        "b: search fp32 reference",
        _step,
        lambda f: (
            f"{NAIVE_KERNELS:,} launches x 5 us = {1e3 * NAIVE_KERNELS * LAUNCH_S:.0f} ms, to 3 x "
            "that; memory "
            f"alone {_bound(f, NAIVE_BYTES):.0f} ms"
        ),
    ),
    (
        "b: search fp32 batched",
        _step,
        lambda f: "107 to 139 ms (35 to 45 min for 19,500 steps)",
    ),
    (
        "b: search fp32 replayed",
        _step,
        lambda f: f"1 to 1.5 x memory's bound, 405 GB: {_bound(f, STEP_BYTES):.0f} ms; 15.3 GB",
    ),
    ("b: search bf16 batched", _step, lambda f: "waits for launches: 9,079 x 5 us = 45 ms"),
    (
        "b: search bf16 replayed",
        _step,
        lambda f: (
            f"{_bound(f, STEP_BYTES / 2):.0f} ms if all were bf16; 52 to 71 ms by traffic, 45 to "
            "64 ms by its 9,079 nodes; host 20 ms; 8.2 GB"
        ),
    ),
    (
        "b: search bf16 replayed, memory low",
        _step,
        lambda f: "1.25 to 1.33 x the time, 0.6 x what is kept",
    ),
    ("b: kernels bf16", _kernels, lambda f: "9,079 nodes (counted on the stand-in)"),
    ("b: kernels fp32", _kernels, lambda f: "8,993 nodes (counted on the stand-in)"),
    (
        "b: depthwise convolutions",
        _rates,
        lambda f: "at least half of a copy's rate in bf16 NHWC, else bf16 is no gain",
    ),
    (
        "b: batched products",
        _rates,
        lambda f: "half of a copy's rate; the weight's gradient less, 16 blocks on 132",
    ),
    ("b: batch norms", _rates, lambda f: "half of a copy's rate"),
    ("c: training bf16, its rules", _ratios, lambda f: "1.02 x bp (on a CPU)"),
    (
        "c: training bf16, adversarial",
        _step,
        lambda f: "8 passes to one: about 8 x a plain eager step",
    ),
    ("c: training fp32, its rules", _ratios, lambda f: "1.02 x bp (on a CPU)"),
    (
        "c: training fp32, adversarial",
        _step,
        lambda f: "8 passes to one: about 8 x a plain eager step",
    ),
    *(
        (name, _ratios, lambda f: "1.05 x bp at most for the feedback family")
        for name in gpu_speeds.rule_items()
    ),
    (
        "d: search of pairs on CIFAR-10",
        _whole,
        lambda f: "50 epochs: 17 to 23 min by traffic, 27 to 39 with its nodes",
    ),
]


def table(entries: Mapping[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Return what was measured beside what had been expected: a row for each item, one for all
    small cases together.
    """
    found = {name: entry["result"] for name, entry in entries.items() if "result" in entry}
    cases = gpu_checks.summary(entries)
    together = f"{cases['compared']} of {cases['cases']} ran both ways, {len(cases['apart'])} of them beyond the bound"
    rows = [
        {
            "item": "a: replayed against eager",
            "measured": f"{together}; {len(cases['failed'])} failed",
            "expected": "losses equal to 1e-3 in fp32, 5e-2 in bf16",
        }
    ]
    for name, measured, expected in EXPECTED:
        entry = entries.get(name, {"outcome": "not begun"})
        words = entry["outcome"] + (f": {entry['error']}" if "error" in entry else "")
        if entry["outcome"] in ("done", "unfinished") and name in found:
            try:
                words = measured(found[name]) + (
                    " (not to its end)" if entry["outcome"] == "unfinished" else ""
                )
            except (
                LookupError,
                TypeError,
                ValueError,
            ) as error:  # a result that other code has written
                words = f"{entry['outcome']}; of another form ({type(error).__name__}: {error}), see the results"
        rows.append({"item": name, "measured": words, "expected": expected(found)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=9.0, metavar="M", help="what this call may take in all"
    )
    parser.add_argument("--stages", default="a,b,c,d", metavar="A,B", help="of a, b, c, d")
    parser.add_argument("--device", default="cuda", metavar="NAME")
    parser.add_argument(
        "--keep", default="runs/on-gpu", metavar="DIR", help="what lasts between calls"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="results (default: benchmarks/results/on_gpu.json)"
    )
    parser.add_argument("--parts", metavar="DIR", help="parts of CIFAR-10 that this call brings")
    parser.add_argument(
        "--dry-run", action="store_true", help="the smallest sizes, to try the script"
    )
    parser.add_argument("--pack", metavar="DIR", help="write CIFAR-10 in parts there, and end")
    parser.add_argument("--data-dir", metavar="DIR", help="where CIFAR-10 lies, for --pack")
    arguments = parser.parse_args()
    if arguments.pack:
        files = gpu_data.pack(Path(arguments.pack), arguments.data_dir)
        print(
            f"{len(files)} parts of {max(f.stat().st_size for f in files) / 2**20:.1f} MiB in "
            f"{arguments.pack}/1 to 3"
        )
        return
    end = time.monotonic() + 60 * arguments.minutes - RESERVE_S
    stages = arguments.stages.split(",")
    if unknown := [stage for stage in stages if stage not in SHARES]:
        raise InputError(
            f"--stages: expected some of {', '.join(SHARES)}, found {', '.join(unknown)}"
        )
    keep = Path(arguments.keep).resolve()
    keep.mkdir(parents=True, exist_ok=True)
    if arguments.parts:
        gpu_data.collect(Path(arguments.parts), keep)
    device = select_device(arguments.device)
    own = keep / "on_gpu.json"
    # On a machine that starts bare the results of earlier calls are those that the checkout brings.
    earlier = None if arguments.dry_run else RESULTS / "on_gpu.json"
    shown = Path(arguments.json).resolve() if arguments.json else earlier or own
    record = Record(
        [own, *([shown] if shown != own else [])], hardware(device), arguments.dry_run, earlier
    )
    items = [item for item in measures(arguments.dry_run) if item.stage in stages]
    there, parts = gpu_data.arrived(keep)
    waiting = {}
    if 0 < there < parts:
        waiting[gpu_speeds.SEARCH_ITEM.name] = (
            f"{there} of {parts} parts of CIFAR-10 have arrived; waits for all"
        )
    call = Call(Place(arguments.device, arguments.dry_run, keep), items, record, end, waiting)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, call.stop)
    record.calls.append(
        {"command": command(), "at": _now(), "code": record.code, "minutes": arguments.minutes}
    )
    passed_over = call()
    record.save()
    rows = table(record.entries)
    print("\n| item | measured | expected |\n|---|---|---|")
    for row in rows:
        print(f"| {row['item']} | {row['measured']} | {row['expected']} |")
    cases = gpu_checks.summary(record.entries)
    for name, error in cases["failed"].items():
        print(f"failed: {name}: {error}")
    for name, value in cases["apart"].items():
        print(f"beyond the bound: {name}: losses differ by {_short(value)}")
    for decision in passed_over:
        print(f"passed over: {decision.item.name}: {decision.why or 'this call was stopped'}")
    print(f"\nresults: {', '.join(map(str, record.files))}")
    if call.stopped:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    run(main)
