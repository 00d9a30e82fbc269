"""Tables of the shipped genotypes: what each costs as a network for CIFAR and for ImageNet."""

from __future__ import annotations

import torch

from darts_bio.networks import build_network, multiply_adds, parameters
from darts_bio.reports.markdown import code, markdown_table
from darts_bio.spaces import Genotype, load_genotype, shipped_names

FORMS = (
    (
        "CIFAR: 36 channels, 20 cells, 10 classes, 3x32x32",
        32,
        {"channels": 36, "layers": 20, "num_classes": 10},
    ),
    (
        "ImageNet: 48 channels, 14 cells, 1000 classes, 3x224x224",
        224,
        {"channels": 48, "layers": 14, "num_classes": 1000, "stem": "imagenet"},
    ),
)
"""A table each: its title, the image's side in pixels, and the keywords of `build_network`.

From arXiv 1806.09055, section 3.
"""


def genotype_tables() -> str:
    """Return a Markdown table for each form of the network, with a row per shipped genotype."""
    tables = []
    for title, side, form in FORMS:
        rows = []
        for name in shipped_names():
            genotype = load_genotype(name)
            network = build_network(genotype, **form)
            adds = multiply_adds(network, lambda n=network, s=side: n(torch.zeros(1, 3, s, s)))  # type: ignore[misc]
            with_head = parameters(build_network(genotype, **form, auxiliary=True))
            sizes = (f"{parameters(network):,}", f"{with_head:,}", f"{adds / 1e6:.2f} M")
            rows.append((code(name), _source(genotype), *sizes))
        head = ("name", "source", "parameters", "with auxiliary head", "multiply-adds")
        tables.append("\n".join([f"**{title}**\n", *markdown_table(head, rows)]) + "\n")
    return "\n".join(tables)


def _source(genotype: Genotype) -> str:
    """Return where a genotype comes from: its publication, or the search of our own."""
    made = genotype.provenance
    found = f"a search by {made.get('strategy')} on {made.get('dataset')}, seed {made.get('seed')}"
    return str(made.get("source") or found)
