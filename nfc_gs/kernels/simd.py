"""Sixteen floats at a time for Numba: `<16 x float>` values that stay in registers.

Numba writes loops and trusts LLVM to vectorise them; compositing has too many branches for that. Here a vector is a
value of its own, `Lanes`, with the few operations compositing needs. LLVM splits it into whatever the machine has: one
AVX-512 register, two of AVX2, four of NEON. A comparison gives a `Mask`; `select` and `bits` are the only ways to use
one.

Arrays are contiguous float32 (`load`, `store`, ...) and are not bounds-checked: a caller sizes its buffers in
multiples of `LANES`.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_float = ir.FloatType()
_int8 = ir.IntType(8)
_int32 = ir.IntType(32)
_index = ir.IntType(types.intp.bitwidth)
_floats = ir.VectorType(_float, LANES)
_ints = ir.VectorType(_int32, LANES)
_flags = ir.VectorType(ir.IntType(1), LANES)
_quarter = ir.VectorType(_float, 4)
# Sums may be regrouped and signs of zero dropped; NaN and infinity keep their meaning.
_RELAXED = ("nsz", "contract", "reassoc", "arcp")


class LanesType(types.Type):
    """Numba's type of sixteen floats."""

    def __init__(self):
        super().__init__(name="Lanes")


class MaskType(types.Type):
    """Numba's type of sixteen truths."""

    def __init__(self):
        super().__init__(name="Mask")


Lanes = LanesType()
Mask = MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _floats)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _flags)


def _constant(value):
    return ir.Constant(_floats, [float(value)] * LANES)


def _spread(builder, scalar):
    vector = builder.insert_element(ir.Constant(_floats, ir.Undefined), scalar, _int32(0))
    return builder.shuffle_vector(vector, ir.Constant(_floats, ir.Undefined), ir.Constant(_ints, [0] * LANES))


def _call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _fma(builder, x, y, z):
    return _call(builder, "llvm.fma.v16f32", _floats, [x, y, z])


