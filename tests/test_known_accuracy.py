"""The known accuracy of a search's cells: records, events and report against a table made here,
and the lines of docs/search/nb201.md that write such a table from a benchmark's API.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import ROOT, StopAfter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import darts_bio
from darts_bio.spaces import Nb201Table, load_genotype
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELLS = [
    f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
    for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6)
]
MADE_UP: dict[str, dict[str, float]] = {
    cell: {"cifar10": i * 80 / 15625 + 10, "ImageNet16-120": 46 - i / 1000}
    for i, cell in enumerate(CELLS)
}
OPTIONS: dict[str, Any] = {
    "space": "nb201",
    "rules": ("fa", "usf"),
    "strategy": "darts(lr=0.3)",  # so that the cell changes from epoch to epoch
    "train_images": 64,
    "batch_size": 16,
    "channels": 4,
    "layers": 3,
    "epochs": 4,
    "device": "cpu",
    "progress": False,
}


class Cells(Listener):
    """The cell in genotype.json after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cells = folder, list[str]()

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        edges = json.loads((self.folder / "genotype.json").read_text())["cells"]["cell"]["edges"]
        op = {(edge["node"], edge["input"]): edge["op"] for edge in edges}
        self.cells.append(
            f"|{op[1, 0]}~0|+|{op[2, 0]}~0|{op[2, 1]}~1|+|{op[3, 0]}~0|{op[3, 1]}~1|{op[3, 2]}~2|"
        )


def curve(epochs: Any) -> list[dict[str, float]]:
    return [
        {name: value for name, value in numbers.items() if name.startswith("known/")}
        for numbers in epochs
    ]


