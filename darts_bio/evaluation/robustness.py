"""How many images networks still get right when these are attacked or corrupted.

A `Plan` says what is measured. `jobs` makes a list of it, and a `Measurement` does them batch by
batch, each a function of (networks, images, seed), so that it can be stopped anywhere and gone on
with. An image counts as right under an attack if it was right before and still is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from darts_bio.config import Gradients
from darts_bio.data.batches import Split
from darts_bio.errors import InputError, first_line
from darts_bio.evaluation.attacks import ATTACKS, Attack, perturb
from darts_bio.evaluation.corruptions import CORRUPTIONS, corrupt
from darts_bio.evaluation.gradient_check import FIGURES, gradient_figures
from darts_bio.modes import in_mode
from darts_bio.runtime import derive_seed

SEVERITIES = range(1, 6)
"""Severities at which each corruption is measured."""

LARGE_EPS = 128.0
"""In 1/255: half the range, by which every image can be turned into the same gray one."""

LARGE_ATTACK = "pgd"
"""The attack that is tried at the large eps."""

ROUNDING = 0.01
"""Share of images whose prediction may hang on the last bits."""

ZERO_IMAGES, LARGE_IMAGES, FIGURE_IMAGES = 8, 64, 64
"""Images that the checks of eps = 0, of a large eps, and of gradients are made on: the first that
are right."""


@dataclass(frozen=True)
class Plan:
    """What is measured, of each network.

    >>> plan = Plan(attacks=("fgsm", "square"), eps=(2.0, 8.0), corruptions=("contrast",))
    >>> plan.job("net", "square", 8.0, "true").key
    'attack|net|square|8|none|0'

    Attributes:
        attacks: Specs of attacks.
        eps: Bounds in 1/255 of a pixel's range.
        gradients: By which gradients attacks climb that follow one.
        draws: Draws of random feedback that the rule's gradient is the mean of.
        transfer: The spec of the attack whose images are tried on the other networks; empty for
            none.
        corruptions: Names of corruptions, each at all severities.
    """

    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    gradients: tuple[Gradients, ...] = ("true",)
    draws: int = 1
    transfer: str = ""
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for unknown attacks, options and corruptions, and for steps too short."""
        for spec in (*self.attacks, *filter(None, [self.transfer])):
            attack = ATTACKS.build(spec)
            for eps in self.eps:
                attack.check(eps / 255)
        for name in self.corruptions:
            CORRUPTIONS.get(name)

    def attack(self, spec: str) -> Attack:
        """Build an attack from its spec."""
        built: Attack = ATTACKS.build(spec)
        return built

    def job(self, network: str, spec: str, eps: float, gradients: Gradients, most: int = 0) -> Job:
        """Return the job of an attack on a network.

        An attack that follows no gradient, or is not bounded by eps, has the same job whatever the
        gradients or eps.
        """
        attack = self.attack(spec)
        level = eps if attack.bounded else 0.0
        return Job("attack", network, spec, level, gradients if attack.white_box else "none", most)


@dataclass(frozen=True)
class Job:
    """One measurement of one network, which gives a row for each image.

    >>> Job("corruption", "net", "contrast", level=3.0).key
    'corruption|net|contrast|3|none|0'

    Attributes:
        kind: What is measured, and what a row is:
            attack: whether the image is still right, when attacked;
            transfer: the same for each network, of images that the attack made on this one;
            corruption: whether it is right, when corrupted;
            gradients: `gradient_check.FIGURES`.
        network: The name of the network.
        what: The attack's spec, or the corruption's name.
        level: eps in 1/255, or the severity.
        gradients: By which gradient the attack climbs.
        most: How many images it is limited to, the first that are right; 0 for all.
    """

    kind: Literal["attack", "transfer", "corruption", "gradients"]
    network: str
    what: str = ""
    level: float = 0.0
    gradients: Gradients | Literal["none"] = "none"
    most: int = 0

    @property
    def key(self) -> str:
        """A text that identifies the job in files."""
        level = f"{self.level:g}"
        pieces = (self.kind, self.network, self.what, level, self.gradients, self.most)
        return "|".join(map(str, pieces))


