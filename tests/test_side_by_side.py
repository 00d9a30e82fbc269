"""Runs side by side: what the report says of folders whose numbers are known."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from darts_bio.cli import main
from darts_bio.evaluation.paired import paired_p
from darts_bio.spaces import load_genotype

ACCURACIES = {"a": [0.90, 0.93, 0.91, 0.95], "b": [0.85, 0.90, 0.92, 0.80]}


def run_folder(
    path: Path, accuracy: float, *, epochs: int = 2, cell: str = "", **more: Any
) -> None:
    """A training that has ended; its accuracy grows to the given one."""
    path.mkdir(parents=True)
    config = {"seed": 0, "dataset": "digits", "epochs": epochs, "lr": 0.1, "genotype": "x", **more}
    (path / "config.yaml").write_text(json.dumps(config))
    records = [
        {"event": "epoch", "step": 5 * n, "epoch": n, "test/loss": 2.0 / n, "test/accuracy": value}
        for n, value in enumerate([accuracy / 2] * (epochs - 1) + [accuracy], 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    status = {"state": "finished", "epochs": epochs, "parameters": 1234, "data": "digest 1"}
    (path / "status.json").write_text(json.dumps(status))
    torch.save({}, path / "checkpoint.pt")
    if cell:
        (path / "genotype.json").write_text(load_genotype(cell).to_json())


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trainings of four seeds each."""
    monkeypatch.chdir(tmp_path)
    for name, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            cell = {"a": "darts_v2", "b": "bionas_darts"}[name]
            run_folder(tmp_path / name / f"seed-{seed}", accuracy, seed=seed, cell=cell)
        config = {"seeds": 4, "dataset": "digits", "epochs": 2, "genotype": name, "lr": 0.1}
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def reported(*words: str) -> str:
    assert main(["report", *words, "--out", "out", "--charts", "png,pdf"]) == 0
    return Path("out/report.md").read_text()


def test_a_report_of_several_seeds(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = reported("a", "b")
    assert capsys.readouterr().out == "report: out/report.md\n"
    assert text.startswith("# a, b side by side\n\nRuns of one kind, all at their end")
    a, b = ACCURACIES.values()
    shown = f"{100 * statistics.mean(a):.2f} +- {100 * statistics.stdev(a):.2f}"
    assert f"| 1 a | train | digits | - | bp | 0-3 | 2/2 | - | {shown} | 1,234 |" in text
    differences = [100 * (x - y) for x, y in zip(a, b, strict=True)]
    # The sums of 16 choices of signs: 5, 3, -1 and 15 are 22; as far from 0 are 24, 22 and these
    # with the other sign.
    p = 4 / 16
    mean = f"{statistics.mean(differences):+.2f} +- {statistics.stdev(differences):.2f}"
    assert f"| a | b | test | 4 | {mean} | {p:.3g} |" in text
    assert "sign-flip test" in text
    assert "here 0.125 where n = 4" in text
    # All seeds of a training share the genotype: one figure each.
    figures = {path.name for path in Path("out").glob("*.svg")}
    assert figures == {"curves.svg", "cells-1-1.svg", "cells-2-1.svg"}
    assert set(re.findall(r"\]\((.*?\.svg)\)", text)) == figures
    assert "![seed 0, 1, 2, 3](cells-1-1.svg) | seed 0, 1, 2, 3 ![" in text
    assert "| option | a | b |\n| --- | --- | --- |\n| genotype | a | b |\n" in text
    assert "| lr |" not in text
    for figure in figures:
        ElementTree.fromstring((several / "out" / figure).read_text())
    assert Path("out/curves.pdf").read_bytes().startswith(b"%PDF")
    assert Path("out/curves.png").read_bytes().startswith(b"\x89PNG")
    curves = Path("out/curves.svg").read_text()
    assert curves.count(">1 a<") == curves.count(">2 b<") == 1  # in the legend
    assert {"test loss, nats", "test accuracy, %"} <= set(re.findall(r">([^<>]+)</text>", curves))
    assert "standard deviation" in curves


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dataset": "cifar10"}, "other data sets: x of digits, y of cifar10"),
        ({"epochs": 3}, "other numbers of epochs asked for: x 2, y 3"),
        ({"data": "digest 2"}, "other images of the data set: x digest 1, y digest 2"),
        ({"state": "stopped"}, "not at their end: y stopped"),
        ({"space": "darts", "rules": ["fa"]}, "other kinds of runs: x train, y search"),
        ({}, ""),
    ],
)
def test_runs_that_cannot_be_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "x", 0.5)
    options = {name: value for name, value in change.items() if name not in ("data", "state")}
    run_folder(tmp_path / "y", 0.75, **options)
    if "space" in change:
        (tmp_path / "y" / "config.yaml").write_text(
            json.dumps({"seed": 0, "dataset": "digits", **change})
        )
    status = json.loads((tmp_path / "y" / "status.json").read_text())
    status |= {name: change[name] for name in ("data", "state") if name in change}
    (tmp_path / "y" / "status.json").write_text(json.dumps(status))
    text = reported("x", "y")
    said = capsys.readouterr().out
    assert ("**Their numbers are not comparable:**" in text) == bool(line)
    assert f"- {line}\n" in text if line else True
    assert (f"not comparable: {line}\n" in said) == bool(line)
    assert "| x | y | test | 1 | -25.00 | - |" in text
    assert "No test: it takes two seeds or more" in text


