"""Search: in each step the strategy moves alpha, then SGD moves w (arXiv 1806.09055, algorithm 1).

`Search` is the `Task` of it. Of several processes each takes its share of both batches, and the
gradients of alpha and of w are averaged before they are followed. Where a strategy measures
individuals, each process measures some, and trains w on whole batches.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.config import SearchConfig
from darts_bio.data.batches import Augmentation, Batches, Normalization
from darts_bio.data.datasets import ImageData, halves
from darts_bio.distributed import average, mean_of_all, rank, world_size
from darts_bio.draws import DrawsForSamples
from darts_bio.errors import InputError, first_line
from darts_bio.modes import in_mode
from darts_bio.networks import EdgeWeights, FoldedCell, MixedCell, SuperNet
from darts_bio.rules import Renewal, draw_feedback, true_gradients
from darts_bio.rules.pointwise import warn_of_strided_pointwise
from darts_bio.runtime import (
    autocast,
    call,
    derive_seed,
    precision_notes,
)
from darts_bio.spaces import SPACES, Cell, Genotype, Space
from darts_bio.storage.checkpoint import CHECKPOINT_FILE, read_checkpoint
from darts_bio.strategies import (
    AlphaState,
    Batch,
    Bilevel,
    Context,
    GradientStrategy,
    Objective,
    StrategyState,
    detached,
    frozen,
)
from darts_bio.training.answers import Answers
from darts_bio.training.engine import Interrupted, named_tensors, never
from darts_bio.training.graphs import Recorder
from darts_bio.training.individuals import Individuals
from darts_bio.training.meters import Numbers, Sums, loss_and_accuracy, measured
from darts_bio.training.method import Method, refuse_unused
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.parallel import (
    refuse_uneven_shares,
    running_statistics,
    shared_otherwise,
    synchronize,
)
from darts_bio.training.place import StagePlace, table_identity
from darts_bio.training.regularization import Regularization

TOGETHER = {"cpu": 1, "cuda": 16}
"""How many individuals at most pass through the supernet at once, by the kind of device.

