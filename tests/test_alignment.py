"""Alignment: against numbers worked out here, and as the command that a user runs."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import ROOT, forked
from torch import Tensor, nn

from darts_bio.api import align
from darts_bio.config import RetrainConfig
from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import Alignment, LayerAlignment, measure_alignment
from darts_bio.figures.alignment import draw_by_depth
from darts_bio.figures.colors import rule_colors
from darts_bio.networks import build_network
from darts_bio.networks.naming import WeightName, name_weights
from darts_bio.reports.alignment import AlignmentComparison
from darts_bio.rules import convert
from darts_bio.rules.weights import weights_in
from darts_bio.runs.alignment import alignments_by_epoch
from darts_bio.runs.running import Watching
from darts_bio.runs.train import TrainResult, train
from darts_bio.spaces import load_genotype
from darts_bio.storage.checkpoint import write_checkpoint
from darts_bio.training.engine import DivergedError


def model_and_batches(rule: Any) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )
    batches = [(torch.randn(8, 6).double(), torch.randint(0, 3, (8,))) for _ in range(4)]
    return convert(plain.double(), rule, seed=1), batches


def angle(a: Tensor, b: Tensor) -> float:
    return math.degrees(math.acos(F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()))


def test_bp_is_exact() -> None:
    model, batches = model_and_batches("bp")
    found = measure_alignment(model, batches, F.cross_entropy)
    assert [layer.name for layer in found.layers] == ["0", "3", "5"]
    assert [layer.depth for layer in found.layers] == [0, 1, 2]
    for layer in found.layers:
        assert layer.feedback_angle == pytest.approx(0, abs=1e-5)
        assert layer.feedback_norm_ratio == pytest.approx(1)
        assert layer.gradient_cosine == pytest.approx(1)
        assert layer.gradient_variance == layer.exact_gradient_variance
    assert found.layers[0].error_angle is None  # it sends nothing: the images need no gradient
    assert found.layers[1].error_angle == pytest.approx(0, abs=1e-5)


def test_feedback_alignment_by_hand() -> None:
    model, batches = model_and_batches("fa")
    found = measure_alignment(model, batches, F.cross_entropy)
    weight, kernel = model[5].weight.detach(), model[5].feedback["kernel"]
    assert found.layers[2].feedback_angle == pytest.approx(angle(kernel, weight))
    assert found.layers[2].feedback_norm_ratio == pytest.approx(
        (kernel.norm() / weight.norm()).item()
    )
    cosines, gradients, exact = [], [], []
    parameters = [model[i].weight for i in (0, 3, 5)]
    twin = convert(model, "bp")
    for x, labels in batches:
        logits = model(x)
        error = (logits.softmax(1) - F.one_hot(labels, 3)).detach() / len(x)
        cosines += [F.cosine_similarity(e @ kernel, e @ weight, dim=0).item() for e in error]
        gradients.append(torch.autograd.grad(F.cross_entropy(model(x), labels), parameters))
        own = [twin[i].weight for i in (0, 3, 5)]
        exact.append(torch.autograd.grad(F.cross_entropy(twin(x), labels), own))
    assert found.layers[2].error_angle == pytest.approx(
        math.degrees(math.acos(sum(cosines) / len(cosines)))
    )
    for i, layer in enumerate(found.layers):
        g, e = (torch.stack([side[i] for side in sides]).flatten(1) for sides in (gradients, exact))
        assert layer.gradient_cosine == pytest.approx(
            F.cosine_similarity(g.mean(0), e.mean(0), dim=0).item()
        )
        assert layer.gradient_variance == pytest.approx(
            (g.var(0).sum() / g.mean(0).square().sum()).item()
        )
        assert layer.exact_gradient_variance == pytest.approx(
            (e.var(0).sum() / e.mean(0).square().sum()).item()
        )
    assert found.layers[2].gradient_cosine == pytest.approx(
        1
    )  # the top layer learns by the true error
    assert found.gradient_cosine is not None
    assert found.layers[0].gradient_cosine < 0.99  # type: ignore[operator]
    assert "all weights" in str(found)


def test_angles_of_the_signs_are_of_the_true_values() -> None:
    """frsf 41 degrees and usf 30, where unsigned magnitudes would give 90."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 3)
    )
    batches = [(torch.randn(2, 3, 6, 6), torch.tensor([0, 1])) for _ in range(2)]
    for rule, expected in (("usf", 30), ("frsf", 41.4), ("brsf", 41.4), ("fa", 90)):
        found = measure_alignment(convert(plain, rule), batches, F.cross_entropy)
        assert found.layers[1].feedback_angle == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize(
    "rule",
    [
        *("bp", "fa", "brsf", "kolen_pollack", "weight_mirror", "pfa", "dfa", "dkp"),
        *("hebbian", "predictive"),
    ],
)
def test_measuring_disturbs_nothing(rule: str) -> None:
    model, batches = model_and_batches(rule)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = measure_alignment(model, batches, F.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert (found.layers[1].feedback_angle is None) == (
        rule in ("dfa", "dkp", "hebbian", "predictive")
    )
    assert (found.layers[1].error_angle is None) == (rule in ("hebbian", "predictive"))


def test_what_cannot_be_measured_is_said() -> None:
    model, batches = model_and_batches("fa")
    with pytest.raises(InputError, match="expected at least 2 batches, found 1"):
        measure_alignment(model, batches[:1], F.cross_entropy)
    with pytest.raises(InputError, match="expected a model with layers that carry rules"):
        measure_alignment(nn.Linear(2, 2), batches, F.cross_entropy)


NAN = float("nan")
X, LABELS = torch.zeros(8, 6).double(), torch.zeros(8).long()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "expected a torch.nn.Module, found NoneType; build"),
    "a pair": (
        {"batches": (X, LABELS)},
        r"batch 1: expected \(x, labels\), found Tensor; hand over",
    ),
    "inputs": ({"batches": X}, r"batch 1: expected \(x, labels\), found Tensor; hand over"),
    "no labels": ({"batches": [X, X]}, r"batch 1: expected \(x, labels\), found Tensor; hand over"),
    "three": (
        {"batches": [(X, LABELS, X)]},
        r"expected \(x, labels\), found tuple of 3; hand over",
    ),
    "dicts": ({"batches": [{"x": X}]}, r"batch 1: expected \(x, labels\), found dict; hand over"),
    "none": ({"batches": None}, r"expected batches \(x, labels\), found NoneType; hand over"),
    "numpy": (
        {"batches": [(X.numpy(), LABELS)]},
        "batch 1: x: expected a tensor, found ndarray; make",
    ),
    "labels of numpy": (
        {"batches": [(X, LABELS.numpy())]},
        r"batch 1: the loss cannot take model\(x\), labels \(.*ndarray\); give labels",
    ),
    "float labels": (
        {"batches": [(X, LABELS.float())]},
        r"batch 1: the loss cannot take model\(x\), labels \(.*Float\); give labels",
    ),
    "features": (
        {"batches": [(X[:, :4], LABELS)]},
        r"batch 1: the model cannot take \(8, 4\) of torch.float64 \(.*\); give it what it was",
    ),
    "float32": (
        {"batches": [(X.float(), LABELS)]},
        r"of torch.float32 \(.*\); its weights are of torch.float64: convert one of the two",
    ),
    "a name": (
        {"loss": "cross_entropy"},
        "loss: expected a function .* found 'cross_entropy'; hand",
    ),
    "a class": (
        {"loss": nn.CrossEntropyLoss},
        r"found the class .*; make one: CrossEntropyLoss\(\)$",
    ),
    "item": (
        {"loss": lambda y, labels: F.cross_entropy(y, labels).item()},
        r"batch 1: expected the loss as a tensor, found float; leave out .item\(\)",
    ),
    "detached": (
        {"loss": lambda y, labels: F.cross_entropy(y, labels).detach()},
        r"batch 1: expected a loss that depends on the weights, found .* leave detach\(\)",
    ),
    "of each": (
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        r"batch 1: expected one number as the loss, found \(8,\); take its mean",
    ),
    "nan in x": ({"batches": [(X, LABELS), (NAN * X, LABELS)]}, "batch 2: expected finite inputs"),
}
"""Arguments of `measure_alignment`, and what it says of them."""


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_batch_or_loss_is_refused(name: str) -> None:
    given, message = WRONG[name]
    model, batches = model_and_batches("fa")
    arguments = {"model": model, "batches": batches, "loss": F.cross_entropy}
    with pytest.raises(InputError, match=message) as caught:
        measure_alignment(**arguments | given)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, DivergedError)


