"""Networks as models of timm, and trained ones read and exported without their data."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from commands import TRAIN, forked
from huggingface_hub import ModelCard
from timm.models import create_feature_extractor, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor

import darts_bio.models
from darts_bio.__main__ import main
from darts_bio.data.batches import Normalization, in_order
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.interop.export import export_program, inference_network, save_for_hub, write_program
from darts_bio.interop.hub_card import hub_card
from darts_bio.networks import build_network, parameters
from darts_bio.rules import draw_feedback, rule_carriers
from darts_bio.spaces import OPERATIONS, load_genotype, shipped_names
from darts_bio.storage.checkpoint import FORMAT, write_checkpoint
from darts_bio.training.meters import evaluate
from darts_bio.training.provenance import Provenance
from darts_bio.training.trained import load_trained

NB201 = "|nor_conv_1x1:usf~0|+|nor_conv_3x3:fa~0|skip_connect~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_1x1:bp~2|"
CIFAR, IMAGENET = "darts_bio_cifar", "darts_bio_imagenet"


def create(name: str = CIFAR, genotype: Any = "bionas_darts", **options: Any) -> Any:
    return timm.create_model(name, genotype=genotype, **{"channels": 4, "layers": 3, **options})


def images(n: int = 2, channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(n))


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# The models


def test_models_are_there_by_name() -> None:
    assert timm.list_models("darts_bio*") == [CIFAR, IMAGENET]
    cifar, imagenet = create(), create(IMAGENET)
    assert (cifar.num_classes, imagenet.num_classes) == (10, 1000)
    assert cifar(images()).shape == (2, 10)
    assert imagenet(images(side=64)).shape == (2, 1000)
    for model, side in ((cifar, 32), (imagenet, 224)):
        config = timm.data.resolve_model_data_config(model)
        assert config["input_size"] == (3, side, side)
        assert config["interpolation"] == "bilinear"
        assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
        assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


def test_every_shipped_genotype_is_a_model_by_name_with_each_stem() -> None:
    named = {
        f"{genotype}_{stem}": genotype
        for genotype in shipped_names()
        for stem in ("cifar", "imagenet")
    }
    assert {"bionas_darts_cifar", "darts_v2_imagenet"} <= set(named)
    assert timm.list_models(module="timm_models") == sorted([CIFAR, IMAGENET, *named])
    assert set(timm.list_models(name_matches_cfg=True)) >= set(named)
    for name, genotype in named.items():
        model = timm.create_model(name, channels=4, layers=3)
        assert model.genotype == load_genotype(genotype)
        assert model.form["stem"] == name.rpartition("_")[2]
        general = create(f"darts_bio_{model.form['stem']}", genotype)
        assert model.state_dict().keys() == general.state_dict().keys()
        different = {"architecture": general.pretrained_cfg["architecture"]}
        assert {**model.pretrained_cfg, **different} == general.pretrained_cfg
        assert model.pretrained_cfg["architecture"] == name
    assert (
        timm.create_model("darts_v2_cifar", channels=4, layers=3, rule="fa").genotype.backbone_rule
        == "fa"
    )
    with pytest.raises(
        InputError,
        match="genotype: darts_v2_cifar is the network of darts_v2; .* use darts_bio_cifar",
    ):
        create("darts_v2_cifar", "darts_v1")
    assert timm.models.is_model_in_modules("darts_v2_cifar", ["timm_models"])


def test_a_genotype_is_the_default() -> None:
    for name in (CIFAR, IMAGENET):
        assert timm.create_model(name, channels=4, layers=3).genotype == load_genotype(
            "bionas_darts"
        )
    assert sum(p.numel() for p in timm.create_model("darts_v2_cifar").parameters()) == 3_349_342
    with pytest.raises(
        InputError,
        match="genotype: expected a name, .* found None; with timm's scripts: --model-kw",
    ):
        darts_bio.models.TimmNetwork()


@pytest.mark.parametrize("rule", [None, "kolen_pollack", "dfa", "brsf"])
def test_a_device_and_a_type_are_chosen_as_for_timms_own_models(rule: str | None) -> None:
    def created(**options: Any) -> Any:
        torch.manual_seed(0)
        return create(rule=rule, **options)

    plain, half = created(), created(device="cpu", dtype=torch.bfloat16)
    assert weights(half).keys() == weights(plain).keys()
    for name, value in plain.to(torch.bfloat16).state_dict().items():
        assert torch.equal(half.state_dict()[name], value)
    y = half(images().bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    half.reset_classifier(7)
    assert half.get_classifier().weight.dtype == torch.bfloat16
    meta = created(device=torch.device("meta"))
    assert {value.device.type for value in meta.state_dict().values()} == {"meta"}
    assert meta(images().to("meta")).shape == (2, 10)
    maps = created(features_only=True, dtype=torch.float64)(images().double())
    assert {features.dtype for features in maps} == {torch.float64}


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_model_is_the_network_of_build_network(stem: str) -> None:
    form = {"channels": 4, "layers": 3, "num_classes": 10, "stem": stem}
    torch.manual_seed(3)
    network = build_network(load_genotype("bionas_darts"), **form, seed=5)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = create(f"darts_bio_{stem}", num_classes=10, seed=5)
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in network.state_dict().items()
    )
    other = create(f"darts_bio_{stem}", num_classes=10)
    other.load_state_dict(network.state_dict())
    x = images(side=64)
    assert torch.equal(other.eval()(x), network.eval()(x))


def test_a_genotype_is_given_in_any_form(tmp_path: Path) -> None:
    genotype = load_genotype("bionas_darts")
    text = genotype.to_json()
    (tmp_path / "mine.json").write_text(text)
    for form in (
        genotype,
        text,
        json.loads(text),
        tmp_path / "mine.json",
        str(tmp_path / "mine.json"),
    ):
        assert create(genotype=form).genotype == genotype
    assert create(genotype=NB201).head[0].num_features == 16
    assert create(rule="usf(scale=match)").genotype == genotype.with_rule("usf(scale=match)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genotype": "darts_v3"}, "unknown genotype 'darts_v3': did you mean"),
        (
            {"genotype": 3},
            "genotype: expected a name, .* found 3; with timm's scripts: --model-kwargs genotype=",
        ),
        ({"genotype": {"format": 1}}, "genotype: the field 'space' is missing"),
        ({"genotype": {"format": object()}}, "genotype: expected the content of a genotype file"),
        ({"genotype": "{"}, "genotype: not a JSON file"),
        ({"rule": "ufs"}, "unknown learning rule 'ufs'"),
        ({"rule": 3}, "rule: expected the name of a learning rule, found 3"),
        ({"channels": "four"}, "channels: expected a whole number of at least 1, found 'four'"),
        ({"num_classes": -1}, "num_classes: expected a whole number of at least 0, found -1"),
        ({"drop_rate": 1.0}, "drop_rate: expected at least 0 and below 1, found 1.0"),
        ({"drop_path_rate": 1.0}, "drop path: expected a probability"),
        (
            {"global_pool": "max"},
            "global_pool: expected 'avg', or '' without a classifier, found 'max'",
        ),
        ({"global_pool": ""}, "global_pool: expected 'avg'"),
        ({"device": "gpu"}, "device: expected a device such as cpu or cuda:0, found 'gpu'"),
        ({"device": []}, "device: expected a device such as cpu or cuda:0, found \\[\\]"),
        (
            {"dtype": "float16"},
            "dtype: expected a floating-point type such as torch.bfloat16, found 'float16'",
        ),
        (
            {"dtype": torch.int64},
            "dtype: expected a floating-point type such as torch.bfloat16, found torch.int64",
        ),
        ({"drop_block_rate": 0.1}, "unknown option of a darts_bio model 'drop_block_rate'"),
        (
            {"features_only": True, "out_indices": (7,)},
            "indices: expected a number of features up to 4, or places",
        ),
        (
            {"features_only": True, "out_indices": 0},
            "indices: expected a number of features up to 4, or places",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(**options)


def test_what_timms_scripts_pass_by_default_is_accepted() -> None:
    unset = dict.fromkeys(
        ("drop_path_rate", "drop_block_rate", "global_pool", "bn_momentum", "bn_eps", "scriptable")
    )
    model = create(in_chans=1, num_classes=5, drop_rate=0.0, checkpoint_path="", **unset)
    assert model(images(channels=1)).shape == (2, 5)


def test_counts_of_numpy() -> None:
    model = create(channels=np.int64(4), num_classes=np.int32(5), seed=np.uint8(1))
    assert model(images()).shape == (2, 5)
    model.reset_classifier(np.int64(7))
    assert (type(model.num_classes), model(images()).shape) == (int, (2, 7))


# Features


@pytest.mark.parametrize(
    ("name", "reductions"), [(CIFAR, [1, 1, 2, 4]), (IMAGENET, [4, 8, 16, 32])]
)
@pytest.mark.parametrize("genotype", ["bionas_darts", NB201])
def test_features_have_the_sizes_they_say(name: str, reductions: list[int], genotype: str) -> None:
    model = create(name, genotype, layers=6, features_only=True)
    assert model.feature_info.reduction() == reductions
    x = images(side=64)
    outputs = model(x)
    assert [tuple(y.shape[1:]) for y in outputs] == [
        (channels, 64 // reduction, 64 // reduction)
        for channels, reduction in zip(model.feature_info.channels(), reductions, strict=True)
    ]
    chosen = create(name, genotype, layers=6, features_only=True, out_indices=(1, -2))
    assert chosen.feature_info.reduction() == [reductions[1], reductions[2]]
    assert [y.shape[-1] for y in chosen(x)] == [64 // reductions[1], 64 // reductions[2]]
    names = {name for name, _ in create(name, genotype, layers=6).named_modules()}
    assert set(chosen.feature_info.module_name([0, 1, 2, 3])) <= names


def test_features_are_those_of_the_whole_model() -> None:
    model, x = create(genotype=NB201).eval(), images()
    features, every = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.head(every[-1]), features)
    assert torch.equal(
        model.forward_intermediates(x, norm=True, intermediates_only=True)[-1], features
    )
    few = model.forward_intermediates(x, indices=[2, 0], stop_early=True, intermediates_only=True)
    assert torch.equal(few[0], every[2])
    assert torch.equal(few[1], every[0])
    with pytest.raises(InputError, match="output_fmt: expected NCHW, found 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.cells) == 1
    assert torch.equal(
        model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], every[1]
    )
    assert model.num_classes == 0


# Tracing


@pytest.mark.parametrize(
    ("name", "genotype", "rule"),
    [
        (CIFAR, "bionas_darts", None),
        (IMAGENET, "bionas_darts", None),
        (CIFAR, NB201, None),
        *(
            (CIFAR, "darts_v2", rule)
            for rule in ("bp", "kolen_pollack", "brsf", "dfa", "hebbian", "predictive")
        ),
    ],
)
def test_a_traced_network_computes_learns_and_renews_as_the_model(
    name: str, genotype: str, rule: str | None
) -> None:
    model = create(name, genotype, rule=rule, drop_path_rate=0.3, drop_rate=0.1)
    logits = "watched" if model.watched is not None else "classifier"
    traced = create_feature_extractor(copy.deepcopy(model), {logits: "y"})
    assert traced.state_dict().keys() == model.state_dict().keys()
    x = images(side=33)  # odd, so that halving it pads
    for _ in range(3):
        outputs = []
        for network in (model, traced):
            torch.manual_seed(1)
            y = network(x)
            y = y if isinstance(y, Tensor) else y["y"]
            network.zero_grad()
            y.square().sum().backward()
            outputs.append(y)
        assert torch.equal(*outputs)
        others = dict(traced.named_parameters())
        assert all(
            torch.equal(p.grad, others[n].grad)
            for n, p in model.named_parameters()
            if p.grad is not None
        )
        assert all(
            torch.equal(value, weights(traced)[name]) for name, value in weights(model).items()
        )
    assert torch.equal(traced.eval()(x)["y"], model.eval()(x))
    copied = copy.deepcopy(traced).train()
    before = weights(traced)
    copied(x)
    assert all(torch.equal(value, before[name]) for name, value in weights(traced).items())
    renewed = [
        name
        for name, value in weights(copied).items()
        if "feedback" in name and not value.equal(before[name])
    ]
    assert bool(renewed) == (model.renewal is not None)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_can_be_traced(operation: str) -> None:
    """At both strides; in training, where some draw."""
    edges = f"[('{operation}', 0), ('{operation}', 1)]"
    cells = ", ".join(f"{cell}={edges}, {cell}_concat=[2]" for cell in ("normal", "reduce"))
    model = create(genotype=f"Genotype({cells})", drop_path_rate=0.3)
    traced = create_feature_extractor(copy.deepcopy(model), {"classifier": "y"})
    x = images(side=33)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(traced(x)["y"], expected)


def test_tracing_is_no_training_pass() -> None:
    model = create(rule="brsf")
    create_feature_extractor(model, ["classifier"])
    assert model.passes == 0
    assert model.training


@pytest.mark.parametrize("name", [CIFAR, IMAGENET])
@pytest.mark.parametrize("genotype", ["bionas_darts", NB201])
def test_features_are_the_same_by_a_graph_and_by_hooks(name: str, genotype: str) -> None:
    def seeded(**options: Any) -> Any:
        torch.manual_seed(0)
        return create(name, genotype, **options).eval()

    x = images(side=64)
    expected = seeded().forward_intermediates(x, intermediates_only=True)
    for kind in ("fx", "hook"):
        features = seeded(features_only=True, feature_cls=kind)
        assert features.feature_info.channels() == [y.shape[1] for y in expected]
        assert all(torch.equal(*pair) for pair in zip(features(x), expected, strict=True))
    few = seeded(features_only=True, feature_cls="fx", out_indices=(1, -1))(x)
    assert torch.equal(few[0], expected[1])
    assert torch.equal(few[1], expected[-1])


# Heads


def test_heads() -> None:
    model, x = create(drop_rate=0.5), images()
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 8, 8)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    model.eval()
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model.forward_head(features))
    model.reset_classifier(0)
    assert torch.equal(model.forward_head(features), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model.forward_head(features), features)
    assert create(num_classes=0, global_pool="")(x).shape == (2, 64, 8, 8)
    with pytest.raises(
        InputError, match="num_classes: expected a whole number of at least 0, found -3"
    ):
        model.reset_classifier(-3)


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "kolen_pollack", "dfa"])
def test_a_new_classifier_has_the_rule_of_the_backbone_and_feedback_of_its_own(rule: str) -> None:
    model, x = create(rule=rule).double(), images().double()
    before = weights(model)
    model.reset_classifier(7)
    assert model.get_classifier().rule.spec == rule
    assert model.get_classifier().weight.dtype == torch.float64
    assert model(x).shape == (2, 7)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kept = [name for name in before if "feedback" in name and not name.startswith("classifier")]
    if rule != "dfa":
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in kept)
        return
    drawn = [carrier.feedback["kernel"] for _, carrier in rule_carriers(model) if carrier.feedback]
    assert all(len(kernel) == 7 for kernel in drawn)
    assert not torch.equal(drawn[0][:, :4], drawn[1][:, :4])
    model.reset_classifier(0)
    model(x).square().sum().backward()  # the pooled features are the output then


# Training


def test_groups_hold_every_parameter_once() -> None:
    for name, genotype in ((CIFAR, "bionas_darts"), (IMAGENET, "bionas_darts"), (CIFAR, NB201)):
        model = create(name, genotype, layers=6, rule="kolen_pollack")
        for coarse, count in ((False, len(model.cells) + 2), (True, 5)):
            groups = group_parameters(model, model.group_matcher(coarse=coarse))
            assert sorted(itertools.chain(*groups.values())) == sorted(
                name for name, _ in model.named_parameters()
            )
            assert len(groups) == count
            assert all(name.startswith("stem") for name in groups[0])
            assert "classifier.weight" in groups[count - 1]
    scales = {group["lr_scale"] for group in param_groups_layer_decay(model, 1e-4, layer_decay=0.5)}
    assert len(scales) == len(model.cells) + 2
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, layer_decay=0.5)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(model.parameters())
    )


@pytest.mark.parametrize("rule", [None, "bp", "fa", "brsf", "dfa", "hebbian"])
def test_checkpointing_leaves_gradients_as_they_are(rule: str | None) -> None:
    def gradients(name: str, checkpointing: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, x = create(name, rule=rule, drop_path_rate=0.3).double(), images().double()
        model.set_grad_checkpointing(checkpointing)
        for _ in range(2):
            model.zero_grad()
            model(x).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    for name in (CIFAR, IMAGENET) if rule == "fa" else (CIFAR,):
        plain, saving = gradients(name, False), gradients(name, True)
        assert all(torch.allclose(saving[key], plain[key], rtol=1e-9, atol=1e-12) for key in plain)


@pytest.mark.parametrize("rule", ["brsf", "weight_mirror"])
def test_feedback_is_renewed_at_each_training_pass_but_the_first(rule: str) -> None:
    model, other = create(rule=rule, seed=4), create(rule=rule, seed=4)
    other.load_state_dict(model.state_dict())
    x = images()
    for update in range(3):
        if update:
            draw_feedback(other, 4, update)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        model.eval()(x)
        model.train()
        with torch.no_grad():
            model(x)
        for (_, one), (_, two) in zip(rule_carriers(model), rule_carriers(other), strict=True):
            assert all(
                torch.equal(value, two.feedback[name]) for name, value in one.feedback.items()
            )
    before = weights(model)
    model(x)
    assert any(
        not torch.equal(before[name], value)
        for name, value in weights(model).items()
        if "feedback" in name
    )


def test_drop_path_drops_in_training_alone() -> None:
    model, x = create(drop_path_rate=0.5), images()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# Trained networks


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on the digits, under several rules."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = "--genotype bionas_darts --epochs 1 --train-images 64 --batch-size 16 --channels 4 --device cpu --out"
    done = forked(TRAIN, *words.split(), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def checkpoint(
    folder: Path,
    genotype: str = "bionas_darts",
    change: Callable[[dict[str, Any]], object] = lambda task: None,
    config: dict[str, Any] | None = None,
    **form: Any,
) -> Path:
    """One as a training writes it, of a network that has seen a few images, with its task
    `change`d, of a run with the options of `config`.
    """
    form = {
        "channels": 4,
        "layers": 3,
        "num_classes": 5,
        "in_channels": 3,
        "auxiliary": False,
        "stem": "cifar",
        **form,
    }
    loaded = load_genotype(genotype)
    loaded = loaded if form.pop("rule", None) is None else loaded.with_rule("dfa")
    network = build_network(loaded, **form)
    network(images(4, form["in_channels"]))
    task = {
        "network": network.state_dict(),
        "genotype": loaded.to_json(),
        "form": form,
        "image_size": [32, 32],
        "classes": [f"class {i}" for i in range(form["num_classes"])],
        "normalisation": {
            "mean": torch.full((form["in_channels"],), 0.4),
            "std": torch.full((form["in_channels"],), 0.2),
        },
    }
    change(task)
    path = folder / "checkpoint.pt"
    stamp = {
        "format": FORMAT,
        "kind": "train",
        "config": {"seed": 2, **(config or {})},
        "command": "",
        "step": 3,
    }
    write_checkpoint(path, {**stamp, "task": task})
    return path


def test_a_trained_network_is_read_without_its_data(run: Path) -> None:
    trained = load_trained(run)
    assert trained.genotype == load_genotype("bionas_darts")
    assert (trained.classes, trained.image_size, trained.step) == (tuple("0123456789"), (8, 8), 4)
    assert trained.config["channels"] == trained.form["channels"] == 4
    assert not trained.network.training
    normalization = Normalization(torch.tensor(trained.mean), torch.tensor(trained.std))
    numbers = evaluate(
        trained.network, in_order(load_data("digits").test, 500, normalization), prefix="test"
    )
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert numbers["test/accuracy"] == last["test/accuracy"]
    assert numbers["test/loss"] == pytest.approx(last["test/loss"], rel=1e-6)


def test_averaged_weights_are_read_where_there_are_such(tmp_path: Path) -> None:
    def average(task: dict[str, Any]) -> None:
        task["averaged"] = {name: value.clone() for name, value in task["network"].items()}
        task["averaged"]["classifier.bias"] += 1

    path, state = checkpoint(tmp_path, change=average), torch.get_rng_state()
    own, averaged = load_trained(path, averaged=False).network, load_trained(tmp_path).network
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(averaged.classifier.bias, own.classifier.bias + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda task: task.pop("form"),
            "expected the training of a genotype's network, found none of form",
        ),
        (lambda task: task.update(form={"channels": 4, "depth": 3}), "does not fit the run"),
        (lambda task: task.update(genotype="{}"), "genotype: the field 'format' is missing"),
        (lambda task: task.update(network={}), "does not fit the run"),
        (lambda task: task.update(classes=["a"]), "classes: expected 5 names, found"),
        (
            lambda task: task.update(image_size=[32, 0]),
            "image_size: expected a height and a width, found",
        ),
        (
            lambda task: task["normalisation"].update(std=torch.zeros(3)),
            "normalisation: expected the means and stds of 3 channels in",
        ),
        (
            lambda task: task["normalisation"].update(std=torch.full((3,), torch.inf)),
            "normalisation: expected the means and stds of 3",
        ),
        (
            lambda task: task["normalisation"].update(std=torch.full((3,), 1e-30)),
            "normalisation: expected the means and stds of 3",
        ),
        (
            lambda task: task["normalisation"].update(mean=torch.full((3,), torch.nan)),
            "normalisation: expected the means and stds of 3",
        ),
        (lambda task: task.update(normalisation=None), "does not fit the run"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = checkpoint(tmp_path, change=change)
    with pytest.raises(InputError, match=message) as refusal:
        load_trained(path)
    assert str(refusal.value).startswith(str(path))


# Export


def created(folder: Path, **options: Any) -> Any:
    """A folder of timm's as timm reads it. Version 1.0.20 reads no safetensors from folders."""
    file = {"source": "", "file": str(folder / "model.safetensors")}
    overlay = file if timm.__version__ == "1.0.20" else None
    return timm.create_model(
        f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay, **options
    )


