"""Settings that all tests share."""

import pytest
from hypothesis import settings

# No deadline: a machine that is busy with something else is no failure. The same examples at every run: a failure can be repeated.
settings.register_profile("bitalloc", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("bitalloc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a CUDA device are skipped where there is none; PyTorch is only loaded to find out if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
