"""Scratch memory for kernels, laid out as the cache is."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from nfc_gs.kernels.simd import LANES, Lanes


@register_jitable
def empty_lines(count):
    """An array of `count` float32 of any content that begins with a line of the cache.

    Numba's own begin in the middle of one half the time, so that sixteen of them lie in two lines.
    """
    memory = np.empty(count + LANES, np.float32)
    first = np.int64((np.uint64(0) - np.uint64(memory.ctypes.data)) // np.uint64(4) % np.uint64(LANES))
    return memory[first : first + count]


@register_jitable
def zero_lines(count):
    """`empty_lines` of zeros."""
    memory = empty_lines(count)
    memory[:] = np.float32(0)
    return memory


@intrinsic
def write_set_bits(typing, array, index, word, first):
    """`array[index :] = first + i` (all uint32) for every set bit i of the 16 bits `word`, in order; their number.

    What comes after them in the sixteen places from `index` on has no meaning.
    """

    def generate(context, builder, signature, values):
        whole, half = ir.IntType(32), ir.IntType(16)
        kind = ir.VectorType(whole, LANES)
        none = ir.Constant(kind, ir.Undefined)
        begin = builder.insert_element(none, values[3], whole(0))
        spread = builder.shuffle_vector(begin, none, ir.Constant(kind, [0] * LANES))
        lanes = builder.add(spread, ir.Constant(kind, list(range(LANES))))
        mask = builder.bitcast(values[2], ir.VectorType(ir.IntType(1), LANES))
        # In a register: to compress straight into memory is slow on AMD's processors.
        function = ir.FunctionType(kind, [kind, mask.type, kind])
        name = "llvm.experimental.vector.compress.v16i32"
        packed = builder.call(cgutils.get_or_insert_function(builder.module, function, name), [lanes, mask, none])
        data = context.make_array(array)(context, builder, values[0]).data
        builder.store(packed, builder.bitcast(builder.gep(data, [values[1]]), kind.as_pointer()), align=4)
        count = cgutils.get_or_insert_function(builder.module, ir.FunctionType(half, [half]), "llvm.ctpop.i16")
        return builder.zext(builder.call(count, [values[2]]), ir.IntType(types.intp.bitwidth))

    return types.intp(array, types.intp, types.uint16, types.uint32), generate


@intrinsic
def weighted_sum(typing, rows, array, index):
    """The sum of `array[index + i] * rows[i]` for i in 0 .. 15."""

    def generate(context, builder, signature, values):
        kind = ir.VectorType(ir.FloatType(), LANES)
        none, order = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), "llvm.fma.v16f32")
        data = context.make_array(array)(context, builder, values[1]).data
        # Two sums, so that one product need not wait for the other.
        sums = [ir.Constant(kind, [0.0] * LANES)] * 2
        for i in range(LANES):
            factor = builder.load(builder.gep(data, [builder.add(values[2], values[2].type(i))]))
            spread = builder.shuffle_vector(builder.insert_element(none, factor, ir.IntType(32)(0)), none, order)
            sums[i % 2] = builder.call(fma, [builder.extract_value(values[0], i), spread, sums[i % 2]])
        return builder.fadd(*sums)

    return Lanes(rows, array, types.intp), generate


def _copy_first(most):
    @intrinsic
    def copy(typing, array, index, source, place, count):
        def generate(context, builder, signature, values):
            kind, whole = ir.VectorType(ir.FloatType(), most), ir.IntType(32)
            wholes = ir.VectorType(whole, most)
            none, order = ir.Constant(wholes, ir.Undefined), ir.Constant(wholes, [0] * most)
            count = builder.insert_element(none, builder.trunc(values[4], whole), whole(0))
            wanted = builder.shuffle_vector(count, none, order)
            mask = builder.icmp_signed("<", ir.Constant(wholes, list(range(most))), wanted)
            target, origin = (
                builder.bitcast(builder.gep(data(context, builder).data, [at]), kind.as_pointer())
                for data, at in (
                    (lambda c, b: c.make_array(array)(c, b, values[0]), values[1]),
                    (lambda c, b: c.make_array(source)(c, b, values[2]), values[3]),
                )
            )
            function = ir.FunctionType(kind, [origin.type, whole, mask.type, kind])
            load = cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.load.v{most}f32.p0")
            numbers = builder.call(load, [origin, whole(4), mask, ir.Constant(kind, [0.0] * most)])
            builder.store(numbers, target, align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, source, types.intp, types.intp), generate

    return copy


# `copy_first_four(array, index, source, place, count)`: `array[index : index + 4]` are the `count` numbers, at most four, of
# `source` from `place` on, and then zeros. Nothing beyond these is read. The other one does so with sixteen.
copy_first_four, copy_first_eight, copy_first_sixteen = map(_copy_first, (4, 8, LANES))