def said(capsys: pytest.CaptureFixture[str], *command: Any, code: int = 0) -> str:
    assert main([str(word) for word in command]) == code
    output, errors = capsys.readouterr()
    assert (errors if code == 0 else output) == ""
    return output if code == 0 else errors


def test_a_run_becomes_a_folder_of_timms(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "hub"
    assert "timm.create_model" in said(capsys, "export", run, "--hub", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "config.json").read_text())["label_names"] == list("0123456789")
    trained, x = load_trained(run), images(3, 1, 8)
    again = load_trained(folder)
    for field in ("genotype", "classes", "mean", "std", "image_size", "step", "provenance"):
        assert getattr(again, field) == getattr(trained, field)
    assert not again.network.training
    assert torch.equal(again.network(x), trained.network(x))
    assert weights(again.network).keys() == weights(trained.network).keys()
    assert again.config == json.loads(json.dumps(trained.config)) | {"genotype": "bionas_darts"}
    model = created(folder).eval()
    assert torch.equal(model(x), trained.network(x))
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (1, 8, 8)
    assert (tuple(config["mean"]), tuple(config["std"]), config["crop_pct"]) == (
        trained.mean,
        trained.std,
        1.0,
    )
    seven = created(folder, num_classes=7).eval()
    assert torch.equal(seven.forward_features(x), model.forward_features(x))
    assert seven(x).shape == (3, 7)
    maps = created(folder, features_only=True).eval()(x)
    assert all(
        torch.equal(*pair) for pair in zip(maps, model.forward_intermediates(x)[1], strict=True)
    )
    assert "exists and is not empty" in said(capsys, "export", run, "--hub", folder, code=2)


