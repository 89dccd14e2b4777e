"""What every test shares."""

from __future__ import annotations

import signal

import torch

# Test processes run side by side, one a core: more threads in each would only get in each other's way.
torch.set_num_threads(1)

# A shell starts its background jobs with Ctrl-C ignored, and what they start inherits that. The tests send Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
