"""The listeners of docs/trackers.md send what metrics.jsonl has to the real MLflow and W&B."""

from __future__ import annotations

import importlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_documentation import ROOT, blocks

import darts_bio
from darts_bio.training.listeners import Progress

# Of the packages themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

Numbers = dict[str, list[tuple[int, float]]]
"""By the name of a number its steps and values in their order."""


class GoneError(Exception):
    pass


def listing(folder: Path) -> Numbers:
    """The numbers that metrics.jsonl has, by the names that the listeners give them."""
    numbers: Numbers = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if "/" in name:
                shown = name if entry["event"] == "record" else f"epoch/{name.replace('/', '_')}"
                numbers[shown].append((entry["step"], value))
    return dict(numbers)


def page(number: int) -> dict[str, Any]:
    """The names of a block of the page, after it has run in the present folder."""
    names: dict[str, Any] = {}
    exec(compile(blocks(ROOT / "docs" / "trackers.md")[number], "docs/trackers.md", "exec"), names)
    return names


def gone_at_step_3(listener: Any) -> Any:
    """The listener, which ends the run without a word once it has sent the record of step 3.

    A search of the page has two epochs of two steps, and a checkpoint behind each.
    """
    send = listener.on_record

    def on_record(progress: Progress, numbers: dict[str, float]) -> None:
        send(progress, numbers)
        if progress.step == 3:
            raise GoneError

    listener.on_record = on_record
    return listener


def sent(folder: Path) -> Numbers:
    """What the listener has sent by the end of such a run that went on: step 3 twice."""
    numbers = listing(folder)
    assert [step for step, _ in numbers["train/loss"]] == [1, 2, 3, 4]
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
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")

    def held(run: Any) -> Numbers:
        client = mlflow.tracking.MlflowClient()
        return {
            name: [(each.step, each.value) for each in client.get_metric_history(run, name)]
            for name in client.get_run(run).data.metrics
        }

    names = page(0)
    assert held(names["run"].info.run_id) == listing(tmp_path / "tracked")
    options = {**names["small"], "out": "gone", "progress": False}
    with pytest.raises(GoneError), mlflow.start_run() as run:
        darts_bio.search("digits", listener=gone_at_step_3(names["ToMLflow"]()), **options)
    with mlflow.start_run(run_id=run.info.run_id):
        darts_bio.search("digits", listener=names["ToMLflow"](), resume=True, **options)
    found = {name: sorted(values) for name, values in held(run.info.run_id).items()}
    assert found == sent(tmp_path / "gone")


def test_wandb_holds_what_the_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)

    def held(run: str) -> Numbers:
        numbers: Numbers = defaultdict(list)
        for path in sorted(tmp_path.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb")):
            for values in history(path):
                step = values.pop("step")
                for name in (name for name in values if "/" in name):
                    numbers[name].append((step, values[name]))
        return dict(numbers)

    names = page(1)
    assert held(names["run"].id) == listing(tmp_path / "tracked")
    options = {**names["small"], "out": "gone", "progress": False}
    with pytest.raises(GoneError), wandb.init(id="one", resume="allow") as run:
        darts_bio.search("digits", listener=gone_at_step_3(names["ToWandb"](run)), **options)
    with wandb.init(id="one", resume="allow") as run:
        darts_bio.search("digits", listener=names["ToWandb"](run), resume=True, **options)
    found = {name: sorted(values) for name, values in held("one").items()}
    assert found == sent(tmp_path / "gone")


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
