"""The NAS best practices checklist, as far as a run can fill it in from its own records.

Its 16 questions are those of Lindauer and Hutter, "Best Practices for Scientific Research on Neural
Architecture Search" (JMLR 21(243), 2020, arXiv 1909.02453), in short words of ours.
"""

from __future__ import annotations

from darts_bio.config import FitConfig, SearchConfig
from darts_bio.registry import parse_spec
from darts_bio.reports.markdown import Markdown, code, escaped, markdown_table
from darts_bio.runtime import code_identity
from darts_bio.spaces import Genotype


def checklist(
    config: FitConfig, genotype: Genotype | None, *, data: str, machine: str, cost: str
) -> list[str]:
    """Return the section of a report that answers the checklist's questions from the run's records.

    Args:
        config: The options of the run.
        genotype: What was found or trained; None of a network that has no genotype.
        data: The data set's identity.
        machine: The device and the versions.
        cost: What the run took.

    >>> lines = checklist(SearchConfig(seed=3), None, data="digits", machine="a CPU", cost="2 h")
    >>> print(lines[0], lines[-1], sep="; ")
    ## Best practices; - How were hyper-parameters tuned, and at what cost?
    """
    here = f"all options are in config.yaml; seed {config.seed}"
    training = space = method = of_method = None
    random = benchmark = None
    if isinstance(config, SearchConfig):
        of_training = None
        space = f"{code(config.space)}, {code_identity()}"
        specs = (config.strategy, *config.regularizers, *config.objective)
        method, of_method = f"{code(', '.join(specs))}, {code_identity()}", here
        if parse_spec(config.strategy)[0] in ("random", "random_search"):
            random = "this is one"
        if config.table is not None:
            benchmark = f"{code(config.table)}, of which the report has the known accuracies"
    else:
        training, of_training = code_identity(), here
        if genotype is not None:
            space = f"{code(genotype.space)}, {code_identity()}"
            if command := genotype.provenance.get("command"):
                method = f"made by {code(str(command))}"
                of_method = "those are in genotype.json, with the seed"
    answers = {
        "Code of the training that evaluates what is found?": training,
        "Code of the search space?": space,
        "Hyper-parameters and seeds of that training?": of_training,
        "Code of the search method?": method,
        "Hyper-parameters and seeds of the search?": of_method,
        "The same data, split, space and training for all methods?": f"here: {escaped(data)}",
        "The same hardware, libraries and run time for all?": f"here: {escaped(machine)}; {cost}",
        "Ablations of the method's parts?": None,
        "One evaluation protocol for all methods?": None,
        "Performance over time?": "metrics.jsonl has the numbers and seconds of each epoch",
        "A comparison with random search?": random,
        "Several runs, and their seeds?": f"this is one, of seed {config.seed}",
        "Tabular or surrogate benchmarks?": benchmark,
        "The time of all, from the search to the last training?": f"of this run alone: {cost}",
        "All details of the setup?": "config.yaml, and the command and the machine above",
        "How were hyper-parameters tuned, and at what cost?": None,
    }
    answered = [
        (question, Markdown(answer)) for question, answer in answers.items() if answer is not None
    ]
    return [
        "## Best practices",
        "",
        "The checklist for NAS of Lindauer and Hutter (JMLR 2020), as far as this run's own records "
        "answer it. Whether code and files were published is for you to say.",
        "",
        *markdown_table(("question", "this run"), answered),
        "",
        "What this run's records cannot answer:",
        "",
        *(f"- {question}" for question, answer in answers.items() if answer is None),
    ]
