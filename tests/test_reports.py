"""Reports: what a search's says beside numbers computed by hand, and the page that a browser shows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from searching import PAIR, rows_below

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.reports.markdown import block, code, escaped, markdown_table, recipe
from darts_bio.reports.page import FIGURE_BYTES, Widget, page, write_report
from darts_bio.reports.search import search_card
from darts_bio.reports.time_lapse import time_lapse
from darts_bio.runs.search import (
    SearchResult,
    images_of,
    next_options,
    search,
    sizes_in_words,
)
from darts_bio.spaces import SPACES, Candidate
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.run_folder import RunFolder
from darts_bio.strategies.gradient import AlphaState
from darts_bio.training.search import Search

CONFIG = SearchConfig(
    space=PAIR,
    rules=("fa", "usf"),
    strategy="darts(lr=0.3)",
    channels=2,
    layers=3,
    epochs=3,
    batch_size=8,
    crop_padding=1,
    dataset="digits",
    seed=4,
)
HOSTILE = "<script>alert(1)</script>|`x`\n# b *c* [d](javascript:e) &lt; \\ ![f](http://g)"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


@pytest.fixture(scope="module")
def found(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    out = tmp_path_factory.mktemp("reports") / "run"
    found = search(SearchConfig(**(vars(CONFIG) | {"out": str(out)})), "my command", data)
    assert isinstance(found, SearchResult)
    return found


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: dict[str, list[str]] = {"": []}
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        self.pieces.setdefault(self._within, []).append(data)

    @property
    def text(self) -> str:
        return "".join(self.pieces[""])


def softmaxes(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The shares of the candidates of each edge, from the logits of the checkpoint."""
    alpha = read_checkpoint(folder / "checkpoint.pt", "search")["task"]["strategy"]["parameters"]
    table = SPACES.build(PAIR).table(("fa", "usf"))
    by_type = {}
    for cell_type, rows in table.rows.items():
        by_type[cell_type] = []
        for row, logits in zip(rows, alpha[cell_type].tolist(), strict=True):
            powers = {str(c): math.exp(x) for c, x in zip(row, logits, strict=True) if c}
            by_type[cell_type].append({c: p / sum(powers.values()) for c, p in powers.items()})
    return by_type


