"""What a GPU would be asked to do, seen on a stand-in for one (`stand_in/device.py`).

Kernels do nothing there. What is tested is what does not depend on values: that everything can be
run and recorded, what is launched outside the graphs, how large these are, and that Python never
waits for the device.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from stand_in import device

from darts_bio.rules import RULES
from darts_bio.strategies import REGULARIZERS, STRATEGIES

if (reason := device.why_not()) is not None:
    pytest.skip(reason, allow_module_level=True)

Case = dict[str, Any]
Outcome = dict[str, Any]

SPECS = {"darts_pt": "darts_pt(share=0.34, batches=1)"}
STRATEGY_SPECS = [*(SPECS.get(name, name) for name in STRATEGIES), "darts(order=2)"]
RULE_SPECS = [*RULES, "usf(scale='match')"]

# ------------------------------------------------------------------------------------------------------------
# cases


def searching(strategy: str = "darts", **options: Any) -> Case:
    idle = {"regularizers": []} if strategy == "random" else {}
    return {"kind": "search", "strategy": strategy} | idle | options


def training(**options: Any) -> Case:
    return {"kind": "training"} | options


def _searches() -> dict[str, Case]:
    found = {}
    for spec in STRATEGY_SPECS:
        found[spec] = searching(spec, ends=spec != "eg", amp="bf16")
    found["every operation"] = searching(space="darts(nodes=1)")
    found["low memory"] = searching("darts(order=2)", memory="low", amp="bf16")
    found["low memory, float32"] = searching(memory="low")
    found["no graphs"] = searching(graphs=False, amp="bf16")
    found["rule_aware, low memory"] = searching("rule_aware", memory="low", amp="bf16")
    found["rule_aware, other rules"] = searching(
        "rule_aware",
        rules=["kolen_pollack", "weight_mirror", "usf(scale='match')"],
        backbone_rule="usf",
    )
    # No alpha moves by gradients between two passes that teach the feedback.
    found["eg, learned feedback"] = searching("eg", rules=["fa", "kolen_pollack", "pfa"])
    found["shared weights"] = searching(weights="shared", kernel_scale="init", amp="bf16")
    costs = ["parameters(weight=0.1)", "multiply_adds(weight=0.1)", "weight_transport(weight=0.1)"]
    found["objective"] = searching(rules=["fa", "bp"], objective=costs)
    found["bound, rules by depth"] = searching(
        "rule_aware",
        rules=["fa", "bp"],
        objective=["weight_transport(share=0.3)"],
        space="by_depth(space=darts(nodes=1), cells=3)",
    )
    for name in REGULARIZERS:
        spec = {"oles": "oles(window=2)"}.get(name, name)  # by default longer than these searches
        found[f"regularizer {name}"] = searching(
            ends=name != "eigenvalue_stop",
            regularizers=sorted({"warmup(epochs=0)", spec} - {"warmup"}),
        )
    found["regularizer smooth, adversarial"] = searching(
        regularizers=["warmup(epochs=0)", "smooth(kind=adversarial, steps=2)"]
    )
    found["regularizer entropy of rules"] = searching(
        regularizers=["warmup(epochs=0)", "entropy(weight=0.1, level=rule)"]
    )
    found["true gradient"] = searching(arch_gradient="true")
    found["true gradient, order 2"] = searching("darts(order=2)", arch_gradient="true")
    found["nb201 bf16"] = searching(space="nb201", amp="bf16")
    found["paper layout"] = searching(space="darts(layout=paper, nodes=1)")
    found["cutout, no clip"] = searching(cutout=8, clip=0.0)
    found["beside a thread that pins memory"] = searching(neighbor=True)
    return found | {
        f"optimizer {name}": searching(optimizer=name)
        for name in ("adamw", "lion", "nesterov", "batch_manhattan")
    }


def _searches_by_rule() -> dict[str, Case]:
    found = {}
    for rule in RULE_SPECS:
        found[rule] = searching(rules=[rule], backbone_rule=rule, amp="bf16")
    return found


def _trainings() -> dict[str, Case]:
    found = {
        "plain": training(ends=True, genotype="bionas_darts"),
        "bf16": training(amp="bf16"),
        "no graphs": training(graphs=False),
    }
    for rule in RULE_SPECS:
        found[f"rule {rule}"] = training(rule=rule, amp="bf16")
    for rule in ("hebbian", "predictive"):
        found[f"rule {rule} no graphs, bf16"] = training(rule=rule, amp="bf16", graphs=False)
    fast = {"optimizer": "nesterov", "lr": 0.1, "label_smoothing": 0.1, "ema": 0.999, "warmup": 1}
    found["fast recipe bf16"] = training(ends=True, amp="bf16", **fast)
    found["mixup"] = training(mixup=0.2)
    found["cutmix"] = training(cutmix=1.0)
    found["mixup bf16, smoothing"] = training(mixup=0.2, label_smoothing=0.1, amp="bf16")
    found["accumulate 2"] = training(accumulate=2)
    found["accumulate 4 bf16"] = training(accumulate=4, amp="bf16")
    for spec in (
        "pgd(eps=8, steps=4)",
        "trades(eps=8, steps=4, beta=6)",
        "pgd(eps=8, steps=4, gradient='rule')",
    ):
        found[f"against {spec}"] = training(adversarial=spec, amp="bf16")
    found["against pgd, accumulate 2"] = training(adversarial="pgd(eps=8, steps=4)", accumulate=2)
    found["ema"] = training(ends=True, ema=0.99)
    found["no clip"] = training(clip=0.0)
    found["holdout"] = training(ends=True, holdout=8)
    found |= {
        f"optimizer {name}": training(optimizer=name)
        for name in ("adamw", "lion", "adam", "lamb", "muon")
    }
    found["auto_augment"] = training(auto_augment="rand-m9-mstd0.5", workers=0)
    found["auto_augment, 2 workers"] = training(auto_augment="rand-m9-mstd0.5", workers=2)
    nb201 = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
    found["nb201"] = training(genotype=nb201, auxiliary=0.0, drop_path=0.0)
    found["exponential schedule"] = training(schedule="exponential")
    found["beside a thread that pins memory"] = training(neighbor=True)
    return found


QUICK = {
    "search": (
        *("darts", "gdas", "rule_aware, other rules", "low memory", "eg, learned feedback"),
        *("regularizer smooth, adversarial", "beside a thread that pins memory"),
    ),
    "training": ("plain", "fast recipe bf16", "accumulate 4 bf16"),
}
"""The most demanding case of each kind. All others are slow."""


def _groups() -> dict[str, dict[str, Case]]:
    found = {}
    for group, cases in {
        "search": _searches(),
        "search by rule": _searches_by_rule(),
        "training": _trainings(),
    }.items():
        found[group] = {name: cases.pop(name) for name in QUICK.get(group, ())}
        found[f"{group}, slow"] = cases
    return found


GROUPS = _groups()
GARBAGE = {
    "eg": "its end of an epoch counts a mask on the device, and what the stand-in counts is garbage",
    "regularizer eigenvalue_stop": "its end of an epoch iterates on products that are garbage on the stand-in",
}
"""Why an end of an epoch is left out."""


def cases(*names: str, chosen: Callable[[Case], bool] = lambda case: True) -> Any:
    """Parametrize a test by (group, case): by all cases that are `chosen`, or by those that are
    named.
    """
    found = []
    for group, name, case in (
        (group, name, case) for group, own in GROUPS.items() for name, case in own.items()
    ):
        label = f"{group}: {name}"
        if label in names or (not names and chosen(case)):
            marks = [pytest.mark.slow] if group.endswith(", slow") else []
            found.append(pytest.param(group, name, id=label, marks=marks))
    return pytest.mark.parametrize(("group", "case"), found)


# ------------------------------------------------------------------------------------------------------------
# tests


def measured(wanted: dict[str, Case], devices: int = 1) -> dict[str, Outcome]:
    """Run the cases on the stand-in, in one process, or more where one is killed by a case."""
    found: dict[str, Outcome] = {}
    while left := {name: case for name, case in wanted.items() if name not in found}:
        done = device.start("-m", "stand_in.cases", devices=devices, input=json.dumps(left))
        found |= dict(map(json.loads, done.stdout.splitlines()))
        killed_by = next((name for name in left if name not in found), None)
        if killed_by is not None:
            found[killed_by] = {"error": f"the process ended with {done.returncode}: {done.stderr}"}
    return found


Outcomes = Callable[[str, str], Outcome]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """The outcome of a case of a group. A group's cases are run together, once for all of pytest's
    processes.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    read: dict[str, dict[str, Outcome]] = {}

    def of(group: str, case: str) -> Outcome:
        if group not in read:
            file = Path(folder, f"stand_in {group}.json")
            with FileLock(f"{file}.lock"):
                if not file.exists():
                    file.write_text(json.dumps(measured(GROUPS[group])))
            read[group] = json.loads(file.read_text())
        return read[group][case]

    return of