def test_a_model_that_gives_nan_has_diverged() -> None:
    model, batches = model_and_batches("fa")
    with torch.no_grad():
        model[3].weight[0, 0] = NAN
    with pytest.raises(DivergedError, match="batch 1: the loss is nan, where x is finite"):
        measure_alignment(model, batches, F.cross_entropy)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    class Root(nn.Module):  # finite, with an infinite slope, at 0
        def forward(self, x: Tensor) -> Tensor:
            return (0 * x).sqrt()

    model = convert(nn.Sequential(nn.Linear(6, 3), Root(), nn.Linear(3, 3)).double(), "fa")
    with pytest.raises(DivergedError, match="the gradient of 0.weight is nan, where x is finite"):
        measure_alignment(model, [(X + 1, LABELS)] * 2, F.cross_entropy)


def test_frozen_weights_have_no_gradient_to_compare() -> None:
    model, batches = model_and_batches("fa")
    with pytest.raises(
        InputError, match=r"found all of them frozen; call model.requires_grad_\(\)"
    ):
        measure_alignment(model.requires_grad_(False), batches, F.cross_entropy)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_is_around(mode: Any) -> None:
    model, batches = model_and_batches("fa")
    expected = measure_alignment(model, batches, F.cross_entropy)
    with mode():
        inside = [(x.clone(), labels.clone()) for x, labels in batches]
        assert measure_alignment(model, inside, F.cross_entropy) == expected


