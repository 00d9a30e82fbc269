"""BioNAS-EG (arXiv 2507.13485): evolution strategies over the edge weights, after EG-NAS.

After a warm-up of w, once an epoch, CMA-ES (Hansen 2016, arXiv 1604.00772; package cmaes) samples individuals around
the present architecture c = softmax(alpha): an individual is c + s z, with z from the strategy's own distribution and
s falling over the epochs, brought back to shares of each edge. Its fitness is

    - (validation loss of the supernet with its edge weights + novelty * cosine(individual, c)),

and the best one moves the architecture by a step: c <- (1 - step) c + step * best.

What the published code does otherwise, and `published=True` keeps: each epoch a new CMA-ES is begun and ended after one
generation, so that its covariance never adapts; every sample of every epoch has the same seed; fitness is measured on
one validation batch; s does not fall. (It also stops with an error in its first generation, which is mended.) By
default the distributions live on from epoch to epoch, each sample has seeds of its own, and several batches rank the
individuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import InputError, check_number, check_whole, install_hint
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import derive_seed, generator
from darts_bio.strategies.base import STRATEGIES, Bilevel, Context, Measure, Strategy, masked_softmax

LARGE = 200
"""Dimensions from which on the covariance is kept diagonal: a full one would need as many generations to adapt."""


class Sampler:
    """One CMA-ES that minimises over R^n from mean 0 and step size 1, with a seed for each generation.

    Its state is plain values: what it draws in a generation depends on that state and the seed alone. The separable
    variant is for many dimensions: with far more individuals than dimensions its learning rates exceed 1.
    """

    def __init__(self, dimensions: int, population: int, seed: int, separable: bool) -> None:
        try:
            import cmaes
        except ImportError:
            raise InputError(f"strategy eg: needs the package cmaes; {install_hint('evolution')}") from None
        make: Any = cmaes.SepCMA if separable else cmaes.CMA
        self.seed = seed
        self._evolution = make(mean=np.zeros(dimensions), sigma=1.0, population_size=population, seed=0)

    @property
    def mean(self) -> np.ndarray:
        return self._evolution.mean

    def ask(self) -> np.ndarray:
        """The next generation, (population, dimensions)."""
        evolution = self._evolution
        evolution.reseed_rng(derive_seed("evolution", self.seed, evolution.generation) % 2**32)
        return np.stack([evolution.ask() for _ in range(evolution.population_size)])

    def tell(self, individuals: np.ndarray, values: Sequence[float]) -> None:
        """The value of each individual of the generation asked for; less is better."""
        self._evolution.tell(list(zip(individuals, map(float, values), strict=True)))
        # Saving rounds (it makes the covariance symmetric): so that what is saved now and what goes on are one.
        self.load_state_dict(self.state_dict())

    @property
    def scales(self) -> np.ndarray:
        """(dimensions,) the distribution's standard deviation along each axis of its space."""
        state = self._evolution.__getstate__()
        packed = state.get("_c_1d")
        n = len(self.mean)
        if packed is None:
            variances = state["_C"]
        else:
            covariance = np.zeros((n, n))
            covariance[np.triu_indices(n)] = packed
            variances = covariance.diagonal()
        return state["_sigma"] * np.sqrt(variances)

    def state_dict(self) -> dict[str, Any]:
        # What pickle would save, without pickle; but for a record that serves a stopping rule not asked for here, whose
        # memory is not initialised.
        state = self._evolution.__getstate__()
        return {name: _plain(value) for name, value in state.items() if name != "_funhist_values"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        values = {name: v.numpy().copy() if isinstance(v, Tensor) else v for name, v in state.items()}
        self._evolution.__setstate__(values)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


@STRATEGIES.register("eg")
class Eg(Strategy):
    """Evolution: CMA-ES around the present architecture, once an epoch (BioNAS-EG, 2507.13485)."""

    warmup = 0.3  # 15 of 50 epochs
    measures = True

    def __init__(
        self,
        context: Context,
        population: int = 50,
        samples: int = 2,
        batches: int = 4,
        sigma: float = 1.0,
        sigma_min: float = 0.2,
        novelty: float = 0.4,
        step: float = 0.1,
        init: float = 1e-3,
        published: bool = False,
    ) -> None:
        """`samples` independent CMA-ES of that `population` meet that many validation `batches`; `sigma` and
        `sigma_min`, s at the start and the end, are relative to an equal share of an edge."""
        where = "strategy eg"
        for name, value, least in (("population", population, 4), ("samples", samples, 1), ("batches", batches, 1)):
            check_whole(f"{where}: {name}", value, least)
        check_number(f"{where}: sigma_min", sigma_min, above=0)
        check_number(f"{where}: sigma", sigma, least=sigma_min)
        for name, number in {"novelty": novelty, "init": init}.items():
            check_number(f"{where}: {name}", number)
        check_number(f"{where}: step", step, above=0, below=1)
        if not isinstance(published, bool):
            raise InputError(f"{where}: published: expected True or False, found {published!r}")
        if context.factorised:
            raise InputError(f"{where}: has no factorised alpha; leave that regularizer out")
        self.context, self.population, self.novelty, self.size = context, population, novelty, step
        self.published, self.batches = published, 1 if published else batches
        self.sigma = (sigma, sigma if published else sigma_min)
        self.masks = {t: context.table.mask(t).to(context.device) for t in context.table.rows}
        draw = generator("cpu", "evolution's alpha", context.seed)
        self.weights = {
            t: masked_softmax((init * torch.randn(mask.shape, generator=draw)).to(context.device), mask)
            for t, mask in self.masks.items()
        }
        self.dimensions = sum(int(mask.sum()) for mask in self.masks.values())
        self.samplers = [self._sampler(i) for i in range(samples)]

    def _sampler(self, sample: int) -> Sampler:
        seed = derive_seed("sample", self.context.seed, 0 if self.published else sample)
        return Sampler(self.dimensions, self.population, seed, self.dimensions >= LARGE)

    def notes(self, rules: Sequence[str]) -> list[str]:
        passes = len(self.samplers) * self.population * self.batches
        note = f"note: eg measures by {passes} passes after each epoch"
        if not self.published:
            return [note]
        return [
            note,
            "note: eg(published=True) begins CMA-ES anew each epoch with one seed for one generation on one batch, as "
            "the published code does: its covariance never adapts",
        ]

    @property
    def alpha(self) -> dict[str, Tensor]:
        """Logarithms of the weights, 0 where the table is padded."""
        return {t: w.masked_fill(~self.masks[t], 1.0).log() for t, w in self.weights.items()}

    def edge_weights(self) -> EdgeWeights:
        return self.weights

    def step(self, bilevel: Bilevel) -> None:
        return None

    def end_epoch(self, epoch: int, measure: Measure) -> dict[str, float]:
        """A generation of each sample; then the best individual of all moves the architecture."""
        progress = epoch / max(1, self.context.epochs - 1)
        scale = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * progress
        best: tuple[float, dict[str, Tensor]] | None = None
        means = []
        for i, sampler in enumerate(self.samplers):
            if self.published:
                self.samplers[i] = sampler = self._sampler(i)
            offsets = sampler.ask()
            individuals = self.individuals(offsets, scale)
            losses, _ = measure(individuals, self.batches)
            values = losses.cpu() + self.novelty * self._similarity(individuals)
            sampler.tell(offsets, values.tolist())
            winner = int(values.argmin())
            means.append(values.mean().item())
            if best is None or values[winner].item() < best[0]:
                best = values[winner].item(), {t: own[winner] for t, own in individuals.items()}
        assert best is not None
        self.weights = {t: (1 - self.size) * w + self.size * best[1][t] for t, w in self.weights.items()}
        return {"evolution/best_fitness": -best[0], "evolution/mean_fitness": -sum(means) / len(means)}

    def individuals(self, offsets: np.ndarray, scale: float) -> dict[str, Tensor]:
        """Offsets (P, dimensions) as edge weights (P, edges, candidates) around the present ones."""
        pieces = torch.from_numpy(offsets).to(torch.get_default_dtype())
        found, start = {}, 0
        for t, weights in self.weights.items():
            mask, n = self.masks[t], int(self.masks[t].sum())
            spread = torch.zeros(len(pieces), *mask.shape, device=weights.device, dtype=weights.dtype)
            spread[:, mask] = pieces[:, start : start + n].to(weights)
            equal = scale / mask.sum(1, keepdim=True)
            # Not to exact zero, so that an edge whose candidates are all lowered has shares still.
            moved = (weights + equal * spread).clamp_min(1e-6) * mask
            found[t] = moved / moved.sum(-1, keepdim=True)
            start += n
        return found

    def _similarity(self, individuals: dict[str, Tensor]) -> Tensor:
        """(P,) the cosine of each individual to the present architecture."""
        flat = torch.cat([own.flatten(1) for own in individuals.values()], dim=1)
        present = torch.cat([w.flatten() for w in self.weights.values()])
        return F.cosine_similarity(flat, present.unsqueeze(0), dim=1).cpu()

    def final_weights(self) -> EdgeWeights:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "samplers": [sampler.state_dict() for sampler in self.samplers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = {t: w.to(self.weights[t]).clone() for t, w in state["weights"].items()}
        for sampler, saved in zip(self.samplers, state["samplers"], strict=True):
            sampler.load_state_dict(saved)
