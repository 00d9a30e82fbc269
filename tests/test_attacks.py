"""Attacks: they do what torchattacks does, leave a network as it was, and climb along the gradient
asked for.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import ATTACKS, Attack, perturb
from darts_bio.evaluation.gradient_check import FIGURES, gradient_figures
from darts_bio.evaluation.victim import Victim, redraws
from darts_bio.rules import convert, draw_feedback, rule_carriers
from darts_bio.runtime import derive_seed, seeded

EPS = 30 / 255
CHEAP = {
    "fgsm": "fgsm",
    "pgd": "pgd(steps=4)",
    "tpgd": "tpgd(steps=4)",
    "apgd_ce": "apgd_ce(steps=5)",
    "apgd_dlr": "apgd_dlr(steps=5)",
    "square": "square(queries=20)",
    "one_pixel": "one_pixel(steps=2, population=20)",
    "autoattack": "autoattack",
}
DIRECT: dict[str, Any] = {
    "fgsm": lambda m, seed: torchattacks.FGSM(m, eps=EPS),
    "pgd": lambda m, seed: torchattacks.PGD(m, eps=EPS, alpha=2.5 * EPS / 4, steps=4),
    "tpgd": lambda m, seed: torchattacks.TPGD(m, eps=EPS, alpha=2.5 * EPS / 4, steps=4),
    "apgd_ce": lambda m, seed: torchattacks.APGD(m, eps=EPS, steps=5, loss="ce", seed=seed),
    "apgd_dlr": lambda m, seed: torchattacks.APGD(m, eps=EPS, steps=5, loss="dlr", seed=seed),
    "square": lambda m, seed: torchattacks.Square(m, eps=EPS, n_queries=20, seed=seed),
    "one_pixel": lambda m, seed: torchattacks.OnePixel(m, pixels=1, steps=2, popsize=20),
    "autoattack": lambda m, seed: torchattacks.AutoAttack(m, eps=EPS, n_classes=10, seed=seed),
}


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def fit(model: nn.Module, steps: int = 60) -> nn.Module:
    """Trains a classifier of pixels on the digits for a second."""
    train = load_data("digits").train
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    source = torch.Generator().manual_seed(0)
    for update in range(1, steps + 1):
        index = torch.randint(len(train), (128,), generator=source)
        optimizer.zero_grad()
        F.cross_entropy(model(train.images[index].float() / 255), train.labels[index]).backward()
        optimizer.step()
        draw_feedback(model, 0, update)
    return model.eval()


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fit(small_net())


@pytest.fixture(scope="module")
def fa() -> nn.Module:
    return fit(convert(small_net(), "fa"))


@pytest.fixture(scope="module")
def images(plain: nn.Module) -> tuple[Tensor, Tensor]:
    """40 digits that the plain network gets right."""
    test = load_data("digits").test
    pixels = test.images.float() / 255
    with torch.no_grad():
        right = (plain(pixels).argmax(1) == test.labels).nonzero().flatten()[:40]
    return pixels[right], test.labels[right]


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(pixels).argmax(1) == labels).float().mean().item()


OF_ALL = [  # an ensemble of attacks, which takes seconds and is compared with torchattacks' below
    pytest.param(name, marks=pytest.mark.slow) if name == "autoattack" else name for name in CHEAP
]


def test_every_attack_is_tried_here() -> None:
    assert set(CHEAP) == set(DIRECT) == set(ATTACKS)


class TestLibrary:
    @pytest.mark.parametrize("name", CHEAP)
    def test_the_same_as_torchattacks_called_directly(
        self, plain: nn.Module, images: tuple[Tensor, Tensor], name: str
    ) -> None:
        pixels, labels = (
            images if name not in ("autoattack", "one_pixel") else (images[0][:8], images[1][:8])
        )
        ours = perturb(ATTACKS.build(CHEAP[name]), plain, pixels, labels, EPS, seed=5)
        seed = derive_seed("attack", 5, 0) % 2**32
        with seeded(seed):
            theirs = DIRECT[name](plain, seed)(pixels, labels).detach()
        plain.requires_grad_(True)
        assert torch.equal(ours, theirs)
        assert accuracy(plain, ours, labels) == accuracy(plain, theirs, labels)

    @pytest.mark.parametrize("name", OF_ALL)
    def test_the_network_and_all_random_states_are_left_as_they_were(
        self, fa: nn.Module, images: tuple[Tensor, Tensor], name: str
    ) -> None:
        model = copy.deepcopy(fa)
        model.train()
        model[1].eval()  # type: ignore[index]
        model[3].bias.requires_grad_(False)  # type: ignore[index]
        gradients = [torch.full_like(p, 7.0) for p in model.parameters()]
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient
        state = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        required = [p.requires_grad for p in model.parameters()]
        draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index, union-attr]
        pixels = images[0][:6].clone()
        perturb(ATTACKS.build(CHEAP[name]), model, pixels, images[1][:6], EPS, gradients="rule")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == required
        assert all(
            p.grad is g and (g == 7).all()
            for p, g in zip(model.parameters(), gradients, strict=True)
        )
        assert torch.equal(torch.get_rng_state(), draws[0])
        assert (np.random.get_state()[1] == draws[1]).all()
        assert random.getstate() == draws[2]
        assert torch.equal(pixels, images[0][:6])

    @pytest.mark.parametrize("name", OF_ALL)
    def test_what_it_may_change(
        self, plain: nn.Module, images: tuple[Tensor, Tensor], name: str
    ) -> None:
        attack: Attack = ATTACKS.build(CHEAP[name])
        pixels, labels = images[0][:6], images[1][:6]
        changed = perturb(attack, plain, pixels, labels, EPS)
        assert 0 <= changed.min() <= changed.max() <= 1
        difference = (changed - pixels).abs()
        if attack.bounded:
            assert difference.max() <= EPS + 1e-6
            assert torch.allclose(perturb(attack, plain, pixels, labels, 0.0), pixels, atol=1e-6)
        else:
            assert (difference.amax(1) > 0).flatten(1).sum(1).max() <= 1

    def test_restarts_keep_what_the_first_has_found(
        self, plain: nn.Module, images: tuple[Tensor, Tensor]
    ) -> None:
        once = perturb(ATTACKS.build("square(queries=2)"), plain, *images, 2 * EPS)
        often = perturb(ATTACKS.build("square(queries=2, restarts=8)"), plain, *images, 2 * EPS)
        with torch.no_grad():
            fooled, more = ((plain(x).argmax(1) != images[1]) for x in (once, often))
        assert torch.equal(often[fooled], once[fooled])
        assert more.sum() > fooled.sum()
        assert (more | ~fooled).all()

    def test_a_seed_says_what_is_drawn(
        self, plain: nn.Module, images: tuple[Tensor, Tensor]
    ) -> None:
        attack = ATTACKS.build("pgd(steps=2)")
        one, same, other = (perturb(attack, plain, *images, EPS, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_it_is_said_where_the_package_is_missing(
        self, plain: nn.Module, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torchattacks", None)
        hint = r"need torchattacks .*; pip install 'darts-bio\[attacks\]' && pip install --no-deps torchattacks"
        with pytest.raises(InputError, match=hint):
            perturb(ATTACKS.build("fgsm"), plain, *images, EPS)


class TestGradients:
    def gradient(self, victim: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        x = pixels.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(victim(x), labels, reduction="sum"), x)[0]

    def test_the_true_one_is_that_of_the_same_network_under_bp(
        self, fa: nn.Module, images: tuple[Tensor, Tensor]
    ) -> None:
        model, pixels = copy.deepcopy(fa).double(), images[0].double()
        exact = small_net().double().eval()
        exact.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k in exact.state_dict()}
        )
        expected = self.gradient(exact, pixels, images[1])
        assert torch.allclose(
            self.gradient(Victim(model, "true"), pixels, images[1]), expected, atol=1e-12
        )
        ruled = self.gradient(Victim(model, "rule"), pixels, images[1])
        assert torch.equal(ruled, self.gradient(model, pixels, images[1]))
        assert not torch.allclose(ruled, expected, atol=1e-3)

    def test_a_rule_that_sends_no_error_has_a_gradient_of_zero(
        self, images: tuple[Tensor, Tensor]
    ) -> None:
        model = convert(small_net(), "hebbian").eval()
        assert not self.gradient(Victim(model, "rule"), *images).any()
        assert self.gradient(Victim(model, "true"), *images).any()
        assert torch.equal(
            perturb(ATTACKS.build("fgsm"), model, *images, EPS, gradients="rule"), images[0]
        )

    @pytest.mark.parametrize(
        "rule", ["dfa", "usf", "frsf", "kolen_pollack", "weight_mirror", "predictive"]
    )
    def test_every_rule_can_be_attacked_by_both(
        self, rule: str, images: tuple[Tensor, Tensor]
    ) -> None:
        model = convert(small_net(), rule).eval()
        figures = dict(zip(FIGURES, gradient_figures(model, *images).mean(0), strict=True))
        assert figures["slope_error"] < 1e-3
        assert figures["true_vanishes"] == 0
        assert figures["cosine"] < 0.99
        for gradients in ("true", "rule"):
            perturb(ATTACKS.build("pgd(steps=2)"), model, *images, EPS, gradients=gradients)  # type: ignore[arg-type]

    def test_bp_has_one_gradient(self, plain: nn.Module, images: tuple[Tensor, Tensor]) -> None:
        model = convert(plain, "bp").eval()
        figures = gradient_figures(model, *images)
        assert torch.allclose(
            figures[:, 0], torch.ones(len(figures), dtype=torch.float64), atol=1e-6
        )
        assert not figures[:, 1:].round(decimals=3).any()

    def test_random_feedback_is_averaged_over_its_draws(
        self, images: tuple[Tensor, Tensor]
    ) -> None:
        model, (pixels, labels) = convert(small_net(), "brsf").eval(), images
        assert redraws(model)
        assert not redraws(convert(small_net(), "frsf"))
        assert not redraws(convert(small_net(), "weight_mirror"))
        before = copy.deepcopy(model.state_dict())
        expected = []
        for draw in (1, 2, 3):
            other = copy.deepcopy(model)
            for name, carrier in rule_carriers(other):
                carrier.renew_feedback(
                    torch.Generator().manual_seed(derive_seed("expectation", 9, name, draw))
                )
            expected.append(self.gradient(other, pixels, labels))
        found = self.gradient(Victim(model, "rule", draws=3, seed=9), pixels, labels)
        assert torch.allclose(found, torch.stack(expected).mean(0), atol=1e-6)
        assert not torch.allclose(found, expected[0], atol=1e-6)
        assert torch.equal(Victim(model, "rule", draws=3)(pixels), model(pixels))
        changed = [
            perturb(
                ATTACKS.build("fgsm"),
                convert(small_net(), "brsf"),
                *images,
                EPS,
                gradients="rule",
                draws=n,
            )
            for n in (1, 3)
        ]
        assert not torch.equal(*changed)
        model.load_state_dict(before)
        perturb(ATTACKS.build("fgsm"), model, *images, EPS, gradients="rule", draws=3)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pdg", "unknown attack 'pdg': did you mean 'pgd'"),
        (
            "pgd(eps=8)",
            r"attack 'pgd' has no option 'eps': did you mean .*\(its options: steps, step, restarts\)",
        ),
        ("pgd(steps=0)", "attack pgd: steps: expected a whole number of at least 1, found 0"),
        (
            "square(queries=many)",
            "attack square: queries: expected a whole number of at least 1, found 'many'",
        ),
        ("pgd(step=-1)", "attack pgd: step: expected a number above 0 and below 256, found -1"),
        ("pgd(step=long)", "attack pgd: step: expected a number above 0"),
    ],
)
def test_refused(spec: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        ATTACKS.build(spec)


def test_steps_that_cannot_reach_the_bound_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"5 steps of 1/255 end before eps 8/255; take more or longer ones"
    ):
        ATTACKS.build("pgd(steps=5, step=1)").check(8 / 255)
    ATTACKS.build("pgd(steps=8, step=1)").check(8 / 255)


def test_attacks_that_need_more_classes_are_refused(images: tuple[Tensor, Tensor]) -> None:
    two = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(
        InputError, match="attack apgd_dlr: expected at least 3 classes, found 2; leave it out"
    ):
        perturb(ATTACKS.build("apgd_dlr"), two, images[0], images[1] % 2, EPS)


class Returning(nn.Module):
    """A classifier of which something other than its logits is returned, by a function of them."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.change = small_net(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