def test_the_card_of_a_folder_is_what_the_hub_reads(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--hub", str(tmp_path / "hub")]) == 0
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    accuracy = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["test/accuracy"]
    assert (card.data.library_name, card.data.license) == ("timm", "apache-2.0")
    assert card.data.pipeline_tag == "image-classification"
    assert {"timm", "darts_bio"} <= set(card.data.tags)
    assert (card.data.datasets, card.data.metrics, card.data.model_name) == (
        ["digits"],
        ["accuracy"],
        "hub",
    )
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_name) == (
        "digits",
        "accuracy",
        "test accuracy",
    )
    assert result.metric_value == pytest.approx(accuracy, abs=1e-6)
    trained = load_trained(run)
    for line in (
        "# Model card for hub",
        "| images | 1x8x8 |",
        f"| rule of stem, preprocessing and classifier | `{trained.genotype.backbone_rule}` |",
        f"| parameters | {parameters(trained.network):,} |",
        f"| test accuracy | {100 * accuracy:.2f} % |",
        *str(trained.genotype).splitlines(),
    ):
        assert line in card.text
    recipe = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])
    assert recipe.items() <= trained.config.items()
    assert "genotype" not in recipe  # it may be a path


@pytest.mark.parametrize(
    ("config", "data_set"),
    [
        ({"dataset": "cifar10"}, "cifar10"),
        ({"dataset": "hfds/timm/mini-imagenet"}, "timm/mini-imagenet"),
        ({"dataset": "folder"}, None),
        ({"dataset": ""}, None),
        ({}, None),
    ],
)
def test_a_card_names_no_more_than_is_known(
    tmp_path: Path, config: dict[str, Any], data_set: str | None
) -> None:
    trained = load_trained(checkpoint(tmp_path, config=config, auxiliary=True))
    assert trained.provenance == Provenance()  # without metrics.jsonl
    data = ModelCard(hub_card(trained, "it")).data
    assert (data.datasets, data.metrics, data.eval_results) == (data_set and [data_set], None, None)
    trained = replace(trained, provenance=Provenance(accuracy=0.5))
    data = ModelCard(hub_card(trained, "it")).data
    assert (data.eval_results[0].metric_value, data.eval_results[0].dataset_type) == (
        0.5,
        data_set or "imagefolder",
    )


