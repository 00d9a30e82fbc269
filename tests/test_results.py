"""The numbers in README.md and docs/ are those of the files in benchmarks/results.

Means and standard deviations are taken from the single values that a file holds, not from what its
benchmark has summed up.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from darts_bio.rules import RULES

ROOT = Path(__file__).parent.parent

Cells = dict[str, list[str]]
"""The cells of a table's rows by the row's first cell."""


def text(page: str) -> str:
    """A page with its line breaks as spaces, so that a sentence can be looked for."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def table(page: str, beginning: str, number: int = 1) -> Cells:
    """The rows of the table of a page (the `number`-th) whose header begins so.

    Links and code marks are taken off; a row that begins with an empty cell goes by its second.
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith(f"| {beginning}")]
    rows: Cells = {}
    for line in lines[places[number - 1] + 2 :]:
        if not line.startswith("|"):
            break
        plain = re.sub(r"\s*\(\[[^]]*\]\([^)]*\)\)", "", line.replace("`", ""))
        cells = [cell.strip() for cell in plain.strip().strip("|").split(" |")]
        rows[cells[0]] = [cell.strip() for cell in cells[1:]]
    return rows


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def mean_std(values: Iterable[float], digits: int) -> str:
    values = list(values)
    return f"{statistics.mean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}"


def one(values: Iterable[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f}"


def p_of(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_of_flips(differences: Sequence[float]) -> float:
    """The share of all changes of sign after which the sum lies as far from 0 or farther."""
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(each > sums[0] - 1e-9 for each in sums) / len(sums)


def chosen(records: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The records that have these values, of which there must be some."""
    found = [each for each in records if all(each[key] == value for key, value in wanted.items())]
    assert found, wanted
    return found


def single_rules() -> tuple[Cells, Cells]:
    errors = result("single_rules-digits.json")["test_error_percent"]
    shown = table("docs/results/networks.md", "rule | test error, % (mean")
    return shown, {rule: [mean_std(values, 2)] for rule, values in errors.items()}


def resnet20() -> tuple[Cells, Cells]:
    runs = result("resnet20-cifar10-cpu.json")["runs"]
    rules = list(dict.fromkeys(each["rule"] for each in runs))
    order = ["bp", "usf", "frsf", "brsf", "fa", "dfa", "kolen_pollack", "weight_mirror"]
    assert sorted(rules) == sorted(order)
    errors = [
        mean_std((each["test_error_percent"] for each in chosen(runs, rule=rule)), 2)
        for rule in order
    ]
    shown = table("docs/results/networks.md", "rule | " + " | ".join(order))
    return {"test error, %": shown["test error, %"]}, {"test error, %": errors}


def resnet20_shrunk() -> tuple[Cells, Cells]:
    runs = result("resnet20-cifar10-16px-cpu.json")["runs"]
    order = ["bp", "kolen_pollack", "pfa", "weight_mirror", "usf", "fa"]
    errors = [[each["test_error_percent"] for each in chosen(runs, rule=rule)] for rule in order]
    assert {len(of) for of in errors} == {3}
    assert len(runs) == 3 * len(order)
    wanted = {"test error, %": [mean_std(of, 2) for of in errors]}
    return table("docs/results/networks.md", "learning rule | " + " | ".join(order)), wanted


def beyond_images(kind: str) -> tuple[Cells, Cells]:
    errors = result("beyond_images-cpu.json")["test_error_percent"][kind]
    shown = table("docs/results/networks.md", f"{kind} | sgd")
    return shown, {
        rule: [mean_std(of_rule[name], 1) for name in ("sgd", "adam", "adamw", "lion")]
        for rule, of_rule in errors.items()
    }


def imagenette() -> tuple[Cells, Cells]:
    runs = result("imagenette-cpu.json")["runs"]
    names = {
        "bionas_darts under its rules": "bionas_darts",
        "bionas_darts under bp": "bionas_darts:bp",
        "ResNet-18 (timm)": "resnet18",
    }
    wanted = {}
    for label, network in names.items():
        records = chosen(runs, network=network)
        size, work = records[0]["parameters"], records[0]["multiply_adds"] / 1e6
        accuracy = mean_std((each["test_accuracy_percent"] for each in records), 2)
        wanted[label] = [f"{size:,}", f"{work:.1f} M", accuracy]
    return table("docs/results/networks.md", "network | parameters"), wanted


