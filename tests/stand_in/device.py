"""The stand-in for a CUDA device: builds it, starts processes on it, and within these tells what
happened.

Built once for a version of PyTorch and of these sources, in a folder of the user's cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
LIBRARY = "libcuda.so.1"
"""The name by which others look for the driver, which the stand-in is too: loaded first, it is what
they find."""
SOURCES = (
    "stand_in.h",
    "runtime.c",
    "libraries.c",
    "libraries.py",
    "device.py",
    "crt/host_defines.h",
)


def why_not() -> str | None:
    """Say in a line what the stand-in lacks here; None if it can be built."""
    if not sys.platform.startswith("linux"):
        return "the stand-in for CUDA needs Linux"
    if not (torch.version.cuda or "").startswith("13."):
        return f"the stand-in needs a PyTorch built for CUDA 13, found {torch.__version__}"
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        return f"the stand-in is built with gcc and nm, and {missing[0]} is not there"
    absent = [
        header for header in ("cuda_runtime_api.h", "cudnn_graph.h") if not _folders_of(header)
    ]
    return (
        f"the stand-in needs {absent[0]} of NVIDIA's wheels, which is not there" if absent else None
    )


def _folders_of(header: str) -> list[Path]:
    site = Path(torch.__file__).parent.parent
    return sorted(path.parent for path in (site / "nvidia").glob(f"*/include/{header}"))


@functools.cache
def build() -> Path:
    """Return the folder of the library, which is built if it is not there. Raises RuntimeError if
    it cannot be.
    """
    sources = b"".join((HERE / name).read_bytes() for name in SOURCES)
    key = f"{torch.__version__}-{hashlib.blake2b(sources, digest_size=8).hexdigest()}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    done = cache / "darts_bio" / "stand_in" / key
    if (done / LIBRARY).is_file():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=done.parent) as scratch:
        folder = Path(scratch) / "built"
        folder.mkdir()
        _compile(folder)
        try:
            folder.rename(done)
        except OSError:  # another process was first
            if not (done / LIBRARY).is_file():
                raise
    return done


def _compile(folder: Path) -> None:
    from stand_in.libraries import stubs

    includes = [HERE, *_folders_of("cuda_runtime_api.h")[:1], *_folders_of("cudnn_graph.h")[:1]]
    compiler = ["gcc", "-O1", "-fPIC", "-pthread", *(f"-I{path}" for path in includes)]

    def gcc(*arguments: str) -> None:
        done = subprocess.run([*compiler, *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the stand-in for CUDA cannot be built:\n{done.stderr}")

    for name in ("runtime", "libraries"):
        gcc("-Wall", "-Werror", "-c", str(HERE / f"{name}.c"), "-o", f"{name}.o")
    written = [folder / "runtime.o", folder / "libraries.o"]
    (folder / "stubs.c").write_text(stubs(Path(torch.__file__).parent / "lib", written))
    gcc("-c", "stubs.c", "-o", "stubs.o")
    gcc(
        "-shared",
        f"-Wl,-soname,{LIBRARY}",
        "runtime.o",
        "libraries.o",
        "stubs.o",
        "-o",
        LIBRARY,
        "-ldl",
    )


def environment(devices: int = 1) -> dict[str, str]:
    """Return the variables of a process that runs on the stand-in."""
    paths = [str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "LD_PRELOAD": str(build() / LIBRARY),
        "STAND_IN_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


def start(*arguments: str, devices: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on the stand-in; options are those of `subprocess.run`."""
    command = [sys.executable, "-X", "faulthandler", *arguments]
    return subprocess.run(
        command, env=environment(devices), capture_output=True, text=True, **options
    )


# ------------------------------------------------------------------------------- within a process
# on the stand-in


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for name in ("counters", "kernels", "incidents"):
        getattr(library, f"stand_in_{name}").restype = ctypes.c_char_p
    return library


def counters() -> dict[str, int]:
    """Return what happened since the last call, by the names of `COUNTERS` in runtime.c."""
    lines = _library().stand_in_counters().decode().splitlines()
    return {name: int(number) for name, number in map(str.split, lines)}


def kernels() -> dict[str, tuple[int, int]]:
    """Return how often each kernel was launched outside captures, and how often recorded, since the
    last call, by its mangled name (`c++filt` makes it readable).
    """
    lines = _library().stand_in_kernels().decode().splitlines()
    found: dict[str, tuple[int, int]] = {}
    for launched, captured, name in (line.split(" ", 2) for line in lines):
        before = found.get(name, (0, 0))
        found[name] = (before[0] + int(launched), before[1] + int(captured))
    return found


def incidents() -> list[str]:
    """Return the violations ("cudaMalloc 900") and stray launches (a kernel's name and 0) since the
    last call.
    """
    return _library().stand_in_incidents().decode().splitlines()


@contextmanager
def no_waits() -> Iterator[None]:
    """Within it PyTorch raises where it would wait for the device."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
