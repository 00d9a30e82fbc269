"""Trained networks that the package ships: by name, with the accuracy that their run recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import darts_bio
from darts_bio.__main__ import main
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.evaluation.subjects import load_subjects
from darts_bio.interop.export import save_for_hub
from darts_bio.rules import audit
from darts_bio.spaces import load_genotype, shipped_folder, shipped_names
from darts_bio.storage.checksum import digest
from darts_bio.training.exported import shipped_networks

ROOT = Path(__file__).parent.parent
NAME = "digits_rule_aware"
every_shipped_network = pytest.mark.parametrize("name", shipped_networks())


def right_of(name: str) -> int:
    """How many of the digits' test images a shipped network classifies correctly."""
    test = load_data("digits").test
    with torch.no_grad():
        logits = darts_bio.load_trained(name).on_pixels()(test.images / 255)
    return int((logits.argmax(1) == test.labels).sum())


@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_the_accuracy_is_the_recorded_one_on_any_processor(instructions: str) -> None:
    code = f"import test_exported; print(test_exported.right_of({NAME!r}))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instructions}
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = darts_bio.load_trained(NAME).provenance
    assert int(done.stdout) == made.right
    assert made.images == len(load_data("digits").test.labels)
    assert made.accuracy == int(done.stdout) / made.images