def jobs(plan: Plan, networks: Sequence[str]) -> list[Job]:
    """Return the jobs of a plan, one network after the other, what is cheap first.

    Beside what the plan asks for there are the checks of `doubts`: gradients, each bounded attack
    at eps 0, and `LARGE_ATTACK` at a large eps, on few images.

    >>> for job in jobs(Plan(attacks=("fgsm",), eps=(8.0,)), ["net"]):
    ...     print(job.kind, job.what, job.level, job.most)
    gradients  0.0 64
    attack fgsm 0.0 8
    attack fgsm 8.0 0
    attack pgd 128.0 64
    """
    planned = []
    for network in networks:
        planned.append(Job("gradients", network, most=FIGURE_IMAGES))
        for name in plan.corruptions:
            planned += [Job("corruption", network, name, severity) for severity in SEVERITIES]
        for spec in plan.attacks:
            if plan.attack(spec).bounded:
                planned.append(plan.job(network, spec, 0.0, plan.gradients[0], ZERO_IMAGES))
            # Each once: without gradients, or without a bound, several are the same job.
            planned += dict.fromkeys(
                plan.job(network, spec, eps, side) for side in plan.gradients for eps in plan.eps
            )
        planned += [
            plan.job(network, LARGE_ATTACK, LARGE_EPS, side, LARGE_IMAGES)
            for side in plan.gradients
        ]
        if plan.transfer and len(networks) > 1:
            planned += [Job("transfer", network, plan.transfer, eps, "true") for eps in plan.eps]
    return planned


