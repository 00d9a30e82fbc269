"""A trial of each operation of a plug-in, as it is first built: does it keep to what an operation is?

A candidate that is stacked (`networks.stacking`) never runs by itself, and what its layers come to
would fail far from it. So one of the user's own is run once by itself for each way in which it is
built, and what is wrong is told in a line that names it.
"""

from __future__ import annotations

import copy
import inspect
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, first_line, line_in
from darts_bio.rules import RULES, LearningRule
from darts_bio.rules.weights import weights_in
from darts_bio.runtime import rng_kept
from darts_bio.spaces.operations import Operation

SIZE = 16
"""The height and width of the maps of a trial: no smaller than what windows usually ask for."""
NOT_ITS_OWN = (InputError, MemoryError, torch.OutOfMemoryError)
"""Errors that stay what they are, whoever's code raises them."""

_passed: set[tuple[Operation, int, int, str, bool]] = set()
"""The trials that were passed: operation, channels, stride, rule and whether for a supernet."""


def built(
    operation: Operation, channels: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    """Build an operation, and try it if it is no built-in one and was not tried so before.

    The module is as its function made it: a copy is tried, and generators stay where they were. One
    that cannot be copied is not tried.

    Raises:
        InputError: It is no function of (channels, stride, rule, supernet), fails, gives something
            else than maps of the shape that an operation has to give, or has a layer under no rule
            where it is given one.

    >>> from darts_bio.rules import RULES
    >>> from darts_bio.spaces import OPERATIONS
    >>> from darts_bio.spaces.operations import operation
    >>> @operation("wider")
    ... def wider(channels, stride, rule, supernet):
    ...     return nn.Conv2d(channels, 2 * channels, 1, stride)
    >>> try:
    ...     _ = built(OPERATIONS.get("wider"), 4, 2, RULES.build("bp"), True)
    ... except InputError as error:
    ...     print(str(error).partition(": ")[2])
    expected an output (2, 4, 8, 8) at stride 2 from an input (2, 4, 16, 16), found (2, 8, 8, 8); \
mend the operation
    >>> OPERATIONS.unregister("wider")
    """
    if operation.is_built_in:
        return operation.build(channels, stride, rule, supernet)
    where = f"operation {operation.name} ({_place(operation)})"
    try:
        inspect.signature(operation.build).bind(channels, stride, rule, supernet)
    except TypeError:
        raise InputError(
            f"{where}: expected a function of (channels, stride, rule, supernet), found one of "
            f"{inspect.signature(operation.build)}; have it take these four"
        ) from None
    try:
        module: Any = operation.build(channels, stride, rule, supernet)
    except NOT_ITS_OWN:
        raise
    except Exception as error:
        expected = f"{where}: expected it to build a module at stride {stride}"
        raise _failed(operation, expected, error) from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{where}: expected a torch.nn.Module at stride {stride}, found "
            f"{type(module).__name__}; return one"
        )
    key = (operation, channels, stride, rule.spec, supernet)
    if key not in _passed:
        if operation.carries_rule(stride) and rule != RULES.build("bp"):
            _check_rules(module, where, rule)
        if _try(operation, module, where, channels, stride):
            _passed.add(key)
    return module


def check_output(where: str, y: Any, x: Tensor, channels: int, stride: int) -> None:
    """Raise InputError unless y is what an operation has to make of x (N, channels, H, W).

    `where` names the operation.
    """
    n, _, h, w = x.shape
    expected = (n, channels, -(-h // stride), -(-w // stride))
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if found != expected:
        raise InputError(
            f"{where}: expected an output {expected} at stride {stride} from an input "
            f"{tuple(x.shape)}, found {found}; mend the operation"
        )


def _check_rules(module: nn.Module, where: str, rule: LearningRule) -> None:
    """Raise InputError if a layer is under no rule: all that is said of the candidate is by its rule.

    One that is to learn by backpropagation whatever the rule is says so: it is under bp.
    """
    for weight in weights_in(module):
        if weight.carrier is None and not weight.loose:
            layer = f"a {weight.kind}" + (f" ({weight.name})" if weight.name else "")
            raise InputError(
                f"{where}: expected its layers under the rule that it is given, {rule.spec}, found "
                f"{layer} under none; make it a RuleConv2d or RuleLinear with rule=rule, or with "
                'rule=RULES.build("bp") if backpropagation is meant'
            )


def _try(operation: Operation, module: nn.Module, where: str, channels: int, stride: int) -> bool:
    """Run a copy of a module, and return whether that could be done."""
    # Where the module was built, be it on the meta device.
    x = torch.linspace(-1, 1, 2 * channels * SIZE**2).view(2, channels, SIZE, SIZE)
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with rng_kept(), torch.no_grad():
            try:
                tried = copy.deepcopy(module)
            except Exception:  # such as of a weight that is computed ahead of the pass
                return False
            y = tried(x.clone())
    except NOT_ITS_OWN:
        raise
    except Exception as error:
        if x.is_meta:  # it may ask for numbers
            return False
        expected = f"{where}: expected it to take an input {tuple(x.shape)} at stride {stride}"
        raise _failed(operation, expected, error) from error
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
    check_output(where, y, x, channels, stride)
    return True


def _failed(operation: Operation, expected: str, error: Exception) -> InputError:
    """Return what to raise where a plug-in's code raised an error; `expected` begins the message."""
    line = line_in({operation.build.__module__}, error)
    place = f" at {line}" if line else ""
    return InputError(
        f"{expected}, found {type(error).__name__} ({first_line(error)}){place}; mend the operation"
    )


def _place(operation: Operation) -> str:
    """Return file and line of the function that builds an operation, or its module's name."""
    code = getattr(operation.build, "__code__", None)
    return (
        operation.build.__module__ if code is None else f"{code.co_filename}:{code.co_firstlineno}"
    )
