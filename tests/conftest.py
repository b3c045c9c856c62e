"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on several threads crawl on a busy machine."""
    torch.set_num_threads(1)
