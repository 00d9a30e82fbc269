"""Measure what files of somebody else's can do: thousands of mutants, checkpoints and bombs.

    python benchmarks/faults_files.py --mutants 10000 --checkpoints 1000

Files are read in child processes, bombs in one each, by the readers that the commands use. A file
has to be read, or refused by an `InputError` of one line (which a command ends with, and exit code
2), in less than 5 s of CPU time and 1 GiB above what the process began with. Meanwhile Python's audit
events tell of anything else that is done: code that is run, a module that is imported, a process that
is started, a connection, a file that is changed. The files are those of `tests/test_trust.py`, from
seeds; one that fails is kept in --keep. The figures go to --json.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from measuring import RESULTS, command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import test_trust as trust

from darts_bio.config import SearchConfig
from darts_bio.config.files import read_yaml
from darts_bio.errors import InputError
from darts_bio.runtime import hardware
from darts_bio.spaces import Nb201Table, load_genotype
from darts_bio.storage.checksum import DIGITS, digest
from darts_bio.training.trained import load_trained

CPU_S, MEMORY_MIB = 5.0, 1024.0
"""The most that a file may take: CPU seconds, and MiB above the process' own."""
PATIENCE_S = 120
"""Seconds after which a process that waits for a file is ended."""
TOGETHER = 100
"""How many mutants a process reads, one after the other, with what the ones before left behind."""

READ, REFUSED, LONG, RAISED, ACTED = range(5)
ENDS = ("read", "refused", "refused in a bad message", "traceback", "did more than read")

ACTS = frozenset(
    {
        *("exec", "import", "pickle.find_class", "ctypes.dlopen", "code.__new__"),
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
        *("subprocess.Popen", "pty.spawn", "os.kill", "os.putenv", "os.unsetenv"),
        *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request"),
        *("os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir"),
        *("os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"),
    }
)
"""The audit events of Python that no reader of a file has a reason for."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def resident_mib() -> float:
    """Return the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def give_memory_back() -> None:
    """Free garbage, and give what is free back to the system.

    A child process could else take memory that it has had from the beginning, and seem to take none.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)


class Watch:
    """Watches what this process does beside reading, from the first `acts` on.

    A process cannot get rid of an audit hook: for one that ends soon.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._is_on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._is_on and (event in ACTS or (event == "open" and args[2] & WRITING)):
            self.found.append(f"{event} {args}")

    @contextlib.contextmanager
    def acts(self) -> Iterator[list[str]]:
        """Note what is done within the context, in the list that it yields."""
        self.found, self._is_on = [], True
        try:
            yield self.found
        finally:
            self._is_on = False


def outcome(read: Callable[[], Any], watch: Watch) -> tuple[int, str]:
    """Return how reading ends, as a place in `ENDS`, and what was raised or done beside it."""
    with watch.acts() as acts:
        try:
            read()
            how, what = READ, ""
        except InputError as error:
            message = str(error)
            is_short_line = len(message) < 493 and message.isprintable()
            how, what = (REFUSED, "") if is_short_line else (LONG, message)
        except BaseException:
            how, what = RAISED, traceback.format_exc()
    return (ACTED, "\n".join(acts)) if acts else (how, what)


@dataclass(frozen=True)
class Trial:
    """A file that is read: its name in words, what reads it, what writes it before, and where."""

    name: str
    read: Callable[[], Any]
    write: Callable[[], Any] = lambda: None
    path: Path | None = None


