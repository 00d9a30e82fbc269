"""Global learners: methods that are no property of a layer, and take the place of loss.backward().

>>> import torch
>>> from darts_bio.learners import LEARNERS, learner
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
>>> teacher = learner(model, "pc(steps=50, rate=0.05)")
>>> loss, logits = teacher.backward(torch.ones(1, 4), torch.tensor([0]))
>>> model[0].weight.grad.shape
torch.Size([3, 4])
"""

from darts_bio.learners import dual_propagation as _dual  # noqa: F401  (these register methods)
from darts_bio.learners import pepita as _pepita  # noqa: F401
from darts_bio.learners import predictive_coding as _predictive_coding  # noqa: F401
from darts_bio.learners import random_targets as _random_targets  # noqa: F401
from darts_bio.learners import target_propagation as _target_propagation  # noqa: F401
from darts_bio.learners.base import LEARNERS, Learner, LearningMethod, Objective, Outcome, learner
from darts_bio.learners.chain import Block, Chain, Evaluation, cut

__all__ = [
    "LEARNERS",
    "Block",
    "Chain",
    "Evaluation",
    "Learner",
    "LearningMethod",
    "Objective",
    "Outcome",
    "cut",
    "learner",
]
