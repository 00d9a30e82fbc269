"""Retraining: a derived genotype's network, trained from scratch (arXiv 1806.09055, 3.2 and 3.3).

`Retraining` is the `Task` of it: with cutout, drop path, an auxiliary head, gradient accumulation,
averaged weights, mixup and cutmix, and adversarial examples, as the options say.
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
from darts_bio.config.files import (
    checked_options,
    kind_of,
    kind_of_options,
    read_yaml,
    refuse_missing_plugins,
)
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
from darts_bio.storage.checkpoint import checkpoint_of, read_checkpoint
from darts_bio.training.adversarial import ADVERSARIES, AdversarialExamples, logits_of
from darts_bio.training.engine import fitting, never, refuse_other_subject
from darts_bio.training.exported import is_export, read_export
from darts_bio.training.graphs import Recorder
from darts_bio.training.meters import Numbers, Sums, evaluate, loss_and_accuracy, measured
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.parallel import refuse_uneven_shares, running_statistics, synchronize


def config_of_run(folder: Path) -> TrainingConfig:
    """Return the options of the training that left this run folder, or whose export it is.

    Raises:
        InputError: The folder is neither, or a plug-in of the run is not imported.

    >>> config_of_run(Path("runs/none"))
    Traceback (most recent call last):
    darts_bio.errors.InputError: runs/none: expected the run folder of a training, found no \
