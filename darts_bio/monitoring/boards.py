"""TensorBoard listeners: the numbers of a run, and pictures of what it searches or trains.

Groups of tags are named so that loss and accuracy (`epoch/...`) come first in TensorBoard's order,
which is that of the alphabet.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from darts_bio.evaluation.alignment import Alignment
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.drawing import Drawing
from darts_bio.figures.heat_map import draw_edge_weights
from darts_bio.figures.layers import draw_layers
from darts_bio.monitoring.alpha import alpha_numbers, draw_by_depth
from darts_bio.monitoring.hparams import options_of, summaries
from darts_bio.monitoring.tensorboard import Charts, TensorBoard
from darts_bio.reports.markdown import recipe
from darts_bio.reports.time_lapse import edge_shares, epochs_unchanged
from darts_bio.storage.logs import ALPHA_FILE, METRICS_FILE, read_records
from darts_bio.storage.run_folder import RunFolder
from darts_bio.strategies import AlphaState
from darts_bio.training.black_box import BlackBoxSearch
from darts_bio.training.listeners import Listener, Pace, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

PICTURES = 10
"""How many pictures of a tag a run writes, evenly over its epochs: TensorBoard keeps no more."""

RESULTS: dict[str, Sequence[str]] = {
    "loss": ("train/loss$", "epoch/(valid|test)_loss$"),
    "accuracy": ("train/accuracy$", "epoch/(valid|test|best)_accuracy$"),
}
"""The charts that come first, the same for all kinds of runs."""


OF_RESULTS = ("train", "valid", "test", "best", "known")
"""What the names of losses and accuracies begin with."""

MACHINE: dict[str, Sequence[str]] = {
    "images/s": ["machine/images_per_second$"],
    "hours": ["machine/hours$"],
    "peak memory, GiB": ["machine/memory_gib$"],
}
"""The charts that come last."""

UPDATES: dict[str, Sequence[str]] = {
    "learning rates": ["lr/"],
    "gradient norms": ["gradient_norm/"],
}
"""The charts of runs whose steps follow a gradient."""

ANGLES = ("feedback_angle", "error_angle")
"""The angles whose mean by rule is drawn over the epochs."""


class FitBoard(TensorBoard, Listener):
    """A listener that writes each number of a run as a scalar, and at its end a line of HPARAMS.

    Beside what it is told: `machine/` images/s since the last record or epoch, hours so far and peak
    memory; `gradient_norm/` of the last step before a record.

    Subclasses say which charts a run has, and what is to be seen of its network.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path)
        self.folder = folder
        self._pace = Pace()
        self._began, self._earlier_s = self._pace.began, 0.0

    def charts(self) -> Charts:
        """Return the custom charts that the run has: group -> chart -> patterns of tags."""
        return {"loss and accuracy": RESULTS, **self.further_charts(), "machine": MACHINE}

    def further_charts(self) -> Charts:
        """Return the charts of this kind of run."""
        return {}

    def gradients(self) -> Mapping[str, Sequence[Tensor]]:
        """Return the gradients of the last step, by the name of what they move."""
        return {}

    def on_start(self, progress: Progress) -> None:
        """Open a new event file; a resumed run adds to those before, which were cut back to it.

        A TensorBoard that is looking on hides what was cut off.
        """
        begun = self.has_events
        self.open_events(progress.step + 1 if self.folder.config.resume else None)
        if not begun:
            self.introduce(progress)
            self.flush()
        records = read_records(self.folder.path / METRICS_FILE)
        self._earlier_s = records[-1]["seconds"] if records else 0.0
        self._pace = Pace()
        self._began = self._pace.began

    def introduce(self, progress: Progress) -> None:
        """Write what stands at the beginning of a run, once."""
        charts = self.charts()
        if charts:
            self.layout(charts)
        self.text(
            "run",
            "\n".join(recipe(self.folder.config, self.folder.command)),
            progress.step,
        )

    def on_step(self, progress: Progress, images: int) -> None:
        self._pace.count(images)

    # What is told is on the disk before a checkpoint says that it is: hence each `flush`.

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        norms = {f"gradient_norm/{name}": norm(g) for name, g in self.gradients().items() if g}
        self.scalars({**numbers, **norms, **self._speed()}, progress.step)
        self.flush()

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._speed()
        renamed = {epoch_tag(name): value for name, value in numbers.items()}
        self.scalars(renamed | self._machine(), progress.step)
        self.flush()

    def conclude(self, step: int, facts: Mapping[str, float]) -> None:
        """Write what stands at the end of a run that has come to it: its line of HPARAMS.

        A resumed run was cut back to its last checkpoint, which was made before, so that this is
        there once.

        Args:
            step: How many updates were made.
            facts: What stands beside the options, such as the number of parameters.
        """
        for summary in summaries({**options_of(self.folder.config), **facts}):
            self.summary(summary, step)
        self.flush()

    def _speed(self) -> Numbers:
        """Return the speed since it was asked for last, and begin anew; nothing without images."""
        pace, self._pace = self._pace, Pace()
        if not pace.images:
            return {}
        return {"machine/images_per_second": pace.images_per_second}

    def _machine(self) -> Numbers:
        """Return the hours so far, with those before a resume, and the peak of the memory in GiB."""
        seconds = self._earlier_s + time.monotonic() - self._began
        return {"machine/hours": seconds / 3600} | peak_memory()


