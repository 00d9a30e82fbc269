"""What all tests share: reproducible draws, and one thread, since threads slow small tensors down."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repository", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repository")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
