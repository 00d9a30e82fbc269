"""Networks of genotypes under names that timm knows, public as `darts_bio.models`.

Importing this module registers them, so timm's own scripts train, validate and export them: `python
-m darts_bio timm train.py ...`. `timm_network.TimmNetwork` is what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from darts_bio.data.transforms import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from darts_bio.errors import InputError
from darts_bio.interop.timm_network import TimmNetwork
from darts_bio.rules.carriers import PREFIX
from darts_bio.spaces import shipped_names

FORMS: dict[str, dict[str, Any]] = {
    "cifar": {"channels": 36, "layers": 20},
    "imagenet": {"channels": 48, "layers": 14},
}
"""Stem -> channels and layers of the network after it (Liu 2019, arXiv 1806.09055)."""

DEFAULT_GENOTYPE = "bionas_darts"
"""The genotype of `darts_bio_cifar` and `darts_bio_imagenet` where none is given."""


def _cfg(
    num_classes: int,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    first: str,
    **more: Any,
) -> Any:
    """Return timm's configuration of a model for square images of a side in pixels.

    `first` is the name of the first convolution, whose weights timm adapts to other `in_chans`.
    """
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
"""Stem -> timm's configuration of its models."""

NAMED = {f"{genotype}_{stem}": (genotype, stem) for genotype in shipped_names() for stem in FORMS}
"""Name of a model -> its shipped genotype and its stem."""

default_cfgs = generate_default_cfgs(
    {f"darts_bio_{stem}": configuration for stem, configuration in CONFIGURATIONS.items()}
    | {name: CONFIGURATIONS[stem] for name, (_, stem) in NAMED.items()}
)


def _fitting_feedback(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights to load, with feedback of another shape replaced by the model's own.

    Feedback has another shape where the model has other classes or channels of the image than the
    network that `state` was saved from.
    """
    model_state = model.state_dict()
    fitting = {}
    for name, value in state.items():
        is_feedback = PREFIX in name and name in model_state
        if is_feedback and model_state[name].shape != value.shape:
            value = model_state[name]
        fitting[name] = value
    return fitting


def _create(variant: str, stem: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Build a model as timm does, with the options of `timm.create_model`."""
    # By default all features that there are, since shallow networks have fewer than timm's default
    # asks for. Only timm's getter takes None for them.
    getter = options.get("feature_cls", "getter") == "getter"
    model_options = {"genotype": DEFAULT_GENOTYPE, **FORMS[stem], **options, "stem": stem}
    return build_model_with_cfg(
        TimmNetwork,
        variant,
        pretrained,
        feature_cfg={"out_indices": None if getter else (0, 1, 2, 3), "feature_cls": "getter"},
        pretrained_filter_fn=_fitting_feedback,
        **model_options,
    )


@register_model
def darts_bio_cifar(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a genotype's network with CIFAR's stem, by default of 36 channels and 20 layers.

    The default size is that of DARTS (Liu 2019, arXiv 1806.09055). `options` are those of
    `TimmNetwork` and of `timm.create_model`; `pretrained` needs weights that they name.

    >>> import timm, torch
    >>> model = timm.create_model("darts_bio_cifar", genotype="darts_v2", channels=4, layers=3)
    >>> model(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    return _create("darts_bio_cifar", "cifar", pretrained, options)


@register_model
def darts_bio_imagenet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build a genotype's network with ImageNet's stem, by default of 48 channels and 14 layers.

    The default size is that of DARTS (Liu 2019, arXiv 1806.09055). `options` are those of
    `TimmNetwork` and of `timm.create_model`; `pretrained` needs weights that they name.

    >>> import timm, torch
    >>> model = timm.create_model("darts_bio_imagenet", genotype="darts_v2", channels=4, layers=3)
    >>> model(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1000])
    """
    return _create("darts_bio_imagenet", "imagenet", pretrained, options)


def _named(name: str, genotype: str, stem: str) -> Callable[..., nn.Module]:
    """Register the model `name` of a shipped genotype with timm, and return its function."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if "genotype" in options:
            raise InputError(
                f"genotype: {name} is the network of {genotype}; for another use darts_bio_{stem}"
            )
        return _create(name, stem, pretrained, {**options, "genotype": genotype})

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""Build `darts_bio_{stem}` of the shipped genotype {genotype}."""
    return register_model(create)


# timm names a model by its function, and expects the function in the module that registers it.
globals().update({name: _named(name, genotype, stem) for name, (genotype, stem) in NAMED.items()})
