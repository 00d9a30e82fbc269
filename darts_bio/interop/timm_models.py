"""Genotypes' networks as models of timm, under the public name `darts_bio.models`, whose import
registers them.

They follow timm's conventions (features, heads, groups of parameters, checkpointing, pretrained
weights), so timm's own scripts train, validate and export them: `python -m darts_bio timm train.py
...`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from darts_bio.data.transforms import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.interop.tracing import Renewal, Watched
from darts_bio.networks import Network
from darts_bio.rules import RULES, RuleLinear, connect_output, draw_feedback, rule_carriers
from darts_bio.rules.carriers import PREFIX, DirectCarrier, draw_first
from darts_bio.spaces import SPACES, Genotype, from_json, load_genotype, shipped_names
from darts_bio.spaces.genotype import brief

__all__ = ["TimmNetwork"]


def as_genotype(source: Any) -> Genotype:
    """A genotype from a genotype, from the content of a genotype file (text or decoded), or from
    what `load_genotype` takes. Raises InputError if it cannot be used.
    """
    if isinstance(source, Genotype):
        return source
    if isinstance(source, Mapping):
        try:
            source = json.dumps(source)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"genotype: expected the content of a genotype file ({first_line(error)})"
            ) from None
    if not isinstance(source, (str, Path)):
        raise InputError(
            "genotype: expected a name, a file, a run folder, text or a genotype, found "
            f"{brief(source)}; "
            "with timm's scripts: --model-kwargs genotype=darts_v2"
        )
    if str(source).lstrip().startswith("{"):
        return from_json(str(source), "genotype")
    return load_genotype(source)


def as_placement(device: Any, dtype: Any) -> dict[str, Any]:
    """The keywords of `Module.to` for where a model lies and what its numbers are; None leaves them
    as they are. Raises InputError if PyTorch has no such device, or the type is not one of floating
    point.
    """
    try:
        device = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device: expected a device such as cpu or cuda:0, found {brief(device)} "
            f"({first_line(error)})"
        ) from None
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(
            f"dtype: expected a floating-point type such as torch.bfloat16, found {brief(dtype)}"
        )
    return {"device": device, "dtype": dtype}


class TimmNetwork(Network):
    """The discrete network in timm's form: images (N, in_chans, H, W) to logits (N, num_classes),
    or with `num_classes=0` to pooled features (N, num_features). It has no auxiliary head: timm's
    loops expect one output.

    `genotype` is what `as_genotype` takes; `rule` puts all of it under one learning rule; `seed`
    fixes the feedback. The keys of its weights are those of `build_network`'s. `device` and `dtype`
    are where weights and feedback lie and their type; they are drawn on the CPU in PyTorch's
    default type, so the same numbers are rounded everywhere.

    timm's loops do not know that some rules renew their feedback (brsf, weight_mirror). Here it is
    renewed at the start of each training pass with gradients but the first, as
    `draw_feedback(model, seed, update)` does after each update; where gradients are accumulated
    that is once a pass. A run that timm resumes counts its passes from the start.

    Raises InputError for an option that is unknown or out of bounds.
    """

    def __init__(
        self,
        genotype: Any = None,
        *,
        rule: str | None = None,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        stem: str = "cifar",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        seed: int = 0,
        device: Any = None,
        dtype: Any = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            known = set(inspect.signature(TimmNetwork).parameters) - {"stem", "unknown"}
            raise unknown_name("option of a darts_bio model", name, known)
        counts = {
            "channels": channels,
            "layers": layers,
            "num_classes": num_classes,
            "in_chans": in_chans,
        }
        for name, count in {**counts, "seed": seed}.items():
            if type(count) is not int:
                raise InputError(f"{name}: expected a whole number, found {brief(count)}")
        if not (rule is None or isinstance(rule, str)):
            raise InputError(f"rule: expected the name of a learning rule, found {brief(rule)}")
        if not (isinstance(drop_rate, (int, float)) and 0 <= drop_rate < 1):
            raise InputError(
                f"drop_rate: expected at least 0 and below 1, found {brief(drop_rate)}"
            )
        placement = as_placement(device, dtype)
        genotype = as_genotype(genotype)
        super().__init__(
            genotype if rule is None else genotype.with_rule(rule),
            channels=channels,
            layers=layers,
            num_classes=num_classes or 1,
            in_channels=in_chans,
            stem=stem,
        )
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.widths[-1]
        self.drop_rate, self.seed, self.grad_checkpointing = drop_rate, seed, False
        self.global_pool = "avg"
        self.passes = 0
        self.set_drop_path(drop_path_rate)
        self.feature_info = self._features(SPACES.build(self.genotype.space).reductions(layers))
        draw_feedback(self, seed)
        self.watched = None if self.output_error is None else Watched(self.output_error)
        if num_classes == 0 or global_pool != "avg":
            self.reset_classifier(num_classes, global_pool)
        renews = any(carrier.rule.renews for _, carrier in rule_carriers(self))
        self.renewal = Renewal(self.renew_feedback) if renews else None
        self.to(**placement)

    def _features(self, reductions: Sequence[int]) -> list[dict[str, Any]]:
        """The stem's output and the last one of each size: where it stands, its channels, the
        image's side over its.
        """
        shrinks, entry = self.stem.shrinks, self.stem.entry
        outputs = [("stem", entry.c_newer, shrinks)]
        if entry.halved_once:
            outputs = [
                ("stem.older", entry.c_older, shrinks // 2),
                ("stem.newer", entry.c_newer, shrinks),
            ]
        for layer, width in enumerate(self.widths):
            shrinks *= 2 if layer in reductions else 1
            outputs.append((f"cells.{layer}", width, shrinks))
        last = {reduction: module for module, _, reduction in outputs}
        return [
            {"module": module, "num_chs": width, "reduction": reduction}
            for module, width, reduction in outputs
            if module in (outputs[0][0], last[reduction])
        ]

    def outputs(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, output) of the stem and of each cell in turn, for images x (N, in_chans, H, W)."""
        x = x if self.renewal is None else self.renewal(x)
        older, newer = self.stem(x.contiguous(memory_format=self.memory_format))
        if self.stem.entry.halved_once:
            yield "stem.older", older
            yield "stem.newer", newer
        else:
            yield "stem", newer
        saving = self.grad_checkpointing and torch.is_grad_enabled()
        for layer, (inputs, cell) in enumerate(zip(self.inputs, self.cells, strict=True)):
            if saving:
                older, newer = (
                    newer,
                    checkpoint(_run_layer, inputs, cell, older, newer, use_reentrant=False),
                )
            else:
                older, newer = newer, cell(inputs(older, newer))
            yield f"cells.{layer}", newer

    def renew_feedback(self) -> None:
        """Begins a training pass: all but the first find feedback renewed by the passes done so
        far.
        """
        if self.passes:
            with torch.autocast(next(self.parameters()).device.type, enabled=False):
                draw_feedback(self, self.seed, self.passes)
        self.passes += 1

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to what is pooled, (N, num_features, h, w)."""
        for _, output in self.outputs(x):
            features = output
        return self.head(features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, h, w) to logits; with `pre_logits` to the pooled features (N,
        num_features).
        """
        x = x.mean((2, 3)) if self.global_pool else x
        x = F.dropout(x, self.drop_rate, self.training)
        if pre_logits:
            return x
        x = self.classifier(x)
        # dfa knows the error of one output a sample; maps that are not pooled are no such output.
        return x if self.watched is None or not self.global_pool else self.watched(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(what is pooled, the outputs of `feature_info` at `indices`, or the last n where it is a
        number).

        With `norm` the last output is what is pooled; with `stop_early` nothing after the last one
        asked for is run; with `intermediates_only` they alone are returned. Raises InputError for
        an index or a format there is not.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt: expected NCHW, found {output_fmt!r}")
        names = [self.feature_info[i]["module"] for i in self._taken(indices)]
        last, found = self.feature_info[-1]["module"], dict.fromkeys(names, x)
        remaining = set(names)
        for name, features in self.outputs(x):
            if name in remaining:
                remaining.remove(name)
                found[name] = self.head(features) if norm and name == last else features
            if stop_early and not remaining:
                break
        intermediates = [found[name] for name in names]
        return intermediates if intermediates_only else (self.head(features), intermediates)

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Places in `feature_info`: all for None, the last n for a number, those given (below 0
        from the end).
        """
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            last = count if indices is None else indices
            indices = range(-last, 0)
        taken = [i + count if i < 0 else i for i in indices]
        if not taken or not all(0 <= i < count for i in taken):
            raise InputError(
                f"indices: expected a number of features up to {count}, or places from {-count} to "
                f"{count - 1}, found "
                f"{brief(indices)}"
            )
        return taken

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Takes away what the features of `indices` do not need, and returns their places in
        `feature_info`.
        """
        taken = self._taken(indices)
        last = self.feature_info[max(taken)]["module"]
        kept = _layer(last) + 1 if last.startswith("cells.") else 0
        if prune_norm or kept < len(self.cells):
            self.head = nn.Identity()
        self.inputs, self.cells, self.plan = self.inputs[:kept], self.cells[:kept], self.plan[:kept]
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier under the backbone's rule, with fresh feedback; with 0 classes none.
        Under dfa all feedback goes from the output, so that all of it is new. Raises InputError for
        a pooling there is not.
        """
        if type(num_classes) is not int or num_classes < 0:
            raise InputError(
                f"num_classes: expected a whole number of at least 0, found {brief(num_classes)}"
            )
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in ("avg", "") or (num_classes and not global_pool):
            raise InputError(
                "global_pool: expected 'avg', or '' without a classifier, found "
                f"{brief(global_pool)}"
            )
        self.num_classes, self.global_pool = num_classes, global_pool
        weight = next(self.parameters())
        classifier: Any = nn.Identity()
        if num_classes:
            classifier = RuleLinear(
                self.num_features, num_classes, rule=RULES.build(self.genotype.backbone_rule)
            )
        self.classifier = classifier.to(device=weight.device, dtype=weight.dtype)
        for _, carrier in rule_carriers(self):
            if isinstance(carrier, DirectCarrier):
                carrier.output_error = None
        self.output_error = connect_output(self, num_classes or self.num_features)
        self.watched = None if self.output_error is None else Watched(self.output_error)
        for name, carrier in rule_carriers(self):
            if carrier.rule.direct or carrier is self.classifier:
                draw_first(carrier, self.seed, name)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether a training pass keeps the cells' outputs alone, and computes the rest a second
        time for the backward pass. Running statistics of batch norms then see each batch twice, as
        in every model of timm.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of names for groups of parameters from the stem to the classifier: a group for
        each cell, or with `coarse` for the cells of each size.
        """
        if not coarse:
            return {"stem": r"^stem", "blocks": r"^(?:cells|inputs)\.(\d+)"}
        ends = [
            _layer(info["module"]) + 1
            for info in self.feature_info
            if info["module"].startswith("cells.")
        ]
        groups = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        pattern = r"^(?:cells|inputs)\.(?:{})\."
        return {
            "stem": r"^stem",
            "blocks": [
                (pattern.format("|".join(map(str, layers))), (size,))
                for size, layers in enumerate(groups)
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """None by name: timm itself leaves out biases and batch norms, and learned feedback has to
        decay as its weight does.
        """
        return set()


def _run_layer(inputs: nn.Module, cell: nn.Module, older: Tensor, newer: Tensor) -> Tensor:
    """Run one cell on the outputs of the two before it, as a function that can be run again in the
    backward pass.
    """
    output: Tensor = cell(inputs(older, newer))
    return output


def _layer(module: str) -> int:
    return int(module.removeprefix("cells."))


FORMS: dict[str, dict[str, Any]] = {
    "cifar": {"channels": 36, "layers": 20},
    "imagenet": {"channels": 48, "layers": 14},
}
"""Stem -> the network's form behind it (Liu 2019, arXiv 1806.09055)."""

DEFAULT_GENOTYPE = "bionas_darts"


def _cfg(
    num_classes: int,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    first: str,
    **more: Any,
) -> Any:
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (3, side, side),
        "interpolation": "bilinear",
        "mean": tuple(mean),
        "std": tuple(std),
        "first_conv": first,
        "classifier": "classifier",
        **more,
    }


CONFIGURATIONS = {
    "cifar": _cfg(10, 32, CIFAR_MEAN, CIFAR_STD, "stem.0", pool_size=(8, 8), crop_pct=1.0),
    "imagenet": _cfg(
        1000, 224, IMAGENET_MEAN, IMAGENET_STD, "stem.older.0", pool_size=(7, 7), crop_pct=0.875
    ),
}
NAMED = {f"{genotype}_{stem}": (genotype, stem) for genotype in shipped_names() for stem in FORMS}
"""Name of a model -> the shipped genotype and the stem that it stands for."""

default_cfgs = generate_default_cfgs(
    {f"darts_bio_{stem}": configuration for stem, configuration in CONFIGURATIONS.items()}
    | {name: CONFIGURATIONS[stem] for name, (_, stem) in NAMED.items()}
)


def _fitting_feedback(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights to be loaded, with the model's own feedback where theirs has another shape: for other
    classes or channels of the image.
    """
    own = model.state_dict()
    return {
        name: own[name]
        if PREFIX in name and name in own and own[name].shape != value.shape
        else value
        for name, value in state.items()
    }


def _create(variant: str, stem: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    # By default all features there are, since shallow networks have fewer than timm's default asks
    # for. Only timm's getter takes None for them.
    getter = options.get("feature_cls", "getter") == "getter"
    return build_model_with_cfg(
        TimmNetwork,
        variant,
        pretrained,
        feature_cfg={"out_indices": None if getter else (0, 1, 2, 3), "feature_cls": "getter"},
        pretrained_filter_fn=_fitting_feedback,
        **{"genotype": DEFAULT_GENOTYPE, **FORMS[stem], **options, "stem": stem},
    )


@register_model
def darts_bio_cifar(pretrained: bool = False, **options: Any) -> nn.Module:
    """A genotype's network with CIFAR's stem, of 36 channels and 20 layers (Liu 2019, arXiv
    1806.09055).
    """
    return _create("darts_bio_cifar", "cifar", pretrained, options)


@register_model
def darts_bio_imagenet(pretrained: bool = False, **options: Any) -> nn.Module:
    """A genotype's network with ImageNet's stem, of 48 channels and 14 layers (Liu 2019, arXiv
    1806.09055).
    """
    return _create("darts_bio_imagenet", "imagenet", pretrained, options)


def _named(name: str, genotype: str, stem: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if "genotype" in options:
            raise InputError(
                f"genotype: {name} is the network of {genotype}; for another use darts_bio_{stem}"
            )
        return _create(name, stem, pretrained, {**options, "genotype": genotype})

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""`darts_bio_{stem}` of the shipped genotype {genotype}."""
    return register_model(create)


# timm names a model by its function, and expects the function in the module that registers it.
globals().update({name: _named(name, *of) for name, of in NAMED.items()})