class OwnCode(nn.Module):
    """Multiplies by weights with its own code: a layer's, and one of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.matrix = nn.Parameter(torch.randn(5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.layer.weight))  # around the layer itself
        return self.head(torch.tanh(h @ self.matrix))


def test_weights_in_a_models_own_code_by_hand() -> None:
    """Angles against the chain rule written out, in float64."""
    torch.manual_seed(0)
    plain = OwnCode().double()
    batches = [(torch.randn(8, 6).double(), torch.randint(0, 3, (8,))) for _ in range(3)]
    model = convert(plain, "fa", seed=1, inputs=batches[0][0])
    found = measure_alignment(model, batches, F.cross_entropy)
    assert [layer.label for layer in found.layers] == [
        "layer, Linear:fa",
        "matrix, OwnCode:fa",
        "head, Linear:fa",
    ]
    w, m, v = (p.detach() for p in (plain.layer.weight, plain.matrix, plain.head.weight))
    carrier = dict(model.named_children())["matrix_carrier"]
    k_m, k_v = carrier.feedback["kernel"], model.head.feedback["kernel"]
    assert found.layers[1].feedback_angle == pytest.approx(angle(k_m, m))
    assert found.layers[2].feedback_angle == pytest.approx(angle(k_v, v))
    totals = [[torch.zeros_like(p) for p in (w, m, v)] for _ in range(2)]  # ruled, exact
    sent: dict[str, list[float]] = {"matrix": [], "head": []}
    for x, labels in batches:
        h = torch.tanh(x @ w.T)
        z = torch.tanh(h @ m)
        logits = z @ v.T + plain.head.bias.detach()
        error = (logits.softmax(1) - F.one_hot(labels, 3)) / len(x)
        downward = []
        for total, (to_h, to_z) in zip(totals, ((k_m, k_v), (m, v)), strict=True):
            e_z = error @ to_z
            d_z = e_z * (1 - z**2)
            e_h = d_z @ to_h.T
            d_h = e_h * (1 - h**2)
            for sum_, gradient in zip(total, (d_h.T @ x, h.T @ d_z, error.T @ z), strict=True):
                sum_ += gradient
            downward.append((e_h, e_z))
        for name, ruled, exact in zip(sent, *downward, strict=True):
            sent[name] += F.cosine_similarity(ruled, exact, dim=1).tolist()
    for layer, ruled, exact in zip(found.layers, *totals, strict=True):
        # Parallel vectors: a cosine that is off by 1e-16 is an angle of 1e-6 degrees.
        assert layer.gradient_angle == pytest.approx(angle(ruled, exact), abs=1e-5)
    assert found.layers[0].error_angle is None
    for layer, name in zip(found.layers[1:], sent, strict=True):
        cosine = sum(sent[name]) / len(sent[name])
        assert layer.error_angle == pytest.approx(math.degrees(math.acos(cosine)))


class Recurrent(nn.Module):
    """Attention over a sequence, then an LSTM, whose last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.lstm(x)[0][:, -1])


