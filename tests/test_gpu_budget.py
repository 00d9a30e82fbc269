"""The plan of benchmarks/on_gpu.py: what fits into the minutes, what is passed over and why, what
goes on.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHARES = {"a": 100.0, "b": 100.0, "c": 100.0}


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_budget")


def carried_out(
    budget: Any,
    items: Sequence[Any],
    states: dict[str, Any],
    seconds: float,
    taken: Mapping[str, float],
    **told: Any,
) -> tuple[list[str], dict[str, str]]:
    """What a call of so many seconds makes, each item taking the seconds that `taken` says, and
    what it passes over.

    Written as on_gpu.py goes about it, on a clock of its own: plan, make the first, plan again.
    `states` is changed.
    """
    made: list[str] = []
    while True:
        decisions = budget.plan(items, states, seconds, SHARES, tried=made, **told)
        granted = [decision for decision in decisions if decision.seconds]
        if not granted:
            return made, {decision.item.name: decision.why for decision in decisions}
        item, limit = granted[0].item, granted[0].seconds
        assert 0 < limit <= seconds
        spent = min(taken[item.name], limit)
        before = states.get(item.name)
        earlier = (before.spent, before.tries) if before else (0.0, 0)
        outcome = (
            "done"
            if taken[item.name] <= limit
            else "cut off"
            if item.least is None
            else "unfinished"
        )
        states[item.name] = budget.State(outcome, spent, earlier[1] + 1, earlier[0] + spent)
        seconds -= spent
        made.append(item.name)


def test_what_fits_is_made_in_order_and_the_rest_says_what_it_needs(budget: Any) -> None:
    items = [budget.Item("a: one", 30), budget.Item("b: two", 50), budget.Item("b: three", 10)]
    made, passed_over = carried_out(
        budget, items, {}, 45, {item.name: item.seconds for item in items}
    )
    assert made == ["a: one", "b: three"]  # a smaller one fills what the larger leaves
    assert passed_over == {"b: two": "needs about 50 s; 5 s are left"}


def test_further_calls_make_what_is_left_and_nothing_twice(budget: Any) -> None:
    items = [budget.Item(f"{stage}: {n}", 10.0 + n) for stage in "abc" for n in range(4)]
    taken, states, made = {item.name: item.seconds for item in items}, dict[str, Any](), list[str]()
    calls = 0
    while calls < len(items):
        now, passed_over = carried_out(budget, items, states, 25, taken)
        made, calls = made + now, calls + 1
        if not passed_over:
            break
    assert sorted(made) == sorted(taken)
    assert calls >= 6  # 138 s of work in calls of 25 s
    assert budget.plan(items, states, 1e6, SHARES) == []


def test_a_stage_that_takes_more_than_its_share_comes_last(budget: Any) -> None:
    items = [budget.Item(f"a: {n}", 40) for n in range(4)] + [
        budget.Item("b: one", 40),
        budget.Item("c: one", 40),
    ]
    order = [decision.item.name for decision in budget.plan(items, {}, 1000, SHARES)]
    assert order == ["a: 0", "a: 1", "b: one", "c: one", "a: 2", "a: 3"]
    slow = {
        "a: 0": budget.State("done", 90, spent=90)
    }  # the share counts what was spent, not what was expected
    order = [decision.item.name for decision in budget.plan(items, slow, 1000, SHARES)]
    assert order == ["b: one", "c: one", "a: 1", "a: 2", "a: 3"]


def test_what_hangs_is_cut_off_and_does_not_take_the_others_time(budget: Any) -> None:
    items, states = [budget.Item("a: hangs", 20), budget.Item("b: good", 30)], dict[str, Any]()
    made, passed_over = carried_out(budget, items, states, 100, {"a: hangs": 1e9, "b: good": 30})
    assert made == ["a: hangs", "b: good"]
    assert states["a: hangs"].last == 2 * 20 + 10
    assert passed_over == {"a: hangs": "cut off in this call; goes on in the next"}
    (decision,) = budget.plan(
        items, states, 60, SHARES
    )  # the next call knows that 50 s were too few
    assert decision.why == "needs about 100 s; 60 s are left"


def test_one_with_a_state_of_its_own_goes_on_whatever_the_minutes(budget: Any) -> None:
    search = budget.Item("c: search", 90, least=20)
    states: dict[str, Any] = {}
    (decision,) = budget.plan([search], states, 19, SHARES)
    assert decision.why == "needs about 20 s at least, 90 s in all; 19 s are left"
    for call in range(3):
        (decision,) = budget.plan([search], states, 50, SHARES)
        assert decision.seconds == 50  # all that is left
        states["c: search"] = budget.State("unfinished", 50, call + 1, 50 * (call + 1))
    states["c: search"] = budget.State(
        "begun", 0, 9, 150
    )  # killed nine times, its checkpoint is there
    assert budget.plan([search], states, 50, SHARES)[0].seconds == 50


def test_what_took_the_machine_down_is_not_begun_for_ever(budget: Any) -> None:
    item = budget.Item("a: one", 5)
    assert budget.plan([item], {"a: one": budget.State("begun", 0, 2)}, 60, SHARES)[0].seconds
    (decision,) = budget.plan([item], {"a: one": budget.State("begun", 0, 3)}, 60, SHARES)
    assert not decision.seconds
    assert decision.why.startswith("begun 3 times")


def test_needs_of_other_results_and_of_data_are_said(budget: Any) -> None:
    items = [budget.Item("b: step", 30), budget.Item("c: search", 90, least=20, after="b: step")]
    made, _ = carried_out(budget, items, {}, 100, {"b: step": 30, "c: search": 1e9})
    assert made == ["b: step", "c: search"]
    decisions = budget.plan(items[1:], {}, 100, SHARES)
    assert decisions[0].why == "needs the result of 'b: step' first"
    states = {"b: step": budget.State("done", 30)}
    decisions = budget.plan(
        items, states, 100, SHARES, waiting={"c: search": "4 of 12 parts have arrived"}
    )
    assert [decision.why for decision in decisions] == ["4 of 12 parts have arrived"]
    failed = {"b: step": budget.State("failed", 3)}
    assert "once the code has changed" in budget.plan(items, failed, 100, SHARES)[0].why


def test_those_made_together_share_the_time(budget: Any) -> None:
    items = [budget.Item(f"a: {n}", 20, together=True) for n in range(6)]
    assert sum(d.seconds > 0 for d in budget.plan(items, {}, 60, SHARES)) == 3
    assert sum(d.seconds > 0 for d in budget.plan(items, {}, 60, SHARES, at_once=3)) == 6


def test_on_gpu_plans_every_item_of_its_stages_within_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    on_gpu = importlib.import_module("on_gpu")
    items = list(on_gpu.measures(False))
    assert len({item.name for item in items}) == len(items)
    decisions = on_gpu.plan(items, {}, 60.0 * 60, on_gpu.SHARES, at_once=on_gpu.AT_ONCE)
    begun = [d.item.name for d in decisions if d.seconds]
    assert begun == [item.name for item in items if item.name != on_gpu.gpu_speeds.SEARCH_ITEM.name]
    assert [d.item.stage for d in decisions] == sorted(
        d.item.stage for d in decisions
    )  # no stage needs more
    short = [
        d.item.name
        for d in on_gpu.plan(items, {}, 120.0, on_gpu.SHARES, at_once=on_gpu.AT_ONCE)
        if d.seconds
    ]
    assert short[:3] == ["a: versions", "a: ceilings", "a: tests"]


def test_records_of_two_calls_are_brought_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    on_gpu = importlib.import_module("on_gpu")
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    first = on_gpu.Record([one], "some GPU", False)
    for name, outcome in (("b: batch norms", "done"), ("b: kernels fp32", "failed")):
        first.begin(name)
        first.end(name, {"outcome": outcome, "seconds": 2.0, "result": {"rows": []}})
    second = on_gpu.Record([other], "some GPU", False)
    second.begin("b: batch norms")  # and was killed
    bare = on_gpu.Record([tmp_path / "new.json"], "some GPU", False, earlier=one)
    assert bare.states() == first.states()
    both = on_gpu.Record([other, one], "some GPU", False)
    assert both.states()["b: batch norms"].outcome == "done"
    assert both.states()["b: kernels fp32"].outcome == "failed"
    both.code = "another"
    assert set(both.states()) == {"b: batch norms"}  # what failed is tried again
    both.save()
    assert json.loads(one.read_text()) == json.loads(other.read_text())
    rows = {row["item"]: row["measured"] for row in json.loads(one.read_text())["table"]}
    assert rows["b: batch norms"] == ""  # no rows, no rates
    both.entries["b: batch norms"][
        "result"
    ] = {}  # as other code may have written it: no call ends by that
    both.save()
    rows = {row["item"]: row["measured"] for row in json.loads(one.read_text())["table"]}
    assert rows["b: batch norms"].startswith("done; of another form")
    with pytest.raises(
        on_gpu.InputError, match="holds results of some GPU, found another GPU here; move it away"
    ):
        on_gpu.Record([one], "another GPU", False)


def test_cifar10_arrives_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_data = importlib.import_module("gpu_data")
    drawn = gpu_data.random_images(50, 32)
    monkeypatch.setattr(gpu_data, "load_data", lambda name, data_dir: drawn)
    assert len(gpu_data.pack(tmp_path / "parts", None)) == gpu_data.PARTS
    keep = tmp_path / "keep"
    assert gpu_data.training_images(keep, True)[1] == gpu_data.RANDOM
    for call, there in (("1", 4), ("2", 8), ("2", 8), ("3", 12)):
        gpu_data.collect(tmp_path / "parts" / call, keep)
        assert gpu_data.arrived(keep) == (there, 12)
    data, words = gpu_data.training_images(keep, False)
    assert words == gpu_data.NAME
    assert data.train.images.equal(drawn.train.images)
    assert data.train.labels.equal(drawn.train.labels)
    with pytest.raises(gpu_data.InputError, match="expected a folder of parts"):
        gpu_data.collect(tmp_path / "nowhere", keep)


@pytest.mark.slow
def test_a_call_that_is_killed_loses_only_what_it_was_at(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "on_gpu.py"),
        "--device",
        "cpu",
        "--dry-run",
        "--stages",
        "b",
    ]
    command += ["--keep", str(tmp_path), "--minutes", "5"]
    file = tmp_path / "on_gpu.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert ": done after" in process.stdout.readline()
        process.kill()
    before = json.loads(file.read_text())["items"]
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = json.loads(file.read_text())["items"]
    for name, entry in before.items():
        assert (after[name] == entry) == (entry["outcome"] == "done")
        assert (f"{name}: done after" in done) == (entry["outcome"] != "done")
    assert {entry["outcome"] for entry in after.values()} == {"done"}
