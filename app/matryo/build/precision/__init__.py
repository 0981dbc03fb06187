"""How a product's weights are written in each precision.

`fp32` is a plain MatMul. `int8` multiplies bytes: weights have a scale for each column,
activations one for each row, so that no row depends on another. `q8` and `q4` keep weights in
blocks of 32 along a row, each with a scale of its own, for `MatMulNBits`, which rounds each
row of activations by itself, in the same blocks. In all of them a text's vector does not
depend on the other texts of its batch.
"""

from matryo.build.precision.products import Operand, Products
from matryo.build.precision.quantize import quantize_blocks, quantize_rows

__all__ = ["Operand", "Products", "quantize_blocks", "quantize_rows"]
