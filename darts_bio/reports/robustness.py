"""Write the results of a measurement of robustness: its report, results.json and two figures."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.evaluation.doubts import Doubt, doubts
from darts_bio.evaluation.robustness import SEVERITIES, Job, Measurement
from darts_bio.evaluation.subjects import Subject, groups_of
from darts_bio.figures.charts import Chart, write_chart
from darts_bio.figures.drawing import Drawing
from darts_bio.figures.robustness import draw_accuracy, draw_examples
from darts_bio.reports import page
from darts_bio.reports.markdown import escaped, markdown_table, recipe
from darts_bio.runtime import hardware, made_by
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text

RESULTS_FILE, ACCURACY_FIGURE, EXAMPLES_FIGURE = "results.json", "accuracy.svg", "examples.svg"


def write_report(
    subjects: Sequence[Subject],
    measurement: Measurement,
    folder: RunFolder,
    seconds: float,
    charts: Sequence[str] = (),
) -> tuple[list[Doubt], Chart, Drawing, str]:
    """Write all files of a measurement that took `seconds`, and charts in further formats.

    Returns the doubts about it, the figures of accuracy and of examples, and the text of report.md.
    """
    all_doubts = [*_log_doubts(subjects), *doubts(measurement)]
    accuracy, examples = draw_accuracy(subjects, measurement), draw_examples(subjects, measurement)
    text = report(subjects, measurement, all_doubts, folder, seconds)
    write_text(folder.path / RESULTS_FILE, _json(results(subjects, measurement, all_doubts)))
    write_chart(folder.path / ACCURACY_FIGURE, accuracy, charts)
    write_text(folder.path / EXAMPLES_FIGURE, examples.svg())
    page.write_report(folder.path, text)
    return all_doubts, accuracy, examples, text


def _log_doubts(subjects: Sequence[Subject]) -> list[Doubt]:
    """Return a doubt for each network whose accuracy is not that in the log of its training."""
    return [
        Doubt(
            subject.name,
            "true",
            "clean accuracy",
            f"{100 * subject.clean:.2f} %, in the training's log {100 * subject.logged:.2f} %",
        )
        for subject in subjects
        if subject.logged is not None
        and round(100 * subject.clean, 2) != round(100 * subject.logged, 2)
    ]


def attacks_on(measurement: Measurement, name: str) -> list[Job]:
    """Return the attacks on a network that were made on all images, not on a few for a check."""
    return [
        job
        for job in measurement.jobs
        if job.kind == "attack" and job.network == name and not job.most
    ]


def results(
    subjects: Sequence[Subject], measurement: Measurement, all_doubts: Sequence[Doubt]
) -> dict[str, Any]:
    """Return all numbers of a measurement as plain data for JSON; accuracies are in [0, 1]."""
    return {
        "images": len(measurement.images),
        "networks": [_network_results(subject, measurement) for subject in subjects],
        "doubts": [doubt.as_dict() for doubt in all_doubts],
    }


def _network_results(subject: Subject, measurement: Measurement) -> dict[str, Any]:
    """Return the numbers of one network."""
    jobs = [job for job in measurement.jobs if job.network == subject.name]
    attacks = [
        {
            "attack": job.what,
            "eps": job.level,
            "gradients": job.gradients,
            "images": len(measurement.subject(job)) if job.most else len(measurement.images),
            "accuracy": measurement.accuracy(job),
        }
        for job in jobs
        if job.kind == "attack" and len(measurement.subject(job))
    ]
    corruptions = [
        {
            "corruption": job.what,
            "severity": int(job.level),
            "accuracy": _accuracy(measurement, job),
        }
        for job in jobs
        if job.kind == "corruption"
    ]
    transfers = []
    for job in jobs:
        if job.kind != "transfer":
            continue
        for name, correct in measurement.transferred(subject.name, job.level).items():
            transfers.append(
                {
                    "attack": job.what,
                    "eps": job.level,
                    "network": name,
                    "accuracy": correct.double().mean().item(),
                }
            )
    return {
        "network": subject.name,
        "group": subject.group,
        "rules": subject.rules,
        "clean_all_test_images": subject.clean,
        "clean_in_training_log": subject.logged,
        "clean": measurement.clean(subject.name),
        "gradients": measurement.figures(subject.name),
        "attacks": attacks,
        "corruptions": corruptions,
        "transfer_to": transfers,
    }


def _json(data: dict[str, Any]) -> str:
    """Write JSON in which an object without lists or objects in it stands on one line."""
    text = json.dumps(data, indent=1)
    innermost = r"{[^{}\[\]]*}"
    return re.sub(innermost, lambda match: " ".join(match[0].split()), text) + "\n"


def _accuracy(measurement: Measurement, job: Job) -> float:
    """Return the share of images that a network classifies correctly in a job without an attack."""
    return measurement.found[job.key].double().mean().item()


def report(
    subjects: Sequence[Subject],
    measurement: Measurement,
    all_doubts: Sequence[Doubt],
    folder: RunFolder,
    seconds: float,
) -> str:
    """Return the report of a measurement in Markdown; accuracies are in per cent."""
    plan, groups = measurement.plan, groups_of(subjects)
    lines = [f"# Robustness of {escaped(', '.join(groups))}", "", "## Accuracy under attack", ""]
    lines += [
        f"In % of {len(measurement.images)} test images, right before and after; `worst` are those "
        "that withstand every attack of the row. `true`: attacks climb along the exact gradient; "
        "`rule`: along what the learning rules send down, which is no measure of robustness: the "
        "gap between the two is masking. Attacks that follow no gradient stand in both rows."
        f"{_seeds_remark(groups)}",
        "",
    ]
    for eps in plan.eps:
        lines += [f"### eps {eps:g}/255", "", *_eps_table(groups, measurement, eps), ""]
    lines += [
        f"![accuracy against eps]({ACCURACY_FIGURE})",
        "",
        f"![examples]({EXAMPLES_FIGURE})",
        "",
    ]
    lines += [
        "## Doubts",
        "",
        *_doubts(all_doubts),
        "",
        "## Networks",
        "",
        *_networks(subjects, measurement),
        "",
    ]
    if plan.transfer and len(subjects) > 1:
        for eps in plan.eps:
            lines += [
                f"## Transfer, {escaped(plan.transfer)}, eps {eps:g}/255",
                "",
                *_transfer(subjects, measurement, eps),
                "",
            ]
    if plan.corruptions:
        lines += ["## Common corruptions", "", *_corruptions(groups, measurement), ""]
    device = measurement.images.images.device
    lines += [*recipe(folder.config, folder.command), "", "## Machine", ""]
    lines += [f"- {seconds:.0f} s on {hardware(device)}"]
    lines.append(f"- {made_by()}")
    return "\n".join(lines) + "\n"


def _seeds_remark(groups: Mapping[str, Sequence[Subject]]) -> str:
    """Return the sentence that explains the spread, if a group has several seeds."""
    counts = {len(members) for members in groups.values()}
    return "" if counts == {1} else " Mean and standard deviation over the seeds of a training."


def _percent(values: Sequence[float], sign: str = "") -> str:
    """Format the mean of values in [0, 1] in per cent, with the spread if there are several.

    `sign` is "+" where a positive mean is to show its sign.

    >>> _percent([0.5]), _percent([0.25, 0.75])
    ('50.0', '50.0 +- 35.4')
    """
    mean = f"{100 * statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} +- {100 * statistics.stdev(values):.1f}"


def _eps_table(
    groups: Mapping[str, Sequence[Subject]], measurement: Measurement, eps: float
) -> list[str]:
    """Return the table of accuracies at one eps: a row for each group and gradient.

    Where attacks followed both gradients, a third row has the gap between them.
    """
    plan = measurement.plan
    rows = []
    for group, members in groups.items():
        clean = _percent([measurement.clean(subject.name) for subject in members])
        # Gradient -> attack (the last: the worst of all) -> accuracy of each seed.
        accuracies: dict[str, list[list[float]]] = {}
        for gradient in plan.gradients:
            jobs_by_seed = [
                [plan.job(subject.name, spec, eps, gradient) for spec in plan.attacks]
                for subject in members
            ]
            columns = [
                [measurement.accuracy(job) for job in jobs_of_attack]
                for jobs_of_attack in zip(*jobs_by_seed, strict=True)
            ]
            columns.append([measurement.accuracy(*jobs) for jobs in jobs_by_seed])
            accuracies[gradient] = columns
            rows.append((group, members[0].rules, gradient, clean, *map(_percent, columns)))
        if len(accuracies) == 2:
            gaps = []
            for by_rule, by_true in zip(accuracies["rule"], accuracies["true"], strict=True):
                differences = [rule - true for rule, true in zip(by_rule, by_true, strict=True)]
                gaps.append(_percent(differences, "+"))
            # An attack that follows no gradient has no gap; the last gap is that of the worst.
            attack_gaps = [
                gap if plan.attack(spec).white_box else ""
                for gap, spec in zip(gaps, plan.attacks, strict=False)
            ]
            rows.append((group, "", "gap", "", *attack_gaps, gaps[-1]))
    return markdown_table(("network", "rules", "gradient", "clean", *plan.attacks, "worst"), rows)


def _doubts(all_doubts: Sequence[Doubt]) -> list[str]:
    """Return the lines on the doubts; of several by one check, the table has the last."""
    if not all_doubts:
        return ["None: every check that was made held (docs/robustness.md says what is checked)."]
    texts_by_check: dict[tuple[str, str, str], list[str]] = {}
    for doubt in all_doubts:
        key = (doubt.network, doubt.gradients, doubt.check)
        texts_by_check.setdefault(key, []).append(doubt.found)
    rows = []
    for (network, gradients, check), texts in texts_by_check.items():
        more = f" (and {len(texts) - 1} more in {RESULTS_FILE})" if len(texts) > 1 else ""
        rows.append((network, gradients, check, texts[-1] + more))
    return [
        "What speaks against believing the numbers by that gradient:",
        "",
        *markdown_table(("network", "gradient", "check", "found"), rows),
    ]


def _networks(subjects: Sequence[Subject], measurement: Measurement) -> list[str]:
    """Return the table of networks: clean accuracy, and the checks of their gradients."""
    formats = {
        "cosine": "{:.3f}",
        "slope_error": "{:.1%}",
        "true_vanishes": "{:.0%}",
        "rule_vanishes": "{:.0%}",
    }
    rows = []
    for subject in subjects:
        figures = measurement.figures(subject.name)
        logged = "-" if subject.logged is None else f"{100 * subject.logged:.2f}"
        numbers = [form.format(figures[name]) if figures else "-" for name, form in formats.items()]
        rows.append((subject.name, f"{100 * subject.clean:.2f}", logged, *numbers))
    head = (
        "network",
        "clean, all test images, %",
        "in the training's log, %",
        "cosine of the rule's gradient to the true one",
        "true gradient off the slope (median)",
        "true gradient zero, of images",
        "rule's gradient zero",
    )
    return markdown_table(head, rows)


def _transfer(subjects: Sequence[Subject], measurement: Measurement, eps: float) -> list[str]:
    """Return the table of transferred attacks at one eps, network by network."""
    rows = []
    for subject in subjects:
        correct_by_network = measurement.transferred(subject.name, eps).values()  # masks (N,)
        accuracies = [f"{100 * correct.double().mean():.1f}" for correct in correct_by_network]
        rows.append((subject.name, *accuracies))
    return [
        "Accuracy in % of the network of the column, on images that the attack made on that of the "
        "row.",
        "",
        *markdown_table(("made on", *(subject.name for subject in subjects)), rows),
    ]


def _corruptions(groups: Mapping[str, Sequence[Subject]], measurement: Measurement) -> list[str]:
    """Return the table of accuracies under common corruptions: a row for each, and their mean."""

    def mean(subject: Subject, kinds: Sequence[str]) -> float:
        accuracies = [
            _accuracy(measurement, Job("corruption", subject.name, kind, severity))
            for kind in kinds
            for severity in SEVERITIES
        ]
        return statistics.mean(accuracies)

    def row(title: str, kinds: Sequence[str]) -> tuple[str, ...]:
        cells = [_percent([mean(subject, kinds) for subject in groups[name]]) for name in groups]
        return title, *cells

    clean = [
        _percent([measurement.clean(subject.name) for subject in members])
        for members in groups.values()
    ]
    kinds = measurement.plan.corruptions
    rows = [("none", *clean), *(row(kind, [kind]) for kind in kinds), row("mean", kinds)]
    return [
        "Accuracy in %, the mean over the severities 1 to 5 of CIFAR-10-C (arXiv 1903.12261).",
        "",
        *markdown_table(("corruption", *groups), rows),
    ]
