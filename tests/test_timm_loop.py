"""Learning rules in the training loop of timm's train.py: its parts, in its order.

Batches are mixed by timm's Mixup, which works in place: each loop gets fresh ones.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from darts_bio import attach, convert, draw_feedback
from darts_bio.rules import RULES, rule_carriers

RENEWING = [name for name in RULES if RULES.get(name).renews]
LEARNED = [name for name in RULES if RULES.get(name).learned]
UPDATES, PARTS, CLASSES = 3, 2, 5
LR, DECAY, LAYER_DECAY, CLIP, EMA = 0.1, 0.05, 0.75, 1.0, 0.9

Batches = list[list[tuple[Tensor, Tensor]]]
"""(images, shares of the classes) by update and part."""


def resnet() -> nn.Module:
    """A small ResNet whose shortcuts have no strided 1x1 convolution.

    Layers under rules compute such a one in another order of sums than PyTorch's layer does, which
    shows in the last digits.
    """
    torch.manual_seed(0)
    widths: dict[str, Any] = {"channels": (8, 8, 16, 16), "stem_width": 4}
    return timm.create_model("resnet10t", num_classes=CLASSES, drop_path_rate=0.2, **widths)


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=CLASSES, drop_path_rate=0.2, **sizes
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "vit": vit}
HEADS = {"resnet": "fc", "vit": "head"}


def ruled(kind: str, rule: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return convert(MODELS[kind]().to(dtype), {HEADS[kind]: "bp", "*": rule}, seed=3)


def mixed(dtype: torch.dtype = torch.float32) -> Batches:
    """Draw the batches of a loop, mixed up or cut and pasted."""
    draws = torch.Generator().manual_seed(1)
    np.random.seed(1)  # Mixup draws from NumPy's global generator
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=CLASSES)
    return [
        [
            mixup(
                torch.randn(4, 3, 32, 32, generator=draws, dtype=dtype),
                torch.randint(CLASSES, (4,), generator=draws),
            )
            for _ in range(PARTS)
        ]
        for _ in range(UPDATES)
    ]


def timm_loop(
    model: nn.Module,
    batches: Batches,
    *,
    amp: bool = False,
    wrap: Callable[[nn.Module], Any] = lambda model: model,
    first: int = 0,
    states: Any = None,
) -> tuple[ModelEmaV3, Any]:
    """Train a model as train.py does; return the averaged model and a checkpoint.

    `wrap` is what is done to the model once the optimizer is there (torch.compile, DDP); an update
    `first` above 0 goes on from the `states` of before.
    """
    model.train()
    model.to(memory_format=torch.channels_last)
    scaler = NativeScaler(device="cpu")
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=LR, weight_decay=DECAY, momentum=0.9, layer_decay=LAYER_DECAY
    )
    attached = None
    if any(carrier.rule for _, carrier in rule_carriers(model)):
        attached = attach(model, optimizer, seed=3, scaler=scaler._scaler)
    ema = ModelEmaV3(model, decay=EMA)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=1, step_on_epochs=False, updates_per_epoch=UPDATES
    )
    if states is not None:
        optimizer.load_state_dict(states[0])
        ema.module.load_state_dict(states[1])
        scaler.load_state_dict(states[2])
        schedule.step_update(first)
    if attached is not None:
        attached.load_state_dict({"updates": [first]})
    trained, loss_of = wrap(model), SoftTargetCrossEntropy()
    torch.manual_seed(2 + first)  # of drop path
    optimizer.zero_grad()
    for update, parts in enumerate(batches[first:], first + 1):
        trained.train()
        for number, (x, target) in enumerate(parts, 1):
            x = x.contiguous(memory_format=torch.channels_last)
            ends = number == len(parts)
            alone = not ends and hasattr(trained, "no_sync")
            with trained.no_sync() if alone else contextlib.nullcontext():
                with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                    loss = loss_of(trained(x), target) / len(parts)
                scaler(loss, optimizer, CLIP, "norm", model.parameters(), need_update=ends)
        optimizer.zero_grad()
        ema.update(model, step=update)
        schedule.step_update(update)
        trained.eval()
        with torch.no_grad():
            for evaluated in (trained, ema):
                evaluated(parts[0][0])
        torch.manual_seed(2 + update)
    return ema, (optimizer.state_dict(), ema.module.state_dict(), scaler.state_dict())


def rates(model: nn.Module) -> dict[str, float]:
    """Return the factor of the rate of each parameter by the depth of its layer, from its name."""
    found = {}
    for name, _ in model.named_parameters():
        if hasattr(model, "layer1"):  # stem, a block for each stage, head
            stage = int(name[5]) if name.startswith("layer") else 0
            depth, most = (5 if name.startswith("fc") else stage), 5
        else:  # embeddings, two blocks, the second with the norm above, head
            block = 1 + int(name.split(".")[1]) if name.startswith("blocks") else 0
            above = {"norm": 2, "head": 3}.get(name.split(".")[0])
            depth, most = (block if above is None else above), 3
        found[name] = LAYER_DECAY ** (most - depth)
    return found


def plain_loop(model: nn.Module, batches: Batches, amp: bool = False) -> dict[str, Tensor]:
    """Train a model by the formulas, and return the averaged state.

    A gradient is the mean over the parts of what autograd gives for each, under every rule; SGD,
    the schedule, clipping, and the average are written out.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    factors, speeds = rates(model), [torch.zeros_like(p) for p in parameters]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    model.train().to(memory_format=torch.channels_last)
    for t, parts in enumerate(batches):
        torch.manual_seed(2 + t)
        gradients = [torch.zeros_like(p) for p in parameters]
        for x, target in parts:
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                # Not F.cross_entropy, whose last digits differ, which bf16 may round otherwise.
                loss = -(target * F.log_softmax(model(x), 1)).sum(1).mean()
            for total, own in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                total += own / len(parts)
        norm = float(sum(g.square().sum() for g in gradients)) ** 0.5
        rate = LR * (1 + np.cos(np.pi * t / UPDATES)) / 2
        with torch.no_grad():
            for name, p, speed, g in zip(names, parameters, speeds, gradients, strict=True):
                decay = DECAY if p.dim() > 1 and name not in ("cls_token", "pos_embed") else 0.0
                speed.mul_(0.9).add_(g * min(1.0, CLIP / (norm + 1e-6)) + decay * p)
                p -= rate * factors[name] * speed
        draw_feedback(model, 3, t + 1)
        kept = EMA if t > 0 else 0.0  # timm's average begins with the first update
        for name, value in model.state_dict().items():
            is_real = value.is_floating_point()
            average[name] = kept * average[name] + (1 - kept) * value if is_real else value.clone()
    return average


