"""The network of a genotype as timm expects a model to be, public as `darts_bio.models.TimmNetwork`.

timm has no base class; its conventions are methods and attributes that its scripts and feature
extractors ask for: features, heads, groups of parameters, checkpointing.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from darts_bio.errors import InputError, brief, check_whole, first_line, unknown_name
from darts_bio.interop.tracing import RenewsFeedback, Watched
from darts_bio.networks import Network
from darts_bio.rules import RULES, RuleLinear, connect_output, draw_feedback, rule_carriers
from darts_bio.rules.carriers import DirectCarrier, draw_first
from darts_bio.spaces import SPACES, Genotype, from_json, load_genotype


def as_genotype(source: Any) -> Genotype:
    """Return the genotype that a source stands for.

    The source is a genotype, the content of a genotype file (text or decoded), or what
    `load_genotype` takes. Raises InputError if it is none of them, or not valid.

    >>> as_genotype("darts_v2") == as_genotype(load_genotype("darts_v2").to_json())
    True
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
            f"{brief(source)}; with timm's scripts: --model-kwargs genotype=darts_v2"
        )
    if str(source).lstrip().startswith("{"):
        return from_json(str(source), "genotype")
    return load_genotype(source)


def as_placement(device: Any, dtype: Any) -> dict[str, Any]:
    """Return the keywords of `Module.to` for a device and a dtype; None leaves either as it is.

    Raises InputError if PyTorch has no such device, or the dtype is not a floating-point type.
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
    """The discrete network of a genotype with the methods and attributes of a timm model.

    It maps images (N, in_chans, H, W) to logits (N, num_classes), or with `num_classes=0` to pooled
    features (N, num_features). It has no auxiliary head, since timm's loops expect one output. Its
    state_dict has the keys of that of `build_network`.

    timm's loops do not know that some rules renew their feedback (brsf, weight_mirror). Here it is
    renewed at the start of each training pass with gradients but the first, as
    `draw_feedback(model, seed, update)` does after each update; where gradients are accumulated
    over several passes, it is renewed at each of them. A run that timm resumes counts its passes
    from 0 again. Once `attach` was called, feedback is renewed after each update, and not here.

    Args:
        genotype: A genotype, the content of a genotype file, or what `load_genotype` takes.
        rule: A learning rule for all operations and the backbone, in place of those of the
            genotype.
        channels: The channels of a node in the first cell.
        layers: The number of cells.
        num_classes: The number of classes; 0 leaves out the classifier.
        in_chans: The channels of an image.
        stem: The layers before the cells: cifar, imagenet or a registered name.
        drop_rate: The dropout probability before the classifier.
        drop_path_rate: The probability of dropping an edge.
        global_pool: "avg", or "" without a classifier for features that are not pooled.
        seed: The seed of the feedback.
        device: Where weights and feedback lie. They are drawn on the CPU in PyTorch's default
            type, so they are the same, up to rounding, on every device.
        dtype: The floating-point type of weights and feedback.
        **unknown: Refused.

    Raises:
        InputError: For an option that is unknown or out of bounds.

    Example:
        >>> model = TimmNetwork("bionas_darts", channels=4, layers=3, num_classes=7)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 7])
        >>> [info["reduction"] for info in model.feature_info]
        [1, 1, 2, 4]
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
        channels = check_whole("channels", channels)
        layers = check_whole("layers", layers)
        num_classes = check_whole("num_classes", num_classes, 0)  # 0 is no classifier
        in_chans = check_whole("in_chans", in_chans)
        seed = check_whole("seed", seed, 0)
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
            num_classes=num_classes or 1,  # for 0 the classifier is taken off below
            in_channels=in_chans,
            stem=stem,
        )
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.widths[-1]
        self.drop_rate, self.seed, self.grad_checkpointing = drop_rate, seed, False
        self.global_pool = "avg"
        self.passes = 0
        self.renews_itself = True
        """Whether it renews its feedback; `attach` takes that over."""
        self.set_drop_path(drop_path_rate)
        self.feature_info = self._features(SPACES.build(self.genotype.space).reductions(layers))
        draw_feedback(self, seed)
        self.watched = None if self.output_error is None else Watched(self.output_error)
        if num_classes == 0 or global_pool != "avg":
            self.reset_classifier(num_classes, global_pool)
        renews = any(carrier.rule.renews for _, carrier in rule_carriers(self))
        self.renewal = RenewsFeedback(self.renew_feedback) if renews else None
        self.to(**placement)

    def _features(self, reductions: Sequence[int]) -> list[dict[str, Any]]:
        """Describe the feature maps that timm offers: the stem's output and the last of each size.

        `reductions` are the layers that halve the size. An entry holds the name of a module, the
        channels of its output, and the image's side divided by that of the output.
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
        last = {reduction: module for module, _, reduction in outputs}  # later ones replace earlier
        return [
            {"module": module, "num_chs": width, "reduction": reduction}
            for module, width, reduction in outputs
            if module in (outputs[0][0], last[reduction])
        ]

    def outputs(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Run the network on images x (N, in_chans, H, W) up to its last cell.

        Yields the name and the output (N, C, h, w) of the stem and of each cell in turn. The stem
        of ImageNet has two outputs of different sizes, which the first two cells take.
        """
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
                output = checkpoint(_run_layer, inputs, cell, older, newer, use_reentrant=False)
            else:
                output = cell(inputs(older, newer))
            older, newer = newer, output
            yield f"cells.{layer}", newer

    def renew_feedback(self) -> None:
        """Begin a training pass: draw new feedback before every pass but the first.

        What is drawn follows from the seed and the number of passes so far.
        """
        if self.passes and self.renews_itself:
            # Feedback is drawn in its own type, whatever type the pass computes in.
            with torch.autocast(next(self.parameters()).device.type, enabled=False):
                draw_feedback(self, self.seed, self.passes)
        self.passes += 1

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the features to be pooled, (N, num_features, h, w)."""
        for _, output in self.outputs(x):
            features = output
        return self.head(features)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features (N, num_features, h, w) to logits (N, num_classes).

        With `pre_logits` they are only pooled, to (N, num_features).
        """
        x = x.mean((2, 3)) if self.global_pool else x  # (N, C, h, w) -> (N, C)
        x = F.dropout(x, self.drop_rate, self.training)
        if pre_logits:
            return x
        x = self.classifier(x)
        # dfa needs the error of one output vector per image; maps that are not pooled are none.
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
        """Map images to feature maps of several sizes.

        Args:
            x: Images (N, in_chans, H, W).
            indices: Places in `feature_info`, below 0 from the end; a number n for the last n of
                them; None for all.
            norm: Whether the last feature map passes through the layers before the pooling.
            stop_early: Whether to run nothing after the last feature map.
            output_fmt: "NCHW", the only format.
            intermediates_only: Whether to return the feature maps alone.

        Returns:
            The features to be pooled, (N, num_features, h, w), and the feature maps (N, C, h, w) in
            the order of `indices`.

        Raises:
            InputError: For an index out of range, or another format.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt: expected NCHW, found {output_fmt!r}")
        names = [self.feature_info[i]["module"] for i in self._feature_places(indices)]
        last = self.feature_info[-1]["module"]
        feature_maps = dict.fromkeys(names, x)
        remaining = set(names)
        for name, features in self.outputs(x):
            if name in remaining:
                remaining.remove(name)
                feature_maps[name] = self.head(features) if norm and name == last else features
            if stop_early and not remaining:
                break
        intermediates = [feature_maps[name] for name in names]
        return intermediates if intermediates_only else (self.head(features), intermediates)

    def _feature_places(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return places in `feature_info`: all for None, the last n for a number, or those given.

        Places below 0 count from the end. Raises InputError for a place out of range.
        """
        count = len(self.feature_info)
        if indices is None or isinstance(indices, int):
            last = count if indices is None else indices
            indices = range(-last, 0)
        places = [i + count if i < 0 else i for i in indices]
        if not places or not all(0 <= i < count for i in places):
            raise InputError(
                f"indices: expected a number of features up to {count}, or places from {-count} to "
                f"{count - 1}, found {brief(indices)}"
            )
        return places

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the cells after the last feature map of `indices`, and return their places.

        The places are those in `feature_info`. `prune_norm` also removes the layers between the
        last cell and the pooling, `prune_head` the classifier. `indices` are as in
        `forward_intermediates`.
        """
        places = self._feature_places(indices)
        last = self.feature_info[max(places)]["module"]
        kept = _layer(last) + 1 if last.startswith("cells.") else 0
        # The layers before the pooling fit the output of the last cell only.
        if prune_norm or kept < len(self.cells):
            self.head = nn.Identity()
        self.inputs, self.cells, self.plan = self.inputs[:kept], self.cells[:kept], self.plan[:kept]
        if prune_head:
            self.reset_classifier(0, "")
        return places

    def get_classifier(self) -> nn.Module:
        """Return the classifier, an identity if there is none."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one under the backbone's rule, with new feedback.

        With 0 classes there is none. Under dfa all feedback starts from the output, so that of all
        layers is drawn anew.

        Raises InputError for a `num_classes` or `global_pool` that is not possible.
        """
        num_classes = check_whole("num_classes", num_classes, 0)
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
        # Layers under dfa let go of the error of the old output and are connected to the new one.
        for _, carrier in rule_carriers(self):
            if isinstance(carrier, DirectCarrier):
                carrier.output_error = None
        self.output_error = connect_output(self, num_classes or self.num_features)
        self.watched = None if self.output_error is None else Watched(self.output_error)
        for name, carrier in rule_carriers(self):
            if carrier.rule.direct or carrier is self.classifier:
                draw_first(carrier, self.seed, name)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether a training pass stores only the outputs of cells.

        What lies within the cells is then computed a second time for the backward pass. Running
        statistics of batch norms see each batch twice, as in every model of timm.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of names that group the parameters from the stem to the classifier.

        There is a group for each cell, or with `coarse` for the cells of each size. timm uses them
        for learning rates that differ from layer to layer.
        """
        if not coarse:
            return {"stem": r"^stem", "blocks": r"^(?:cells|inputs)\.(\d+)"}
        # A feature map is the output of the last cell of its size.
        ends = [
            _layer(info["module"]) + 1
            for info in self.feature_info
            if info["module"].startswith("cells.")
        ]
        blocks = []
        for size, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            layers = "|".join(map(str, range(start, end)))
            blocks.append((rf"^(?:cells|inputs)\.(?:{layers})\.", (size,)))
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: none.

        timm itself leaves out biases and batch norms, and learned feedback has to decay as its
        weight does.
        """
        return set()


def _run_layer(inputs: nn.Module, cell: nn.Module, older: Tensor, newer: Tensor) -> Tensor:
    """Run one cell on the outputs of the two before it; checkpointing runs it a second time."""
    output: Tensor = cell(inputs(older, newer))
    return output


def _layer(module: str) -> int:
    """Return the number of a cell by the name of its module: "cells.3" -> 3."""
    return int(module.removeprefix("cells."))