def test_rules_beside_weights_are_counted() -> None:
    torch.manual_seed(0)
    plain = Recurrent().double()
    batches = [(torch.randn(5, 6, 4).double(), torch.randint(0, 3, (5,))) for _ in range(2)]
    names = [
        "attention.in_proj_weight, MultiheadAttention",
        "attention.out_proj, NonDynamicallyQuantizableLinear",
        "lstm.weight_ih_l0, LSTM",
        "lstm.weight_hh_l0, LSTM",
        "head, Linear",
    ]
    model = convert(plain, "usf", seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_alignment(model, batches, F.cross_entropy)
    assert [layer.label for layer in found.layers] == [f"{name}:usf" for name in names]
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    gradients = []
    for each in (model, plain):
        value = sum(F.cross_entropy(each(x), labels) for x, labels in batches)
        by_name = dict(each.named_parameters())
        paths = [n if n in by_name else f"{n}.weight" for n in (row.name for row in found.layers)]
        weights = [by_name[path] for path in paths]
        gradients.append(torch.autograd.grad(value, weights))
    for layer, ruled, exact, weight in zip(found.layers, *gradients, weights, strict=True):
        assert layer.gradient_angle == pytest.approx(angle(ruled, exact), abs=1e-5)
        assert layer.feedback_angle == pytest.approx(angle(weight.sign(), weight), abs=1e-5)
    assert found.layers[0].error_angle is None  # the batches need no gradient
    # The head alone lies above its own input: its error is by its signs and by its values.
    head, cosines = plain.head.weight.detach(), []
    for x, labels in batches:
        error = (plain(x).softmax(1) - F.one_hot(labels, 3)).detach()
        cosines += F.cosine_similarity(error @ head.sign(), error @ head, dim=1).tolist()
    assert found.layers[-1].error_angle == pytest.approx(
        math.degrees(math.acos(sum(cosines) / len(cosines)))
    )
    # Each of six steps sends an error down through weight_hh; the first to no earlier step.
    assert found.layers[3].error_angle is not None


def test_a_parametrized_weight_has_the_gradients_of_what_it_is_computed_from() -> None:
    torch.manual_seed(0)
    hidden = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    plain = nn.Sequential(hidden, nn.Tanh(), nn.Linear(5, 3)).double()
    batches = [(torch.randn(8, 6).double(), torch.randint(0, 3, (8,))) for _ in range(2)]
    model = convert(plain, "fa", seed=1)
    found = measure_alignment(model, batches, F.cross_entropy)
    gradients = []
    for each in (model, plain):
        originals = list(each[0].parametrizations.weight.parameters())
        value = sum(F.cross_entropy(each(x), labels) for x, labels in batches)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, originals)]))
    assert found.layers[0].gradient_angle == pytest.approx(angle(*gradients))


