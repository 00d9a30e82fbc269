"""A run's folder: its configuration, its checkpoint, and files that are whole or not there at all.

config.yaml       every option of the run
genotype.json     the genotype that was derived, or is trained
metrics.jsonl     the numbers, one record a line
events.out.*      the same for TensorBoard
checkpoint.pt     everything the run needs to go on
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from darts_bio.config import CONFIG_FILE, RunConfig
from darts_bio.errors import InputError, first_line

FORMAT = 1


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it a disk that refuses is an InputError that names the file and the way out."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}); make room or choose another place. What was saved "
            "before is whole, and a run can go on from it"
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lends a temporary path beside `path`; what was written there takes the place of `path` in one step at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all. Raises InputError if the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class RunFolder:
    """The folder of one run. `kind` (search, train) and the configuration's identity are stamped on its checkpoint."""

    def __init__(self, path: Path, kind: str, config: RunConfig) -> None:
        self.path, self.kind, self.config = path, kind, config
        self.checkpoint_path = path / "checkpoint.pt"
        self.genotype_path = path / "genotype.json"

    @classmethod
    def open(cls, kind: str, config: RunConfig) -> RunFolder:
        """Makes a new folder, or with `--resume` opens the old one.

        Raises InputError if a new one would overwrite another run, or cannot be written to.
        """
        name = config.out or f"runs/{kind}-{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = cls(Path(name), kind, config)
        if config.resume:
            return folder
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise InputError(f"--out {name}: exists and is not empty; choose another, or go on with it by --resume")
        with writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.path / CONFIG_FILE, config.to_yaml())
        return folder

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint. Raises InputError if the disk refuses; the one before is then still there."""
        stamped = {"format": FORMAT, "kind": self.kind, "config": self.config.identity(), **state}
        # Through memory, since torch.save reports a disk that is full in words that differ from case to case.
        buffer = io.BytesIO()
        torch.save(stamped, buffer)
        with replacing(self.checkpoint_path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None if the run ended before it wrote one.

        Raises InputError if it is damaged, or belongs to another configuration.
        """
        if not self.checkpoint_path.exists():
            return None
        state = read_checkpoint(self.checkpoint_path, self.kind)
        there, here = state["config"], self.config.identity()
        different = [name for name in here if name not in there or there[name] != here[name]]
        if different:
            parts = [f"{name} was {there.get(name, 'not an option')}, is {here[name]}" for name in different]
            raise InputError(
                f"{self.checkpoint_path}: a checkpoint of another configuration ({'; '.join(parts)}); leave these "
                "options as they were, or start anew in another --out"
            )
        return state


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Tensors and plain values only: nothing in the file is executed.

    Raises InputError if it is not a checkpoint of that kind.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this version of darts_bio (expected format {FORMAT})")
    if state.get("kind") != kind:
        raise InputError(f"{path}: expected the checkpoint of a {kind} run, found one of a {state.get('kind')} run")
    return state
