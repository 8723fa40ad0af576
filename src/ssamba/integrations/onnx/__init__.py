"""Models as ONNX files for onnxruntime (`pip install "ssamba[onnx]"`, docs/onnx.md).

    export_onnx("ssamba2-tiny", "onnx/")        # waveform.onnx, features.onnx, export.json

The graphs have standard operators of opset 18 only, and run in onnxruntime without torch: on servers, phones, browsers.
"""

from ssamba.integrations.onnx.check import Difference, ExportError
from ssamba.integrations.onnx.export import ExportedFile, ExportReport, Inputs, export_onnx
from ssamba.integrations.onnx.graph import Dtype

__all__ = ["Difference", "Dtype", "ExportError", "ExportReport", "ExportedFile", "Inputs", "export_onnx"]