DRAWS = "gdas"
"""The strategy that waits for what was drawn, of which alone its passes compute."""
WAITS_FOR_DRAWS = {"d2h": 4, "stream_syncs": 4}
"""Its waits in a step: for what is drawn of both cell types, before each of both passes."""
NOT_SHARED = ("dfa", "dkp", "hebbian", "predictive", "pfa")
"""The rules that cannot share weights with others, which rule_aware has them do."""
NOT_RECORDED = (DRAWS, "random_paths")
"""The strategies whose passes compute what was drawn, and so are not recorded."""


def waits(found: Outcome) -> dict[str, int]:
    """How often, and by what, Python waited in the steady step."""
    of_python = ("stream_syncs", "event_syncs", "device_syncs", "d2h", "h2d_pageable")
    return {name: found["steady"][name] for name in of_python if name in found["steady"]}


@cases()
def test_it_runs_and_is_recorded(outcome: Outcomes, group: str, case: str) -> None:
    found = outcome(group, case)
    assert found["error"] is None, found
    assert found["incidents"] == []
    assert ("replays" in found["steady"]) == GROUPS[group][case].get("graphs", True)


@pytest.mark.parametrize("case", GARBAGE)
def test_an_end_of_an_epoch_needs_values(case: str) -> None:
    assert not GROUPS["search, slow"][case]["ends"]
    pytest.skip(GARBAGE[case])


