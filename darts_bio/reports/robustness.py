"""What a measurement of robustness leaves: report.md, results.json and two figures."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.evaluation.doubts import Doubt, doubts
from darts_bio.evaluation.robustness import SEVERITIES, Job, Measurement
from darts_bio.evaluation.subjects import Subject, groups_of
from darts_bio.figures.drawing import Drawing
from darts_bio.figures.robustness import draw_accuracy, draw_examples
from darts_bio.reports.card import CARD_FILE, markdown_table
from darts_bio.runtime import hardware, made_by
from darts_bio.training.run_folder import RunFolder, write_text

RESULTS_FILE, ACCURACY_FIGURE, EXAMPLES_FIGURE = "results.json", "accuracy.svg", "examples.svg"


def write_report(
    subjects: Sequence[Subject], measured: Measurement, folder: RunFolder, seconds: float
) -> tuple[list[Doubt], Drawing, Drawing, str]:
    """Write all files of a measurement; return the doubts, the two figures and the text of the
    report.
    """
    found = [*_of_logs(subjects), *doubts(measured)]
    accuracy, examples = draw_accuracy(subjects, measured), draw_examples(subjects, measured)
    text = report(subjects, measured, found, folder, seconds)
    write_text(folder.path / RESULTS_FILE, _json(results(subjects, measured, found)))
    write_text(folder.path / ACCURACY_FIGURE, accuracy.svg())
    write_text(folder.path / EXAMPLES_FIGURE, examples.svg())
    write_text(folder.path / CARD_FILE, text)
    return found, accuracy, examples, text


def _of_logs(subjects: Sequence[Subject]) -> list[Doubt]:
    """Networks that are not as accurate as the log of their training says."""
    return [
        Doubt(
            s.name,
            "true",
            "clean accuracy",
            f"{100 * s.clean:.2f} %, in the training's log {100 * s.logged:.2f} %",
        )
        for s in subjects
        if s.logged is not None and round(100 * s.clean, 2) != round(100 * s.logged, 2)
    ]


def attacks_on(measured: Measurement, name: str) -> list[Job]:
    """List the network's attacks on all images."""
    return [
        job
        for job in measured.jobs
        if job.kind == "attack" and job.network == name and not job.most
    ]


def results(
    subjects: Sequence[Subject], measured: Measurement, found: Sequence[Doubt]
) -> dict[str, Any]:
    """All numbers, as plain data; accuracies in [0, 1]."""
    networks = []
    for s in subjects:
        networks.append(
            {
                "network": s.name,
                "group": s.group,
                "rules": s.rules,
                "clean_all_test_images": s.clean,
                "clean_in_training_log": s.logged,
                "clean": measured.clean(s.name),
                "gradients": measured.figures(s.name),
                "attacks": [
                    {
                        "attack": job.what,
                        "eps": job.level,
                        "gradients": job.gradients,
                        "images": len(measured.subject(job)) if job.most else len(measured.images),
                        "accuracy": measured.accuracy(job),
                    }
                    for job in measured.jobs
                    if job.kind == "attack" and job.network == s.name and len(measured.subject(job))
                ],
                "corruptions": [
                    {
                        "corruption": job.what,
                        "severity": int(job.level),
                        "accuracy": _share(measured, job),
                    }
                    for job in measured.jobs
                    if job.kind == "corruption" and job.network == s.name
                ],
                "transfer_to": [
                    {
                        "attack": job.what,
                        "eps": job.level,
                        "network": name,
                        "accuracy": kept.double().mean().item(),
                    }
                    for job in measured.jobs
                    if job.kind == "transfer" and job.network == s.name
                    for name, kept in measured.transferred(s.name, job.level).items()
                ],
            }
        )
    return {
        "images": len(measured.images),
        "networks": networks,
        "doubts": [doubt.as_dict() for doubt in found],
    }


def _json(data: dict[str, Any]) -> str:
    """JSON, a record of plain values a line."""
    return (
        re.sub(
            r"{[^{}\[\]]*}", lambda record: " ".join(record[0].split()), json.dumps(data, indent=1)
        )
        + "\n"
    )


def _share(measured: Measurement, job: Job) -> float:
    return measured.found[job.key].double().mean().item()


def report(
    subjects: Sequence[Subject],
    measured: Measurement,
    found: Sequence[Doubt],
    folder: RunFolder,
    seconds: float,
) -> str:
    """Markdown."""
    plan, groups = measured.plan, groups_of(subjects)
    lines = [f"# Robustness of {', '.join(groups)}", "", "## Accuracy under attack", ""]
    lines += [
        f"In % of {len(measured.images)} test images, right before and after; `worst` are those "
        "that withstand every "
        "attack of the row. `true`: attacks climb along the exact gradient; `rule`: along what the "
        "learning rules send "
        "down, which is no measure of robustness: the gap between the two is masking. Attacks that "
        "follow no gradient "
        f"stand in both rows.{_of_several(groups)}",
        "",
    ]
    for eps in plan.eps:
        lines += [f"### eps {eps:g}/255", "", *_eps_table(groups, measured, eps), ""]
    lines += [
        f"![accuracy against eps]({ACCURACY_FIGURE})",
        "",
        f"![examples]({EXAMPLES_FIGURE})",
        "",
    ]
    lines += [
        "## Doubts",
        "",
        *_doubts(found),
        "",
        "## Networks",
        "",
        *_networks(subjects, measured),
        "",
    ]
    if plan.transfer and len(subjects) > 1:
        for eps in plan.eps:
            lines += [
                f"## Transfer, {plan.transfer}, eps {eps:g}/255",
                "",
                *_transfer(subjects, measured, eps),
                "",
            ]
    if plan.corruptions:
        lines += ["## Common corruptions", "", *_corruptions(groups, measured), ""]
    device = measured.images.images.device
    lines += ["## Recipe, data and machine", "", f"`{folder.command}`", "", "```yaml"]
    lines += [
        folder.config.to_yaml().rstrip(),
        "```",
        "",
        f"- {seconds:.0f} s on {hardware(device)}",
    ]
    lines.append(f"- {made_by()}")
    return "\n".join(lines) + "\n"


