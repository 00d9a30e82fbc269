"""eg: its sampler on known functions, individuals, the moves of the architecture, and what is
resumed.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from searching import PAIR, begin, epoch, search
from torch import Tensor

from darts_bio.data.datasets import ImageData, load_data
from darts_bio.strategies.eg import EgState, Sampler

CENTRE = np.linspace(-1.0, 2.0, 6)


def sphere(x: np.ndarray) -> float:
    return float(((x - CENTRE) ** 2).sum())


def ellipsoid(x: np.ndarray) -> float:
    """Condition number 1e4."""
    return float((10 ** np.linspace(0, 4, len(x)) * (x - CENTRE) ** 2).sum())


def rastrigin(x: np.ndarray) -> float:
    """Of local optima a third of the first step apart."""
    z = 3 * (x - CENTRE)
    return float(10 * len(x) + (z**2 - 10 * np.cos(2 * np.pi * z)).sum())


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def eg(spec: str = "eg(population=8)", space: str = PAIR, **options: Any) -> tuple[Any, Any]:
    return begin(spec, space, **options)


def after(generations: int, function: Any, sampler: Sampler) -> Sampler:
    for _ in range(generations):
        individuals = sampler.ask()
        sampler.tell(individuals, [function(x) for x in individuals])
    return sampler


class TestSampler:
    @pytest.mark.parametrize(
        ("function", "separable", "population", "generations"),
        [
            (sphere, False, 12, 150),
            (sphere, True, 12, 150),
            (ellipsoid, False, 12, 400),
            (ellipsoid, True, 12, 400),
            (rastrigin, False, 300, 100),
        ],
    )
    def test_reaches_the_known_optimum(
        self, function: Any, separable: bool, population: int, generations: int
    ) -> None:
        sampler = after(generations, function, Sampler(6, population, 1, separable))
        assert function(sampler.mean) < 1e-6
        assert np.abs(sampler.mean - CENTRE).max() < 1e-3

    def test_a_diagonal_covariance_needs_restarts_among_many_local_optima(self) -> None:
        found = [
            rastrigin(after(150, rastrigin, Sampler(6, 100, seed, True)).mean) for seed in range(8)
        ]
        assert min(found) < 1e-4

    @pytest.mark.parametrize("separable", [False, True])
    def test_the_first_generation_is_drawn_with_standard_deviation_1(self, separable: bool) -> None:
        individuals = Sampler(50, 400, 1, separable).ask()
        assert abs(individuals.std() - 1) < 0.02  # four standard errors of 20,000 draws

    @pytest.mark.parametrize("separable", [False, True])
    def test_covariance_takes_the_shape_of_the_function(self, separable: bool) -> None:
        sampler = after(150, ellipsoid, Sampler(6, 12, 1, separable))
        # Axes of 1 to 1e4 in the function are of 1 to 1e-2 in the distribution.
        assert sampler.scales[0] / sampler.scales[-1] == pytest.approx(100, rel=0.6)

    @pytest.mark.parametrize("separable", [False, True])
    def test_goes_on_from_its_state_and_differs_by_seed(self, separable: bool) -> None:
        one, other, third = (Sampler(6, 12, seed, separable) for seed in (1, 1, 2))
        # Numbers all: a run whose state holds one that is not is taken for one that diverged.
        values = [v for v in one.state_dict().values() if isinstance(v, Tensor)]
        assert all(v.isfinite().all() for v in values)
        assert "_funhist_values" not in one.state_dict()
        for generation in range(20):
            individuals = one.ask()
            if generation == 0:
                assert np.array_equal(individuals, other.ask())
                assert not np.array_equal(individuals, third.ask())
            one.tell(individuals, [sphere(x) for x in individuals])
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(5):
            asked = one.ask()
            assert np.array_equal(asked, other.ask())
            for sampler in (one, other):
                sampler.tell(asked, [sphere(x) for x in asked])
        assert np.array_equal(one.mean, other.mean)


class TestIndividuals:
    def test_are_shares_of_each_edge_around_the_present_ones(self) -> None:
        _, state = eg(space="darts(nodes=2)")
        offsets = np.random.default_rng(0).standard_normal((8, len(state.samplers[0].mean)))
        for t, weights in state.individuals(offsets, 1.0).items():
            mask = state.masks[t]
            assert weights.shape == (8, *mask.shape)
            assert weights.sum(2).allclose(torch.ones(8, len(mask)))
            assert weights[:, ~mask].eq(0).all()
            assert weights[:, mask].gt(0).all()
        for t, weights in state.individuals(0 * offsets, 1.0).items():
            assert weights[3].allclose(state.weights[t])

    def test_the_scale_is_relative_to_an_equal_share_and_falls(self) -> None:
        own, state = eg("eg(population=4, samples=1, sigma=0.5, sigma_min=0.1)")
        offsets = np.zeros((4, len(state.samplers[0].mean)))
        offsets[0, 1] = 0.5
        moved = state.individuals(offsets, 0.4)["normal"][0, 0]
        expected = state.weights["normal"][0].clone()
        expected[1] += 0.4 * 0.5 / 4  # four candidates on this edge
        assert moved.allclose(expected / expected.sum())
        scales = []
        drawn = state.individuals
        state.individuals = lambda offsets, scale: (scales.append(scale), drawn(offsets, scale))[1]
        for number in (0, 5, 9):
            own.end_epoch(state, number, measure_of(own))
        assert scales == pytest.approx([0.5, 0.5 - 0.4 * 5 / 9, 0.1])


def measure_of(own: Any) -> Any:
    """A loss that falls with the weight of the second candidate of each edge."""

    def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
        assert batches == own.measured_batches
        loss = -torch.stack([w[:, :, 1].mean(1) for w in weights.values()]).mean(0).double()
        return loss, loss

    return measure


class TestMoves:
    def test_the_best_of_all_samples_moves_the_architecture_by_a_step(self) -> None:
        own, state = eg("eg(population=8, samples=2, step=0.1, novelty=0.4)")
        seen: list[Any] = []

        def measure(weights: Any, batches: int) -> tuple[Tensor, Tensor]:
            seen.append((weights, *measure_of(own)(weights, batches)))
            return seen[-1][1:]

        before = {t: w.clone() for t, w in state.weights.items()}
        numbers = own.end_epoch(state, 0, measure)
        present, best = torch.cat([w.flatten() for w in before.values()]), None
        for weights, losses, _ in seen:
            for i in range(8):
                individual = torch.cat([w[i].flatten() for w in weights.values()])
                cosine = (individual @ present / individual.norm() / present.norm()).item()
                fitness = -(losses[i].item() + 0.4 * cosine)
                if best is None or fitness > best[0]:
                    best = fitness, {t: w[i] for t, w in weights.items()}
        assert best is not None
        assert len(seen) == 2
        assert numbers["evolution/best_fitness"] == pytest.approx(best[0], rel=1e-5)
        for t, weights in state.weights.items():
            assert weights.allclose(0.9 * before[t] + 0.1 * best[1][t])
            assert (
                state.alpha[t].masked_fill(~state.masks[t], -torch.inf).softmax(1).allclose(weights)
            )

    def test_finds_what_lowers_a_known_loss(self) -> None:
        own, state = eg("eg(population=16)", epochs=60)
        for number in range(60):
            own.end_epoch(state, number, measure_of(own))
        assert all(w[:, 1].min() > 0.6 for w in state.weights.values())

    def test_samples_have_seeds_of_their_own_and_live_on(self) -> None:
        own, state = eg()
        assert not np.array_equal(state.samplers[0].ask(), state.samplers[1].ask())
        own.end_epoch(state, 0, measure_of(own))
        own.end_epoch(state, 1, measure_of(own))
        assert [sampler._evolution.generation for sampler in state.samplers] == [2, 2]

    def test_the_published_way_begins_anew_with_the_same_draws(self) -> None:
        own, state = eg("eg(population=8, samples=2, published=True)")
        first = state.samplers[0].ask()
        for number in range(2):
            own.end_epoch(state, number, measure_of(own))
            assert np.array_equal(own.sampler(state.context, 0).ask(), first)
        assert own.measured_batches == 1
        assert [sampler._evolution.generation for sampler in state.samplers] == [1]
        assert "covariance never adapts" in own.notes(state, ())[1]
        assert "9 passes after each epoch" in own.notes(state, ())[0]

    def test_large_spaces_have_a_diagonal_covariance(self) -> None:
        assert eg(space="darts")[1].samplers[0].state_dict()["_C"].dim() == 1
        assert "_c_1d" in eg()[1].samplers[0].state_dict()


class TestOnTheSupernet:
    def test_fitness_rises_over_generations_and_the_covariance_adapts(
        self, data: ImageData
    ) -> None:
        task = search(data, "eg(population=12, samples=1, batches=2, novelty=0)", epochs=40)
        for number in range(3):
            epoch(task, number)
        own, state = task.strategy, task.strategy_state
        assert isinstance(state, EgState)
        # At weights that stay, on batches that stay.
        best = [
            own.end_epoch(
                state, g, lambda weights, batches: task.individuals.measure(weights, 0, batches)
            )["evolution/best_fitness"]
            for g in range(40)
        ]
        assert sum(best[-5:]) / 5 > sum(best[:5]) / 5 + 0.02
        scales = state.samplers[0].scales
        assert scales.max() / scales.min() > 1.2

    def test_a_resumed_search_equals_an_uninterrupted_one(self, data: ImageData) -> None:
        tasks = [search(data, "eg(population=6)", space="nb201", layers=3) for _ in range(2)]
        assert tasks[0].warmup_epochs == 1
        epoch(tasks[0], 0)
        epoch(tasks[0], 1)
        tasks[1].load_state_dict(copy.deepcopy(tasks[0].state_dict()))
        numbers = [[epoch(task, number) for number in (2, 3)] for task in tasks]
        assert numbers[0] == numbers[1]
        for t, weights in tasks[0].strategy.final_weights(tasks[0].strategy_state).items():
            assert torch.equal(weights, tasks[1].strategy.final_weights(tasks[1].strategy_state)[t])