def _element(context, builder, kind, array, index):
    """The address of `array[index]`."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _vector_at(context, builder, kind, array, index, vector=_floats):
    """The address of the vector that starts at `array[index]`."""
    return builder.bitcast(_element(context, builder, kind, array, index), vector.as_pointer())


# --- memory ---------------------------------------------------------------------------------------------------------


@intrinsic
def load(typing, array, index):
    """`array[index : index + 16]`."""

    def generate(context, builder, signature, values):
        return builder.load(_vector_at(context, builder, array, values[0], values[1]), align=4)

    return Lanes(array, types.intp), generate


@intrinsic
def store(typing, array, index, lanes):
    """`array[index : index + 16] = lanes`."""

    def generate(context, builder, signature, values):
        builder.store(values[2], _vector_at(context, builder, array, values[0], values[1]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes), generate


@intrinsic
def broadcast(typing, array, index):
    """`array[index]` in every lane."""

    def generate(context, builder, signature, values):
        return _spread(builder, builder.load(_element(context, builder, array, values[0], values[1])))

    return Lanes(array, types.intp), generate


@intrinsic
def fill(typing, scalar):
    """One float32 in every lane."""

    def generate(context, builder, signature, values):
        return _spread(builder, values[0])

    return Lanes(types.float32), generate


@intrinsic
def prefetch(typing, array, index):
    """Asks for the line of memory around `array[index]`, any index, to be in the cache soon."""

    def generate(context, builder, signature, values):
        place = builder.bitcast(_element(context, builder, array, values[0], values[1]), _int8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _int32, _int32, _int32])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(call, [place, _int32(0), _int32(3), _int32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _arithmetic(operation):
    @intrinsic
    def apply(typing, x, y):
        def generate(context, builder, signature, values):
            return getattr(builder, operation)(values[0], values[1], flags=_RELAXED)

        return Lanes(Lanes, Lanes), generate

    return apply


add = _arithmetic("fadd")
subtract = _arithmetic("fsub")
multiply = _arithmetic("fmul")
divide = _arithmetic("fdiv")


@intrinsic
def fma(typing, x, y, z):
    """`x * y + z`, rounded once."""

    def generate(context, builder, signature, values):
        return _fma(builder, *values)

    return Lanes(Lanes, Lanes, Lanes), generate


@intrinsic
def fnma(typing, x, y, z):
    """`z - x * y`, rounded once."""

    def generate(context, builder, signature, values):
        return _fma(builder, builder.fneg(values[0]), values[1], values[2])

    return Lanes(Lanes, Lanes, Lanes), generate


@intrinsic
def sqrt(typing, x):
    """Square roots."""

    def generate(context, builder, signature, values):
        return _call(builder, "llvm.sqrt.v16f32", _floats, [values[0]])

    return Lanes(Lanes), generate


@intrinsic
def absolute(typing, x):
    """Magnitudes."""

    def generate(context, builder, signature, values):
        return _call(builder, "llvm.fabs.v16f32", _floats, [values[0]])

    return Lanes(Lanes), generate


# 2^f for |f| <= 1/2, relative error 8e-8 (fitted for the smallest largest relative error); constant term last.
_EXP2 = (0.001327647152, 0.009675541331, 0.05550713275, 0.2402211972, 0.6931469671, 1.000000072)


@intrinsic
def exp2(typing, x):
    """2^x to the precision of a float, for x in [-126, 127]; outside, some number of no meaning (select it away)."""

    def generate(context, builder, signature, values):
        # Not by adding and taking away 1.5 * 2^23: Numba's fast-math would cancel the two.
        whole = _call(builder, "llvm.rint.v16f32", _floats, [values[0]])
        part = builder.fsub(values[0], whole)
        power = _constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            power = _fma(builder, power, part, _constant(coefficient))
        # The whole number is added to the exponent field of the float.
        exponent = builder.shl(builder.fptosi(whole, _ints), ir.Constant(_ints, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(power, _ints), exponent), _floats)

    return Lanes(Lanes), generate


# --- choices --------------------------------------------------------------------------------------------------------


def _comparison(predicate):
    @intrinsic
    def compare(typing, x, y):
        def generate(context, builder, signature, values):
            return builder.fcmp_ordered(predicate, values[0], values[1])

        return Mask(Lanes, Lanes), generate

    return compare


at_least = _comparison(">=")
at_most = _comparison("<=")
above = _comparison(">")
below = _comparison("<")


def _extremum(predicate):
    @intrinsic
    def choose(typing, x, y):
        def generate(context, builder, signature, values):
            return builder.select(builder.fcmp_ordered(predicate, values[0], values[1]), values[0], values[1])

        return Lanes(Lanes, Lanes), generate

    return choose


minimum = _extremum("<")
maximum = _extremum(">")


@intrinsic
def select(typing, mask, x, y):
    """`x` where the mask holds, else `y`."""

    def generate(context, builder, signature, values):
        return builder.select(values[0], values[1], values[2])

    return Lanes(Mask, Lanes, Lanes), generate


@intrinsic
def both(typing, x, y):
    """Where both masks hold."""

    def generate(context, builder, signature, values):
        return builder.and_(values[0], values[1])

    return Mask(Mask, Mask), generate


@intrinsic
def bits(typing, mask):
    """The mask as a number: bit i is lane i."""

    def generate(context, builder, signature, values):
        return builder.zext(builder.bitcast(values[0], ir.IntType(LANES)), _int32)

    return types.uint32(Mask), generate


def _reduction(name):
    @intrinsic
    def reduce(typing, x):
        def generate(context, builder, signature, values):
            return _call(builder, name, _float, [values[0]])

        return types.float32(Lanes), generate

    return reduce


largest = _reduction("llvm.vector.reduce.fmax.v16f32")
smallest = _reduction("llvm.vector.reduce.fmin.v16f32")


# --- rearrangement --------------------------------------------------------------------------------------------------


def _shuffle(builder, x, y, order):
    return builder.shuffle_vector(x, y, ir.Constant(_ints, order))


def _within_quarters(pattern):
    """A shuffle of two vectors that does the same in each quarter (four lanes); 4..7 name the second vector's lanes."""
    return [4 * quarter + (p if p < 4 else p - 4 + LANES) for quarter in range(4) for p in pattern]


def _of_quarters(pattern):
    """A shuffle of two vectors by whole quarters; 4..7 name the second vector's quarters."""
    return [4 * quarter + lane for quarter in pattern for lane in range(4)]


