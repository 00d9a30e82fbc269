"""Training on adversarial examples: how they are made, what is learned from them, and that it
helps.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_processes import Two
from torch import Tensor, nn

from darts_bio.config import RetrainConfig
from darts_bio.data.batches import Normalization
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import ATTACKS, perturb
from darts_bio.rules import RULES, convert, true_gradients
from darts_bio.runtime import StopRequest
from darts_bio.spaces import load_genotype
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training import retrain
from darts_bio.training.adversarial import ADVERSARIES, AdversarialExamples
from darts_bio.training.engine import fit
from darts_bio.training.listeners import Listener
from darts_bio.training.retrain import Retraining
from darts_bio.training.trained import load_trained

CPU = torch.device("cpu")
CELL = "|nor_conv_3x3:{0}~0|+|none~0|none~1|+|none~0|nor_conv_3x3:{0}~1|none~2|"
SMALL: dict[str, Any] = {
    "channels": 4,
    "layers": 3,
    "batch_size": 16,
    "crop_padding": 1,
    "flip": False,
    "cutout": 0,
}
SMALL |= {"auxiliary": 0.0, "drop_path": 0.0, "lr": 0.05, "epochs": 2, "clip": 0.0}
CONFIG = RetrainConfig(genotype="x", **SMALL)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def training(data: ImageData, adversary: str, rule: str = "usf", **options: Any) -> Retraining:
    config = replace(CONFIG, adversarial=adversary, **options)
    return Retraining.of_genotype(config, load_genotype(CELL.format(rule)), data, CPU)


def trained(task: Retraining, steps: int) -> Retraining:
    """After some steps: before, the slope at an image is about as small as rounding."""
    for t in range(steps):
        task.step(t)
    return task


def made(task: Retraining, t: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and examples of step t."""
    x, labels = task.source.batch(t)
    assert task.examples is not None
    return x, labels, task.examples.made(x, labels, task.examples.starts(t, x))


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether examples are the same, but for pixels whose slope is so near 0 that its sign hangs on
    the order in which a batch of another size is summed.
    """
    return one.shape == other.shape and (one - other).abs().lt(1e-4).float().mean().item() > 0.99


@pytest.mark.parametrize("adversary", ["pgd(eps=30, step=8)", "trades(eps=30, step=8)"])
class TestExamples:
    def test_within_the_bound_and_harder(self, data: ImageData, adversary: str) -> None:
        task = trained(training(data, adversary), 20)
        x, labels, example = made(task)
        mean, std = task.source.normalization.mean, task.source.normalization.std
        before, after = (images * std + mean for images in (x, example))
        assert (after - before).abs().max() <= 30 / 255 + 1e-6
        assert after.min() >= -1e-6
        assert after.max() <= 1 + 1e-6
        task.network.eval()

        @torch.no_grad()
        def harm(images: Tensor) -> float:
            """What the adversary climbs: the loss, or how far predictions are from those on clean
            images.
            """
            logits = task.network(images).log_softmax(1)
            if adversary.startswith("pgd"):
                return F.nll_loss(logits, labels).item()
            return F.kl_div(
                logits, task.network(x).log_softmax(1), reduction="batchmean", log_target=True
            ).item()

        # Changes of the same size without a gradient. In d pixels the slope along its own signs is
        # about sqrt(2 d / pi) standard deviations of the slope along random ones, here 6, so none
        # of 50 comes near.
        source = torch.Generator().manual_seed(0)
        signs = [torch.randint(2, x.shape, generator=source) * 2.0 - 1 for _ in range(50)]
        drawn = [harm(((before + 30 / 255 * sign).clamp(0, 1) - mean) / std) for sign in signs]
        assert harm(example) > max(drawn)

    def test_the_network_is_left_as_it_was(self, data: ImageData, adversary: str) -> None:
        task = training(data, adversary, "brsf")
        task.network.train()
        next(task.network.parameters()).requires_grad_(False)
        state = {name: value.clone() for name, value in task.network.state_dict().items()}
        required = [p.requires_grad for p in task.network.parameters()]
        draws = torch.get_rng_state()
        made(task)
        assert all(
            torch.equal(value, state[name]) for name, value in task.network.state_dict().items()
        )
        assert all(module.training for module in task.network.modules())
        assert [p.requires_grad for p in task.network.parameters()] == required
        assert all(p.grad is None for p in task.network.parameters())
        assert torch.equal(torch.get_rng_state(), draws)

    def test_by_the_true_gradient_or_the_rules(self, data: ImageData, adversary: str) -> None:
        ruled = adversary.replace(")", ", gradient=rule)")
        for rule, alike in (("bp", True), ("fa", False)):
            assert (
                torch.equal(
                    made(training(data, adversary, rule))[2], made(training(data, ruled, rule))[2]
                )
                == alike
            )

    def test_drawn_by_the_seed_and_the_step(self, data: ImageData, adversary: str) -> None:
        task = training(data, adversary)
        assert task.examples is not None
        x, _ = task.source.batch(0)
        one, same, later = (task.examples.starts(t, x) for t in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, later)
        other = training(data, adversary, seed=1)
        assert other.examples is not None
        assert not torch.equal(one, other.examples.starts(0, x))

    def test_two_processes_make_the_parts_of_one_batch(
        self, data: ImageData, adversary: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, two = trained(training(data, adversary), 20), Two(monkeypatch)
        assert whole.examples is not None
        x, _, examples = made(whole)
        starts, parts = whole.examples.starts(0, x), []
        for number in range(2):
            two.be(number)
            task = training(data, adversary)
            task.network.load_state_dict(whole.network.state_dict())
            assert task.examples is not None
            own, _, example = made(task)
            assert torch.equal(own, x[8 * number :][:8])
            assert torch.equal(task.examples.starts(0, own), starts[8 * number :][:8])
            parts.append(example)
        assert alike(torch.cat(parts), examples)

    def test_in_parts_they_are_the_same(
        self, data: ImageData, adversary: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a step makes, whether it passes the batch through at once or in parts."""
        before, found = trained(training(data, adversary), 20).network.state_dict(), []
        for count in (1, 2):
            task, parts = training(data, adversary, accumulate=count), []
            task.network.load_state_dict(before)
            assert task.examples is not None
            own = task.examples.made

            def kept(*given: Tensor, own: Any = own, parts: list[Tensor] = parts) -> Tensor:
                parts.append(own(*given))
                return parts[-1]

            monkeypatch.setattr(task.examples, "made", kept)
            task.step(0)
            assert len(parts) == count
            found.append(torch.cat(parts))
        assert alike(*found)

    def test_processes_average_batch_norms_before_they_make_them(
        self, data: ImageData, adversary: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else what is trained would hang on when a checkpoint was last written."""
        task, events = training(data, adversary), []
        assert task.examples is not None
        own = task.examples.made
        means = {
            id(b)
            for name, b in task.network.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        }
        assert means
        monkeypatch.setattr(
            retrain, "average", lambda tensors: events.append(set(map(id, tensors)) == means)
        )
        monkeypatch.setattr(
            task.examples, "made", lambda *given: events.append("made") or own(*given)
        )
        task.step(0)
        assert events == [True, "made"]

    def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(
        self, data: ImageData, adversary: str, tmp_path: Any
    ) -> None:
        short = adversary.replace("step=8", "step=30, steps=1")

        def run(name: str, stop_after: int | None = None) -> dict[str, Tensor]:
            out = tmp_path / name
            task = training(data, short, "brsf", out=str(out), resume=out.exists())
            stop, whole = StopRequest(), task.step

            def step(t: int) -> Any:
                if stop_after is not None and t == stop_after:
                    stop.signal = 15  # type: ignore[assignment]
                return whole(t)

            task.step = step  # type: ignore[method-assign]
            folder = RunFolder.open("train", task.config, "test", genotype=task.genotype)
            fit(task, folder, Listener(), stop, log_every=2)
            return task.network.state_dict()

        expected = run("whole")
        run("parts", stop_after=2)
        found = run("parts")
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


class TestClosedForms:
    def test_one_long_step_of_pgd_on_a_linear_model_is_its_sign(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
        normalization = Normalization(
            torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor([0.2, 0.3, 0.1]).double()
        )
        adversary = ADVERSARIES.build("pgd(eps=25.5, step=255, steps=1)")
        pixels, labels = torch.rand(5, 3, 2, 2).double(), torch.tensor([0, 1, 2, 1, 0])
        mean, std = (value.view(-1, 1, 1) for value in (normalization.mean, normalization.std))
        x = ((pixels - mean) / std).requires_grad_()
        examples = AdversarialExamples(adversary, model, normalization, seed=0, amp="none")
        found = examples.made(x.detach(), labels, torch.zeros_like(x)) * std + mean
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        expected = (pixels + 0.1 * gradient.sign()).clamp(0, 1)
        assert torch.allclose(found, expected, atol=1e-7)

    def test_the_loss_of_trades(self, data: ImageData) -> None:
        task = trained(training(data, "trades(beta=3, eps=30, step=8)", label_smoothing=0.1), 40)
        x, labels, example = made(task)
        assert task.examples is not None
        _, loss = task._pass(x, labels, example)
        clean, moved = task.network(x).log_softmax(1), task.network(example).log_softmax(1)
        divergence = (clean.exp() * (clean - moved)).sum(1).mean()
        assert 3 * divergence > 100 * 1e-5  # it weighs far more than the tolerance below
        expected = F.cross_entropy(task.network(x), labels, label_smoothing=0.1) + 3 * divergence
        assert torch.allclose(loss, expected, atol=1e-5)

    @pytest.mark.parametrize("rule", ["brsf", "dfa"])
    def test_each_of_the_two_passes_of_trades_is_sent_its_own_error(
        self, data: ImageData, rule: str
    ) -> None:
        """As if each were descended alone; dfa's layers read the output's error from one place in
        both.
        """
        task = trained(training(data, "trades(eps=40, step=10)", rule), 20)
        task.optimizer.optimizer.zero_grad()
        x, labels, example = made(task)
        assert task.examples is not None
        _, loss = task._pass(x, labels, example)
        weights = list(task.network.parameters())
        together = torch.autograd.grad(loss, weights)
        outputs = [task.network(images).detach().requires_grad_() for images in (x, example)]
        clean, moved = outputs
        errors = torch.autograd.grad(
            task.examples.adversary.loss(moved, clean, labels, task.loss), outputs
        )
        for images, error in zip((x, example), errors, strict=True):
            task.network(images).backward(error)
        for weight, gradient in zip(weights, together, strict=True):
            assert weight.grad is not None
            assert torch.allclose(weight.grad, gradient, rtol=1e-4, atol=1e-7)

    def test_the_loss_of_pgd(self, data: ImageData) -> None:
        task = training(data, "pgd")
        x, labels, example = made(task)
        assert task.examples is not None
        logits, loss = task._pass(x, labels, example)
        assert torch.equal(loss, F.cross_entropy(task.network(example), labels))
        assert torch.equal(logits, task.network(example))

    def test_where_no_error_is_sent_the_images_stay_at_the_start(self) -> None:
        model = convert(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "hebbian")
        normalization = Normalization(torch.zeros(3), torch.ones(3))
        adversary = ADVERSARIES.build("pgd(gradient=rule)")
        x, start = torch.full((4, 3, 2, 2), 0.5), torch.rand(4, 3, 2, 2)
        examples = AdversarialExamples(adversary, model, normalization, seed=0, amp="none")
        assert torch.allclose(
            examples.made(x, torch.tensor([0, 1, 2, 0]), start), x + start * 8 / 255
        )


@pytest.mark.parametrize("adversary", ["pgd(steps=4)", "trades(steps=4)"])
@pytest.mark.parametrize(
    "options",
    [{"mixup": 0.4}, {"accumulate": 2}, {"amp": "bf16"}, {"ema": 0.9}, {"drop_path": 0.2}],
)
def test_with_the_other_parts_of_a_recipe(
    data: ImageData, adversary: str, options: dict[str, Any]
) -> None:
    task = training(data, adversary, **options)
    task.begin_epoch(1)
    before = [p.clone() for p in task.network.parameters()]
    sums = task.step(0)["train"]
    assert torch.isfinite(sums.totals).all()
    assert sums.count == 16
    assert any(
        not torch.equal(p, q) for p, q in zip(task.network.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gradient", ["true", "rule"])
def test_under_every_rule(data: ImageData, rule: str, gradient: str) -> None:
    task = training(data, f"pgd(eps=2, step=4, steps=1, gradient={gradient})", rule)
    x, labels, example = made(task)
    task.network.eval()
    images = x.clone().requires_grad_()
    with true_gradients(task.network) if gradient == "true" else contextlib.nullcontext():
        loss = F.cross_entropy(task.network(images), labels) + 0 * images.sum()
        (sent,) = torch.autograd.grad(loss, images)
    blocked = gradient == "rule" and rule in ("hebbian", "predictive")
    assert bool(sent.any()) != blocked
    task.network.train()
    # At a pixel that is neither black nor white, a step of twice eps ends at the bound on the side
    # of the slope.
    normalization = task.source.normalization
    pixels = x * normalization.std + normalization.mean
    inner = (pixels > 0.05) & (pixels < 0.95)
    moved = (example - x) * normalization.std * 255 / 2
    if not blocked:
        assert (moved - sent.sign()).abs()[inner].lt(1e-3).float().mean() > 0.95
    assert torch.isfinite(task.step(0)["train"].totals).all()


@pytest.mark.slow
def test_it_makes_a_network_robust(tmp_path: Any) -> None:
    """Against attacks that follow the true gradient, under a rule; the same budget without it gives
    far less.
    """
    data = load_data("digits")
    left = {}
    for adversary in ("", "pgd(eps=20, step=7, steps=4)"):
        out = tmp_path / (adversary or "plain")
        task = training(data, adversary, channels=8, epochs=10, batch_size=64, lr=0.1, out=str(out))
        folder = RunFolder.open("train", task.config, "test", genotype=task.genotype)
        fit(task, folder, Listener(), StopRequest(), log_every=50)
        model = load_trained(out).on_pixels()
        pixels, labels = data.test.images.float() / 255, data.test.labels
        changed = perturb(ATTACKS.build("pgd(steps=10)"), model, pixels, labels, 20 / 255)
        with torch.no_grad():
            left[adversary] = (model(changed).argmax(1) == labels).float().mean().item()
    assert left["pgd(eps=20, step=7, steps=4)"] > left[""] + 0.2


def test_steps_that_just_reach_the_bound_are_not_refused() -> None:
    for spec in (
        "pgd(eps=2.1, step=0.7, steps=3)",
        "trades(eps=0.3, step=0.1, steps=3)",
        "pgd(eps=8, step=8, steps=1)",
    ):
        ADVERSARIES.build(spec)  # 3 * 0.7 < 2.1 in floating point


def test_a_run_of_before_there_was_the_option_goes_on_without_it_only() -> None:
    old = {name: value for name, value in CONFIG.identity().items() if name != "adversarial"}
    assert CONFIG.differences(old) == []
    assert replace(CONFIG, adversarial=" pgd( eps=4)").differences(old) == [
        "adversarial was , is pgd(eps=4)"
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pdg", "unknown adversary 'pdg': did you mean 'pgd'"),
        ("pgd(beta=3)", "adversary 'pgd' has no option 'beta'"),
        ("pgd(eps=0)", "--adversarial pgd: eps: expected a number above 0 and below 256, found 0"),
        (
            "pgd(steps=2.5)",
            "--adversarial pgd: steps: expected a whole number of at least 1, found 2.5",
        ),
        (
            "pgd(steps=3)",
            "--adversarial pgd: 3 steps of 2/255 end before eps 8/255; take more or longer ones",
        ),
        ("pgd(gradient=false)", "unknown gradient of --adversarial pgd 'false'"),
        ("trades(beta=0)", "--adversarial trades: beta: expected a number above 0, found 0"),
    ],
)
def test_refused(data: ImageData, spec: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        training(data, spec)
