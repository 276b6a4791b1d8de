"""Whether code is run to be recorded, rather than for its values."""

import torch


def traced() -> bool:
    """Whether torch.compile, torch.export, the ONNX export or jit tracing is at work."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or tracing
