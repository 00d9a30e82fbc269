"""The Python functions: their results, their folders, and what they refuse; and that a command does
the same.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import StopAfter
from searching import verdicts
from torch.utils.data import Dataset

import darts_bio
from darts_bio.api import SearchResult, TrainResult
from darts_bio.cli import main
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.data.given import image_data
from darts_bio.errors import InputError
from darts_bio.runs.running import SeedResults
from darts_bio.strategies import REGULARIZERS, STRATEGIES
from darts_bio.training.listeners import Progress
from darts_bio.training.meters import Numbers

QUIET: dict[str, Any] = {"progress": False, "tensorboard": False}
SMALL: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "epochs": 1,
    "crop_padding": 1,
    "flip": False,
}
SEARCH: dict[str, Any] = {
    **SMALL,
    "space": "darts(nodes=1)",
    "rules": ("usf", "fa"),
    "strategy": "darts(lr=0.05)",
    "lr": 0.1,
}
TRAIN: dict[str, Any] = {**SMALL, "cutout": 0, "auxiliary": 0.0, "drop_path": 0.0, "lr": 0.1}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=48)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    out = tmp_path_factory.mktemp("api") / "search"
    result = darts_bio.search("digits", train_images=48, out=str(out), **SEARCH, **QUIET)
    assert isinstance(result, SearchResult)
    return result


@pytest.fixture(scope="module")
def trained(
    found: SearchResult, data: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    out = tmp_path_factory.mktemp("api") / "train"
    result = darts_bio.train(found, train_images=48, out=str(out), **TRAIN, **QUIET)
    assert isinstance(result, TrainResult)
    return result


class Pairs(Dataset):
    """A map-style dataset of (image, label), images as a function says."""

    def __init__(self, data: ImageData, image: Any) -> None:
        self.images, self.labels, self.classes = (
            data.train.images,
            data.train.labels,
            list(data.classes),
        )
        self._image = image

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self._image(self.images[i]), int(self.labels[i])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Have PyTorch make floats of a type within the context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class TestSearch:
    def test_the_folder_is_whole_without_any_monitor(self, found: SearchResult) -> None:
        files = {
            "config.yaml",
            "genotype.json",
            "cells.svg",
            "metrics.jsonl",
            "checkpoint-before.pt",
            "alpha.jsonl",
            "checkpoint.pt",
            "report.md",
            "report.html",
            "status.json",
        }
        assert {path.name for path in found.folder.iterdir()} == files
        assert darts_bio.load_genotype(found.folder) == found.genotype
        assert found.finished
        assert [numbers["step"] for numbers in found.epochs] == [found.step]

    def test_the_command_finds_the_same_bit_for_bit(
        self, found: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = {**SEARCH, "train_images": 48, "rules": "usf,fa", "flip": None}
        words = [
            word
            for name, value in options.items()
            if value is not None
            for word in (f"--{name}", str(value))
        ]
        assert main(["search", *words, "--no-flip", "--out", str(tmp_path / "run")]) == 0
        assert str(found.genotype) in capsys.readouterr().out
        assert same_numbers(darts_bio.load_run(tmp_path / "run").epochs, found.epochs)
        one, other = (
            torch.load(f / "checkpoint.pt", weights_only=True)
            for f in (found.folder, tmp_path / "run")
        )
        assert all(
            torch.equal(v, other["task"]["supernet"][k]) for k, v in one["task"]["supernet"].items()
        )

    @pytest.mark.parametrize(
        "form", ["tensors", "arrays", "floats", "tensors of a dataset", "PIL images", "prepared"]
    )
    def test_images_that_are_handed_over(
        self, form: str, found: SearchResult, data: ImageData, tmp_path: Path
    ) -> None:
        from PIL import Image

        images, labels = data.train.images, data.train.labels
        given: Any = {
            "tensors": (images, labels),
            "arrays": (images.numpy(), labels.tolist()),
            "floats": (images / 255, labels.int()),
            "tensors of a dataset": Pairs(data, lambda image: image),
            "PIL images": Pairs(data, lambda image: Image.fromarray(image[0].numpy())),
            "prepared": data,
        }[form]
        result = darts_bio.search(given, out=str(tmp_path / "run"), **SEARCH, log_every=5, **QUIET)
        assert isinstance(result, SearchResult)
        assert result.genotype.cells == found.genotype.cells
        assert same_numbers(result.epochs, found.epochs)

    def test_a_run_on_given_images_goes_on_with_them_alone(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {**SEARCH, "epochs": 2, "out": str(tmp_path / "run"), **QUIET}
        pair = (data.train.images, data.train.labels)
        stopped = darts_bio.search(pair, listener=StopAfter(4), **options)
        assert not stopped.finished
        assert stopped.exit_code == 128 + signal.SIGINT
        with pytest.raises(
            InputError, match="handed over in Python; go on with it, or measure it, there"
        ):
            darts_bio.search("given", resume=True, **options)
        with pytest.raises(InputError, match="the data set of this run has changed"):
            darts_bio.search((255 - data.train.images, data.train.labels), resume=True, **options)
        whole = darts_bio.search(pair, **{**options, "out": str(tmp_path / "whole")})
        resumed = darts_bio.search(pair, resume="auto", **options)
        assert isinstance(resumed, SearchResult)
        assert isinstance(whole, SearchResult)
        assert (resumed.finished, resumed.genotype) == (True, whole.genotype)
        assert same_numbers(resumed.epochs, whole.epochs)

    def test_a_listener_hears_of_everything(self, data: ImageData, tmp_path: Path) -> None:
        heard: list[tuple[str, int]] = []

        class Told(darts_bio.Listener):
            def on_start(self, progress: Progress) -> None:
                heard.append(("start", progress.step))

            def on_record(self, progress: Progress, numbers: Numbers) -> None:
                assert numbers["train/loss"] > 0
                heard.append(("record", progress.step))

            def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
                heard.append(("epoch", progress.step))

        darts_bio.search(
            data, out=str(tmp_path / "run"), listener=Told(), log_every=2, **SEARCH, **QUIET
        )
        assert heard == [("start", 0), ("record", 2), ("epoch", 3)]

    @pytest.mark.parametrize(
        "mode",
        [
            torch.no_grad,
            torch.inference_mode,
            lambda: torch.autocast("cpu"),
            lambda: torch.device("meta"),
            lambda: default_dtype(torch.float64),
        ],
        ids=["no_grad", "inference_mode", "autocast", "device", "default_dtype"],
    )
    def test_modes_of_the_program_change_nothing(
        self, mode: Any, found: SearchResult, tmp_path: Path
    ) -> None:
        with mode():
            before = (
                torch.is_grad_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.ones(1).dtype,
            )
            result: Any = darts_bio.search(
                "digits", train_images=48, out=str(tmp_path / "run"), **SEARCH, **QUIET
            )
            after = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.ones(1).dtype)
        assert after == before
        assert result.genotype.cells == found.genotype.cells
        assert same_numbers(result.epochs, found.epochs)

    def test_a_folder_whose_name_is_no_text(self, data: ImageData, tmp_path: Path) -> None:
        """As any beyond ASCII is under LC_ALL=C; TensorBoard takes none of these."""
        with pytest.raises(
            InputError, match="--out .*expected a name that is text, for TensorBoard"
        ):
            darts_bio.search(data, out=str(tmp_path / "a\udcff"), progress=False, **SEARCH)

    def test_two_runs_at_once_are_refused(self, data: ImageData, tmp_path: Path) -> None:
        """Threads share the generators that runs draw from. A run within a listener waits for none."""
        refused: list[str] = []

        class Impatient(darts_bio.Listener):
            def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
                with ThreadPoolExecutor() as threads:
                    other = threads.submit(darts_bio.search, data, **SEARCH, **QUIET)
                    refused.append(str(other.exception()))

        darts_bio.search(data, out=str(tmp_path / "run"), listener=Impatient(), **SEARCH, **QUIET)
        assert [text.partition(",")[0] for text in refused] == [
            "expected one run at a time in a process"
        ]

    def test_each_seed_is_the_run_that_it_is_alone(self, tmp_path: Path) -> None:
        """Of images that the seed draws; and in another thread than the main one, which takes no
        signals.
        """
        options: dict[str, Any] = {**SEARCH, "train_images": 48, **QUIET}
        both = darts_bio.search("digits", seeds=2, out=str(tmp_path / "both"), **options)
        with ThreadPoolExecutor() as threads:
            one = threads.submit(
                darts_bio.search, "digits", seed=1, out=str(tmp_path / "one"), **options
            ).result()
        assert isinstance(both, SeedResults)
        assert isinstance(one, SearchResult)
        assert both.seeds[1].genotype.cells == one.genotype.cells
        assert same_numbers(both.seeds[1].epochs, one.epochs)
        again = darts_bio.search("digits", resume=True, out=str(both.seeds[1].folder))
        assert again.finished

    def test_several_seeds(self, data: ImageData, tmp_path: Path) -> None:
        result = darts_bio.search(
            data, out=str(tmp_path / "run"), seeds=2, seed=3, **SEARCH, **QUIET
        )
        assert isinstance(result, SeedResults)
        assert list(result.seeds) == [3, 4]
        assert result.finished
        report = (result.folder / "report.md").read_text()
        assert "# Search on images given in Python, 2 seeds" in report
        assert "seed: 3\n" in report
        assert "seeds: 2\n" in report
        for seed, own in result.seeds.items():
            assert own.folder == result.folder / f"seed-{seed}"
            assert str(own.genotype) in report
        of_seeds = [verdicts(own.folder / "report.md") for own in result.seeds.values()]
        assert all(of_seeds)
        assert verdicts(result.folder / "report.md")[-sum(map(len, of_seeds)) :] == [
            line for own in of_seeds for line in own
        ]


class TestTrain:
    def test_the_folder_is_whole_and_the_accuracy_is_the_networks(
        self, trained: TrainResult, data: ImageData
    ) -> None:
        files = {
            "config.yaml",
            "genotype.json",
            "cells.svg",
            "metrics.jsonl",
            "checkpoint-before.pt",
            "checkpoint.pt",
            "report.md",
            "report.html",
            "status.json",
        }
        assert {path.name for path in trained.folder.iterdir()} == files | {"curves.svg"}
        assert not trained.network.training
        logits = darts_bio.load_run(trained.folder).trained().on_pixels()(data.test.images / 255)
        assert trained.accuracy == (logits.argmax(1) == data.test.labels).double().mean().item()
        assert repr(trained).startswith(
            f"TrainResult({str(trained.folder)!r}, 1 epoch; train/loss="
        )

    def test_draws_of_a_listener_change_nothing(self, data: ImageData, tmp_path: Path) -> None:
        """Drop path draws from the same generators."""

        class Drawing(darts_bio.Listener):
            def on_step(self, progress: Progress, images: int) -> None:
                torch.manual_seed(0)

            on_start = on_record = on_epoch = lambda self, *told: torch.rand(3)  # type: ignore[assignment]

        options: dict[str, Any] = {**TRAIN, "drop_path": 0.5, "epochs": 2, "log_every": 1, **QUIET}
        results = [
            darts_bio.train(
                "darts_v1", data, out=str(tmp_path / name), listener=listener, **options
            )
            for name, listener in (("alone", None), ("heard", Drawing()))
        ]
        alone, heard = results
        assert isinstance(alone, TrainResult)
        assert isinstance(heard, TrainResult)
        assert same_numbers(alone.epochs, heard.epochs)

    def test_on_images_that_are_handed_over(self, found: SearchResult, trained: TrainResult, data: ImageData,
                                            tmp_path: Path) -> None:  # fmt: skip
        pairs = [(split.images, split.labels) for split in (data.train, data.test)]
        result = darts_bio.train(found.genotype, pairs[0], test=pairs[1], out=str(tmp_path / "run"), log_every=10,
                                 **TRAIN, **QUIET)  # fmt: skip
        assert isinstance(result, TrainResult)
        assert same_numbers(result.epochs, trained.epochs)
        with pytest.raises(
            InputError, match=r"train: expected test images beside those of `dataset`; give test="
        ):
            darts_bio.train(found, pairs[0], **TRAIN, **QUIET)
        with pytest.raises(
            InputError, match="test: expected together with images in `dataset`, found 'digits'"
        ):
            darts_bio.train(found, "digits", test=pairs[1], **TRAIN, **QUIET)

    def test_a_recipe_is_cut_down_to_images_that_are_handed_over(
        self, found: SearchResult, trained: TrainResult, tmp_path: Path
    ) -> None:
        """Of 12x12: no auxiliary head, a smaller cutout, and no larger batch than there are images;
        and what is given holds. Measured on them too.
        """
        pairs = [(torch.rand(30, 3, 12, 12), torch.arange(30) % 3) for _ in range(2)]
        sizes: dict[str, Any] = {"epochs": 1, "channels": 2, "layers": 3, **QUIET}
        result = darts_bio.train(found, pairs[0], test=pairs[1], out=str(tmp_path / "run"), **sizes)
        assert isinstance(result, TrainResult)
        options = darts_bio.load_run(result.folder).options
        assert [options[name] for name in ("cutout", "auxiliary", "batch_size")] == [6, 0.0, 30]
        assert darts_bio.align(result, pairs[0], test=pairs[1], batches=2).numbers.is_file()
        attacked = darts_bio.attack(result, *pairs[:1], test=pairs[1], attacks="fgsm", eps="4", images=20,
                                    out=str(tmp_path / "attacked"), **QUIET)  # fmt: skip
        assert attacked.finished
        for measure in (darts_bio.align, darts_bio.attack):
            with pytest.raises(
                InputError, match=r"go on with it, or measure it, there, by .* align or attack"
            ) as caught:
                measure([trained, result])
            assert str(caught.value).startswith(f"{result.folder}: data set given: ")
        with pytest.raises(
            InputError,
            match="dataset, test: expected both as they were handed over to the training",
        ):
            darts_bio.attack(result, pairs[0], **QUIET)
        with pytest.raises(InputError, match="dataset, test: expected both"):
            darts_bio.align(result, "digits", test=pairs[1])
        begun = darts_bio.train(
            found, pairs[0], test=pairs[1], out=str(tmp_path / "auto"), resume="auto", **sizes
        )
        assert darts_bio.load_run(begun.folder).options["cutout"] == 6
        with pytest.raises(
            InputError, match="--cutout: expected less than 12, the side of the images, found 16"
        ):
            darts_bio.train(found, pairs[0], test=pairs[1], cutout=16, **sizes)
        with pytest.raises(
            InputError, match="test: expected labels from 0 to 2, as in `dataset`, found 3"
        ):
            darts_bio.train(found, pairs[0], test=(pairs[1][0], pairs[1][1] + 1), **QUIET)

    @pytest.mark.parametrize("wrong", [3, None, ["darts_v2"]])
    def test_what_is_no_genotype_and_no_run(self, wrong: Any) -> None:
        with pytest.raises(
            InputError,
            match="genotype: expected a result of search, a genotype, or a name, file or run",
        ):
            darts_bio.train(wrong, **QUIET)
        with pytest.raises(
            InputError, match="run: expected a result or the name of a run folder, found"
        ):
            darts_bio.load_run(wrong)

    def test_the_digits_are_trained_on_where_they_are_named(self, tmp_path: Path) -> None:
        """With the stem of ImageNet too, for which images are read from files if none are named."""
        options: dict[str, Any] = {"stem": "imagenet", **QUIET}
        named = darts_bio.train(
            *("darts_v2", "digits"), train_images=48, out=str(tmp_path / "run"), **TRAIN, **options
        )
        assert isinstance(named, TrainResult)
        assert darts_bio.load_run(named.folder).options["dataset"] == "digits"
        nowhere = str(tmp_path / "none")
        with pytest.raises(InputError, match="expected a folder with the folders train and val"):
            darts_bio.train("darts_v2", out=str(tmp_path / "files"), data_dir=nowhere, **options)

    def test_alignment_and_attacks(self, trained: TrainResult, tmp_path: Path) -> None:
        aligned = darts_bio.align(trained, batches=2)
        assert aligned.numbers.is_file()
        folder, layers = str(trained.folder), len(aligned.alignment.layers)
        assert repr(aligned).startswith(
            f"AlignmentResult({folder!r}, {layers} layers; gradient_cosine="
        )
        attacked = darts_bio.attack(
            trained, attacks="fgsm", eps="4", images=20, out=str(tmp_path / "run"), **QUIET
        )
        assert attacked.finished
        assert repr(attacked).startswith(
            f"RobustnessResult({str(attacked.folder)!r}, 1 network, 20 images, "
        )
        assert attacked.numbers["networks"][0]["clean_all_test_images"] == trained.accuracy
        files = {
            "config.yaml",
            "checkpoint.pt",
            "report.md",
            "report.html",
            "status.json",
            "results.json",
            "accuracy.svg",
            "examples.svg",
        }
        assert {path.name for path in attacked.folder.iterdir()} == files

    def test_a_run_is_read_back(self, found: SearchResult, trained: TrainResult) -> None:
        run = darts_bio.load_run(trained.folder)
        assert (run.kind, run.genotype, run.options["channels"]) == ("train", found.genotype, 2)
        assert run.epochs == trained.epochs
        with pytest.raises(InputError, match=r"expected a run folder, found no config.yaml there"):
            darts_bio.load_run(trained.folder / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": 8}, "unknown option 'chanels': did you mean 'channels'"),
        ({"command": "x"}, "unknown option 'command'"),
        ({"lr": "much"}, "--lr: expected a number, found 'much'"),
        ({"lr": -1}, "--lr: expected at least 0, found -1"),
        ({"channels": 2.5}, "--channels: expected a whole number, found 2.5"),
        ({"flip": "no"}, "--flip: expected true or false, found 'no'"),
        ({"amp": "bf15"}, "unknown value of --amp 'bf15'"),
        ({"rules": []}, "--rules: expected at least one learning rule"),
        ({"resume": True}, "--resume needs --out DIR"),
        ({"dataset": "cifar11"}, "unknown data set 'cifar11'"),
        (
            {"dataset": 5},
            "dataset: expected the name of a data set, a pair .images, labels. or a map-style "
            "dataset",
        ),
        (
            {"dataset": (torch.randn(4, 1, 8, 8), [0, 1, 0, 1])},
            "expected images of bytes, or of floats from 0 to 1",
        ),
        (
            {"dataset": (np.zeros((4, 1, 8, 8), np.uint8), [0.5] * 4)},
            "expected labels .N,. of whole numbers",
        ),
        (
            {"dataset": (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])},
            r"expected images \(N, C, H, W\) and as many",
        ),
        (
            {"dataset": (np.zeros((4, 1, 8, 8), np.uint8), [0, 1])},
            r"found \(4, 1, 8, 8\) and \(2,\)",
        ),
        (
            {"dataset": (np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])},
            "channels seem to stand last; hand over",
        ),
        (
            {"dataset": (np.zeros((4, 1, 8, 8), np.uint8), [1, 2, 1, 2])},
            "each of them there; found none of class 0",
        ),
        (
            {"dataset": (np.zeros((4, 1, 8, 8), np.uint8), [0, 0, 0, 0])},
            "of 2 classes or more, .* found 1 class",
        ),
        (
            {"dataset": (torch.full((4, 1, 8, 8), float("nan")), [0, 1, 0, 1])},
            "floats from 0 to 1, .* nan to nan",
        ),
        (
            {"dataset": torch.zeros(4, 1, 8, 8)},
            "dataset: expected a pair .images, labels., found Tensor alone",
        ),
        (
            {"strategy": STRATEGIES.build("darts(lr=0.01)")},
            r"--strategy: expected text, found Darts\(lr=0.01, .*; write name\(option=value\), such as "
            r'"darts\(lr=3e-4\)" for a strategy',
        ),
        (
            {"regularizers": [type(REGULARIZERS.build("skip_stop"))]},
            "--regularizers: expected text, found <class .*SkipStop",
        ),
        ({"listener": print}, "listener: expected an object of a subclass of darts_bio.Listener"),
    ],
)
def test_bad_input_from_python(options: dict[str, Any], message: str, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        darts_bio.search(**options, **QUIET)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_images_of_different_sizes_are_refused(data: ImageData) -> None:
    sizes = iter(range(8, 100))
    with pytest.raises(InputError, match="expected images of one size, found .*resize them first"):
        image_data(Pairs(data, lambda image: torch.zeros(1, 8, next(sizes))))


class Samples(Dataset):
    """A map-style dataset of given samples."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.classes = samples, None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            (torch.rand(4, 3, 8, 8), list("abab")),
            r"labels: expected numbers, found text; .* numpy.unique\(labels, return_inverse=True\)$",
        ),
        ((torch.rand(4, 3, 8, 8), np.array(list("abab"), object)), "found text; labels are"),
        ((torch.rand(4, 3, 8, 8), None), "labels: expected numbers"),
        ((torch.rand(4, 3, 8, 8), [0, 1, -1, 0]), "expected labels from 0 on, found -1"),
        ((np.array([None] * 4), [0, 1, 0, 1]), "images: expected numbers"),
        ((np.ones((4, 3, 8, 8), np.uint16), [0, 1, 0, 1]), r"torch.uint16\s+from 1 to 1"),
        ({"images": torch.rand(4, 3, 8, 8)}, "or a map-style dataset, found dict"),
        (Samples([(torch.rand(8, 8), 0)] * 4), r"tensors \(C, H, W\), or arrays .* found \(8, 8\)"),
        (Samples([(np.ones(8), 0)] * 4), r"or arrays .* found \(8,\)"),
        (Samples([(np.ones((3, 8, 8)), 0)] * 4), "whose channels seem to stand first; hand over"),
    ],
)
def test_images_and_labels_that_are_none(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_data(source)


def test_test_images_beside_those_of_an_image_data() -> None:
    pair = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    data = image_data(pair, test=pair)
    assert image_data(data) is data
    with pytest.raises(InputError, match="test: expected nothing beside an ImageData, .* a tuple"):
        image_data(data, test=pair)


def test_forms_of_images_and_labels() -> None:
    from PIL import Image

    bytes_ = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    labels = torch.tensor([0, 1])
    floats = (bytes_ / 255).requires_grad_()
    palettes = [
        Image.fromarray(image.permute(1, 2, 0).numpy()).quantize(64).convert("P")
        for image in bytes_
    ]
    colors = [
        torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in palettes
    ]
    for source, expected in (
        ((floats, labels), bytes_),
        ((list(bytes_), labels), bytes_),
        (Samples([(image, int(i)) for image, i in zip(floats, labels, strict=True)]), bytes_),
        # The values of an image with a palette are places in it.
        (Samples(list(zip(palettes, [0, 1], strict=True))), torch.stack(colors)),
    ):
        found = image_data(source)
        assert torch.equal(found.train.images, expected)
        assert found.classes == ("0", "1")


def test_the_names_of_the_classes_are_the_datasets(data: ImageData) -> None:
    """Also of one that no image belongs to; without names labels are counted."""
    dataset = Pairs(data, lambda image: image)
    dataset.classes = ["none", *(f"digit {i}" for i in range(1, 10)), "another"]
    assert image_data(dataset).classes == tuple(dataset.classes)
    pair = data.train.images, data.train.labels
    assert image_data(pair).classes == tuple("0123456789")


def same_numbers(one: Any, other: Any) -> bool:
    """Tell whether the epochs of two runs are equal, but for the time that they took."""
    time = ("seconds", "images_per_second")
    kept = [
        [{k: v for k, v in numbers.items() if k not in time} for numbers in epochs]
        for epochs in (one, other)
    ]
    return kept[0] == kept[1]
