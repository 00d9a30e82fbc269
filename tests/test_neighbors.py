"""The neighbors of genotypes, against all genotypes of small spaces, tried one by one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from darts_bio.errors import InputError
from darts_bio.spaces import (
    SPACES,
    Candidate,
    Cell,
    Edge,
    Genotype,
    Space,
    from_json,
    load_genotype,
    neighbors,
    random_neighbor,
)
from darts_bio.spaces.operations import OPERATIONS

RULES = ("fa", "usf")
SMALL = {
    "nb201": "nb201(operations=(none, skip_connect, nor_conv_1x1))",
    "darts": "darts(nodes=2, operations=(none, skip_connect, sep_conv_3x3))",
    "paper": "darts(layout=paper, nodes=2, operations=(skip_connect, sep_conv_3x3))",
    "all_edges": "darts(nodes=1, operations=(skip_connect, sep_conv_3x3), kept_edges=None)",
    "by_depth": "by_depth(space=darts(nodes=1, operations=(max_pool_3x3, sep_conv_3x3)), cells=4)",
}


def all_cells(space: Space, cell_type: str) -> Iterator[Cell]:
    """Every cell that a search can derive, edges by node and input."""
    of_nodes: dict[int, list[list[Edge]]] = {}
    for number, (node, source) in enumerate(space.edges):
        candidates = set()
        for candidate in space.row(cell_type, number, RULES):
            assert candidate is not None
            if space.selectable(candidate):
                has_weights = OPERATIONS.get(candidate.op).carries_rule(
                    space.stride(cell_type, source)
                )
                candidates.add(candidate if has_weights else replace(candidate, rule=None))
        edges = [Edge(node, source, candidate) for candidate in sorted(candidates, key=str)]
        of_nodes.setdefault(node, []).append(edges)
    choices = []
    for edges_of_node in of_nodes.values():
        kept = min(space.kept_edges or len(edges_of_node), len(edges_of_node))
        choices.append(
            [
                chosen
                for sources in itertools.combinations(edges_of_node, kept)
                for chosen in itertools.product(*sources)
            ]
        )
    for nodes in itertools.product(*choices):
        yield Cell(tuple(itertools.chain(*nodes)), space.outputs)


def differences(one: Edge, other: Edge) -> int:
    """In how many of input, operation and rule edges into one node differ."""
    a, b = one.candidate, other.candidate
    rules_differ = a.rule is not None and b.rule is not None and a.rule != b.rule
    return (one.input != other.input) + (a.op != b.op) + rules_differ


def one_apart(one: Cell, other: Cell) -> bool:
    """Whether all edges but one are the same, and those two differ in one thing."""
    lost, won = set(one.edges) - set(other.edges), set(other.edges) - set(one.edges)
    if len(lost) != 1 or len(won) != 1:
        return False
    (before,), (after,) = lost, won
    return before.node == after.node and differences(before, after) == 1


def some(cells: Sequence[Cell]) -> list[Cell]:
    """A dozen of them, the first and the last included."""
    return [cells[i * (len(cells) - 1) // 11] for i in range(12)]


@pytest.mark.parametrize("name", SMALL)
def test_they_are_all_genotypes_that_differ_by_one_change(name: str) -> None:
    space = SPACES.build(SMALL[name])
    table = space.table(RULES)
    cells = {t: list(all_cells(space, t)) for t in space.cell_types}
    for choice in zip(*(some(cells[t]) for t in space.cell_types), strict=True):
        genotype = Genotype(SMALL[name], dict(zip(space.cell_types, choice, strict=True)))
        # Genotypes that differ in two cells are more than one change apart.
        expected = {
            (t, cell)
            for t in space.cell_types
            for cell in cells[t]
            if one_apart(genotype.cells[t], cell)
        }
        found = []
        for neighbor in neighbors(genotype, space, table):
            changed = [t for t in space.cell_types if neighbor.cells[t] != genotype.cells[t]]
            assert len(changed) == 1
            found.append((changed[0], neighbor.cells[changed[0]]))
        assert len(found) == len(set(found))
        assert set(found) == expected


@pytest.mark.parametrize("space_name", ["s1", "s2", "s3", "s4"])
def test_each_edge_of_robust_darts_keeps_to_its_operations(space_name: str) -> None:
    space = SPACES.build(f"robust_darts(space={space_name})")
    table = space.table(RULES)
    cells = {}
    for t in space.cell_types:
        weights = torch.rand(table.shape(t), generator=torch.Generator().manual_seed(0))
        cells[t] = space.derive_cell(t, weights.tolist(), table.rows[t])
    genotype = Genotype(f"robust_darts(space={space_name})", cells)
    found = neighbors(genotype, space, table)
    assert len({neighbor.to_json() for neighbor in found}) == len(found) > 8
    for neighbor in found:
        space.validate(neighbor, "neighbor")
        assert from_json(neighbor.to_json(), "neighbor") == neighbor
        assert genotype in neighbors(neighbor, space, table)


def test_a_cell_of_nb201_has_24_under_one_rule() -> None:
    # The number that White et al. give for NAS-Bench-201 (arXiv 2005.02960).
    space = SPACES.build("nb201")
    genotype = load_genotype("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3:bp~2|")
    assert len(neighbors(genotype, space, space.table(["bp"]))) == 24


def test_changes_lead_from_any_cell_to_any_other() -> None:
    space = SPACES.build(SMALL["darts"])
    table = space.table(RULES)
    cells = list(all_cells(space, "normal"))
    reduce = next(all_cells(space, "reduce"))
    reached, edge = {cells[0]}, [cells[0]]
    while edge:
        genotype = Genotype(SMALL["darts"], {"normal": edge.pop(), "reduce": reduce})
        new = {g.cells["normal"] for g in neighbors(genotype, space, table)} - reached
        reached |= new
        edge += new
    assert reached == set(cells)


def test_a_drawn_neighbor_is_any_of_them_with_the_same_probability() -> None:
    space = SPACES.build(SMALL["darts"])
    table = space.table(RULES)
    cells = {t: next(all_cells(space, t)) for t in space.cell_types}
    genotype = Genotype(SMALL["darts"], cells)
    possible = [neighbor.to_json() for neighbor in neighbors(genotype, space, table)]
    source, draws = torch.Generator().manual_seed(0), 100 * len(possible)
    counts = Counter(
        random_neighbor(genotype, space, table, source).to_json() for _ in range(draws)
    )
    assert set(counts) == set(possible)
    # Chi square of n - 1 degrees of freedom: mean n - 1, variance 2 (n - 1); five deviations.
    freedom = len(possible) - 1
    chi = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5


def test_edges_that_are_alike_are_changed_once() -> None:
    # Imported genotypes may have both edges of a node from one input, as AmoebaNet-A does.
    spec = "darts(nodes=1, operations=(max_pool_3x3, skip_connect))"
    pool = Edge(2, 0, Candidate("max_pool_3x3"))
    genotype = Genotype(spec, {t: Cell((pool, pool), (2,)) for t in ("normal", "reduce")})
    space = SPACES.build(spec)
    found = neighbors(genotype, space, space.table(["bp"]))
    assert len({neighbor.to_json() for neighbor in found}) == len(found) == 4


@pytest.mark.parametrize(
    ("genotype", "space", "message"),
    [
        ("darts_v1", "nb201", "genotype.cells: unknown cell type 'normal'"),
        ("darts_v1", "darts(nodes=2)", "expected edges of the darts space, found 0->4; use a"),
        ("darts_v1", "by_depth(space=darts, cells=4)", "genotype.cells: unknown cell type"),
    ],
)
def test_a_genotype_of_another_space_is_refused(genotype: str, space: str, message: str) -> None:
    built = SPACES.build(space)
    with pytest.raises(InputError) as caught:
        neighbors(load_genotype(genotype), built, built.table(["bp"]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_there_is_no_choice_no_neighbor_is_drawn() -> None:
    spec = "nb201(operations=(skip_connect,))"
    space = SPACES.build(spec)
    cell = next(all_cells(space, "cell"))
    with pytest.raises(InputError, match="expected edges with a choice of operations or --rules"):
        random_neighbor(
            Genotype(spec, {"cell": cell}), space, space.table(["bp"]), torch.Generator()
        )
