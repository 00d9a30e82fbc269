"""The command line, YAML files and their errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from darts_bio.cli.parser import parse
from darts_bio.config import RUNS, ImageNetConfig, RetrainConfig, RunConfig, SearchConfig
from darts_bio.config.files import read_yaml
from darts_bio.config.protocols import values_of
from darts_bio.errors import InputError
from darts_bio.spaces import SPACES

ROOT = Path(__file__).parent.parent


def search(*argv: str) -> SearchConfig:
    return parse(SearchConfig, argv, "")


class TestLayers:
    def test_defaults_are_the_protocol(self) -> None:
        config = search("--dataset", "cifar10")
        expected = {
            "channels": 16,
            "layers": 8,
            "epochs": 50,
            "batch_size": 64,
            "lr": 0.025,
            "lr_min": 0.001,
        }
        expected |= {
            "momentum": 0.9,
            "weight_decay": 3e-4,
            "clip": 5.0,
            "crop_padding": 4,
            "flip": True,
            "cutout": 0,
        }
        assert {name: getattr(config, name) for name in expected} == expected
        retrain = parse(RetrainConfig, ["--genotype", "darts_v2", "--dataset", "cifar10"], "")
        expected = {
            "channels": 36,
            "layers": 20,
            "epochs": 600,
            "batch_size": 96,
            "lr": 0.025,
            "lr_min": 0.0,
        }
        expected |= {"cutout": 16, "auxiliary": 0.4, "drop_path": 0.2, "clip": 5.0}
        assert {name: getattr(retrain, name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("protocol", "expected"),
        [  # batch, rate, its end, decay, epochs: by hand from the published codes
            ("darts", ("darts", 64, 0.025, 0.001, 3e-4, 50, "sgd")),
            ("pc_darts", ("pc_darts", 256, 0.1, 0.001, 3e-4, 50, "sgd")),
            ("gdas", ("gdas", 256, 0.025, 0.001, 5e-4, 250, "nesterov")),
            ("fair_darts", ("fair_darts(threshold=0.85)", 128, 0.005, 0.001, 3e-4, 50, "sgd")),
            (
                "darts_pt",
                ("darts_pt(batches=390, share=0.3846)", 64, 0.025, 0.001, 3e-4, 130, "sgd"),
            ),
            ("eg_nas", ("eg(published=True)", 256, 0.1, 0.0, 3e-4, 50, "sgd")),
        ],
    )
    def test_a_protocol_is_a_method_s_whole_search(
        self, protocol: str, expected: tuple[Any, ...]
    ) -> None:
        config = search("--dataset", "cifar10", "--protocol", protocol)
        names = ("strategy", "batch_size", "lr", "lr_min", "weight_decay", "epochs", "optimizer")
        assert tuple(getattr(config, name) for name in names) == expected
        operations = SPACES.build(config.space).operations  # type: ignore[attr-defined]
        without_none = protocol in ("fair_darts", "darts_pt", "eg_nas")
        assert ("none" in operations) != without_none
        assert len(operations) == 8 - without_none
        assert search("--protocol", protocol, "--batch-size", "32").batch_size == 32

    def test_a_strategy_that_is_given_brings_its_own_rates(self) -> None:
        """Those of the digits are one strategy's: the pages say what to write for the others."""
        assert search().strategy == "darts(lr=0.01)"
        assert search("--strategy", "darts").strategy == "darts"
        assert search("--strategy", "rule_aware").strategy == "rule_aware"

    def test_a_protocol_of_trainings_is_none_of_searches(self) -> None:
        with pytest.raises(InputError, match="unknown protocol 'fast'"):
            search("--protocol", "fast")

    def test_command_line_over_file_over_preset_over_default(self, tmp_path: Path) -> None:
        preset = values_of("search")["digits"]
        file = tmp_path / "c.yaml"
        file.write_text("channels: 6\nepochs: 3\nbatch-size: 7\nlr: 3e-2\nrules: [fa, usf]\n")
        config = search("--config", str(file), "--epochs", "4")
        assert (config.channels, config.epochs, config.batch_size, config.lr) == (6, 4, 7, 0.03)
        assert config.rules == ("fa", "usf")
        assert config.layers == preset["layers"] != SearchConfig().layers
        assert config.weight_decay == SearchConfig().weight_decay

    def test_the_data_set_of_the_file_chooses_the_preset(self, tmp_path: Path) -> None:
        file = tmp_path / "c.yaml"
        file.write_text("dataset: cifar10\n")
        assert search("--config", str(file)).layers == 8
        assert (
            search("--config", str(file), "--dataset", "digits").layers
            == values_of("search")["digits"]["layers"]
        )

    def test_a_space_has_a_preset_that_gives_way_to_the_data_set_and_the_command_line(self) -> None:
        assert search("--dataset", "cifar10", "--space", "nb201").layers == 15
        assert (
            search(
                "--dataset", "cifar10", "--space", "nb201(operations=(none, skip_connect))"
            ).layers
            == 15
        )
        assert search("--dataset", "cifar10", "--space", "nb201", "--layers", "6").layers == 6
        assert search("--space", "nb201").layers == values_of("search")["digits"]["layers"]
        cell = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
        config = parse(RetrainConfig, ["--genotype", cell, "--dataset", "cifar10"])
        expected = {
            "channels": 16,
            "layers": 15,
            "epochs": 200,
            "batch_size": 256,
            "optimizer": "nesterov",
            "lr": 0.1,
        }
        expected |= {
            "lr_min": 0.0,
            "weight_decay": 5e-4,
            "auxiliary": 0.0,
            "cutout": 0,
            "drop_path": 0.0,
        }
        assert {name: getattr(config, name) for name in expected} == expected

    def test_presets_only_name_options(self) -> None:
        for command, cls in RUNS.items():
            for values in values_of(command).values():
                assert set(values) <= {f.name for f in fields(cls)}

    def test_hyphen_and_underscore_are_the_same(self) -> None:
        assert search("--batch_size=5", "--no_flip", "--arch_gradient", "true") == search(
            "--batch-size", "5", "--no-flip", "--arch-gradient=true"
        )

    def test_plug_ins_come_from_the_command_line_alone(self, tmp_path: Path) -> None:
        """A file may have come from anybody, and its plug-in would be code of theirs."""
        (tmp_path / "mine.py").write_text("raise SystemExit('imported')")
        file = tmp_path / "config.yaml"
        file.write_text(search("--epochs", "9").to_yaml().replace("plugin: []", "plugin: [mine]"))
        with pytest.raises(
            InputError, match="plug-ins are code, which no file may bring; name them by --plugin"
        ):
            search("--config", str(file))
        with pytest.raises(
            InputError,
            match="with the plug-in mine, code that no run folder can bring; .* --plugin mine",
        ):
            search("--out", str(tmp_path), "--resume")

    def test_yaml_round_trip(self, tmp_path: Path) -> None:
        config = search(
            "--rules",
            "fa,mine(a=1, b=2)",
            "--lr",
            "1e-5",
            "--data-dir",
            "d",
            "--plugin",
            "json,ast",
        )
        (tmp_path / "c.yaml").write_text(config.to_yaml())
        assert SearchConfig(**read_yaml(tmp_path / "c.yaml", SearchConfig)) == config
        assert config.rules == ("fa", "mine(a=1, b=2)")

    def test_resume_takes_up_the_folders_options(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(search("--epochs", "9", "--seed", "5").to_yaml())
        config = search("--out", str(tmp_path), "--resume", "--device", "cpu")
        assert (config.epochs, config.seed, config.device) == (9, 5, "cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chanels", "8"], r"unknown option '--chanels': did you mean '--channels'"),
        (["--epoch", "8"], r"unknown option '--epoch': did you mean '--epochs'"),
        (["8"], r"expected options only, several values with commas between them, found '8'"),
        (["--channels"], r"--channels: expected one argument"),
        (["--channels", "x"], r"--channels: expected a whole number, found 'x'"),
        (["--channels", "2.5"], r"--channels: expected a whole number, found '2.5'"),
        (["--channels", "-4"], r"--channels: expected at least 2, found -4"),
        (["--epochs", "0"], r"--epochs: expected at least 1, found 0"),
        (["--batch-size", "0"], r"--batch-size: expected at least 2, found 0"),
        (["--seed", "-1"], r"--seed: expected at least 0, found -1"),
        (["--lr", "-0.1"], r"--lr: expected at least 0, found -0.1"),
        (["--lr", "nan"], r"--lr: expected at least 0, found nan"),
        (["--lr", "inf"], r"--lr: expected at least 0, found inf"),
        (["--momentum", "1"], r"--momentum: expected at least 0 and below 1, found 1.0"),
        (["--amp", "bf15"], r"unknown value of --amp 'bf15': did you mean 'bf16'"),
        (["--rules", ""], r"--rules: expected at least one learning rule"),
        (["--rules", "fa,usf,fa"], r"--rules: expected each rule once, found fa more than once"),
        (
            ["--rules", "fa usf"],
            r"--rules: expected a comma .* found 'fa usf'; did you mean 'fa,usf' \(or, as one name, "
            r"'fa_usf'\)\?",
        ),
        (["--regularizers", "oles entropy"], r"did you mean 'oles,entropy'"),
        (["--rules", "usf,usf()"], r"--rules: expected each rule once, found usf more than once"),
        (["--resume"], r"--resume needs --out DIR"),
        (["--resume", "--out", "nowhere"], r"nowhere/config.yaml does not exist"),
        (["--config", "nowhere.yaml"], r"nowhere.yaml: cannot be read as text \(No such file"),
    ],
)
def test_bad_command_lines_are_told_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        search(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chanels: 8", r"unknown option 'chanels': did you mean 'channels'"),
        ("resume: true", r"unknown option 'resume'"),
        ("channels: [8]", r"--channels: expected a whole number, found \[8\]"),
        ("channels: true", r"--channels: expected a whole number, found True"),
        ("flip: 1", r"--flip: expected true or false, found 1"),
        ("rules: {fa: 1}", r"--rules: expected names separated by commas"),
        ("space: 3", r"--space: expected text, found 3"),
        ("- channels", r"expected lines of the form 'option: value', found list"),
        ("a: [", r"not a YAML file"),
        ("out: 2020-13-45", r"not a YAML file \(month must be in 1..12"),
        ("channels: " + "9" * 5000, r"not a YAML file"),
        ("rules: " + "[" * 3000, r"not a YAML file"),
        ("channels: 8\nseed: 1\nchannels: 16", r"not a YAML file \(channels is given twice"),
        ('out: "a\\0b"', r"--out: expected text, found 'a.x00b'"),
        ("a: !!python/object/apply:os.system ['true']", r"not a YAML file"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        search("--config", str(tmp_path / "c.yaml"))
    assert "\n" not in str(caught.value)
    assert "c.yaml" in str(caught.value)


def test_a_run_is_gone_on_with_by_its_own_script(tmp_path: Path) -> None:
    runs = {
        "darts-bio search": SearchConfig(),
        "darts-bio train": RetrainConfig(genotype="x"),
        "darts-bio train-imagenet": ImageNetConfig(genotype="x"),
    }
    for command, config in runs.items():
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        for cls in map(type, runs.values()):
            if cls is type(config):
                assert parse(cls, ["--resume", "--out", str(tmp_path)], "") == replace(
                    config, out=str(tmp_path), resume=True
                )
                continue
            with pytest.raises(
                InputError, match=f"is a run of {command}; go on with it by that command"
            ):
                parse(cls, ["--resume", "--out", str(tmp_path)], "")


def test_a_warmup_as_long_as_the_training_says_how_to_mend_it() -> None:
    with pytest.raises(
        InputError,
        match="^--warmup: expected fewer epochs than --epochs 2, found 2; use a smaller --warmup, or ",
    ):
        RetrainConfig(genotype="x", epochs=2, warmup=2)


def test_a_genotype_is_asked_for() -> None:
    with pytest.raises(InputError, match="--genotype is required"):
        parse(RetrainConfig, [], "")


@pytest.mark.parametrize("cls", [SearchConfig, RetrainConfig])
def test_where_a_run_lies_is_no_part_of_its_identity(cls: type[RunConfig]) -> None:
    config = cls(**({"genotype": "x"} if cls is RetrainConfig else {}))
    left_out = {f.name for f in fields(cls)} - set(config.identity())
    # What is measured beside a training, or looked up or trained after a search, or which process
    # does it, does not change it.
    after = {"table", "share", "choice_epochs", "training"}
    measured = {"alignment_every", "workers"} if cls is RetrainConfig else after
    of_a_call = {
        *("data_dir", "device", "graphs", "out", "resume", "quiet", "charts", "plugin", "seeds"),
        "log",
    }
    assert left_out == of_a_call | {"save_every", "rollbacks"} | measured


@pytest.mark.parametrize("script", ["search/run.py", "evaluate/train_cifar.py"])
def test_help_answers_within_a_second_and_names_every_option(script: str) -> None:
    before = os.times()
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    )
    after = os.times()
    # Of the processor's time: how long it waits for one says nothing of the script.
    seconds = after.children_user - before.children_user
    seconds += after.children_system - before.children_system
    assert 0 < seconds < 1
    cls = SearchConfig if script.startswith("search") else RetrainConfig
    for f in fields(cls):
        assert f"--{f.name.replace('_', '-')}" in done.stdout