def masking() -> tuple[Cells, Cells]:
    networks = result("masking-cifar10-cpu/results.json")["networks"]

    def attacked(network: dict[str, Any], gradients: str) -> float:
        (record,) = chosen(network["attacks"], attack="pgd", eps=8.0, gradients=gradients)
        return 100 * record["accuracy"]

    ways: dict[str, Callable[[dict[str, Any]], float]] = {
        "clean, %": lambda network: 100 * network["clean"],
        "attacked along the true gradient, %": lambda network: attacked(network, "true"),
        "along the rule's own, %": lambda network: attacked(network, "rule"),
    }
    groups = ["bp", "usf", "frsf", "brsf", "mixed", "fa", "dfa"]
    wanted = {
        label: [mean_std(map(way, chosen(networks, group=group)), 1) for group in groups]
        for label, way in ways.items()
    }
    return table("docs/results/networks.md", "| bp | usf"), wanted


def learners() -> tuple[Cells, Cells]:
    kept = result("learners-digits-cpu.json")["learners"]
    for name in ("drtp", "dual_propagation", "dtp"):
        kept[name] = result(f"learners-{name}-digits-cpu.json")["learners"][name]
    wanted = {
        name: [
            f"{of_one['rate']:g}",
            mean_std(of_one["test_error_percent"], 2),
            mean_std(of_one["cosine"], 2),
        ]
        for name, of_one in kept.items()
    }
    shown = table("docs/learners.md", "learner | rate")
    return {name: cells[:3] for name, cells in shown.items()}, wanted


def known_answer() -> tuple[Cells, Cells]:
    wanted = {}
    for name, row in result("known_answer.json")["table"].items():
        null = row["null_models"]
        wanted[name] = [
            mean_std(row["ranks"], 0),
            mean_std(row["good_rules"], 1),
            p_of(null["uniform"]["p"]),
            p_of(null["constant rule"]["p"]),
        ] + [
            f"{null[kind]['mean_rank']:.0f} +- {null[kind]['std_rank']:.0f}, "
            + p_of(null[kind]["p"])
            for kind in ("random rules", "random operations")
        ]
    return table("docs/results/strategies.md", "strategy | mean rank"), wanted


def evolution() -> tuple[Cells, Cells]:
    names = {
        "eg": "eg",
        "drawn, same widths": "drawn, same widths",
        "eg, width stays": "eg, width stays",
        "eg(published=True)": "eg, published",
    }
    runs = result("evolution.json")["runs"]
    lasts = {seed: run["best"][-1] for seed, run in runs["drawn, same widths"].items()}
    wanted = {}
    for label, kind in names.items():
        of_seeds = runs[kind]
        best, own = ([run[name] for run in of_seeds.values()] for name in ("best", "architecture"))
        more = [run["best"][-1] - lasts[seed] for seed, run in of_seeds.items()]
        wanted[label] = [
            *(mean_std((curve[place] for curve in best), 3) for place in (0, -1)),
            mean_std((curve[-1] - curve[0] for curve in best), 3),
            "" if kind == "drawn, same widths" else mean_std(more, 3),
            *(mean_std((curve[place] for curve in own), 3) for place in (0, -1)),
            ""
            if kind == "drawn, same widths"
            else mean_std((curve[-1] - curve[0] for curve in own), 3),
        ]
    shown = table("docs/results/strategies.md", "| best, first generation")
    return {
        label: [cell.partition(" (")[0] for cell in cells] for label, cells in shown.items()
    }, wanted