class TestSearch:
    def test_choices_are_those_of_the_logits(self, found: SearchResult) -> None:
        """In a cell of one node both edges are kept, so each chooses its largest share but none."""
        rows = rows_below((found.folder / "report.md").read_text(), "Choices")
        expected = []
        for cell_type, edges in softmaxes(found.folder).items():
            for source, shares in enumerate(edges):
                first, second = sorted(set(shares) - {"none"}, key=lambda c: -shares[c])[:2]
                high, low = shares[first], shares[second]
                ahead = f"{high / low:.2f}{', undecided' if high < 1.1 * low else ''}"
                numbers = (f"{first} {high:.3f}", f"{second} {low:.3f}", ahead)
                expected.append([cell_type, f"{source} -> 2", *numbers])
        assert rows == expected

    def test_words_are_those_of_the_logits(self, found: SearchResult) -> None:
        text = (found.folder / "report.md").read_text()
        undecided, entropies, without = [], [], {"normal": [], "reduce": []}
        for cell_type, edges in softmaxes(found.folder).items():
            for source, shares in enumerate(edges):
                first, second = sorted(set(shares) - {"none"}, key=lambda c: -shares[c])[:2]
                if shares[first] < 1.1 * shares[second]:
                    same = first.partition(":")[0] == second.partition(":")[0]
                    undecided.append(f"{cell_type} {source} -> 2{' (its rule)' if same else ''}")
                ratio = -sum(p * math.log(p) for p in shares.values()) / math.log(len(shares))
                entropies.append(ratio)
                if ":" not in first:
                    without[cell_type].append(first)
        said = f"**Undecided?** {'Yes, on' if len(undecided) > 2 else 'On'} {len(undecided)} of 4 edges"
        assert (said if undecided else "**Undecided?** On no edge") in text
        assert all(name in text for name in undecided)
        assert f"shares on the kept edges is {sum(entropies) / 4:.3f} on average (" in text
        skips = without["normal"].count("skip_connect")
        has = (
            f"normal has {skips} skip{'' if skips == 1 else 's'} on 2 edges, and DARTS+ stops at 2"
        )
        hollow = skips < 2 and len(without["normal"]) > 1
        answer = "Yes: more than half" if hollow else f"{'Yes' if skips > 1 else 'No'}: {has}"
        assert f"**Collapsed?** {answer}" in text
        assert has in text
        assert f"Without weights: {len(without['normal'])} of 2 edges of normal cells" in text
        assert f", {len(without['reduce'])} of 2 edges of reduce cells" in text
        counts = {row[0]: sum(map(int, row[3:])) for row in rows_below(text, "Which rule where")}
        empty = sum(map(len, without.values()))
        assert counts.pop("none (no weights)", 0) == empty
        assert sum(counts.values()) == 4 - empty

    def test_alpha_after_each_epoch(self, found: SearchResult) -> None:
        """The last record is the checkpoint's alpha; the largest shares tell when it settled."""
        lines = (found.folder / "alpha.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [(r["step"], r["epoch"]) for r in records] == [(2, 1), (4, 2), (6, 3)]
        for cell_type, edges in softmaxes(found.folder).items():
            for shares, recorded in zip(edges, records[-1]["shares"][cell_type], strict=True):
                assert recorded == pytest.approx(list(shares.values()), abs=2e-7)
        chosen = [  # `none`, the first candidate of a row, cannot be chosen
            [max(row[1:]) == share for t in r["shares"] for row in r["shares"][t] for share in row]
            for r in records
        ]
        changes = [n + 1 for n in range(1, 3) if chosen[n] != chosen[n - 1]]
        named = f"changed in {len(changes)} of 3 epochs ({', '.join(map(str, changes))})"
        text = (found.folder / "report.md").read_text()
        assert (named if changes else "the same from the first") in text

    def test_the_time_lapse_shows_what_is_recorded(self, found: SearchResult) -> None:
        read = Page((found.folder / "report.html").read_text())
        fields = [attrs for _, attrs in read.tags if (attrs.get("class") or "").startswith("share")]
        shown = {str(a["data-of"]): a["data-share"] for a in fields[:7]}
        normal = softmaxes(found.folder)["normal"]
        expected = {
            f"{source} -> 2, {candidate}": share
            for source, shares in enumerate(normal)
            for candidate, share in shares.items()
        }
        assert len(fields) == sum(map(len, [*normal, *softmaxes(found.folder)["reduce"]]))
        for name, value in shown.items():
            assert float(value or "nan") == pytest.approx(expected[name], abs=1.1e-4)
        frames = json.loads(read.pieces["script"][0])
        assert frames["epochs"] == [1, 2, 3]
        assert [value / 10_000 for value in frames["frames"][-1]] == [
            float(a["data-share"] or "nan") for a in fields
        ]
        assert frames["frames"][0] != frames["frames"][-1]

    def test_how_to_go_on(self, found: SearchResult) -> None:
        text = (found.folder / "report.md").read_text()
        assert f"train --genotype {found.folder.name} --dataset digits" in text
        assert "That is a network of 3 cells and 16 channels, the size of the recipe" in text
        assert "trained for 30 epochs" in text
        assert "`--channels 2` trains one of the search's own size" in text
        assert "16 of the training images (train), alpha from the 16 others" in text
        assert "- data: 32 training + 359 test images of 1x8x8" in text
        assert "`my command`" in text
        assert str(found.folder.parent) not in text + (found.folder / "report.html").read_text()

    def test_best_practices_have_the_numbers_of_the_paper(self, found: SearchResult) -> None:
        """Sections 2 to 4 of arXiv 1909.02453v3 have 14 practices; what names some of them."""
        text = (found.folder / "report.md").read_text().partition("## Best practices")[2]
        rows = [
            row.strip("| ").split(" | ") for row in re.findall(r"^\| \d+ .*$", text, re.MULTILINE)
        ]
        practices = {int(number): practice for number, practice, _ in rows}
        assert list(practices) == list(range(1, 15))
        named = {
            **{1: "training", 2: "search method", 3: "published", 4: "benchmark", 5: "ablations"},
            **{6: "evaluate", 7: "resources", 8: "random search", 9: "seeds", 10: "surrogate"},
            **{11: "hardware", 12: "tuned", 13: "end to end", 14: "setup"},
        }
        assert all(word in practices[number] for number, word in named.items())
        answers = {int(number): answer for number, _, answer in rows}
        unanswered = [n for n, answer in answers.items() if answer == "*for you to say*"]
        # The accuracies of a search without a table are those of its supernet, not of a cell.
        assert unanswered == [1, 3, 5, 6, 7, 8, 10]
        assert answers[9] == "this is one, of seed 4"
        assert answers[2].endswith("all options are in config.yaml; seed 4")

    def test_the_data_come_first_and_the_next_step_last(self, found: SearchResult) -> None:
        bullets = (found.folder / "report.md").read_text().partition("## In short\n\n")[2]
        lines = bullets.partition("\n\n")[0].splitlines()
        assert lines[0].startswith("- **Data:** digits. The weights learn from 16 of the training")
        assert lines[-1].startswith("- **Next:** ")
        assert lines[-1].endswith('see "How to go on".')


CELL = SPACES.build("darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))")


def lapse_of(of_edge: list[float], factorised: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """The data and the fields of a heat map of an epoch, whose edges in normal cells are all alike."""
    table = CELL.table(("fa", "usf"))
    shares = {t: [[1.0] + [0.0] * (sum(map(bool, row)) - 1) for row in rows]
              for t, rows in table.rows.items()}  # fmt: skip
    shares["normal"] = [of_edge for _ in CELL.edges]
    record = {"epoch": 1, "step": 1, "genotype": "d", "shares": shares}
    read = Page(time_lapse([record], table, CELL.edges, factorised).html)
    fields = [attrs for _, attrs in read.tags if (attrs.get("class") or "").startswith("share")]
    return json.loads(read.pieces["script"][0]), fields[: len(of_edge)]


class TestTimeLapse:
    def test_the_dot_is_that_of_shares_alike_in_thousandths(self) -> None:
        data, fields = lapse_of([0.25001, 0.24998, 0.25003, 0.24998])
        assert [a["class"] for a in fields] == ["share", "share", "share top", "share"]
        assert data["largest"][0][:2] == [2, 6]

    def test_equal_shares_have_no_dot(self) -> None:
        data, fields = lapse_of([0.25] * 4)
        assert all(a["class"] == "share" for a in fields)
        assert data["largest"][0] == [8, 13]  # those of the reduce cell

    def test_the_dot_of_factorised_alpha_is_in_the_best_operation(self) -> None:
        """The convolution has 0.5, in two rules; the skip keeps its 0.3 whole."""
        _, fields = lapse_of([0.2, 0.3, 0.2, 0.3], factorised=True)
        assert [a["class"] for a in fields] == ["share", "share", "share", "share top"]
        _, fields = lapse_of([0.2, 0.3, 0.2, 0.3])
        assert all(a["class"] == "share" for a in fields)  # as pairs two are equal

    def test_colors_are_of_multiples_of_the_equal_share(self) -> None:
        """In a reduce cell of five candidates one has all: five times its equal share, full color."""
        data, fields = lapse_of([0.26, 0.05, 0.59, 0.1])
        assert data["top"] == 5
        expected = [math.log(4 * 0.26) / math.log(5), 0, math.log(4 * 0.59) / math.log(5), 0]
        colors = [float(str(a["style"]).removeprefix("--s:")) for a in fields]
        assert colors == pytest.approx(expected, abs=1e-3)

    def test_equal_shares_of_operations_are_pale_where_alpha_is_factorised(self) -> None:
        third = 1 / 3
        data, fields = lapse_of([third, third, third / 2, third / 2], factorised=True)
        assert data["equal"][:4] == pytest.approx([third, third, third / 2, third / 2], abs=1e-6)
        assert [str(a["style"]) for a in fields] == ["--s:0"] * 4
        _, fields = lapse_of([third, third, third / 2, third / 2])
        assert float(str(fields[0]["style"]).removeprefix("--s:")) > 0.1


def test_a_training_takes_all_images_and_says_how_to_take_those_of_the_search(
    tmp_path: Path,
) -> None:
    own = "The search had 64 of the training images: `--train-images 64 --data-seed 7` trains on these"
    for layers in (3, 5):  # those of the recipe, and others
        config = SearchConfig(dataset="digits", train_images=64, seed=7, layers=layers)
        options = next_options(tmp_path / "run", config, images_of(config))
        assert "train_images" not in options
        said = sizes_in_words(config, options)
        assert "trained for 30 epochs on all training images." in said
        assert own in said
        assert "images" not in sizes_in_words(replace(config, train_images=None), options)
        assert "--batch-size" not in said  # the recipe's


def test_a_batch_that_is_fitted_to_the_images_of_the_search_is_explained(tmp_path: Path) -> None:
    config = SearchConfig(dataset="digits", train_images=40, batch_size=16)
    options = next_options(tmp_path / "run", config, images_of(config))
    assert options["batch_size"] == 40
    said = sizes_in_words(config, options)
    assert said.endswith(
        "trains on these alone. A batch of 40 is all of these: to train on all images by the "
        "recipe's batch leave `--batch-size` out."
    )


class TestAdvice:
    def card(self, data: ImageData, strategy: str, alpha: float = 0.0) -> str:
        """The report of a search whose alphas of convolutions are these, of all else 0."""
        options = {"strategy": strategy, "space": "darts(nodes=1)"}
        task = Search(SearchConfig(**(vars(CONFIG) | options)), data, torch.device("cpu"))
        for cell_type, values in task.strategy_state.parameters.items():
            rows = task.table.rows[cell_type]
            with torch.no_grad():
                values.zero_()
                for number, row in enumerate(rows):
                    values[number, row.index(Candidate("sep_conv_3x3", "fa"))] = alpha
        folder: Any = SimpleNamespace(command="c")
        return search_card(task, folder, task.genotype(), [], True, None, [], "train it", "Size.")

    def test_where_little_is_decided_a_longer_search_comes_first(self, data: ImageData) -> None:
        text = self.card(data, "darts(lr=0.003)", 0.01)
        assert "**Undecided?** Yes, on 4 of 4 edges" in text
        assert "- **Next:** search longer, or move alpha faster" in text
        advice = text.partition("## How to go on")[2].partition("\n## ")[0]
        first, _, rest = advice.partition("To train this one anyway:")
        assert "this search had 3 epochs" in first
        assert "`--epochs 6` and another `--out`" in first
        assert '`--strategy "darts(lr=0.03)"`: its rate was 0.003.' in first
        assert "which need not be better" in first
        assert "train it" in rest

    def test_a_rate_that_is_large_is_not_made_larger(self, data: ImageData) -> None:
        text = self.card(data, "darts(lr=0.3)", 0.01)
        assert "Search longer first" in text
        assert "--strategy" not in text
        assert "move alpha faster" not in text

    def test_nor_is_one_that_alpha_does_not_move_at(
        self, data: ImageData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AlphaState, "learning_rates", lambda self: {})
        text = self.card(data, "darts(lr=0.003)", 0.01)
        assert "- **Next:** search longer;" in text
        assert "--strategy" not in text

    def test_where_enough_is_decided_it_is_trained(self, data: ImageData) -> None:
        text = self.card(data, "darts(lr=0.003)", 1.0)
        assert "Search longer" not in text
        assert "- **Next:** train the genotype" in text
        assert "\nTrain it:\n" in text
        assert "though it has the largest share" not in text

    def test_none_that_is_largest_is_named(self, data: ImageData) -> None:
        options = {"strategy": "darts(lr=0.003)", "space": "darts(nodes=1)"}
        task = Search(SearchConfig(**(vars(CONFIG) | options)), data, torch.device("cpu"))
        with torch.no_grad():
            task.strategy_state.parameters["normal"][0, 0] = 5.0
        folder: Any = SimpleNamespace(command="c")
        text = search_card(task, folder, task.genotype(), [], True, None, [], None)
        assert "though it has the largest share on 1 of 4 edges: normal 0 -> 2 (" in text


def test_a_stopped_search_names_no_training(data: ImageData, tmp_path: Path) -> None:
    task = Search(CONFIG, data, torch.device("cpu"))
    card = search_card(
        task, RunFolder(tmp_path, "search", CONFIG, "c"), task.genotype(), [], False, None, [], None
    )
    assert "`--resume`" in card
    assert "Train it" not in card
    assert "## Alpha over the epochs" not in card


class TestPage:
    def test_it_asks_for_nothing_and_runs_one_script(self, found: SearchResult) -> None:
        read = Page((found.folder / "report.html").read_text())
        for tag, attrs in read.tags:
            assert not any(name.startswith("on") for name in attrs), (tag, attrs)
            assert tag not in ("link", "iframe", "object", "embed", "base", "form")
            for name in ("src", "href"):
                assert "//" not in (attrs.get(name) or ""), (tag, attrs)
        assert any(tag == "svg" for tag, _ in read.tags)
        policy = next(a["content"] for _, a in read.tags if "http-equiv" in a) or ""
        assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
        script = read.pieces["script"][1]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert [a.get("type") for tag, a in read.tags if tag == "script"] == [
            "application/json",
            None,
        ]

    def test_figures_tell_the_style_their_width(self, tmp_path: Path) -> None:
        """On a phone they are three quarters of it at least; charts have theirs in points."""
        for name, width in {"cells": "467", "curves": "552pt"}.items():
            (tmp_path / f"{name}.svg").write_text(f'<svg height="9" width="{width}"></svg>')
        write_report(tmp_path, "# A\n\n![cells](cells.svg)\n\n![curves](curves.svg)")
        read = Page((tmp_path / "report.html").read_text())
        figures = [attrs["style"] for _, attrs in read.tags if attrs.get("class") == "figure"]
        assert figures == ["--width: 467px", "--width: 552pt"]

    def test_hostile_names_are_text_in_both_forms(self, tmp_path: Path) -> None:
        config = SearchConfig(data_dir=f"a\n```\n{HOSTILE}")
        lines = [
            f"# {escaped(HOSTILE)}",
            "",
            *markdown_table(("name", "x"), [(escaped(HOSTILE), "1"), (code(HOSTILE), "2")]),
            "",
            *recipe(config, HOSTILE),
            "",
            *block(f"```\n{HOSTILE}"),
            "",
        ]
        write_report(tmp_path, "\n".join(lines))
        read = Page((tmp_path / "report.html").read_text())
        kinds = [tag for tag, _ in read.tags]
        assert not {"script", "img", "a", "em", "svg"} & set(kinds)
        assert (kinds.count("h1"), kinds.count("tr"), kinds.count("td")) == (1, 3, 4)
        on_one_line = re.sub(r"\s+", " ", HOSTILE)
        # In the title, the heading, the two rows and the command; in the block as it is.
        assert read.text.count(on_one_line) == 5
        assert f"```\n{HOSTILE}" in read.text
        # In report.md the tag is nowhere but in code or behind a backslash.
        text = (tmp_path / "report.md").read_text()
        outside = re.sub(r"(?ms)^(`{3,}).*?^\1$|(?<!\\)(`+)(?!`).*?(?<!`)\2(?!`)", "", text)
        assert "<script>" in text
        assert not re.search(r"(?<!\\)<script", outside)

    def test_html_in_a_text_that_escapes_nothing_is_text(self, tmp_path: Path) -> None:
        text = "# t\n\n<script>alert(1)</script> <b onclick=x>\n\n![far](https://a.b/c.svg) ![up](../d.svg)"
        (tmp_path.parent / "d.svg").write_text("<svg></svg>")
        read = Page(page(tmp_path, text))
        assert not {"script", "b", "img", "svg"} & {tag for tag, _ in read.tags}
        assert "<script>alert(1)</script> <b onclick=x>" in read.text
        assert "far up" in read.text

    def test_figures_are_part_of_it_up_to_a_size(self, tmp_path: Path) -> None:
        (tmp_path / "small.svg").write_text("<svg><title>cells</title></svg>")
        (tmp_path / "large.svg").write_text(f"<svg>{' ' * FIGURE_BYTES}</svg>")
        read = Page(page(tmp_path, "![a](small.svg)\n\n![b](large.svg)\n\n![c](none.svg)"))
        assert [tag for tag, _ in read.tags].count("svg") == 1
        assert [attrs["href"] for tag, attrs in read.tags if tag == "a"] == ["large.svg"]
        assert "c" in read.text.split()

    def test_links_to_reports_lead_to_their_pages(self, tmp_path: Path) -> None:
        text = "[0](seed-0/report.md), [x](report.md), [y](metrics.jsonl)"
        read = Page(page(tmp_path, text))
        targets = [attrs["href"] for tag, attrs in read.tags if tag == "a"]
        assert targets == ["seed-0/report.html", "report.html", "metrics.jsonl"]

    def test_a_hint_is_not_in_the_page_that_it_leads_to(self, found: SearchResult) -> None:
        hint = "[report.html](report.html) shows them as heat maps."
        assert hint in (found.folder / "report.md").read_text()
        read = Page((found.folder / "report.html").read_text())
        assert "shows them as heat maps" not in read.text
        assert "report.html" not in [attrs.get("href") for tag, attrs in read.tags if tag == "a"]

    def test_the_options_unfold(self, found: SearchResult) -> None:
        text = (found.folder / "report.html").read_text()
        assert "<pre>" in text.partition("<details>")[2].partition("</details>")[0]
        assert text.count("<details>") == 1

    def test_what_is_beside_the_text_stands_below_its_heading(self, tmp_path: Path) -> None:
        text = page(tmp_path, "# t\n\n## a\n\nb\n\n## c", Widget("a", "<hr>", ""))
        assert re.search(r"<h2>a</h2>\s*<hr>\s*<p>b</p>\s*<h2>c</h2>", text)

    def test_a_search_of_100000_epochs_is_below_2_mb(self, data: ImageData, tmp_path: Path) -> None:
        task = Search(CONFIG, data, torch.device("cpu"))
        table = task.table
        shares: Any = {t: [[0.1234] * sum(c is not None for c in row) for row in rows]
                       for t, rows in table.rows.items()}  # fmt: skip
        epochs = [
            {"epoch": n, "step": n, "train/loss": 1.0, "train/accuracy": 0.5, "seconds": n,
             "images_per_second": 9.0}
            for n in range(1, 100_001)
        ]  # fmt: skip
        history = [
            {"epoch": n, "step": n, "genotype": "digest 1f", "shares": shares}
            for n in range(1, 100_001)
        ]
        folder = RunFolder(tmp_path, "search", CONFIG, "c")
        card = search_card(task, folder, task.genotype(), epochs, True, None, history, "train")
        write_report(tmp_path, card, time_lapse(history, table, task.space.edges))
        assert (tmp_path / "report.html").stat().st_size < 300_000
        assert [row[0] for row in rows_below(card, "Numbers")][::199] == ["1", "100000"]
        assert "200 of 100000 epochs" in card

    def test_nor_is_one_of_large_cells_above(self, tmp_path: Path) -> None:
        space = SPACES.build("darts")
        table = space.table(("fa", "usf", "brsf", "frsf", "bp", "dfa", "pfa", "dkp"))
        shares = {t: [[0.0123] * sum(c is not None for c in row) for row in rows]
                  for t, rows in table.rows.items()}  # fmt: skip
        history = [{"epoch": n, "step": n, "genotype": "d", "shares": shares} for n in range(1000)]
        text = page(tmp_path, "# t", time_lapse(history, table, space.edges))
        assert 500_000 < len(text) < 2_000_000
