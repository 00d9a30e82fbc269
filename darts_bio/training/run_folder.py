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
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from darts_bio.config import CONFIG_FILE, RunConfig
from darts_bio.config.files import read_yaml
from darts_bio.distributed import rank, text_from_first
from darts_bio.errors import InputError, first_line
from darts_bio.spaces import GENOTYPE_FILE, Genotype

FORMAT = 1
CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it a disk that refuses is an InputError that names the file and the way out."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}); make room or choose another place. "
            "Files that were "
            "written before are whole"
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lends a temporary path beside `path`; what was written there takes the place of `path` in one
    step at the end.
    """
    temporary = path.with_name(f".{path.name}.partial")
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
    """The folder of one run, and what its checkpoint is stamped with.

    `kind` is search or train; `command` is the one that began the run.
    """

    def __init__(self, path: Path, kind: str, config: RunConfig, command: str) -> None:
        self.path, self.kind, self.config, self.command = path, kind, config, command
        self.checkpoint_path = path / CHECKPOINT_FILE
        self.genotype_path = path / GENOTYPE_FILE

    @classmethod
    def open(
        cls, kind: str, config: RunConfig, command: str, *, genotype: Genotype | None = None
    ) -> RunFolder:
        """Makes a new folder, with the genotype that is trained if there is one; or with `--resume`
        opens the old one. Of several processes the first does, and alone writes to it.

        Raises InputError if a new one would overwrite another run or cannot be written to, or if
        the old one is of another configuration.
        """
        if rank() > 0:
            return ReadOnlyFolder(Path(text_from_first("")), kind, config, command)
        folder = cls._open(kind, config, command, genotype)
        text_from_first(str(folder.path))
        return folder

    @classmethod
    def _open(
        cls, kind: str, config: RunConfig, command: str, genotype: Genotype | None
    ) -> RunFolder:
        if config.resume:
            assert config.out is not None  # the configuration was read from there
            folder = cls(Path(config.out), kind, config, command)
            there = type(config)(**read_yaml(folder.path / CONFIG_FILE, type(config)))
            folder._refuse_differences(folder.path, there.identity())
            return folder
        folder = cls(_new_folder(kind, config), kind, config, command)
        if genotype is not None:
            write_text(folder.genotype_path, genotype.to_json())
        write_text(folder.path / CONFIG_FILE, config.to_yaml())
        return folder

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint. Raises InputError if the disk refuses; the one before is then
        still there.
        """
        stamp = {
            "format": FORMAT,
            "kind": self.kind,
            "config": self.config.identity(),
            "command": self.command,
        }
        # Through memory, since torch.save reports a disk that is full in words that differ from
        # case to case.
        buffer = io.BytesIO()
        torch.save({**stamp, **state}, buffer)
        with replacing(self.checkpoint_path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None if the run ended before it wrote one.

        Raises InputError if it is damaged, if it belongs to another configuration, and if it is
        missing though the run has come further than its beginning.
        """
        if not self.checkpoint_path.exists():
            if (self.path / METRICS_FILE).exists():
                records = read_records(self.path / METRICS_FILE)
                told = (
                    f"tells of step {records[-1]['step']}"
                    if records
                    else "says that the run had begun"
                )
                raise InputError(
                    f"{self.checkpoint_path}: missing, though {METRICS_FILE} beside it {told}; put "
                    "it back, or begin "
                    "anew in another --out"
                )
            return None
        state = read_checkpoint(self.checkpoint_path, self.kind)
        self._refuse_differences(self.checkpoint_path, state["config"])
        self.command = state["command"]
        return state

    def _refuse_differences(self, where: Path, identity: dict[str, Any]) -> None:
        different = self.config.differences(identity)
        if different:
            raise InputError(
                f"{where}: a run of another configuration ({'; '.join(different)}); leave these "
                "options as they were, "
                "or start anew in another --out"
            )


class ReadOnlyFolder(RunFolder):
    """A run's folder for the processes of torchrun beside the first, which alone writes to it."""

    def save(self, state: dict[str, Any]) -> None:
        """Does nothing."""


def _new_folder(kind: str, config: RunConfig) -> Path:
    if config.out is None:
        name = "-".join(filter(None, (kind, config.about)))
        stem = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for n in itertools.count(1):  # another run may have begun in this second
            path = Path(stem if n == 1 else f"{stem}-{n}")
            with writing(path), contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
    path = Path(config.out or "")
    with writing(path):
        if is_filled(path):
            raise InputError(
                f"--out {path}: exists and is not empty; choose another, or go on with it by "
                "--resume"
            )
        path.mkdir(parents=True, exist_ok=True)
    return path


def is_filled(path: Path) -> bool:
    """Whether something else than an empty folder is there."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def read_records(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    """Read the records of a run's metrics.jsonl, or those of `step` and before; none if there is no
    such file.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(
            ValueError
        ):  # a line that a crash has cut off was written after the checkpoint
            records.append(json.loads(line))
    return [record for record in records if step is None or record["step"] <= step]


def checkpoint_of(source: Path) -> Path:
    """The checkpoint of a run folder, or `source` itself if it is a file. Raises InputError if
    there is none.
    """
    path = source / CHECKPOINT_FILE if source.is_dir() else source
    if path.is_file():
        return path
    seeds = sorted(source.glob(f"seed-*/{CHECKPOINT_FILE}")) if source.is_dir() else []
    if seeds:
        raise InputError(
            f"{source}: holds a run for each seed; name one of them, such as {seeds[0].parent}"
        )
    raise InputError(
        f"{source}: expected the run folder of a training, or its {CHECKPOINT_FILE}, found no "
        f"{path}; a run writes it "
        "at the end of its first epoch"
    )


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Tensors and plain values only: nothing in the file is
    executed.

    Raises InputError if it is not a checkpoint of that kind.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in any way that a reader of them can
        raise InputError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of this version of darts_bio (expected format {FORMAT})"
        )
    if state.get("kind") != kind:
        hint = (
            "; train the genotype it found first"
            if (kind, state.get("kind")) == ("train", "search")
            else ""
        )
        raise InputError(
            f"{path}: expected the checkpoint of a {kind} run, found one of a {state.get('kind')} "
            f"run{hint}"
        )
    if not (isinstance(state.get("config"), dict) and isinstance(state.get("command"), str)):
        raise InputError(
            f"{path}: not a whole checkpoint (expected the configuration and the command of its "
            "run)"
        )
    return state
