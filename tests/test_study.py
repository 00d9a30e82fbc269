"""The study of the three questions: what is trained of a search, and what its tables say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import study
from study import MIXED, SINGLE, Job, answers, errors_table, jobs, learned_table, spend, under

from darts_bio.spaces import load_genotype

FOUND = load_genotype("bionas_darts")


def rules(job: Job) -> list[str | None]:
    return [e.candidate.rule for c in under(job, FOUND).cells.values() for e in c.edges]


def test_a_control_changes_rules_alone_and_leaves_the_backbone() -> None:
    for kind in (*MIXED, *SINGLE):
        changed = under(Job("darts", 3, kind), FOUND)
        assert changed.backbone_rule == FOUND.backbone_rule
        for cell_type, cell in FOUND.cells.items():
            other = changed.cells[cell_type]
            assert cell.concat == other.concat
            for one, two in zip(cell.edges, other.edges, strict=True):
                assert (one.node, one.input, one.candidate.op) == (
                    two.node,
                    two.input,
                    two.candidate.op,
                )
                assert (one.candidate.rule is None) == (two.candidate.rule is None)
    assert set(rules(Job("darts", 3, "usf"))) == {"usf", None}
    shuffled = [rules(Job("darts", seed, "shuffled")) for seed in range(20)]
    searched = rules(Job("darts", 3, "searched"))
    assert {tuple(sorted(map(str, s))) for s in shuffled} == {tuple(sorted(map(str, searched)))}
    assert len({tuple(map(str, s)) for s in shuffled}) > 10
    drawn = [rules(Job("darts", seed, "random")) for seed in range(20)]
    assert len({tuple(map(str, d)) for d in drawn}) > 15
    assert {rule for d in drawn for rule in d} == {*study.RULES, None}


def test_the_help_says_the_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "--help"])
    with pytest.raises(SystemExit):
        study.main()
    words = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    defaults = {"dataset": "digits", "seeds": "10", "processes": "2", "budget": "60"}
    for name, default in defaults.items():
        assert re.search(rf"--{name}\b[^-]*\[{default}\]", words), name


def test_jobs_are_done_in_order_within_the_budget_and_gone_on_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without processes: a search comes before its trainings, and nothing is done twice."""

    class Pool:
        def __init__(self, processes: int) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None: ...
        def submit(self, do: Any, job: Job, **_: Any) -> Any:
            from concurrent.futures import Future

            future: Future[dict[str, Any]] = Future()
            future.set_result({"genotype": job.strategy})
            return future

    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    done: list[Job] = []
    records: dict[str, dict[str, Any]] = {}

    def save(job: Job, record: dict[str, Any]) -> None:
        done.append(job)
        records[job.key] = record

    wanted = list(jobs(2))
    kinds = [(job.strategy == "rule_aware", job.rules in study.LEARNED) for job in wanted]
    runs = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
    assert runs == [(True, False), (True, True), (False, False), (False, True)]
    spend(wanted, study.do, records, save, -1.0, 2)
    assert not done  # no time
    spend(wanted[:10], study.do, records, save, 60.0, 2)
    spend(wanted, study.do, records, save, 60.0, 2)
    assert sorted(map(str, done)) == sorted(map(str, wanted))
    for number, job in enumerate(done):
        assert job.rules is None or Job(job.strategy, job.seed) in done[:number]


def test_the_tables_are_those_of_the_pairs() -> None:
    records: dict[str, dict[str, Any]] = {}
    for seed in range(3):
        for kind, error in {
            "searched": 5,
            "shuffled": 6,
            "random": 7,
            "fa": 9,
            "usf": 4,
            "brsf": 6,
            "frsf": 6,
        }.items():
            records[Job("eg", seed, kind).key] = {"test_error_percent": error + seed}
        records[Job("eg", seed, "bp").key] = {"test_error_percent": 2.0 + 2 * seed}
    records[Job("darts under bp", 0, "bp").key] = {"test_error_percent": 1.0}  # others are missing
    # The best single rule is a point better than what was searched, in each seed: against mixing.
    # Against bp the differences are 3, 2, 1 and 2, 1, 0. Of one sign: p = 2/8; one is 0: 4/8.
    assert answers(records, 5)[2:] == [
        "| `eg` | 3 | usf | -1.0 +- 0.0 | 0.250 | 2.0 +- 0.0 | 0.250 | 1.0 +- 0.0 | 0.250 "
        "| 2.0 +- 1.0 | 0.250 | 1.0 +- 1.0 | 0.500 |",
        "",
    ]
    table = errors_table(records, 5)
    assert table[0] == "| rules | `eg` |"
    assert "| shuffled | 7.0 +- 1.0 |" in table
    assert "| bp everywhere | 4.0 +- 2.0 |" in table
    # fa is 4 points worse than the rule that learns its feedback in seeds 0 and 2, alone trained.
    for seed in (0, 2):
        records[Job("eg", seed, "pfa").key] = {"test_error_percent": 5.0 + seed}
    assert learned_table(records, 5)[2:] == [
        "| `pfa`, `eg` | 2 | 6.0 +- 1.4 | 4.0 +- 0.0 | 0.500 | 1.0 +- 0.0 | 0.500 "
        "| 2.0 +- 1.4 | 0.500 |",
        "",
    ]
    del records[Job("eg", 1, "bp").key]
    assert "| bp everywhere | 4.0 +- 2.8 |" in errors_table(records, 5)  # of seeds 0 and 2
    assert answers({}, 5) == errors_table({}, 5) == learned_table({}, 5) == []
