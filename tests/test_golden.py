"""Golden values: numbers that were computed once, and checked in another way.

Whatever changes them changes what a seed means, or what is computed.

Those of float32 hold to 1e-6, which is more than processors differ by (some fuse a product and a
sum); those of float64 to 1e-9. `tests/instruction_sets.sh tests/test_golden.py` tries it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from searching import search
from test_mixed import Twins
from torch import Tensor

from darts_bio.config import RetrainConfig
from darts_bio.data.batches import Augmentation, Batches, Normalization, Split
from darts_bio.data.datasets import ImageData
from darts_bio.networks import SuperNet, build_network
from darts_bio.networks.reference import ReferenceCell
from darts_bio.registry import canonical_spec
from darts_bio.rules import RULES, Renewal, RuleConv2d, connect_output, draw_feedback, rule_carriers
from darts_bio.runtime import derive_seed
from darts_bio.spaces import SPACES, Candidate, Cell, Edge, Genotype
from darts_bio.strategies import Context
from darts_bio.strategies.darts_pt import _choices
from darts_bio.training.optim import WeightOptimizer

CPU = torch.device("cpu")


def twister(*key: int | str) -> np.random.RandomState:
    """Return NumPy's Mersenne Twister, seeded as PyTorch seeds its own: by the low 32 bits."""
    return np.random.RandomState(derive_seed(*key) % 2**32)


def words(source: np.random.RandomState, *shape: int) -> np.ndarray:
    return source.randint(0, 2**32, shape, dtype=np.uint64)


def uniform(source: np.random.RandomState, *shape: int) -> np.ndarray:
    """Draw float32 numbers in [0, 1) as PyTorch does: from the low 24 bits of a word each."""
    return (words(source, *shape) % 2**24) / 2**24


def below(source: np.random.RandomState, limit: int, *shape: int) -> np.ndarray:
    """Draw integers below a limit as PyTorch does: the rest of a word each."""
    return (words(source, *shape) % limit).astype(np.int64)


# Each is half of what `printf KEY | b2sum -l 64` prints, as a number.
SEEDS = {
    (0, "stem"): 1221597294444618899,
    ("feedback", 0, "cells.0", 1): 3595540787635656477,
    ("augment", 7, "train", 3): 1840882899068527248,
    (2**63,): 4981065854678742625,
}


@pytest.mark.parametrize("parts", SEEDS)
def test_seeds(parts: tuple[int | str, ...]) -> None:
    assert derive_seed(*parts) == SEEDS[parts]