def test_the_accuracy_is_that_of_the_weights(tmp_path: Path) -> None:
    numbers = {"test/accuracy": 0.25, "test_averaged/accuracy": 0.5}
    path = checkpoint(tmp_path)
    for step, accuracy in ((2, None), (3, 0.25), (4, 0.25)):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"event": "epoch", "step": step, **numbers}) + "\n")
            file.write(json.dumps({"event": "step", "step": step, "train/accuracy": 1.0}) + "\n")
        for source in (tmp_path, path):
            assert load_trained(source).provenance.accuracy == accuracy

    def average(task: dict[str, Any]) -> None:
        task["averaged"] = task["network"]

    averaged = load_trained(checkpoint(tmp_path, change=average, config={"ema": 0.9}))
    assert averaged.provenance.accuracy == 0.5
    assert "| test accuracy of the averaged network | 50.00 % |" in hub_card(averaged, "it")
    assert load_trained(path, averaged=False).provenance.accuracy == 0.25


@pytest.mark.parametrize("accuracy", ["NaN", "Infinity", "-0.1", "1.5", "1" + 400 * "0"])
def test_an_accuracy_that_is_no_share_is_unknown(tmp_path: Path, accuracy: str) -> None:
    path, metrics = checkpoint(tmp_path), tmp_path / "metrics.jsonl"
    (tmp_path / "status.json").write_text('{"state": "finished", "images": 4, "machine": "one"}')
    record = '{"event": "epoch", "step": 3, "test/accuracy": %s}\n'
    metrics.write_text(record % "0.75")
    assert load_trained(path).provenance == Provenance("", "one", 0.75, 4)
    assert load_trained(path).provenance.right == 3
    metrics.write_text(record % accuracy)
    assert load_trained(path).provenance == Provenance("", "one")
    assert Provenance(accuracy=json.loads(accuracy), images=4).right is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json", "both", "folder"])
