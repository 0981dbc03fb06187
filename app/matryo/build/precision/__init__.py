"""How a graph multiplies activations by weights in each precision.

`fp32` is a plain MatMul. `int8` multiplies bytes: each column of weights `(in, out)` has a scale,
and each row of activations has one. `q8` and `q4` keep weights in blocks of 32 along a row of
`(out, in)`, each with its own scale, for ORT's `MatMulNBits`. That operator rounds each row of
activations in blocks of 32 too. In every precision a row of activations is rounded by its own
values only, so a text's vector does not depend on the other texts of its batch.
"""

from matryo.build.precision.fused import Activation, Fused
from matryo.build.precision.panels import LANES
from matryo.build.precision.products import Operand, Products
from matryo.build.precision.quantize import quantize_blocks, quantize_rows

__all__ = [
    "LANES",
    "Activation",
    "Fused",
    "Operand",
    "Products",
    "quantize_blocks",
    "quantize_rows",
]
