"""evaluate/train_imagenet.py as its users meet it, on a few images drawn here."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import IMAGENET, ROOT, StopAfter, forked, here, refused
from PIL import Image

from darts_bio.config import ImageNetConfig
from darts_bio.runs.running import Watching
from darts_bio.runs.train import TrainResult, train
from darts_bio.training.trained import load_trained

CPU = torch.device("cpu")
WORDS = shlex.split(
    "--genotype bionas_darts --data-dir images --image-size 32 --channels 8 --layers 3 --auxiliary "
    "0 --epochs 2 "
    "--batch-size 8 --workers 0 --device cpu --log-every 1"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of eight photographs each to train on, and of four to measure on; a class is a
    color.
    """
    place = tmp_path_factory.mktemp("imagenet")
    draws = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = place / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 - channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return place


def run(images: Path, out: Path, stop_after: int | None = None, **options: Any) -> TrainResult:
    """A training as the command makes it, stopped after that many steps of this process."""
    sizes: dict[str, Any] = {
        "image_size": 32,
        "channels": 8,
        "layers": 3,
        "auxiliary": 0.0,
        "epochs": 2,
    }
    sizes |= {
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
        "log_every": 1,
        "data_dir": str(images / "images"),
    }
    config = ImageNetConfig(
        genotype="bionas_darts", out=str(out), resume=out.exists(), **(sizes | options)
    )
    result = train(
        config, "train.py", watching=Watching(tensorboard=True, listener=StopAfter(stop_after))
    )
    assert isinstance(result, TrainResult)
    return result


def numbers(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in records
    ]


def test_from_images_to_a_network_that_others_can_use(images: Path) -> None:
    """Trained, measured for alignment, exported: each by its command, from the run folder alone."""
    done = forked(IMAGENET, *WORDS, "--out", "run", cwd=images)
    assert done.returncode == 0, done.stderr
    last = numbers(images / "run")[-1]
    assert f"test accuracy: {100 * last['test/accuracy']:.2f} % after 2 epochs" in done.stdout
    card = (images / "run" / "report.md").read_text()
    assert "24 training + 12 test image files in 3 classes" in card
    assert "multiply-adds of one 3x32x32 image" in card
    trained = load_trained(images / "run")
    assert (trained.classes, trained.form["stem"]) == (("blue", "green", "red"), "imagenet")
    assert trained.mean == pytest.approx((0.485, 0.456, 0.406))
    aligned = forked(
        str(ROOT / "evaluate/alignment.py"), "--checkpoint", "run", "--batches", "2", cwd=images
    )
    assert aligned.returncode == 0, aligned.stderr
    assert "stem, Conv2d:bp, first convolution" in aligned.stdout
    again = forked(IMAGENET, "--out", "run", "--resume", "--num-classes", "5", cwd=images)
    assert "num_classes was None, is 5" in refused(again)


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_within_an_epoch_and_resumed_it_is_the_same(
    images: Path, tmp_path: Path, workers: int
) -> None:
    options: dict[str, Any] = {
        "auto_augment": "rand-m9-mstd0.5",
        "mixup": 0.2,
        "ema": 0.5,
        "drop_path": 0.2,
    }
    whole = run(images, tmp_path / "whole", **options)
    for stop_after in (2, 2, None):
        parts = run(images, tmp_path / "parts", stop_after, workers=workers, **options)
    assert (parts.step, parts.finished, parts.accuracy) == (whole.step, True, whole.accuracy)
    weights = parts.network.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in whole.network.state_dict().items()
    )
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_photograph_that_is_cut_off_is_passed_over_counted_and_named(
    images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "images", tmp_path / "images")
    for name in ("train/red/3.jpg", "val/red/1.jpg"):
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[:300])
    done = forked(IMAGENET, *WORDS, "--workers", "1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("red/3.jpg", "red/1.jpg"):
        assert done.stderr.count(f"passed over, since it cannot be read: {name}") == 1
        assert name in (tmp_path / "run" / "report.md").read_text()
    last = numbers(tmp_path / "run")[-1]
    assert last["data/damaged_files"] == 2
    assert last["test/accuracy"] * 11 == pytest.approx(
        round(last["test/accuracy"] * 11)
    )  # of the eleven that are left


def test_another_class_folder_on_resume(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "images", tmp_path / "images")
    run(tmp_path, tmp_path / "run", stop_after=1)
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "images" / part / "red", tmp_path / "images" / part / "violet")
    done = forked(IMAGENET, "--out", "run", "--resume", cwd=tmp_path)
    assert (
        "the data set of this run has changed since it was stopped (was 24 training + 12 test image files in 3"
        in refused(done)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--genotype darts_v2", "expected --data-dir DIR, with DIR/train/CLASS/*.jpg"),
        ("--genotype darts_v2 --data-dir nowhere", "found no folder nowhere"),
        (
            "--genotype darts_v2 --data-dir images --num-classes 2",
            "expected at least the 3 classes",
        ),
        (
            "--genotype darts_v2 --data-dir images --image-size 64 --batch-size 8",
            "images of at least 193x193",
        ),
        (
            "--genotype darts_v2 --data-dir images --batch-size 64",
            "expected at most 24, the images of the train split",
        ),
        ("--genotype darts_v2 --data-dir images --dataset cifar10", "expected hfds/NAME"),
        ("--genotype darts_v2 --data-dir images --cutout 16", "unknown option '--cutout'"),
    ],
)
def test_bad_input_is_one_line(
    images: Path,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in here(IMAGENET, f"{words} --device cpu", images, monkeypatch, capsys)


def test_a_class_without_images_to_measure_on(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(images / "images", tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "val" / "green")
    said = here(IMAGENET, shlex.join(WORDS), tmp_path, monkeypatch, capsys)
    assert "class green has images in train and none in" in said
