"""PyTorch's recurrent functions, written as the products that they consist of.

nn.LSTM, nn.GRU and nn.RNN run all their steps in one function of PyTorch. With weights under rules
they are run step by step here, so that each product sends its error as the rule says. It takes a
few times as long.

Shapes: T steps, N sequences, I inputs, H hidden values, P projected ones (nn.LSTM(proj_size=P)).

>>> lstm = torch.nn.LSTM(3, 4)
>>> x, states = torch.ones(5, 1, 3), (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
>>> y, *_ = run("lstm", x, states, lstm._flat_weights, True, 1, 0.0, True, False, False)
>>> torch.allclose(y, lstm(x)[0], atol=1e-6)
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

States = tuple[Tensor, ...]
"""What a cell hands on to its next step: (h, c) of an LSTM, (h,) of the others."""


def _lstm(
    from_x: Tensor, states: States, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None
) -> States:
    """Make one step of an LSTM; from_x (N, 4 H) is W_ih x + b_ih."""
    h, c = states
    i, f, g, o = (from_x + F.linear(h, w_hh, b_hh)).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w_hr is None else F.linear(h, w_hr)), c


def _gru(
    from_x: Tensor, states: States, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None
) -> States:
    """Make one step of a GRU; from_x (N, 3 H) is W_ih x + b_ih."""
    (h,) = states
    x_r, x_z, x_n = from_x.chunk(3, dim=1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, dim=1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., States]:
    """Return the step of a plain recurrent network."""

    def step(
        from_x: Tensor, states: States, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None
    ) -> States:
        return (activation(from_x + F.linear(states[0], w_hh, b_hh)),)

    return step


STEPS: dict[str, Callable[..., States]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
}
"""One step of each kind, by the name of PyTorch's function for all steps."""


def run(kind: str, *arguments: Any) -> tuple[Tensor, ...]:
    """Run PyTorch's function of a kind, such as torch.lstm, step by step.

    Args:
        kind: The function's name.
        arguments: Its arguments: (x, states, weights, has biases, layers, dropout, training,
            bidirectional, batch first), or of packed sequences (x, batch sizes, states, weights, has
            biases, layers, dropout, training, bidirectional).

    Returns:
        The outputs, and the last states, each (layers * directions, N, H).
    """
    packed = isinstance(arguments[1], Tensor) and not arguments[1].is_floating_point()
    if packed:
        x, batch_sizes, states, weights, has_biases, layers, dropout, training, both = arguments
        steps = list(x.split(batch_sizes.tolist()))
    else:
        x, states, weights, has_biases, layers, dropout, training, both, batch_first = arguments
        steps = list(x.transpose(0, 1) if batch_first else x)  # T times (N, I)
    first_states = (states,) if isinstance(states, Tensor) else tuple(states)
    directions = 2 if both else 1
    per_layer = len(weights) // (layers * directions)
    last: list[States] = []
    for layer in range(layers):
        outputs: list[list[Tensor]] = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * per_layer : (number + 1) * per_layer]
            begin = tuple(state[number] for state in first_states)
            of_steps, end = _run_layer(kind, steps, begin, own, has_biases, direction == 1)
            outputs.append(of_steps)
            last.append(end)
        steps = [torch.cat(of_step, dim=1) for of_step in zip(*outputs, strict=True)]
        if dropout and training and layer < layers - 1:
            steps = [F.dropout(step, dropout) for step in steps]
    y = torch.cat(steps) if packed else torch.stack(steps, dim=1 if batch_first else 0)
    return (y, *(torch.stack(states) for states in zip(*last, strict=True)))


def _run_layer(
    kind: str,
    steps: Sequence[Tensor],
    states: States,
    weights: Sequence[Tensor],
    has_biases: bool,
    backward: bool,
) -> tuple[list[Tensor], States]:
    """Run one layer in one direction over steps (n, I), n being the sequences not ended yet.

    Returns the outputs of the steps, and the last states (N, H).
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if has_biases else (None, None)
    projections = rest[2:] if has_biases else rest
    w_hr = projections[0] if projections else None
    step = STEPS[kind]
    outputs: list[Tensor] = []
    for x in reversed(steps) if backward else steps:
        n = len(x)
        moved = step(F.linear(x, w_ih, b_ih), tuple(s[:n] for s in states), w_hh, b_hh, w_hr)
        outputs.append(moved[0])
        # Sequences that ended, or have not begun when run backward, keep their states.
        states = tuple(
            new if n == len(old) else torch.cat([new, old[n:]])
            for new, old in zip(moved, states, strict=True)
        )
    return outputs[::-1] if backward else outputs, states


def run_cell(kind: str, x: Tensor, states: Any, *weights: Tensor | None) -> Any:
    """Run PyTorch's function of one cell, such as torch.lstm_cell.

    Args:
        kind: The cell's kind: lstm, gru, rnn_tanh or rnn_relu.
        x: (N, I).
        states: (h, c) of an LSTM; h of the others.
        weights: W_ih, W_hh, b_ih, b_hh.
    """
    w_ih, w_hh, b_ih, b_hh = [*weights, None, None][:4]
    before = (states,) if isinstance(states, Tensor) else tuple(states)
    assert w_ih is not None
    moved = STEPS[kind](F.linear(x, w_ih, b_ih), before, w_hh, b_hh, None)
    return moved if kind == "lstm" else moved[0]
