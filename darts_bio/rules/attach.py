"""What a training loop owes to learning rules, done by the optimizer's own hooks: `attach`."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from darts_bio.errors import InputError, brief
from darts_bio.rules.audit import count_rules
from darts_bio.rules.carriers import PREFIX, Renewal, RuleCarrier, WeightedCarrier, rule_carriers
from darts_bio.rules.weights import check_model

_attached: weakref.WeakSet[Attached] = weakref.WeakSet()
"""What is attached in this process; optimizers keep it alive."""


class Attached:
    """What `attach` returns: it serves the rules of a model until it is removed.

    As a context manager it is removed at the end. `state_dict` holds the numbers of the updates
    made, for a checkpoint.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(2, 2, rule=RULES.build("brsf"))
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> with attach(layer, optimizer) as attached:
    ...     layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    ...     optimizer.step()
    >>> attached.state_dict()
    {'updates': [1]}
    >>> attached
    Attached(layers: 1 brsf; updates: 1)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        seed: int,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self._model, self._seed = model, seed
        self._optimizers = weakref.WeakSet(optimizers)
        _attached.add(self)
        self._updates = [0] * len(optimizers)
        self._carriers = [carrier for _, carrier in rule_carriers(model) if carrier.rule.renews]
        self.watch_anew()
        self._self_renewing = [m for m in model.modules() if getattr(m, "renews_itself", False)]
        for module in self._self_renewing:  # a model for loops that nothing is attached to
            module.renews_itself = False  # type: ignore[assignment]
        self._units = [c.unit for _, c in rule_carriers(model) if isinstance(c, WeightedCarrier)]
        for unit in self._units:
            unit.end_watch()
            unit.scaler, unit.watches = scaler, scaler is None
        self._owned = _owners(self._carriers, optimizers)
        self._hooks = [
            optimizer.register_step_post_hook(_AfterStep(self, number))
            for number, optimizer in enumerate(optimizers)
        ]
        self._hooks += [optimizer.register_step_pre_hook(self._begin) for optimizer in optimizers]

    def __repr__(self) -> str:
        """Return how many layers learn by each rule, and the updates made through each optimizer."""
        layers = Counter(carrier.rule.spec for _, carrier in rule_carriers(self._model))
        by_rule = ", ".join(f"{number} {rule}" for rule, number in layers.items())
        return f"Attached(layers: {by_rule}; updates: {', '.join(map(str, self._updates))})"

    def _begin(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Hear that a step begins, within which there may be passes, as in those of LBFGS."""
        self._refuse(optimizer)
        for carrier in self._carriers:
            carrier.is_renewed = True

    def watch_anew(self) -> None:
        """Have carriers warn if from now on weights change, and no attached optimizer makes a step."""
        for carrier in self._carriers:
            carrier.begin_unrenewed()

    def _refuse(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise InputError if a GradScaler that was not handed over has divided a local rule's update.

        Its scale is a large power of two, by which the gradient is then smaller than it was left; a
        fused optimizer tells the scale itself. Only the first step is looked at.
        """
        for unit in self._units:
            if not unit.watches or unit.largest is None:
                unit.end_watch()
                continue
            fused = getattr(optimizer, "grad_scale", None)
            factor = unit.unscaled_by() if fused is None else float(fused)
            unit.end_watch()
            if factor is not None:
                raise InputError(
                    f"attach: a gradient of a local rule was divided by {factor:g}, as a "
                    "GradScaler does; hand it over: attach(model, optimizer, scaler=scaler)"
                )

    def updated(self, number: int) -> None:
        """Renew the feedback of what the optimizer of that number has just updated."""
        self._updates[number] += 1
        owned = self._owned[number]
        if not owned:
            return
        device = next(iter(owned[0].feedback.values())).device.type
        identities = set(map(id, owned))
        renewal = Renewal(self._model, self._seed, only=lambda carrier: id(carrier) in identities)
        with torch.autocast(device, enabled=False):  # feedback is drawn in its own type
            renewal(self._updates[number])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates made through each optimizer."""
        return {"updates": list(self._updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the updates that a `state_dict` counts.

        Raises InputError if it is none, or of another number of optimizers.
        """
        updates = state.get("updates") if isinstance(state, dict) else None
        if not isinstance(updates, list):
            raise InputError(
                "attach: expected the state that Attached.state_dict() returned, found "
                f"{brief(state)}; load that which was saved beside the model's"
            )
        if len(updates) != len(self._updates):
            raise InputError(
                f"attach: expected the state of {len(self._updates)} optimizer(s), found one of "
                f"{len(updates)}; attach the optimizers that it was saved with"
            )
        self._updates = list(updates)

    def renews(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Return whether it renews feedback of a model after steps of one of these optimizers."""
        own = set(map(id, self._carriers))
        return not self._optimizers.isdisjoint(optimizers) and any(
            id(carrier) in own for _, carrier in rule_carriers(model)
        )

    def remove(self) -> None:
        """Take all hooks off again: nothing renews the feedback, and no scale is known."""
        for hook in self._hooks:
            hook.remove()
        _attached.discard(self)
        self.watch_anew()
        for unit in self._units:
            unit.scaler = None
            unit.end_watch()
        for module in self._self_renewing:
            module.renews_itself = True  # type: ignore[assignment]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class _AfterStep:
    """The hook that an optimizer calls after each step."""

    def __init__(self, attached: Attached, number: int) -> None:
        self._attached, self._number = attached, number

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # A GradScaler leaves out steps whose gradients are not finite. A fused optimizer is called
        # all the same, and told by this attribute to move nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._attached.updated(self._number)
        self._attached.watch_anew()


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
    *,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
) -> Attached:
    """Have a loop of any kind do what learning rules ask for; to be called once, before it.

    After each step of the optimizer, the rules that renew their feedback (brsf, weight_mirror) do
    so, by the very numbers of `draw_feedback(model, seed, update)`, where `update` counts the
    steps. A step that a GradScaler leaves out is none.

    Of several optimizers each renews, and counts, for the layers whose weights it holds; the first
    one also for weights that none holds. On a GPU, where one generator serves all layers that are
    renewed together, the numbers are then others than those of `draw_feedback` for all.

    Rules that are local (hebbian, predictive) do not read the loss, and so not its scale. Where a
    GradScaler scales it, hand the scaler over, so that what it will divide by is known; else the
    first step raises InputError, since weights would not move. Gradients that are accumulated need
    nothing (`LearningRule.update`).

    Feedback that learns (kolen_pollack, pfa, dkp) has to be in the optimizer, beside its weight. A
    warning says where it is left out, and of kolen_pollack and pfa where it is moved or decayed
    otherwise than the weight, or neither decays.

    To resume, keep `attached.state_dict()` in the checkpoint beside that of the optimizer, and
    load it: what is drawn depends on the number of the update.

    Args:
        model: The model, wrapped by DistributedDataParallel or torch.compile or not.
        optimizer: What updates its weights: one or several of PyTorch's optimizers.
        seed: The seed of the draws, as that of `convert`.
        scaler: The GradScaler that every loss goes through, if one does.

    Returns:
        A handle with `remove()`, `state_dict()` and `load_state_dict(...)`, which is also a context
        manager.

    Raises:
        InputError: The model has no learning rules, an optimizer is none of PyTorch's or attached to
            the model already, or a scaler cannot be respected.

    >>> from darts_bio.rules import RULES, RuleLinear, draw_feedback
    >>> layer = RuleLinear(2, 2, rule=RULES.build("brsf"))
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> attached = attach(layer, optimizer, seed=1)
    >>> for _ in range(3):  # any loop
    ...     optimizer.zero_grad()
    ...     layer(torch.ones(1, 2, requires_grad=True)).sum().backward()
    ...     optimizer.step()
    >>> drawn = layer.feedback["magnitude"].clone()
    >>> draw_feedback(layer, seed=1, update=3)  # what the third update draws
    >>> torch.equal(layer.feedback["magnitude"], drawn)
    True
    """
    several = isinstance(optimizer, (list, tuple))
    optimizers: list[Any] = list(optimizer) if several else [optimizer]  # type: ignore[arg-type]
    for each in optimizers:
        if not isinstance(each, torch.optim.Optimizer):
            raise InputError(
                f"attach: expected a torch.optim.Optimizer, or several, found "
                f"{type(each).__name__}; attach the optimizer itself, not what wraps it"
            )
    if not optimizers:
        raise InputError("attach: expected at least one optimizer, found none; hand it over")
    check_model(model, "attach")
    if next(rule_carriers(model), None) is None:
        raise InputError(
            f"attach: expected a model with learning rules, found a {type(model).__name__} "
            "without; convert it first (darts_bio.convert)"
        )
    parameters = set(model.parameters())
    moved = {p for each in optimizers for group in each.param_groups for p in group["params"]}
    if parameters.isdisjoint(moved):
        raise InputError(
            "attach: expected an optimizer of the model's parameters, found one that holds none of "
            "them; make it from the converted model, which is a copy of the one before"
        )
    if any(attached.renews(model, optimizers) for attached in _attached):
        raise InputError(
            "attach: expected an optimizer that is not attached to the model yet, found one that is: "
            "feedback would be renewed twice a step; leave the call out, or call remove() on what the "
            "first one returned"
        )
    if scaler is not None:
        _refuse_scaler(model, scaler)
    last = count_rules(model).rows[-1:]
    if last and last[0].local:
        warnings.warn(
            f"attach: {last[0].name or 'the model'}, the last weight, learns by {last[0].rule}, which "
            "sees no labels: if it is the readout, leave it to the error, as in convert(model, "
            f'{{"{last[0].name}": "bp", "*": "{last[0].rule}"}})',
            stacklevel=2,
        )
    for complaint in _complaints(model, optimizers):
        warnings.warn(f"attach: {complaint}", stacklevel=2)
    return Attached(model, optimizers, seed, scaler)


def _refuse_scaler(model: nn.Module, scaler: Any) -> None:
    """Raise InputError if this is no GradScaler, or if local rules cannot follow it."""
    if not isinstance(scaler, torch.amp.GradScaler):
        raise InputError(
            f"attach: scaler: expected a torch.amp.GradScaler, found {type(scaler).__name__}; hand "
            "over the scaler itself, not what wraps it"
        )
    for name, carrier in rule_carriers(model):
        if carrier.rule.local and not isinstance(carrier, WeightedCarrier):
            raise InputError(
                f"attach: scaler: {name} learns many layers at once by {carrier.rule.spec}, which "
                "does not know the scale of a loss; train a supernet in bf16 or float32, without a "
                "scaler"
            )


def _complaints(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Iterator[str]:
    """Yield what keeps learned feedback from learning with its weight: a line for each cause."""
    steps_of = {
        parameter: _Steps.of(optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    left_out, apart, undecayed = [], [], []
    for name, carrier in rule_carriers(model):
        weighted = isinstance(carrier, WeightedCarrier)
        weights = [carrier.carried_weight] if weighted else list(carrier.parameters())
        moved = [steps_of[w] for w in weights if w.requires_grad and w in steps_of]
        for key in carrier.rule.learned if moved else ():
            feedback = getattr(carrier, PREFIX + key, None)
            place = f"{name}.{PREFIX}{key}".lstrip(".")
            if feedback is None or not feedback.requires_grad:
                continue
            if feedback not in steps_of:
                left_out.append(place)
            elif weighted and carrier.rule.decays_to_weight:
                own, of_weight = steps_of[feedback], moved[0]
                if own != of_weight:
                    apart.append(f"{place} takes steps of {own}, its weight of {of_weight}")
                elif not own.decay:
                    undecayed.append(place)
    if left_out:
        yield (
            f"the optimizer holds weights but not their learned feedback ({_first(left_out)}), which "
            "so stays fixed; put darts_bio.rules.learned_feedback(model) into the weights' group"
        )
    if apart:
        yield f"{_first(apart)}: feedback so does not near its weight; put both into one group"
    if undecayed:
        verb = "has" if len(undecayed) == 1 else "have"
        yield (
            f"{_first(undecayed)} {verb} weight decay 0, by which alone the difference from its weight "
            "shrinks; set weight_decay; without it the angle between them narrows and does not close"
        )


class _Steps(NamedTuple):
    """What decides which steps an optimizer makes of equal gradients."""

    optimizer: str
    rate: float
    decay: float

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Self:
        """Return what a group of an optimizer has: its rate, as timm scales it, and its decay."""
        rate = float(group.get("lr") or 0.0) * group.get("lr_scale", 1.0)  # None: it is found
        return cls(type(optimizer).__name__, rate, float(group.get("weight_decay") or 0.0))

    def __str__(self) -> str:
        return f"{self.optimizer}(lr={self.rate:g}, weight_decay={self.decay:g})"


def _first(found: list[str]) -> str:
    """Return the first of several, and how many more there are."""
    return found[0] if len(found) == 1 else f"{found[0]}, and {len(found) - 1} more"


def _owners(
    carriers: list[RuleCarrier], optimizers: list[torch.optim.Optimizer]
) -> list[list[RuleCarrier]]:
    """Return for each optimizer the carriers whose weights it holds.

    The first one also gets those whose weights no optimizer holds, since they are frozen or many
    taken as one.
    """
    owner_of = {
        id(parameter): number
        for number, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    owned: list[list[RuleCarrier]] = [[] for _ in optimizers]
    for carrier in carriers:
        weights = [id(parameter) for parameter in carrier.parameters(recurse=False)]
        if isinstance(carrier, WeightedCarrier):  # a module beside its weight's
            weights.append(id(carrier.carried_weight))
        numbers = [owner_of[weight] for weight in weights if weight in owner_of]
        owned[numbers[0] if numbers else 0].append(carrier)
    return owned
