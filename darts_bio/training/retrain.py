"""The task of retraining: a discrete network from scratch (arXiv 1806.09055, sections 3.2 and
3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.config import CONFIG_FILE, RetrainConfig, TrainingConfig
from darts_bio.config.files import kind_of, read_yaml, refuse_missing_plugins
from darts_bio.data.batches import Measured
from darts_bio.data.datasets import ImageData
from darts_bio.data.sources import InMemory, Source, source_of
from darts_bio.distributed import average, gathered, world_size
from darts_bio.errors import InputError
from darts_bio.invocation import named
from darts_bio.networks import STEMS, AuxiliaryHead, Network, build_network
from darts_bio.rules import Renewal
from darts_bio.rules.pointwise import warn_of_strided_pointwise
from darts_bio.runtime import autocast, derive_seed, seeded
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.training.adversarial import ADVERSARIES, AdversarialExamples, logits_of
from darts_bio.training.engine import (
    Numbers,
    Sums,
    evaluate,
    fitting,
    loss_and_accuracy,
    measured,
    never,
    refuse_other_subject,
)
from darts_bio.training.graphs import Recorder
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.parallel import refuse_uneven_shares, running_statistics, synchronise
from darts_bio.training.run_folder import checkpoint_of, read_checkpoint


def config_of_run(folder: Path) -> TrainingConfig:
    """Read the options of a training. Raises InputError if the folder is not that of one, or lacks
    its plug-ins.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the run folder of a training, found no {CONFIG_FILE} there"
        )
    kind = kind_of(path, RetrainConfig)
    if not issubclass(kind, TrainingConfig):
        raise InputError(
            f"{folder}: expected the run folder of a training, found a run of {named(kind.command)}"
        )
    refuse_missing_plugins(folder)
    return kind(**read_yaml(path, kind))


def new_network(config: TrainingConfig, genotype: Genotype, source: Source) -> Network:
    """The network that is to be trained, its weights and feedback drawn by the seed.

    Raises InputError if the images are too small for its auxiliary head.
    """
    needed = AuxiliaryHead.least_image_behind(STEMS.get(config.stem))
    if config.auxiliary > 0 and min(source.image_size) < needed:
        raise InputError(
            f"--auxiliary: expected images of at least {needed}x{needed} for an auxiliary head, "
            "found "
            f"{'x'.join(map(str, source.image_size))}; use --auxiliary 0"
        )
    torch.manual_seed(derive_seed("weights", config.seed))
    return build_network(
        genotype,
        channels=config.channels,
        layers=config.layers,
        num_classes=len(source.classes),
        in_channels=source.in_channels,
        auxiliary=config.auxiliary > 0,
        stem=config.stem,
        seed=config.seed,
    )