class TestFeedback:
    """The first numbers of what seed 5 draws for a layer of 2 x 2 x 2 inputs.

    Printed by `[value.flatten()[:4] for value in layer(rule).feedback.values()]`. Those of the
    first draw are NumPy's, as `test_is_uniform_by_the_twister` says; those of a later one too, but
    for weight_mirror, whose normal noise is PyTorch's alone.
    """

    FIRST = [0.26022556, -0.15835330, 0.30662776, -0.03438217]
    AFTER = {
        "fa": FIRST,
        "usf": [24**-0.5],
        "frsf": [abs(x) for x in FIRST],
        "brsf": [0.28135199, 0.32701820, 0.29333506, 0.04820511],
        "kolen_pollack": FIRST,
        "weight_mirror": [0.23454578, -0.15405543, 0.29344709, -0.02557763],
        "dfa": [0.52045113, -0.31670660, 0.61325553, -0.06876434],
        "dkp": [0.52045113, -0.31670660, 0.61325553, -0.06876434],
        "pfa": [0.23275281, -0.14163549, 0.27425620, -0.03075235],
    }

    def layer(self, rule: str, update: int) -> RuleConv2d:
        layer = RuleConv2d(2, 3, 2, rule=RULES.build(rule))
        connect_output(layer, 4)
        with torch.no_grad():
            layer.weight.copy_((torch.arange(24).view(3, 2, 2, 2) % 5 - 2) / 8)
        draw_feedback(layer, 5)
        if update:
            draw_feedback(layer, 5, update)
        return layer

    def test_knows_every_rule_that_draws(self) -> None:
        drawing = [rule for rule in RULES.names() if self.layer(rule, 0).feedback]
        assert drawing == list(self.AFTER)

    @pytest.mark.parametrize("rule", AFTER)
    def test_after_an_update(self, rule: str) -> None:
        value = next(iter(self.layer(rule, 1).feedback.values()))
        assert value.dtype == torch.float32
        assert value.flatten()[:4].tolist() == pytest.approx(self.AFTER[rule], rel=1e-6, abs=1e-7)

    @pytest.mark.parametrize(
        ("rule", "update"),
        [
            (rule, update)
            for rule in AFTER
            for update in (0, 1)
            if rule != "usf" and (rule, update) != ("weight_mirror", 1)
        ],
    )
    def test_is_uniform_by_the_twister(self, rule: str, update: int) -> None:
        source = twister("feedback", 5, "", update if rule == "brsf" else 0)
        bounds = {"dfa": [0.5**0.5], "dkp": [0.5**0.5], "pfa": [(3 / 30) ** 0.5, 8**-0.5]}
        values = self.layer(rule, update).feedback.values()
        for value, bound in zip(values, bounds.get(rule, [8**-0.5]), strict=True):
            expected = bound * (2 * uniform(source, value.numel()) - 1)
            if rule in ("frsf", "brsf"):
                expected = np.abs(expected)
            assert value.detach().flatten().numpy() == pytest.approx(expected, rel=1e-6, abs=1e-7)