class GenotypeBoard(FitBoard):
    """A listener that writes the genotype of a search whenever it changes, as text and as a picture."""

    def __init__(
        self, search: Search | BlackBoxSearch, folder: RunFolder, figure: Callable[[], Drawing]
    ) -> None:
        """Make the listener; `figure` returns the figure of the present genotype."""
        super().__init__(folder)
        self.genotype, self._figure = search.genotype, figure
        # Whether accuracies come from a table, which knows no losses; nor are images passed.
        self._looks_up = isinstance(search, BlackBoxSearch) and search.config.query is not None
        self._shown: str | None = None  # the genotype of the latest picture

    def charts(self) -> Charts:
        if self._looks_up:
            machine = {name: tags for name, tags in MACHINE.items() if name != "images/s"}
            return {"loss and accuracy": {"accuracy": RESULTS["accuracy"]}, "machine": machine}
        return super().charts()

    def on_start(self, progress: Progress) -> None:
        self._shown = self.last_text("genotype")
        super().on_start(progress)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        self._show_genotype(progress.step)

    def conclude(self, step: int, facts: Mapping[str, float]) -> None:
        self._show_genotype(step)  # of a search that has no epochs
        super().conclude(step, facts)

    def _show_genotype(self, step: int) -> None:
        """Write the present genotype if it is not the one that was written last."""
        text = f"```\n{self.genotype()}\n```"
        if text != self._shown:
            self.text("genotype", text, step)
            self.image("genotype/cells", self._figure().image(), step)
            self._shown = text
            self.flush()


class SearchBoard(GenotypeBoard):
    """A listener that tells after each epoch what alpha has come to, and paints it now and then.

    Beside the numbers of `alpha_numbers`: `search/epochs_since_change` of the genotype, and heat maps
    of alpha's shares, with the candidates of the genotype framed.
    """

    def __init__(self, search: Search, folder: RunFolder, figure: Callable[[], Drawing]) -> None:
        super().__init__(search, folder, figure)
        self.search = search
        self._digest, self._unchanged = "", 0  # the last epoch's genotype, and for how many epochs

    def charts(self) -> Charts:
        return {} if self.search.strategy.finished else super().charts()  # if it trains nothing

    def further_charts(self) -> Charts:
        kinds = dict.fromkeys(map(self.search.space.kind, self.search.table.rows))
        return {
            "search": {
                "entropy (1: nothing is decided)": ["search/entropy/"],
                "decided edges": ["search/decided_edges$"],
                "epochs since the genotype changed": ["search/epochs_since_change$"],
            },
            "operations": {f"operations, {kind}": [f"operations/{kind}/"] for kind in kinds},
            "rules": {f"rules, {kind}": [f"rules/{kind}/"] for kind in kinds},
            "updates": UPDATES,
        }

    def gradients(self) -> Mapping[str, Sequence[Tensor]]:
        search, state = self.search, self.search.strategy_state
        gradients = {"weights": gradients_of(search.optimizer.weights)}
        # Not those that are left over from a phase of the strategy which has ended.
        if isinstance(state, AlphaState) and search.strategy.descends(state):
            gradients["alpha"] = gradients_of(state.parameters.values())
        return gradients

    def on_start(self, progress: Progress) -> None:
        super().on_start(progress)
        history = read_records(self.folder.path / ALPHA_FILE)
        if history:
            self._digest, self._unchanged = history[-1]["genotype"], epochs_unchanged(history)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        search, genotype = self.search, self.genotype()
        same = genotype.identity() == self._digest
        self._digest, self._unchanged = genotype.identity(), self._unchanged + 1 if same else 1
        factorised = search.strategy_state.context.factorised
        found = alpha_numbers(search.space, search.table, genotype, edge_shares(search), factorised)
        since = {"search/epochs_since_change": self._unchanged - 1}
        self.scalars(found | since, progress.step)
        if self._is_painted(progress.epoch):
            self._paint(progress.step)
        self.flush()

    def conclude(self, step: int, facts: Mapping[str, float]) -> None:
        epoch = step // self.search.steps_per_epoch
        if epoch and not self._is_painted(epoch):  # it ended early
            self._paint(step)
        super().conclude(step, facts)

    def _is_painted(self, epoch: int) -> bool:
        """Return whether there are heat maps of an epoch, counted from 1."""
        epochs = self.search.epochs
        return epoch == epochs or epoch % math.ceil(epochs / PICTURES) == 0

    def _paint(self, step: int) -> None:
        """Write the heat maps of alpha as it is."""
        search, shares = self.search, edge_shares(self.search)
        cells = self.genotype().cells
        for cell_type, rows in search.table.rows.items():
            values = [
                [*of_edge, *(len(row) - len(of_edge)) * [0.0]]  # as long as rows are padded
                for row, of_edge in zip(rows, shares[cell_type], strict=True)
            ]
            heat_map = draw_edge_weights(
                f"shares of alpha, {cell_type} cell",
                rows,
                search.space.edges,
                values,
                cells[cell_type],
            )
            self.image(f"heat_map/{cell_type}", heat_map.image(), step)
        by_depth = draw_by_depth(search.space, search.table, shares)
        if by_depth is not None:
            self.image("heat_map/by_depth", by_depth.image(), step)


