"""What all tests share: reproducible draws, and one thread, since threads slow small tensors down.

DARTS_BIO_TEST_THREADS=2 runs them with two (`instruction_sets.sh` does).
"""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repository",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")
threads = os.environ.get("DARTS_BIO_TEST_THREADS", "1")
torch.set_num_threads(int(threads))
os.environ.setdefault("OMP_NUM_THREADS", threads)  # of the processes that tests start
# Tests start many processes. What the first has compiled of the libraries' Python the others read,
# also where the environment forbids to write it, or where these lie: that is half of a start.
if "PYTHONPYCACHEPREFIX" not in os.environ:
    os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="bytecode-")
    atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], ignore_errors=True)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell starts its background jobs with Ctrl-C ignored, which they and all they start would
# inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Have PyTorch make float64 by default, and seed it."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
