"""BioNAS-EG (arXiv 2507.13485): evolution strategies over the edge weights, after EG-NAS.

Only w follows a gradient. After a warm-up of w, once an epoch, CMA-ES (Hansen 2016, arXiv
1604.00772; package cmaes) samples individuals around the present architecture c = softmax(alpha):

    individual = c + s z,  brought back to shares of each edge,

with z from the strategy's own distribution and s falling over the epochs. The fitness of an
individual is

    - (validation loss of the supernet with its edge weights + novelty * cosine(individual, c)),

and the best one moves the architecture by a step: c <- (1 - step) c + step * best.

`published=True` is EG-NAS as its authors' code does it (`eg_published.py`), from which this differs:
the distributions live on from epoch to epoch, where that code begins CMA-ES anew each time and ends
it after one generation, so that its covariance never adapts; each sample has seeds of its own; several
batches rank the individuals; s falls; and the novelty term has one sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import InputError, check_number, check_whole, install_hint
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import derive_seed, generator
from darts_bio.strategies import eg_published
from darts_bio.strategies.base import (
    STRATEGIES,
    Context,
    Measure,
    Strategy,
    StrategyState,
    masked_softmax,
    masks_of,
)

LARGE = 200
"""Dimensions from which on the covariance is kept diagonal: a full one would need as many
generations to adapt."""


class Sampler:
    """One CMA-ES that minimizes over R^n from mean 0 and step size 1, with a seed per generation.

    Its state is plain values: what it draws in a generation depends on that state and the seed
    alone.

    Args:
        dimensions: n.
        population: The number of individuals of a generation.
        seed: What the seeds of all generations are derived from.
        separable: Whether the covariance is diagonal. That is for many dimensions: with far more
            individuals than dimensions its learning rates exceed 1.

    Raises:
        InputError: If the package cmaes is not installed.

    >>> sampler = Sampler(dimensions=3, population=8, seed=0, separable=False)
    >>> for _ in range(40):
    ...     individuals = sampler.ask()
    ...     sampler.tell(individuals, np.square(individuals - 1).sum(1))
    >>> sampler.mean.round(1)
    array([1., 1., 1.])
    """

    def __init__(self, dimensions: int, population: int, seed: int, separable: bool) -> None:
        try:
            import cmaes
        except ImportError:
            raise InputError(
                f"strategy eg: needs the package cmaes; {install_hint('evolution')}"
            ) from None
        make: Any = cmaes.SepCMA if separable else cmaes.CMA
        self.seed = seed
        self._evolution = make(
            mean=np.zeros(dimensions), sigma=1.0, population_size=population, seed=0
        )

    @property
    def mean(self) -> np.ndarray:
        """The distribution's mean, (dimensions,)."""
        return self._evolution.mean

    def ask(self) -> np.ndarray:
        """Return the individuals of the next generation, (population, dimensions)."""
        evolution = self._evolution
        # NumPy's seeds have 32 bits.
        evolution.reseed_rng(derive_seed("evolution", self.seed, evolution.generation) % 2**32)
        return np.stack([evolution.ask() for _ in range(evolution.population_size)])

    def tell(self, individuals: np.ndarray, values: Sequence[float]) -> None:
        """Adapt the distribution to the values of the generation asked for; less is better.

        Args:
            individuals: What `ask` returned, (population, dimensions).
            values: The value of each individual.
        """
        self._evolution.tell(list(zip(individuals, map(float, values), strict=True)))
        # Saving rounds, since it makes the covariance symmetric. Rounded at once, what goes on now
        # equals what would go on from the saved state.
        self.load_state_dict(self.state_dict())

    @property
    def scales(self) -> np.ndarray:
        """The distribution's standard deviation along each axis of its space, (dimensions,)."""
        state = self._evolution.__getstate__()
        n = len(self.mean)
        # CMA packs the upper triangle of its symmetric covariance, row by row; SepCMA holds the
        # diagonal.
        packed = state.get("_c_1d")
        if packed is None:
            variances = state["_C"]
        else:
            covariance = np.zeros((n, n))
            covariance[np.triu_indices(n)] = packed
            variances = covariance.diagonal()
        return state["_sigma"] * np.sqrt(variances)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        # What pickle would save, without pickle; but for a record that serves a stopping rule not
        # asked for here, whose memory is not initialized.
        state = self._evolution.__getstate__()
        return {name: _plain(value) for name, value in state.items() if name != "_funhist_values"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        values = {
            name: v.numpy().copy() if isinstance(v, Tensor) else v for name, v in state.items()
        }
        self._evolution.__setstate__(values)


def _plain(value: Any) -> Any:
    """Return a NumPy array as a tensor of its own, a NumPy number as one of Python's."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


class EgState(StrategyState):
    """The architecture, as edge weights (edges, candidates) per cell type, and all CMA-ES."""

    def __init__(
        self, context: Context, weights: dict[str, Tensor], samplers: list[Sampler]
    ) -> None:
        super().__init__(context)
        self.masks = masks_of(context)
        self.weights, self.samplers = weights, samplers

    @property
    def alpha(self) -> dict[str, Tensor]:
        """The logarithms of the weights, 0 where the table is padded."""
        return {t: w.masked_fill(~self.masks[t], 1.0).log() for t, w in self.weights.items()}

    def individuals(self, offsets: np.ndarray, scale: float) -> dict[str, Tensor]:
        """Return P individuals around the present architecture, as shares of each edge.

        Args:
            offsets: z, (P, dimensions); a dimension for each candidate on each edge, cell type by
                cell type.
            scale: s, relative to an equal share of an edge.

        Returns:
            Edge weights (P, edges, candidates) per cell type.
        """
        individuals = {}
        for t, z in self.by_type(offsets).items():
            mask = self.masks[t]
            unit = scale / mask.sum(1, keepdim=True)  # (edges, 1)
            # Not to exact zero, so that an edge whose candidates are all lowered still has shares.
            moved = (self.weights[t] + unit * z).clamp_min(1e-6) * mask
            individuals[t] = moved / moved.sum(-1, keepdim=True)
        return individuals

    def by_type(self, offsets: np.ndarray) -> dict[str, Tensor]:
        """Return offsets (P, dimensions) as (P, edges, candidates) per cell type, 0 where padded."""
        z = torch.from_numpy(offsets).to(torch.get_default_dtype())
        offsets_by_type, start = {}, 0
        for t, weights in self.weights.items():
            mask = self.masks[t]
            n = int(mask.sum())
            # The n columns of this cell type, put where its table has candidates.
            # (P, n) -> (P, edges, candidates)
            of_type = torch.zeros(len(z), *mask.shape, device=weights.device, dtype=weights.dtype)
            of_type[:, mask] = z[:, start : start + n].to(weights)
            offsets_by_type[t] = of_type
            start += n
        return offsets_by_type

    def similarity(self, individuals: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine of each individual to the present architecture, (P,) on the CPU.

        Args:
            individuals: (P, edges, candidates) per cell type.
        """
        flat = torch.cat([weights.flatten(1) for weights in individuals.values()], dim=1)
        present = torch.cat([weights.flatten() for weights in self.weights.values()])
        return F.cosine_similarity(flat, present.unsqueeze(0), dim=1).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": dict(self.weights),
            "samplers": [sampler.state_dict() for sampler in self.samplers],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.weights = {t: w.to(self.weights[t]).clone() for t, w in saved["weights"].items()}
        for sampler, sampler_state in zip(self.samplers, saved["samplers"], strict=True):
            sampler.load_state_dict(sampler_state)


@STRATEGIES.register("eg")
@dataclass(frozen=True)
class Eg(Strategy[EgState]):
    """Evolution: CMA-ES around the present architecture, once an epoch (BioNAS-EG, 2507.13485).

    Needs the package cmaes. In the published way `samples`, `batches` and `sigma_min` have no say.

    Attributes:
        population: The number of individuals of a generation, of each sample.
        samples: The number of independent CMA-ES.
        batches: The number of validation batches on which an individual is measured.
        sigma: s in the first epoch, relative to an equal share of an edge (in the published way in
            all epochs, and as it is).
        sigma_min: s in the last epoch.
        novelty: The weight of the cosine to the present architecture.
        step: How far the architecture moves towards the best individual, a fraction.
        init: The standard deviation of the logits at the beginning.
        published: Whether to do what the code of EG-NAS does (see the top of `eg_published.py`).

    >>> from darts_bio.strategies import STRATEGIES
    >>> eg = STRATEGIES.build("eg(population=20, samples=1)")
    >>> eg.measured_batches, STRATEGIES.build("eg(published=True)").measured_batches
    (4, 1)
    >>> eg.warmup_share(50)  # 15 of 50 epochs
    0.3
    """

    warmup = 0.3  # 15 of 50 epochs
    measures = True

    population: int = 50
    samples: int = 2
    batches: int = 4
    sigma: float = 1.0
    sigma_min: float = 0.2
    novelty: float = 0.4
    step: float = 0.1
    init: float = 1e-3
    published: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value out of bounds."""
        for option, least in (("population", 4), ("samples", 1), ("batches", 1)):
            check_whole(f"{self.where}: {option}", getattr(self, option), least)
        check_number(f"{self.where}: sigma_min", self.sigma_min, above=0)
        check_number(f"{self.where}: sigma", self.sigma, least=self.sigma_min)
        for option in ("novelty", "init"):
            check_number(f"{self.where}: {option}", getattr(self, option))
        check_number(f"{self.where}: step", self.step, above=0, below=1)
        if not isinstance(self.published, bool):
            raise InputError(
                f"{self.where}: published: expected True or False, found {self.published!r}"
            )

    @property
    def measured_batches(self) -> int:
        """Validation batches on which an individual is measured: one in the published way."""
        return 1 if self.published else self.batches

    def begin(self, context: Context) -> EgState:
        draw = generator("cpu", "evolution's alpha", context.seed)
        weights = {}
        for t, mask in masks_of(context).items():
            logits = self.init * torch.randn(mask.shape, generator=draw)
            weights[t] = masked_softmax(logits.to(context.device), mask)
        samples = 1 if self.published else self.samples
        return EgState(context, weights, [self.sampler(context, i) for i in range(samples)])

    def sampler(self, context: Context, sample: int) -> Sampler:
        """Return a CMA-ES before its first generation, over all candidates of the search.

        Args:
            context: The search.
            sample: The number of the CMA-ES, on which its seeds depend.
        """
        dimensions = sum(int(context.table.mask(t).sum()) for t in context.table.rows)
        seed = derive_seed("sample", context.seed, sample)
        return Sampler(dimensions, self.population, seed, dimensions >= LARGE)

    def notes(self, state: EgState, rules: Sequence[str]) -> list[str]:
        # In the published way the present architecture is measured, too.
        individuals = self.population + 1 if self.published else self.samples * self.population
        passes = individuals * self.measured_batches
        note = f"note: eg measures by {passes} passes after each epoch"
        if not self.published:
            return [note]
        return [
            note,
            "note: eg(published=True) begins CMA-ES anew each epoch with one seed for one "
            "generation on one batch, as "
            "the published code does: its covariance never adapts",
        ]

    def edge_weights(self, state: EgState) -> EdgeWeights:
        return state.weights

    def scale(self, state: EgState, epoch: int) -> float:
        """Return s of an epoch, on its way from `sigma` to `sigma_min`."""
        progress = epoch / max(1, state.context.epochs - 1)
        return self.sigma + (self.sigma_min - self.sigma) * progress

    def end_epoch(self, state: EgState, epoch: int, measure: Measure) -> dict[str, float]:
        """Run a generation of each CMA-ES; the best individual of all moves the architecture."""
        if self.published:
            return self._published_generation(state, epoch, measure)
        scale = self.scale(state, epoch)
        # The least value so far, and the individual that has it: (edges, candidates) per cell type.
        best: tuple[float, dict[str, Tensor]] | None = None
        means = []
        for sampler in state.samplers:
            offsets = sampler.ask()
            individuals = state.individuals(offsets, scale)
            losses, _ = measure(individuals, self.measured_batches)
            # The negative of fitness: CMA-ES minimizes.
            values = losses.cpu() + self.novelty * state.similarity(individuals)
            sampler.tell(offsets, values.tolist())
            means.append(values.mean().item())
            winner = int(values.argmin())
            if best is None or values[winner].item() < best[0]:
                individual = {t: weights[winner] for t, weights in individuals.items()}
                best = values[winner].item(), individual
        assert best is not None
        least_value, best_individual = best
        state.weights = {
            t: (1 - self.step) * w + self.step * best_individual[t]
            for t, w in state.weights.items()
        }
        return {
            "evolution/best_fitness": -least_value,
            "evolution/mean_fitness": -sum(means) / len(means),
        }

    def _published_generation(
        self, state: EgState, epoch: int, measure: Measure
    ) -> dict[str, float]:
        """Run one generation of a new CMA-ES, whose best individual is added to alpha."""
        state.samplers[0] = sampler = self.sampler(state.context, 0)
        offsets = sampler.ask()
        source = generator("cpu", "mean of evolution", state.context.seed, epoch)
        spread = eg_published.SPREAD * torch.randn(
            1, offsets.shape[1], generator=source, dtype=torch.float64
        )
        moves = state.by_type(spread.numpy() + self.sigma * offsets)
        present = state.weights
        values, best = eg_published.generation(
            present,
            state.masks,
            {t: present[t] + move for t, move in moves.items()},
            measure,
            self.novelty,
        )
        sampler.tell(offsets, values.tolist())
        state.weights = eg_published.moved(present, state.masks, best, self.step)
        return {
            "evolution/best_fitness": -values.min().item(),
            "evolution/mean_fitness": -values.mean().item(),
        }

    def final_weights(self, state: EgState) -> EdgeWeights:
        return state.weights
