"""The scripts as their users meet them: what they print, how they end, and what they say to bad
input.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import SEARCH, TRAIN, call, forked, here, refused
from several import several

from darts_bio.cli import main
from darts_bio.spaces import load_genotype
from darts_bio.storage.checkpoint import read_checkpoint

SMALL = shlex.split(
    "--space darts(nodes=1) --channels 2 --batch-size 8 --rules usf --device cpu --log-every 2"
)


def test_nb201_by_random_choice_is_there_at_once_and_its_accuracy_is_looked_up(
    tmp_path: Path,
) -> None:
    one = "--space nb201 --strategy random --rules fa --out run --seed 3"
    found = forked(SEARCH, *shlex.split(one), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    text = found.stdout.splitlines()[0]
    assert load_genotype(text) == load_genotype(tmp_path / "run")
    plain = re.sub(r":\w+", "", text)
    (tmp_path / "known.json").write_text(json.dumps({plain: {"cifar10": 91.25}}))
    again = forked(
        SEARCH, *shlex.split(one.replace("run", "again")), "--table", "known.json", cwd=tmp_path
    )
    assert again.stdout.splitlines()[:2] == [
        text,
        "known accuracy of these operations under bp: cifar10 91.25 %",
    ]
    (tmp_path / "known.json").write_text(json.dumps({plain.replace("|", "|x_", 1): 91.25}))
    without = forked(
        SEARCH, *shlex.split(one.replace("run", "no")), "--table", "known.json", cwd=tmp_path
    )
    line = "known accuracy of these operations under bp: not in the table"
    assert without.stdout.splitlines()[1] == line, without.stderr
    assert "expected --space nb201" in refused(
        forked(SEARCH, "--table", "known.json", cwd=tmp_path)
    )
    words = [
        "--epochs",
        "1",
        "--channels",
        "4",
        "--train-images",
        "64",
        "--batch-size",
        "16",
        "--out",
        "t",
    ]
    trained = forked(TRAIN, "--genotype", text, *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (
        "optimizer: nesterov" in (tmp_path / "t" / "config.yaml").read_text()
    )  # the space's preset
    assert "layers: 3" in (tmp_path / "t" / "config.yaml").read_text()  # the digits'


def test_a_search_that_a_regularizer_ends_has_come_to_its_end(tmp_path: Path) -> None:
    words = shlex.split("--epochs 3 --train-images 32 --out run --regularizers skip_stop(most=1)")
    space = "darts(nodes=1, operations=(skip_connect, none))"
    found = forked(SEARCH, *SMALL, *words, "--space", space, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "next, train it" in found.stdout
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["regularizer/skips"] for record in records if record["event"] == "epoch"] == [
        2.0
    ]
    again = forked(SEARCH, "--out", "run", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "next, train it" in again.stdout


EVOLUTION = (
    "--space nb201 --strategy eg(population=5,samples=1,batches=1) --rules usf --channels 4 "
    "--batch-size 16 "
    "--train-images 32 --epochs 2 --device cpu"
)


def searched(number: int, out: str) -> None:
    sys.exit(main([*shlex.split(EVOLUTION), "--out", out], command="search"))


def test_two_processes_that_share_the_individuals_find_what_one_finds(tmp_path: Path) -> None:
    for count, out in ((1, "alone"), (2, "shared")):
        ended = several(count, searched, out, place=tmp_path)
        assert [process.code for process in ended] == [0] * count, ended
    one, other = (
        read_checkpoint(tmp_path / name / "checkpoint.pt", "search")["task"]
        for name in ("alone", "shared")
    )
    assert all(
        torch.equal(value, other["supernet"][name]) for name, value in one["supernet"].items()
    )
    for name, value in one["strategy"]["weights"].items():
        assert torch.allclose(value, other["strategy"]["weights"][name], rtol=1e-6)
    assert load_genotype(tmp_path / "alone") == load_genotype(tmp_path / "shared")
    events = [path for path in (tmp_path / "shared").iterdir() if path.name.startswith("events")]
    assert len(events) == 1


def test_from_search_to_retrained_network(tmp_path: Path) -> None:
    """The whole path on few images, by the command that the search prints."""
    found = call(
        SEARCH, *SMALL, "--epochs", "1", "--train-images", "32", "--out", "run", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert str(load_genotype(tmp_path / "run")) in found.stdout
    assert "genotype: run/genotype.json" in found.stdout
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    files = {"config", "genotype", "cells", "metrics", "events", "checkpoint", "report", "status"}
    assert names == files | {"checkpoint-before", "alpha"}
    provenance = load_genotype(tmp_path / "run").provenance
    assert {"command", "seed", "dataset", "strategy", "date", "versions"} <= set(provenance)
    following = re.search(r"next, train it: (.*)", found.stdout)
    assert following is not None
    words = shlex.split(following[1])
    assert words[: words.index(TRAIN)] in (
        ["python"],
        ["uv", "run"],
    )  # as SEARCH was called, by its whole path
    arguments = words[words.index(TRAIN) + 1 :]
    trained = forked(
        TRAIN,
        *arguments,
        *shlex.split("--epochs 1 --channels 2 --train-images 64 --out t"),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    accuracy = re.search(r"test accuracy: +([\d.]+) % after 1 epoch, on", trained.stdout)
    assert accuracy is not None
    last = json.loads((tmp_path / "t" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(accuracy[1]) == pytest.approx(100 * last["test/accuracy"], abs=0.005)
    assert load_genotype(tmp_path / "t") == load_genotype(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, SEARCH, *SMALL, "--epochs", "200", "--out", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while (
        not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    resume = re.search(r"stopped; go on with: (.*)", output)
    assert resume is not None
    assert shlex.split(resume[1])[-3:] == ["--out", "run", "--resume"]
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", "search")["step"] >= 4
    assert load_genotype(tmp_path / "run")
    refusal = refused(forked(SEARCH, "--out", "run", "--resume", "--epochs", "3", cwd=tmp_path))
    assert "another configuration (epochs was 200, is 3)" in refusal


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (SEARCH, "--dataset digit", r"unknown data set 'digit': did you mean 'digits'\?"),
        (SEARCH, "--space dart", r"unknown space 'dart': did you mean 'darts' or 'robust_darts'\?"),
        (
            SEARCH,
            "--space darts(layout=papr)",
            r"unknown layout of the darts space 'papr': did you mean 'paper'\?",
        ),
        (
            SEARCH,
            "--space darts(node=2)",
            r"space 'darts' has no option 'node': did you mean 'nodes'\? \(its options: layout, nodes, operat",
        ),
        (
            SEARCH,
            "--space 'darts(operations=(sep_conv_3, none))'",
            r"unknown operation 'sep_conv_3': did you mean 'sep_",
        ),
        (
            SEARCH,
            "--space darts(",
            r"expected 'name' or 'name\(option=value, ...\)', where .* in quotes, found 'darts\('",
        ),
        (SEARCH, "--strategy dart", r"unknown strategy 'dart': did you mean 'darts'"),
        (
            SEARCH,
            "--strategy darts(lr=fast)",
            r"strategy darts: lr: expected a number of at least 0, found 'fast'",
        ),
        (SEARCH, "--rules usf,bsf", r"unknown learning rule 'bsf': did you mean 'brsf' or 'usf'\?"),
        (SEARCH, "--backbone-rule pb", r"unknown learning rule 'pb': did you mean 'bp'\?"),
        (
            SEARCH,
            "--layers 2",
            r"--layers: expected at least 3, .* found 2; use --layers 3 or more",
        ),
        (SEARCH, "--layers -1", r"--layers: expected at least 1 and below 251, found -1"),
        (
            SEARCH,
            "--channels 5",
            r"--channels: expected an even number .* found 5; use --channels 6",
        ),
        (
            SEARCH,
            "--batch-size 1000",
            r"--batch-size: expected at most 719, the images of the train split, found 1000",
        ),
        (SEARCH, "--device cuda:99", r"--device cuda:99: "),
        (SEARCH, "--device gpu", r"--device: expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        (
            SEARCH,
            "--out /proc/run",
            r"/proc/run: cannot be written \(.*\); make room or choose another place",
        ),
        (SEARCH, "--plugin no.such", r"--plugin no.such: cannot be imported"),
        (
            TRAIN,
            "--genotype dart_v2",
            r"unknown genotype 'dart_v2': did you mean 'darts_v2' or 'darts_v1'\?",
        ),
        (TRAIN, "--genotype .", r"no genotype.json in this folder"),
        (TRAIN, f"--genotype {'é' * 200}", r"unknown genotype 'é+'"),
        (
            TRAIN,
            f"--genotype {'a' * 300}/genotype.json",
            r"unknown genotype 'a+... of 314 characters'",
        ),
        (SEARCH, f"--out {'a' * 300}", r"a+: cannot be written \(File name too long\)"),
        (
            SEARCH,
            f"--out {'a' * 300} --resume",
            r"--out a+...: not a folder's name \(File name too long\)",
        ),
        (TRAIN, "", r"--genotype is required"),
        (
            TRAIN,
            "--genotype darts_v2 --auxiliary 0.4",
            r"--auxiliary: expected images of at least 29x29 .*found 8x8",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path,
    script: str,
    arguments: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert re.search(message, here(script, arguments, tmp_path, monkeypatch, capsys))
    assert list(tmp_path.iterdir()) == []


def broken_genotypes() -> dict[str, tuple[str, str]]:
    text = load_genotype("darts_v2").to_json()
    return {
        "corrupt": (text[:200], r"g.json: not a JSON file \(line \d+, column \d+"),
        "op": (
            text.replace("sep_conv_3x3", "sep_conv_3x4", 1),
            r"edges\[0\].op: unknown operation .* 'sep_conv_3x3'",
        ),
        "rule": (
            text.replace('"bp"}', '"pb"}', 1),
            r"edges\[0\].rule: unknown learning rule 'pb': did you mean 'bp'",
        ),
        "field": (text.replace('"concat"', '"conct"', 1), r"g.json.cells.normal"),
        "node": (
            re.sub(r'.*"node": 3, "input": 0.*\n', "", text, count=1),
            r"expected 2 edges into node 3, found 1",
        ),
        "space": (text.replace('"darts"', '"dart"', 1), r"g.json.space: unknown space 'dart'"),
        "binary": ("\udcff", r"cannot be read as text"),
    }


@pytest.mark.parametrize("kind", broken_genotypes())
def test_bad_genotypes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = broken_genotypes()[kind]
    (tmp_path / "g.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert re.search(message, here(TRAIN, "--genotype g.json", tmp_path, monkeypatch, capsys))
    assert [p.name for p in tmp_path.iterdir()] == ["g.json"]


class TestSmallCommands:
    def test_list_names_everything(self) -> None:
        done = call("-m", "darts_bio", "list")
        assert done.returncode == 0
        for name in ("usf", "sep_conv_5x5", "darts", "cifar100", "bionas_darts"):
            assert re.search(rf"^  {name}\b", done.stdout, re.MULTILINE)
        # What --dataset takes: images that were handed over in Python have no name there.
        assert not re.search(r"^  given\b", done.stdout, re.MULTILINE)

    def test_pasted_text_becomes_a_file_and_a_figure(self, tmp_path: Path) -> None:
        text = (
            "G = Genotype(normal=[('sep_conv_3x3_u', 1), ('skip_connect', 0)], "
            "normal_concat=range(2, 3),"
            "reduce=[('max_pool_3x3', 0), ('dil_conv_5x5_fa', 1)], reduce_concat=[2])"
        )
        arguments = ["genotype", text, "--json", "g.json", "--svg", "g.svg"]
        done = forked("-m", "darts_bio", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        genotype = load_genotype(tmp_path / "g.json")
        assert genotype == load_genotype(text)
        assert {str(e.candidate) for e in genotype.cells["normal"].edges} == {
            "sep_conv_3x3:usf",
            "skip_connect",
        }
        assert (tmp_path / "g.svg").read_text().startswith("<svg")
        again = refused(forked("-m", "darts_bio", *arguments, cwd=tmp_path))
        assert again == "g.json: exists; remove it first, or choose another name"
        (tmp_path / "g.json").unlink()
        again = refused(forked("-m", "darts_bio", *arguments, cwd=tmp_path))
        assert again == "g.svg: exists; remove it first, or choose another name"
        assert not (tmp_path / "g.json").exists()
