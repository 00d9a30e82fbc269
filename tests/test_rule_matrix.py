"""What every rule can be used with: a matrix of rules and PyTorch's ways to run a model.

`python tests/test_rule_matrix.py` prints it. Each cell is a check against the plain run of the same
model in float64. A rule that cannot do something must say so in a clear error: then the cell is
"no", and its message is below the table.
"""

from __future__ import annotations

import copy
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.rules import RULES, convert

CANNOT: dict[tuple[str, str], str] = {}
"""(rule, way) -> what the error says."""

for _rule in ("dfa", "dkp"):
    CANNOT[_rule, "compile"] = "cannot be compiled whole"
for _rule in set(RULES) - {"bp"}:
    CANNOT[_rule, "create_graph"] = "cannot be differentiated again"


class Net(nn.Module):
    """Convolutions, dense and depthwise, and a readout; without `kept` the lower half runs again
    for its gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept = True
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, 2, groups=4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 1),
        )
        self.head = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(54, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = (
            self.trunk(x)
            if self.kept
            else torch.utils.checkpoint.checkpoint(self.trunk, x, use_reentrant=False)
        )
        return self.head(h)


def net(rule: str, seed: int = 0) -> Any:
    torch.manual_seed(0)
    return convert(Net().double(), rule, seed=seed)


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 8, 8, generator=source, dtype=torch.float64), torch.arange(n) % 5


def gradients(
    model: Callable[[Tensor], Tensor], parameters: Any, x: Tensor, labels: Tensor
) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(x), labels), list(parameters)))


def same(found: list[Tensor], expected: list[Tensor], rel: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= rel * b.abs().max() + 1e-300


def bf16(rule: str) -> None:
    """AMP: gradients in float32 that point where those of float32 do."""
    model, (x, labels) = net(rule).float(), batch(16)
    expected = gradients(model, model.parameters(), x.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.float()).dtype == torch.bfloat16
        found = gradients(lambda x: model(x), model.parameters(), x.float(), labels)
    assert {g.dtype for g in found} == {torch.float32}
    flat, exact = (torch.cat([g.flatten() for g in side]) for side in (found, expected))
    assert F.cosine_similarity(flat, exact, dim=0) > 0.98


def compile(rule: str) -> None:
    """torch.compile(fullgraph=True), forward and backward."""
    compiled(rule, fullgraph=True)


def compiled(rule: str, fullgraph: bool) -> None:
    model, (x, labels) = net(rule), batch()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
    same(
        gradients(compiled, model.parameters(), x, labels),
        gradients(model, model.parameters(), x, labels),
    )


def channels_last(rule: str) -> None:
    model, (x, labels) = net(rule), batch()
    expected = gradients(model, model.parameters(), x, labels)
    model.to(memory_format=torch.channels_last)
    same(
        gradients(model, model.parameters(), x.to(memory_format=torch.channels_last), labels),
        expected,
    )


def state_dict(rule: str) -> None:
    """Through a file, into a model of another seed."""
    model, other, (x, labels) = net(rule), net(rule, seed=1), batch()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(
        gradients(other, other.parameters(), x, labels),
        gradients(model, model.parameters(), x, labels),
        0,
    )


def deepcopy(rule: str) -> None:
    model, (x, labels) = net(rule), batch()
    expected = gradients(model, model.parameters(), x, labels)
    twin = copy.deepcopy(model)
    same(gradients(twin, twin.parameters(), x, labels), expected, 0)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    same(gradients(model, model.parameters(), x, labels), expected, 0)


def functional_call(rule: str) -> None:
    """torch.func.functional_call with other weights than the model's own."""
    model, other, (x, labels) = net(rule), net(rule), batch()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    weights = dict(other.named_parameters())
    expected = gradients(other, other.parameters(), x, labels)
    found = gradients(
        lambda x: torch.func.functional_call(model, weights, (x,)), weights.values(), x, labels
    )
    same(found, expected)


def func_grad(rule: str) -> None:
    """torch.func.grad of a functional call."""
    model, (x, labels) = net(rule), batch()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), labels)

    found = torch.func.grad(loss)(weights)
    same(list(found.values()), gradients(model, model.parameters(), x, labels))


def checkpointing(rule: str) -> None:
    """torch.utils.checkpoint of a part of the model."""
    model, (x, labels) = net(rule), batch()
    expected = gradients(model, model.parameters(), x, labels)
    model.kept = False
    same(gradients(model, model.parameters(), x, labels), expected)


def create_graph(rule: str) -> None:
    """A second derivative, of the backward pass that the rule defines."""
    model, (x, labels) = net(rule), batch()
    loss = F.cross_entropy(model(x), labels)
    torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def _worker(rank: int, rules: list[str], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.init", rank=rank, world_size=2)
    found = {}
    for rule in rules:
        model, (x, labels) = net(rule), batch()
        parallel = nn.parallel.DistributedDataParallel(model)
        part = slice(2 * rank, 2 * rank + 2)
        F.cross_entropy(parallel(x[part]), labels[part]).backward()
        found[rule] = [p.grad for p in model.parameters()]
    torch.save(found, f"{file}.{rank}")
    dist.destroy_process_group()


def two_processes(rules: list[str], file: str) -> list[dict[str, list[Tensor]]]:
    """The gradients of each of two processes under DistributedDataParallel, half of the batch in
    each.
    """
    # A fork has PyTorch imported already.
    mp.start_processes(_worker, (rules, file), nprocs=2, start_method="fork")
    return [torch.load(f"{file}.{rank}", weights_only=True) for rank in (0, 1)]


def equal_to_one_process(rule: str, found: list[dict[str, list[Tensor]]]) -> None:
    """Both processes have the mean of what each half of the batch gives by itself."""
    model, (x, labels) = net(rule), batch()
    halves = [
        gradients(model, model.parameters(), x[part], labels[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    expected = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    for side in found:
        same(side[rule], expected)


WAYS = [
    bf16,
    compile,
    channels_last,
    state_dict,
    deepcopy,
    functional_call,
    func_grad,
    checkpointing,
    create_graph,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("rule", RULES.names())
def test_matrix(rule: str, way: Callable[[str], None]) -> None:
    reason = CANNOT.get((rule, way.__name__))
    if reason is None:
        way(rule)
    else:
        with pytest.raises(Exception, match=reason):
            way(rule)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # PyTorch's own
def test_dfa_is_right_when_compiled_in_parts() -> None:
    compiled("dfa", fullgraph=False)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_two_processes(tmp_path: Path) -> None:
    rules = list(RULES.names())
    found = two_processes(rules, str(tmp_path / "ddp"))
    for rule in rules:
        equal_to_one_process(rule, found)


def main() -> None:
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = two_processes(list(RULES), os.path.join(folder, "ddp"))
    names = [way.__name__ for way in WAYS]
    print("| rule | " + " | ".join([*names, "DDP"]) + " |\n|" + "---|" * (len(names) + 2))
    notes: dict[str, str] = {}
    for rule in RULES:
        cells = []
        for way in WAYS:
            try:
                way(rule)
                cells.append("yes")
            except (InputError, RuntimeError) as error:
                cells.append("no")
                notes.setdefault(
                    way.__name__,
                    next(line.strip() for line in str(error).splitlines() if "cannot" in line),
                )
        equal_to_one_process(rule, found)
        print(f"| {rule} | " + " | ".join([*cells, "yes"]) + " |")
    for name, note in notes.items():
        print(f"\n{name}: {note}")


if __name__ == "__main__":
    sys.exit(main())
