"""Genotypes from what a user has: a shipped name, a file, a run folder, or pasted text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from darts_bio.bounded import LARGEST_GENOTYPE, read_text
from darts_bio.config import CONFIG_FILE
from darts_bio.config.files import refuse_missing_plugins
from darts_bio.errors import InputError, unknown_name
from darts_bio.spaces.base import SPACES
from darts_bio.spaces.genotype import (
    TEXT_FORMS,
    Genotype,
    from_json,
    pasted,
    shipped_folder,
    shipped_names,
)

GENOTYPE_FILE = "genotype.json"
"""The name of the genotype file in a run folder."""


def load_genotype(source: str | Path) -> Genotype:
    """Return the genotype that a shipped name, a path or a text stands for, validated.

    Args:
        source: A shipped name (`shipped_names()`), a JSON file, a run folder that holds one, or
            a text in one of the `TEXT_FORMS` (DARTS style, NAS-Bench-201).

    Raises:
        InputError: If it is none of these, or no valid genotype. The message names the field.

    >>> print(load_genotype("darts_v2").cells["normal"])
      node 2: sep_conv_3x3:bp <- 0,  sep_conv_3x3:bp <- 1
      node 3: sep_conv_3x3:bp <- 0,  sep_conv_3x3:bp <- 1
      node 4: sep_conv_3x3:bp <- 1,  skip_connect <- 0
      node 5: skip_connect <- 0,  dil_conv_3x3:bp <- 2
    """
    # Texts first: they may be too long for a path. Then names: a folder may have the same one.
    text = pasted(str(source), "genotype")
    for form in map(TEXT_FORMS.get, TEXT_FORMS):
        if form.recognizes(text):
            return form.read(text)
    if text in shipped_names():
        return read_genotype(shipped_folder() / f"{text}.json")
    path = Path(text)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # too long for a path
        is_folder = is_file = False
    if is_folder:
        refuse_missing_plugins(path)
        path = path / GENOTYPE_FILE
        if not path.exists():
            is_run = (path.parent / CONFIG_FILE).exists()
            why = "has its search ended an epoch?" if is_run else "it is no run folder"
            raise InputError(f"{path.parent}: no {GENOTYPE_FILE} in this folder; {why}")
    elif not is_file:
        shown = text if len(text) <= 200 else f"{text[:200]}... of {len(text)} characters"
        error = unknown_name("genotype", shown, shipped_names())
        raise InputError(
            f"{error}; expected a shipped name, a JSON file, a run folder, DARTS-style or "
            "NAS-Bench-201 text"
        )
    return read_genotype(path)


def read_genotype(path: Path) -> Genotype:
    """Return the genotype of a JSON file, validated by its space.

    Raises:
        InputError: If the file cannot be read or is no valid genotype. The message names the field.

    >>> import pathlib, tempfile
    >>> from darts_bio.spaces import GENOTYPE_FILE
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, GENOTYPE_FILE)
    ...     _ = path.write_text(load_genotype("p_darts").to_json(), encoding="utf-8")
    ...     print(read_genotype(path) == load_genotype("p_darts"))
    True
    """
    genotype = from_json(read_text(path, LARGEST_GENOTYPE), path.name)
    try:
        space = SPACES.build(genotype.space)
    except InputError as error:
        raise InputError(f"{path.name}.space: {error}") from None
    space.validate(genotype, path.name)
    # In the order of the space, whatever that of the file: equal genotypes are equal texts.
    return replace(genotype, cells={t: genotype.cells[t] for t in space.cell_types})
