"""What all tests share: reproducible draws, and one thread, since threads slow small tensors down."""

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repository", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repository")
torch.set_num_threads(1)
# A shell starts its background jobs with Ctrl-C ignored, which they and all they start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