class Hidden(nn.Module):
    """A classifier whose logits autograd sees no dependence of."""

    def __init__(self, model: nn.Module, mode: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.mode = model, mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return self.model(x)  # type: ignore[no-any-return]


WRONG: dict[str, tuple[Any, str]] = {
    "model and attack": (
        {"attack": small_net(), "model": ATTACKS.build("fgsm")},
        r"found Sequential; call perturb\(attack, model, pixels, labels, eps\)$",
    ),
    "a function": ({"model": lambda x: x}, "expected a torch.nn.Module, found function; call a"),
    "a dict": (
        {"model": Returning(lambda y: {"logits": y})},
        "expected logits .* found dict; wrap",
    ),
    "a tuple": ({"model": Returning(lambda y: (y, y))}, "expected logits .* found tuple; wrap"),
    "one logit": (
        {"model": Returning(lambda y: y[:, 0])},
        r"expected logits \(1, classes\) .* found \(1,\) of torch.float32; wrap it",
    ),
    "classes": (
        {"model": Returning(lambda y: y.argmax(1, keepdim=True))},
        r"expected logits .* found \(1, 1\) of torch.int64; wrap it",
    ),
    "detached": (
        {"model": Returning(Tensor.detach)},
        "attack fgsm: expected logits that depend on the images, found .* leave torch.no_grad",
    ),
    "channels": (
        {"pixels": torch.rand(3, 3, 8, 8)},
        r"cannot take \(1, 3, 8, 8\) of torch.float32 \(.* 1 channels.*\); give it what it was",
    ),
    "float64": (
        {"pixels": torch.rand(3, 1, 8, 8).double()},
        r"cannot take .* of torch.float64 \(.*\); its weights are of torch.float32: convert one",
    ),
    "a list": ({"labels": [0, 1, 2]}, "labels: expected a tensor of 3 classes, found list; make"),
    "bytes": ({"pixels": 255 * torch.rand(3, 1, 8, 8)}, r"expected pixels in \[0, 1\], found"),
    "normalized": ({"pixels": torch.rand(3, 1, 8, 8) - 0.5}, r"expected pixels in \[0, 1\]"),
    "nan": ({"pixels": torch.full((3, 1, 8, 8), torch.nan)}, r"expected pixels in \[0, 1\]"),
    "bfloat16": ({"pixels": torch.rand(3, 1, 8, 8).bfloat16()}, "expected pixels of float32 or"),
    "uint8": ({"pixels": torch.ones(3, 1, 8, 8).byte()}, "expected pixels of float32 or float64"),
    "one image": ({"pixels": torch.rand(1, 8, 8)}, r"expected a tensor of images \(N, C, H, W\)"),
    "eps in 1/255": ({"eps": 8}, "expected a share of a pixel's range, from 0 to 1, found 8"),
    "negative eps": ({"eps": -0.1}, "eps: expected a number of at least 0, found -0.1"),
    "gradients": ({"gradients": "rules"}, "unknown gradients of an attack 'rules'"),
    "diverged": (
        {"model": Returning(lambda y: y * torch.nan)},
        "expected finite logits, found nan among those of the first image; the weights may have",
    ),
    "no draw": ({"draws": 0}, "attack: draws: expected a whole number of at least 1, found 0"),
    "no seed": ({"seed": None}, "attack: seed: expected a whole number .* found None"),
    "a text": ({"attack": "fgsm"}, "expected an attack, such as"),
    "few labels": ({"labels": torch.tensor([0, 1])}, "labels: expected a class from 0 to 9"),
    "no class": ({"labels": torch.tensor([0, 1, 10])}, "3 images, found 0 to 10"),
    "shares": ({"labels": torch.rand(3)}, "labels: expected a class from 0 to 9, a whole number"),
}
"""Arguments of `perturb`, and what it says of them."""


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_label_or_bound_is_refused(name: str) -> None:
    given, message = WRONG[name]
    arguments = {
        "attack": ATTACKS.build("fgsm"),
        "model": small_net(),
        "pixels": torch.rand(3, 1, 8, 8),
        "labels": torch.tensor([0, 1, 2]),
        "eps": EPS,
    }
    with pytest.raises(InputError, match=message) as caught:
        perturb(**arguments | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CHEAP)
def test_a_gradient_that_autograd_does_not_see_is_refused(
    name: str, mode: Callable[[], Any], images: tuple[Tensor, Tensor]
) -> None:
    """Its images came back unchanged, as if all of them withstood; other attacks need none."""
    attack, plain = ATTACKS.build(CHEAP[name]), small_net()
    if attack.white_box:
        with pytest.raises(InputError, match="expected logits that depend on the images"):
            perturb(attack, Hidden(plain, mode), *images, EPS)
    else:
        changed = (perturb(attack, m, *images, EPS) for m in (plain, Hidden(plain, mode)))
        assert torch.equal(*changed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", [name for name in CHEAP if name != "autoattack"])
def test_labels_are_whole_numbers_of_any_type(name: str, dtype: torch.dtype) -> None:
    model, pixels, labels = small_net(), torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    found, expected = (
        perturb(ATTACKS.build(CHEAP[name]), model, pixels, y, EPS)
        for y in (labels.to(dtype), labels)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", [name for name in CHEAP if name != "autoattack"])
def test_attacks_differentiate_whatever_is_around_them(name: str, around: Any) -> None:
    """As in a loop that evaluates, on images of which autograd wants nothing."""
    model, labels = small_net(), torch.tensor([0, 1, 2])
    pixels, attack = torch.rand(3, 1, 8, 8).requires_grad_(), ATTACKS.build(CHEAP[name])
    expected = perturb(attack, model, pixels, labels, EPS)
    with around():
        found = perturb(attack, model, pixels.clone(), labels.clone(), EPS)
    assert torch.equal(found, expected)
    assert not expected.requires_grad


@pytest.mark.parametrize("name", CHEAP)
def test_of_no_image_there_is_nothing_to_attack(name: str) -> None:
    """As where a network gets none of a batch right."""
    nothing = torch.rand(0, 1, 8, 8)
    changed = perturb(ATTACKS.build(CHEAP[name]), small_net(), nothing, torch.zeros(0).long(), EPS)
    assert changed.shape == nothing.shape
