"""The task of a search: in each step the strategy moves alpha, then SGD moves w (arXiv 1806.09055,
algorithm 1).

Of several processes each takes its share of both batches, and the gradients of alpha and of w are
averaged before they are followed. Where a strategy measures individuals, each process measures
some, and trains w on whole batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.config import SearchConfig
from darts_bio.data.batches import Augmentation, Batches, Normalisation
from darts_bio.data.datasets import ImageData, halves
from darts_bio.distributed import average, from_first, mean_of_all, rank, summed, world_size
from darts_bio.errors import InputError, first_line
from darts_bio.networks import EdgeWeights, FoldedCell, MixedCell, SuperNet
from darts_bio.registry import canonical_spec
from darts_bio.rules import RULES, Renewal, draw_feedback, true_gradients
from darts_bio.rules.pointwise import warn_of_strided_pointwise
from darts_bio.runtime import autocast, call, derive_seed, precision_notes
from darts_bio.spaces import SPACES, Cell, Genotype, Space
from darts_bio.strategies import (
    REGULARIZERS,
    STRATEGIES,
    Batch,
    Bilevel,
    Context,
    Objective,
    Regularizer,
    Strategy,
    StrategyState,
    detached,
    frozen,
)
from darts_bio.training.engine import (
    Interrupted,
    Numbers,
    Sums,
    loss_and_accuracy,
    measured,
    named_tensors,
    never,
)
from darts_bio.training.graphs import Recorder
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.parallel import refuse_uneven_shares, shared_otherwise, synchronise
from darts_bio.training.run_folder import CHECKPOINT_FILE, read_checkpoint

TOGETHER = {"cpu": 1, "cuda": 16}
"""Individuals whose passes are computed as one, at most: a GPU is idle in a small pass, a CPU is
not."""


class Search:
    """A supernet's weights w and a strategy's alpha, trained together on two halves of the training
    images.
    """

    def __init__(self, config: SearchConfig, data: ImageData, device: torch.device) -> None:
        self.config, self.device, self.epochs = config, device, config.epochs
        self.run = Recorder(device, graphs=config.graphs)
        self.space: Space = SPACES.build(config.space)
        for rule in (*config.rules, config.backbone_rule):
            RULES.build(rule)
        augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
        normalisation = Normalisation.of(data.train.images)
        self.strategy: Strategy[Any] = STRATEGIES.build(config.strategy)
        # Where individuals are measured, by each process some, all train w alike.
        self.share = (0, 1) if self.strategy.measures else (rank(), world_size())
        """This process' part of each batch: its number, and how many parts there are."""
        self.began_with = self.share[1]
        """Into how many parts the batches of the steps so far were shared out."""
        refuse_uneven_shares(config.batch_size, self.share[1])
        self.train_batches, self.valid_batches = (
            Batches(
                half,
                config.batch_size,
                normalisation,
                augmentation,
                seed=config.seed,
                name=name,
                device=device,
                run=self.run,
                share=self.share,
            )
            for name, half in zip(("train", "valid"), halves(data.train, config.seed), strict=True)
        )
        self.subject = {"data set": data.identity()}
        self.steps_per_epoch = self.train_batches.per_epoch
        self.images_per_step = 2 * config.batch_size
        self.table = self.space.table(config.rules)
        context = Context(
            self.space,
            self.table,
            config.seed,
            device,
            self.epochs,
            self.steps_per_epoch,
            recorded=self.run.records,
        )
        self.regularizers: list[Regularizer[Any]] = [
            REGULARIZERS.build(spec) for spec in config.regularizers
        ]
        self.regularizer_states = [regularizer.begin(context) for regularizer in self.regularizers]
        context = replace(context, factorised=any(r.factorised for r in self.regularizers))
        self.strategy_state: StrategyState = self.strategy.begin(context)
        for regularizer in self.regularizers:
            regularizer.accept(self.strategy)
        asked = [r.warmup_epochs for r in self.regularizers if r.warmup_epochs is not None]
        if len(asked) > 1:
            raise InputError(
                f"--regularizers: expected one warmup, found {len(asked)}; leave out all but one"
            )
        self.warmup_epochs = (
            asked[0] if asked else round(self.strategy.warmup_share(self.epochs) * self.epochs)
        )
        self.objective = Objective(
            config.objective,
            self.space,
            self.table,
            channels=config.channels,
            layers=config.layers,
            image_size=data.image_size,
            device=device,
        )
        torch.manual_seed(derive_seed("weights", config.seed))
        self.supernet = SuperNet(
            self.space,
            config.rules,
            channels=config.channels,
            layers=config.layers,
            num_classes=len(data.classes),
            in_channels=data.in_channels,
            backbone_rule=config.backbone_rule,
            partial=self.strategy.partial,
            cell=FoldedCell if config.memory == "low" else MixedCell,
        )
        warn_of_strided_pointwise(self.supernet.to(device))
        draw_feedback(self.supernet, config.seed)
        self.renewal = Renewal(self.supernet, config.seed)
        self.run.generators = [*self.strategy_state.generators, *self.renewal.generators]
        self.optimizer = WeightOptimizer(self.supernet, config, self.run)
        # A pass of autograd Functions of its own cannot be batched.
        self.together = 1 if config.memory == "low" else TOGETHER[device.type]
        self.stopped = False
        idle = [name for name in ("regularizers", "objective", "supernet") if getattr(config, name)]
        if self.strategy.finished and idle:
            raise InputError(
                f"--{idle[0]}: has no say with --strategy {config.strategy}, which trains nothing; "
                "leave it out"
            )
        if config.supernet and not config.resume:
            self._begin_with(Path(config.supernet))

    def _begin_with(self, folder: Path) -> None:
        """Takes over the supernet of another run, and of its strategy's state what this strategy
        wants of it.
        """
        task = read_checkpoint(folder / CHECKPOINT_FILE, "search").get("task", {})
        try:
            self.supernet.load_state_dict(task["supernet"])
            self.strategy_state.begin_with(task["strategy"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"--supernet {folder}: that run's supernet is not one of this search "
                f"({first_line(error)}); use its "
                "--space, --rules, --channels, --layers and --memory, and for darts_pt its "
                "strategy as base"
            ) from None

    @property
    def measures(self) -> bool:
        return self.strategy.measures

    @property
    def finished(self) -> bool:
        """Whether no further epoch is wanted: by the strategy, or by a regularizer."""
        return self.strategy.finished or self.stopped

    def notes(self) -> list[str]:
        """What the user is to know of this search before it begins."""
        notes = self.strategy.notes(self.strategy_state, self.config.rules)
        notes += precision_notes(self.device, self.config.amp)
        if self.strategy.finished:
            notes.append("nothing is trained: the genotype is there at once")
        elif self.warmup_epochs:
            notes.append(f"alpha stays as it is for the first {self.warmup_epochs} epochs")
        if self.share[1] > 1 and not self.strategy.finished:
            notes.append(
                f"each of {self.share[1]} processes takes "
                f"{self.config.batch_size // self.share[1]} of a "
                f"batch's {self.config.batch_size} images"
            )
        if self.began_with != self.share[1]:
            notes.append(shared_otherwise(self.began_with, self.share[1]))
        return notes

    def begin_epoch(self, epoch: int) -> None:
        self.optimizer.begin_epoch(epoch)
        self.strategy.begin_epoch(self.strategy_state, epoch)
        self.run.begin_epoch()

    def step(self, t: int) -> dict[str, Sums]:
        """Move alpha, then w, then renew the feedback. What is computed in between is run by the
        recorder.
        """
        train, valid = self.train_batches.batch(t), self.valid_batches.batch(t)
        strategy, state = self.strategy, self.strategy_state
        sums: dict[str, Sums] = {}
        descends = strategy.descends(state)
        if descends and t // self.steps_per_epoch >= self.warmup_epochs:
            strategy.prepare(state)
            # What meets other processes within cannot be recorded.
            run = call if strategy.exchanges and world_size() > 1 else self.run
            gradients, seen = run(self._alpha_gradients, *train, *valid)
            average(gradients)
            self.run(self._move_alpha, *gradients)
            sums["valid"] = measured("valid", seen, len(valid[1]))
        strategy.prepare(state)
        lent = self.run(self._edge_weights) if descends else self._edge_weights()
        seen = self.run(self._weight_gradients, *train, *lent)
        self.optimizer.update()
        self.renewal(t + 1, self.run)
        return {"train": measured("train", seen, len(train[1]))} | sums

    def _alpha_gradients(self, *batches: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """The gradients that alpha follows, and what the validation batch was worth."""
        x, labels, valid_x, valid_labels = batches
        bilevel = Bilevel(
            self.supernet,
            (x, labels),
            (valid_x, valid_labels),
            self._weight_loss,
            self._architecture_loss,
            self._penalty,
            self.optimizer.weights,
            self.optimizer.virtual_step,
        )
        gradients, logits = self.strategy.gradients(self.strategy_state, bilevel)
        return tuple(gradients), loss_and_accuracy(logits, valid_labels)

    def _move_alpha(self, *gradients: Tensor) -> None:
        self.strategy.move(self.strategy_state, gradients)

    def _edge_weights(self) -> tuple[Tensor, ...]:
        """What the supernet is lent while w is trained, in the order of its cell types."""
        lent = detached(self.strategy.edge_weights(self.strategy_state))
        return tuple(lent[t] for t in self.table.rows)

    def _weight_gradients(self, x: Tensor, labels: Tensor, *lent: Tensor) -> Tensor:
        """Compute w's gradients, and return what the training batch was worth."""
        loss, logits = self._weight_loss((x, labels), dict(zip(self.table.rows, lent, strict=True)))
        self.optimizer.differentiate([loss])
        return loss_and_accuracy(logits, labels)

    def _weight_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.config.amp):
            logits = self.supernet(batch[0], edge_weights)
        logits = logits.to(
            torch.promote_types(logits.dtype, torch.float32)
        )  # a loss in float32 at least
        return F.cross_entropy(logits, batch[1]), logits

    def _architecture_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        exact = self.config.arch_gradient == "true"
        with true_gradients(self.supernet) if exact else contextlib.nullcontext():
            return self._weight_loss(batch, edge_weights)

    def _penalty(self, shares: EdgeWeights, alpha: Mapping[str, Tensor] | None = None) -> Tensor:
        regularizers = list(zip(self.regularizers, self.regularizer_states, strict=True))
        total = self.objective.penalty(shares) + sum(
            r.penalty(state, shares) for r, state in regularizers
        )
        return (
            total
            if alpha is None
            else total + sum(r.alpha_penalty(state, alpha) for r, state in regularizers)
        )

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        numbers: Numbers = {}
        if epoch >= self.warmup_epochs:
            first = (epoch + 1) * self.steps_per_epoch

            def measure(weights: EdgeWeights, batches: int) -> tuple[Tensor, Tensor]:
                if stop():
                    raise Interrupted
                return self._measure(weights, first, batches)

            numbers |= self.strategy.end_epoch(self.strategy_state, epoch, measure)
            lookout = _Lookout(self, first)
            for regularizer, state in zip(self.regularizers, self.regularizer_states, strict=True):
                ends, own = regularizer.after_epoch(state, epoch, lookout)
                self.stopped = self.stopped or ends
                numbers |= own
        return numbers

    @torch.no_grad()
    def _measure(
        self, edge_weights: EdgeWeights, first: int, batches: int
    ) -> tuple[Tensor, Tensor]:
        """`strategies.Measure`, on the validation batches from number `first` on. The processes of
        torchrun share the individuals; w is the first one's, since GPUs round differently.
        """
        from_first([*self.supernet.parameters(), *self.supernet.buffers()])
        count = len(next(iter(edge_weights.values())))
        mine = list(range(rank(), count, world_size()))
        own = {t: w[mine] for t, w in edge_weights.items()}
        sums, images = torch.zeros(2, count, dtype=torch.float64), 0
        with self.supernet.batch_statistics():
            for number in range(first, first + batches):
                x, labels = self.valid_batches.batch(number)
                images += len(labels)
                if mine:
                    logits = self._logits_of(x, own)
                    each = F.cross_entropy(
                        logits.transpose(1, 2), labels.expand(len(mine), -1), reduction="none"
                    )
                    sums[0, mine] += each.double().sum(1).cpu()
                    sums[1, mine] += (logits.argmax(2) == labels).double().sum(1).cpu()
        losses, accuracies = summed(sums) / images
        return losses + self._penalty(edge_weights).double().cpu(), accuracies

    def _logits_of(self, x: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """(P, N, classes) of P individuals on the same images, as many together as memory and the
        operations allow.
        """
        parts: list[Tensor] = []
        count, start = len(next(iter(edge_weights.values()))), 0
        while start < count:
            try:
                parts.append(
                    self._logits(
                        x, {t: w[start : start + self.together] for t, w in edge_weights.items()}
                    )
                )
                start += self.together
            except RuntimeError as error:
                if self.together == 1:
                    raise
                # An operation of a user's own may be one that torch.vmap cannot batch.
                self.together = (
                    self.together // 2 if isinstance(error, torch.OutOfMemoryError) else 1
                )
        return torch.cat(parts)

    def _logits(self, x: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """(P, N, classes) of P individuals on the same images."""
        with autocast(self.device, self.config.amp):
            if len(next(iter(edge_weights.values()))) == 1:
                return (
                    self.supernet(x, {t: w[0] for t, w in edge_weights.items()})
                    .float()
                    .unsqueeze(0)
                )
            return torch.vmap(lambda weights: self.supernet(x, weights))(dict(edge_weights)).float()

    def learning_rates(self) -> Numbers:
        rates = {"weights": self.optimizer.lr, **self.strategy_state.learning_rates()}
        return {f"lr/{name}": rate for name, rate in rates.items()}

    def genotype(self) -> Genotype:
        """The genotype that alpha stands for now."""
        cells = self.space.derive(self.strategy.final_weights(self.strategy_state), self.table)
        return Genotype(canonical_spec(self.config.space), cells, self.config.backbone_rule)

    def synchronise(self) -> None:
        """Averages batch norms' statistics over the processes, and makes sure that nothing else
        differs.
        """
        of_alpha = [tensor for _, tensor in named_tensors(self.strategy_state.state_dict())]
        synchronise([self.supernet], {"alpha and what moves it": of_alpha})

    def state_dict(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy_state.state_dict(),
            "regularizers": [regularizer.state_dict() for regularizer in self.regularizer_states],
            "stopped": self.stopped,
            "processes": self.share[1],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy_state.load_state_dict(state["strategy"])
        for regularizer, saved in zip(self.regularizer_states, state["regularizers"], strict=True):
            regularizer.load_state_dict(saved)
        self.stopped = state["stopped"]
        self.began_with = state.get("processes", 1)


class _Lookout:
    """What regularisers see of a search after an epoch."""

    def __init__(self, search: Search, number: int) -> None:
        """`number` is that of the validation batch."""
        self._search, self._number = search, number
        self.strategy, self.strategy_state = search.strategy, search.strategy_state

    def cells(self) -> dict[str, Cell]:
        return dict(self._search.genotype().cells)

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        supernet, (x, labels) = (
            self._search.supernet,
            self._search.valid_batches.batch(self._number),
        )

        def loss(weights: Sequence[Tensor]) -> Tensor:
            return F.cross_entropy(
                supernet(x, dict(zip(edge_weights, weights, strict=True))).float(), labels
            )

        with supernet.batch_statistics(), frozen(supernet), true_gradients(supernet):
            return mean_of_all(loss, list(edge_weights.values()))
