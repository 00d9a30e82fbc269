"""A run's folder: its configuration, its numbers, and the checkpoint that it goes on from.

config.yaml       every option of the run
genotype.json     the genotype that was derived, or is trained
metrics.jsonl     the numbers, one record a line
events.out.*      the same for TensorBoard
checkpoint.pt     everything the run needs to go on

Each file but the two logs is replaced as a whole: after a crash it is there, as it was or as it was
to become, never in part.
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
from darts_bio.training.owner import LOCK_FILE, own

FORMAT = 1
"""The version of the layout of checkpoints; one of another version is refused."""
CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError within the context into an InputError that names the file and the way out.

    >>> with writing(Path("report.md")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    darts_bio.errors.InputError: report.md: cannot be written (No space left on device); make room \
or choose another place. Files that were written before are whole
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}); make room or choose another place. "
            "Files that were written before are whole"
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path whose file takes the place of `path` in one step at the end.

    If the context raises, `path` stays as it was. Raises InputError if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("epoch,loss")
    ...         print(path.exists())
    ...     print(path.read_text())
    False
    epoch,loss
    """
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            yield temporary
            # On the disk before it is renamed: else a power cut could leave an empty file there.
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raise InputError if the disk refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "report.md", "# A run")
    ...     (Path(folder) / "report.md").read_text()
    '# A run'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class RunFolder:
    """The folder of one run, which keeps its checkpoint.

    A checkpoint is stamped with the run's kind, configuration and command, and is refused by a run
    of another kind or configuration.

    Args:
        path: The folder, which exists.
        kind: The kind of run, "search" or "train".
        config: The run's options.
        command: The command line that began the run.

    >>> import tempfile
    >>> from darts_bio.config import SearchConfig
    >>> with tempfile.TemporaryDirectory() as place:
    ...     config = SearchConfig(out=f"{place}/run")
    ...     folder = RunFolder.open("search", config, "darts-bio search")
    ...     print(sorted(path.name for path in folder.path.iterdir()), folder.load())
    ...     folder.save({"step": 100})
    ...     print(folder.load()["step"])
    ['.lock', 'config.yaml'] None
    100
    """

    def __init__(self, path: Path, kind: str, config: RunConfig, command: str) -> None:
        self.path, self.kind, self.config, self.command = path, kind, config, command
        self.checkpoint_path = path / CHECKPOINT_FILE
        self.genotype_path = path / GENOTYPE_FILE

    @classmethod
    def open(
        cls, kind: str, config: RunConfig, command: str, *, genotype: Genotype | None = None
    ) -> RunFolder:
        """Make the folder of a new run, or with `--resume` open that of the run to go on with.

        Of several processes the first does that, and alone writes to it; the others get a
        `ReadOnlyFolder`.

        Args:
            kind: The kind of run, "search" or "train".
            config: The run's options, `out` and `resume` among them.
            command: The command line of this process.
            genotype: The genotype that is trained, which a new folder keeps.

        Raises:
            InputError: The new folder would overwrite another run, the disk refuses, or the old one
                is of another configuration, or another process is at work in it.
        """
        # Only the first process knows a new folder's name, which tells the time: it sends the path.
        if rank() > 0:
            return ReadOnlyFolder(Path(text_from_first("")), kind, config, command)
        folder = cls._open(kind, config, command, genotype)
        text_from_first(str(folder.path))
        return folder

    @classmethod
    def _open(
        cls, kind: str, config: RunConfig, command: str, genotype: Genotype | None
    ) -> RunFolder:
        """Make or open the folder, as `open` says, in the process that writes to it."""
        if config.resume:
            assert config.out is not None  # the configuration was read from there
            folder = cls(Path(config.out), kind, config, command)
            own(folder.path)
            saved = type(config)(**read_yaml(folder.path / CONFIG_FILE, type(config)))
            folder._refuse_differences(folder.path, saved.identity())
            return folder
        name = "-".join(filter(None, (kind, config.about)))
        folder = cls(new_folder(name, config.out), kind, config, command)
        own(folder.path)
        if genotype is not None:
            write_text(folder.genotype_path, genotype.to_json())
        write_text(folder.path / CONFIG_FILE, config.to_yaml())
        return folder

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by the `state`, stamped with what this run is.

        Raises InputError if the disk refuses; the checkpoint before is then still there.
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
        """Return the checkpoint to go on from, or None if the run has not written one yet.

        The folder takes over the command that began the run.

        Raises:
            InputError: The checkpoint is damaged, belongs to another configuration, or is missing
                though metrics.jsonl says that the run had begun.
        """
        if not self.checkpoint_path.exists():
            if not (self.path / METRICS_FILE).exists():
                return None
            records = read_records(self.path / METRICS_FILE)
            begun = (
                f"tells of step {records[-1]['step']}" if records else "says that the run had begun"
            )
            raise InputError(
                f"{self.checkpoint_path}: missing, though {METRICS_FILE} beside it {begun}; put it "
                "back, or begin anew in another --out"
            )
        state = read_checkpoint(self.checkpoint_path, self.kind)
        self._refuse_differences(self.checkpoint_path, state["config"])
        self.command = state["command"]
        return state

    def _refuse_differences(self, where: Path, identity: dict[str, Any]) -> None:
        """Raise InputError if a saved configuration, read from `where`, is not this run's."""
        different = self.config.differences(identity)
        if different:
            raise InputError(
                f"{where}: a run of another configuration ({'; '.join(different)}); leave these "
                "options as they were, or start anew in another --out"
            )


