"""`--log` sends what metrics.jsonl has; MLflow and W&B themselves are asked where they are installed."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import darts_bio
from darts_bio.config.common import TRACKERS
from darts_bio.errors import InputError
from darts_bio.monitoring.trackers import _TRACKERS, TRACKERS_FILE
from darts_bio.training.listeners import Listener, Progress

# Of the packages themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

Numbers = dict[str, list[tuple[int, float]]]
"""By the name of a number its steps and values in their order."""

OPTIONS: dict[str, Any] = {"train_images": 64, "batch_size": 16, "epochs": 2, "channels": 2}
OPTIONS |= {"log_every": 1, "progress": False, "tensorboard": False}
"""Of a search of two epochs of two steps, with a checkpoint behind each."""


class GoneError(Exception):
    pass


class Gone(Listener):
    """Ends the run without a word after the record of step 3, which was sent before."""

    def on_record(self, progress: Progress, numbers: dict[str, float]) -> None:
        if progress.step == 3:
            raise GoneError


def listing(folder: Path) -> Numbers:
    """The numbers that metrics.jsonl has, by the names that trackers know them by."""
    numbers: Numbers = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if "/" in name:
                shown = name if entry["event"] == "record" else f"epoch/{name.replace('/', '_')}"
                numbers[shown].append((entry["step"], value))
    assert [step for step, _ in numbers["train/loss"]] == [1, 2, 3, 4]
    return dict(numbers)


def again(numbers: Numbers) -> Numbers:
    """What was sent of a run that ended at step 3, and went on from step 2: step 3 twice."""
    return {
        name: values
        if name.startswith("epoch/")
        else sorted([*values, *(pair for pair in values if pair[0] == 3)])
        for name, values in numbers.items()
    }


def test_mlflow_holds_what_the_run_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="MLflow keeps runs in SQLite by it")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = mlflow.tracking.MlflowClient()

    def run_of(folder: Path) -> Any:
        return client.get_run(json.loads((folder / TRACKERS_FILE).read_text())["mlflow"])

    def held(folder: Path) -> Numbers:
        run = run_of(folder)
        return {
            name: sorted(
                (each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        }

    whole, gone = tmp_path / "whole", tmp_path / "gone"
    darts_bio.search("digits", out=whole, log=("mlflow",), **OPTIONS)
    assert held(whole) == listing(whole)
    assert run_of(whole).info.status == "FINISHED"
    assert run_of(whole).data.params["channels"] == "2"
    with pytest.raises(GoneError):
        darts_bio.search("digits", out=gone, log=("mlflow",), listener=Gone(), **OPTIONS)
    assert run_of(gone).info.status == "KILLED"
    darts_bio.search("digits", out=gone, log=("mlflow",), resume=True, **OPTIONS)
    assert run_of(gone).info.status == "FINISHED"
    assert held(gone) == again(listing(gone))
    assert mlflow.active_run() is None


def test_wandb_holds_what_the_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)

    def held(folder: Path) -> Numbers:
        run = json.loads((folder / TRACKERS_FILE).read_text())["wandb"]
        numbers: Numbers = defaultdict(list)
        for path in sorted(tmp_path.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb")):
            for values in history(path):
                step = values.pop("step")
                for name in (name for name in values if "/" in name):
                    numbers[name].append((step, values[name]))
        return {name: sorted(values) for name, values in numbers.items()}

    whole, gone = tmp_path / "whole", tmp_path / "gone"
    darts_bio.search("digits", out=whole, log=("wandb",), **OPTIONS)
    assert held(whole) == listing(whole)
    with pytest.raises(GoneError):
        darts_bio.search("digits", out=gone, log=("wandb",), listener=Gone(), **OPTIONS)
    darts_bio.search("digits", out=gone, log=("wandb",), resume=True, **OPTIONS)
    assert held(gone) == again(listing(gone))


class Server:
    """A package `mlflow` whose runs are kept here; its server is gone after `breaks_after` calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, breaks_after: int = 10**9) -> None:
        self.sent: dict[str, list[tuple[int, str, float]]] = {}
        self.ended: list[tuple[str, str]] = []
        self.left, self.active = breaks_after, ""
        module = types.ModuleType("mlflow")
        module.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
        names = ("start_run", "log_params", "log_metrics", "end_run", "active_run")
        for name in names:
            setattr(module, name, getattr(self, name))
        monkeypatch.setitem(sys.modules, "mlflow", module)

    def start_run(self, run_id: str | None, run_name: str, nested: bool) -> Any:
        assert not nested
        self.active = run_id or f"run {len(self.sent)}"
        self.sent.setdefault(self.active, [])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=self.active))

    def active_run(self) -> None:
        return None

    def log_params(self, params: dict[str, str]) -> None:
        assert params["epochs"] == "2"

    def log_metrics(self, numbers: dict[str, float], step: int) -> None:
        if self.left == 0:
            raise ConnectionError("no answer\nfrom the server")
        self.left -= 1
        self.sent[self.active] += [(step, name, value) for name, value in numbers.items()]

    def end_run(self, status: str) -> None:
        self.ended.append((self.active, status))


