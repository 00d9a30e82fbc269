"""Do mixed rules help, does searching them help, and what does weight transport cost?

    python benchmarks/study.py --budget 60                  the digits; goes on when run again
    python benchmarks/study.py --dataset cifar10 --data-dir DIR --budget 600

Searches find cells, and every comparison is made on one cell's operations, with nothing changed but
the rules of its layers:

- searched: the rules that the search found;
- shuffled: the rules that the search found, each at the place of another: as many of each;
- random: rules drawn uniformly, the control of BioNAS;
- each single rule everywhere, bp among them.

All are trained from scratch by one recipe, each from the seed of its search, and compared in pairs
by all sign flips of the differences:

1. Does mixing help? Searched against the best single rule but bp. Which is best is told by the mean
   over all seeds, so it has the advantage of hindsight.
2. Does searching help? Searched against random; and does it find where each rule belongs, beyond
   how many there are to be of each? Searched against shuffled.
3. What does weight transport cost? Searched, and each rule, against bp; likewise rules that no
   search chose from, whose feedback is not the weights' but learns to be like them.

The strategies are `rule_aware`, `darts` on pairs and `eg`; `darts` under bp alone shows what cells
cost that are searched without rules. Poolings are not among the operations: on small images they
win most edges, and an edge without weights has no rule. Images of 32x32 pixels are shrunk to 16x16
(`assignments.images`); its searches see 4,000 of them, its trainings 8,000, and errors are those
on all test images.

A job is a search or a training. `--budget` minutes are spent on jobs that have not been done, all
seeds of a strategy before the next one: the first alone answers the three questions. The rules that
learn their feedback come after the others, on the cells of the first strategy before the next one
is begun and on those of the rest at the end. A job that has begun is ended. Writes
benchmarks/results/study-DATASET.json after each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from assignments import images
from measuring import RESULTS, command, keep_results, kept_results, paired_p, run, shown

import darts_bio
from darts_bio.errors import InputError
from darts_bio.runtime import hardware
from darts_bio.spaces import Candidate, Cell, Genotype
from darts_bio.spaces.genotype import Edge, from_json

RULES = ("fa", "usf", "brsf", "frsf")
SINGLE = (*RULES, "bp")
LEARNED = ("kolen_pollack", "weight_mirror", "pfa")
MIXED = ("searched", "shuffled", "random")
SPACE = (
    "darts(nodes=2, operations=(none, skip_connect, sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, "
    "dil_conv_5x5))"
)
STRATEGIES = {  # with the rates of the digits' protocol, which are for short searches
    "rule_aware": {"strategy": "rule_aware(lr=0.01, rule_lr=0.03)", "rules": RULES},
    "darts": {"strategy": "darts(lr=0.01)", "rules": RULES},
    "eg": {"strategy": "eg", "rules": RULES},
    "darts under bp": {"strategy": "darts(lr=0.01)", "rules": ("bp",)},
}
COMMON: dict[str, Any] = {"channels": 8, "layers": 3, "lr": 0.1, "cutout": 0}
SEARCHING = COMMON | {"space": SPACE}
TRAINING = COMMON | {"auxiliary": 0.0, "drop_path": 0.0}
DIGITS = {"batch_size": 32, "crop_padding": 1, "flip": False}
CIFAR = {"batch_size": 64, "crop_padding": 2, "flip": True}


@dataclass(frozen=True)
class Setting:
    """The options of all searches and of all trainings on a data set, and their images."""

    searching: dict[str, Any]
    training: dict[str, Any]
    search_images: int | None = None
    train_images: int | None = None


SETTINGS = {
    "digits": Setting(SEARCHING | DIGITS | {"epochs": 10}, TRAINING | DIGITS | {"epochs": 15}),
    "cifar10": Setting(
        SEARCHING | CIFAR | {"epochs": 8}, TRAINING | CIFAR | {"epochs": 15}, 4000, 8000
    ),
}
QUIET: dict[str, Any] = {"progress": False, "tensorboard": False, "device": "cpu"}


@dataclass(frozen=True)
class Job:
    """A search (`rules` is None), or the training of what it found under other rules."""

    strategy: str
    seed: int
    rules: str | None = None

    @property
    def key(self) -> str:
        """Return the name of the job in the file of results."""
        return f"{self.strategy}, seed {self.seed}" + (f", {self.rules}" if self.rules else "")


def jobs(seeds: int) -> Iterator[Job]:
    """Yield all jobs in the order of worth; a search comes before what is trained of it."""
    first, *others = STRATEGIES
    yield from mixed_jobs(first, seeds)
    yield from learned_jobs(first, seeds)
    for strategy in others:
        yield from mixed_jobs(strategy, seeds)
    for strategy in others:
        yield from learned_jobs(strategy, seeds)


def mixed_jobs(strategy: str, seeds: int) -> Iterator[Job]:
    """Yield the searches of a strategy, each with the trainings of the first comparisons."""
    for seed in range(seeds):
        yield Job(strategy, seed)
        yield from (Job(strategy, seed, rules) for rules in assignments_of(strategy))


def learned_jobs(strategy: str, seeds: int) -> Iterator[Job]:
    """Yield the trainings of a strategy's cells under rules whose feedback learns."""
    yield from (Job(strategy, seed, rules) for seed in range(seeds) for rules in LEARNED)


