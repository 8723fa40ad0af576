"""Embeddings and labels of recordings from ONNX files of `ssamba export`, without PyTorch.

model = OnnxEmbedder("onnx/")          # the folder of an export, or its waveform.onnx
model.embed("dog.wav").clip            # (D,)
model.predict("dog.wav")[0].best(3)    # of a classifier
"""

from ssamba_onnx.audio import AudioError
from ssamba_onnx.embedder import OnnxEmbedder
from ssamba_onnx.results import Embedding, Prediction

__all__ = ["AudioError", "Embedding", "OnnxEmbedder", "Prediction", "__version__"]
__version__ = "0.1.0"
