"""A run that goes on in another number of processes: what stays equal, and what does not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import StopAfter
from killing import equal, records_of
from several import several
from torch import Tensor, nn

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.runs.running import Watching
from darts_bio.runs.search import search
from darts_bio.runs.train import train
from darts_bio.runtime import set_rng_state
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.training.search import Search

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
SIZES: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "log_every": 1,
    "crop_padding": 1,
    "epochs": 2,
    "device": "cpu",
}
SEARCH = SearchConfig(
    space="darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))",
    rules=("usf", "brsf"),
    **SIZES,
)
TRAIN = RetrainConfig(genotype="mine", auxiliary=0.0, drop_path=0.0, cutout=0, lr=0.1, **SIZES)
STOP = 6
"""The step after which a run of eight is stopped, within its second epoch."""


class Plain(nn.Module):
    """A network whose layers see each image by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
        ).double()

    def forward(self, x: Tensor) -> Any:
        return self.layers(x.double())


def make(number: int, config: Any, stopped: bool, resume: bool) -> None:
    """The command of one of several processes, or of one alone; the first is asked to stop."""
    config = replace(config, resume=resume)
    listener = StopAfter(STOP if stopped and number == 0 else None)
    watching = Watching(console=sys.stderr, listener=listener)
    if isinstance(config, SearchConfig):
        search(config, "run", load_data("digits", train_images=64), watching)
        return
    Tensor.float = Tensor.double  # type: ignore[method-assign]  # losses in float64, too
    torch.manual_seed(0)
    train(config, "run", None, load_data("digits", train_images=32), watching, lambda *_: Plain())


def history(config: Any, out: Path, counts: tuple[int, ...]) -> Path:
    """A run in so many processes; of two numbers it is stopped in between."""
    for part, count in enumerate(counts):
        stopped = part + 1 < len(counts)
        options = (replace(config, out=str(out)), stopped, part > 0)
        ended = several(count, alone_or_not, count, *options, place=out.parent)
        assert [process.code for process in ended] == [0] * count, ended
        assert stopped == (state_of(out, config)["step"] == STOP)
    (out.parent / f"{out.name}.err").write_text(ended[0].errors)
    return out


def alone_or_not(number: int, count: int, *options: Any) -> None:
    if count == 1:  # as a command without torchrun
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
    make(number, *options)


def state_of(run: Path, config: Any) -> dict[str, Any]:
    kind = "search" if isinstance(config, SearchConfig) else "train"
    return read_checkpoint(run / "checkpoint.pt", kind)


@pytest.mark.parametrize("counts", [(2, 1), (1, 2)])
def test_without_batch_norm_they_agree_to_the_order_of_sums(
    counts: tuple[int, ...], tmp_path: Path
) -> None:
    """A gradient is the mean over all images of the batch, however they are shared out: in float64,
    where eight steps of rounding are below 1e-12, all runs agree to 1e-10.
    """
    whole = history(TRAIN, tmp_path / "whole", (2,))
    mixed = history(TRAIN, tmp_path / "mixed", counts)
    one, other = (state_of(run, TRAIN) for run in (whole, mixed))
    for name, value in one["task"]["network"].items():
        torch.testing.assert_close(other["task"]["network"][name], value, rtol=1e-10, atol=1e-12)
    lines = [records_of(run)["metrics.jsonl"] for run in (whole, mixed)]
    assert [(r["event"], r["step"]) for r in lines[0]] == [
        (r["event"], r["step"]) for r in lines[1]
    ]
    for first, second in zip(*lines, strict=True):
        for record in (first, second):
            record.pop("event")
        assert first == pytest.approx(second, rel=1e-10)
    said = f"goes on in {counts[1]} process(es) where there were {counts[0]}: batch norms see"
    assert said in (tmp_path / "mixed.err").read_text()


@pytest.mark.slow
def test_where_each_process_trains_on_whole_batches_nothing_differs(tmp_path: Path) -> None:
    """`eg` shares out individuals, not batches."""
    config = replace(SEARCH, strategy="eg(population=4, samples=3, batches=1)")
    config = replace(config, regularizers=("warmup(epochs=0)",))
    whole = history(config, tmp_path / "whole", (2,))
    mixed = history(config, tmp_path / "mixed", (2, 1))
    one, other = (state_of(run, config)["task"] for run in (whole, mixed))
    assert equal(one, other)
    assert records_of(whole) == records_of(mixed)
    assert "processes" not in (tmp_path / "mixed.err").read_text()


def test_with_batch_norm_it_goes_on_as_one_process_does_from_there(tmp_path: Path) -> None:
    """Which is another search than that of two: the batch norms see other parts of a batch."""
    whole = history(SEARCH, tmp_path / "whole", (2,))
    mixed = history(SEARCH, tmp_path / "mixed", (2, 1))
    half = history_until_the_stop(tmp_path / "half")
    data, threads = load_data("digits", train_images=64), torch.get_num_threads()
    torch.set_num_threads(1)
    task = Search(SEARCH, data, torch.device("cpu"))
    task.load_state_dict(half["task"])
    set_rng_state(half["rng"][0])
    task.begin_epoch(1)
    for t in range(STOP, 8):
        task.step(t)
    torch.set_num_threads(threads)
    one, other = (state_of(run, SEARCH)["task"] for run in (mixed, whole))
    assert equal(one["supernet"], task.supernet.state_dict())
    assert equal(one["strategy"], task.strategy_state.state_dict())
    assert not equal(one["supernet"], other["supernet"])


def history_until_the_stop(out: Path) -> dict[str, Any]:
    options = (replace(SEARCH, out=str(out)), True, False)
    several(2, alone_or_not, 2, *options, place=out.parent)
    return state_of(out, SEARCH)