config.yaml there
    """
    if is_export(folder):
        options = read_export(folder).options
        kind = kind_of_options(options, RetrainConfig)
        if not issubclass(kind, TrainingConfig):
            raise InputError(
                f"{folder}: expected an exported training, found options of {named(kind.command)}"
            )
        return kind(**checked_options(options, kind, folder))
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


def source_of_run(
    folder: Path,
    config: TrainingConfig,
    device: torch.device,
    data_dir: str | None,
    data: ImageData | None,
) -> Source:
    """Open what the training in a run folder was fed with, as `Retraining.of_run` is told it.

    Raises InputError, which names the folder, if it cannot be read.
    """
    try:
        return source_of(replace(config, data_dir=data_dir or config.data_dir), device, data)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def new_network(config: TrainingConfig, genotype: Genotype, source: Source) -> Network:
    """Build the network that is to be trained, its weights and feedback drawn by the run's seed.

    Args:
        config: The options of the run.
        genotype: What the network is built from.
        source: The images, whose classes, channels and size the network takes.

    Raises:
        InputError: The images are too small for the auxiliary head.
    """
    needed = AuxiliaryHead.least_image_behind(STEMS.get(config.stem))
    if config.auxiliary > 0 and min(source.image_size) < needed:
        raise InputError(
            f"--auxiliary: expected images of at least {needed}x{needed} for an auxiliary head, "
            f"found {'x'.join(map(str, source.image_size))}; use --auxiliary 0"
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

    Images of one process are mixed with each other, by the same draw in all processes.
    """

    def __init__(self, config: TrainingConfig, num_classes: int) -> None:
        """Raise InputError if a process' share of a batch is odd: timm mixes pairs."""
        from timm.data import Mixup

        if config.batch_size // world_size() % 2:
            raise InputError(
                f"--batch-size {config.batch_size}: expected an even number of images for each of "
                f"{world_size()} process(es), since mixup and cutmix mix pairs"
            )
        self._mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=num_classes,
        )
        self._seed = config.seed

    def __call__(self, t: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images of step t with each other.

        Args:
            t: The step, which the draw depends on.
            x: Images (N, C, H, W), which may be overwritten.
            labels: Labels (N,).

        Returns:
            The mixed images (N, C, H, W) and the classes' shares (N, K) of each.
        """
        with seeded(derive_seed("mix", self._seed, t)):  # timm draws from NumPy's global generator
            return self._mix(x, labels)


class Retraining:
    """The task of training a network on all training images that are not held out.

    Its result is the last epoch's, never the best one's.

    Attributes:
        network: The network that is trained.
        averaged: The moving average of the network's weights (`--ema`), or None.
        optimizer: What moves the weights.
        renewal: What renews the feedback after each update, for the rules that ask for it.
        run: The recorder that runs what a step computes.
        began_with: How many processes made the steps so far.
        genotype: The network's genotype; None of a network that has none.

    >>> from darts_bio.data.batches import Split
    >>> from darts_bio.spaces import load_genotype
    >>> split = Split(torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 2)
    >>> sizes = {"channels": 2, "layers": 3, "batch_size": 4, "epochs": 1}
    >>> config = RetrainConfig(genotype="bionas_darts", auxiliary=0.0, cutout=2, **sizes)
    >>> task = Retraining.of_genotype(
    ...     config,
    ...     load_genotype("bionas_darts"),
    ...     ImageData(split, split, ("cat", "dog")),
    ...     torch.device("cpu"),
    ... )
    >>> task.begin_epoch(0)
    >>> task.step(0)["train"].names, task.steps_per_epoch
    (('train/loss', 'train/accuracy'), 2)
    """

    def __init__(
        self, config: TrainingConfig, network: nn.Module, source: Source, device: torch.device
    ) -> None:
        """Move the network to the device, and make what trains it.

        Raises:
            InputError: The batch cannot be shared out, or options do not go together.
        """
        self.config, self.device, self.epochs, self.source = config, device, config.epochs, source
        refuse_uneven_shares(config.batch_size, world_size(), config.accumulate)
        self.network = network
        self.examples = self._maker_of_examples(config) if config.adversarial else None
        warn_of_strided_pointwise(self.network.to(device))
        self.run = source.run = Recorder(device, graphs=config.graphs)
        self.renewal = Renewal(self.network, config.seed)
        self.run.generators = self.renewal.generators
        self.optimizer = WeightOptimizer(self.network, config, self.run)
        self.mixing = Mixing(config, len(source.classes)) if config.mixup or config.cutmix else None
        self.averaged = self._averaged_copy() if config.ema else None
        self.drops_paths = False
        """Whether the network drops paths in this epoch, which a recording has to know."""
        self.began_with = world_size()
        self._damaged: dict[str, str] = {}
        """The files that could not be read, of all processes, up to the last epoch."""
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
        """Return the task of training a genotype's network on images in memory."""
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
        """Return the task of a run as its checkpoint holds it, in the epoch of its last step.

        Args:
            folder: The run's folder.
            device: Where the network is to be.
            data_dir: Where the data lie; by default where the run found them.
            data: Images in memory, if the run was made on such.

        Raises:
            InputError: The folder holds no retraining, or one of other data.
        """
        config, checkpoint = config_of_run(folder), checkpoint_of(folder)
        state = read_checkpoint(checkpoint, "train")
        source = source_of_run(folder, config, device, data_dir, data)
        network = new_network(config, read_genotype(folder / GENOTYPE_FILE), source)
        training = cls(config, network, source, device)
        with fitting(checkpoint):
            refuse_other_subject(training.subject, state["subject"], checkpoint)
            training.load_state_dict(state["task"])
            last_step = max(0, state["step"] - 1)
            training.begin_epoch(min(config.epochs - 1, last_step // training.steps_per_epoch))
        return training

    def _maker_of_examples(self, config: TrainingConfig) -> AdversarialExamples:
        """Return what makes the adversarial examples that `--adversarial` asks for.

        Raises InputError for an unknown adversary, or an option it does not have.
        """
        adversary = ADVERSARIES.build(config.adversarial)
        return AdversarialExamples(
            adversary, self.network, self.source.normalization, seed=config.seed, amp=config.amp
        )

    def _averaged_copy(self) -> Any:
        """Return a copy of the network that follows its weights as a moving average."""
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.network, decay=self.config.ema, use_warmup=True)

    # Of a `Task`: it wants all its epochs, and their ends are short.
    finished = measures = False

    def begin_epoch(self, epoch: int) -> None:
        self.optimizer.begin_epoch(epoch)
        if self.config.drop_path and isinstance(self.network, Network):
            # Grows linearly from 0 over the epochs, as in the published training.
            probability = self.config.drop_path * epoch / self.epochs
            self.network.set_drop_path(probability)
            self.drops_paths = probability > 0
        self.run.begin_epoch()

    def step(self, t: int) -> dict[str, Sums]:
        """Move the weights, then renew the feedback; return what the training batch was worth.

        What is computed in between is run by the recorder.
        """
        x, labels = self.source.batch(t)
        targets = labels
        if self.mixing is not None:
            x, targets = self.mixing(t, x, labels)
        starts: list[Tensor] = []
        if self.examples is not None:
            # Several processes make their examples with the same statistics, also if these were not
            # synchronized for many steps.
            average(running_statistics(self.network))
            starts.append(self.examples.starts(t, x))
        sums = self.run(self._gradients, x, targets, *starts, situation=self.drops_paths)
        self.optimizer.update()
        if self.averaged is not None:
            self.averaged.update(self.network, t + 1)
        self.renewal(t + 1, self.run)
        return {"train": measured("train", sums, len(labels))}

    def _gradients(self, x: Tensor, targets: Tensor, *starts: Tensor) -> Tensor:
        """Set the weights' gradients, by parts of the batch; return `loss_and_accuracy`.

        All adversarial examples are made before the first pass in training, which moves the
        statistics of batch norms that they are made with.

        Args:
            x: Images (N, C, H, W).
            targets: Labels (N,), or the classes' shares (N, K).
            starts: Where adversarial examples begin (N, C, H, W), if there are any.
        """
        count = self.config.accumulate
        parts = list(zip(x.chunk(count), targets.chunk(count), strict=True))
        examples: list[Tensor | None] = [None] * count
        if self.examples is not None:
            (start,) = starts
            examples = [
                self.examples.made(part_x, part_targets, part_start)
                for (part_x, part_targets), part_start in zip(
                    parts, start.chunk(count), strict=True
                )
            ]
        outputs: list[Tensor] = []

        # A generator, so that the passes of one part at a time are kept for its gradient.
        def losses() -> Iterator[Tensor]:
            for (part_x, part_targets), example in zip(parts, examples, strict=True):
                logits, loss = self._pass(part_x, part_targets, example)
                outputs.append(logits.detach())
                yield loss / count

        self.optimizer.differentiate(losses())
        return loss_and_accuracy(torch.cat(outputs), targets)

    def _pass(self, x: Tensor, targets: Tensor, example: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) that accuracy is counted by, and the loss.

        Against an adversary these are the examples' logits, or the clean images' if it needs them.
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
        """Return the network's output for images (N, C, H, W), in the run's precision."""
        with autocast(self.device, self.config.amp):
            return self.network(x)

    def loss(self, output: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Return the cross entropy, plus the auxiliary head's times its weight.

        Args:
            output: Logits (N, K), or these and the auxiliary head's.
            targets: Labels (N,), which are smoothed here, or the classes' shares (N, K).
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
        """Files that could not be read, with the reasons.

        Those that this process has met, and the others' up to the last epoch.
        """
        return self._damaged | dict(self.source.damaged)

    def slow_down(self, factor: float) -> None:
        self.optimizer.scale = factor

    def cause(self) -> str:
        return ""

    def learning_rates(self) -> Numbers:
        return {"lr/weights": self.optimizer.lr}

    def synchronize(self) -> None:
        """Average batch norms' statistics over the processes, and compare everything else.

        Raises InputError if that is not the same in all.
        (Adversarial examples depend on these statistics, and have them averaged at each step.)
        """
        synchronize(self._networks, {})

    def statistics(self) -> list[Tensor]:
        """Return batch norms' running statistics, which `synchronize` averages."""
        return [tensor for each in self._networks for tensor in running_statistics(each)]

    @property
    def _networks(self) -> list[nn.Module]:
        """The network that is trained and, if there is one, that of averaged weights."""
        return [self.network] + ([] if self.averaged is None else [self.averaged.module])

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        """Return the loss and accuracy on the images that are held out, else on the test images.

        With held-out images the test images are used once, after the last epoch, or never.
        """
        splits: list[Measured] = ["valid"] if self.config.holdout else ["test"]
        if self.config.holdout and self.config.test_at_end and epoch == self.epochs - 1:
            splits.append("test")
        amp = self.config.amp
        numbers: Numbers = {}
        for split in splits:
            numbers |= evaluate(self.network, self.source.measured(split), prefix=split, amp=amp)
            if self.averaged is not None:
                numbers |= evaluate(
                    self.averaged.module,
                    self.source.measured(split),
                    prefix=f"{split}_averaged",
                    amp=amp,
                )
        for damaged in gathered(dict(self.source.damaged)):
            self._damaged |= damaged
        if self._damaged:
            numbers["data/damaged_files"] = float(len(self._damaged))
        return numbers

    @property
    def result(self) -> str:
        """The name of the number that a run is made for.

        It is the accuracy on the test images, or on those held out where the test images are never
        measured; of the averaged network if there is one.
        """
        part = "test" if self.config.test_at_end else "valid"
        return f"{part}/accuracy" if self.averaged is None else f"{part}_averaged/accuracy"

    @property
    def result_in_words(self) -> str:
        """What `result` is called in a sentence."""
        accuracy = "test accuracy" if self.config.test_at_end else "accuracy on held-out images"
        return accuracy + (" of the averaged network" if self.averaged is not None else "")

    @property
    def images_measured(self) -> int:
        """The number of images that `result` is measured on; 0 if it is unknown."""
        return self.source.count("test" if self.config.test_at_end else "valid")

    def state_dict(self) -> dict[str, Any]:
        """Return what the training needs to go on, and what `load_trained` needs to use it."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # For those who use the trained network without the files and the data it was made from.
            "classes": list(self.source.classes),
            "normalisation": {
                "mean": self.source.normalization.mean,
                "std": self.source.normalization.std,
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
        self.began_with = state.get("processes", 1)  # not in checkpoints of earlier versions
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state["averaged"])
