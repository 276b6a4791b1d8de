"""Deploying a quantized model: integer layers, ONNX in quantize-dequantize form, checkpoints, and the check that all agree."""

from bitalloc.export.base import DeployedLayer
from bitalloc.export.checkpoint import load_checkpoint, save_checkpoint
from bitalloc.export.deploy import Deployed, deploy
from bitalloc.export.onnx_file import export_onnx
from bitalloc.export.verify import Agreement, onnx_session, require_onnx, verify_onnx

__all__ = [
    "Agreement",
    "Deployed",
    "DeployedLayer",
    "deploy",
    "export_onnx",
    "load_checkpoint",
    "onnx_session",
    "require_onnx",
    "save_checkpoint",
    "verify_onnx",
]
