"""What all tests share."""

import pytest
import torch
from hypothesis import settings

# The same examples in every run: what passes here passes on every machine.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on several threads crawl on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """Networks that a test makes start from the same parameters in every run."""
    torch.manual_seed(0)
