"""Searches without a supernet, against the algorithms of the papers written plainly, and trainings
made by hand.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, StopAfter, here
from searching import going_on, in_short

import darts_bio
from darts_bio.config import RetrainConfig
from darts_bio.data.datasets import ImageData, halves, load_data
from darts_bio.errors import InputError
from darts_bio.runtime import derive_seed, generator
from darts_bio.spaces import SPACES, Genotype, from_json, neighbors, random_neighbor, to_nb201_text
from darts_bio.strategies import BLACK_BOX_STRATEGIES, Context
from darts_bio.strategies.random import random_cells
from darts_bio.training.engine import run_epoch
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.retrain import Retraining

CPU = torch.device("cpu")
SPECS = ("random_search", "regularized_evolution(population=6, sample=3)", "local_search")
QUIET: dict[str, Any] = {"progress": False, "tensorboard": False}
TINY: dict[str, Any] = {
    "space": "darts(nodes=1, operations=(max_pool_3x3, sep_conv_3x3))",
    "rules": ("fa", "usf"),
    "train_images": 48,
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "epochs": 2,
    "device": "cpu",
    **QUIET,
}


def context(space: str, seed: int = 0, queries: int = 10**6) -> Context:
    built = SPACES.build(space)
    return Context(built, built.table(("fa", "usf")), seed, CPU, queries, 1)


def rugged(genotype: Genotype) -> float:
    """An accuracy of chance, with many ties, that is a function of the genotype."""
    return derive_seed("accuracy", genotype.with_provenance().to_json()) % 5 / 5


def smooth(genotype: Genotype) -> float:
    """An accuracy with a single local optimum: each edge adds something of its own."""
    edges = [edge for cell in genotype.cells.values() for edge in cell.edges]
    return sum(derive_seed(str(edge)) % 1000 for edge in edges) / (1000 * len(edges))


def draw(of: Context, query: int, attempt: int = 0) -> Genotype:
    source = generator("cpu", "random query", of.seed, query, attempt)
    return Genotype(SPACES.spec(of.space), of.space.derive(random_cells(of, source), of.table))


def plain_random(of: Context, accuracy: Callable[[Genotype], float], queries: int) -> list[Any]:
    return [(g, accuracy(g)) for g in (draw(of, n) for n in range(queries))]


def plain_evolution(of: Context, accuracy: Callable[[Genotype], float], queries: int) -> list[Any]:
    """Algorithm 1 of Real et al. with P = 6, S = 3."""
    population: deque[Any] = deque()
    history: list[Any] = []
    while len(population) < 6:
        model = draw(of, len(history))
        population.append((model, accuracy(model)))
        history.append(population[-1])
    while len(history) < queries:
        source = generator("cpu", "evolution", of.seed, len(history))
        sample: list[Any] = []
        for i in torch.randint(6, (3,), generator=source).tolist():
            sample.append(population[i])  # the member stays in the population
        parent = sample[0]
        for candidate in sample[1:]:
            if candidate[1] > parent[1]:
                parent = candidate
        child = random_neighbor(parent[0], of.space, of.table, source)
        population.append((child, accuracy(child)))
        history.append(population[-1])
        population.popleft()
    return history[:queries]


def plain_local(of: Context, accuracy: Callable[[Genotype], float], queries: int) -> list[Any]:
    """The published local search, from one genotype, that moves at the first improvement."""
    history: list[Any] = []
    queried: list[Genotype] = []

    def query(genotype: Genotype) -> float:
        history.append((genotype, accuracy(genotype)))
        queried.append(genotype)
        return float(history[-1][1])

    while len(history) < queries:
        start = next(
            g for a in itertools.count() if (g := draw(of, len(history), a)) not in queried
        )
        here_now, found_at = start, len(history)
        best = query(start)
        improves = True
        while improves:
            improves = False
            around = neighbors(here_now, of.space, of.table)
            source = generator("cpu", "order of neighbors", of.seed, found_at)
            for i in torch.randperm(len(around), generator=source).tolist():
                if around[i] in queried:
                    continue
                found = query(around[i])
                if found > best:
                    here_now, best, found_at, improves = around[i], found, len(history) - 1, True
                    break
    return history[:queries]


PLAIN = dict(zip(SPECS, (plain_random, plain_evolution, plain_local), strict=True))


@pytest.mark.parametrize("space", ["nb201", "darts(nodes=2)", "by_depth(space=darts, cells=3)"])
@pytest.mark.parametrize("accuracy", [rugged, smooth])
@pytest.mark.parametrize("spec", SPECS)
def test_it_queries_what_the_paper_does(
    spec: str, accuracy: Callable[[Genotype], float], space: str
) -> None:
    of = context(space, seed=3)
    strategy = BLACK_BOX_STRATEGIES.build(spec)
    state, history = strategy.begin(of), []
    for _ in range(60):
        genotype = strategy.propose(state)
        assert strategy.propose(state) == genotype
        history.append((genotype, accuracy(genotype)))
        strategy.observe(state, *history[-1])
    assert history == PLAIN[spec](of, accuracy, 60)


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 33])
@pytest.mark.parametrize("spec", SPECS)
def test_it_goes_on_from_its_state(spec: str, cut: int) -> None:
    strategy = BLACK_BOX_STRATEGIES.build(spec)
    states = [strategy.begin(context("darts(nodes=2)")) for _ in range(2)]
    asked = []
    for query in range(40):
        if query == cut:
            buffer = io.BytesIO()
            torch.save(states[0].state_dict(), buffer)
            buffer.seek(0)
            states[1].load_state_dict(torch.load(buffer, weights_only=True))
        asked.append(strategy.propose(states[0]))
        strategy.observe(states[0], asked[-1], rugged(asked[-1]))
    for query in range(cut, 40):
        genotype = strategy.propose(states[1])
        assert genotype == asked[query]
        strategy.observe(states[1], genotype, rugged(genotype))


def test_local_search_queries_nothing_twice_and_climbs_to_the_only_optimum() -> None:
    of = context("nb201")
    strategy = BLACK_BOX_STRATEGIES.build("local_search")
    state, asked = strategy.begin(of), []
    for _ in range(200):
        asked.append(strategy.propose(state))
        strategy.observe(state, asked[-1], smooth(asked[-1]))
    assert len({genotype.to_json() for genotype in asked}) == 200
    best = max(asked, key=smooth)
    rows = of.table.rows["cell"]
    # Each edge by itself has its best candidate.
    for edge, row in zip(best.cells["cell"].edges, rows, strict=True):
        others = [type(edge)(edge.node, edge.input, c) for c in row if c is not None]
        assert derive_seed(str(edge)) % 1000 == max(derive_seed(str(e)) % 1000 for e in others)


def test_local_search_ends_no_space() -> None:
    space = "nb201(operations=(none, skip_connect))"  # of 64 cells
    strategy = BLACK_BOX_STRATEGIES.build("local_search")
    state, asked = strategy.begin(context(space)), set()
    for _ in range(66):
        genotype = strategy.propose(state)
        asked.add(genotype.to_json())
        strategy.observe(state, genotype, rugged(genotype))
    assert len(asked) == 64


# Whole searches.


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=48)


def test_a_query_is_a_training_from_scratch_on_one_half_measured_on_the_other(
    tmp_path: Path, data: ImageData
) -> None:
    found = darts_bio.search(
        "digits", strategy="random_search", queries=2, crop_padding=1, out=tmp_path, **TINY
    )
    train, held_out = halves(data.train, 0)
    best = None
    for query, line in enumerate(lines(tmp_path)):
        genotype = from_json(json.dumps(line["genotype"]), "line")
        config = RetrainConfig(
            genotype="by hand", seed=line["seed"], channels=2, layers=3, epochs=2, batch_size=8,
            lr=0.1, lr_min=0.001, crop_padding=1, flip=False, cutout=0, auxiliary=0.0, drop_path=0.0,
        )  # fmt: skip
        training = Retraining.of_genotype(
            config, genotype, ImageData(train, held_out, data.classes), CPU
        )
        for epoch in range(2):
            numbers = run_epoch(training, epoch)
        assert line["query"] == query + 1
        assert line["accuracy"] == numbers["test/accuracy"]
        assert line["loss"] == numbers["test/loss"]
        assert line["images"] == (query + 1) * 2 * 3 * 8  # epochs, steps, batch
        if best is None or line["accuracy"] > best[0]:
            best = line["accuracy"], genotype
    assert lines(tmp_path)[0]["seed"] != lines(tmp_path)[1]["seed"]
    assert best is not None
    assert found.genotype == best[1]
    assert [numbers["valid/accuracy"] for numbers in found.epochs] == [
        line["accuracy"] for line in lines(tmp_path)
    ]
    assert darts_bio.load_genotype(str(tmp_path)) == best[1]
    report = (tmp_path / "report.md").read_text()
    assert "for 2 epochs on 24 of the training images, and measured on 24 others" in report
    assert "Cost: 96 training images" in report
    first, *_, cost, _, next_step = in_short(tmp_path / "report.md")
    assert first.startswith("**Data:** digits. Each genotype is trained on 24 of the training")
    assert first.endswith("measured on 24 others, the same for all; no test image is used.")
    assert cost.startswith("**Cost:** 2 queries in ")
    assert next_step == '**Next:** train the genotype; see "How to go on".'
    command = f" train --genotype {tmp_path.name} --dataset digits"
    assert command in going_on(tmp_path / "report.md")
    assert (tmp_path / "best.svg").is_file()


class Crash(Listener):
    """A power cut after the line of a query is written, before the checkpoint is."""

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        if progress.epoch == 3:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("spec", SPECS[1:])
@pytest.mark.parametrize(
    "stop", [StopAfter(8), StopAfter(12), Crash()], ids=["within", "at", "cut"]
)
def test_a_resumed_search_equals_one_that_was_not_stopped(
    spec: str, stop: Listener, tmp_path: Path
) -> None:
    options = TINY | {"strategy": spec, "queries": 5, "rules": "fa,kolen_pollack"}
    if isinstance(stop, StopAfter):
        stop = StopAfter(stop._left)
    folders = [tmp_path / name for name in "ab"]
    whole = darts_bio.search("digits", out=folders[0], **options)
    if isinstance(stop, Crash):
        with pytest.raises(RuntimeError, match="power cut"):
            darts_bio.search("digits", out=folders[1], listener=stop, **options)
    else:
        stopped = darts_bio.search("digits", out=folders[1], listener=stop, **options)
        assert not stopped.finished
        assert "of 5 queries" in (folders[1] / "report.md").read_text()
        assert in_short(folders[1] / "report.md")[-1].startswith("**Next:** go on with the search")
    resumed = darts_bio.search("digits", out=folders[1], resume=True, **QUIET)
    assert resumed.finished
    assert resumed.genotype == whole.genotype
    texts = [(folder / "evaluations.jsonl").read_text() for folder in folders]
    assert texts[0] == texts[1]
    assert len(lines(folders[1])) == 5
    assert (folders[0] / "best.svg").read_text() == (folders[1] / "best.svg").read_text()


def test_a_training_that_diverges_counts_nothing_and_ends_nothing(tmp_path: Path) -> None:
    options = TINY | {"lr": 1e30, "clip": 0.0, "queries": 3, "strategy": "random_search"}
    stopped = darts_bio.search("digits", out=tmp_path, listener=StopAfter(4), **options)
    assert not stopped.finished
    found = darts_bio.search("digits", out=tmp_path, resume=True, **QUIET)
    assert found.finished
    assert [(line["accuracy"], line["loss"]) for line in lines(tmp_path)] == [(0.0, None)] * 3


def test_seeds_and_a_choice_among_them(tmp_path: Path) -> None:
    result = darts_bio.search_and_train(
        "digits", strategy="random_search", queries=2, seeds=2, choice_epochs=1, out=tmp_path,
        training="auto(epochs=1, channels=2)", **TINY | {"space": "by_depth(space=darts, cells=3)"},
    )  # fmt: skip
    assert result.finished
    assert result.genotype is not None
    assert list(result.genotype.cells) == ["normal_0", "reduce_1", "reduce_2"]
    for seed in (0, 1):
        assert len(lines(tmp_path / "searches" / f"seed-{seed}")) == 2


OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "nb201.json"
    cells = [
        f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6)
    ]
    accuracies = {cell: {"valid": derive_seed(cell) % 900 / 10, "test": 1.0} for cell in cells}
    path.write_text(json.dumps(accuracies))
    return path


@pytest.mark.parametrize("spec", SPECS)
def test_with_a_table_the_accuracies_are_looked_up(spec: str, table: Path, tmp_path: Path) -> None:
    found = darts_bio.search(
        strategy=spec, space="nb201", rules="bp", table=table, query="valid", queries=100, seed=1,
        out=tmp_path, device="cpu", **QUIET,
    )  # fmt: skip
    known = json.loads(table.read_text())

    def accuracy(genotype: Genotype) -> float:
        return float(known[to_nb201_text(genotype, rules=False)]["valid"] / 100)

    space = SPACES.build("nb201")
    of = Context(space, space.table(("bp",)), 1, CPU, 100, 1)
    expected = PLAIN[spec](of, accuracy, 100)
    assert [(line["accuracy"], line["images"]) for line in lines(tmp_path)] == [
        (of_query, 0) for _, of_query in expected
    ]
    best, highest = max(expected, key=lambda query: query[1])
    assert found.genotype.cells == best.cells
    assert found.known == {"valid": pytest.approx(100 * highest), "test": 1.0}
    report = tmp_path / "report.md"
    assert "nothing was trained" in report.read_text()
    assert "Accuracies are those of the column valid; nothing is trained." in in_short(report)[0]
    assert in_short(report)[-1].startswith("**Next:** train the genotype")


def test_a_table_that_has_changed_is_not_gone_on_with(table: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(table.read_text())
    options = {"space": "nb201", "rules": "bp", "table": own, "query": "valid", "queries": 20}
    run = tmp_path / "run"
    darts_bio.search(
        strategy="local_search", out=run, listener=StopAfter(10), device="cpu", **options, **QUIET
    )
    own.write_text(table.read_text().replace('"test": 1.0', '"test": 2.0', 1))
    with pytest.raises(InputError, match="the table of this run has changed since it was stopped"):
        darts_bio.search(out=run, resume=True, **QUIET)


BLACK = "--strategy local_search"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--strategy local_serch",
            "unknown strategy 'local_serch': did you mean 'local_search' or",
        ),
        (f"{BLACK} --regularizers skip_stop", "--regularizers: has no say with --strategy local_"),
        (f"{BLACK} --objective parameters", "--objective: has no say with"),
        (f"{BLACK} --supernet runs/x", "--supernet: has no say with"),
        (f"{BLACK} --arch-gradient true", "--arch-gradient: has no say with"),
        (f"{BLACK} --weights shared", "--weights: has no say with"),
        (f"{BLACK} --kernel-scale init", "--kernel-scale: has no say with"),
        (f"{BLACK} --memory low", "--memory: has no say with"),
        (f"{BLACK} --stages stage,stage(candidates=5)", "--stages: has no say with"),
        (f"{BLACK} --queries 0", "--queries: expected at least 1, found 0"),
        ("--queries 5", "--queries: expected a strategy that makes queries, random_search, "),
        (f"{BLACK} --query cifar10", "--query cifar10: expected --table FILE, of which it is a"),
        ("--strategy 'regularized_evolution(sample=0)'", "sample: expected a whole number of at"),
        (f"{BLACK} --space nb201 --table few.csv --query valid", "expected --rules bp, under"),
        (
            f"{BLACK} --space nb201 --rules bp --table few.csv --query valid",
            "expected all cells of the space, found no |",
        ),
        (
            f"{BLACK} --space 'by_depth(space=darts, cells=5)' --layers 3",
            "found none for normal_0, normal_4 among 3 cells",
        ),
        (f"{BLACK} --batch-size 800", "--batch-size"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "few.csv").write_text(
        "arch,valid\n|none~0|+|none~0|none~1|+|none~0|none~1|none~2|,10\n"
    )
    assert message in here(SEARCH, f"{words} --out run", tmp_path, monkeypatch, capsys)
    assert not (tmp_path / "run").exists()


def test_an_unknown_column_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown column of .*: did you mean 'valid'"):
        darts_bio.search(
            strategy="random_search", space="nb201", rules="bp", table=table, query="vallid",
            out=tmp_path / "run", **QUIET,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_population_that_is_never_full_is_told() -> None:
    strategy = BLACK_BOX_STRATEGIES.build("regularized_evolution")
    (note,) = strategy.notes(strategy.begin(context("nb201", queries=100)))
    assert "all of 100 queries are random draws" in note
    assert strategy.notes(strategy.begin(context("nb201", queries=101))) == []
