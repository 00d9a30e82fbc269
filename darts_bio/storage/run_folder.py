"""A run's folder: its configuration, its numbers, and the checkpoint that it goes on from.

config.yaml            every option of the run
genotype.json          the genotype that was derived, or is trained
metrics.jsonl          the numbers, one record a line
events.out.*           the same for TensorBoard
checkpoint.pt          everything the run needs to go on
checkpoint-before.pt   the checkpoint before that one, for the case that it gets damaged

Each file but the logs is replaced as a whole: after a crash it is there, as it was or as it was to
become, never in part. The logs (`logs.py`) are cut back to the checkpoint that a run goes on from.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darts_bio.config import CONFIG_FILE, FitConfig, RunConfig
from darts_bio.config.files import read_yaml
from darts_bio.distributed import rank, text_from_first
from darts_bio.errors import InputError
from darts_bio.spaces import GENOTYPE_FILE, Genotype
from darts_bio.storage.checkpoint import (
    BEFORE_FILE,
    CHECKPOINT_FILE,
    FORMAT,
    DamagedError,
    read_with_marks,
    write_checkpoint,
)
from darts_bio.storage.checksum import GrowingDigest
from darts_bio.storage.logs import (
    METRICS_FILE,
    Marks,
    cut_back,
    marks_of,
    missing_logs,
    read_records,
)
from darts_bio.storage.owner import LOCK_FILE, own
from darts_bio.storage.whole_files import replacing, write_text, writing


class RunFolder:
    """The folder of one run, which keeps its last two checkpoints.

    A checkpoint is stamped with the run's kind, configuration and command, and is refused by a run
    of another kind or configuration. Two are kept, since a file that was whole when it was written
    can be damaged later; more would protect against nothing else, and take their room.

    With `--rollbacks` the one before stays that of the beginning of an epoch while checkpoints are
    made within it, so that `go_back` ends at a place which does not depend on when they were made.

    Attributes:
        remarks: What the user is to know of what `load` found, in lines.
        has_gone_back: Whether `go_back` has gone back by means of this object.

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
        self.checkpoint_path, self.before_path = path / CHECKPOINT_FILE, path / BEFORE_FILE
        self.genotype_path = path / GENOTYPE_FILE
        self.remarks: list[str] = []
        self.has_gone_back = False
        # Whether checkpoint.pt is whole and begins an epoch, so that it may become the one before;
        # and what it says of the logs.
        self._is_whole, self._begins_epoch = True, False
        self._marks: Marks = {}
        # Of the logs, so that a save reads only what was written since the last one.
        self._digests: dict[str, GrowingDigest] = {}

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
        # The configuration last: a folder that has it holds all that the run begins with.
        texts = {} if genotype is None else {GENOTYPE_FILE: genotype.to_json()}
        texts[CONFIG_FILE] = config.to_yaml()
        folder = cls(new_folder(name, config.out, begun=texts), kind, config, command)
        own(folder.path)
        for file, text in texts.items():
            write_text(folder.path / file, text)
        return folder

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by the `state`, stamped with what this run is.

        The checkpoint that is replaced is kept beside it, and the one before that is dropped.
        Raises InputError if the disk refuses; both checkpoints are then still there.
        """
        with writing(self.path):
            marks = marks_of(self.path, self._digests)
        self._write(state, marks)

    def _write(self, state: dict[str, Any], marks: Marks) -> None:
        """Replace the checkpoint by the `state`, which the logs were that long at; stamp it."""
        stamp = {
            "format": FORMAT,
            "kind": self.kind,
            "config": self.config.identity(),
            "command": self.command,
            "logs": marks,
        }
        write_checkpoint(self.checkpoint_path, {**stamp, **state}, self._keep_before)
        self._is_whole, self._begins_epoch = True, bool(state.get("begins_epoch"))

    def _keep_before(self) -> None:
        """Make the present checkpoint the one before, unless it is damaged or there is none.

        It keeps its own name as well, so that there is always a checkpoint. With `--rollbacks` only
        one that begins an epoch becomes the one before.
        """
        is_kept = self._is_whole and (self._begins_epoch or not self._rollbacks)
        if is_kept and self.checkpoint_path.exists():
            with replacing(self.before_path) as temporary:
                temporary.unlink(missing_ok=True)  # of a process that was killed
                try:
                    os.link(self.checkpoint_path, temporary)
                except OSError:  # a file system without links
                    shutil.copyfile(self.checkpoint_path, temporary)

    @property
    def _rollbacks(self) -> int:
        """How often the run may go back after it diverged."""
        return self.config.rollbacks if isinstance(self.config, FitConfig) else 0

    def go_back(self) -> int | None:
        """Make the last checkpoint that begins an epoch the one to go on from.

        If none does, since the run was made without `--rollbacks` so far, it is the last one. The
        checkpoint then counts how often the run has gone back, which is returned: None if
        `--rollbacks` allows no more, and nothing is changed.

        Raises:
            InputError: Both checkpoints are damaged, or the disk refuses.
        """
        whole = []
        for path in (self.checkpoint_path, self.before_path):
            with contextlib.suppress(DamagedError):
                whole.append(read_with_marks(path, self.kind))
        beginnings = [pair for pair in whole if pair[0].get("begins_epoch")]
        for state, marks in (beginnings or whole)[:1]:
            times = int(state.get("rollbacks", 0)) + 1
            if times <= self._rollbacks:
                self._write({**state, "rollbacks": times}, marks)
                self.has_gone_back = True
                return times
        return None

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint to go on from, or None if the run has not written one yet.

        It is the last one or, if that is damaged, the one before, which `remarks` then say. The
        folder takes over the command that began the run.

        Raises:
            InputError: Both checkpoints are damaged, the run is of another configuration, its
                records are not those that it wrote, or there is no checkpoint though metrics.jsonl
                says that the run had begun.
        """
        if not (self.checkpoint_path.exists() or self.before_path.exists()):
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
        state = self._load_whole()
        self._begins_epoch = bool(state.get("begins_epoch"))
        self._refuse_differences(self.checkpoint_path, state["config"])
        self.command = state["command"]
        for name in missing_logs(self.path, self._marks):
            self.remarks.append(
                f"warning: {self.path / name}: missing; the run goes on, and its records begin anew"
            )
        return state

    def _load_whole(self) -> dict[str, Any]:
        """Return the content of the last checkpoint that is whole; raise InputError if none is."""
        try:
            state, self._marks = read_with_marks(self.checkpoint_path, self.kind)
            return state
        except DamagedError as error:
            try:
                state, self._marks = read_with_marks(self.before_path, self.kind)
            except DamagedError:
                how = "damaged, too" if self.before_path.exists() else "missing"
                raise InputError(
                    f"{error}, and {BEFORE_FILE} beside it is {how}; put one of both back, or begin "
                    "anew in another --out"
                ) from None
            self._is_whole = False
            self.remarks.append(
                f"warning: {error}; the run goes on from {BEFORE_FILE}, of step {state['step']}"
            )
            return state

    def cut_logs(self) -> None:
        """Cut the logs back to the checkpoint that was loaded. Raise InputError if that fails."""
        self._digests.clear()
        with writing(self.path):
            cut_back(self.path, self._marks)

    def _refuse_differences(self, where: Path, identity: dict[str, Any]) -> None:
        """Raise InputError if a saved configuration, read from `where`, is not this run's."""
        different = self.config.differences(identity)
        if different:
            raise InputError(
                f"{where}: a run of another configuration ({'; '.join(different)}); leave these "
                "options as they were, or start anew in another --out"
            )


