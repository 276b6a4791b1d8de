"""Convolutions that runtimes compute in floating point, made exact.

A convolution whose output is quantized again becomes an integer kernel. Where it goes to an addition, say, ONNX Runtime multiplies
dequantized numbers instead: products of scales, whose sums are rounded in an order of its own. A difference in the last digit
is enough to put the next activation on another level, and a network of few bits blows that up. Such a convolution is
given the integer codes themselves, whose sums float32 holds exactly, and its output is scaled afterwards, once.
"""

from typing import Any

import numpy as np

_PASSES_ON = {"Relu", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
"""Operations through which ONNX Runtime moves the quantization of an output back to the convolution."""


def scale_after_convolution(model: Any) -> None:
    """Rewrites the convolutions of an ONNX model, in place, whose output is not quantized.

    Only those with dequantized input and weights, one group if transposed; the result is the same but for rounding.
    """
    graph = _Graph(model.graph)
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "ConvTranspose") or graph.quantized_next(node.output[0]):
            continue
        sources = [graph.dequantizer(name) for name in node.input]
        grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        if None not in sources and not (grouped and node.op_type == "ConvTranspose"):
            graph.rewrite(node, sources)
    _remove_unread(model.graph)


def _remove_unread(graph: Any) -> None:
    """Takes out the dequantizers that nothing reads any more, then the tensors that only they read."""
    read = _read(graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and not read & set(node.output)]:
        graph.node.remove(node)
    read = _read(graph)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _read(graph: Any) -> set[str]:
    return {name for node in graph.node for name in node.input} | {value.name for value in graph.output}


class _Graph:
    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._maker = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._count = 0

    def quantized_next(self, name: str) -> bool:
        """Whether all that is done with a tensor is to quantize it, after operations that let a quantization pass."""
        readers = [node for node in self._graph.node if name in node.input]
        if not readers or name in self._outputs:
            return False
        return all(
            node.op_type == "QuantizeLinear" or (node.op_type in _PASSES_ON and self.quantized_next(node.output[0])) for node in readers
        )

    def dequantizer(self, name: str) -> Any:
        """The DequantizeLinear node with a constant scale that makes a tensor, or None."""
        node = self._maker.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" and self._constant(node.input[1]) is not None else None

    def rewrite(self, convolution: Any, sources: list[Any]) -> None:
        """Feeds codes to ``convolution`` and multiplies its output by the scales of input and weight."""
        from onnx import helper

        scales = [self._constant(source.input[1]) for source in sources[:2]]
        scale = (scales[0] * scales[1]).astype(np.float32).reshape(-1)
        dimensions = len(self._tensors[sources[1].input[0]].dims)
        shape = (-1, *[1] * (dimensions - 2))
        output, accumulated = convolution.output[0], self._name("accumulated")
        codes = [self._codes(source) for source in sources]
        for index, node in enumerate(codes):
            convolution.input[index] = node.output[0]
        convolution.output[0] = accumulated
        product = helper.make_node("Mul", [accumulated, self._add(scale.reshape(shape))], [output], name=self._name("rescale"))
        self._place(accumulated, codes, product)

    def _codes(self, source: Any) -> Any:
        from onnx import helper

        ones = self._add(np.ones_like(self._constant(source.input[1])))
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in source.attribute}
        inputs = [source.input[0], ones, *source.input[2:]]
        return helper.make_node("DequantizeLinear", inputs, [self._name("codes")], name=self._name("dequantize"), **attributes)

    def _place(self, output: str, before: list[Any], after: Any) -> None:
        """Puts nodes in front of and behind the one that makes ``output``; by its output, as a node may have no name."""
        position = next(index for index, node in enumerate(self._graph.node) if output in node.output)
        self._graph.node.insert(position + 1, after)
        for node in reversed(before):
            self._graph.node.insert(position, node)

    def _constant(self, name: str) -> Any:
        from onnx import numpy_helper

        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        maker = self._maker.get(name)
        if maker is None or maker.op_type != "Constant":
            return None
        return numpy_helper.to_array(next(attribute.t for attribute in maker.attribute if attribute.name == "value"))

    def _add(self, value: Any) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), self._name("scale"))
        self._graph.initializer.append(tensor)
        return str(tensor.name)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"exact.{kind}.{self._count}"
