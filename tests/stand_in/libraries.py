"""Writes the C of all that PyTorch imports from CUDA's libraries and that `runtime.c` and
`libraries.c` leave out.

What there is to import differs by version of PyTorch, so its own libraries are asked.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

IMPORTING = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libcaffe2_nvrtc.so")
OURS = re.compile(r"(cublas|cudnn|cuda(?=[A-Z])|cu(?=[A-Z])(?!File))\w+")
"""Names of the runtime, the driver, cuBLAS and cuDNN. (cuFile, cuFFT, cuSPARSE, NCCL and others
stay as they are: they are loaded, and not called.)"""
LEFT = re.compile(r"cu(blas|dnn)\w*(Version|ErrorString|StatusString|StatusName)\w*")
"""What needs no GPU, and is left to the real library."""

CREATES = re.compile(r"cu(blas|dnn)(Lt)?\w*Create\w*")
COMPUTES = re.compile(
    r"cublas\w*(gemm|gemv|dot|trsm|geam|getr|gels|Gemm|Dot)\w*"
    r"|cudnnBackendExecute|cudnn(?!Get|Set)\w*(Forward|Backward|CTCLoss|Sampler)\w*",
)
PREAMBLE = """\
#include <stdlib.h>
// As in stand_in.h, whose prototypes of CUDA's own functions the stubs would contradict.
typedef struct { void *stream; } Handle;
int stand_in_launch(const void *key, const char *name, void *stream);
int stand_in_missing(const char *name);
"""
FORMS = (
    # Objects whose inside nobody sees, except for a handle's stream.
    (CREATES, "int {name}(void **out) {{ *out = calloc(1, 4096); return 0; }}"),
    (
        COMPUTES,
        'int {name}(Handle *handle) {{ return stand_in_launch({name}, "{name}", handle->stream); }}',
    ),
    (re.compile("cublas|cudnn"), "int {name}(void) {{ return 0; }}"),
    (re.compile(""), 'int {name}(void) {{ return stand_in_missing("{name}"); }}'),
)


def names(file: Path, kind: str) -> set[str]:
    """Return the symbols of an object or library: `kind` is --undefined-only or --defined-only."""
    dynamic = ["-D"] if file.suffix == ".so" else []
    listed = subprocess.run(
        ["nm", *dynamic, kind, str(file)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.strip()}


def stubs(libraries: Path, written: Iterable[Path]) -> str:
    """Return C for what the libraries of PyTorch in this folder import and the objects `written` do
    not define.
    """
    wanted: set[str] = set().union(
        *(names(libraries / file, "--undefined-only") for file in IMPORTING)
    )
    wanted -= set().union(*(names(file, "--defined-only") for file in written))
    own = [name for name in sorted(wanted) if OURS.fullmatch(name) and not LEFT.fullmatch(name)]
    forms = [next(form for pattern, form in FORMS if pattern.match(name)) for name in own]
    return PREAMBLE + "".join(
        f"{form.format(name=name)}\n" for name, form in zip(own, forms, strict=True)
    )
