"""How many images networks still get right: attacked, changed by an attack on another network,
corrupted.

What is measured is a list of jobs, each a function of (networks, images, seed) that is done batch
by batch, so that a measurement can be stopped anywhere and gone on with. An image counts as right
under an attack if it was right before and still is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from darts_bio.data.batches import Split
from darts_bio.errors import InputError, first_line
from darts_bio.evaluation.attacks import ATTACKS, Attack, Gradients, perturb
from darts_bio.evaluation.corruptions import CORRUPTIONS, corrupt
from darts_bio.evaluation.gradient_check import FIGURES, gradient_figures
from darts_bio.modes import in_mode
from darts_bio.runtime import derive_seed

SEVERITIES = range(1, 6)
LARGE_EPS = 128.0
"""In 1/255: half the range, by which every image can be turned into the same grey one."""
LARGE_ATTACK = "pgd"
ROUNDING = 0.01
"""Share of images whose prediction may hang on the last bits."""
ZERO_IMAGES, LARGE_IMAGES, FIGURE_IMAGES = 8, 64, 64
"""Images that the checks of eps = 0, of a large eps, and of gradients are made on: the first that
are right."""


@dataclass(frozen=True)
class Plan:
    """What is measured. `eps` in 1/255 of a pixel's range; `draws` of random feedback that the
    rule's gradient is the mean of; `transfer` is the attack whose images are tried on the other
    networks, if there is one.
    """

    attacks: tuple[str, ...] = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
    eps: tuple[float, ...] = (8.0,)
    gradients: tuple[Gradients, ...] = ("true",)
    draws: int = 1
    transfer: str = ""
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError for an unknown attack or corruption, an option it does not have, or
        steps too short.
        """
        for spec in (*self.attacks, *filter(None, [self.transfer])):
            attack = ATTACKS.build(spec)
            for eps in self.eps:
                attack.check(eps / 255)
        for name in self.corruptions:
            CORRUPTIONS.get(name)

    def attack(self, spec: str) -> Attack:
        built: Attack = ATTACKS.build(spec)
        return built

    def job(self, network: str, spec: str, eps: float, gradients: Gradients, most: int = 0) -> Job:
        """That of an attack: without gradients if it follows none, at eps 0 if it is not bounded by
        it.
        """
        attack = self.attack(spec)
        level = eps if attack.bounded else 0.0
        return Job("attack", network, spec, level, gradients if attack.white_box else "none", most)


@dataclass(frozen=True)
class Job:
    """One measurement of one network; a row an image.

    - attack: whether it is still right; `what` is the attack's spec
    - transfer: the same for each network, of images that the attack made on this one
    - corruption: whether it is right; `what` is the corruption, `level` the severity
    - gradients: `gradient_check.FIGURES`
    """

    kind: Literal["attack", "transfer", "corruption", "gradients"]
    network: str
    what: str = ""
    level: float = 0.0
    """eps in 1/255, or the severity."""
    gradients: Gradients | Literal["none"] = "none"
    most: int = 0
    """Images, if not all."""

    @property
    def key(self) -> str:
        return "|".join(
            map(
                str,
                (self.kind, self.network, self.what, f"{self.level:g}", self.gradients, self.most),
            )
        )


def jobs(plan: Plan, networks: Sequence[str]) -> list[Job]:
    """All of them, one network after the other, what is cheap first."""
    found = []
    for network in networks:
        found.append(Job("gradients", network, most=FIGURE_IMAGES))
        for name in plan.corruptions:
            found += [Job("corruption", network, name, severity) for severity in SEVERITIES]
        for spec in plan.attacks:
            if plan.attack(spec).bounded:
                found.append(plan.job(network, spec, 0.0, plan.gradients[0], ZERO_IMAGES))
            found += dict.fromkeys(
                plan.job(network, spec, eps, side) for side in plan.gradients for eps in plan.eps
            )
        found += [
            plan.job(network, LARGE_ATTACK, LARGE_EPS, side, LARGE_IMAGES)
            for side in plan.gradients
        ]
        if plan.transfer and len(networks) > 1:
            found += [Job("transfer", network, plan.transfer, eps, "true") for eps in plan.eps]
    return found


