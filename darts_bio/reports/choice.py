"""The report of several searches, the choice among them and the full training, report.md."""

from __future__ import annotations

from collections.abc import Mapping

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.evaluation.choice import RULE, Choice, ChoiceCandidate
from darts_bio.reports.card import CARD_FILE
from darts_bio.reports.findings import Findings, in_short
from darts_bio.reports.going_on import RESUME, NextStep, doubts
from darts_bio.reports.markdown import (
    block,
    counted,
    escaped,
    images_in_words,
    link,
    markdown_table,
    recipe,
    repeat_entry,
)
from darts_bio.spaces import Genotype


def measured(candidate: ChoiceCandidate) -> tuple[str, str]:
    """Return a candidate's accuracy in per cent and its loss, as texts.

    >>> measured(ChoiceCandidate(0, "digest 1f", 0.96, 0.2)), measured(ChoiceCandidate(1, "digest 1f", None, None))
    (('96.00', '0.2000'), ('diverged', '-'))
    """
    if candidate.accuracy is None or candidate.loss is None:
        return "diverged", "-"
    return f"{100 * candidate.accuracy:.2f}", f"{candidate.loss:.4f}"


def choice_card(
    config: SearchConfig,
    training: RetrainConfig,
    command: str,
    choice: Choice,
    genotype: Genotype,
    result: str | None,
    found: Findings,
    trained_images: int,
    seconds: Mapping[str, float],
    next_command: str | None,
) -> str:
    """Return the report in Markdown.

    Args:
        config: The options of the whole run.
        training: The options of the short training of the first candidate.
        command: The command that began the run.
        choice: What was measured, and which candidate was chosen.
        genotype: The genotype of the one that was chosen.
        result: What the full training reached, in words; None while it is not done.
        found: What its search found.
        trained_images: How many training images a short training learns from.
        seconds: What the stages took so far, by their names in words.
        next_command: The command line that trains the genotype from further seeds; None if its
            images have no name.
    """
    seeds, chosen = [candidate.seed for candidate in choice.candidates], choice.chosen.seed
    lines = [
        f"# Search on {images_in_words(config.dataset)}, one of {len(seeds)} chosen",
        "",
        "## Result",
        "",
    ]
    if result is None:
        lines += ["The full training of the chosen genotype has not come to its end.", ""]
    else:
        lines += [f"**{escaped(result)}**", ""]
        lines += [
            f"Of the chosen genotype, trained on all training images ([report](final/{CARD_FILE})).",
            "",
        ]
    data = (
        f"**Data:** {images_in_words(config.dataset)}. A search learns from half of the training images and "
        f"judges by the other half; a short training learns from {trained_images} and is measured on the "
        f"{training.holdout} others; the full training learns from all, and alone sees the test images."
    )
    parts = ", ".join(f"{part} {spent:.0f} s" for part, spent in seconds.items())
    cost = f"**Cost:** {sum(seconds.values()):.0f} s: {parts}"
    next_step = _next(config, found, result is not None, next_command)
    lines += [
        *block(str(genotype)),
        "",
        *in_short([data], found.verdicts(), [cost, repeat_entry(command), next_step.entry]),
    ]
    lines += [*next_step.section(), "## Choice", ""]
    lines += [
        f"The genotype of each search was trained from scratch for {counted(training.epochs, 'epoch')} without "
        f"{training.holdout} of the training images, the same for all, and measured on these. "
        f"Chosen is {RULE}. The test images had no part in it: they were first seen by the full "
        "training.",
        "",
    ]
    rows = [
        (
            f"{candidate.seed}{' (chosen)' if candidate.seed == chosen else ''}",
            link("search", f"searches/seed-{candidate.seed}/{CARD_FILE}"),
            link("training", f"choice/seed-{candidate.seed}/{CARD_FILE}"),
            *measured(candidate),
        )
        for candidate in choice.candidates
    ]
    head = ("seed", "", "", "accuracy on held-out images, %", "loss on them")
    lines += [*markdown_table(head, rows), "", f"Chosen was seed {chosen}: {choice.reason}.", ""]
    for group in choice.alike:
        lines += [
            f"The searches of seeds {', '.join(map(str, group))} found the same genotype. Each was "
            "trained by itself, from another seed: what differs between them is chance.",
            "",
        ]
    lines += recipe(config, command)
    return "\n".join(lines) + "\n"


def _next(config: SearchConfig, found: Findings, finished: bool, command: str | None) -> NextStep:
    """Return what to do after the choice: go on, search again, or find the result's spread."""
    if not finished:
        return NextStep("go on with the full training", [RESUME])
    # Without records of alpha it was a search by queries, which trained what it compared.
    instead, advice = doubts(config, found) if found.history else (None, [])
    how = ["`darts_bio.train(..., seeds=3)` trains it, on the images that you handed over."]
    if command is not None:
        how = [
            "The result is one training's, of one seed. From three seeds it has a spread:",
            "",
            *block(command, "sh"),
        ]
    step = instead or "train the chosen genotype from further seeds"
    return NextStep(step, [*advice, *how])
