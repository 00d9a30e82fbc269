"""The NAS best practices checklist, as far as a run can fill it in from its own records.

The 14 practices and their numbers are those of Lindauer and Hutter, "Best Practices for Scientific
Research on Neural Architecture Search" (JMLR 21(243), 2020, arXiv 1909.02453v3, sections 2 to 4), in
short words of ours.
"""

from __future__ import annotations

from darts_bio.config import FitConfig, SearchConfig
from darts_bio.registry import parse_spec
from darts_bio.reports.markdown import Markdown, code, escaped, markdown_table
from darts_bio.runtime import code_identity
from darts_bio.spaces import Genotype
from darts_bio.strategies import BLACK_BOX_STRATEGIES

UNANSWERED = Markdown("*for you to say*")
"""The answer where a run's records hold none."""


def checklist(
    config: FitConfig, genotype: Genotype | None, *, data: str, machine: str, cost: str
) -> list[str]:
    """Return the section of a report that goes through the practices by the run's records.

    Args:
        config: The options of the run.
        genotype: What was found or trained; None of a network that has no genotype.
        data: The data set's identity.
        machine: The device and the versions.
        cost: What the run took.

    >>> lines = checklist(SearchConfig(seed=3), None, data="digits", machine="a CPU", cost="2 h")
    >>> print(lines[0], lines[10], sep="; ")
    ## Best practices; | 5 | ablations: what each part of the method contributes | *for you to say* |
    >>> lines = checklist(SearchConfig(plugin="mine"), None, data="digits", machine="", cost="")
    >>> "and the plug-ins `mine`, whose code is not recorded; all options" in lines[7]
    True
    """
    used = code_identity()
    if config.plugin:
        used += f", and the plug-ins {code(', '.join(config.plugin))}, whose code is not recorded"
    code_and_options = f"{used}; all options are in config.yaml; seed {config.seed}"
    benchmark = [f"here: {escaped(data)}"]
    training = method = performance = random = tabular = None
    if isinstance(config, SearchConfig):
        space: str | None = config.space
        specs = (config.strategy, *config.regularizers, *config.objective)
        method = f"{code(', '.join(specs))}, {code_and_options}"
        name, _ = parse_spec(config.strategy)
        if name in BLACK_BOX_STRATEGIES:
            performance = "metrics.jsonl has the best accuracy, and what it took, after each query"
            if config.query is None:
                training = code_and_options
        elif config.table is not None:
            performance = "metrics.jsonl has the known accuracies of the cell after each epoch"
        random = {
            "random": "this is a cell drawn at random",
            "random_search": "this is random search",
        }.get(name)
        if config.table is not None:
            tabular = f"{code(config.table)}, of which the report has the known accuracies"
    else:
        training, space = code_and_options, None if genotype is None else genotype.space
        performance = "metrics.jsonl has the numbers and seconds of each epoch of this training"
        if genotype is not None and (command := genotype.provenance.get("command")):
            method = f"made by {code(str(command))}; options and seed are in genotype.json"
    if space is not None:
        benchmark.append(f"space {code(space)}")
    answers = {
        "code of the training by which what is found is judged, with hyper-parameters and seeds": training,
        "code of the search method, with hyper-parameters and seeds": method,
        "code published as it ran, before it is tidied up": None,
        "one benchmark for all methods: data and split, space, training": "; ".join(benchmark),
        "ablations: what each part of the method contributes": None,
        "one way to evaluate for all methods, with a choice among several cells as a part of it": None,
        "performance of what is found so far against the resources spent": performance,
        "comparison with a cell drawn at random, and with random search": random,
        "several runs from other seeds; mean, spread and the seeds": (
            f"this is one, of seed {config.seed}"
        ),
        "tabular or surrogate benchmarks, where there are": tabular,
        "nothing else differs: hardware, libraries, run time": f"here: {escaped(machine)}; {cost}",
        "hyper-parameters: which, how they were tuned, and in what time": (
            "which: config.yaml; the rest is for you to say"
        ),
        "resources from end to end, all phases": f"of this run alone: {cost}",
        "all details of the setup": "config.yaml, and the command and the machine above",
    }
    rows = [
        (str(number), practice, UNANSWERED if answer is None else Markdown(answer))
        for number, (practice, answer) in enumerate(answers.items(), 1)
    ]
    return [
        "## Best practices",
        "",
        "The best practices for NAS of Lindauer and Hutter (JMLR 2020) by their numbers, as far as this "
        "run's own records tell of them. Whether code and files were published is for you to say.",
        "",
        *markdown_table(("", "practice", "this run"), rows),
    ]
