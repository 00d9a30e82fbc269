"""What a search's report says it found: margins by hand, edges that were dropped, the next step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from searching import rows_below

from darts_bio.cli import main
from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.monitoring.alpha import alpha_numbers
from darts_bio.reports import findings
from darts_bio.reports.choices import left_out, undecided_in_words
from darts_bio.reports.going_on import after_supernet
from darts_bio.reports.rules_of_cells import transport_in_words
from darts_bio.reports.search import search_card
from darts_bio.reports.search_seeds import search_seeds_card
from darts_bio.reports.time_lapse import alpha_record, edge_shares
from darts_bio.spaces import SPACES, Candidate, load_genotype
from darts_bio.storage.logs import ALPHA_FILE
from darts_bio.training.search import Search

CONFIG = SearchConfig(
    rules=("fa", "usf"),
    channels=2,
    layers=3,
    epochs=3,
    batch_size=8,
    crop_padding=1,
    dataset="digits",
    seed=4,
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


class TestUnlearned:
    """Ten classes, of which a guess is right with probability 1/10: its loss is ln 10 = 2.302585."""

    def of(self, data: ImageData, epochs: list[dict[str, float]]) -> str:
        return findings.unlearned(Search(CONFIG, data, torch.device("cpu")), epochs)

    def test_the_last_epoch_tells(self, data: ImageData) -> None:
        losses = {"train/loss": 2.3}, {"train/loss": 2.31}, {"train/loss": 5e7}
        assert not self.of(data, [])
        assert not self.of(data, [losses[2], losses[0]])
        assert "was 2.31 in the last epoch, and that of a guess is 2.3026" in self.of(
            data, [losses[1]]
        )
        assert "was 5e+07 in the last epoch" in self.of(data, [losses[0], losses[2]])

    def test_report_and_console_say_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = "search --space darts(nodes=1) --channels 2 --layers 3 --train-images 64 --epochs 2"
        said = {}
        for rate in ("1000", "0.05"):
            folder = tmp_path / rate
            lr = ["--lr", rate, "--batch-size", "4", "--out", str(folder)]
            assert main([*words.split(" "), *lr]) == 0
            said[rate] = capsys.readouterr().err, (folder / "report.md").read_text()
        for text in said["1000"]:
            assert "the supernet has learned nothing: its loss" in text
        assert "search with another --lr than 1000" in said["1000"][0]
        for text in said["0.05"]:
            assert "learned nothing" not in text


class TestOperationsFirst:
    """Alpha is operation times rule given the operation: two contests on each edge."""

    OPERATIONS = {"none": 0.3, "skip_connect": 0.29, "sep_conv_3x3": 0.41}
    RULES = {"fa": 0.25, "usf": 0.34, "brsf": 0.41}

    def search(self, data: ImageData, strategy: str, regularizers: tuple[str, ...] = ()) -> Search:
        """A search whose shares of operations and rules are those above, on all edges."""
        options = {
            "strategy": strategy,
            "regularizers": regularizers,
            "rules": tuple(self.RULES),
            "space": "darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))",
        }
        task = Search(SearchConfig(**(vars(CONFIG) | options)), data, torch.device("cpu"))
        with torch.no_grad():
            for name, parameter in task.strategy_state.parameters.items():
                if name.endswith("/operation"):
                    of_edge = [math.log(share) for share in self.OPERATIONS.values()]
                    parameter[:] = torch.tensor(of_edge)
                    continue
                row = task.table.rows[name.removesuffix("/rule")]
                for edge, candidates in enumerate(row):
                    for place, candidate in enumerate(candidates):
                        rule = None if candidate is None else candidate.rule
                        parameter[edge, place] = math.log(self.RULES[rule]) if rule else 0.0
        return task

    @pytest.mark.parametrize(
        ("strategy", "regularizers"), [("rule_aware", ()), ("darts", ("factorised",))]
    )
    def test_margins_are_those_of_operations_and_of_their_rules(
        self, strategy: str, regularizers: tuple[str, ...], data: ImageData
    ) -> None:
        task = self.search(data, strategy, regularizers)
        folder: Any = SimpleNamespace(command="c")
        text = search_card(task, folder, task.genotype(), [], True, None, [], None)
        assert rows_below(text, "Choices")[:2] == [
            [
                *("normal", f"{source} -> 2"),
                *("sep_conv_3x3 0.410", "skip_connect 0.290", f"{0.41 / 0.29:.2f}"),
                *("brsf 0.410", "usf 0.340", f"{0.41 / 0.34:.2f}"),
            ]
            for source in (0, 1)
        ]
        entropy = -sum(share * math.log(share) for share in self.OPERATIONS.values()) / math.log(3)
        assert (
            "**Undecided?** On no edge: each choice has 1.1 times the runner-up's share or more."
            in text
        )
        assert f"of the operations' shares on the kept edges is {entropy:.3f} on average (" in text
        assert "Left out is" not in text  # `none` has less than the convolution
        assert "something else than the share decided" not in text

    def test_a_tie_of_rules_is_one(self, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self, "RULES", {"fa": 0.38, "usf": 0.36, "brsf": 0.26})
        task = self.search(data, "rule_aware")
        decided = findings.of_search(task, task.genotype(), []).decided
        assert [(d.main.undecided, d.undecided) for d in decided] == [(False, True)] * 4
        said = undecided_in_words(decided)
        assert said.startswith("Yes, on 4 of 4 edges, whose choice has less than 1.1 times")
        assert "normal 0 -> 2 (rule); normal 1 -> 2 (rule); reduce 0 -> 2 (rule); " in said
        numbers = alpha_numbers(task.space, task.table, task.genotype(), edge_shares(task), True)
        assert numbers["search/decided_edges"] == 0

    def test_records_tell_the_same(self, data: ImageData, tmp_path: Path) -> None:
        task = self.search(data, "rule_aware")
        record = {"step": 2, "epoch": 1, **alpha_record(task)}
        (tmp_path / ALPHA_FILE).write_text(json.dumps(record) + "\n")
        recorded = findings.of_folder(task.config, task.genotype(), tmp_path).decided
        for ours, theirs in zip(
            recorded, findings.of_search(task, task.genotype(), []).decided, strict=True
        ):
            assert (ours.edge, ours.choice, ours.main.runner_up) == (
                *(theirs.edge, theirs.choice, theirs.main.runner_up),
            )
            assert ours.main.share == pytest.approx(theirs.main.share, abs=1e-6)
            assert ours.of_rules is not None
            assert ours.of_rules.share == pytest.approx(0.41, abs=1e-6)


@pytest.mark.parametrize(
    ("last_of_second", "step"), [("b", "search longer"), ("a", "choose among them by a short")]
)
def test_seeds_that_are_guesses_are_searched_longer(
    last_of_second: str, step: str, tmp_path: Path
) -> None:
    """Both genotypes have just changed, or one of them alone: then a choice has a sense."""
    data = load_data("digits", train_images=32)
    space = "darts(nodes=1, operations=(skip_connect, sep_conv_3x3))"
    config = SearchConfig(**(vars(CONFIG) | {"space": space}))
    results = {}
    for seed, last in enumerate(("b", last_of_second)):
        task = Search(config, data, torch.device("cpu"))
        with torch.no_grad():
            for values in task.strategy_state.parameters.values():
                values[:, 0] = 2.0  # decided for skips
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        records = [
            {**alpha_record(task), "step": n, "epoch": n, "genotype": digest}
            for n, digest in enumerate(f"aa{last}", 1)
        ]
        (folder / ALPHA_FILE).write_text("".join(json.dumps(r) + "\n" for r in records))
        results[seed] = SimpleNamespace(
            genotype=task.genotype(), folder=folder, epochs=[{"seconds": 1.0}], known=None
        )
    text = search_seeds_card(config, "c", results)
    assert f"- **Next:** {step}" in text
    assert ("`--epochs 6` and another `--out`" in text) == (last_of_second == "b")
    settled = "no" if last_of_second == "b" else "unchanged in the last 2 epochs"
    assert f"- **Settled?** seed 0: no; seed 1: {settled}." in text
    assert "- **Undecided?** seed 0: 0 of 4 edges" in text
    assert "- **Collapsed?** seed 0: yes (normal 2 of 2, reduce " in text


@pytest.mark.parametrize(
    ("rate", "alphas", "step"),
    [
        (0.003, (0.0, 0.0, 0.0), "search longer, or move alpha faster"),
        (0.003, (0.0, 0.0, 2.0), "search longer, or move alpha faster"),
        (0.003, (0.0, 2.0, 2.0), "choose among them by a short"),
        (0.5, (0.0, 0.0, 0.0), "search longer;"),  # fast already
    ],
)
def test_seeds_that_are_undecided_move_alpha_faster(
    rate: float, alphas: tuple[float, ...], step: str, data: ImageData, tmp_path: Path
) -> None:
    space = "darts(nodes=1, operations=(skip_connect, sep_conv_3x3))"
    options = {"space": space, "strategy": f"darts(lr={rate})", "rules": ("fa",)}
    config = SearchConfig(**(vars(CONFIG) | options))
    results = {}
    for seed, alpha in enumerate(alphas):
        task = Search(config, data, torch.device("cpu"))
        with torch.no_grad():
            for values in task.strategy_state.parameters.values():
                values.zero_()
                values[:, 1] = alpha
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        record = {**alpha_record(task), "step": 1, "epoch": 1}
        (folder / ALPHA_FILE).write_text(json.dumps(record) + "\n")
        results[seed] = SimpleNamespace(
            genotype=task.genotype(), folder=folder, epochs=[{"seconds": 1.0}], known=None
        )
    text = search_seeds_card(config, "c", results)
    assert f"- **Next:** {step}" in text
    advice = 'Or let alpha move faster, as by `--strategy "darts(lr=0.03)"`: its rate was 0.003.'
    assert (advice in text) == ("faster" in step)
    assert ("--strategy" in text) == ("faster" in step)


class TestLeftOut:
    def test_what_was_hardly_left_out_is_named(self, data: ImageData) -> None:
        """Of the three edges into node 3 two have shares of 0.5, and the third 0.5 / 1.05 or 1.2."""
        space = "darts(nodes=2, operations=(skip_connect, max_pool_3x3))"
        for times, close in ((1.05, True), (1.2, False)):
            task = Search(
                SearchConfig(**(vars(CONFIG) | {"space": space, "rules": ("fa",)})),
                data,
                torch.device("cpu"),
            )
            with torch.no_grad():
                for values in task.strategy_state.parameters.values():
                    values.zero_()
                    for number, edge in enumerate(task.space.edges):
                        share = 0.95 / times if edge == (3, 1) else 0.95
                        values[number, 1] = math.log(share / (1 - share))
            said = findings.of_search(task, task.genotype(), []).verdicts()[1]
            expected = "Hardly left out by their nodes: normal 1 -> 3 (1.05 times)"
            assert (expected in said) == close
            assert ("Hardly left out" in said) == close

    def test_edges_that_a_node_does_not_keep(self, data: ImageData) -> None:
        """Of the three edges into node 3 that of the flattest alpha goes."""
        options = {"strategy": "darts", "space": "darts(nodes=2)"}
        task = Search(SearchConfig(**(vars(CONFIG) | options)), data, torch.device("cpu"))
        edges = task.space.edges
        with torch.no_grad():
            for cell_type, values in task.strategy_state.parameters.items():
                values.zero_()
                for number, (node, source) in enumerate(edges):
                    place = task.table.rows[cell_type][number].index(
                        Candidate("dil_conv_3x3", "fa")
                    )
                    values[number, place] = {(3, 0): 1.0, (3, 1): 0.5, (3, 2): 2.0}.get(
                        (node, source), 1.5
                    )
        rows = rows_below("## T\n" + "\n".join(left_out(task, task.genotype())), "T")
        n = sum(candidate is not None for candidate in task.table.rows["normal"][0])

        def score(alpha: float) -> float:
            return n * math.exp(alpha) / (math.exp(alpha) + n - 1)

        assert rows[0] == (
            ["normal", "1 -> 3", "dil_conv_3x3:fa", f"{score(0.5):.3f}", f"{score(1.0):.3f}"]
        )
        assert [row[:2] for row in rows] == [["normal", "1 -> 3"], ["reduce", "1 -> 3"]]

    def test_a_space_that_keeps_all_edges_has_none(self, data: ImageData) -> None:
        task = Search(
            SearchConfig(**(vars(CONFIG) | {"space": "darts(nodes=1)"})), data, torch.device("cpu")
        )
        assert left_out(task, task.genotype()) == []


class TestNextStep:
    """What is advised depends on what the search found."""

    def next_of(
        self, data: ImageData, alphas: dict[str, float], history: list[dict[str, Any]]
    ) -> tuple[str, str]:
        """The step, and the advice, where normal cells prefer operations by these alphas."""
        options = {"strategy": "darts(lr=0.5)", "space": "darts(nodes=2)", "rules": ("fa",)}
        task = Search(SearchConfig(**(vars(CONFIG) | options)), data, torch.device("cpu"))
        with torch.no_grad():
            for cell_type, values in task.strategy_state.parameters.items():
                for number, row in enumerate(task.table.rows[cell_type]):
                    for place, candidate in enumerate(row):
                        values[number, place] = alphas.get(candidate.op if candidate else "", 0.0)
        found = findings.of_search(task, task.genotype(), history)
        step = after_supernet(task.config, found, True, "train it", "Size.")
        return step.step, "\n".join(step.how)

    RECORDS: ClassVar[list[dict[str, Any]]] = [
        {"epoch": number + 1, "genotype": digest} for number, digest in enumerate("aab")
    ]

    def test_a_decided_cell_of_convolutions_is_trained(self, data: ImageData) -> None:
        settled = [{**record, "genotype": "a"} for record in self.RECORDS]
        step, how = self.next_of(data, {"sep_conv_3x3": 2.0}, settled)
        assert (step, how.startswith("Train it:")) == ("train the genotype", True)

    def test_a_cell_of_skips_is_searched_again(self, data: ImageData) -> None:
        step, how = self.next_of(data, {"skip_connect": 2.0}, [])
        assert step == "search again with fewer skips and poolings"
        assert "4 of 4 edges of normal cells (4 skips) have no weights" in how
        assert "`skip_dropout`" in how
        assert "leave the poolings out" not in how
        assert "To train this one anyway:" in how

    def test_so_is_one_of_poolings(self, data: ImageData) -> None:
        step, how = self.next_of(data, {"max_pool_3x3": 2.0}, [])
        assert step == "search again with fewer skips and poolings"
        assert "4 of 4 edges of normal cells (4 poolings) have no weights" in how
        assert "`partial_channels`" in how
        assert "skip_dropout" not in how
        assert "leave the poolings out" in how

    def test_what_changed_in_the_last_epoch_is_searched_longer(self, data: ImageData) -> None:
        step, how = self.next_of(data, {"sep_conv_3x3": 2.0}, self.RECORDS)
        assert step == "search longer"
        assert "The genotype has just changed" in how


@pytest.mark.parametrize(
    ("digests", "said"),
    [
        ("a", "It cannot be told from one epoch."),
        ("aaa", "Yes: it has been the same from the first of 3 epochs on."),
        ("aab", "No: the genotype changed in 1 of 3 epochs (3)."),
        ("abcdd", "Unchanged in the last epoch; it changed in 3 of 5 epochs (2, 3, 4)."),
        ("abbb", "Unchanged in the last 2 epochs; it changed in 1 of 4 epochs (2)."),
        ("abababab", "changed in 7 of 8 epochs (the latest 6: 3, 4, 5, 6, 7, 8)."),
        (29 * "a" + "bb", "No: the genotype changed in 1 of 31 epochs (30)."),
        (27 * "a" + "bbbb", "No: the genotype changed in 1 of 31 epochs (28)."),
        (26 * "a" + "bbbbb", "Unchanged in the last 4 epochs; it changed in 1 of 31 epochs (27)."),
    ],
)
def test_when_a_genotype_changed(digests: str, said: str) -> None:
    history = [{"epoch": number + 1, "genotype": digest} for number, digest in enumerate(digests)]
    genotype = load_genotype("bionas_darts")
    found = findings.Findings(SPACES.build("darts"), genotype, (), history)
    assert said in found.verdicts()[1]


def test_what_carries_errors_by_counting(data: ImageData) -> None:
    """Rules are counted in the genotype's text; its backbone is under bp."""
    genotype = load_genotype("bionas_darts")
    text = str(genotype)
    words = transport_in_words(genotype)
    signs = sum(text.count(f":{rule}") for rule in ("usf", "brsf", "frsf"))
    fixed = text.count(":fa")
    assert ":bp" not in text
    assert words.startswith(
        "Yes, but only around the cells, not on their edges, where signs alone are transported. "
        "There errors are "
    )
    assert f"by the weights' signs on {signs} edge" in words
    assert (f"by fixed feedback on {fixed} edge" in words) == (fixed > 0)
    assert words.endswith("in stem, preprocessing and classifier by the weights' values (`bp`).")
    assert transport_in_words(genotype.with_rule("fa")).startswith(
        "No, neither around the cells nor"
    )
    assert transport_in_words(genotype.with_rule("bp")).startswith("Yes, around the cells and on")
    assert transport_in_words(genotype.with_rule("usf")).startswith(
        "Of signs alone, one bit a weight."
    )
    around = replace(genotype.with_rule("fa"), backbone_rule="bp")
    assert transport_in_words(around).startswith(
        "Yes, but only around the cells, not on their edges. "
    )
    around = replace(genotype.with_rule("fa"), backbone_rule="usf")
    assert transport_in_words(around).startswith("Of signs alone, one bit a weight.")


def test_several_seeds_begin_with_what_they_agree_on(data: ImageData, tmp_path: Path) -> None:
    first, second = load_genotype("bionas_darts"), load_genotype("bionas_darts").with_rule("fa")
    results = {
        seed: SimpleNamespace(
            genotype=genotype, folder=tmp_path, epochs=[{"seconds": 2.0}], known=None
        )
        for seed, genotype in enumerate((first, second))
    }
    text = search_seeds_card(SearchConfig(space="darts"), "c", results)
    edges = sum(len(cell.edges) for cell in first.cells.values())
    same = sum(
        a.candidate == b.candidate
        for t in first.cells
        for a, b in zip(first.cells[t].edges, second.cells[t].edges, strict=True)
    )
    assert (
        f"- **Agreed?** No: 2 genotypes of 2 seeds. Of {edges} edges {edges} are in all of them, {edges} "
        f"with the same operation, {same} with the same rule too, or both without weights."
    ) in text
    assert "Undecided?" not in text  # nothing was recorded of alpha
    assert "- **Cost:** 4 s, all seeds\n- **Repeat:** `c`\n- **Next:** choose among them" in text