def assignments_of(strategy: str) -> tuple[str, ...]:
    """Return the rules of the first comparisons, for the cells of a strategy.

    Those of one without rules are not mixed.
    """
    return SINGLE if STRATEGIES[strategy]["rules"] == ("bp",) else (*MIXED, *SINGLE)


def do(job: Job, dataset: str, data_dir: str | None, genotype: str | None) -> dict[str, Any]:
    """Do a job; return what its record holds. `genotype` is that of the search, as JSON."""
    started = time.process_time()
    setting = SETTINGS[dataset]
    count = setting.search_images if genotype is None else setting.train_images
    data = images(dataset, data_dir, count, 10_000)
    with tempfile.TemporaryDirectory() as place:
        if genotype is None:
            options = setting.searching | STRATEGIES[job.strategy]
            found = darts_bio.search(data, seed=job.seed, out=place, **QUIET, **options)
            record: dict[str, Any] = {"genotype": found.genotype.to_json()}
            record["edges"] = edges_of(found.genotype)
        else:
            trained = darts_bio.train(
                under(job, from_json(genotype, job.key)),
                data,
                seed=job.seed,
                out=place,
                **QUIET,
                **setting.training,
            )
            record = {"test_error_percent": 100 * (1 - trained.accuracy)}
            record["edges"] = edges_of(trained.genotype)
    return record | {"cpu_seconds": round(time.process_time() - started, 1)}


def under(job: Job, genotype: Genotype) -> Genotype:
    """The operations of a genotype under the rules of a training; the backbone stays under bp."""
    if job.rules == "searched":
        return genotype
    found = [e.candidate.rule for cell in genotype.cells.values() for e in cell.edges]
    found = [rule for rule in found if rule is not None]
    drawn = random.Random(f"rules {job.strategy} {job.seed}")
    if job.rules == "shuffled":
        rules = drawn.sample(found, len(found))
    elif job.rules == "random":
        rules = [drawn.choice(RULES) for _ in found]
    else:
        rules = [job.rules] * len(found)
    in_order = iter(rules)

    def edge_under(edge: Edge) -> Edge:
        if edge.candidate.rule is None:
            return edge
        return replace(edge, candidate=Candidate(edge.candidate.op, next(in_order)))

    cells = {t: Cell(tuple(map(edge_under, c.edges)), c.concat) for t, c in genotype.cells.items()}
    return replace(genotype, cells=cells)


def edges_of(genotype: Genotype) -> str:
    """The operations and rules of a genotype's edges, in one line."""
    return "; ".join(
        ", ".join(str(edge.candidate) for edge in cell.edges) for cell in genotype.cells.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="digits", choices=SETTINGS, help="[%(default)s]")
    parser.add_argument("--data-dir", metavar="DIR", help="folder that holds CIFAR-10")
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N", help="how many, from 0 [%(default)s]"
    )
    parser.add_argument(
        "--processes", type=int, default=2, metavar="N", help="jobs at a time [%(default)s]"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="no job is begun after these [%(default)g]",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the results go [benchmarks/results/study-DATASET.json]",
    )
    options = parser.parse_args()
    path: Path = options.json or RESULTS / f"study-{options.dataset}.json"
    result = kept_results(path)
    setting = as_json(asdict(SETTINGS[options.dataset]))
    if result.setdefault("setting", setting) != setting:
        raise InputError(f"{path}: holds a study of another setting; name another file by --json")
    records: dict[str, dict[str, Any]] = result.setdefault("records", {})
    machine = f"{hardware(torch.device('cpu'))} in each of {options.processes} processes"

    def save(job: Job, record: dict[str, Any]) -> None:
        records[job.key] = record | {"hardware": machine}
        result.update(command=command(), torch=torch.__version__)
        keep_results(path, result)
        print(f"{job.key}: {record['edges']}", file=sys.stderr)

    work = partial(do, dataset=options.dataset, data_dir=options.data_dir)
    spend(list(jobs(options.seeds)), work, records, save, 60 * options.budget, options.processes)
    tables = (answers, errors_table, learned_table)
    print("\n".join(line for table in tables for line in table(records, options.seeds)))
    left = [job for job in jobs(options.seeds) if job.key not in records]
    print(f"\n{len(records)} jobs done, {len(left)} left; the same command goes on")


def as_json(value: Any) -> Any:
    """A value as JSON gives it back, tuples as lists."""
    return json.loads(json.dumps(value))


