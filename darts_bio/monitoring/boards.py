"""TensorBoard listeners: the numbers of a run, and pictures of what it searches or trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from darts_bio.evaluation.alignment import Alignment
from darts_bio.evaluation.robustness import Measurement
from darts_bio.evaluation.subjects import Subject
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.charts import Chart
from darts_bio.figures.drawing import Drawing
from darts_bio.figures.heat_map import draw_edge_weights
from darts_bio.monitoring.tensorboard import TensorBoard
from darts_bio.reports.markdown import recipe
from darts_bio.reports.robustness import attacks_on
from darts_bio.training.engine import Listener, Numbers, Progress
from darts_bio.training.retrain import Retraining
from darts_bio.training.run_folder import RunFolder
from darts_bio.training.search import Search


class FitBoard(TensorBoard, Listener):
    """A listener that writes each number of a search or a training as a scalar."""

    charts: dict[str, dict[str, list[str]]] = {}
    """Custom charts: group -> chart -> the tags that it draws together."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path)
        self.folder = folder

    def on_start(self, progress: Progress) -> None:
        """Open a new event file; a resumed run adds to those before, which were cut back to it.

        A TensorBoard that is looking on hides what was cut off.
        """
        begun = self.has_events
        self.open_events(progress.step + 1 if self.folder.config.resume else None)
        if not begun:
            self.introduce(progress)
            self.flush()

    def introduce(self, progress: Progress) -> None:
        """Write what stands at the beginning of a run, once."""
        self.layout(self.charts)
        self.text(
            "run",
            "\n".join(recipe(self.folder.config, self.folder.command)),
            progress.step,
        )

    # What is told is on the disk before a checkpoint says that it is: hence each `flush`.

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.scalar(name, value, progress.step)
        self.flush()

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.scalar(f"epoch/{name.replace('/', '_')}", value, progress.step)
        self.flush()


class SearchBoard(FitBoard):
    """A listener that writes alpha as histograms, edge weights as heat maps, and the cells.

    It does so after each epoch, beside the numbers; the cells are those that would be derived then.
    """

    charts = {"search": {name: [f"train/{name}", f"valid/{name}"] for name in ("loss", "accuracy")}}

    def __init__(self, search: Search, folder: RunFolder) -> None:
        super().__init__(folder)
        self.search = search
        self._shown: str | None = None  # the genotype of the latest picture

    def on_start(self, progress: Progress) -> None:
        self._shown = self.last_text("genotype")
        super().on_start(progress)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        search, step = self.search, progress.step
        for cell_type, alpha in search.strategy_state.alpha.items():
            # Without the places that pad the rows of edges with fewer candidates.
            values = alpha.detach().cpu()[search.table.mask(cell_type)]
            self.histogram(f"alpha/{cell_type}", values, step)
        for cell_type, weights in search.strategy.final_weights(search.strategy_state).items():
            title, rows = f"edge weights, {cell_type} cell", search.table.rows[cell_type]
            heat_map = draw_edge_weights(title, rows, search.space.edges, weights.cpu())
            self.image(f"edge_weights/{cell_type}", heat_map.image(), step)
        genotype = search.genotype()
        text = f"```\n{genotype}\n```"
        # Painting takes long, and TensorBoard shows the last picture for the steps after it too.
        if text != self._shown:
            self.image("cells", draw_genotype(genotype).image(), step)
            self._shown = text
        self.text("genotype", text, step)
        self.flush()


class TrainingBoard(FitBoard):
    """A listener that writes the cells that are trained, and the alignment of each layer."""

    charts = {
        "training": {name: [f"train/{name}", f"epoch/test_{name}"] for name in ("loss", "accuracy")}
    }

    def __init__(
        self, training: Retraining, folder: RunFolder, alignment: Callable[[], Alignment | None]
    ) -> None:
        """Make the listener; `alignment` returns that of the ending epoch, None if not measured."""
        super().__init__(folder)
        self.training, self._alignment = training, alignment

    def introduce(self, progress: Progress) -> None:
        super().introduce(progress)
        genotype = self.training.genotype
        if genotype is not None:
            self.image("cells", draw_genotype(genotype).image(), progress.step)
            self.text("genotype", f"```\n{genotype}\n```", progress.step)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        alignment = self._alignment()
        for layer in alignment.layers if alignment is not None else ():
            for name in ("feedback_angle", "error_angle", "gradient_cosine", "gradient_variance"):
                value = getattr(layer, name)
                if value is not None:
                    self.scalar(f"{name}/{layer.depth:03}.{layer.name}", value, progress.step)
        self.flush()


class RobustnessBoard(TensorBoard):
    """The events of a measurement of robustness: accuracy against eps, figures, the report."""

    def show(
        self,
        subjects: Sequence[Subject],
        measurement: Measurement,
        accuracy: Chart,
        examples: Drawing,
        report: str,
    ) -> None:
        """Write the events of a measurement that is complete.

        Args:
            subjects: The networks.
            measurement: The measurement.
            accuracy: The figure of accuracy against eps.
            examples: The figure of attacked images.
            report: The report in Markdown.
        """
        self.open_events()
        # The steps of scalars are whole numbers: here they are eps, or 100 times eps if one of them
        # is a fraction.
        integral = all(float(eps).is_integer() for eps in measurement.plan.eps)
        for subject in subjects:
            for job in attacks_on(measurement, subject.name):
                step = round(job.level if integral else 100 * job.level)
                tag = f"{job.what}/{job.gradients}/{subject.name}"
                self.scalar(tag, measurement.accuracy(job), step)
        self.image("accuracy", accuracy.image(), 0)
        self.image("examples", examples.image(), 0)
        self.text("report", report, 0)
        self.flush()