def measured(trials: Sequence[Trial]) -> Iterator[tuple[Trial, str, float, float, str]]:
    """Read files in a child process, and those behind one that ends the process in another one.

    Yield for each how it ended, the CPU seconds, the MiB that the process has come to above what it
    began with, and what was raised or done.
    """
    rest = list(trials)
    give_memory_back()
    while rest:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            read_all(rest, writer)
        os.close(writer)
        with open(reader, encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
        _, status, usage = os.wait4(process, 0)
        if len(found) < len(rest):
            cpu_s = usage.ru_utime + usage.ru_stime - sum(each[1] for each in found)
            end = f"ended by {os.waitstatus_to_exitcode(status)}"
            found.append((end, cpu_s, usage.ru_maxrss / 1024, ""))
        for trial, each in zip(rest, found, strict=False):
            yield trial, *each
        rest = rest[len(found) :]


def read_all(trials: Sequence[Trial], writer: int) -> NoReturn:
    """Be the child process: read files, write a line about each, and end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    base, watch = resident_mib(), Watch()
    for trial in trials:
        trial.write()
        signal.alarm(PATIENCE_S)
        began = time.process_time()
        how, what = outcome(trial.read, watch)
        cpu_s = time.process_time() - began
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
        line = json.dumps((ENDS[how], cpu_s, mib, what)) + "\n"
        os.write(writer, line.encode())
    os._exit(0)


class Campaign:
    """The figures of one kind of file."""

    def __init__(self, kind: str, keep: Path) -> None:
        self.kind, self.keep = kind, keep
        self.ends: collections.Counter[str] = collections.Counter()
        self.cpu_s, self.mib = [0.0], [0.0]

    def read(self, trials: Sequence[Trial]) -> None:
        """Read files, and keep those that took too much or ended in anything but a refusal."""
        for trial, end, cpu_s, mib, what in measured(trials):
            self.ends[end] += 1
            self.cpu_s.append(cpu_s)
            self.mib.append(mib)
            if end in ENDS[:2] and cpu_s <= CPU_S and mib <= MEMORY_MIB:
                continue
            print(f"{self.kind} {trial.name}: {end}, {cpu_s:.1f} s, {mib:.0f} MiB", flush=True)
            print("\n".join(what.splitlines()[-1:])[:300], flush=True)
            trial.write()
            if trial.path is not None and trial.path.is_file():
                self.keep.mkdir(parents=True, exist_ok=True)
                stem = f"{self.kind}-{trial.name}".replace("/", "-")[:80]
                (self.keep / stem).write_bytes(trial.path.read_bytes())

    @property
    def is_within(self) -> bool:
        """Whether each file was read or refused, and took no more than it may."""
        ends_well = set(self.ends) <= set(ENDS[:2])
        return ends_well and max(self.cpu_s) <= CPU_S and max(self.mib) <= MEMORY_MIB

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            "files": self.kind,
            "number": sum(self.ends.values()),
            "ended": dict(self.ends),
            "most_cpu_seconds": round(max(self.cpu_s), 3),
            "most_mib": round(max(self.mib), 1),
            "all_cpu_seconds": round(sum(self.cpu_s), 1),
            "within": self.is_within,
        }

    def row(self) -> str:
        """Return the figures as a row of a Markdown table."""
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.items())
        files = sum(self.ends.values())
        return f"| {self.kind} | {files} | {ends} | {max(self.cpu_s):.2f} | {max(self.mib):.0f} |"


def mutants(folder: Path, keep: Path, count: int, seed: int) -> Iterator[Campaign]:
    """Read `count` mutants of the valid files, the same number of each."""
    for name, valid in trust.VALID.items():
        campaign, path = Campaign(f"mutants of {name}", keep), folder / name

        def mutant(number: int, name: str = name, valid: str = valid) -> bytes:
            return trust.mutated(valid.encode(), random.Random(f"{seed} {name} {number}"))

        in_turns(campaign, path, count // len(trust.VALID), mutant, trust.READERS[name])
        yield campaign


def checkpoints(folder: Path, keep: Path, count: int, seed: int) -> Campaign:
    """Read mutants of a checkpoint; half are changed where its tensors are described."""
    valid = trust.checkpoint(folder / "checkpoint.pt").read_bytes()
    described = valid.find(b"data.pkl"), valid.find(b"data/0")

    def mutant(number: int) -> bytes:
        rng = random.Random(f"{seed} {number}")
        if number % 2:
            content = trust.mutated(valid, rng)
        else:
            at = rng.randrange(*described)
            size = rng.randint(1, 8)
            content = valid[:at] + rng.randbytes(size) + valid[at + size :]
        # Whoever changes a file can change its checksum too.
        covered = content[:-DIGITS]
        return covered + digest(covered).encode()

    campaign = Campaign("checkpoints", keep)
    in_turns(campaign, folder / "mutant.pt", count, mutant, load_trained)
    return campaign


def in_turns(
    campaign: Campaign,
    path: Path,
    count: int,
    mutant: Callable[[int], bytes],
    read: Callable[[Path], Any],
) -> None:
    """Read mutants at `path`, `TOGETHER` in a process: a fork takes longer than most of them."""
    trials = [
        Trial(f"{number}", partial(read, path), lambda n=number: trust.write(path, mutant(n)), path)
        for number in range(count)
    ]
    for first in range(0, count, TOGETHER):
        campaign.read(trials[first : first + TOGETHER])


def bombs(folder: Path, keep: Path) -> Campaign:
    """Read files that are made to take time or memory, and such as are no files: each alone."""
    campaign = Campaign("bombs", keep)

    def read(name: str, path: Path, reader: Callable[[Path], Any]) -> None:
        campaign.read([Trial(name, partial(reader, path), path=path)])

    def read_options(path: Path) -> SearchConfig:
        return SearchConfig(**read_yaml(path, SearchConfig))

    for name, content in trust.BOMBS.items():
        read(name, trust.write(folder / "bomb.yaml", content), read_options)
    for bomb in trust.GENOTYPE_BOMBS:
        path = trust.write(folder / "bomb.json", str(bomb.values[0]))
        read(str(bomb.id), path, load_genotype)
    for number, (name, content) in enumerate(trust.TABLE_BOMBS):
        read(f"table {number}", trust.write(folder / name, content), Nb201Table)
    path = folder / "bomb.pt"
    sizes = {"channels": 2, "layers": 3, "num_classes": 2, "in_channels": 1}
    for form in trust.FORMS:
        read(str(form), trust.checkpoint(path, form=sizes | form), load_trained)
    for compressed, size, name in (
        (True, 10**9, "a/data/0"),
        (True, 10**8, "a/data.pkl"),
        (False, 17_000_000, "a/data.pkl"),
        (False, 1000, "a/data/0"),
    ):
        trust.archive(path, compressed, size, name)
        read(f"archive {name} {size}", path, load_trained)
    for name, call in trust.calls(folder / "done").items():
        read(f"a call of {name}", trust.checkpoint(path, network=call), load_trained)
    (folder / "odd").mkdir()
    for odd in trust.odd_files(folder / "odd"):
        for reader in (read_options, Nb201Table, load_genotype, load_trained):
            read(odd.name, odd, reader)
    return campaign


def import_all(folder: Path) -> None:
    """Import here what readers import as they read, which none of the processes then has to."""
    # Of archives' names, of pickles, and of JSON, whose encoding Python guesses.
    unicode = [f"utf_{bits}_{order}" for bits in (16, 32) for order in ("le", "be")]
    for encoding in ("cp437", "unicode_escape", "raw_unicode_escape", "ascii", "latin_1", *unicode):
        importlib.import_module(f"encodings.{encoding}")
    for name, valid in trust.VALID.items():
        trust.READERS[name](trust.write(folder / name, valid))
    load_trained(trust.checkpoint(folder / "checkpoint.pt"))


def all_campaigns(folder: Path, options: argparse.Namespace) -> Iterator[Campaign]:
    """Read all kinds of files, one kind after the other."""
    yield bombs(folder, options.keep)
    yield from mutants(folder, options.keep, options.mutants, options.seed)
    yield checkpoints(folder, options.keep, options.checkpoints, options.seed)


def main() -> int:
    """Run the campaign, print its table, and return 1 if a file did more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/faults-files"))
    parser.add_argument("--json", type=Path, default=RESULTS / "faults_files.json", metavar="FILE")
    options = parser.parse_args()
    print("| files | number | ended | most CPU seconds | most MiB above the base |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_all(folder)
        campaigns = []
        for campaign in all_campaigns(folder, options):
            print(campaign.row(), flush=True)
            campaigns.append(campaign)
    kept = {
        "command": command(),
        "hardware": hardware(torch.device("cpu")),
        "seed": options.seed,
        "limits": {"cpu_seconds": CPU_S, "mib": MEMORY_MIB},
        "campaigns": [campaign.figures() for campaign in campaigns],
    }
    options.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0 if all(campaign.is_within for campaign in campaigns) else 1


if __name__ == "__main__":
    sys.exit(main())