class ReadOnlyFolder(RunFolder):
    """The folder of a run for all processes but the first: it loads, and saves nothing.

    >>> from darts_bio.config import SearchConfig
    >>> ReadOnlyFolder(Path("no folder"), "search", SearchConfig(), "").save({"step": 1})
    """

    def save(self, state: dict[str, Any]) -> None:
        """Do nothing: the first process saves for all."""


def new_folder(name: str, out: str | None, *, resumable: bool = True) -> Path:
    """Make and return the folder of `--out`, or one under runs/ of that name and the time.

    Raises InputError if `--out` is there and not empty, or if the disk refuses. It names `--resume`
    as a way out where the folder is `resumable`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     new_folder("alignment", f"{place}/a", resumable=False).name
    'a'
    """
    if out is None:
        stem = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for n in itertools.count(1):  # another run may have begun in this second
            path = Path(stem if n == 1 else f"{stem}-{n}")
            with writing(path), contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
    path = Path(out or "")
    with writing(path):
        if is_filled(path):
            ways = "choose another" + (", or go on with it by --resume" if resumable else "")
            raise InputError(f"--out {path}: exists and is not empty; {ways}")
        path.mkdir(parents=True, exist_ok=True)
    return path


def is_filled(path: Path) -> bool:
    """Tell whether there is anything at `path` but an empty folder, or one that is only locked.

    >>> is_filled(Path(__file__)), is_filled(Path(__file__).with_name("nowhere"))
    (True, False)
    """
    return path.exists() and (
        not path.is_dir() or any(entry.name != LOCK_FILE for entry in path.iterdir())
    )


def read_records(path: Path, step: int | None = None) -> list[dict[str, Any]]:
    r"""Return the records of a run's metrics.jsonl; none if there is no such file.

    With a `step` only those up to it. A line that is no JSON is left out: a crash cut it off, so it
    was written after the checkpoint.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / METRICS_FILE
    ...     _ = path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    ...     read_records(path)
    [{'step': 1, 'loss': 2.5}]
    """
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):  # of a line that was cut off
            records.append(json.loads(line))
    return [record for record in records if step is None or record["step"] <= step]


def checkpoint_of(source: Path) -> Path:
    """Return the path of a run folder's checkpoint, or `source` itself if it is a file.

    Raises:
        InputError: There is no checkpoint, or the folder holds a run for each of several seeds.

    >>> checkpoint_of(Path(__file__)).name
    'run_folder.py'
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
        f"{path}; a run writes it at the end of its first epoch"
    )


def read_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Return a checkpoint's content, its tensors on the CPU.

    The file holds tensors and plain values only: nothing in it is executed.

    Args:
        path: The file.
        kind: The kind of run that it has to be of, "search" or "train".

    Raises:
        InputError: The file is damaged, not a checkpoint, or that of another kind of run.

    >>> read_checkpoint(Path(__file__).with_name("nowhere.pt"), "train")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    darts_bio.errors.InputError: ...nowhere.pt: not a readable checkpoint (No such file or directory)
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
        is_search = kind == "train" and state.get("kind") == "search"
        hint = "; train the genotype it found first" if is_search else ""
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
