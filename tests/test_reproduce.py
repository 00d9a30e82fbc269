"""The recipes of the paper's tables: their commands are valid, in order, go on, and are read right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, call, forked

sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "benchmarks" / "reproduce"))
import recipes
import run as reproduce
from recipes import RUNS, TABLES, Row, Table, needed

from darts_bio.cli import COMMANDS
from darts_bio.cli.parser import parse

SCRIPT = ROOT / "benchmarks" / "reproduce" / "run.py"
PAGE = ROOT / "docs" / "results" / "reproducing.md"


def setting(keep: Path, seeds: int = 1, small: bool = False) -> Any:
    places = {"cifar": "data", "imagenet": "imagenet", "imagenet16": "ImageNet16"}
    return reproduce.Setting(keep, {**places, "pictures": str(keep / "pictures")}, seeds, small)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_each_command_is_valid(name: str, small: bool) -> None:
    command, *words = setting(Path("runs/reproduce"), small=small).words(name, 2)
    assert not any("{" in word for word in words)
    for number, word in enumerate(words):  # of a search that has not been made
        if word.startswith("runs/") and words[number - 1] == "--genotype":
            words[number] = "bionas_darts"
    config: Any = parse(COMMANDS[command].config, words)
    if RUNS[name].inside is None:
        assert (config.seed, config.resume) == (2, "auto")
        assert config.out == f"runs/reproduce/{name}/seed-2"
    if small:
        assert config.device == "cpu"
        assert getattr(config, "epochs", 1) == 1


@pytest.mark.parametrize("table", TABLES)
def test_what_a_run_needs_comes_before_it(table: str) -> None:
    names = TABLES[table].runs()
    assert len(set(names)) == len(names)
    for number, name in enumerate(names):
        folders = [f"runs/{other}/seed-0" for other in RUNS]
        words = setting(Path("runs")).words(name, 0)
        read = [f for f in folders if f in words and f != f"runs/{name}/seed-0"]
        assert {Path(folder).parent.name for folder in read} <= set(names[:number])
    assert {row.run for row in TABLES[table].rows} <= set(names)


def test_a_dry_run_has_each_command_once_and_adds_up_the_hours() -> None:
    lines = list(reproduce.plan(["T1", "T5"], setting(Path("runs"), seeds=2)))
    commands = [line for line in lines if line.startswith("python")]
    names = dict.fromkeys((*TABLES["T1"].runs(), *TABLES["T5"].runs()))
    assert len(commands) == len(set(commands)) == len(names)
    # T1: five whole trainings of CIFAR beside the published cell's, one short one, three searches.
    # T5: six further trainings, and draws, which cost nothing.
    hours = 6 * 2.2 + 0.4 + (0.75 + 0.6 + 0.9) + 6 * 2.2
    assert lines[-1] == f"# for seeds 0, 1, of which 0 is shown: {2 * hours:.1f} GPU-hours"
    assert "# as above: published" in lines


@pytest.mark.slow
def test_a_table_at_toy_size_is_made_once_and_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fork(words: list[str]) -> subprocess.CompletedProcess[str]:
        made.append(words[3])
        done = forked(*words[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    monkeypatch.setattr(reproduce.subprocess, "run", fork)
    rows = (
        Row("error", "bp-trained", "accuracy", 95.0),
        Row("variance", "bp-trained-aligned", "variance"),
        Row("time", "bp-trained", "GPU-days"),
        Row("never run", "pairs", "GPU-days"),
    )
    monkeypatch.setitem(TABLES, "X", Table("Of a test", rows[:3]))
    where = setting(tmp_path, small=True)
    reproduce.make(["X"], where)
    assert made == ["search", "train", "alignment"]
    reproduce.make(["X"], where)
    assert len(made) == 3
    monkeypatch.setitem(TABLES, "X", Table("Of a test", rows))
    found = reproduce.collected("X", where)
    last = (tmp_path / "bp-trained/seed-0/metrics.jsonl").read_text().splitlines()[-1]
    aligned = json.loads((tmp_path / "bp-trained/seed-0/alignment.json").read_text())
    assert found["error"]["seeds"] == {"0": 100 * json.loads(last)["test/accuracy"]}
    assert found["variance"]["seeds"] == {"0": aligned["gradient_variance"]}
    assert found["time"]["seeds"]["0"] == json.loads(last)["seconds"] / 86400
    assert found["never run"]["seeds"] == {}
    # The control is the published cell, every weight of it under the one rule.
    edges = json.loads((tmp_path / "bp-everywhere/seed-0/genotype.json").read_text())["cells"]
    published = json.loads((ROOT / "genotypes/bionas_darts.json").read_text())["cells"]
    for cell in ("normal", "reduce"):
        for edge in published[cell]["edges"]:
            edge["rule"] = edge["rule"] and "bp"
        key = lambda edge: (edge["node"], edge["input"])  # noqa: E731
        assert sorted(edges[cell]["edges"], key=key) == sorted(published[cell]["edges"], key=key)


def test_a_run_that_is_not_at_its_end_is_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "published" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("genotype: bionas_darts\nseed: 0\nepochs: 600\n")
    (folder / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 3, "test/accuracy": 0.5}\n')
    assert reproduce.collected("T5", setting(tmp_path))["the published rules"]["seeds"] == {}


def test_the_row_of_an_attack_is_of_that_attack_and_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(attack: str, gradients: str, eps: float, accuracy: float) -> dict[str, Any]:
        return {"attack": attack, "gradients": gradients, "eps": eps, "accuracy": accuracy}

    attacks = [
        entry("fgsm", "true", 8.0, 0.25),
        entry("fgsm", "rule", 8.0, 0.5),
        entry("pgd(steps=3)", "true", 0.0, 1.0),
        entry("pgd(steps=3)", "true", 8.0, 0.125),
    ]
    (tmp_path / "results.json").write_text(
        json.dumps({"networks": [{"clean": 0.75, "attacks": attacks}]})
    )
    monkeypatch.setattr(reproduce, "finished", lambda folder: True)
    for measure, number in {"fgsm, true": 25, "fgsm, rule": 50, "pgd, true": 12.5}.items():
        assert reproduce.measured(Row("", "published-attacked", measure), tmp_path) == number
    # Where nothing is right that could be attacked, nothing is attacked.
    (tmp_path / "results.json").write_text('{"networks": [{"clean": 0.0, "attacks": []}]}')
    assert reproduce.measured(Row("", "published-attacked", "pgd, true"), tmp_path) == 0


def test_the_page_shows_what_the_program_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in TABLES:
        file = ROOT / "benchmarks" / "results" / f"reproduce-{table}.json"
        rows = json.loads(file.read_text())["rows"] if file.exists() else None
        rows = rows or reproduce.collected(table, setting(Path("runs/none")))
        assert "\n".join(reproduce.shown(table, rows)) in page, table
    commands = "\n".join(reproduce.plan(list(TABLES), setting(Path("runs/reproduce"), seeds=3)))
    assert f"```sh\n{commands}\n```" in page


def test_needed_runs_are_those_of_the_recipes() -> None:
    assert needed("random-trained") == ("random",)
    assert needed("fa-trained-aligned") == ("fa-everywhere", "fa-trained")
    assert recipes.needed("published") == ()


@pytest.mark.slow
def test_the_small_form_of_a_table_runs_as_a_command(tmp_path: Path) -> None:
    done = call(str(SCRIPT), "T2", "--small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| ImageNet, the published cell | 60.51 |" in done.stdout
    saved = json.loads((tmp_path / "runs/reproduce-small/T2.json").read_text())
    assert saved["small"]
    assert all(len(row["seeds"]) == 1 for row in saved["rows"].values())
    assert not list((ROOT / "benchmarks" / "results").glob("reproduce-T2.json"))


def test_an_unknown_table_is_one_line() -> None:
    done = forked(str(SCRIPT), "T9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "T9" in done.stderr
