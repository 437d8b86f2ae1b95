"""Sixteen floats at a time for Numba: `<16 x float>` values that stay in registers.

Numba writes loops and trusts LLVM to vectorise them; compositing has too many branches for that. Here a vector is a
value of its own, `Lanes`, with the few operations that are needed. LLVM splits it into whatever the machine has: one
AVX-512 register, two of AVX2, four of NEON. A comparison gives a `Mask`; `&`, `select` and `bits` are the only ways to use
one.

Between lanes, and between lanes and one float32, which is then in every lane, there are the operators + - * / >= <= > <,
and & between masks.

Arrays are contiguous float32 (`load`, `store`, ...) and are not bounds-checked: a caller sizes its buffers in
multiples of `LANES`.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_jitable, register_model

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


def _pair_of(builder, function, x, y):
    """The result of an operation on two numbers that are lanes or a scalar each."""
    return function(*(value if value.type == _floats else _spread(builder, value) for value in (x, y)))


def _define(symbol, result, generate, kinds):
    """Makes a Python operator one between values of these kinds, at least one of which is of the first."""

    @infer_global(symbol)
    class Template(AbstractTemplate):
        key = symbol

        def generic(self, arguments, settings):
            if len(arguments) == 2 and kinds[0] in arguments and all(kind in kinds for kind in arguments):
                return signature(result, *arguments)
            return None

    for x in kinds:
        for y in kinds:
            if kinds[0] in (x, y):
                lower_builtin(symbol, x, y)(generate)


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
def store_whole(typing, array, index, lanes):
    """`array[index : index + 16] = lanes`, an array of int32."""

    def generate(context, builder, signature, values):
        place = _vector_at(context, builder, array, values[0], values[1], _ints)
        builder.store(builder.fptosi(values[2], _ints), place, align=4)
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


def _define_arithmetic(symbol, operation):
    def generate(context, builder, signature, values):
        return _pair_of(builder, lambda x, y: getattr(builder, operation)(x, y, flags=_RELAXED), *values)

    _define(symbol, Lanes, generate, (Lanes, types.float32))


for _symbol, _operation in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define_arithmetic(_symbol, _operation)


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


def _function(name):
    @intrinsic
    def apply(typing, x):
        def generate(context, builder, signature, values):
            return _call(builder, f"llvm.{name}.v16f32", _floats, [values[0]])

        return Lanes(Lanes), generate

    return apply


sqrt = _function("sqrt")
absolute = _function("fabs")
ceil = _function("ceil")
floor = _function("floor")


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


# 2 log2(e) / (2 k + 1) for k = 3 .. 0: log2 m = 2 log2(e) atanh((m - 1) / (m + 1)). The next term is below 4e-9.
_LOG2 = tuple(float(2 / np.log(2) / odd) for odd in (9, 7, 5, 3, 1))
_ROOT_OF_HALF = 0x3F3504F3  # the bits of sqrt(1/2)


@intrinsic
def log2(typing, x):
    """The logarithm to base 2 of normal positive numbers, to 2e-7; of others some number of no meaning."""

    def generate(context, builder, signature, values):
        bits = builder.bitcast(values[0], _ints)
        # x = m 2^e with m between sqrt(1/2) and sqrt(2).
        shift = ir.Constant(_ints, [23] * LANES)
        exponent = builder.ashr(builder.sub(bits, ir.Constant(_ints, [_ROOT_OF_HALF] * LANES)), shift)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, shift)), _floats)
        one = _constant(1)
        part = builder.fdiv(builder.fsub(mantissa, one), builder.fadd(mantissa, one))
        square = builder.fmul(part, part)
        series = _constant(_LOG2[0])
        for coefficient in _LOG2[1:]:
            series = _fma(builder, series, square, _constant(coefficient))
        return _fma(builder, part, series, builder.sitofp(exponent, _floats))

    return Lanes(Lanes), generate


# --- choices --------------------------------------------------------------------------------------------------------


def _define_comparison(symbol, predicate):
    def generate(context, builder, signature, values):
        return _pair_of(builder, lambda x, y: builder.fcmp_ordered(predicate, x, y), *values)

    _define(symbol, Mask, generate, (Lanes, types.float32))


for _symbol, _predicate in ((operator.ge, ">="), (operator.le, "<="), (operator.gt, ">"), (operator.lt, "<")):
    _define_comparison(_symbol, _predicate)


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


_define(operator.and_, Mask, lambda context, builder, signature, values: builder.and_(*values), (Mask,))


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


def _transposed(context, builder, array, value, first):
    """The columns of the 16 x 16 matrix from `array[first]` on."""
    places = [_row_of_matrix(context, builder, array, value, first, i) for i in range(LANES)]
    rows = [builder.load(place, align=4) for place in places]
    groups = [_transposed_quarters(builder, rows[i : i + 4]) for i in range(0, LANES, 4)]
    columns = [None] * LANES
    for c in range(4):
        # Now the quarters change places: first by halves (free where a vector is two registers), then singly.
        first = [_shuffle(builder, groups[i][c], groups[i + 2][c], _of_quarters((0, 1, 4, 5))) for i in (0, 1)]
        second = [_shuffle(builder, groups[i][c], groups[i + 2][c], _of_quarters((2, 3, 6, 7))) for i in (0, 1)]
        for half, pair in enumerate((first, second)):
            for odd, pattern in enumerate(((0, 4, 2, 6), (1, 5, 3, 7))):
                columns[4 * (2 * half + odd) + c] = _shuffle(builder, pair[0], pair[1], _of_quarters(pattern))
    return columns


def _row_of_matrix(context, builder, array, value, first, row):
    return _vector_at(context, builder, array, value, builder.add(first, _index(LANES * row)))


@intrinsic
def transpose_to(typing, source, first, target, place):
    """`target[place : place + 256]` is the transposed of the 16 x 16 matrix in `source[first : first + 256]`."""

    def generate(context, builder, signature, values):
        for i, column in enumerate(_transposed(context, builder, source, values[0], values[1])):
            builder.store(column, _row_of_matrix(context, builder, target, values[2], values[3], i), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), generate


@register_jitable
def transpose(array):
    """Transposes the 16 x 16 matrix in `array[0:256]`, in place."""
    transpose_to(array, 0, array, 0)


@intrinsic
def transposed(typing, array, first):
    """The columns of the 16 x 16 matrix in `array[first : first + 256]`."""

    def generate(context, builder, signature, values):
        columns = _transposed(context, builder, array, values[0], values[1])
        return context.make_tuple(builder, signature.return_type, columns)

    return types.UniTuple(Lanes, LANES)(array, types.intp), generate


def _columns_to_rows(builder, columns):
    """For every lane i the four numbers (x[i], y[i], z[i], w[i]) as a vector of their own."""
    rows = _transposed_quarters(builder, columns)
    for lane in range(LANES):
        order = ir.Constant(ir.VectorType(_int32, 4), [lane // 4 * 4 + i for i in range(4)])
        yield lane, builder.shuffle_vector(rows[lane % 4], rows[lane % 4], order)


def _rows_to_columns(builder, rows):
    """The inverse of `_columns_to_rows`: four vectors of sixteen from sixteen of four."""
    # Quarter q of the c-th vector is the row of lane 4 q + c, so that transposing the quarters gives columns.
    vectors = []
    for c in range(4):
        halves = [
            builder.shuffle_vector(rows[q + c], rows[q + 4 + c], ir.Constant(ir.VectorType(_int32, 8), list(range(8))))
            for q in (0, 8)
        ]
        vectors.append(builder.shuffle_vector(*halves, ir.Constant(_ints, list(range(LANES)))))
    return _transposed_quarters(builder, vectors)


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
        return context.make_tuple(builder, signature.return_type, _rows_to_columns(builder, rows))

    return types.UniTuple(Lanes, 4)(array, starts, types.intp), generate


# --- rows that follow each other, a lane each ---------------------------------------------------------------------------


@register_jitable
def find_rows_of(width, row, last, starts):
    """Where 16 rows of `width` numbers begin, from `row` on; beyond `last` the last one stands again and again.

    So what is written there is written again, the same.
    """
    for lane in range(LANES):
        starts[lane] = min(row + lane, last - 1) * width


def _places(context, builder, array, value, starts, start_values, column):
    """The address of `array[starts[i] + column]` for every lane i."""
    for lane in range(LANES):
        start = builder.load(_element(context, builder, starts, start_values, _index(lane)))
        yield lane, _element(context, builder, array, value, builder.add(start, column))


@intrinsic
def gather(typing, array, starts, column):
    """For every lane i `array[starts[i] + column]`, of an array of float32 or int32."""

    def generate(context, builder, signature, values):
        whole = isinstance(array.dtype, types.Integer)
        result = ir.Constant(_ints if whole else _floats, ir.Undefined)
        for lane, place in _places(context, builder, array, values[0], starts, values[1], values[2]):
            result = builder.insert_element(result, builder.load(place), _int32(lane))
        return builder.sitofp(result, _floats) if whole else result

    return Lanes(array, starts, types.intp), generate


@intrinsic
def scatter(typing, array, starts, column, x):
    """For every lane i: `array[starts[i] + column] = x[i]`, of an array of float32 or int32."""

    def generate(context, builder, signature, values):
        lanes = builder.fptosi(values[3], _ints) if isinstance(array.dtype, types.Integer) else values[3]
        for lane, place in _places(context, builder, array, values[0], starts, values[1], values[2]):
            builder.store(builder.extract_element(lanes, _int32(lane)), place)
        return context.get_dummy_value()

    return types.void(array, starts, types.intp, Lanes), generate


_half, _half_ints = ir.VectorType(_float, 2), ir.VectorType(_int32, 2)


@intrinsic
def load_three(typing, array, starts):
    """(x, y, z) with, for every lane i, `x[i], y[i], z[i] = array[starts[i] :][:3]`; nothing beyond is read."""

    def generate(context, builder, signature, values):
        rows = []
        for lane in range(LANES):
            start = builder.load(_element(context, builder, starts, values[1], _index(lane)))
            two = builder.load(_vector_at(context, builder, array, values[0], start, _half), align=4)
            third = builder.load(_element(context, builder, array, values[0], builder.add(start, _index(2))))
            order = ir.Constant(ir.VectorType(_int32, 4), [0, 1, 1, 1])
            rows.append(builder.insert_element(builder.shuffle_vector(two, two, order), third, _int32(2)))
        columns = _rows_to_columns(builder, rows)[:3]
        return context.make_tuple(builder, signature.return_type, columns)

    return types.UniTuple(Lanes, 3)(array, starts), generate


@intrinsic
def store_three(typing, array, starts, x, y, z):
    """For every lane i: `array[starts[i] :][:3] = x[i], y[i], z[i]`; nothing beyond is written."""

    def generate(context, builder, signature, values):
        for lane, row in _columns_to_rows(builder, [*values[2:], values[4]]):
            start = builder.load(_element(context, builder, starts, values[1], _index(lane)))
            two = builder.shuffle_vector(row, row, ir.Constant(_half_ints, [0, 1]))
            builder.store(two, _vector_at(context, builder, array, values[0], start, _half), align=4)
            third = _element(context, builder, array, values[0], builder.add(start, _index(2)))
            builder.store(builder.extract_element(row, _int32(2)), third)
        return context.get_dummy_value()

    return types.void(array, starts, Lanes, Lanes, Lanes), generate


@intrinsic
def add_four(typing, array, index, source, place):
    """`array[index : index + 4] += source[place : place + 4]`."""

    def generate(context, builder, signature, values):
        four = builder.load(_vector_at(context, builder, source, values[2], values[3], _quarter), align=4)
        target = _vector_at(context, builder, array, values[0], values[1], _quarter)
        builder.store(builder.fadd(builder.load(target, align=4), four), target, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, source, types.intp), generate