def test_damaged_records_do_not_keep_a_whole_checkpoint_from_being_read(
    tmp_path: Path, name: str
) -> None:
    path = checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"event": "epoch", "step": 3, "test/accuracy": 0.5}\n')
    (tmp_path / "status.json").write_text('{"state": "finished", "images": 4, "machine": "one"}')
    if name == "folder":
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
    for damaged in ("metrics.jsonl", "status.json") if name == "both" else (name,):
        if name != "folder":
            (tmp_path / damaged).write_text("\x1b[2J{\n")
    with pytest.warns(UserWarning, match="metrics.jsonl or status.json cannot be read") as caught:
        trained = load_trained(path)
    assert trained.provenance == Provenance()
    assert trained.step == 3
    (warning,) = caught
    assert str(warning.message).isprintable()


@pytest.mark.parametrize(
    ("stem", "config", "crop_pct"),
    [
        ("imagenet", {"crop_share": 0.75}, 0.75),
        ("imagenet", {"crop_share": 1.0}, 1.0),
        ("imagenet", {}, 0.875),
        ("cifar", {}, 1.0),
    ],
)
def test_a_folder_has_images_cropped_as_the_run_did(
    tmp_path: Path, stem: str, config: dict[str, Any], crop_pct: float
) -> None:
    save_for_hub(load_trained(checkpoint(tmp_path, stem=stem, config=config)), tmp_path / "hub")
    assert (
        json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]["crop_pct"]
        == crop_pct
    )
    assert timm.data.resolve_model_data_config(created(tmp_path / "hub"))["crop_pct"] == crop_pct