@every_shipped_network
def test_a_shipped_network_is_that_of_its_genotype_and_says_what_it_is(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in shipped_names()
    trained, state = darts_bio.load_trained(name), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    assert not trained.network.training
    assert trained.genotype == load_genotype(name)
    assert trained.genotype.provenance == load_genotype(name).provenance
    assert len(trained.classes) == trained.form["num_classes"]
    made = trained.provenance
    assert "train" in made.command
    assert "PyTorch" in made.machine
    assert made.right is not None
    assert made.right > 0
    files = list((shipped_folder() / name).iterdir())
    assert sorted(path.name for path in files) == ["README.md", "config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    page = (shipped_folder() / "README.md").read_text(encoding="utf-8")
    transport = audit(trained.network).share
    row = f"| [`{name}`]({name}/README.md) |"
    (line,) = [line for line in page.splitlines() if line.startswith(row)]
    assert f"| {made.right:,} of {made.images:,} ({100 * (made.accuracy or 0):.2f} %) |" in line
    assert f"| {100 * transport:.1f} % |" in line
    assert main(["list"]) == 0
    assert f"\n  {name}\n" in capsys.readouterr().out.partition("trained networks")[2]


def test_a_wheel_brings_what_lies_in_the_folder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    target = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target["force-include"] == {"genotypes": "darts_bio/genotypes"}
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert "safetensors" not in ignored  # hatchling leaves out what git ignores


def test_measurements_and_exports_take_the_name(tmp_path: Path) -> None:
    (subject,), split = load_subjects([NAME], torch.device("cpu"), data_dir=None, images=50, seed=0)
    assert subject.name == NAME
    assert subject.clean == subject.logged == darts_bio.load_trained(NAME).provenance.accuracy
    assert len(split.labels) == 50
    assert main(["export", NAME, "--hub", str(tmp_path / NAME)]) == 0
    for path in (shipped_folder() / NAME).iterdir():  # an export of an export is the same
        assert (tmp_path / NAME / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped network, to be spoiled."""
    return Path(shutil.copytree(shipped_folder() / NAME, tmp_path / "copy"))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_weights_that_are_not_as_they_were_written_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1  # a weight's last digits: the file as such is whole
    for spoiled in (flipped, content[:-1], content[:50], b"", content + b"x"):
        path.write_bytes(spoiled)
        assert "model.safetensors: expected the weights" in refused(
            lambda: darts_bio.load_trained(folder)
        )
    path.unlink()
    assert "model.safetensors: cannot be read" in refused(lambda: darts_bio.load_trained(folder))
    os.mkfifo(path)
    assert "it is a named pipe" in refused(lambda: darts_bio.load_trained(folder))


def test_weights_of_another_size_are_not_read(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 2**28)  # a sparse file, which has no blocks
    tracemalloc.start()
    try:
        message = refused(lambda: darts_bio.load_trained(folder))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "of 246,708 bytes, found 268,435,456 bytes" in message
    assert peak < 2**26


def test_no_more_weights_are_written_than_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, size = darts_bio.load_trained(NAME), 246_708
    monkeypatch.setattr("darts_bio.training.exported.LARGEST_WEIGHTS", size)
    save_for_hub(trained, tmp_path / "whole")
    monkeypatch.setattr("darts_bio.training.exported.LARGEST_WEIGHTS", size - 1)
    assert "bytes of weights, found 246,708" in refused(
        lambda: save_for_hub(trained, tmp_path / "large")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_weights_that_are_no_safetensors_are_refused_whatever_their_digest(folder: Path) -> None:
    for content in (b"", b"\x80\x04N.", b"\xff" * 100, bytes(1000)):
        (folder / "model.safetensors").write_bytes(content)
        found = {"bytes": len(content), "digest": digest(content)}
        spoil(folder, lambda c, found=found: c["darts_bio"].update(found))
        assert "not a safetensors file" in refused(lambda: darts_bio.load_trained(folder))


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


HUGE = 10**400
"""A whole number that is no float."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("darts_bio"), "found no 'darts_bio' in it"),
        (lambda c: c["darts_bio"].update(format=2), "darts_bio.format: expected 1, found 2"),
        (lambda c: c["darts_bio"].update(step=True), "darts_bio.step: expected int, found True"),
        (lambda c: c["darts_bio"].pop("command"), "darts_bio.command: expected str, found None"),
        (lambda c: c["darts_bio"].update(accuracy=2), "expected a share of images, found 2;"),
        (lambda c: c["darts_bio"].update(accuracy=float("nan")), "a share of images, found nan"),
        (lambda c: c["darts_bio"].update(accuracy=HUGE), "darts_bio.accuracy: expected a share"),
        (lambda c: c["darts_bio"].update(images=-1), "darts_bio.images: expected a whole number"),
        (lambda c: c["darts_bio"].update(images=HUGE), "darts_bio.images: expected a whole number"),
        (lambda c: c["darts_bio"].update(step=-1), "darts_bio.step: expected a whole number"),
        (lambda c: c["darts_bio"].pop("bytes"), "darts_bio.bytes: expected int, found None"),
        (lambda c: c["darts_bio"].update(bytes=2**40), "bytes: expected a whole number from 0 to"),
        (lambda c: c["darts_bio"].update(bytes=9), "of 9 bytes, found 246,708 bytes"),
        (lambda c: c["model_args"].update(channels=HUGE), "channels: expected a whole number"),
        (lambda c: c["model_args"].update(layers=-3), "layers: expected a whole number"),
        (lambda c: c["model_args"].update(in_chans=HUGE), "in_chans: expected a whole number"),
        (lambda c: c["model_args"].update(genotype={}), "genotype: the field 'format' is missing"),
        (lambda c: c["model_args"].update(channels=400), "bytes of weights, found"),
        (lambda c: c["model_args"].update(channels=4_000), "config.json: network: 3 cells of"),
        (lambda c: c["model_args"].update(channels=2**40), "config.json: "),
        (lambda c: c["model_args"].update(layers=100_000), "config.json: "),
        (lambda c: c["model_args"].update(layers=4), "config.json: does not fit"),
        (lambda c: c["model_args"].update(channels="x"), "model_args.channels: expected int"),
        (lambda c: c["pretrained_cfg"].update(mean=["x"]), "pretrained_cfg.mean: expected a list"),
        *[
            (
                lambda c, f=f, v=v: c["pretrained_cfg"].update({f: [v]}),
                f"cfg.{f}: expected a list of",
            )
            for f in ("mean", "std")
            for v in (float("nan"), float("inf"), -float("inf"), 1e300, HUGE, True)
        ],
        (
            lambda c: c["pretrained_cfg"].update(std=[0.0]),
            "cfg.mean/std: expected the means and st",
        ),
        (lambda c: c["pretrained_cfg"].update(input_size=[1, 8]), "expected channels, height"),
        (
            lambda c: c["pretrained_cfg"].update(input_size=[1, 8, 10**9]),
            "cfg.input_size: expected a h",
        ),
        (lambda c: c["pretrained_cfg"].update(input_size=[1, HUGE, 8]), "cfg.input_size: expected"),
        (lambda c: c.update(label_names=["0"]), "label_names: expected 10 names"),
        (lambda c: c.update(architecture="darts_bio_x"), "config.json: "),
        (lambda c: c.update(architecture=None), "architecture: expected str, found None"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert darts_bio.load_trained(folder).form["layers"] == 3
    spoil(folder, change)
    assert message in refused(lambda: darts_bio.load_trained(folder))


def test_a_description_that_is_no_object_is_refused(folder: Path) -> None:
    for text in ("[]", "null", "{", "", '{"a": 1, "a": 1}', "x" * 3_000_000):
        (folder / "config.json").write_text(text)
        assert "config.json: " in refused(lambda: darts_bio.load_trained(folder))


def test_a_name_that_is_nearly_one_is_told_so() -> None:
    assert f"did you mean '{NAME}'" in refused(lambda: darts_bio.load_trained("digits_rule_awar"))
    assert "run folder of a training" in refused(lambda: darts_bio.load_trained("elsewhere"))
    assert "a genotype without weights" in refused(lambda: darts_bio.load_trained("darts_v2"))


def test_a_shipped_name_wins_over_a_folder_of_that_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(NAME)
    spoil(Path(NAME), lambda c: c["darts_bio"].update(step=7))
    assert darts_bio.load_trained(NAME).step == 660
    assert darts_bio.load_trained(f"./{NAME}").step == 7
