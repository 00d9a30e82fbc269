"""The command darts-bio: one parser, one contract about errors, and printed commands that work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, call, refused
from PIL import Image

from darts_bio import __version__
from darts_bio.cli import COMMANDS, main
from darts_bio.config import RunConfig
from darts_bio.invocation import SCRIPTS, line


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 8x8 in two classes: fewer, and smaller, than any recipe is made for."""
    place, draws = tmp_path_factory.mktemp("cli"), np.random.default_rng(0)
    for name in "ab":
        (place / "data" / name).mkdir(parents=True)
        for i in range(6):
            pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "data" / name / f"{i}.png")
    return place


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("columns", [80, 120])
    def test_every_option_in_a_group_within_the_terminals_width(
        self,
        command: str,
        columns: int,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= columns
        for field in fields(COMMANDS[command].config):
            assert field.metadata["group"] + ":" in shown
            assert field.metadata["positional"] or f"--{field.name.replace('_', '-')}" in shown

    def test_the_overview_and_the_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == main(["--help"]) == 0
        shown = capsys.readouterr().out
        assert all(re.search(rf"^  {command}\b", shown, re.MULTILINE) for command in COMMANDS)
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"darts-bio {__version__}\n"

    def test_it_answers_without_pytorch(self) -> None:
        code = "import sys; from darts_bio.cli import main\ntry: main(['search', '--help'])\nexcept SystemExit: pass\n"
        done = call("-c", code + "print(sorted({'torch', 'numpy', 'timm'} & set(sys.modules)))")
        assert done.stdout.splitlines()[-1] == "[]"


class TestForms:
    """The same command as a script of the checkout, as a module and as what the wheel installs."""

    def test_the_scripts_are_the_commands(self) -> None:
        for command, script in SCRIPTS.items():
            text = (ROOT / script).read_text()
            assert f'main(command="{command}")' in text
            assert len(text[text.rindex('"""') :].splitlines()) <= 12

    def test_the_installed_command(self) -> None:
        program = Path(sys.executable).parent / "darts-bio"
        if not program.exists():
            pytest.skip("the package is not installed in this environment")
        done = subprocess.run([program, "list"], capture_output=True, text=True, check=True)
        assert done.stdout == call("-m", "darts_bio", "list").stdout
        assert refused(
            subprocess.run([program, "serch"], capture_output=True, text=True)
        ).startswith("unknown command 'serch': did you mean 'search'")

    @pytest.mark.parametrize(
        ("program", "expected"),
        [
            ("/usr/bin/darts-bio", "darts-bio train --x"),
            ("/site-packages/darts_bio/__main__.py", "python -m darts_bio train --x"),
            ("search/run.py", "python evaluate/train_cifar.py --x"),
            (
                "/home/me/darts/evaluate/robustness.py",
                "python /home/me/darts/evaluate/train_cifar.py --x",
            ),
        ],
    )
    def test_printed_commands_have_the_form_that_was_used(
        self, program: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("UV", raising=False)
        monkeypatch.setattr(sys, "argv", [program])
        assert line("train", "--x") == expected
        monkeypatch.setenv("UV", "/bin/uv")
        assert line("train", "--x") == "uv run " + expected.removeprefix(
            "python " if expected[7] != "-" else ""
        )


class TestPrintedCommands:
    """Each is run as it is printed."""

    @pytest.mark.parametrize("space", ["darts(nodes=1)", "nb201"])
    def test_after_a_search_on_a_small_folder(
        self,
        images: Path,
        space: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(images)
        monkeypatch.setattr(sys, "argv", ["darts-bio"])
        words = (
            "search --dataset folder --data-dir data --image-size 8 "
            "--channels 4 --layers 3 --epochs 1 --batch-size 4"
        )
        assert (
            main([*shlex.split(words), "--rules", "fa", "--space", space, "--out", space[:5]]) == 0
        )
        printed = re.search(r"^next, train it: (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert printed
        program, *rest = shlex.split(printed[1].removeprefix("uv run "))
        assert program == "darts-bio"
        # Only the size of the network and the time are cut short.
        assert (
            main(
                [
                    *rest,
                    "--channels",
                    "4",
                    "--layers",
                    "3",
                    "--epochs",
                    "1",
                    "--out",
                    f"{space[:5]}-trained",
                ]
            )
            == 0
        )
        assert "test accuracy: " in capsys.readouterr().out

    def test_after_a_stop(
        self, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import signal

        from darts_bio.training.search import Search

        monkeypatch.chdir(images)
        monkeypatch.setattr(sys, "argv", ["darts-bio"])
        step = Search.step

        def stopping(self: Search, t: int) -> object:
            if t == 1:
                signal.raise_signal(signal.SIGINT)
            return step(self, t)

        monkeypatch.setattr(Search, "step", stopping)
        words = (
            "search --space darts(nodes=1) --rules fa "
            "--channels 2 --train-images 64 --batch-size 8 --epochs 1 --out s"
        )
        assert main([*words.split(" "), "--plugin", "json"]) == 130
        printed = re.search(r"^stopped; go on with: (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert printed
        monkeypatch.undo()
        monkeypatch.chdir(images)
        said = []
        assert main(shlex.split(printed[1].removeprefix("uv run "))[1:]) == 0
        said = capsys.readouterr()
        assert "goes on from step 2 of 4" in said.err
        assert "next, train it: " in said.out


class TestResumeAuto:
    def test_it_begins_and_goes_on(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = "search --space darts(nodes=1) --rules fa --channels 2 --train-images 64 --batch-size 8 --epochs 1"
        command = [*words.split(" "), "--out", str(tmp_path / "run"), "--resume", "auto"]
        assert main(command) == 0
        first = capsys.readouterr().out
        assert main(command) == 0  # as a job that is put into the queue again
        again = capsys.readouterr()
        assert again.out == first
        assert "goes on from step 4 of 4" in again.err
        assert main([*command, "--channels", "4"]) == 2
        assert "another configuration (channels was 2, is 4)" in capsys.readouterr().err

    def test_another_word_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["search", "--resume", "perhaps", "--out", "x"]) == 2
        assert (
            capsys.readouterr().err == "error: --resume: expected true or false, found 'perhaps'\n"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        "command", [name for name, c in COMMANDS.items() if issubclass(c.config, RunConfig)]
    )
    def test_of_all_runs_alike(
        self,
        command: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for words in (
            ["--sed", "1"],
            ["--seed", "x"],
            ["--config", "nowhere.yaml"],
            ["--resume"],
            ["--plugin", "no.such"],
        ):
            assert main([command, *words]) == 2
            said = capsys.readouterr()
            assert said.out == ""
            assert re.fullmatch(r"error: [^\n]{10,500}\n", said.err)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("export", "the following arguments are required: RUN"),
            ("export run", "export: expected something to write"),
            ("export run --hub x --batch 4", "--batch: expected together with --onnx or --program"),
            (
                "export run --onnx nowhere/model.onnx",
                "nowhere/model.onnx: expected a file in a folder that exists",
            ),
            ("genotype --svg x.svg", "genotype: --json and --svg need a genotype X to write"),
            ("audit bionas_dart", "unknown genotype 'bionas_dart': did you mean 'bionas_darts'"),
            ("audit darts_v2 --channels 0", "--channels: expected at least 2, found 0"),
            ("rules ufs", "unknown learning rule 'ufs'"),
            ("timm no.py", "no.py: expected a script of timm's"),
            ("alignment", "--checkpoint is required"),
            ("alignment --checkpoint x --batches 1", "--batches: expected at least 2, found 1"),
            (
                "list all",
                "expected options only, several values with commas between them, found 'all'",
            ),
        ],
    )
    def test_of_the_small_commands(
        self, words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        assert main(shlex.split(words)) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
