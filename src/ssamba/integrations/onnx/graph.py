"""Build an ONNX graph: calls make nodes, and values are names of tensors.

    g = Graph()
    y = g("Relu", g("Add", "x", 1.0))       # constants are NumPy arrays, numbers or lists

Weights are arrays that `Graph.fold` combines while the graph is built. In a graph that stores float16 or int8, they are
tensors that nodes convert and combine: the runtime computes these nodes once, when it loads the model, so only the
parameters themselves are rounded, and the results of a clip do not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ssamba import __version__

Array: TypeAlias = np.ndarray[Any, Any]
Value: TypeAlias = str | Array | np.generic | float | int | Sequence[int]
"""Name of a tensor, or a constant: floats become float32, integers int64."""
Weight: TypeAlias = str | Array

Dtype: TypeAlias = Literal["float32", "float16", "int8"]
"""How weights are stored; every graph computes in float32."""

OPSET = 18
_IR_VERSION = 8  # of opset 18, so that runtimes of 2023 read the file
_LARGE = 64  # elements from which on a constant is not shared
_FOLDS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Mul": np.multiply,
    "MatMul": np.matmul,
    "Exp": np.exp,
    "Neg": np.negative,
    "Reshape": np.reshape,
    "Transpose": lambda x, perm: np.transpose(x, perm),
    "Gather": lambda x, index, axis: np.take(x, index, axis),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
}
_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class Graph:
    """A graph under construction."""

    def __init__(self, dtype: Dtype = "float32") -> None:
        """Start a graph whose weights are stored in a dtype."""
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def __call__(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Add a node of one output, and return its name; an empty name omits an optional input."""
        return self.many(kind, 1, *inputs, **attributes)[0]

    def many(self, kind: str, count: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Add a node of `count` outputs, and return their names."""
        names = [self.name(value) for value in inputs]
        outputs = [self._new(kind) for _ in range(count)]
        self.nodes.append(helper.make_node(kind, names, outputs, name=outputs[0], **attributes))
        return outputs

    def name(self, value: Value) -> str:
        """Return the name of a value; a constant becomes an initializer, equal small ones the same."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        if array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32)
        key = str(array.dtype), array.shape, array.tobytes() if array.size < _LARGE else b""
        if array.size >= _LARGE or key not in self._shared:
            name = self._new("constant")
            self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
            self._shared[key] = name
            return name
        return self._shared[key]

    def weight(self, tensor: Tensor) -> Weight:
        """Return a parameter, for `fold` or a node."""
        array: Array = tensor.detach().cpu().float().numpy()
        return array if self.dtype == "float32" else self.cast(array.astype(np.float16), "float32")

    def matrix(self, tensor: Tensor) -> Weight:
        """Return the weights of a product, (outputs, ...), as `weight`; int8 has a scale for each output."""
        if self.dtype != "int8":
            return self.weight(tensor)
        array: Array = tensor.detach().cpu().float().numpy()
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True)
        scale = np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(127)
        return self("Mul", self.cast(np.rint(array / scale).astype(np.int8), "float32"), scale)

    def fold(self, kind: str, *values: Weight | float | np.int64 | Sequence[int], **attributes: Any) -> Weight:
        """Combine weights as a node does: now, or where a value is not known yet, when the model is loaded."""
        if any(isinstance(value, str) for value in values):
            return self(kind, *values, **attributes)
        folded = _FOLDS[kind](*values, **attributes)
        return np.asarray(folded, np.float32)

    def cast(self, value: Value, dtype: str) -> str:
        """Convert a tensor to a dtype of NumPy."""
        return self("Cast", value, to=_ELEMENT_TYPES[dtype])

    def dim(self, value: str, axis: int) -> str:
        """Return the size of an axis, (1,)."""
        return self("Shape", value, start=axis, end=axis + 1)

    def shape(self, *sizes: str | int) -> str:
        """Join sizes, names of (1,) or numbers, to a shape."""
        return self("Concat", *(size if isinstance(size, str) else [size] for size in sizes), axis=0)

    def steps(self, count: str) -> str:
        """Return 0, 1, ..., count - 1 as int64; `count` is (1,)."""
        return self("Range", np.int64(0), self("Squeeze", count), np.int64(1))

    def input(self, name: str, dtype: str, shape: Sequence[str | int]) -> str:
        """Declare an input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[str | int]) -> None:
        """Declare an output of the model."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))

    def model(self, name: str) -> onnx.ModelProto:
        """Return the checked model."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="ssamba", producer_version=__version__)
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model

    def _new(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"