def test_only_seeds_that_both_have_are_paired(several: Path) -> None:
    config = several / "b" / "seed-3" / "config.yaml"
    config.write_text(config.read_text().replace('"seed": 3', '"seed": 7'))
    (several / "b" / "seed-2" / "metrics.jsonl").write_text("")
    text = reported("a", "b")
    assert "| a | b | test | 2 | +4.00 +- 1.41 | 0.5 |" in text


def test_names_and_files_that_no_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x|y\n# z<script>\x1b[2J![p](q)"
    run_folder(tmp_path / name, 0.5, lr="0|1\n2")
    run_folder(tmp_path / "y", 0.75)
    (tmp_path / "y" / "genotype.json").write_text("{")
    (tmp_path / "y" / "metrics.jsonl").write_bytes(b"\xff\n\xfe\n")
    text = reported(name, "y")
    assert "\x1b" not in text + capsys.readouterr().out
    for line in text.splitlines():
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
            assert bars in (3, 4, 5, 7, 14), line
    assert not re.search(r"(?<!\\)<script", text)
    assert "\n# z" not in text
    assert "- not at their end: y damaged" in text
    assert "0\\|1 2" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "report: expected two or more run folders to compare, found 1"),
        ([], "report: expected two or more run folders to compare, found 0"),
        (["x", "x"], "found x more than once"),
        (["x", "./x"], "report: expected each run once"),
        (["x", "."], ".: expected a run folder, found no config.yaml"),
        (["x", "nowhere"], "nowhere: expected a folder of runs, found no folder"),
    ],
)
def test_what_is_no_comparison(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "x", 0.5)
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_sign_flip_test_tries_all_signs() -> None:
    draws = torch.Generator().manual_seed(0)
    for n in range(1, 9):
        values = (torch.randn(n, generator=draws) + 0.5).tolist()
        sums = [
            sum(sign * value for sign, value in zip(signs, values, strict=True))
            for signs in itertools.product((1, -1), repeat=n)
        ]
        expected = statistics.mean(abs(total) >= abs(sum(values)) - 1e-9 for total in sums)
        assert paired_p(values) == pytest.approx(expected)
    # Of many the signs are drawn: differences of one size follow the binomial distribution.
    positive = 18
    p = paired_p([1.0] * positive + [-1.0] * (30 - positive))
    assert p == pytest.approx(0.3616, abs=0.003)  # scipy.stats.binomtest(18, 30).pvalue


def test_words_after_a_script_of_timms_are_its_own() -> None:
    from darts_bio.cli.parser import parse
    from darts_bio.config import ReportConfig, TimmConfig

    assert parse(TimmConfig, ["train.py", "--model", "x"]).arguments == ("--model", "x")
    config = parse(ReportConfig, ["a", "b,c", "--out", "d"])
    assert (config.runs, config.out) == (("a", "b,c"), "d")
