"""Array kernels on the way from a model's routers to a recording, each with a torch reference beside it.

They know tensors only: no model, no run, nothing of moe_probe.
"""

from moe_probe_kernels.pack import Packed, pack

__all__ = ["Packed", "pack"]
