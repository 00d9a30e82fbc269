"""What a run leaves for people: the genotype and its figure, pictures in TensorBoard, and the next command."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Sequence

import torch

from darts_bio import __version__
from darts_bio.config import SearchConfig
from darts_bio.distributed import launcher, world_size
from darts_bio.evaluation.alignment import training_alignment
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.curves import draw_curves
from darts_bio.figures.heat_map import draw_edge_weights
from darts_bio.monitoring.monitor import Monitor
from darts_bio.networks import parameters
from darts_bio.reports.card import CARD_FILE, model_card
from darts_bio.spaces import Genotype
from darts_bio.training.engine import Numbers, Progress
from darts_bio.training.retrain import Retraining
from darts_bio.training.run_folder import RunFolder, write_text
from darts_bio.training.search import Search


class SearchMonitor(Monitor):
    """After each epoch also genotype.json and cells.svg; in TensorBoard alpha (histograms, heat maps) and the cells."""

    def __init__(self, search: Search, folder: RunFolder) -> None:
        super().__init__(folder)
        self.search = search
        self.figure_path = folder.path / "cells.svg"

    def on_start(self, progress: Progress) -> None:
        super().on_start(progress)
        config, supernet = self.search.config, self.search.supernet
        self.layout({"search": {name: [f"train/{name}", f"valid/{name}"] for name in ("loss", "accuracy")}})
        self.text("run", f"`{self.folder.command}`\n\n```yaml\n{config.to_yaml()}```", progress.step)
        tables = ", ".join(
            f"{cell_type} {rows_shape[0]} edges x {rows_shape[1]} candidates"
            for cell_type in supernet.table.rows
            for rows_shape in [supernet.table.shape(cell_type)]
        )
        self.say(
            f"search on {config.dataset}, {self.search.device}: {progress.steps} steps in {progress.epochs} epochs; "
            f"supernet of {parameters(supernet):,} weights ({tables})"
        )
        for note in self.search.notes():
            self.say(note)
        self.say(watch_line(self.folder))

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        super().on_epoch(progress, numbers)
        genotype = self.write_genotype(progress.step)
        table, edges, state = self.search.supernet.table, self.search.space.edges, self.search.strategy_state
        for cell_type, alpha in state.alpha.items():
            self.histogram(f"alpha/{cell_type}", alpha.detach().cpu()[table.mask(cell_type)], progress.step)
        for cell_type, weights in self.search.strategy.final_weights(state).items():
            title = f"edge weights, {cell_type} cell"
            heat_map = draw_edge_weights(title, table.rows[cell_type], edges, weights.cpu())
            self.image(f"edge_weights/{cell_type}", heat_map.image(), progress.step)
        self.image("cells", draw_genotype(genotype).image(), progress.step)
        self.text("genotype", f"```\n{genotype}\n```", progress.step)

    def write_genotype(self, step: int) -> Genotype:
        """Writes genotype.json and cells.svg as they stand after `step` steps."""
        genotype = self.search.genotype().with_provenance(
            command=self.folder.command,
            **self.search.config.identity(),
            steps=step,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            versions={"darts_bio": __version__, "torch": torch.__version__},
        )
        write_text(self.folder.genotype_path, genotype.to_json())
        write_text(self.figure_path, draw_genotype(genotype).svg())
        return genotype


ALIGNMENT_BATCHES = 4


class TrainingMonitor(Monitor):
    """At the start also the genotype that is trained: its figure cells.svg, and both in TensorBoard. With
    `--alignment-every` also the alignment after an epoch: its summary, and in TensorBoard every layer's. Files that
    cannot be read are named at the next record."""

    def __init__(self, training: Retraining, folder: RunFolder) -> None:
        super().__init__(folder)
        self.training = training
        self._named: set[str] = set()

    def on_start(self, progress: Progress) -> None:
        super().on_start(progress)
        config, genotype = self.training.config, self.training.genotype
        if genotype is not None:
            write_text(self.folder.path / "cells.svg", draw_genotype(genotype).svg())
            self.image("cells", draw_genotype(genotype).image(), progress.step)
        self.layout({"training": {name: [f"train/{name}", f"epoch/test_{name}"] for name in ("loss", "accuracy")}})
        self.text(
            "run", f"`{self.folder.command}`\n\n```yaml\n{config.to_yaml()}```\n\n```\n{genotype}\n```", progress.step
        )
        if progress.step == progress.steps:
            self.say(f"{self.folder.path}: done already, after {progress.epochs} epochs")
            return
        self.say(
            f"training on {config.dataset or config.data_dir}, {self.training.device}: {progress.steps} steps in "
            f"{progress.epochs} epochs; network of {parameters(self.training.network):,} parameters"
        )
        if self.training.began_with != world_size():
            self.say(
                f"goes on in {world_size()} process(es) where there were {self.training.began_with}: batch norms see "
                "other parts of a batch from here on"
            )
        self.say(watch_line(self.folder))

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        super().on_record(progress, numbers)
        self._name_damaged()

    def _name_damaged(self) -> None:
        for name, why in self.training.damaged.items():
            if name not in self._named:
                self._named.add(name)
                self.say(f"passed over, since it cannot be read: {name} ({why})")

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        self._name_damaged()
        every = self.training.config.alignment_every
        if every == 0 or (progress.epoch % every and progress.epoch != progress.epochs):
            return super().on_epoch(progress, numbers)
        alignment = training_alignment(self.training, ALIGNMENT_BATCHES)
        summary = {f"alignment/{name}": value for name, value in alignment.summary().items()}
        super().on_epoch(progress, numbers | summary)
        for layer in alignment.layers:
            for name in ("feedback_angle", "error_angle", "gradient_cosine", "gradient_variance"):
                value = getattr(layer, name)
                if value is not None:
                    self.scalar(f"{name}/{layer.depth:03}.{layer.name}", value, progress.step)
        return None

    def write_report(self, step: int) -> None:
        """Writes curves.svg and the model card report.md as they stand after `step` steps, if an epoch has ended."""
        records = [record for record in self.records_up_to(step) if record["event"] == "epoch"]
        if records:
            write_text(self.folder.path / "curves.svg", draw_curves(records).svg())
            write_text(self.folder.path / CARD_FILE, model_card(self.training, self.folder, records))


def _uv() -> list[str]:
    """`uv run` if this was started by it, which leaves its path in the environment."""
    return ["uv", "run"] if "UV" in os.environ else []


def _python() -> list[str]:
    words = launcher()
    return (_uv() or words) if words == ["python"] else [*_uv(), *words]


def watch_line(folder: RunFolder) -> str:
    """The command that shows this run and those beside it in a browser."""
    return "watch: " + shlex.join([*_uv(), "tensorboard", "--logdir", str(folder.path.parent)])


def resume_line(argv: Sequence[str], folder: RunFolder) -> str:
    """The command that goes on with a stopped run."""
    return "stopped; go on with: " + shlex.join([*_python(), argv[0], "--out", str(folder.path), "--resume"])


def retrain_line(config: SearchConfig, folder: RunFolder) -> str:
    """The command that trains the genotype a search has found."""
    where = {"--dataset": config.dataset, "--data-dir": config.data_dir, "--image-size": config.image_size}
    where["--plugin"] = ",".join(config.plugin) or None
    given = [part for flag, value in where.items() if value is not None for part in (flag, str(value))]
    command = [*_python(), "evaluate/train_cifar.py", "--genotype", str(folder.path), *given]
    return "next, train it: " + shlex.join(command)
