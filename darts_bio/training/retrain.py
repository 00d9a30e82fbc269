"""The task of retraining: a genotype's discrete network from scratch (arXiv 1806.09055, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.command_line import import_plugins, read_yaml
from darts_bio.config import CONFIG_FILE, RetrainConfig
from darts_bio.errors import InputError
from darts_bio.networks import AuxiliaryHead, CifarStem, build_network
from darts_bio.rules import draw_feedback
from darts_bio.runtime import autocast, derive_seed
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.training.data import Augmentation, Batches, ImageData, Normalisation, in_order, load_data
from darts_bio.training.engine import Numbers, evaluate, fitting, loss_and_accuracy, never, refuse_other_subject
from darts_bio.training.graphs import on_device
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.run_folder import CHECKPOINT_FILE, read_checkpoint

EVALUATION_BATCH = 500


class Retraining:
    """A discrete network, trained on all training images. The result is the last epoch's, never the best one's."""

    def __init__(self, config: RetrainConfig, genotype: Genotype, data: ImageData, device: torch.device) -> None:
        self.config, self.device, self.epochs = config, device, config.epochs
        needed = AuxiliaryHead.least_image_behind(CifarStem)
        if config.auxiliary > 0 and min(data.image_size) < needed:
            raise InputError(
                f"--auxiliary: expected images of at least {needed}x{needed} for an auxiliary head, found "
                f"{'x'.join(map(str, data.image_size))}; use --auxiliary 0"
            )
        torch.manual_seed(derive_seed("weights", config.seed))
        self.form = {
            "channels": config.channels,
            "layers": config.layers,
            "num_classes": len(data.classes),
            "in_channels": data.in_channels,
            "auxiliary": config.auxiliary > 0,
            "stem": "cifar",
        }
        self.image_size = data.image_size
        self.network = build_network(genotype, **self.form, seed=config.seed).to(device)  # type: ignore[arg-type]
        self.passes = on_device(self.network, device, config.graphs)
        self.optimizer = WeightOptimizer(self.network, config)
        self.subject = {
            "data set": data.identity(),
            "genotype": genotype.identity(),
        }
        self.normalisation = Normalisation.of(data.train.images).to(device)
        self.classes, self.test = data.classes, data.test.to(device)
        self.batches = Batches(
            data.train,
            config.batch_size,
            self.normalisation,
            Augmentation(config.crop_padding, config.flip, config.cutout),
            seed=config.seed,
            name="train",
            device=device,
        )
        self.steps_per_epoch = self.batches.per_epoch
        self.images_per_step = config.batch_size

    @classmethod
    def of_run(cls, folder: Path, device: torch.device, data_dir: str | None = None) -> Retraining:
        """A run as its checkpoint holds it, with the data of `data_dir` (by default where the run found them).

        Raises InputError if the folder holds no retraining, or one of other data.
        """
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(
                f"{folder}: expected the run folder of evaluate/train_cifar.py, found no {CONFIG_FILE} there"
            )
        config = RetrainConfig(**read_yaml(folder / CONFIG_FILE, RetrainConfig))
        import_plugins(config.plugin)
        checkpoint = folder / CHECKPOINT_FILE
        state = read_checkpoint(checkpoint, "train")
        data = load_data(
            config.dataset, data_dir or config.data_dir, config.image_size, config.train_images, config.seed
        )
        training = cls(config, read_genotype(folder / GENOTYPE_FILE), data, device)
        with fitting(checkpoint):
            refuse_other_subject(training.subject, state["subject"], checkpoint)
            training.load_state_dict(state["task"])
            training.begin_epoch(min(config.epochs - 1, max(0, state["step"] - 1) // training.steps_per_epoch))
        return training

    finished = measures = False

    def begin_epoch(self, epoch: int) -> None:
        self.optimizer.begin_epoch(epoch)
        self.network.set_drop_path(self.config.drop_path * epoch / self.epochs)

    def step(self, t: int) -> dict[str, tuple[Tensor, int]]:
        x, labels = self.batches.batch(t)
        with autocast(self.device, self.config.amp):
            output = self.passes(x)
        logits = output[0] if isinstance(output, tuple) else output
        self.optimizer.step(self.loss(output, labels))
        draw_feedback(self.network, self.config.seed, t + 1)
        return loss_and_accuracy("train", logits, labels)

    def loss(self, output: Tensor | tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Cross entropy of what the network gives in training, the auxiliary head's by its weight."""
        logits, auxiliary = output if isinstance(output, tuple) else (output, None)
        loss = F.cross_entropy(logits.float(), labels)
        if auxiliary is not None:
            loss = loss + self.config.auxiliary * F.cross_entropy(auxiliary.float(), labels)
        return loss

    def learning_rates(self) -> Numbers:
        return {"lr/weights": self.optimizer.lr}

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        batches = in_order(self.test, EVALUATION_BATCH, self.normalisation)
        return evaluate(self.network, batches, prefix="test", amp=self.config.amp)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            # For those who use the trained network without the files and the data it was made from.
            "genotype": self.network.genotype.to_json(),
            "form": dict(self.form),
            "image_size": list(self.image_size),
            "classes": list(self.classes),
            "normalisation": {"mean": self.normalisation.mean, "std": self.normalisation.std},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