def spend(
    wanted: Sequence[Job],
    work: Callable[..., dict[str, Any]],
    records: dict[str, dict[str, Any]],
    save: Callable[[Job, dict[str, Any]], None],
    seconds: float,
    processes: int,
) -> None:
    """Do jobs that have no record, in their order, until the time is spent.

    Args:
        wanted: The jobs.
        work: What does one, given it and its search's `genotype`; it runs in another process.
        records: Those of the jobs that are done; `save` adds to them.
        save: Called with each job and its record.
        seconds: After these no job is begun.
        processes: How many jobs run at a time.
    """
    until = time.monotonic() + seconds
    waiting = [job for job in wanted if job.key not in records]
    running: dict[Future[dict[str, Any]], Job] = {}
    with ProcessPoolExecutor(processes) as pool:
        while True:
            for job in list(waiting):
                if len(running) == processes or time.monotonic() > until:
                    break
                search = records.get(Job(job.strategy, job.seed).key)
                if job.rules is not None and search is None:
                    continue  # its search is being made
                genotype = None if job.rules is None else search["genotype"]
                running[pool.submit(work, job, genotype=genotype)] = job
                waiting.remove(job)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                save(running.pop(future), future.result())


def errors_by_strategy(
    records: dict[str, dict[str, Any]], seeds: int
) -> dict[str, dict[str, list[float]]]:
    """Return the test errors in percent, a value for each seed whose trainings are all there.

    A strategy has two such seeds at least, below which there is no spread. They are by the strategy
    that found the operations, then by the rules.
    """
    errors = {}
    for strategy in STRATEGIES:
        kinds = assignments_of(strategy)
        whole = [
            seed
            for seed in range(seeds)
            if all(Job(strategy, seed, rules).key in records for rules in kinds)
        ]
        if len(whole) > 1:
            errors[strategy] = {
                rules: [records[Job(strategy, s, rules).key]["test_error_percent"] for s in whole]
                for rules in kinds
            }
    return errors


def best_single(errors: dict[str, list[float]]) -> str:
    """Return the rule but bp that is best everywhere, by the mean over all seeds."""
    return min(RULES, key=lambda rule: statistics.mean(errors[rule]))


def difference(errors: dict[str, list[float]], one: str, other: str) -> str:
    """Return two cells of a table: errors under `one` minus those under `other`, and p."""
    differences = [a - b for a, b in zip(errors[one], errors[other], strict=True)]
    return f"{shown(differences)} | {paired_p(differences):.3f}"


def answers(records: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    """Return the table of the three questions, in Markdown; none before two seeds are complete."""
    lines = [
        "| operations found by | n | best single rule | mixing: it minus searched | p | "
        "searching: random minus searched | p | places: shuffled minus searched | p | "
        "transport: searched minus bp | p | it minus bp | p |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for strategy, errors in errors_by_strategy(records, seeds).items():
        if "searched" in errors:
            best = best_single(errors)
            pairs = [(other, "searched") for other in (best, "random", "shuffled")]
            pairs += [("searched", "bp"), (best, "bp")]
            cells = [f"`{strategy}`", str(len(errors["bp"])), best]
            cells += [difference(errors, *pair) for pair in pairs]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def errors_table(records: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    """Return the table of test errors in percent, in Markdown: rules by the cells' strategy."""
    by_strategy = errors_by_strategy(records, seeds)
    if not by_strategy:
        return []
    lines = [
        f"| rules | {' | '.join(f'`{strategy}`' for strategy in by_strategy)} |",
        "|---|" + "---|" * len(by_strategy),
    ]
    for rules in (*MIXED, *SINGLE):
        cells = [shown(errors[rules]) if rules in errors else "" for errors in by_strategy.values()]
        name = f"{rules} everywhere" if rules in SINGLE else rules
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def learned_table(records: dict[str, dict[str, Any]], seeds: int) -> list[str]:
    """Return the table of rules that learn their feedback, in Markdown; none before one is trained.

    A row has the seeds whose trainings under it, usf, fa and bp are there.
    """
    lines = [
        "| rule everywhere, cells of | n | test error, % | fa minus it | p | it minus usf | p | "
        "it minus bp | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rule in LEARNED:
        for strategy in STRATEGIES:
            compared = (rule, "fa", "usf", "bp")
            whole = [
                seed
                for seed in range(seeds)
                if all(Job(strategy, seed, r).key in records for r in compared)
            ]
            errors = {
                r: [records[Job(strategy, s, r).key]["test_error_percent"] for s in whole]
                for r in compared
            }
            if errors[rule]:
                cells = [f"`{rule}`, `{strategy}`", str(len(errors[rule])), shown(errors[rule])]
                cells += [
                    difference(errors, *pair)
                    for pair in (("fa", rule), (rule, "usf"), (rule, "bp"))
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


if __name__ == "__main__":
    run(main)