class Measurement:
    """Networks, by name, that take pixels in [0, 1], all on the same images; each is left as it
    was.

    `right` is what each gets right of the images (N,) as they are; `found` holds what the jobs
    found so far, by key.
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
        """Raises InputError if an attack asks for more classes than a network has."""
        self.networks, self.images, self.plan, self.seed = dict(networks), images, plan, seed
        self._batch_size = batch_size
        self.right = {name: self._predicted_right(model) for name, model in self.networks.items()}
        self.jobs = jobs(plan, list(self.networks))
        self.found: dict[str, Tensor] = {}

    def _predicted_right(self, model: nn.Module) -> Tensor:
        with in_mode(model, training=False), torch.no_grad():
            logits = torch.cat(
                [
                    model(self.pixels(index))
                    for index in torch.arange(len(self.images)).split(self._batch_size)
                ]
            )
        for spec in (*self.plan.attacks, *filter(None, [self.plan.transfer])):
            self.plan.attack(spec).refuse_few(logits.shape[1])
        return (logits.argmax(1) == self.images.labels).cpu()

    def pixels(self, index: Tensor) -> Tensor:
        """The images (n, C, H, W) of these numbers, in [0, 1]."""
        return self.images.images[index].float() / 255

    def subject(self, job: Job) -> Tensor:
        """The numbers of the images that a job is about."""
        if job.kind in ("attack", "gradients"):
            index = self.right[job.network].nonzero().flatten()
            return index[: job.most] if job.most else index
        return torch.arange(len(self.images))

    @property
    def steps(self) -> int:
        """Batches of all jobs."""
        return sum(-(-len(self.subject(job)) // self._batch_size) for job in self.jobs)

    @property
    def done(self) -> int:
        """Batches done."""
        return sum(-(-len(rows) // self._batch_size) for rows in self.found.values())

    def run(self) -> Iterator[Job]:
        """Does what is left, batch by batch, and after each lends the job it is of."""
        for job in self.jobs:
            index = self.subject(job)
            for start in range(len(self.found.get(job.key, ())), len(index), self._batch_size):
                part = index[start : start + self._batch_size]
                # Not of the network or the gradients, so that these are compared under the same
                # draws.
                seed = derive_seed(
                    "robustness", self.seed, job.kind, job.what, f"{job.level:g}", start
                )
                try:
                    rows = self._measure(job, part, seed).cpu()
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"the GPU's memory does not suffice for {job.what or job.kind} "
                        f"({first_line(error)}); try a "
                        "smaller --batch-size"
                    ) from None
                self.found[job.key] = (
                    torch.cat([self.found[job.key], rows]) if job.key in self.found else rows
                )
                yield job

    def _measure(self, job: Job, index: Tensor, seed: int) -> Tensor:
        model, pixels, labels = (
            self.networks[job.network],
            self.pixels(index),
            self.images.labels[index],
        )
        if job.kind == "gradients":
            return gradient_figures(model, pixels, labels)
        if job.kind == "corruption":
            # The same draws for every network; they go by the image's number.
            changed = corrupt(job.what, pixels, int(job.level), self.seed, first=int(index[0]))
            return _right(model, changed, labels)
        changed = self.perturbed(job, index, seed)
        if job.kind == "transfer":
            return torch.stack(
                [_right(other, changed, labels) for other in self.networks.values()], 1
            )
        return _right(model, changed, labels)

    def perturbed(self, job: Job, index: Tensor, seed: int) -> Tensor:
        """The images (n, C, H, W) of these numbers as a job's attack changes them."""
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
        """Of an attack that is done: which of all images (N,) are still right; None before. Of one
        on a part of the images, those of that part.
        """
        rows, index = self.found.get(job.key), self.subject(job)
        if len(index) and (rows is None or len(rows) < len(index)):
            return None
        rows = torch.zeros(0, dtype=torch.bool) if rows is None else rows
        if job.most:
            return rows
        whole = torch.zeros(len(self.images), dtype=torch.bool)
        whole[index] = rows
        return whole

    def clean(self, network: str) -> float:
        """The share of images that it gets right as they are, in [0, 1]."""
        return self.right[network].double().mean().item()

    def accuracy(self, *attacks: Job) -> float:
        """The share of images, or of the part the jobs are on, that withstand all these attacks,
        which are done.
        """
        survived = [rows for rows in map(self.survived, attacks) if rows is not None]
        assert len(survived) == len(attacks)
        return torch.stack(survived).all(0).double().mean().item()

    def transferred(self, made_on: str, eps: float) -> dict[str, Tensor]:
        """What each network, by name, keeps right of the images (N,) that the attack made on one of
        them; empty if that is not done.
        """
        rows = self.found.get(Job("transfer", made_on, self.plan.transfer, eps, "true").key)
        if rows is None or len(rows) < len(self.images):
            return {}
        return {
            name: kept & self.right[name]
            for name, kept in zip(self.networks, rows.unbind(1), strict=True)
        }

    def figures(self, network: str) -> dict[str, float]:
        """Of `gradient_check.FIGURES` the mean over the network's images, of slope_error the
        median; empty if it gets no image right.
        """
        job = next(job for job in self.jobs if job.kind == "gradients" and job.network == network)
        columns = self.found[job.key].unbind(1) if job.key in self.found else ()
        return {
            name: (column.median() if name == "slope_error" else column.mean()).item()
            for name, column in zip(FIGURES, columns, strict=False)
        }

    def state_dict(self) -> dict[str, Any]:
        return {"right": self.right, "found": self.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises InputError if the networks get other images right than those whose results these
        are, rounding on another machine aside.
        """
        for name, right in self.right.items():
            if (state["right"][name] != right).float().mean() > ROUNDING:
                raise InputError(
                    f"{name}: gets other images right than when the measurement began; the network "
                    "or the data have "
                    "changed: start anew in another --out"
                )
        self.right = dict(state["right"])
        known = {job.key for job in self.jobs}
        self.found = {key: rows for key, rows in state["found"].items() if key in known}


def _right(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    with in_mode(model, training=False), torch.no_grad():
        return model(pixels).argmax(1) == labels