@cases()
def test_python_never_waits_in_a_steady_step(outcome: Outcomes, group: str, case: str) -> None:
    found = outcome(group, case)
    if case == DRAWS:
        assert waits(found) == WAITS_FOR_DRAWS
        return
    assert waits(found) == {}
    assert found["waits"] is None


@cases(
    chosen=lambda case: (
        case.get("strategy") not in NOT_RECORDED
        and set(case)
        <= {"kind", "ends", "strategy", "regularizers", "rules", "backbone_rule", "rule", "amp"}
    ),
)
def test_little_is_launched_outside_the_graphs(outcome: Outcomes, group: str, case: str) -> None:
    """By every strategy and rule: kernels, and copies to the device."""
    assert outcome(group, case)["steady"]["launches"] < 10


@cases("search: darts", "training: plain")
def test_gradients_arrive_on_the_stream_where_they_are_wanted(
    outcome: Outcomes, group: str, case: str
) -> None:
    assert [text for text in outcome(group, case)["warnings"] if "AccumulateGrad" in text] == []


def test_the_second_device_is_recorded_on_itself() -> None:
    found = measured(
        {"search": searching(device="cuda:1"), "training": training(device="cuda:1")}, devices=2
    )
    assert {
        name: (each["error"], each["incidents"]) for name, each in found.items()
    } == dict.fromkeys(found, (None, []))


RENEWED = """
import torch
from stand_in.device import kernels
from darts_bio.rules import RULES, Renewal, RuleConv2d, draw_feedback

layers = [RuleConv2d(4, 4, 3, rule=RULES.build(rule)) for rule in ("brsf", "frsf", "brsf", "brsf")]
model = torch.nn.Sequential(*layers).cuda()
draw_feedback(model, 0)
renewal = Renewal(model, 0)
for update in (1, 2):
    kernels()
    renewal(update)
    print(sum(launched for name, (launched, _) in kernels().items() if "uniform" in name))
"""


def test_what_a_rule_renews_is_drawn_on_the_device() -> None:
    """Each of the three brsf layers, in each update, and no other."""
    done = device.start("-c", RENEWED)
    assert done.stdout.split() == ["3", "3"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGY_SPECS)
