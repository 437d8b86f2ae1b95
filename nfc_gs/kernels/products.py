"""Small products of matrices whose sums stay in registers until they are done."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nfc_gs.kernels.simd import LANES

# So many splats have their turn at once: each number of what they are multiplied by is then read once for all of them.
AT_ONCE = 4


def _add_products(*widths):
    """`AT_ONCE` rows of weights times matrices of pixels and channels, one of each width; the lanes are channels."""

    @intrinsic
    def add(typing, weights, first, values, block, sums, rows, column):
        def generate(context, builder, signature, arguments):
            index, whole = ir.IntType(types.intp.bitwidth), ir.IntType(32)
            weight, value, total = (
                context.make_array(array)(context, builder, arguments[place]).data
                for place, array in ((0, weights), (2, values), (4, sums))
            )

            def element(data, start, further):
                return builder.gep(data, [builder.add(start, index(further))])

            def spread(number, width):
                kind = ir.VectorType(ir.FloatType(), width)
                none, order = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(whole, width), [0] * width)
                return builder.shuffle_vector(builder.insert_element(none, number, whole(0)), none, order)

            kinds = [ir.VectorType(ir.FloatType(), width) for width in widths]
            added = {
                (part, k): ir.Constant(kind, [0.0] * kind.count)
                for part, kind in enumerate(kinds)
                for k in range(AT_ONCE)
            }
            for pixel in range(LANES):
                factors = [builder.load(element(weight, arguments[1], k * LANES + pixel)) for k in range(AT_ONCE)]
                for part, kind in enumerate(kinds):
                    place = element(value, arguments[3], LANES * sum(widths[:part]) + pixel * kind.count)
                    channels = builder.load(builder.bitcast(place, kind.as_pointer()), align=4)
                    name = f"llvm.fma.v{kind.count}f32"
                    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
                    for k, factor in enumerate(factors):
                        added[part, k] = builder.call(fma, [spread(factor, kind.count), channels, added[part, k]])
            for k in range(AT_ONCE):
                row = builder.add(builder.extract_value(arguments[5], k), arguments[6])
                for part, kind in enumerate(kinds):
                    place = builder.bitcast(element(total, row, sum(widths[:part])), kind.as_pointer())
                    before = builder.load(place, align=4)
                    builder.store(builder.fadd(before, added[part, k]), place, align=4)
            return context.get_dummy_value()

        number = types.intp
        return types.void(weights, number, values, number, sums, rows, number), generate

    return add


# `add_eight_products(weights, first, values, block, sums, rows, column)`: for each of AT_ONCE splats, whose rows in `sums`
# begin where the tuple `rows` says, adds to the eight numbers from `column` on its weights of 16 pixels, those from
# weights[first + 16 k] on, times the matrix of 16 pixels and eight channels in `values` from `block` on. The others do so with a
# matrix of sixteen channels, and with one of sixteen and, behind it, one of eight.
add_eight_products, add_sixteen_products, add_both_products = _add_products(8), _add_products(16), _add_products(16, 8)