def same(one: dict[str, Tensor], other: dict[str, Tensor], bound: float | None = None) -> None:
    """Compare two states by the names of the first, bit for bit where there is no bound."""
    for name, value in one.items():
        if bound is None or not value.is_floating_point():
            assert torch.equal(value, other[name]), name
        else:
            difference, scale = (value - other[name]).detach().abs(), value.detach().abs()
            assert float(difference.max()) <= bound * float(scale.max()), name


ROUNDING = 1e-10
"""The bound after three updates of nets with norms in float64, whose sums are in another order."""


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_under_bp_it_is_the_training_of_the_model_before(kind: str, amp: bool) -> None:
    """Bit for bit, in float32 and under bf16 autocast, the averaged weights too."""
    plain, model = MODELS[kind](), convert(MODELS[kind](), "bp")
    expected, _ = timm_loop(plain, mixed(), amp=amp)
    found, _ = timm_loop(model, mixed(), amp=amp)
    same(plain.state_dict(), model.state_dict())
    same(expected.module.state_dict(), found.module.state_dict())


@pytest.mark.parametrize("rule", RULES)
class TestEveryRule:
    @pytest.mark.parametrize("kind", MODELS)
    def test_updates_and_their_average_are_those_written_out(self, rule: str, kind: str) -> None:
        model = ruled(kind, rule, torch.float64)
        expected = copy.deepcopy(model)
        average = plain_loop(expected, mixed(torch.float64))
        ema, _ = timm_loop(model, mixed(torch.float64))
        same(expected.state_dict(), model.state_dict(), ROUNDING)
        same(average, ema.module.state_dict(), ROUNDING)

    def test_an_update_under_autocast_is_that_without_the_scale(self, rule: str) -> None:
        """Compare one update; how a second one is rounded to bf16 hangs on the last digit."""
        model, batches = ruled("resnet", rule), mixed()[:1]
        expected = copy.deepcopy(model)
        plain_loop(expected, batches, amp=True)
        timm_loop(model, batches, amp=True)
        same(expected.state_dict(), model.state_dict(), 1e-5)

    def test_activations_may_be_computed_again(self, rule: str) -> None:
        """Which is what --grad-checkpointing has them do."""
        model, batches = ruled("vit", rule, torch.float64), mixed(torch.float64)[:1]
        expected = copy.deepcopy(model)
        model.set_grad_checkpointing()  # type: ignore[operator]
        timm_loop(expected, batches)
        timm_loop(model, batches)
        same(expected.state_dict(), model.state_dict(), ROUNDING)