def test_an_operation_under_a_direct_rule() -> None:
    """Its error is B e, spread evenly, and all its layers bear its rule."""
    torch.manual_seed(0)
    genotype = load_genotype("darts_v1").with_rule("dfa")
    network = build_network(genotype, channels=4, layers=3, num_classes=3, in_channels=1)
    batches = [(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    found = measure_alignment(network, batches, F.cross_entropy)
    labels = [layer.label for layer in found.layers]
    assert len(set(labels)) == len(labels)
    rows = {layer.label: layer for layer in found.layers}
    first, *others = (
        rows[f"cell 0, edge 1->2, sep_conv_3x3:dfa, {ordinal} convolution"]
        for ordinal in ("first", "second", "third", "fourth")
    )
    assert first.feedback_angle is None
    assert first.error_angle is not None
    for other in others:  # exact within
        assert other.feedback_angle == pytest.approx(0, abs=1e-4)
        assert other.error_angle is not None


def test_names_are_those_of_the_genotype() -> None:
    """Every weight of a network, by the edges of its genotype as they are written."""
    genotype = load_genotype("bionas_darts")
    network = build_network(genotype, channels=4, layers=3, auxiliary=True)
    names = name_weights(network, weights_in(network))
    assert len(set(names.values())) == len(names)
    counts = {"sep_conv_3x3": 4, "dil_conv_5x5": 2, "skip_connect": 2}
    expected = set()
    for number, cell_type in enumerate(network.plan):
        for edge in genotype.cells[cell_type].edges:
            if edge.candidate.rule is None:
                continue
            for ordinal in ("first", "second", "third", "fourth")[: counts[edge.candidate.op]]:
                place = f"cell {number}, edge {edge.input}->{edge.node}"
                expected.add(f"{place}, {edge.candidate}, {ordinal} convolution")
    by_rule = {
        names[weight.name].under(weight.carrier.rule.spec)  # type: ignore[union-attr]
        for weight in weights_in(network)
    }
    assert {name for name in by_rule if "edge" in name} == expected
    assert {name for name in by_rule if "edge" not in name} == {
        "stem, Conv2d:bp",
        *(f"cell {n}, {side} input, Conv2d:bp" for n in (0, 1) for side in ("older", "newer")),
        "cell 2, older input, Conv2d:bp, first convolution",
        "cell 2, older input, Conv2d:bp, second convolution",
        "cell 2, newer input, Conv2d:bp",
        "auxiliary head, Conv2d:bp, first convolution",
        "auxiliary head, Conv2d:bp, second convolution",
        "auxiliary head, Linear:bp",
        "classifier, Linear:bp",
    }


SIZES: dict[str, Any] = {
    "channels": 4,
    "layers": 3,
    "epochs": 2,
    "batch_size": 16,
    "train_images": 64,
    "cutout": 0,
}


def trained(out: Path, **options: Any) -> TrainResult:
    config = RetrainConfig(
        genotype="darts_v1",
        out=str(out),
        auxiliary=0.0,
        drop_path=0.3,
        crop_padding=1,
        log_every=2,
        **SIZES,
        **options,
    )
    result = train(
        config,
        "test",
        load_genotype("darts_v1").with_rule("brsf"),
        watching=Watching(tensorboard=True),
    )
    assert isinstance(result, TrainResult)
    return result


def mean_of(alignment: Alignment, angle: str, rule: str) -> float:
    values = [getattr(layer, angle) for layer in alignment.layers if layer.rule == rule]
    return statistics.fmean(value for value in values if value is not None)


def test_live_in_a_training_without_changing_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain, watched = trained(tmp_path / "plain"), trained(tmp_path / "watched", alignment_every=1)
    for (name, a), b in zip(
        plain.network.state_dict().items(), watched.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    records = [
        json.loads(line)
        for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()
    ]
    epochs = [record for record in records if record["event"] == "epoch"]
    assert len(epochs) == 2
    assert all(0 < record["alignment/gradient_cosine"] < 1 for record in epochs)
    assert all(30 < record["alignment/feedback_angle"] < 50 for record in epochs)
    events = EventAccumulator(str(tmp_path / "watched"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "measured/alignment_error_angle" in tags
    assert [image.step for image in events.Images("layers/angles")] == [
        record["step"] for record in epochs
    ]
    assert not (tmp_path / "plain" / "alignment-epochs.jsonl").exists()
    # A heat map and a mean of each rule, not a tag of each layer.
    by_epoch = alignments_by_epoch(tmp_path / "watched")
    of_layers = {tag for tag in tags if tag.startswith("layers/")}
    rules = {layer.rule for layer in by_epoch[1].layers}
    assert of_layers == {f"layers/{a}_angle/{r}" for a in ("feedback", "error") for r in rules}
    for angle in ("feedback_angle", "error_angle"):
        for rule in rules:
            shown = [event.value for event in events.Scalars(f"layers/{angle}/{rule}")]
            assert shown == pytest.approx([mean_of(a, angle, rule) for a in by_epoch.values()])
    assert {e: a.summary()["feedback_angle"] for e, a in by_epoch.items()} == {
        record["epoch"]: record["alignment/feedback_angle"] for record in epochs
    }
    result = align(watched, batches=4)
    assert result.epochs == by_epoch
    assert result.epochs_figure is not None
    figure = result.epochs_figure.read_text()
    assert figure.count("<title>epoch 2, stem, Conv2d:brsf: ") == 2  # no error, to the images
    # The feedback of the last epoch is that of the checkpoint; errors depend on dropped paths.
    assert [layer.feedback_angle for layer in by_epoch[2].layers] == [
        layer.feedback_angle for layer in result.alignment.layers
    ]


def alignment_of(angles: dict[str, tuple[str, float]]) -> Alignment:
    """Of layers by their place: (rule, error angle)."""
    rows = []
    for depth, (place, (rule, value)) in enumerate(angles.items()):
        title = WeightName(place, "Linear")
        rows.append(LayerAlignment(place, title, rule, depth, None, None, value, 0.5, 0.1, 0.01))
    return Alignment(tuple(rows), 0.5, 0.1, 0.01)


def test_networks_side_by_side() -> None:
    """Rows meet where place and operation are the same; angles are those of a plain computation."""
    _, batches = model_and_batches("bp")
    found, cosines = {}, {}
    for rule in ("fa", "usf"):
        model, _ = model_and_batches(rule)
        found[rule] = measure_alignment(model, batches, F.cross_entropy)
        ruled, exact = (
            torch.autograd.grad(
                sum(F.cross_entropy(each(x), labels) for x, labels in batches), each[0].weight
            )[0]
            for each in (model, convert(model, "bp"))
        )
        cosines[rule] = angle(ruled, exact)
    lines = AlignmentComparison(found).table().splitlines()
    head, _, first, *_, whole = ([c.strip() for c in line.split("|")[1:-1]] for line in lines)
    titles = [f"{rule}: {title}" for title in ("K to W", "error", "gradient") for rule in found]
    assert head == ["layer", *titles]
    assert first[0] == "0, Linear:fa / usf"
    for rule in found:
        assert first[head.index(f"{rule}: gradient")] == f"{cosines[rule]:.1f}"
        assert first[head.index(f"{rule}: error")] == "-"
    assert whole[0] == "all weights"
    a = alignment_of({"x": ("fa", 10.0), "z": ("fa", 30.0)})
    b = alignment_of({"x": ("fa", 15.0), "y": ("bp", 20.0), "z": ("fa", 25.0)})
    comparison = AlignmentComparison({"a": a, "b": b})
    rows = [line.split(" | ") for line in comparison.table().splitlines()[2:]]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("| x, Linear:fa", "10.0", "15.0"),
        ("| y, Linear:bp", "-", "20.0"),
        ("| z, Linear:fa", "30.0", "25.0"),
        ("| all weights", "", ""),
    ]
    assert rows[0][5] == "60.0"  # the angle of the cosine 0.5
    read = json.loads(comparison.to_json())
    assert {name: Alignment.from_dict(values) for name, values in read.items()} == {"a": a, "b": b}
    assert read["b"]["layers"][1]["label"] == "y, Linear:bp"


def test_the_figure_has_the_colors_of_cells() -> None:
    """A mark for each number of each layer, in the color of its rule; None is no mark."""
    a = alignment_of({"x": ("fa", 10.0), "z": ("bp", 30.0)})
    b = alignment_of({"x": ("kolen_pollack", 15.0), "z": ("bp", 25.0)})
    chart = draw_by_depth({"a": a, "b": b})
    figure = chart.svg()
    colors = rule_colors(["fa", "bp", "kolen_pollack"])
    fills = re.findall(r'style="fill: (#\w+)"><title>([ab]), (\w), Lin', figure)
    assert sorted(fills) == sorted(
        (colors[rule], name, place)
        for name, place, rule in (
            ("a", "x", "fa"),
            ("a", "z", "bp"),
            ("b", "x", "kolen_pollack"),
            ("b", "z", "bp"),
        )
        for _ in ("error", "gradient", "variance")
    )
    assert "feedback to the weight" not in figure  # nothing was measured
    dashed = [line for panel in chart.panels for line in panel.series if line.dashed]
    assert len(dashed) == 3 + 1  # of b: its lines, and that of the exact variance
    assert figure.count("stroke-dasharray") == 4 + 1  # and the legend's
    named = set(re.findall(r">([^<>]+)</text>", figure))
    assert {"a", "b", "fa", "bp", "kolen_pollack", "depth of the layer"} <= named
    with pytest.raises(InputError, match="expected at least one to draw"):
        draw_by_depth({})
    with pytest.raises(InputError, match="expected at least one alignment"):
        AlignmentComparison({})
    with pytest.raises(InputError, match="expected what measure_alignment returns as 'a', found 3"):
        AlignmentComparison({"a": 3})  # type: ignore[dict-item]


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [trained(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    result = align(runs, batches=2, out=str(tmp_path / "compared"))
    assert list(result.comparison.alignments) == ["a", "b"]
    assert repr(result) == f"ComparisonResult({str(result.folder)!r}, 2 networks)"
    for run, name in zip(runs, "ab", strict=True):
        alone = align(run, batches=2)
        assert result.comparison.alignments[name] == alone.alignment
        assert (run.folder / "alignment.json").is_file()
    files = {path.name for path in result.folder.iterdir()}
    assert files == {"comparison.md", "comparison.json", "comparison.svg"}
    assert (result.folder / "comparison.md").read_text() == result.comparison.table()
    with pytest.raises(InputError, match="--checkpoint is required"):
        align([])


def test_the_command(tmp_path: Path) -> None:
    trained(tmp_path / "run")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return forked(str(ROOT / "evaluate" / "alignment.py"), *arguments)

    done = command("--checkpoint", str(tmp_path / "run"), "--batches", "2")
    assert done.returncode == 0, done.stderr
    assert "stem, Conv2d:brsf" in done.stdout
    assert "cell 0, edge 1->2, sep_conv_3x3:brsf, fourth convolution" in done.stdout
    written = json.loads((tmp_path / "run" / "alignment.json").read_text())
    assert written["layers"][0]["name"] == "stem.0"
    assert (tmp_path / "run" / "alignment.svg").read_text().startswith("<svg")
    assert not (tmp_path / "run" / "alignment-epochs.svg").exists()  # none were measured
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    del state["task"]["network"]["stem.0.weight"]
    (tmp_path / "other").mkdir()
    for name in ("config.yaml", "genotype.json"):
        (tmp_path / "other" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    write_checkpoint(tmp_path / "other" / "checkpoint.pt", state)
    for arguments, message in (
        (("--checkpoint", str(tmp_path / "other")), "checkpoint.pt: does not fit the run"),
        (("--checkpoint", str(tmp_path / "nowhere")), "expected the run folder of a training"),
        (
            ("--checkpoint", str(tmp_path / "run"), "--batches", "1"),
            "--batches: expected at least 2",
        ),
        ((), "--checkpoint is required: one or several run folders"),
        (
            ("--checkpoint", f"{tmp_path / 'run'},{tmp_path / 'nowhere'}"),
            "nowhere: expected the run folder of a training",
        ),
        (
            ("--checkpoint", f"{tmp_path / 'run'},{tmp_path / '.' / 'other' / '..' / 'run'}"),
            "--checkpoint: expected each run once",
        ),
        (
            ("--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "new")),
            "expected several run folders to compare, found one",
        ),
        (
            ("--checkpoint", f"{tmp_path / 'run'},{tmp_path / 'other'}", "--out", str(tmp_path)),
            "exists and is not empty; choose another\n",
        ),
    ):
        failed = command(*arguments)
        assert failed.returncode == 2
        assert message in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