class Mixing:
    """Mixup and cutmix through timm, drawn anew for each batch (arXiv 1710.09412, 1905.04899).

    Images of one process are mixed with each other, by the same draw in all.
    """

    def __init__(self, config: TrainingConfig, num_classes: int) -> None:
        """Raises InputError if a process' share of a batch is odd: timm mixes pairs."""
        from timm.data import Mixup

        if config.batch_size // world_size() % 2:
            raise InputError(
                f"--batch-size {config.batch_size}: expected an even number of images for each of "
                f"{world_size()} "
                "process(es), since mixup and cutmix mix pairs"
            )
        self._mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=num_classes,
        )
        self._seed = config.seed

    def __call__(self, t: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), which may be overwritten, and labels (N,), to images and the
        classes' shares (N, K).
        """
        with seeded(derive_seed("mix", self._seed, t)):  # timm draws from NumPy's global generator
            return self._mix(x, labels)


class Retraining:
    """A network, trained on all training images that are not held out. The result is the last
    epoch's, never the best one's.
    """

    def __init__(
        self, config: TrainingConfig, network: nn.Module, source: Source, device: torch.device
    ) -> None:
        """Raises InputError if the batch cannot be shared out, and for options that do not go
        together.
        """
        self.config, self.device, self.epochs, self.source = config, device, config.epochs, source
        refuse_uneven_shares(config.batch_size, world_size(), config.accumulate)
        self.network = network
        self.examples = self._against(config) if config.adversarial else None
        warn_of_strided_pointwise(self.network.to(device))
        self.run = source.run = Recorder(device, graphs=config.graphs)
        self.renewal = Renewal(self.network, config.seed)
        self.run.generators = self.renewal.generators
        self.optimizer = WeightOptimizer(self.network, config, self.run)
        self.mixing = Mixing(config, len(source.classes)) if config.mixup or config.cutmix else None
        self.averaged = self._average() if config.ema else None
        self.drops_paths = False
        self.began_with = world_size()
        """How many processes made the steps so far."""
        self._damaged: dict[str, str] = {}
        self.genotype = network.genotype if isinstance(network, Network) else None
        self.subject = {"data set": source.identity()}
        if self.genotype is not None:
            self.subject["genotype"] = self.genotype.identity()
        self.steps_per_epoch = source.per_epoch
        self.images_per_step = config.batch_size

    @classmethod
    def of_genotype(
        cls, config: RetrainConfig, genotype: Genotype, data: ImageData, device: torch.device
    ) -> Retraining:
        """That of a genotype's network on images in memory."""
        source = InMemory(data, config, device)
        return cls(config, new_network(config, genotype, source), source, device)

    @classmethod
    def of_run(
        cls,
        folder: Path,
        device: torch.device,
        data_dir: str | None = None,
        data: ImageData | None = None,
    ) -> Retraining:
        """Read a run as its checkpoint holds it, with the data of `data_dir` (by default where the
        run found them), or those that were handed over.

        Raises InputError if the folder holds no retraining, or one of other data.
        """
        config, checkpoint = config_of_run(folder), checkpoint_of(folder)
        state = read_checkpoint(checkpoint, "train")
        source = source_of(replace(config, data_dir=data_dir or config.data_dir), device, data)
        network = new_network(config, read_genotype(folder / GENOTYPE_FILE), source)
        training = cls(config, network, source, device)
        with fitting(checkpoint):
            refuse_other_subject(training.subject, state["subject"], checkpoint)
            training.load_state_dict(state["task"])
            training.begin_epoch(
                min(config.epochs - 1, max(0, state["step"] - 1) // training.steps_per_epoch)
            )
        return training

    def _against(self, config: TrainingConfig) -> AdversarialExamples:
        """Raises InputError for an unknown adversary, or an option it does not have."""
        adversary = ADVERSARIES.build(config.adversarial)
        return AdversarialExamples(
            adversary, self.network, self.source.normalisation, seed=config.seed, amp=config.amp
        )

    def _average(self) -> Any:
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.network, decay=self.config.ema, use_warmup=True)

    finished = measures = False

    def begin_epoch(self, epoch: int) -> None:
        self.optimizer.begin_epoch(epoch)
        if self.config.drop_path and isinstance(self.network, Network):
            probability = self.config.drop_path * epoch / self.epochs
            self.network.set_drop_path(probability)
            self.drops_paths = probability > 0
        self.run.begin_epoch()

    def step(self, t: int) -> dict[str, Sums]:
        """Move the weights, then renew the feedback. What is computed in between is run by the
        recorder.
        """
        x, labels = self.source.batch(t)
        targets = labels
        if self.mixing is not None:
            x, targets = self.mixing(t, x, labels)
        drawn: list[Tensor] = []
        if self.examples is not None:
            # By several processes they are made with the same statistics, however long ago these
            # were averaged.
            average(running_statistics(self.network))
            drawn.append(self.examples.starts(t, x))
        seen = self.run(self._gradients, x, targets, *drawn, situation=self.drops_paths)
        self.optimizer.update()
        if self.averaged is not None:
            self.averaged.update(self.network, t + 1)
        self.renewal(t + 1, self.run)
        return {"train": measured("train", seen, len(labels))}

    def _gradients(self, x: Tensor, targets: Tensor, *starts: Tensor) -> Tensor:
        """Compute the weights' gradients, by parts of the batch, and return what it was worth.

        `starts` says where adversarial examples begin. All are made before the first pass in
        training, which moves the statistics of batch norms that they are made with.
        """
        count = self.config.accumulate
        parts = list(zip(x.chunk(count), targets.chunk(count), strict=True))
        examples: list[Tensor | None] = [None] * count
        if self.examples is not None:
            starting = starts[0].chunk(count)
            examples = [
                self.examples.made(*part, start)
                for part, start in zip(parts, starting, strict=True)
            ]
        outputs: list[Tensor] = []

        def losses() -> Iterator[Tensor]:
            for (part, wanted), example in zip(parts, examples, strict=True):
                logits, loss = self._pass(part, wanted, example)
                outputs.append(logits.detach())
                yield loss / count

        self.optimizer.differentiate(losses())
        return loss_and_accuracy(torch.cat(outputs), targets)

    def _pass(self, x: Tensor, targets: Tensor, example: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits that are counted, and the loss. Against an adversary these are the examples',
        unless it needs the clean images too: then theirs.
        """
        if self.examples is None or example is None:
            output = self._forward(x)
            return logits_of(output), self.loss(output, targets)
        adversary = self.examples.adversary
        clean = self._forward(x) if adversary.needs_clean else None
        output = self._forward(example)
        loss = adversary.loss(output, clean, targets, self.loss)
        return logits_of(output if clean is None else clean), loss

    def _forward(self, x: Tensor) -> Any:
        with autocast(self.device, self.config.amp):
            return self.network(x)

    def loss(self, output: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Cross entropy of what the network gives in training, the auxiliary head's by its weight.

        targets: labels (N,), which are smoothed here, or the classes' shares (N, K).
        """
        logits, auxiliary = output if isinstance(output, tuple) else (output, None)
        smoothing = self.config.label_smoothing if targets.dim() == 1 else 0.0
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary * F.cross_entropy(
                auxiliary.float(), targets, label_smoothing=smoothing
            )
        return loss

    @property
    def damaged(self) -> dict[str, str]:
        """Files that could not be read, and why: those this process has met, and the others' up to
        the last epoch.
        """
        return self._damaged | dict(self.source.damaged)

    def learning_rates(self) -> Numbers:
        return {"lr/weights": self.optimizer.lr}

    def synchronise(self) -> None:
        """Averages batch norms' statistics over the processes, and makes sure that nothing else
        differs.

        (Adversarial examples depend on these statistics, and have them averaged at each step.)
        """
        synchronise(
            [self.network] if self.averaged is None else [self.network, self.averaged.module], {}
        )

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        parts: list[Measured] = ["valid"] if self.config.holdout else ["test"]
        if self.config.holdout and epoch == self.epochs - 1:
            parts.append("test")
        numbers: Numbers = {}
        for part in parts:
            numbers |= evaluate(
                self.network, self.source.measured(part), prefix=part, amp=self.config.amp
            )
            if self.averaged is not None:
                averaged = self.averaged.module
                numbers |= evaluate(
                    averaged,
                    self.source.measured(part),
                    prefix=f"{part}_averaged",
                    amp=self.config.amp,
                )
        for theirs in gathered(dict(self.source.damaged)):
            self._damaged |= theirs
        return numbers | (
            {"data/damaged_files": float(len(self._damaged))} if self._damaged else {}
        )

    @property
    def result(self) -> str:
        """The name of the number that a run is made for: the test accuracy, of the averaged network
        if there is one.
        """
        return "test/accuracy" if self.averaged is None else "test_averaged/accuracy"

    @property
    def result_in_words(self) -> str:
        return "test accuracy" + (" of the averaged network" if self.averaged is not None else "")

    def state_dict(self) -> dict[str, Any]:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # For those who use the trained network without the files and the data it was made from.
            "classes": list(self.source.classes),
            "normalisation": {
                "mean": self.source.normalisation.mean,
                "std": self.source.normalisation.std,
            },
            "image_size": list(self.source.image_size),
            "processes": world_size(),
        }
        if isinstance(self.network, Network):
            state |= {"genotype": self.network.genotype.to_json(), "form": dict(self.network.form)}
        if self.averaged is not None:
            state["averaged"] = self.averaged.module.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.began_with = state.get("processes", 1)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state["averaged"])
