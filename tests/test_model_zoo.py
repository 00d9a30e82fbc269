"""The models of libraries under rules: would the benchmark see what it looks for?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.rules import RULES, audit, convert

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import model_zoo
from model_zoo import disturbed, missed, read, smallest_side
from weight_products import weight_products


class Kinds(nn.Module):
    """Parameters that multiply activations, and others that do not."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("table", "position", "gain", "queries", "masked", "bias", "latent", "maps"):
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1))
        self.register_buffer("mask", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        x = F.embedding(torch.arange(4), self.table) + self.position + x * self.gain
        x = x + F.linear(self.latent, self.maps)
        x = self.inner(x) @ (self.masked * self.mask).T
        return torch.addmm(self.bias, self.queries[:, :4], x[0])


class Net(nn.Module):
    """A small network whose last gain is 0, as many models begin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_told_from_gains_and_tables_below_modules(device: str) -> None:
    with torch.device(device):
        model, x = Kinds(), torch.ones(2, 4, 4)
        found = weight_products(model, x)
    inner = {"inner.0.weight", "inner.2.weight"}
    assert found == inner | {"latent", "maps", "masked", "queries"}


def test_a_weight_that_an_audit_leaves_out_is_missed() -> None:
    model, x = Net(), torch.ones(2, 3, 8, 8)
    found = audit(convert(model, "fa"), x)
    assert missed(model, found, x) == []
    assert missed(model, replace(found, rows=found.rows[:1]), x) == ["head.weight"]


class Fixed(nn.Module):
    """A model for images of one size, of at least 128 pixels."""

    def __init__(self, img_size: int = 224) -> None:
        super().__init__()
        assert img_size >= 128
        self.img_size, self.layer = img_size, nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.img_size
        return self.layer(x)


def test_sides_are_tried_from_the_smallest() -> None:
    def side(build: Any) -> Any:
        return smallest_side(build, build().to("meta"))

    assert side(Net) == (96, {})
    assert side(Fixed) == (128, {"img_size": 128})
    assert side(lambda: Fixed(160)) == (160, {})
    assert side(lambda: nn.Linear(7, 1)) == (None, {})


def test_models_are_audited_and_the_smaller_ones_run_under_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"small": Net, "large": lambda: nn.Linear(171, 1), "broken": lambda: 1 / 0}
    monkeypatch.setattr(model_zoo, "transformers_models", lambda: models.items())
    for name in ("timm_models", "torchvision_models"):
        monkeypatch.setattr(model_zoo, name, lambda: ())
    monkeypatch.setattr(model_zoo, "LARGEST", 170)
    monkeypatch.setattr(
        model_zoo,
        "inputs_of",
        lambda name, model, side=None: (
            torch.ones(2, 3, 8, 8) if name == "small" else torch.ones(2, 171)
        ),
    )
    names, path = list(RULES.names()), tmp_path / "zoo.jsonl"
    path.write_text("{}\n")
    model_zoo.examine(path, float("inf"), audits=True)
    assert ["rules" in line for line in read(path).values()] == [False, False, False]
    for _ in range(2):  # the second time there is nothing to do
        model_zoo.examine(path, float("inf"), audits=False)
    found = read(path)
    assert len(path.read_text().splitlines()) == 5
    assert found["broken"]["error"] == "ZeroDivisionError: division by zero"
    assert "rules" not in found["large"]
    line = found["small"]
    assert line["name"] == "small"
    assert (line["parameters"], line["weights"], line["other"]) == (170, 2, 8)
    assert line["products"] == ["conv2d", "linear"]
    assert line["input"] == [[2, 3, 8, 8]]
    assert max(line["exact"], line["copied"]) < 1e-10
    assert line["missed"] == line["unseen"] == line["without_a_rule"] == []
    assert line["unasked"] == line["without_gradient"] == []
    assert line["rules"] == dict.fromkeys(names, "finite")
    assert list(RULES.names()) == names


def test_the_model_of_a_module_is_named() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit")
    assert model_zoo.name_in_library("timm vision_transformer", model) == "test_vit"
    results = Path(model_zoo.__file__).parent / "results" / "model_zoo.jsonl"
    names = {model: line["name"] for model, line in read(results).items()}
    assert len(names) == 188
    of_timm = {name for model, name in names.items() if model.startswith("timm ")}
    assert of_timm <= set(timm.list_models())
    assert names["torchvision resnet18"] == "resnet18"


def wrong_kernel(rule: model_zoo.Copied, weight: Tensor, state: dict[str, Tensor]) -> Tensor:
    return weight * (1 + 1e-8)


def deaf(model: nn.Module, rule: str, **options: object) -> nn.Module:
    converted = convert(model, rule, **options)  # type: ignore[arg-type]
    for module in converted.modules():
        if hasattr(module, "exact"):
            module.exact = True
    return converted


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_a_small_fault_of_a_kernel_shows(gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(), torch.randn(2, 3, 8, 8)
    assert model_zoo.differences(model, x)["without_gradient"] == ["first.weight", "head.weight"]
    nn.init.constant_(model.norm.weight, gain)
    monkeypatch.setattr(model_zoo.Copied, "kernel", wrong_kernel)
    found = model_zoo.differences(disturbed(model), x)
    assert found["copied"] == pytest.approx(1e-8, rel=0.01)
    assert found["exact"] < 1e-10


def test_gains_that_a_weight_is_computed_with_have_no_rule_to_ask() -> None:
    class Standardized(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3)
            self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.gain * self.weight / self.weight.std((1, 2, 3), keepdim=True))

    found = model_zoo.differences(disturbed(Standardized()), torch.randn(2, 3, 8, 8))
    assert found["unasked"] == found["without_gradient"] == []
    assert max(found["exact"], found["copied"]) < 1e-10


def test_a_table_that_is_looked_up_before_it_multiplies_is_asked() -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, 4))

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(3)[:, None] - torch.arange(3) + 3
            return torch.einsum("nhc,hkc->nhk", x, self.table[places])

    found = model_zoo.differences(Relative(), torch.randn(2, 3, 4))
    assert found["unasked"] == []
    assert max(found["exact"], found["copied"]) < 1e-10


def test_a_rule_that_carries_nothing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_zoo, "convert", deaf)
    found = model_zoo.differences(disturbed(Net()), torch.randn(2, 3, 8, 8))
    assert found["copied"] == 0
    assert found["unasked"] == ["first", "head"]
