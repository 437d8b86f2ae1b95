"""Fixed rearrangements of sixteen numbers, each an operation of its own for the kernels; see `simd`."""

from llvmlite import ir
from numba.extending import intrinsic

from nfc_gs.kernels.simd import LANES, Lanes

_ints = ir.VectorType(ir.IntType(32), LANES)


def pattern(order):
    """A function of two vectors: their lanes in this order, in which 16 to 31 name the second one's."""

    @intrinsic
    def rearrange(typing, x, y):
        def generate(context, builder, signature, values):
            return builder.shuffle_vector(values[0], values[1], ir.Constant(_ints, list(order)))

        return Lanes(Lanes, Lanes), generate

    return rearrange
