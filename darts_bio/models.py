"""The networks of this package as timm models: importing this module registers them with timm.

`darts_bio_cifar` and `darts_bio_imagenet` take any genotype. Each shipped genotype is also a model
of its own with either stem, such as `darts_v2_cifar`.

>>> import timm, darts_bio.models
>>> model = timm.create_model("darts_bio_cifar", genotype="darts_v2", rule="usf", channels=4, layers=3, num_classes=7)
>>> model.num_classes, model.feature_info[-1]["reduction"]
(7, 4)
>>> timm.list_models("darts_v2*")
['darts_v2_cifar', 'darts_v2_imagenet']
"""

from darts_bio.interop.timm_models import darts_bio_cifar, darts_bio_imagenet
from darts_bio.interop.timm_network import TimmNetwork

__all__ = ["TimmNetwork", "darts_bio_cifar", "darts_bio_imagenet"]
