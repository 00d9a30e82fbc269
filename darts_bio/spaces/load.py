"""Genotypes by whatever a user has of them: a shipped name, a file, a run folder, or DARTS-style text."""

from __future__ import annotations

from pathlib import Path

from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.spaces.base import SPACES
from darts_bio.spaces.darts import DartsSpace
from darts_bio.spaces.genotype import Genotype, from_darts_text, from_json, shipped_folder, shipped_names

LONGEST_NAME = 255
"""Bytes that file systems allow for a file's name."""


def load_genotype(source: str | Path) -> Genotype:
    """A validated genotype from a shipped name, a JSON file, a run folder or DARTS-style text.

    Raises InputError, naming the field, if it cannot be used.

    >>> print(load_genotype("darts_v2").cells["normal"])
      node 2: sep_conv_3x3:bp <- 0,  sep_conv_3x3:bp <- 1
      node 3: sep_conv_3x3:bp <- 0,  sep_conv_3x3:bp <- 1
      node 4: sep_conv_3x3:bp <- 1,  skip_connect <- 0
      node 5: skip_connect <- 0,  dil_conv_3x3:bp <- 2
    """
    text = str(source).strip()
    if "Genotype(" in text:
        genotype = DartsSpace().normalise(from_darts_text(text))
        DartsSpace().validate(genotype, "DARTS text")
        return genotype
    path = shipped_folder() / f"{text}.json" if text in shipped_names() else Path(text)
    if len(path.name) > LONGEST_NAME:
        raise InputError(
            f"a genotype of {len(text)} characters: expected a name, a path, or Genotype(normal=[...], ...)"
        )
    if path.is_dir():
        path = path / "genotype.json"
        if not path.exists():
            raise InputError(f"{path.parent}: no genotype.json in this folder; has its search ended an epoch?")
    if not path.is_file():
        error = unknown_name("genotype", text, shipped_names())
        raise InputError(f"{error}; expected a shipped name, a JSON file, a run folder or DARTS-style text")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({first_line(error)})") from None
    genotype = from_json(content, path.name)
    try:
        space = SPACES.get(genotype.space)
    except InputError as error:
        raise InputError(f"{path.name}.space: {error}") from None
    space().validate(genotype, path.name)
    return genotype