def test_the_whole_matrix(strategy: str) -> None:
    """Rule x precision x memory x graphs."""
    rules = [rule for rule in RULE_SPECS if strategy != "rule_aware" or rule not in NOT_SHARED]
    options = itertools.product(rules, ("none", "bf16"), ("normal", "low"), (True, False))
    wanted = {
        f"{rule}, {amp}, {memory} memory, {'' if graphs else 'no '}graphs": searching(
            strategy, rules=sorted({"fa", rule}), amp=amp, memory=memory, graphs=graphs
        )
        for rule, amp, memory, graphs in options
    }
    found = measured(wanted)
    wrong = {
        name: (each["error"], each.get("incidents"))
        for name, each in found.items()
        if each["error"] or each["incidents"]
    }
    assert wrong == {}
    waited = WAITS_FOR_DRAWS if strategy == DRAWS else {}
    assert [name for name, each in found.items() if waits(each) != waited] == []


@pytest.fixture(scope="module")
def full_size() -> Outcome:
    """Of the search of the protocol on CIFAR-10."""
    sizes = {"channels": 16, "layers": 8, "batch_size": 64, "space": "darts(layout=paper)"}
    found = measured(
        {"full": searching(timed=3, amp="bf16", rules=["fa", "usf", "brsf", "frsf"], **sizes)}
    )["full"]
    assert found["error"] is None, found
    return found


@pytest.mark.slow
def test_the_graphs_at_full_size_are_small(full_size: Outcome) -> None:
    assert full_size["steady"]["replayed"] <= 10_000


@pytest.mark.slow
def test_a_step_at_full_size_costs_python_little(full_size: Outcome) -> None:
    assert min(full_size["host_s"]) <= 0.02


@pytest.mark.slow
def test_the_tests_for_a_gpu_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `test_graphs.py`. Where values matter they may fail, by a comparison and by nothing
    else, but for the columns that gdas draws, which are garbage here.
    """
    monkeypatch.setenv("COLUMNS", "1000")  # so that pytest's lines say why a test failed
    file = Path(__file__).with_name("test_graphs.py")
    done = device.start(
        "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rA", f"{file}::TestOnGpu"
    )
    assert re.search(r"^(PASSED|FAILED) ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout
    wrong = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    garbage = f" - (AssertionError: )?assert |strategy {DRAWS}: drawn: expected columns of"
    assert [line for line in wrong if not re.search(garbage, line)] == []


RULES_OF_CAPTURE = """
import json, threading
import torch
from stand_in.device import counters, incidents, kernels

def record(body, mode="global"):
    torch.cuda.synchronize()
    incidents(), kernels(), counters()
    error = None
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=mode) as recorded:
            body()
    except RuntimeError as raised:
        error = str(raised).splitlines()[0]
    return [error, incidents(), counters()["captured"]]

x, side = torch.zeros(1000, device="cuda"), torch.cuda.Stream()
before = torch.cuda.Event()
before.record()

def of_another_thread(call):
    def body():
        x.add_(1)
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    return body

def pin():
    try:
        torch.empty(1 << 26).pin_memory()
    except RuntimeError:
        pass

def fork(joined):
    x.add_(1)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x.mul_(2)
    if joined:
        torch.cuda.current_stream().wait_stream(side)

def elsewhere():
    with torch.cuda.stream(torch.cuda.default_stream()):
        x.add_(1)

print(json.dumps({
    "three": record(lambda: x.add_(1).mul_(2).zero_()),
    "waiting": record(lambda: torch.cuda.current_stream().synchronize()),
    "pinning": record(of_another_thread(pin)),
    "pinning, thread-local": record(of_another_thread(pin), "thread_local"),
    "event of before": record(lambda: torch.cuda.current_stream().wait_event(before)),
    "joined": record(lambda: fork(True)),
    "unjoined": record(lambda: fork(False)),
    "elsewhere": record(elsewhere),
}))
"""


def test_the_stand_in_follows_the_rules_of_capture() -> None:
    """Those of CUDA's Programming Guide, by their error codes."""
    done = device.start("-c", RULES_OF_CAPTURE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["three"] == [None, [], 3]
    assert found["joined"] == [None, [], 2]
    assert found["pinning, thread-local"] == [None, [], 1]
    codes = {"waiting": 900, "pinning": 900, "event of before": 905, "unjoined": 904}
    for name, code in codes.items():
        error, incidents, _ = found[name]
        assert error is not None, name
        assert int(incidents[0].split()[1]) == code, name
    error, incidents, captured = found["elsewhere"]
    assert (error, len(incidents), captured) == (None, 1, 0)