class Measurement:
    """A plan carried out on networks, all on the same images; each network is left as it was.

    >>> from darts_bio.data.datasets import load_data
    >>> images = load_data("digits").test[:20]
    >>> networks = {"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    >>> plan = Plan(attacks=("fgsm",), eps=(8.0,), corruptions=("contrast",))
    >>> measured = Measurement(networks, images, plan)
    >>> for job in measured.run():
    ...     pass
    >>> measured.done == measured.steps
    True
    >>> attacked = measured.plan.job("net", "fgsm", 8.0, "true")
    >>> measured.accuracy(attacked) <= measured.clean("net")
    True

    Attributes:
        networks: They map pixels (N, C, H, W) in [0, 1] to logits; by name.
        images: Images (N, C, H, W) uint8 and labels (N,).
        plan: What is measured.
        seed: The seed of all draws.
        jobs: The jobs of the plan, in the order in which they are done.
        right: For each network which images (N,) it gets right as they are.
        found: The rows that jobs gave so far, by the key of the job.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        images: Split,
        plan: Plan,
        *,
        batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        """Predict the images as they are, and list the jobs.

        Raises InputError if an attack needs more classes than a network has.
        """
        self.networks, self.images, self.plan, self.seed = dict(networks), images, plan, seed
        self._batch_size = batch_size
        self.right = {name: self._predicted_right(model) for name, model in self.networks.items()}
        self.jobs = jobs(plan, list(self.networks))
        self.found: dict[str, Tensor] = {}

    def _predicted_right(self, model: nn.Module) -> Tensor:
        """Return which images (N,) a network gets right; raises InputError if it has few classes."""
        batches = torch.arange(len(self.images)).split(self._batch_size)
        with in_mode(model, training=False), torch.no_grad():
            logits = torch.cat([model(self.pixels(index)) for index in batches])
        for spec in (*self.plan.attacks, *filter(None, [self.plan.transfer])):
            self.plan.attack(spec).refuse_few(logits.shape[1])
        return (logits.argmax(1) == self.images.labels).cpu()

    def pixels(self, index: Tensor) -> Tensor:
        """Return the images (n, C, H, W) of these numbers (n,), in [0, 1]."""
        return self.images.images[index].float() / 255

    def subject(self, job: Job) -> Tensor:
        """Return the numbers (n,) of the images that a job is about.

        Attacks and gradients are about images that the network gets right; what is wrong needs no
        attack.
        """
        if job.kind in ("attack", "gradients"):
            index = self.right[job.network].nonzero().flatten()
            return index[: job.most] if job.most else index
        return torch.arange(len(self.images))

    @property
    def steps(self) -> int:
        """Batches of all jobs."""
        return sum(math.ceil(len(self.subject(job)) / self._batch_size) for job in self.jobs)

    @property
    def done(self) -> int:
        """Batches done so far."""
        return sum(math.ceil(len(rows) / self._batch_size) for rows in self.found.values())

    def run(self) -> Iterator[Job]:
        """Do what is left to do, and yield after each batch the job it belongs to.

        Raises InputError if a batch does not fit into the GPU's memory.
        """
        for job in self.jobs:
            index = self.subject(job)
            rows_done = len(self.found.get(job.key, ()))
            for start in range(rows_done, len(index), self._batch_size):
                batch = index[start : start + self._batch_size]
                # Neither network nor gradients are in the seed, so that these are compared under
                # the same draws.
                seed = derive_seed(
                    "robustness", self.seed, job.kind, job.what, f"{job.level:g}", start
                )
                try:
                    rows = self._measure(job, batch, seed).cpu()
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"the GPU's memory does not suffice for {job.what or job.kind} "
                        f"({first_line(error)}); try a smaller --batch-size"
                    ) from None
                self.found[job.key] = (
                    torch.cat([self.found[job.key], rows]) if job.key in self.found else rows
                )
                yield job

    def _measure(self, job: Job, index: Tensor, seed: int) -> Tensor:
        """Return a job's rows for the images of these numbers (n,)."""
        model, labels = self.networks[job.network], self.images.labels[index]
        pixels = self.pixels(index)
        if job.kind == "gradients":
            return gradient_figures(model, pixels, labels)
        if job.kind == "corruption":
            # Draws go by the image's number, so they are the same for every network. A corruption
            # is about all images: the numbers of a batch follow each other.
            changed = corrupt(job.what, pixels, int(job.level), self.seed, first=int(index[0]))
            return _right(model, changed, labels)
        changed = self.perturbed(job, index, seed)
        if job.kind == "transfer":
            return torch.stack(
                [_right(other, changed, labels) for other in self.networks.values()], 1
            )
        return _right(model, changed, labels)

    def perturbed(self, job: Job, index: Tensor, seed: int) -> Tensor:
        """Return the images (n, C, H, W) of these numbers (n,) as a job's attack changes them."""
        return perturb(
            self.plan.attack(job.what),
            self.networks[job.network],
            self.pixels(index),
            self.images.labels[index],
            job.level / 255,
            gradients="rule" if job.gradients == "rule" else "true",
            draws=self.plan.draws,
            seed=seed,
        )

    def survived(self, job: Job) -> Tensor | None:
        """Return the mask (N,) of images still right under an attack; None while it is unfinished.

        Images that were wrong before count as wrong. Of an attack that is limited to some images
        the mask (n,) is of those alone.
        """
        rows, index = self.found.get(job.key), self.subject(job)
        if len(index) and (rows is None or len(rows) < len(index)):
            return None
        rows = torch.zeros(0, dtype=torch.bool) if rows is None else rows
        if job.most:
            return rows
        still_right = torch.zeros(len(self.images), dtype=torch.bool)
        still_right[index] = rows
        return still_right

    def clean(self, network: str) -> float:
        """Return the share of images in [0, 1] that a network gets right as they are."""
        return self.right[network].double().mean().item()

    def accuracy(self, *attacks: Job) -> float:
        """Return the share of images in [0, 1] that withstand all these attacks, which are done.

        It is of all images, or of those that the jobs are limited to.
        """
        survived = [rows for rows in map(self.survived, attacks) if rows is not None]
        assert len(survived) == len(attacks)
        return torch.stack(survived).all(0).double().mean().item()

    def transferred(self, made_on: str, eps: float) -> dict[str, Tensor]:
        """Return the masks (N,) of images that networks keep right when attacked through another.

        They are by the name of the network that predicts; the attack was made on `made_on`. Empty
        if that is not done.
        """
        rows = self.found.get(Job("transfer", made_on, self.plan.transfer, eps, "true").key)
        if rows is None or len(rows) < len(self.images):
            return {}
        return {
            name: kept & self.right[name]
            for name, kept in zip(self.networks, rows.unbind(1), strict=True)
        }

    def figures(self, network: str) -> dict[str, float]:
        """Return the mean of each of `gradient_check.FIGURES`, by name; of slope_error the median.

        It is over the images that the job looks at; empty if the network gets no image right.
        """
        job = next(job for job in self.jobs if job.kind == "gradients" and job.network == network)
        columns = self.found[job.key].unbind(1) if job.key in self.found else ()
        return {
            name: (column.median() if name == "slope_error" else column.mean()).item()
            for name, column in zip(FIGURES, columns, strict=False)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what has been measured so far, for a checkpoint."""
        return {"right": self.right, "found": self.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what has been measured before.

        Raises InputError if the networks get other images right than the networks did whose results
        these are, rounding on another machine aside.
        """
        for name, right in self.right.items():
            if (state["right"][name] != right).float().mean() > ROUNDING:
                raise InputError(
                    f"{name}: gets other images right than when the measurement began; the network "
                    "or the data have changed: start anew in another --out"
                )
        self.right = dict(state["right"])
        known = {job.key for job in self.jobs}
        self.found = {key: rows for key, rows in state["found"].items() if key in known}


def _right(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return which images (n,) a network gets right."""
    with in_mode(model, training=False), torch.no_grad():
        return model(pixels).argmax(1) == labels