A GPU is idle in the pass of a single one; a CPU is not."""


class Search:
    """The task of training a supernet's weights w and a strategy's alpha together.

    The training images are split in halves: w learns from one, alpha from the other.

    Attributes:
        supernet: The network of weights w, a function of images and edge weights.
        strategy: How alpha becomes edge weights and moves; `strategy_state` holds alpha.
        answers: What the strategy answers.
        regularization: What else is added to alpha's loss, or ends the search.
        objective: The costs beside the loss, such as the number of parameters.
        table: The candidates (operation, rule) of each edge.
        place: Where it stands among the stages of a progressive search.
        optimizer: What moves w.
        renewal: What renews the feedback after each update, for the rules that ask for it.
        run: The recorder that runs what a step computes.
        warmup_epochs: For how many epochs alpha stays as it is.
        share: This process' part of each batch: its number, and how many parts there are.
        began_with: Into how many parts the batches of the steps so far were shared out.
        restarts_at: The step before which the optimizer of w is begun anew; None for never.
        stopped: Whether a regularizer has ended the search.
        individuals: What measures individuals after an epoch.

    >>> from darts_bio.data.batches import Split
    >>> split = Split(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8), torch.arange(16) % 2)
    >>> space = "darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))"
    >>> sizes = {"channels": 2, "layers": 3, "batch_size": 4, "epochs": 1}
    >>> config = SearchConfig(space=space, rules=("fa", "usf"), regularizers=(), **sizes)
    >>> task = Search(config, ImageData(split, split, ("cat", "dog")), torch.device("cpu"))
    >>> task.begin_epoch(0)
    >>> sorted(task.step(0)), task.steps_per_epoch
    (['train', 'valid'], 2)
    >>> sorted(task.genotype().cells)
    ['normal', 'reduce']
    """

    def __init__(
        self,
        config: SearchConfig,
        data: ImageData,
        device: torch.device,
        place: StagePlace | None = None,
    ) -> None:
        """Build all that the options name, on the device.

        Args:
            config: The options of the search.
            data: The images.
            device: Where it runs.
            place: Where it stands among stages; None for a search that stands alone.

        Raises:
            InputError: An option names something unknown, or options do not go together.
        """
        self.config, self.device, self.epochs = config, device, config.epochs
        self.place = place or StagePlace(schedule=config.epochs)
        self.run = Recorder(device, graphs=config.graphs)
        self.space: Space = SPACES.build(config.space)
        method = Method.of(config)
        self.strategy = method.strategy
        self.warmup_epochs = method.warmup_epochs
        # Where each process measures some of the individuals, all of them train w alike.
        self.share = (0, 1) if self.strategy.measures else (rank(), world_size())
        self.began_with = self.share[1]
        self._share_out(data)
        self.table = self.place.table or self.space.table(config.rules)
        if self.place.table is not None:
            self.subject["candidates"] = table_identity(self.table)
        self._begin_strategy(method)
        self.objective = self._objective(data.image_size)
        self.supernet = self._built(method, data)
        self._begin_training()
        # The folded cells are autograd Functions of their own, which torch.vmap cannot batch.
        together = 1 if config.memory == "low" else TOGETHER[device.type]
        self.individuals = Individuals(
            self.supernet,
            self._logits_at,
            self._penalty,
            self.valid_batches,
            config.amp,
            together=together,
            spread=self.regularization.spreads,
        )
        self.stopped = False
        # On the device, where no step waits for it: whether a loss or a gradient of alpha was not
        # finite, and whether the first had edge weights that were not.
        self._spoilt, self._by_weights = torch.zeros(2, 1, dtype=torch.bool, device=device)
        refuse_unused(config, self.strategy)
        if config.supernet and not config.resume:
            self._begin_with(Path(config.supernet))

    def _share_out(self, data: ImageData) -> None:
        """Make the batches that w and alpha learn from, of a half of the training images each."""
        config = self.config
        augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
        normalization = Normalization.of(data.train.images)
        refuse_uneven_shares(config.batch_size, self.share[1])
        both_halves = halves(data.train, config.seed)
        self.train_batches, self.valid_batches = (
            Batches(
                half,
                config.batch_size,
                normalization,
                augmentation,
                seed=config.seed,
                name=name,
                device=self.device,
                run=self.run,
                share=self.share,
            )
            for name, half in zip(("train", "valid"), both_halves, strict=True)
        )
        self.split_in_words = (
            f"The weights learn from {len(both_halves[0])} of the training images (train), alpha "
            f"from the {len(both_halves[1])} others (validation); no test image is used"
        )
        self.subject = {"data set": data.identity()}
        self.steps_per_epoch = self.train_batches.per_epoch
        self.first_batch = self.place.epochs_before * self.steps_per_epoch
        self.images_per_step = 2 * config.batch_size

    def _begin_strategy(self, method: Method) -> None:
        """Make the regularizers and alpha."""
        context = Context(
            self.space,
            self.table,
            self.config.seed,
            self.device,
            self.place.schedule,
            self.steps_per_epoch,
            self.place.first_epoch + self.warmup_epochs,
            recorded=self.run.records,
        )
        self.regularization = Regularization(method.regularizers, context)
        # The regularizers say in which form alpha is kept, so the strategy begins after them.
        context = replace(
            context,
            factorised=self.regularization.factorised,
            normalizes_edges=self.regularization.normalizes_edges,
        )
        self.answers = Answers(self.strategy, self.table)
        self.strategy_state: StrategyState = self.answers.begin(context)
        self.regularization.accept(self.strategy, self.strategy_state)

    def _objective(self, image_size: tuple[int, int]) -> Objective:
        """Return the costs beside the loss.

        Raises:
            InputError: One of them is bounded, and alpha follows no gradient.
        """
        config = self.config
        objective = Objective(
            config.objective,
            self.space,
            self.table,
            channels=config.channels,
            layers=config.layers,
            image_size=image_size,
            device=self.device,
        )
        if objective.bound is not None and not isinstance(self.strategy, GradientStrategy):
            raise InputError(
                f"--objective {objective.bound.name}(share=...): expected a strategy whose "
                f"alpha follows a gradient, found {config.strategy}; give a weight instead of a "
                "share, or choose another strategy"
            )
        return objective

    def _built(self, method: Method, data: ImageData) -> SuperNet:
        """Return the supernet, with weights and feedback drawn, on the device."""
        config = self.config
        # Of its own, so that w does not depend on what strategies and regularizers drew before.
        torch.manual_seed(derive_seed("weights", config.seed))
        supernet = SuperNet(
            self.space,
            config.rules,
            channels=config.channels,
            layers=config.layers,
            num_classes=len(data.classes),
            in_channels=data.in_channels,
            backbone_rule=config.backbone_rule,
            partial=method.partial,
            shared=config.kernel_scale if method.shares_weights else None,
            cell=FoldedCell if config.memory == "low" else MixedCell,
            table=self.table,
            skip_rate=self.regularization.skip_rate,
        )
        for module in supernet.modules():
            if isinstance(module, DrawsForSamples):
                module.share = self.share
        warn_of_strided_pointwise(supernet.to(self.device))
        draw_feedback(supernet, config.seed)
        return supernet

    def _begin_training(self) -> None:
        """Make what moves w and renews its feedback, and have the regularizers attend."""
        self.renewal = Renewal(self.supernet, self.config.seed)
        self.run.generators = [*self.strategy_state.generators, *self.renewal.generators]
        phase = self.answers.weight_phase(self.epochs)
        schedule = replace(self.config, epochs=self.place.schedule)
        self.optimizer = WeightOptimizer(self.supernet, schedule, self.run, phase)
        self.restarts_at = None if phase is None else phase.first * self.steps_per_epoch
        self.regularization.attend(self.supernet)
        self.optimizer.held = self.regularization.compared

    def _begin_with(self, folder: Path) -> None:
        """Begin with the supernet of another run (`--supernet`).

        Of that run's strategy this one takes over what it wants. Raises InputError if the supernet
        is another one than this search's.
        """
        task = read_checkpoint(folder / CHECKPOINT_FILE, "search").get("task", {})
        try:
            self.supernet.load_state_dict(task["supernet"])
            self.strategy_state.begin_with(task["strategy"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"--supernet {folder}: that run's supernet is not one of this search "
                f"({first_line(error)}); use its --space, --rules, --channels, --layers and "
                "--memory, and for darts_pt its strategy as base"
            ) from None

    @property
    def measures(self) -> bool:
        """Whether the strategy measures individuals at the end of an epoch, which takes long."""
        return self.strategy.measures

    @property
    def finished(self) -> bool:
        """Whether no further epoch is wanted: by the strategy, or by a regularizer."""
        return self.strategy.finished or self.stopped

    def notes(self) -> list[str]:
        """Return lines that the user is to know of this search before it begins."""
        notes = self.answers.notes(self.config.rules)
        notes += precision_notes(self.device, self.config.amp)
        unseen = self.supernet.shares_weights and not self.strategy.shares_weights
        if unseen and len(self.config.rules) > 1:
            notes.append(
                "note: with shared weights nothing that this strategy measures depends on an "
                "operation's rule: it finds operations, and rules by chance (rule_aware finds both)"
            )
        if self.strategy.finished:
            notes.append("nothing is trained: the genotype is there at once")
        elif self.warmup_epochs:
            notes.append(f"alpha stays as it is until epoch {self.warmup_epochs + 1}")
        parts = self.share[1]
        if parts > 1 and not self.strategy.finished:
            notes.append(
                f"each of {parts} processes takes {self.config.batch_size // parts} of a batch's "
                f"{self.config.batch_size} images"
            )
        if self.began_with != parts:
            notes.append(shared_otherwise(self.began_with, parts))
        return notes

    def begin_epoch(self, epoch: int) -> None:
        scheduled = self.place.first_epoch + epoch
        self.optimizer.begin_epoch(scheduled)
        self.answers.begin_epoch(scheduled)
        self.regularization.begin_epoch(scheduled)
        self.run.begin_epoch()

    def step(self, t: int) -> dict[str, Sums]:
        """Move alpha, then w, then renew the feedback; return what the batches were worth.

        Of processes that train on whole batches the first alone returns that.

        What is computed in between is run by the recorder.
        """
        if t == self.restarts_at:
            self.optimizer.restart()
        number = self.first_batch + t
        train, valid = self.train_batches.batch(number), self.valid_batches.batch(number)
        sums: dict[str, Sums] = {}
        descends = self.answers.descends()
        if descends and t // self.steps_per_epoch >= self.warmup_epochs:
            self.answers.prepare()
            drawn = self._drawn()
            # A function that exchanges with other processes within cannot be recorded, nor one that
            # computes other candidates each time.
            exchanges = self.strategy.exchanges and world_size() > 1
            run = call if exchanges or drawn is not None else self.run
            with self.supernet.drawn(drawn):
                gradients, valid_sums = run(self._alpha_gradients, *train, *valid)
            average(gradients)
            self.run(self._move_alpha, *gradients)
            sums["valid"] = measured("valid", valid_sums, len(valid[1]))
        # Once more: the pass that moves w has a sample of its own.
        self.answers.prepare()
        self.regularization.prepare()
        lent = self.run(self._edge_weights) if descends else self._edge_weights()
        drawn = self._drawn()
        exchanges = self.regularization.exchanges and world_size() > 1
        run = call if exchanges or drawn is not None else self.run
        with self.supernet.drawn(drawn):
            if self.optimizer.held:
                train_sums, on_valid = run(self._both_gradients, *train, *valid, *lent)
            else:
                train_sums, on_valid = run(self._weight_gradients, *train, *lent), ()
        self.optimizer.average()
        if on_valid:
            average(on_valid)
            self.run(self.regularization.compare, *on_valid)
        self.optimizer.step()
        self.renewal(t + 1, self.run)
        if self.share[1] < world_size() and rank() > 0:
            # All trained on the same whole batches. Images that count once also weigh the same in
            # the means of a run that goes on in another number of processes.
            return {}
        return {"train": measured("train", train_sums, len(train[1]))} | sums

    def _drawn(self) -> Mapping[str, Sequence[int]] | None:
        """Return the one candidate of each edge that is computed; None if all are."""
        if self.regularization.spreads:
            return None
        return self.answers.drawn()

    def _alpha_gradients(self, *batches: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradients that alpha follows, and `loss_and_accuracy` of the validation batch.

        `batches` are the images and labels to train on, then those to validate on.
        """
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
            self.optimizer.moving,
        )
        gradients, logits = self.answers.gradients(bilevel)
        return gradients, loss_and_accuracy(logits, valid_labels)

    def _move_alpha(self, *gradients: Tensor) -> None:
        """Have the strategy move alpha along these gradients, and the bound its multiplier."""
        for gradient in gradients:  # a penalty may spoil alpha, whatever the strategy does
            self._spoilt |= ~gradient.sum().isfinite()
        self.answers.move(gradients)
        if self.objective.bound is not None:
            self.objective.bound.adapt(self.shares())

    def shares(self) -> EdgeWeights:
        """Return each candidate's share of its edge, (edges, candidates) per cell type.

        Of strategies without an alpha of their own it is the weight in `Strategy.final_weights`.
        """
        strategy, state = self.strategy, self.strategy_state
        if isinstance(strategy, GradientStrategy) and isinstance(state, AlphaState):
            return detached(self.answers.mean_weights())
        return self.answers.final_weights()

    def _edge_weights(self) -> tuple[Tensor, ...]:
        """Return the edge weights for training w, detached, in the order of the cell types."""
        lent = detached(self.answers.edge_weights())
        return tuple(lent[cell_type] for cell_type in self.table.rows)

    def _weight_gradients(self, x: Tensor, labels: Tensor, *lent: Tensor) -> Tensor:
        """Set w's gradients, and return `loss_and_accuracy` of the training batch.

        `lent` is what `_edge_weights` returned: inputs of a recording are tensors, not dicts.
        """
        return self._gradients_at(x, labels, self._perturbed(x, labels, lent))

    def _both_gradients(
        self, x: Tensor, labels: Tensor, valid_x: Tensor, valid_labels: Tensor, *lent: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Set w's gradients on the training batch; return its sums, and gradients to compare them with.

        These are the gradients on the validation batch of the parameters that regularizers compare,
        in the order of the optimizer's `held`. That pass leaves no trace.
        """
        edge_weights = self._perturbed(x, labels, lent)
        sums = self._gradients_at(x, labels, edge_weights)
        with self.supernet.batch_statistics():
            loss, _ = self._weight_loss((valid_x, valid_labels), edge_weights)
            gradients = torch.autograd.grad(
                loss, list(self.optimizer.held), allow_unused=True, materialize_grads=True
            )
        return sums, gradients

    def _perturbed(self, x: Tensor, labels: Tensor, lent: Sequence[Tensor]) -> EdgeWeights:
        """Return the edge weights that w is trained with, for those that were lent."""
        edge_weights: EdgeWeights = dict(zip(self.table.rows, lent, strict=True))
        loss = functools.partial(self._attacked_loss, x, labels)
        return self.regularization.perturbed(edge_weights, loss)

    def _gradients_at(self, x: Tensor, labels: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Set w's gradients at these edge weights, and return `loss_and_accuracy`."""
        loss, logits = self._weight_loss((x, labels), edge_weights)
        # What is not drawn has a gradient of zero, not none: SGD's momentum and decay move it too.
        self.optimizer.differentiate([loss], complete=self.supernet.is_drawn)
        return loss_and_accuracy(logits, labels)

    def _weight_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        """Return the cross entropy on a batch, and the logits (N, classes), in float32 at least."""
        x, labels = batch
        with autocast(self.device, self.config.amp):
            logits = self._logits_at(x, edge_weights)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, labels)
        self._note_first(loss, edge_weights)
        return loss, logits

    @torch.no_grad()
    def _note_first(self, loss: Tensor, edge_weights: EdgeWeights) -> None:
        """Note for `cause` a loss that is not finite, in place: also where the step is recorded."""
        lent = torch.stack([weights.sum() for weights in edge_weights.values()]).sum()
        first = ~loss.isfinite() & ~self._spoilt
        self._by_weights |= first & ~lent.isfinite()
        self._spoilt |= first

    def _logits_at(self, x: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Return the supernet's logits (N, classes) at edge weights as the regularizers lend them."""
        dtype = next(self.supernet.parameters()).dtype
        weights = self.answers.lent(edge_weights, dtype)
        return self.supernet(x, self.regularization.lent(weights))

    def _attacked_loss(self, x: Tensor, labels: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Return the loss on a training batch, a scalar, for whoever attacks the edge weights.

        It is the mean over all processes, as is its gradient, which is exact; batch norms have their
        running statistics.
        """

        def loss(weights: Sequence[Tensor]) -> Tensor:
            at = dict(zip(edge_weights, weights, strict=True))
            return self._weight_loss((x, labels), at)[0]

        supernet = self.supernet
        with in_mode(supernet, training=False), frozen(supernet), true_gradients(supernet):
            return mean_of_all(loss, list(edge_weights.values()))

    def _architecture_loss(self, batch: Batch, edge_weights: EdgeWeights) -> tuple[Tensor, Tensor]:
        """Return `_weight_loss`, whose gradient `--arch-gradient` says: the rules', or exact."""
        exact = self.config.arch_gradient == "true"
        with true_gradients(self.supernet) if exact else contextlib.nullcontext():
            return self._weight_loss(batch, edge_weights)

    def _penalty(self, shares: EdgeWeights, alpha: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return what the objective and the regularizers add to alpha's loss.

        Args:
            shares: The candidates' shares of each edge, by cell type.
            alpha: Alpha by cell type, for the regularizers of alpha itself; None leaves those out.
        """
        total = self.objective.penalty(shares) + self.regularization.penalty(shares)
        return total if alpha is None else total + self.regularization.alpha_penalty(alpha)

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        """Have the strategy and the regularizers look at the search; return what they measured.

        During a warm-up nothing is done. Raises Interrupted if `stop` says so between two measures.
        """
        numbers: Numbers = {}
        if epoch < self.warmup_epochs:
            return numbers
        # Measured on the validation batches that the next epoch begins with.
        first = self.first_batch + (epoch + 1) * self.steps_per_epoch
        scheduled = self.place.first_epoch + epoch

        def measure(weights: EdgeWeights, batches: int) -> tuple[Tensor, Tensor]:
            if stop():
                raise Interrupted
            return self.individuals.measure(weights, first, batches)

        numbers |= self.answers.end_epoch(scheduled, measure)
        ends, measurements = self.regularization.after_epoch(scheduled, _Lookout(self, first))
        self.stopped = self.stopped or ends
        numbers |= measurements
        bound = self.objective.bound
        if bound is not None:
            numbers[f"objective/{bound.name}_share"] = float(bound.expected_share(self.shares()))
            numbers["objective/multiplier"] = float(bound.log_multiplier.exp())
        return numbers

    def slow_down(self, factor: float) -> None:
        self.optimizer.scale = factor

    def cause(self) -> str:
        # What comes after the first that is not finite tells nothing: soon neither w nor alpha is.
        if not self._by_weights:
            return ""
        return (
            f"{self.strategy.where}: edge_weights: expected finite numbers, found nan or inf while "
            "the loss was still finite; mend what it computes them from, or its options"
        )

    def learning_rates(self) -> Numbers:
        rates = {"weights": self.optimizer.lr, **self.answers.learning_rates()}
        return {f"lr/{name}": rate for name, rate in rates.items()}

    def genotype(self) -> Genotype:
        """Return the genotype that alpha stands for at present."""
        weights = self.answers.final_weights()
        weights = self.regularization.decisive(weights, self._derive)
        cells = self._derive(weights)
        if self.objective.bound is not None:
            cells = self.objective.bound.hold(cells, weights)
        return Genotype(self.config.space, cells, self.config.backbone_rule)

    def _derive(self, weights: EdgeWeights) -> dict[str, Cell]:
        """Return the cells that weights (edges, candidates) per cell type stand for."""
        return self.space.derive(weights, self.table)

    def synchronize(self) -> None:
        """Average batch norms' statistics over the processes, and compare everything else.

        Raises InputError if w, the feedback or alpha is not the same in all.
        """
        of_alpha = [tensor for _, tensor in named_tensors(self.strategy_state.state_dict())]
        of_alpha += self.objective.state_dict().values()
        synchronize([self.supernet], {"alpha and what moves it": of_alpha})

    def statistics(self) -> list[Tensor]:
        """Return batch norms' running statistics, which `synchronize` averages."""
        return running_statistics(self.supernet)

    def state_dict(self) -> dict[str, Any]:
        """Return w, feedback and alpha, the state of all that moves them, and `share`'s parts."""
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.answers.state_dict(),
            "objective": self.objective.state_dict(),
            "regularizers": self.regularization.state_dict(),
            "stopped": self.stopped,
            "processes": self.share[1],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy_state.load_state_dict(state["strategy"])
        self.objective.load_state_dict(state.get("objective", {}))  # not in earlier checkpoints
        self.regularization.load_state_dict(state["regularizers"])
        self.stopped = state["stopped"]
        self.began_with = state.get("processes", 1)  # not in checkpoints of earlier versions


class _Lookout:
    """What regularizers see of a search after an epoch.

    Args:
        search: The search.
        number: The number of the validation batch that losses are measured on.
    """

    def __init__(self, search: Search, number: int) -> None:
        self._search, self._number = search, number
        self.strategy, self.strategy_state = search.strategy, search.strategy_state

    def cells(self) -> dict[str, Cell]:
        """Return the cells of the genotype that alpha stands for at present."""
        return dict(self._search.genotype().cells)

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        """Return the loss on a validation batch, differentiable at the edge weights, a scalar.

        It is the mean over all processes, as is its gradient, which is exact.
        """
        supernet = self._search.supernet
        x, labels = self._search.valid_batches.batch(self._number)

        def loss(weights: Sequence[Tensor]) -> Tensor:
            logits = self._search._logits_at(x, dict(zip(edge_weights, weights, strict=True)))
            return F.cross_entropy(logits, labels)

        with supernet.batch_statistics(), frozen(supernet), true_gradients(supernet):
            return mean_of_all(loss, list(edge_weights.values()))