def flat(numbers: Numbers) -> list[tuple[int, str, float]]:
    return sorted((step, name, value) for name, each in numbers.items() for step, value in each)


def test_a_run_that_goes_on_goes_on_in_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, out = Server(monkeypatch), tmp_path / "run"
    with pytest.raises(GoneError):
        darts_bio.search("digits", out=out, log=("mlflow",), listener=Gone(), **OPTIONS)
    darts_bio.search("digits", out=out, log=("mlflow",), resume=True, **OPTIONS)
    assert server.ended == [("run 0", "KILLED"), ("run 0", "FINISHED")]
    assert sorted(server.sent["run 0"]) == flat(again(listing(out)))
    darts_bio.search("digits", out=out, log=("mlflow",), resume=True, **OPTIONS)  # nothing is left
    assert server.ended[2:] == [("run 0", "FINISHED")]


def test_a_search_that_ends_itself_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of nothing but skips end it after the first of two epochs."""
    server, options = Server(monkeypatch), {**OPTIONS, "regularizers": ("skip_stop(most=1)",)}
    options["space"] = "darts(nodes=1, operations=(none, skip_connect))"
    result = darts_bio.search("digits", out=tmp_path / "run", log=("mlflow",), **options)
    assert (len(result.epochs), result.finished) == (1, True)
    assert server.ended == [("run 0", "FINISHED")]


def test_a_run_outlives_its_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, out = Server(monkeypatch, breaks_after=2), tmp_path / "run"
    with pytest.warns(UserWarning, match=r"--log mlflow: nothing more is sent \(no answer") as said:
        done = darts_bio.search("digits", out=out, log=("mlflow",), **OPTIONS)
    assert done.finished
    assert len([each for each in said if "--log" in str(each.message)]) == 1
    assert {step for step, _, _ in server.sent["run 0"]} == {1, 2}
    assert server.ended == []
    listing(out)  # whole


@pytest.mark.parametrize("content", ["[]", '{"mlflow": 3}', '{"mlflow": ["run 0"]}'])
def test_a_spoilt_number_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    server, out = Server(monkeypatch), tmp_path / "run"
    with pytest.raises(GoneError):
        darts_bio.search("digits", out=out, log=("mlflow",), listener=Gone(), **OPTIONS)
    (out / TRACKERS_FILE).write_text(content)
    assert darts_bio.search("digits", out=out, log=("mlflow",), resume=True, **OPTIONS).finished
    # What went on is in a run of its own, whose number is kept: steps 3 and 4.
    assert {step for step, _, _ in server.sent["run 1"]} == {3, 4}
    assert json.loads((out / TRACKERS_FILE).read_text())["mlflow"] == "run 1"


def test_bad_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(_TRACKERS) == TRACKERS
    with pytest.raises(InputError, match="unknown tracker in --log 'mlflo': did you mean 'mlflow'"):
        darts_bio.search("digits", log=("mlflo",))
    with pytest.raises(InputError, match="--log: expected each of them once"):
        darts_bio.search("digits", log=("wandb", "wandb"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--log wandb: the package wandb is not installed; pip"):
        darts_bio.search("digits", out=tmp_path / "run", log=("wandb",), **OPTIONS)


def history(path: Path) -> Iterator[dict[str, Any]]:
    """What `log` was told, by a .wandb file: protocol buffers in LevelDB's log format.

    Seven bytes of W&B's come first. A record has a head of seven bytes (checksum, length, kind: 1 is
    whole, 4 ends one in parts) and does not cross the end of a block of 32 KiB.
    """
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = proto.Record()
            record.ParseFromString(part)
            part = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {
                    each.key or each.nested_key[0]: json.loads(each.value_json) for each in items
                }