@pytest.mark.parametrize("rule", ["bp", *RENEWING])
def test_a_run_is_resumed(rule: str) -> None:
    """With the number of updates handed to what is attached, as docs/timm.md has it."""
    whole, model, resumed = (ruled("vit", rule) for _ in range(3))
    average, _ = timm_loop(whole, mixed())
    _, states = timm_loop(model, mixed()[:2])
    resumed.load_state_dict(model.state_dict())
    ema, _ = timm_loop(resumed, mixed(), first=2, states=states)
    same(whole.state_dict(), resumed.state_dict())
    same(average.module.state_dict(), ema.module.state_dict())


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("rule", ["fa", "brsf", "dfa", "hebbian"])
def test_no_sync_of_a_distributed_model(rule: str) -> None:
    model = ruled("vit", rule)
    expected = copy.deepcopy(model)
    timm_loop(expected, mixed())
    timm_loop(model, mixed(), wrap=nn.parallel.DistributedDataParallel)
    same(expected.state_dict(), model.state_dict(), 1e-5)


@pytest.mark.slow
# Of PyTorch itself, where a graph ends at a layer under dfa.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("rule", RULES)
def test_compiled(rule: str) -> None:
    """By inductor, which sums in another order."""
    model = ruled("vit", rule)
    expected = copy.deepcopy(model)
    timm_loop(expected, mixed()[:1])
    torch.compiler.reset()
    timm_loop(model, mixed()[:1], wrap=torch.compile)
    same(expected.state_dict(), model.state_dict(), 1e-4)


@pytest.mark.parametrize("rule", ["fa", "kolen_pollack"])
def test_the_first_update_below_a_readout_with_feedback(rule: str) -> None:
    """In closed form: the bias of the last norm receives (softmax - target) B of the class token."""
    model = convert(vit().double(), {"head": rule, "*": "bp"}, seed=3)
    head: Any = model.get_submodule("head")
    norm: Any = model.get_submodule("norm")
    kernel, weight = head.feedback["kernel"].detach().clone(), head.weight.detach().clone()
    bias, before = head.bias.detach().clone(), norm.bias.detach().clone()
    outputs: list[Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    batches = mixed(torch.float64)[:1]
    gradients: list[Tensor] = []
    norm.bias.register_hook(gradients.append)
    timm_loop(model, batches)
    for output, gradient, (_, target) in zip(outputs, gradients, batches[0], strict=False):
        tokens = output[:, 0]
        error = (tokens @ weight.t() + bias).softmax(1) - target
        expected = (error @ kernel).sum(0) / len(target)
        scaled = gradient * PARTS / 2.0**16  # NativeScaler's first scale
        assert torch.allclose(scaled, expected, rtol=1e-6, atol=1e-9)
    assert len(gradients) == PARTS
    assert not torch.allclose(kernel, weight, rtol=0.1)
    assert not torch.equal(norm.bias, before)


@pytest.mark.parametrize("rule", LEARNED)
@pytest.mark.parametrize("kind", MODELS)
def test_learned_feedback_is_in_the_group_of_its_weight(kind: str, rule: str) -> None:
    """Layer decay and weight decay go by names and dimensions: both have to find the layer."""
    model = convert(MODELS[kind](), rule, seed=3)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY, layer_decay=0.5)
    group_of = {p: n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
    learned = [(name, carrier) for name, carrier in rule_carriers(model)]
    assert len(learned) > 5
    for name, carrier in learned:
        for each in carrier.rule.learned:
            feedback = carrier.feedback[each]
            assert group_of[feedback] == group_of[carrier.carried_weight], name