class TrainingBoard(FitBoard):
    """A listener that writes the cells that are trained, and the alignment of each layer.

    Of an alignment that is measured: `layers/angles`, a heat map of all layers, and the mean angles
    by rule, `layers/feedback_angle/RULE` and `layers/error_angle/RULE`, in degrees.
    """

    def __init__(
        self, training: Retraining, folder: RunFolder, alignment: Callable[[], Alignment | None]
    ) -> None:
        """Make the listener; `alignment` returns that of the ending epoch, None if not measured."""
        super().__init__(folder)
        self.training, self._alignment = training, alignment

    def further_charts(self) -> Charts:
        if not self.training.config.alignment_every:
            return {"updates": UPDATES}
        angles = {f"{name.replace('_', ' ')}, mean by rule": [f"layers/{name}/"] for name in ANGLES}
        return {"alignment": angles, "updates": UPDATES}

    def gradients(self) -> Mapping[str, Sequence[Tensor]]:
        return {"weights": gradients_of(self.training.optimizer.weights)}

    def introduce(self, progress: Progress) -> None:
        super().introduce(progress)
        genotype = self.training.genotype
        if genotype is not None:
            self.image("genotype/cells", draw_genotype(genotype).image(), progress.step)
            self.text("genotype", f"```\n{genotype}\n```", progress.step)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        alignment = self._alignment()
        if alignment is None:
            return
        means = {f"layers/{name}": alignment.by_rule(name) for name in ANGLES}
        self.scalars(
            {f"{tag}/{rule}": angle for tag, of in means.items() for rule, angle in of.items()},
            progress.step,
        )
        self.image("layers/angles", draw_layers(alignment).image(), progress.step)
        self.flush()


def epoch_tag(name: str) -> str:
    """Return the tag of a number that is told after an epoch.

    Losses and accuracies are together in `epoch/`, TensorBoard's first group.

    >>> epoch_tag("test/accuracy"), epoch_tag("alignment/error_angle")
    ('epoch/test_accuracy', 'measured/alignment_error_angle')
    """
    group = "epoch" if name.partition("/")[0] in OF_RESULTS else "measured"
    return f"{group}/{name.replace('/', '_')}"


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of those parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of tensors taken as one vector.

    >>> norm([torch.tensor([3.0]), torch.tensor([[0.0], [4.0]])])
    5.0
    """
    return float(nn.utils.get_total_norm(tensors))


def peak_memory() -> Numbers:
    """Return the peak of this process' memory in GiB, of a GPU's if it uses one."""
    if torch.cuda.is_initialized():
        return {"machine/memory_gib": torch.cuda.max_memory_allocated() / 2**30}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"machine/memory_gib": peak / (2**30 if sys.platform == "darwin" else 2**20)}
