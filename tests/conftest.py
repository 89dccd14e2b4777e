"""What every test shares."""

from __future__ import annotations

import os
import signal

import pytest
import torch

# Test processes run side by side, one a core: more threads in each would only get in each other's way.
torch.set_num_threads(1)

# A shell starts its background jobs with Ctrl-C ignored, and what they start inherits that. The tests send Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests expect is what a processor does, on machines with a GPU as well, but for those marked `gpu`.
_is_available, _visible = torch.cuda.is_available, os.environ.get("CUDA_VISIBLE_DEVICES")
_GPU = _is_available()
torch.cuda.is_available = lambda: False
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def _gpu_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu") is None:
        return
    if not _GPU:
        pytest.skip("needs an NVIDIA GPU")
    monkeypatch.setattr(torch.cuda, "is_available", _is_available)
    if _visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", _visible)
