"""What every test shares."""

from __future__ import annotations

import torch

# Test processes run side by side, one a core: more threads in each would only get in each other's way.
torch.set_num_threads(1)