class ReadOnlyFolder(RunFolder):
    """The folder of a run for all processes but the first: it loads, and writes nothing.

    >>> from darts_bio.config import SearchConfig
    >>> ReadOnlyFolder(Path("no folder"), "search", SearchConfig(), "").save({"step": 1})
    """

    def save(self, state: dict[str, Any]) -> None:
        """Do nothing: the first process saves for all."""

    def cut_logs(self) -> None:
        """Do nothing: the first process cuts them for all."""

    def go_back(self) -> None:
        """Do nothing: the first process goes back for all."""


def new_folder(
    name: str, out: str | None, *, resumable: bool = True, begun: Mapping[str, str] | None = None
) -> Path:
    """Make and return the folder of `--out`, or one under runs/ of that name and the time.

    Args:
        name: The beginning of the name of a folder under runs/.
        out: The folder's path, if one is given.
        resumable: Whether `--resume` is named as a way out where the folder is not empty.
        begun: The text of each file that a run begins with. A folder that holds nothing but some of
            these, as they are, counts as empty: the run that made it was killed before it saved
            anything.

    Raises:
        InputError: `--out` is there and not empty, or the disk refuses.

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
        if is_filled(path) and not (path.is_dir() and _is_newborn(path, begun or {})):
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


def _is_newborn(path: Path, begun: Mapping[str, str]) -> bool:
    """Tell whether a folder holds only files that a run begins with, or hidden ones.

    Hidden are those that a killed process was about to put in the place of others.
    """

    def belongs(entry: Path) -> bool:
        if entry.name in begun and entry.is_file():
            return entry.read_bytes() == begun[entry.name].encode()
        return entry.name.startswith(".") and entry.is_file()

    return bool(begun) and all(map(belongs, path.iterdir()))