def _transposed_quarters(builder, rows):
    """Each 4x4 quarter of four vectors transposed: lane 4 q + i of result c is lane 4 q + c of row i."""
    low = [_shuffle(builder, rows[i], rows[i + 1], _within_quarters((0, 4, 1, 5))) for i in (0, 2)]
    high = [_shuffle(builder, rows[i], rows[i + 1], _within_quarters((2, 6, 3, 7))) for i in (0, 2)]
    return [
        _shuffle(builder, pair[0], pair[1], _within_quarters(pattern))
        for pair in (low, high)
        for pattern in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


@intrinsic
def transpose(typing, array):
    """Transposes the 16 x 16 matrix in `array[0:256]`, in place."""

    def generate(context, builder, signature, values):
        places = [_vector_at(context, builder, array, values[0], _index(LANES * i)) for i in range(LANES)]
        rows = [builder.load(place, align=4) for place in places]
        groups = [_transposed_quarters(builder, rows[i : i + 4]) for i in range(0, LANES, 4)]
        for c in range(4):
            # Now the quarters change places: first by halves (free where a vector is two registers), then singly.
            first = [_shuffle(builder, groups[i][c], groups[i + 2][c], _of_quarters((0, 1, 4, 5))) for i in (0, 1)]
            second = [_shuffle(builder, groups[i][c], groups[i + 2][c], _of_quarters((2, 3, 6, 7))) for i in (0, 1)]
            for half, pair in enumerate((first, second)):
                for odd, pattern in enumerate(((0, 4, 2, 6), (1, 5, 3, 7))):
                    column = _shuffle(builder, pair[0], pair[1], _of_quarters(pattern))
                    builder.store(column, places[4 * (2 * half + odd) + c], align=4)
        return context.get_dummy_value()

    return types.void(array), generate


def _columns_to_rows(builder, columns):
    """For every lane i the four numbers (x[i], y[i], z[i], w[i]) as a vector of their own."""
    rows = _transposed_quarters(builder, columns)
    for lane in range(LANES):
        order = ir.Constant(ir.VectorType(_int32, 4), [lane // 4 * 4 + i for i in range(4)])
        yield lane, builder.shuffle_vector(rows[lane % 4], rows[lane % 4], order)


def _row_at(context, builder, array, value, starts, start_values, column, lane):
    """The address of the four numbers that lane's row has at the column."""
    start = builder.load(_element(context, builder, starts, start_values, _index(lane)))
    return _vector_at(context, builder, array, value, builder.add(start, column), _quarter)


@intrinsic
def add_columns(typing, array, starts, column, x, y, z, w):
    """For every lane i: `array[starts[i] + column :][:4] += x[i], y[i], z[i], w[i]`; lanes take their turn in order."""

    def generate(context, builder, signature, values):
        for lane, addend in _columns_to_rows(builder, values[3:]):
            place = _row_at(context, builder, array, values[0], starts, values[1], values[2], lane)
            builder.store(builder.fadd(builder.load(place, align=4), addend), place, align=4)
        return context.get_dummy_value()

    return types.void(array, starts, types.intp, Lanes, Lanes, Lanes, Lanes), generate


@intrinsic
def store_columns(typing, array, starts, column, x, y, z, w):
    """For every lane i: `array[starts[i] + column :][:4] = x[i], y[i], z[i], w[i]`; lanes take their turn in order."""

    def generate(context, builder, signature, values):
        for lane, row in _columns_to_rows(builder, values[3:]):
            place = _row_at(context, builder, array, values[0], starts, values[1], values[2], lane)
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return types.void(array, starts, types.intp, Lanes, Lanes, Lanes, Lanes), generate


@intrinsic
def load_columns(typing, array, starts, column):
    """(x, y, z, w) with, for every lane i, `x[i], y[i], z[i], w[i] = array[starts[i] + column :][:4]`."""

    def generate(context, builder, signature, values):
        places = [
            _row_at(context, builder, array, values[0], starts, values[1], values[2], lane) for lane in range(LANES)
        ]
        rows = [builder.load(place, align=4) for place in places]
        # Quarter q of the c-th vector is the row of lane 4 q + c, so that transposing the quarters gives columns.
        vectors = []
        for c in range(4):
            halves = [
                builder.shuffle_vector(
                    rows[q + c], rows[q + 4 + c], ir.Constant(ir.VectorType(_int32, 8), list(range(8)))
                )
                for q in (0, 8)
            ]
            vectors.append(builder.shuffle_vector(*halves, ir.Constant(_ints, list(range(LANES)))))
        return context.make_tuple(builder, signature.return_type, _transposed_quarters(builder, vectors))

    return types.UniTuple(Lanes, 4)(array, starts, types.intp), generate


@intrinsic
def copy_four(typing, array, index, source, place):
    """`array[index : index + 4] = source[place : place + 4]`."""

    def generate(context, builder, signature, values):
        four = builder.load(_vector_at(context, builder, source, values[2], values[3], _quarter), align=4)
        builder.store(four, _vector_at(context, builder, array, values[0], values[1], _quarter), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, source, types.intp), generate


@intrinsic
def add_four(typing, array, index, source, place):
    """`array[index : index + 4] += source[place : place + 4]`."""

    def generate(context, builder, signature, values):
        four = builder.load(_vector_at(context, builder, source, values[2], values[3], _quarter), align=4)
        target = _vector_at(context, builder, array, values[0], values[1], _quarter)
        builder.store(builder.fadd(builder.load(target, align=4), four), target, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, source, types.intp), generate