def shares(cells: list[str]) -> list[dict[str, float]]:
    return [
        {f"known/{name}": value / 100 for name, value in MADE_UP[cell].items()} for cell in cells
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "nb201.json"
    path.write_text(json.dumps(MADE_UP))
    return str(path)


def test_it_is_of_the_cell_of_each_epoch_on_all_data_sets(tmp_path: Path, table: str) -> None:
    listener = Cells(tmp_path)
    found = darts_bio.search(out=str(tmp_path), table=table, listener=listener, **OPTIONS)
    assert len(set(listener.cells)) > 1
    expected = shares(listener.cells)
    assert curve(found.epochs) == expected
    assert found.known == MADE_UP[listener.cells[-1]]

    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("cifar10", "ImageNet16-120"):
        shown = [event.value for event in events.Scalars(f"epoch/known_{name}")]
        assert shown == pytest.approx([numbers[f"known/{name}"] for numbers in expected])

    report = (tmp_path / "report.md").read_text()
    assert "![known accuracy over the epochs](known.svg)" in report
    assert "| epoch | cifar10, % | ImageNet16-120, % |" in report
    for epoch, cell in enumerate(listener.cells, 1):
        first, second = MADE_UP[cell].values()
        assert f"| {epoch} | {first:.2f} | {second:.2f} |" in report
    assert "under bp: the benchmark trained all cells by backpropagation." in report
    assert "What they reach under fa, usf it does not know." in report
    figure = (tmp_path / "known.svg").read_text()
    assert figure.count("<polyline") + figure.count("<path") >= 2
    assert ">cifar10<" in figure
    assert ">ImageNet16-120<" in figure


def test_a_resumed_search_has_the_same_curve(tmp_path: Path, table: str) -> None:
    runs = [str(tmp_path / name) for name in "ab"]
    whole, _ = (
        darts_bio.search(out=out, table=table, tensorboard=False, listener=listener, **OPTIONS)
        for out, listener in zip(runs, (None, StopAfter(5)), strict=True)
    )
    resumed = darts_bio.search(out=runs[1], resume=True, tensorboard=False, progress=False)
    assert resumed.finished
    assert curve(resumed.epochs) == curve(whole.epochs)
    assert all(curve(whole.epochs))
    assert Path(runs[0], "known.svg").read_text() == Path(runs[1], "known.svg").read_text()


def test_a_cell_that_is_not_in_the_table_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.csv").write_text(f"arch,cifar10\n{CELLS[0]},10\n")
    listener = Cells(tmp_path / "run")
    options = OPTIONS | {"progress": True, "rules": ("bp",)}
    found = darts_bio.search(
        out=str(tmp_path / "run"), table=str(tmp_path / "few.csv"), listener=listener, **options
    )
    assert found.finished
    assert found.known is None
    assert curve(found.epochs) == [{}] * 4
    said = re.findall(r"not in the table .*few\.csv: (\S+)", capsys.readouterr().err)
    assert said == list(dict.fromkeys(listener.cells))
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"The genotype's cell is not in the table: `{listener.cells[-1]}`" in report
    assert "it does not know" not in report  # all is under bp here
    assert not (tmp_path / "run" / "known.svg").exists()


def test_several_seeds_are_side_by_side(tmp_path: Path, table: str) -> None:
    options = OPTIONS | {"strategy": "random", "seeds": 2}
    found = darts_bio.search(out=str(tmp_path), table=table, tensorboard=False, **options)
    report = (tmp_path / "report.md").read_text()
    for seed, result in found.seeds.items():
        assert result.known is not None
        first, second = result.known.values()
        assert f"| {seed} | {first:.2f} | {second:.2f} |" in report


class Api:
    """The calls of both APIs that docs/search/nb201.md makes, over five cells, with their noise.

    With `verbose` each call prints, and by default it does. A wrong `hp`, `is_random` or data set
    gives other numbers, as it does there.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose, self.cells = verbose, CELLS[::3125]

    def _say(self, call: str) -> None:
        if self.verbose:
            print(f"Call {call}")

    def __len__(self) -> int:
        return len(self.cells)

    def arch(self, index: int) -> str:
        self._say("the arch function")
        return self.cells[index]

    def get_more_info(
        self,
        index: int,
        dataset: str,
        iepoch: int | None = None,
        hp: str = "12",
        is_random: bool = True,
    ) -> dict[str, float | None]:
        self._say("the get_more_info function")
        accuracy = accuracy_of(index, dataset)
        if iepoch is not None or hp != "200" or is_random:
            accuracy /= 2
        info: dict[str, float | None] = {"train-accuracy": 99.0, "test-accuracy": accuracy}
        # CIFAR-10 was trained on all training images here, and has no validation images.
        return info if dataset == "cifar10" else info | {"valid-accuracy": accuracy - 1}


def accuracy_of(index: int, dataset: str) -> float:
    return {"cifar10": 90.0, "cifar100": 70.0, "ImageNet16-120": 45.0}[dataset] + index


class NASBench201API(Api):
    def __init__(self, file_path_or_dict: str | None = None, verbose: bool = True) -> None:
        assert file_path_or_dict == "NAS-Bench-201-v1_1-096897.pth"
        super().__init__(verbose)


def create(
    file_path_or_dict: str | None, search_space: str, fast_mode: bool = False, verbose: bool = True
) -> Api:
    # The fast mode wants the folder, the other the file.
    assert (file_path_or_dict, search_space) == ("NATS-tss-v1_0-3ffb9-simple", "tss")
    assert fast_mode
    return Api(verbose)


@pytest.mark.parametrize("package", ["nats_bench", "nas_201_api"])
def test_the_lines_of_the_page_write_a_table_and_print_nothing(
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = ModuleType(package)
    vars(module).update(create=create, NASBench201API=NASBench201API)
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "search" / "nb201.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (opening,) = (block for block in blocks if f"from {package} import" in block)
    (writing,) = (block for block in blocks if '"nb201.json"' in block)
    exec(opening + writing, {})
    assert capsys.readouterr() == ("", "")
    written = Nb201Table(tmp_path / "nb201.json")
    for index, cell in enumerate(CELLS[::3125]):
        assert written.accuracies(load_genotype(cell)) == {
            name: accuracy_of(index, name) for name in ("cifar10", "cifar100", "ImageNet16-120")
        }
