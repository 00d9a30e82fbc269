"""The task of a search: in each step the strategy moves alpha, then SGD moves w (arXiv 1806.09055, algorithm 1)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.config import SearchConfig
from darts_bio.networks import EdgeWeights, FoldedCell, MixedCell, SuperNet
from darts_bio.registry import canonical_spec
from darts_bio.rules import RULES, draw_feedback, true_gradients
from darts_bio.runtime import autocast, derive_seed
from darts_bio.spaces import SPACES, Genotype, Space
from darts_bio.strategies import STRATEGIES, Batch, Bilevel, Context, Strategy
from darts_bio.training.data import Augmentation, Batches, ImageData, Normalisation, halves
from darts_bio.training.engine import Numbers, loss_and_accuracy
from darts_bio.training.graphs import on_device
from darts_bio.training.optim import WeightOptimizer


class Search:
    """A supernet's weights w and a strategy's alpha, trained together on two halves of the training images."""

    def __init__(self, config: SearchConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.device, self.epochs = config, device, config.epochs
        self.space: Space = SPACES.build(config.space)
        for rule in (*config.rules, config.backbone_rule):
            RULES.build(rule)
        torch.manual_seed(derive_seed("weights", config.seed))
        self.supernet = SuperNet(
            self.space,
            config.rules,
            channels=config.channels,
            layers=config.layers,
            num_classes=len(data.classes),
            in_channels=data.in_channels,
            backbone_rule=config.backbone_rule,
            cell=FoldedCell if config.memory == "low" else MixedCell,
        ).to(device)
        draw_feedback(self.supernet, config.seed)
        self.passes = on_device(self.supernet, device, config.graphs)
        self.optimizer = WeightOptimizer(self.supernet, config)
        augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
        normalisation = Normalisation.of(data.train.images)
        self.train_batches, self.valid_batches = (
            Batches(
                half,
                config.batch_size,
                normalisation,
                augmentation,
                seed=config.seed,
                name=name,
                device=device,
            )
            for name, half in zip(("train", "valid"), halves(data.train, config.seed), strict=True)
        )
        self.subject = {"data set": data.identity()}
        self.steps_per_epoch = self.train_batches.per_epoch
        self.images_per_step = 2 * config.batch_size
        context = Context(self.space, self.supernet.table, config.seed, device, self.epochs, self.steps_per_epoch)
        self.strategy: Strategy = STRATEGIES.build(config.strategy, context)

    def begin_epoch(self, epoch: int) -> None:
        self.optimizer.begin_epoch(epoch)
        self.strategy.begin_epoch(epoch)

    def step(self, t: int) -> dict[str, tuple[Tensor, int]]:
        train_batch, valid_batch = self.train_batches.batch(t), self.valid_batches.batch(t)
        bilevel = Bilevel(self.supernet, train_batch, valid_batch, self._weight_loss, self._architecture_loss)
        valid_logits = self.strategy.step(bilevel)
        edge_weights = {cell_type: weights.detach() for cell_type, weights in self.strategy.edge_weights().items()}
        loss, logits = self._weight_loss(train_batch, edge_weights)
        self.optimizer.step(loss)
        draw_feedback(self.supernet, self.config.seed, t + 1)
        numbers = loss_and_accuracy("train", logits, train_batch[1])
        if valid_logits is not None:
            numbers |= loss_and_accuracy("valid", valid_logits, valid_batch[1])
        return numbers

    def _weight_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.config.amp):
            logits = self.passes(batch[0], edge_weights).float()
        return F.cross_entropy(logits, batch[1]), logits

    def _architecture_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        exact = self.config.arch_gradient == "true"
        with true_gradients(self.supernet) if exact else contextlib.nullcontext():
            return self._weight_loss(batch, edge_weights)

    def learning_rates(self) -> Numbers:
        rates = {"weights": self.optimizer.lr, **self.strategy.learning_rates()}
        return {f"lr/{name}": rate for name, rate in rates.items()}

    def end_epoch(self, epoch: int) -> Numbers:
        return {}

    def genotype(self) -> Genotype:
        """The genotype that alpha stands for now."""
        cells = self.space.derive(self.strategy.final_weights(), self.supernet.table)
        return Genotype(canonical_spec(self.config.space), cells, self.config.backbone_rule)

    def state_dict(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy.load_state_dict(state["strategy"])