def _of_several(groups: Mapping[str, Sequence[Subject]]) -> str:
    counts = {len(members) for members in groups.values()}
    return "" if counts == {1} else " Mean and standard deviation over the seeds of a training."


def _percent(values: Sequence[float], sign: str = "") -> str:
    """Of values in [0, 1] their mean, and the standard deviation of several.

    >>> _percent([0.5]), _percent([0.25, 0.75])
    ('50.0', '50.0 +- 35.4')
    """
    mean = f"{100 * statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} +- {100 * statistics.stdev(values):.1f}"


def _eps_table(
    groups: Mapping[str, Sequence[Subject]], measured: Measurement, eps: float
) -> list[str]:
    plan = measured.plan
    rows = []
    for group, members in groups.items():
        clean = _percent([measured.clean(s.name) for s in members])
        by_side: dict[str, list[list[float]]] = {}
        for side in plan.gradients:
            at = [[plan.job(s.name, spec, eps, side) for spec in plan.attacks] for s in members]
            columns = [[measured.accuracy(job) for job in jobs] for jobs in zip(*at, strict=True)]
            columns.append([measured.accuracy(*jobs) for jobs in at])
            by_side[side] = columns
            rows.append((group, members[0].rules, side, clean, *map(_percent, columns)))
        if len(by_side) == 2:
            gaps = [
                _percent([ruled - true for ruled, true in zip(*pair, strict=True)], "+")
                for pair in zip(by_side["rule"], by_side["true"], strict=True)
            ]
            shown = [
                gap if plan.attack(spec).white_box else ""
                for gap, spec in zip(gaps, plan.attacks, strict=False)
            ]
            rows.append((group, "", "gap", "", *shown, gaps[-1]))
    return markdown_table(("network", "rules", "gradient", "clean", *plan.attacks, "worst"), rows)


def _doubts(found: Sequence[Doubt]) -> list[str]:
    if not found:
        return ["None: every check that was made held (docs/robustness.md says what is checked)."]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for doubt in found:
        alike.setdefault((doubt.network, doubt.gradients, doubt.check), []).append(doubt.found)
    rows = [
        (
            *key,
            texts[-1]
            + (f" (and {len(texts) - 1} more in {RESULTS_FILE})" if len(texts) > 1 else ""),
        )
        for key, texts in alike.items()
    ]
    return [
        "What speaks against believing the numbers by that gradient:",
        "",
        *markdown_table(("network", "gradient", "check", "found"), rows),
    ]


def _networks(subjects: Sequence[Subject], measured: Measurement) -> list[str]:
    rows = []
    for s in subjects:
        figures = measured.figures(s.name)
        logged = "-" if s.logged is None else f"{100 * s.logged:.2f}"
        forms = {
            "cosine": "{:.3f}",
            "slope_error": "{:.1%}",
            "true_vanishes": "{:.0%}",
            "rule_vanishes": "{:.0%}",
        }
        numbers = [form.format(figures[name]) if figures else "-" for name, form in forms.items()]
        rows.append((s.name, f"{100 * s.clean:.2f}", logged, *numbers))
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


def _transfer(subjects: Sequence[Subject], measured: Measurement, eps: float) -> list[str]:
    rows = []
    for s in subjects:
        kept = measured.transferred(s.name, eps).values()
        rows.append((s.name, *(f"{100 * right.double().mean():.1f}" for right in kept)))
    return [
        "Accuracy in % of the network of the column, on images that the attack made on that of the "
        "row.",
        "",
        *markdown_table(("made on", *(s.name for s in subjects)), rows),
    ]


def _corruptions(groups: Mapping[str, Sequence[Subject]], measured: Measurement) -> list[str]:
    names = list(groups)
    rows = []

    def mean(subject: Subject, kinds: Sequence[str]) -> float:
        found = [
            _share(measured, Job("corruption", subject.name, kind, severity))
            for kind in kinds
            for severity in SEVERITIES
        ]
        return statistics.mean(found)

    for kind in measured.plan.corruptions:
        rows.append((kind, *(_percent([mean(s, [kind]) for s in groups[name]]) for name in names)))
    rows.append(
        (
            "mean",
            *(
                _percent([mean(s, measured.plan.corruptions) for s in groups[name]])
                for name in names
            ),
        )
    )
    clean = (_percent([measured.clean(s.name) for s in groups[name]]) for name in names)
    return [
        "Accuracy in %, the mean over the severities 1 to 5 of CIFAR-10-C (arXiv 1903.12261).",
        "",
        *markdown_table(("corruption", *names), [("none", *clean), *rows]),
    ]