class TestAugmentation:
    """Batch 3 of seed 7, beside one that NumPy draws and that is put together pixel by pixel."""

    SIZE, PADDING, CUTOUT, COUNT, SEED, T = (5, 6), 2, 3, 12, 7, 3
    # hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest() of what `by_hand` returns
    DIGEST = "c1db4914451fe86b"

    def images(self) -> Tensor:
        """(12, 2, 5, 6) uint8, no pixel black."""
        return (torch.arange(self.COUNT * 60) * 89 % 251 + 1).view(-1, 2, *self.SIZE).byte()

    def by_hand(self) -> tuple[np.ndarray, list[int]]:
        images, (height, width) = self.images().numpy(), self.SIZE
        epoch, position = divmod(self.T, self.COUNT // 4)
        shuffling = twister("order", self.SEED, "train", epoch)
        order = list(range(self.COUNT))
        for i in range(self.COUNT - 1):
            j = i + int(below(shuffling, self.COUNT - i))
            order[i], order[j] = order[j], order[i]
        chosen = order[4 * position : 4 * position + 4]
        source = twister("augment", self.SEED, "train", self.T)
        shifts = below(source, 2 * self.PADDING + 1, 4, 2)
        mirrored = uniform(source, 4) < 0.5
        centers = np.floor(uniform(source, 4, 2) * self.SIZE).astype(int)
        result = np.zeros((4, 2, height, width), np.uint8)
        for n, image in enumerate(chosen):
            for row, column in np.ndindex(height, width):
                square = (
                    row - (centers[n, 0] - self.CUTOUT // 2),
                    column - (centers[n, 1] - self.CUTOUT // 2),
                )
                if all(0 <= place < self.CUTOUT for place in square):
                    continue
                y = row + shifts[n, 0] - self.PADDING
                x = (width - 1 - column if mirrored[n] else column) + shifts[n, 1] - self.PADDING
                if 0 <= y < height and 0 <= x < width:
                    result[n, :, row, column] = images[image, :, y, x]
        return result, chosen

    def test_is_what_it_was_and_what_is_drawn_by_hand(self) -> None:
        batches = Batches(
            Split(self.images(), torch.arange(self.COUNT)),
            4,
            Normalization(torch.zeros(2), torch.ones(2)),
            Augmentation(crop_padding=self.PADDING, flip=True, cutout=self.CUTOUT),
            seed=self.SEED,
            name="train",
            device=CPU,
        )
        x, labels = batches.batch(self.T)
        pixels = (x * 255).round().to(torch.uint8).numpy()
        expected, chosen = self.by_hand()
        assert labels.tolist() == chosen
        assert np.array_equal(pixels, expected)
        assert hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest() == self.DIGEST


@pytest.fixture
def _double() -> Iterator[None]:
    """Everything is drawn and computed in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(t: int, channels: int) -> tuple[Tensor, Tensor]:
    """Images (8, channels, 8, 8) and labels (8,) by a formula."""
    pixels = torch.arange(8 * channels * 64) * 37 + 1009 * t
    return (pixels % 101 / 50 - 1).view(8, channels, 8, 8), (torch.arange(8) + t) % 4


@pytest.mark.usefixtures("_double")
class TestTraining:
    """Three steps of SGD, of an epoch each, on a network of three cells and nearly all rules."""

    # `print(losses)` at the end of `test_losses`. Those of bp are PyTorch's alone, as the last test
    # says; for all rules together there is no other way, but for each the closed form in
    # test_rules.py and test_rule_family.py.
    LOSSES = {
        "all": [1.3987190673589724, 1.6793441363663013, 1.3349093667182552],
        "bp": [1.3987190673589724, 1.7767805333266773, 1.3960360733209698],
    }
    # Of sixteen edges, so without pfa and dkp, whose closed forms are in test_rule_family.py.
    RULE_OF_EDGE = [rule for rule in RULES.names() if rule not in ("pfa", "dkp")]
    RULE_OF_EDGE += ["bp", "usf", "hebbian(form=oja)", "fa(scale=match)"]
    RULE_OF_EDGE += ["predictive(error=W)", "kolen_pollack(scale=match)"]
    CONFIG = RetrainConfig(
        genotype="x", epochs=3, batch_size=8, lr=0.1, lr_min=0.01, weight_decay=0.01, clip=2.0
    )

    def network(self, rules: str) -> Any:
        names = iter(self.RULE_OF_EDGE)
        ops = ["sep_conv_3x3", "dil_conv_3x3"]
        cells = {}
        for cell_type in ("normal", "reduce"):
            edges = [
                Edge(node, source, Candidate(ops[source], next(names) if rules == "all" else "bp"))
                for node in (2, 3, 4, 5)
                for source in (0, 1)
            ]
            cells[cell_type] = Cell(tuple(edges), (2, 3, 4, 5))
        torch.manual_seed(0)
        return build_network(
            Genotype("darts", cells), channels=4, layers=3, num_classes=4, in_channels=2
        )

    @pytest.mark.parametrize("rules", LOSSES)
    def test_losses(self, rules: str) -> None:
        network = self.network(rules)
        if rules == "all":
            specs = {carrier.rule.spec for _, carrier in rule_carriers(network)}
            assert specs == set(map(canonical_spec, self.RULE_OF_EDGE))
        optimizer, renewal = WeightOptimizer(network, self.CONFIG), Renewal(network, 0)
        losses = []
        for t in range(3):
            optimizer.begin_epoch(t)
            x, labels = batch(t, 2)
            loss = F.cross_entropy(network(x), labels)
            losses.append(loss.item())
            optimizer.differentiate([loss])
            optimizer.update()
            renewal(t + 1)
        assert losses == pytest.approx(self.LOSSES[rules], rel=1e-9)

    def test_losses_of_backpropagation_by_pytorch_alone(self) -> None:
        network = self.network("bp")
        parameters = list(network.parameters())
        sgd = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 3, 0.01)
        losses = []
        for t in range(3):
            x, labels = batch(t, 2)
            loss = F.cross_entropy(network(x), labels)
            losses.append(loss.item())
            sgd.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 2.0)
            sgd.step()
            schedule.step()
        assert losses == pytest.approx(self.LOSSES["bp"], rel=1e-9)


@pytest.mark.usefixtures("_double")
class TestSearch:
    """Three steps of first-order darts over two operations under two rules."""

    # `print(losses, alpha)` in `expect`; the last test gets them by PyTorch alone. The losses are
    # those of alpha's batch and of the weights' in turn, alpha is that of each cell's first edge.
    LOSSES = [
        *(1.4361294058016032, 1.4360652811385035, 1.3773094037551465),
        *(1.4115301174995754, 1.4742005202044137, 1.391712149521192),
    ]
    ALPHA = {
        "normal": [
            *(0.31380934233797764, -0.7609497469902615),
            *(0.33142122950421193, -0.04109205025052654),
        ],
        "reduce": [
            *(0.685303283206335, -1.10301978541148, -0.09896124997893005),
            *(0.5797458703134539, 0.5341656221994404),
        ],
    }

    def task(self, **options: Any) -> Any:
        data = Split(torch.zeros(32, 1, 8, 8, dtype=torch.uint8), torch.arange(32) % 4)
        task = search(
            ImageData(data, data, ("a", "b", "c", "d")),
            "darts(lr=0.1, init=0.5)",
            rules=("fa", "frsf"),
            clip=1.0,
            **options,
        )
        for source, batches in ((0, task.train_batches), (10, task.valid_batches)):
            batches.batch = lambda t, source=source: batch(source + t, 1)  # type: ignore[method-assign]
        return task

    def expect(self, losses: list[float], alpha: dict[str, Tensor]) -> None:
        assert losses == pytest.approx(self.LOSSES, rel=1e-9)
        first_edges = {t: values[0].tolist() for t, values in alpha.items()}
        expected = {t: pytest.approx(values, rel=1e-9) for t, values in self.ALPHA.items()}
        assert first_edges == expected

    @pytest.mark.parametrize("memory", ["normal", "low"])
    def test_losses_and_alpha(self, memory: str) -> None:
        task, losses = self.task(memory=memory), []
        loss_of = task._weight_loss

        def noting(*arguments: Any) -> Any:
            loss, logits = loss_of(*arguments)
            losses.append(loss.item())
            return loss, logits

        task._weight_loss = noting
        for t in range(3):
            task.step(t)
        self.expect(losses, task.strategy_state.alpha)

    def test_losses_and_alpha_by_pytorch_alone(self) -> None:
        """A module a candidate, and PyTorch's optimizers, from the same weights on."""
        task = self.task()
        alpha = {
            t: a.detach().clone().requires_grad_() for t, a in task.strategy_state.alpha.items()
        }
        torch.manual_seed(derive_seed("weights", 0))
        net = SuperNet(
            task.space,
            task.config.rules,
            channels=8,
            layers=3,
            num_classes=4,
            in_channels=1,
            cell=ReferenceCell,
        )
        Twins(task.supernet, net).give_feedback()
        sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
        adam = torch.optim.Adam(alpha.values(), 0.1, (0.5, 0.999), weight_decay=1e-3)
        losses = []
        for t in range(3):
            for source, optimizer in ((10, adam), (0, sgd)):
                x, labels = batch(source + t, 1)
                loss = F.cross_entropy(net(x, {t: a.softmax(1) for t, a in alpha.items()}), labels)
                adam.zero_grad()
                sgd.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
        self.expect(losses, alpha)


def test_the_order_in_which_darts_pt_chooses() -> None:
    """Edges, then the node that has more edges than it keeps; by a generator that is seeded by hand."""
    space = SPACES.build("darts(nodes=2)")
    context = Context(space, space.table(["fa"]), 7, CPU, epochs=1, steps_per_epoch=1)
    orders = {}
    for cell_type in ("normal", "reduce"):
        source = torch.Generator().manual_seed(derive_seed("perturbation", 7, cell_type))
        orders[cell_type] = [[edge] for edge in torch.randperm(5, generator=source).tolist()]
    choices = _choices(context)
    assert choices[:5] == [
        dict(zip(orders, edges, strict=True)) for edges in zip(*orders.values(), strict=True)
    ]
    assert choices[5] == {"normal": [2, 3, 4], "reduce": [2, 3, 4]}
    assert [choice["normal"][0] for choice in choices[:5]] == [1, 4, 3, 2, 0]