def strategy_step() -> tuple[Cells, Cells]:
    kept = result("strategy_step-cpu.json")["strategies"]
    base = kept["darts"]
    wanted = {}
    for name, of_one in kept.items():
        ratios = [a / b for a, b in zip(of_one["seconds"], base["seconds"], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        less = of_one["kept_bytes"] / base["kept_bytes"]
        wanted["pc_darts (k=4)" if name == "pc_darts" else name] = [
            f"{statistics.median(of_one['seconds']):.2f}",
            "1" if of_one is base else f"{statistics.median(ratios):.2f} {spread}",
            f"{of_one['kept_bytes'] / 1e6:.0f}",
            "1" if of_one is base else f"{less:.2f}",
        ]
    return table("docs/results/strategies.md", "strategy | s a step"), wanted


def planted(rows: dict[str, str]) -> tuple[Cells, Cells]:
    wanted = {}
    for label, name in rows.items():
        searches = result(name)["searches"]
        wanted[label] = [
            mean_std((each[place] for each in chosen(searches, strategy=strategy)), 2)
            for strategy in ("rule_aware(rule_lr=0.03)", "darts")
            for place in ("normal", "reduce", "all")
        ]
    return table("docs/results/rule-search.md", "planted, others | `rule_aware"), wanted


def planted_by_depth(number: int, name: str) -> tuple[Cells, Cells]:
    lines = (ROOT / "docs/results/rule-search.md").read_text(encoding="utf-8").splitlines()
    (head,) = (k for k, line in enumerate(lines) if line.startswith("| planted, others | strategy"))
    shown, wanted = {}, {}
    searches = result(name)["searches"]
    for line in lines[head + 2 + 3 * number : head + 5 + 3 * number]:
        cells = [cell.strip(" `") for cell in line.split("|")[2:-2]]
        shown[cells[0]] = cells[1:]
        records = chosen(searches, strategy=cells[0])
        places = ("normal_0", "reduce_1", "normal_2", "reduce_3", "normal_4")
        wanted[cells[0]] = [one((each[place] for each in records), 2) for place in places]
        wanted[cells[0]].append(mean_std((each["all"] for each in records), 2))
    return shown, wanted


def rule_truth() -> tuple[Cells, Cells]:
    kept = result("rule_truth.json")["table"]
    names = {"rule_aware(rule_lr=0.03)": "rule_aware(rule_lr=0.03)"}
    names |= {name: f"{name}, own weights" for name in ("darts", "darts(lr=0.03)")}
    shown = table("docs/results/rule-search.md", "strategy | rank correlation")
    return {label: [cells[0], cells[2]] for label, cells in shown.items()}, {
        label: [mean_std(kept[name]["rank_correlation"], 2), one(kept[name]["rank"], 0)]
        for name, label in names.items()
    }


def searched(number: int, name: str) -> tuple[Cells, Cells]:
    kept = result(name)
    labels = {"darts": "darts, own weights", "darts(lr=0.03)": "darts(lr=0.03), own weights"}
    labels |= {"random rules": "drawn at random"}
    wanted = {}
    for row, errors in kept["table"].items():
        p = [""] if row not in kept["p"] else [f"{kept['p'][row]:.3f}"]
        wanted[labels.get(row, row)] = [mean_std(errors, 1), *p]
    return table("docs/results/rule-search.md", "rules | test error", number), wanted


def transport(number: int, name: str) -> tuple[Cells, Cells]:
    kept = result(name)["table"]
    order = ("rule_aware", "darts", "random", "from above", "from below", "by a route")
    return table("docs/results/weight-transport.md", "allowed |", number), {
        share: [mean_std(kept[kind][share]["error"], 1) for kind in order]
        for share in ("0.2", "0.4", "0.6", "0.8")
    }


def trials(name: str) -> list[dict[str, Any]]:
    """The trials of a file of `benchmarks/faults.py`, whose first line says how they were made."""
    path = ROOT / "benchmarks" / "results" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def faults() -> tuple[Cells, Cells]:
    wanted = {}
    for processes in (2, 4):
        kills = trials(f"faults-ranks-{processes}.jsonl")
        longest = max(each["seconds"] for each in kills)
        wanted[
            f"one of {processes} processes killed: the others have left within {longest:.0f} s, all "
            "resumed"
        ] = kills
    sent = trials("faults-signals.jsonl")
    count, phases = (
        len({tuple(each[name] for name in names) for each in sent})
        for names in (("signal",), ("run", "phase"))
    )
    wanted[
        f"a signal in a phase of a run: {len(sent)} of the {count * phases} pairs of {count} signals "
        f"and {phases} phases"
    ] = sent
    shown = table("docs/resuming.md", "kind | options | right")
    return {label: shown[label][1:] for label in wanted if label in shown}, {
        label: [f"{sum(each['right'] for each in of_kind)} of {len(of_kind)}"]
        for label, of_kind in wanted.items()
    }


def faults_files() -> tuple[Cells, Cells]:
    return table("docs/resuming.md", "files | number"), {
        each["files"]: [
            *(f"{n:,}" for n in (each["number"], each["ended"]["refused"])),
            f"{each['ended'].get('read', 0):,}",
            f"{each['most_cpu_seconds']:.2f}",
            f"{each['most_mib']:.0f}",
        ]
        for each in result("faults_files.json")["campaigns"]
    }


def scaling() -> tuple[Cells, Cells]:
    points = result("scaling-cpu.json")["points"]["rules"].values()
    return table("docs/performance.md", "rules | 1 | 2"), {
        "s a step": [f"{point['seconds']:.2f}" for point in points],
        "kernels": [str(point["kernels"]) for point in points],
    }


def search_step() -> tuple[Cells, Cells]:
    small, large = result("search_step-small-cpu.json"), result("search_step-cpu.json")

    def seconds(kept: dict[str, Any], net: str) -> str:
        of_net = kept["nets"][net]["seconds"]
        steps = (a + b for a, b in zip(of_net["alpha"], of_net["weights"], strict=True))
        return f"{statistics.median(steps):.2f} s"

    shown = table("docs/performance.md", "net | C=8")
    labels = {"reference": "reference", "batched": "batched", "--memory low": "low memory"}
    return {label: [c.split(":")[0] for c in cells[:2]] for label, cells in shown.items()}, {
        label: [seconds(small, net), seconds(large, net)] for label, net in labels.items()
    }


def depthwise() -> tuple[Cells, Cells]:
    wanted = {}
    for row in result("depthwise-cpu.json")["rows"]:
        apart = f", pixels {row['dilation']} apart," if row["dilation"] > 1 else ""
        window, side = row["window"], row["side"]
        wanted[f"{window} x {window}{apart} on {side} x {side}"] = [
            f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in row["milliseconds"].values()
        ]
    return table("docs/performance.md", "window | oneDNN"), wanted


def zoo() -> dict[str, dict[str, Any]]:
    """What `benchmarks/model_zoo.py` found of each model, its audit and its run together."""
    found: dict[str, dict[str, Any]] = {}
    for line in trials("model_zoo.jsonl"):
        found.setdefault(line["model"], {}).update(line)
    return found


def zoo_libraries() -> tuple[Cells, Cells]:
    models = zoo()
    wanted = {}
    for library in ("transformers", "timm", "torchvision", "all"):
        lines = [m for name, m in models.items() if library in ("all", name.split()[0])]
        ran = [m for m in lines if "rules" in m]
        counts = (
            len(lines),
            len(lines) - sum("error" in m for m in lines),
            sum(m["weights"] for m in lines),
            sum(len(m["missed"] + m["unseen"] + m["without_a_rule"]) for m in lines),
            len(ran),
        )
        worst = (max(m[name] for m in ran) for name in ("exact", "copied"))
        wanted[library] = [*(f"{n:,}" for n in counts), *(f"{w:.1e}" for w in worst)]
    return table("docs/results/published-models.md", "library | models"), wanted


def zoo_rules() -> tuple[Cells, Cells]:
    phrases = {
        "share their weight": "two modules share a weight",
        "regroups its samples": "samples are regrouped",
        "computed from others": "a weight is computed from others",
        "transposed convolution": "a transposed convolution",
    }
    wanted: Cells = {}
    for rule in RULES.names():
        answers = [m["rules"][rule] for m in zoo().values() if "rules" in m]
        refused = [answer for answer in answers if answer != "finite"]
        counts = {words: sum(p in a for a in refused) for p, words in phrases.items()}
        assert sum(counts.values()) == len(refused), refused
        largest_first = sorted(counts.items(), key=lambda count: -count[1])
        why = "; ".join(f"{words} ({count})" for words, count in largest_first if count)
        wanted[rule] = [str(answers.count("finite")), str(len(refused)), why]
    return table("docs/results/published-models.md", "rule | finite"), wanted


STUDY_RULES = ("fa", "usf", "brsf", "frsf")
STUDY = {
    "rule_aware": ("searched", "shuffled", "random", *STUDY_RULES, "bp"),
    "darts": ("searched", "shuffled", "random", *STUDY_RULES, "bp"),
    "eg": ("searched", "shuffled", "random", *STUDY_RULES, "bp"),
    "darts under bp": (*STUDY_RULES, "bp"),
}


def study_errors(strategy: str, data: str = "digits") -> dict[str, list[float]]:
    """The test errors of the study by the rules, of the seeds whose trainings are all done."""
    records = result(f"study-{data}.json")["records"]
    by_seed = [
        [records.get(f"{strategy}, seed {seed}, {rules}") for rules in STUDY[strategy]]
        for seed in range(10)
    ]
    whole = [of_seed for of_seed in by_seed if all(of_seed)]
    return {
        rules: [of_seed[place]["test_error_percent"] for of_seed in whole]
        for place, rules in enumerate(STUDY[strategy])
    }


def study_table(number: int, data: str) -> tuple[Cells, Cells]:
    all_errors = {strategy: study_errors(strategy, data) for strategy in STUDY}
    errors = {strategy: of for strategy, of in all_errors.items() if len(of["bp"]) > 1}
    wanted = {}
    for rules in STUDY["rule_aware"]:
        cells = [mean_std(of[rules], 1) if rules in of else "" for of in errors.values()]
        mixed = rules in ("searched", "shuffled", "random")
        wanted[rules if mixed else f"{rules} everywhere"] = cells
    return table("docs/results/rule-search.md", "rules | `rule_aware`", number), wanted


def study_answers(number: int, data: str) -> tuple[Cells, Cells]:
    wanted = {}
    for strategy in ("rule_aware", "darts", "eg"):
        errors = study_errors(strategy, data)
        if len(errors["bp"]) < 2:
            continue
        best = min(STUDY_RULES, key=lambda rule: statistics.mean(errors[rule]))
        cells = [str(len(errors["bp"])), best]
        for one_rule, other in (
            (best, "searched"),
            ("random", "searched"),
            ("shuffled", "searched"),
            ("searched", "bp"),
            (best, "bp"),
        ):
            more = [a - b for a, b in zip(errors[one_rule], errors[other], strict=True)]
            cells += [mean_std(more, 1), f"{p_of_flips(more):.3f}"]
        wanted[strategy] = cells
    return table("docs/results/rule-search.md", "operations found by | n", number), wanted


def study_learned(number: int, data: str) -> tuple[Cells, Cells]:
    """Of rules whose feedback learns, on the cells of each strategy."""
    records = result(f"study-{data}.json")["records"]
    wanted = {}
    for rule, strategy in itertools.product(("kolen_pollack", "weight_mirror", "pfa"), STUDY):
        keys = [f"{strategy}, seed {seed}" for seed in range(10)]
        whole = [key for key in keys if f"{key}, {rule}" in records and f"{key}, bp" in records]
        if not whole:
            continue
        errors = {
            other: [records[f"{key}, {other}"]["test_error_percent"] for key in whole]
            for other in (rule, "fa", "usf", "bp")
        }
        cells = [str(len(whole)), mean_std(errors[rule], 1)]
        for more, less in (("fa", rule), (rule, "usf"), (rule, "bp")):
            differences = [a - b for a, b in zip(errors[more], errors[less], strict=True)]
            cells += [mean_std(differences, 1), f"{p_of_flips(differences):.3f}"]
        wanted[f"{rule}, {strategy}"] = cells
    return table("docs/results/rule-search.md", "rule everywhere, cells of", number), wanted


TABLES: dict[str, tuple[Any, ...]] = {
    "single rules": (single_rules,),
    "ResNet-20": (resnet20,),
    "ResNet-20, shrunk": (resnet20_shrunk,),
    "table": (beyond_images, "table"),
    "sequence": (beyond_images, "sequence"),
    "Imagenette": (imagenette,),
    "masking": (masking,),
    "learners": (learners,),
    "known answer": (known_answer,),
    "evolution": (evolution,),
    "strategy step": (strategy_step,),
    "planted": (
        planted,
        {
            "W, noise": "planted_rules-0-1.json",
            "0.9 W + noise, 0.7 W + noise": "planted_rules-0.7-0.9.json",
        },
    ),
    "planted by depth, noise": (planted_by_depth, 0, "planted_rules-0-1-by_depth.json"),
    "planted by depth, subtle": (planted_by_depth, 1, "planted_rules-0.7-0.9-by_depth.json"),
    "rule truth": (rule_truth,),
    "searched rules, digits": (searched, 1, "searched_rules-digits.json"),
    "searched rules, CIFAR-10": (searched, 2, "searched_rules-cifar10.json"),
    "transport": (transport, 1, "transport_price.json"),
    "transport, signs": (transport, 2, "transport_price-signs.json"),
    "faults": (faults,),
    "faults of files": (faults_files,),
    "scaling": (scaling,),
    "search step": (search_step,),
    "depthwise": (depthwise,),
    "models of libraries": (zoo_libraries,),
    "models of libraries, rules": (zoo_rules,),
    "study": (study_table, 1, "digits"),
    "study, answers": (study_answers, 1, "digits"),
    "study, learned feedback": (study_learned, 1, "digits"),
    "study, CIFAR-10, learned feedback": (study_learned, 2, "cifar10"),
    "study, CIFAR-10": (study_table, 2, "cifar10"),
    "study, CIFAR-10, answers": (study_answers, 2, "cifar10"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_what_its_file_holds(name: str) -> None:
    make, *arguments = TABLES[name]
    shown, wanted = make(*arguments)
    assert shown == wanted


def p_of_equal_shares(drawn: Sequence[str]) -> float:
    """Chi-squared of the counts of four rules against equal ones.

    The closed form of its tail, of three degrees of freedom.
    """
    equal = len(drawn) / 4
    x = sum((drawn.count(rule) - equal) ** 2 / equal for rule in STUDY_RULES)
    return math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)


def test_sentences_say_what_the_files_hold() -> None:
    rule_search = text("docs/results/rule-search.md")
    cifar = study_errors("rule_aware", "cifar10")
    for one_rule, other, words in (
        ("usf", "searched", "shows no gain ({} points, p = {:.3f})"),
        ("random", "searched", "beats random rules by {} points only (p = {:.3f})"),
        ("searched", "bp", "than on the digits: {} points by what was found"),
        ("fa", "bp", "by what was found, {} under fa"),
    ):
        differences = [a - b for a, b in zip(cifar[one_rule], cifar[other], strict=True)]
        assert words.format(mean_std(differences, 1), p_of_flips(differences)) in rule_search
    records = result("study-cifar10.json")["records"].items()
    rules_of = {
        strategy: [
            rule
            for key, each in records
            if "genotype" in each and key.startswith(f"{strategy}, seed")
            for rule in re.findall(":([a-z]+)", each["edges"])
        ]
        for strategy in ("rule_aware", "darts", "eg")
    }
    chosen_rules = rules_of["rule_aware"]
    counts = (chosen_rules.count("usf"), len(chosen_rules), chosen_rules.count("fa"))
    assert "puts usf on {} of {} edges and fa on {}".format(*counts) in rule_search
    in_line = " ".join(rule_search.split())
    drawn = rules_of["darts"]
    numbers = (drawn.count("usf"), len(drawn), *map(drawn.count, ("frsf", "brsf", "fa")))
    words = "like those of a draw, usf on {} of {} edges, frsf on {}, brsf on {} and fa on {} ("
    assert words.format(*numbers) in in_line
    assert f"against equal shares: p = {p_of_equal_shares(drawn):.2f})" in in_line
    drawn = rules_of["eg"]
    numbers = (*map(drawn.count, ("usf", "frsf", "brsf", "fa")), len(drawn))
    words = "So are those of `eg` ({}, {}, {} and {} of {}, p = {:.2f})"
    assert words.format(*numbers, p_of_equal_shares(drawn)) in in_line
    worse = {}
    for strategy, words in (
        ("darts", "with five here ({} points, p = {:.3f})"),
        ("eg", "errs a little less than random rules ({} points, p = {:.3f})"),
    ):
        cifar = study_errors(strategy, "cifar10")
        worse[strategy] = [a - b for a, b in zip(cifar["searched"], cifar["usf"], strict=True)]
        assert min(worse[strategy]) > 0
        assert len(worse[strategy]) == 5
        more = [a - b for a, b in zip(cifar["random"], cifar["searched"], strict=True)]
        assert words.format(mean_std(more, 1), p_of_flips(more)) in in_line
    assert min(more) > 0  # of eg, in each seed
    by = " and ".join(mean_std(each, 1) for each in worse.values())
    assert f"than usf everywhere in each of their five seeds, by {by} points" in in_line
    alone = study_errors("darts under bp", "cifar10")
    rules = (*STUDY_RULES[1:], "bp")
    for strategy, rule in itertools.product(("rule_aware", "darts", "eg"), rules):
        pairs = zip(study_errors(strategy, "cifar10")[rule], alone[rule], strict=False)
        assert p_of_flips([a - b for a, b in pairs]) > 0.4
    init = result("planted_rules-0.7-0.9-init.json")["searches"]
    assert f"it finds {mean_std((each['all'] for each in init), 2)} of the subtle" in rule_search
    for data, words in (
        ("digits", "against it has p = {} here"),
        ("cifar10", "and {} on CIFAR-10"),
    ):
        errors = result(f"searched_rules-{data}.json")["table"]
        differences = [
            a - b for a, b in zip(errors["darts"], errors["darts(lr=0.03)"], strict=True)
        ]
        assert words.format(f"{p_of_flips(differences):.2f}") in rule_search
    truth = result("rule_truth.json")
    assert f"reliability of the mean losses is {truth['reliability']:.3f}" in rule_search

    strategies = text("docs/results/strategies.md")
    table_of_truth = result("truth_table.json")
    explained = table_of_truth["explained"]
    assert f"Rules by edge explain {100 * explained['rules, by edge']:.0f} %" in strategies
    assert f"operations by edge {100 * explained['operations, by edge']:.0f} %" in strategies
    assert f"is {table_of_truth['reliability']:.3f}" in strategies

    transport_text = text("docs/results/weight-transport.md")
    ends = result("transport_price.json")["ends"]
    for rule in ("fa", "bp"):
        assert f"{rule} everywhere {mean_std(ends[rule], 1)}" in transport_text
    signs = result("transport_price-signs.json")["ends"]["usf"]
    assert f"usf everywhere has {mean_std(signs, 1)} % test error" in transport_text

    runs = result("resnet20-cifar10-16px-cpu.json")["runs"]
    resnet = {
        rule: {r["seed"]: r["test_error_percent"] for r in chosen(runs, rule=rule)}
        for rule in ("bp", "kolen_pollack", "pfa", "weight_mirror", "usf", "fa")
    }
    networks = text("docs/results/networks.md")
    for seed in range(3):
        bp, *learned, usf, fa = (resnet[rule][seed] for rule in resnet)
        assert bp < min(learned) < max(learned) < usf < fa - 28, seed
    for more, less, words in (
        ("kolen_pollack", "bp", "errs by {} points more than bp"),
        ("usf", "kolen_pollack", "and by {} less than usf"),
    ):
        differences = (resnet[more][seed] - resnet[less][seed] for seed in range(3))
        assert words.format(mean_std(differences, 1)) in networks
    hours = sum(each["cpu_seconds"] for each in runs) / 3600
    assert f"{hours:.1f} CPU hours in all" in networks

    peers = result("peers-16px-cpu.json")["ratios"].values()
    under_bp, naive = (f"{ratio:.2f}" for ratio in peers)
    performance = text("docs/performance.md")
    assert f"under bp is {under_bp} times as fast" in performance
    assert f"one of pairs {naive} times as fast" in performance


def test_gradients_in_models_of_libraries_are_those_of_the_plain_models() -> None:
    models = zoo()
    ran = {name: m for name, m in models.items() if "rules" in m}
    for name, model in ran.items():
        assert max(model["exact"], model["copied"]) < 1e-10, name
    small = [name for name, m in models.items() if m["parameters"] <= 18_000_000]
    assert set(ran) <= set(small)
    page = text("docs/results/published-models.md")
    assert f"{len(ran)} of these {len(small)} models were run" in page
    largest = max(m["parameters"] for m in models.values()) / 1e6
    assert f"up to {largest:.0f} million parameters" in page


def test_the_readme_shows_what_the_files_hold() -> None:
    readme = " ".join(text("README.md").split())

    def compared(strategy: str, data: str) -> tuple[int, dict[str, str], str]:
        """Seeds, the errors by the rules, and p of random against searched rules."""
        errors = study_errors(strategy, data)
        more = [a - b for a, b in zip(errors["random"], errors["searched"], strict=True)]
        shown = {rules: mean_std(values, 1) for rules, values in errors.items()}
        return len(more), shown, f"(p = {p_of_flips(more):.3f})"

    for strategy in ("darts", "rule_aware"):
        _, shown, p = compared(strategy, "digits")
        assert f"`{strategy}` {shown['searched']}, drawn {shown['random']} {p}" in readme
    records = result("study-digits.json")["records"]
    learned = [records[f"rule_aware, seed {seed}, weight_mirror"] for seed in range(10)]
    mirror = [record["test_error_percent"] for record in learned]
    assert f"found by `rule_aware` {shown['searched']}, `usf` everywhere" in readme
    assert f"by the weights' signs) {shown['usf']} |" in readme
    assert (
        f"(`bp`) {shown['bp']}, signs alone (`usf`) {shown['usf']}; neither, by feedback that learns "
        f"(`weight_mirror`), {mean_std(mirror, 1)}, by fixed random feedback (`fa`) {shown['fa']}"
    ) in readme
    n, shown, p = compared("rule_aware", "cifar10")
    assert (
        f"(`rule_aware`, n = {n}): found {shown['searched']}, `usf` {shown['usf']}, drawn "
        f"{shown['random']} {p}, `bp` {shown['bp']}, `fa` {shown['fa']};"
    ) in readme
    n, darts, _ = compared("darts", "cifar10")
    _, eg, _ = compared("eg", "cifar10")
    searched, usf, drawn = (
        f"{darts[rules]} and {eg[rules]}" for rules in ("searched", "usf", "random")
    )
    assert (
        f"what `darts` and `eg` find (n = {n}), {searched}, is in each seed worse than `usf`, {usf}, "
        f"and hardly better than drawn rules, {drawn} ("
    ) in readme
    runs = result("resnet20-cifar10-16px-cpu.json")["runs"]
    rules = ("kolen_pollack", "pfa", "weight_mirror", "bp", "usf", "fa")
    kolen_pollack, pfa, mirror, bp, usf, fa = (
        mean_std((each["test_error_percent"] for each in chosen(runs, rule=rule)), 1)
        for rule in rules
    )
    assert (
        f"errs on {kolen_pollack}, {pfa} and {mirror} %, under `bp` {bp}, by the weights' signs "
        f"(`usf`) {usf}, under `fa` {fa} (n = 3,"
    ) in readme


def test_every_linked_result_is_there_and_every_result_is_linked() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    linked = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(
            r"\]\(([^)#\s]*benchmarks/results/[^)#\s]*)", page.read_text("utf-8")
        )
    }
    there = {path.resolve() for path in (ROOT / "benchmarks" / "results").iterdir()}
    assert {path for path in linked if not path.exists()} == set()
    folders = {parent for path in linked for parent in path.parents}
    assert {path.name for path in there - linked - folders} == set()
