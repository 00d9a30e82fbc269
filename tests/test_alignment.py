"""Alignment: against numbers worked out here, and as the command that a user runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.config import RetrainConfig
from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import measure_alignment
from darts_bio.rules import convert
from darts_bio.runs.running import Watching
from darts_bio.runs.train import TrainResult, train
from darts_bio.spaces import load_genotype

ROOT = Path(__file__).parent.parent


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
    "rule", ["bp", "fa", "brsf", "kolen_pollack", "weight_mirror", "dfa", "hebbian", "predictive"]
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
    assert (found.layers[1].feedback_angle is None) == (rule in ("dfa", "hebbian", "predictive"))
    assert (found.layers[1].error_angle is None) == (rule in ("hebbian", "predictive"))


def test_what_cannot_be_measured_is_said() -> None:
    model, batches = model_and_batches("fa")
    with pytest.raises(InputError, match="expected at least 2 batches, found 1"):
        measure_alignment(model, batches[:1], F.cross_entropy)
    with pytest.raises(InputError, match="expected a model with layers that carry rules"):
        measure_alignment(nn.Linear(2, 2), batches, F.cross_entropy)


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
    assert "epoch/alignment_error_angle" in tags
    assert "feedback_angle/000.stem.0" in tags


def test_the_command(tmp_path: Path) -> None:
    trained(tmp_path / "run")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "evaluate" / "alignment.py"), *arguments],
            capture_output=True,
            text=True,
        )

    done = command("--checkpoint", str(tmp_path / "run"), "--batches", "2")
    assert done.returncode == 0, done.stderr
    assert "stem.0" in done.stdout
    written = json.loads((tmp_path / "run" / "alignment.json").read_text())
    assert written["layers"][0]["name"] == "stem.0"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "no figure: matplotlib is not installed" in done.stderr
    else:
        assert (tmp_path / "run" / "alignment.svg").read_text().startswith("<?xml")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    del state["task"]["network"]["stem.0.weight"]
    (tmp_path / "other").mkdir()
    for name in ("config.yaml", "genotype.json"):
        (tmp_path / "other" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    torch.save(state, tmp_path / "other" / "checkpoint.pt")
    for arguments, message in (
        (("--checkpoint", str(tmp_path / "other")), "checkpoint.pt: does not fit the run"),
        (("--checkpoint", str(tmp_path / "nowhere")), "expected the run folder of a training"),
        (
            ("--checkpoint", str(tmp_path / "run"), "--batches", "1"),
            "--batches: expected at least 2",
        ),
    ):
        failed = command(*arguments)
        assert failed.returncode == 2
        assert message in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