@pytest.mark.parametrize(
    ("form", "other"),
    [
        ({"auxiliary": True}, {}),
        ({"rule": "dfa"}, {"num_classes": 7}),
        ({"stem": "imagenet"}, {"num_classes": 3, "in_chans": 1}),
        ({"genotype": NB201}, {"rule": "fa", "num_classes": 3}),
    ],
)
def test_pretrained_weights_serve_other_classes_and_channels(
    tmp_path: Path, form: dict[str, Any], other: dict[str, Any]
) -> None:
    path = checkpoint(tmp_path, **form)
    save_for_hub(load_trained(path), tmp_path / "hub")
    x = images()
    model = created(tmp_path / "hub").eval()
    assert torch.equal(model(x), load_trained(path).network(x))
    assert model.seed == 2
    changed = created(tmp_path / "hub", **other)
    y = changed(x[:, : other.get("in_chans", 3)])
    assert y.shape == (2, other.get("num_classes", 5))
    y.square().sum().backward()


@pytest.mark.parametrize(
    "form", [{"auxiliary": True}, {"rule": "dfa"}, {"stem": "imagenet"}, {"genotype": NB201}]
)
def test_what_is_exported_predicts_as_the_trained_network_without_feedback(
    tmp_path: Path, form: dict[str, Any]
) -> None:
    trained = load_trained(checkpoint(tmp_path, **form))
    network, pixels = inference_network(trained), torch.rand(3, 3, 32, 32)
    x = (pixels - torch.tensor(trained.mean).view(-1, 1, 1)) / torch.tensor(trained.std).view(
        -1, 1, 1
    )
    assert torch.allclose(network(pixels), trained.network(x), atol=1e-6)
    assert not any("feedback" in name or "auxiliary" in name for name in network.state_dict())


