"""Our networks as models of timm: importing this module registers `darts_bio_cifar` and `darts_bio_imagenet`.

>>> import timm, darts_bio.models
>>> model = timm.create_model("darts_bio_cifar", genotype="darts_v2", rule="usf", channels=4, layers=3, num_classes=7)
>>> model.num_classes, model.feature_info[-1]["reduction"]
(7, 4)
"""

from darts_bio.interop.timm_models import TimmNetwork, darts_bio_cifar, darts_bio_imagenet

__all__ = ["TimmNetwork", "darts_bio_cifar", "darts_bio_imagenet"]
