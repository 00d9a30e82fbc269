"""Measure what files of somebody else's can do: thousands of mutants, checkpoints and bombs.

    python benchmarks/faults_files.py --mutants 10000 --checkpoints 1000

Each file is read in a process of its own, by the reader that the commands use. It has to be read, or
refused by an `InputError` of one line, in less than 5 s of CPU time and 1 GiB above what the process
began with. The files are those of `tests/test_trust.py`, from seeds; one that fails is kept in --keep.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import test_trust as trust

from darts_bio.config import SearchConfig
from darts_bio.config.files import read_yaml
from darts_bio.errors import InputError
from darts_bio.spaces import Nb201Table, load_genotype
from darts_bio.storage.checksum import DIGITS, digest
from darts_bio.training.trained import load_trained

CPU_S, MEMORY_MIB = 5.0, 1024.0
"""The most that a file may take: CPU seconds, and MiB above the process' own."""
PATIENCE_S = 120
"""Seconds after which a process that waits for a file is ended."""

READ, REFUSED, LONG, RAISED = range(4)
ENDS = ("read", "refused", "refused in a bad message", "traceback")


def resident_mib() -> float:
    """Return the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def outcome(read: Callable[[], Any], log: Path, peak: Path) -> int:
    """Return how reading ends, as a place in `ENDS`.

    What is raised goes into the log, and the MiB that the reading took at most into the file `peak`.
    """
    base = resident_mib()
    try:
        try:
            read()
        finally:
            used_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
            peak.write_text(f"{used_mib}")
    except InputError as error:
        message = str(error)
        return REFUSED if len(message) < 493 and message.isprintable() else LONG
    except BaseException:
        log.write_text(traceback.format_exc())
        return RAISED
    return READ


def measured(read: Callable[[], Any], log: Path) -> tuple[str, float, float]:
    """Read in a child process; return how that ended, its CPU seconds and the MiB it took."""
    peak = log.with_name("peak")
    peak.write_text("nan")
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_S)
        os._exit(outcome(read, log, peak))
    _, status, usage = os.wait4(process, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    end = ENDS[code] if 0 <= code < len(ENDS) else f"ended by {code}"
    return end, cpu_s, float(peak.read_text())


class Campaign:
    """The figures of one kind of file."""

    def __init__(self, kind: str, folder: Path, keep: Path) -> None:
        self.kind, self.folder, self.keep = kind, folder, keep
        self.ends: collections.Counter[str] = collections.Counter()
        self.cpu_s, self.mib = [0.0], [0.0]

    def try_file(self, name: str, read: Callable[[], Any], path: Path | None = None) -> None:
        """Read a file, and keep it where it took too much or ended in anything but a refusal."""
        log = self.folder / "traceback"
        log.unlink(missing_ok=True)
        end, cpu_s, mib = measured(read, log)
        self.ends[end] += 1
        self.cpu_s.append(cpu_s)
        self.mib.append(mib)
        if end not in ENDS[:2] or cpu_s > CPU_S or mib > MEMORY_MIB:
            print(f"{self.kind} {name}: {end}, {cpu_s:.1f} s, {mib:.0f} MiB", flush=True)
            self.keep.mkdir(parents=True, exist_ok=True)
            stem = f"{self.kind}-{name}".replace("/", "-")[:80]
            if log.exists():
                print(log.read_text().splitlines()[-1][:300], flush=True)
            if path is not None and path.is_file():
                (self.keep / stem).write_bytes(path.read_bytes())

    def row(self) -> str:
        """Return the figures as a row of a Markdown table."""
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.items())
        files = sum(self.ends.values())
        return f"| {self.kind} | {files} | {ends} | {max(self.cpu_s):.2f} | {max(self.mib):.0f} |"


def mutants(folder: Path, keep: Path, count: int, seed: int) -> list[Campaign]:
    """Read `count` mutants of the valid files, the same number of each."""
    campaigns = []
    for name, valid in trust.VALID.items():
        campaign, path = Campaign(f"mutants of {name}", folder, keep), folder / name
        for number in range(count // len(trust.VALID)):
            rng = random.Random(f"{seed} {name} {number}")
            trust.write(path, trust.mutated(valid.encode(), rng))
            campaign.try_file(f"{number}", lambda n=name, p=path: trust.READERS[n](p), path)
        print(campaign.row(), flush=True)
        campaigns.append(campaign)
    return campaigns


def checkpoints(folder: Path, keep: Path, count: int, seed: int) -> list[Campaign]:
    """Read mutants of a checkpoint; half are changed where its tensors are described."""
    valid = trust.checkpoint(folder / "checkpoint.pt").read_bytes()
    campaign, path = Campaign("checkpoints", folder, keep), folder / "mutant.pt"
    described = valid.find(b"data.pkl"), valid.find(b"data/0")
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        if number % 2:
            content = trust.mutated(valid, rng)
        else:
            at = rng.randrange(*described)
            size = rng.randint(1, 8)
            content = valid[:at] + rng.randbytes(size) + valid[at + size :]
        # Whoever changes a file can change its checksum too.
        covered = content[:-DIGITS]
        trust.write(path, covered + digest(covered).encode())
        campaign.try_file(f"{number}", lambda: load_trained(path), path)
    print(campaign.row(), flush=True)
    return [campaign]


def bombs(folder: Path, keep: Path) -> list[Campaign]:
    """Read files that are made to take time or memory, and such as are no files."""
    campaign = Campaign("bombs", folder, keep)
    path = folder / "bomb.yaml"
    for name, content in trust.BOMBS.items():
        trust.write(path, content)
        campaign.try_file(name, lambda p=path: SearchConfig(**read_yaml(p, SearchConfig)), path)
    for bomb in trust.GENOTYPE_BOMBS:
        path = trust.write(folder / "bomb.json", str(bomb.values[0]))
        campaign.try_file(str(bomb.id), lambda p=path: load_genotype(p), path)
    for number, (name, content) in enumerate(trust.TABLE_BOMBS):
        path = trust.write(folder / name, content)
        campaign.try_file(f"table {number}", lambda p=path: Nb201Table(p), path)
    sizes = {"channels": 2, "layers": 3, "num_classes": 2, "in_channels": 1}
    for form in trust.FORMS:
        path = trust.checkpoint(folder / "bomb.pt", form=sizes | form)
        campaign.try_file(str(form), lambda p=path: load_trained(p), path)
    for compressed, size, name in (
        (True, 10**9, "a/data/0"),
        (True, 10**8, "a/data.pkl"),
        (False, 17_000_000, "a/data.pkl"),
        (False, 1000, "a/data/0"),
    ):
        path = trust.archive(folder / "bomb.pt", compressed, size, name)
        campaign.try_file(f"archive {name} {size}", lambda p=path: load_trained(p), path)
    (folder / "odd").mkdir()
    for odd in trust.odd_files(folder / "odd"):
        for reader in (
            lambda p: read_yaml(p, SearchConfig),
            Nb201Table,
            load_genotype,
            load_trained,
        ):
            campaign.try_file(odd.name, lambda r=reader, p=odd: r(p))
    print(campaign.row(), flush=True)
    return [campaign]


def main() -> int:
    """Run the campaign, print its table, and return 1 if a file did more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("runs/faults-files"))
    options = parser.parse_args()
    print("| files | number | ended | most CPU seconds | most MiB above the base |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        campaigns = bombs(folder, options.keep)
        campaigns += mutants(folder, options.keep, options.mutants, options.seed)
        campaigns += checkpoints(folder, options.keep, options.checkpoints, options.seed)
    within = all(
        max(c.cpu_s) <= CPU_S and max(c.mib) <= MEMORY_MIB and set(c.ends) <= set(ENDS[:2])
        for c in campaigns
    )
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