@pytest.mark.filterwarnings(
    "ignore:The given buffer is not writable:UserWarning"
)  # PyTorch 2.11's torch.export.load
def test_a_run_becomes_a_program(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    said_so = said(capsys, "export", run, "--program", path)
    assert said_so == f"wrote {path}: pixels Nx1x8x8 in [0, 1] to logits of 10 classes\n"
    with zipfile.ZipFile(path) as file:  # it names no source file of this machine
        parts = [file.read(name) for name in file.namelist()]
    for module in (darts_bio, torch):
        assert not any(str(Path(module.__file__ or "").parent).encode() in part for part in parts)
    network, program = inference_network(load_trained(run)), torch.export.load(path).module()
    for n in (1, 5):
        pixels = torch.rand(n, 1, 8, 8)
        assert torch.allclose(program(pixels), network(pixels), atol=1e-5)
    assert "exists" in said(capsys, "export", run, "--program", path, code=2)
    fixed = tmp_path / "fixed.pt2"
    write_program(export_program(load_trained(run), batch=3), fixed)
    with pytest.raises(Exception, match="(?i)guard|shape"):
        torch.export.load(fixed).module()(torch.rand(2, 1, 8, 8))


def test_a_run_becomes_an_onnx_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    assert "to logits of 10 classes" in said(capsys, "export", run, "--onnx", path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    network, session = inference_network(load_trained(run)), onnxruntime.InferenceSession(path)
    for n in (1, 5):
        pixels = torch.rand(n, 1, 8, 8)
        (logits,) = session.run(["logits"], {"pixels": pixels.numpy()})
        assert torch.allclose(torch.from_numpy(logits), network(pixels), atol=1e-4)


def test_a_missing_package_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refusal = said(
        capsys,
        "export",
        run,
        "--onnx",
        tmp_path / "m.onnx",
        "--program",
        tmp_path / "m.pt2",
        code=2,
    )
    assert refusal == "error: --onnx: needs onnx and onnxscript; pip install 'darts-bio[onnx]'\n"
    assert not list(tmp_path.iterdir())


def test_bad_runs_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(source: Path, *words: Any) -> str:
        return said(capsys, "export", source, *words, code=2)

    target = ("--hub", tmp_path / "hub")
    assert "expected something to write" in refused(run)
    assert "--batch: expected at least 1" in refused(
        run, "--program", tmp_path / "m.pt2", "--batch", 0
    )
    assert "expected the run folder of a training" in refused(tmp_path / "none", *target)
    (tmp_path / "empty").mkdir()
    assert "found no" in refused(tmp_path / "empty", *target)
    (tmp_path / "cut.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    assert "not a readable checkpoint" in refused(tmp_path / "cut.pt", *target)
    write_checkpoint(tmp_path / "search.pt", {"format": FORMAT, "kind": "search"})
    assert "expected the checkpoint of a train run, found one of a search run" in refused(
        tmp_path / "search.pt", *target
    )
    assert not (tmp_path / "hub").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run, "--hub", tmp_path / "file" / "hub")
    assert "expected a file in a folder that exists" in refused(
        run, "--program", tmp_path / "none" / "m.pt2"
    )


# timm's scripts

SCRIPT = """
import sys, timm, beside
print(sys.argv, sys.path[0], __name__)
print(timm.list_models("darts_bio*"), beside.value)
if "classes" in sys.argv:
    timm.create_model("darts_bio_cifar", genotype="darts_v3")
sys.exit(3)
"""


def test_a_script_of_timms_is_run_as_python_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("value = 42")
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit, match="3"):
        main(["timm", str(script), "data", "--model", CIFAR, "--plugin", "-h"])
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0]
        == f"{[str(script), 'data', '--model', CIFAR, '--plugin', '-h']} {tmp_path} __main__"
    )
    assert printed[1] == f"['{CIFAR}', '{IMAGENET}'] 42"
    assert (sys.argv, sys.path) == before
    assert main(["timm", str(script), "classes"]) == 2
    assert "error: unknown genotype 'darts_v3'" in capsys.readouterr().err
    assert "huggingface/pytorch-image-models" in said(
        capsys, "timm", tmp_path / "validate.py", code=2
    )


def test_the_module_names_what_is_public() -> None:
    assert set(darts_bio.models.__all__) == {"TimmNetwork", CIFAR, IMAGENET}
