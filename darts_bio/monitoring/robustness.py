"""The TensorBoard events of a measurement of robustness."""

from __future__ import annotations

from collections.abc import Sequence

from darts_bio.evaluation.robustness import Measurement
from darts_bio.evaluation.subjects import Subject
from darts_bio.figures.charts import Chart
from darts_bio.figures.drawing import Drawing
from darts_bio.monitoring.tensorboard import TensorBoard, clean
from darts_bio.reports.robustness import attacks_on


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
        charts: dict[str, list[str]] = {}
        for subject in subjects:
            for job in attacks_on(measurement, subject.name):
                step = round(job.level if integral else 100 * job.level)
                attack = f"{job.what}/{job.gradients}"
                self.scalars({f"{attack}/{subject.name}": measurement.accuracy(job)}, step)
                charts[f"{job.what}, {job.gradients} gradient"] = [f"{clean(attack)}/"]
        self.layout({"accuracy against eps": charts})
        self.image("accuracy", accuracy.image(), 0)
        self.image("examples", examples.image(), 0)
        self.text("report", report, 0)
        self.flush()
