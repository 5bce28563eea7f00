"""From Python's numbers to the fields of a record, with no C call and no Python: what `put` does each time.

Problem: numpy's own conversion of three numbers takes a microsecond, and may run Python code, which must not happen
between claim and publication. Idea: the plain cases are a few loads and compares: a float into a double or a single, an
int that is in the field's range, True and False into a bool. All values are checked *before* the claim, and written
after it; nothing can fail in between, since numbers do not change. numpy handles every other value, and every other
kind of field (`convert` in nbloop/channel.py): strings, dates, nested records, numpy's own scalars, and all errors.
"""

from __future__ import annotations

from ..base.atomics import double_bits, get, get_half, single_bits, write_8, write_16, write_32, write_64
from ..base.interpreter import FLOAT_VALUE, INT_DIGITS, INT_TAG, OBJECT_TYPE
from ..base.kernel import inlined
from ..base.layout import (
    CHANNEL,
    FIELD,
    FIELD_BOOL,
    FIELD_DOUBLE,
    FIELD_INT8,
    FIELD_INT16,
    FIELD_INT32,
    FIELD_SINGLE,
    MINUS,
)

FIELD_BITS = 5  # 32 bytes a field
SIGN_OF_INT, DIGIT_BITS = 2, 30
DOUBLE_EXACT, SINGLE_EXACT = 1 << 53, 1 << 24  # integers up to these are numbers of the format
EXPONENT, SINGLE_EXPONENT = 0x7FF << 52, 0xFF << 23  # all ones: infinite, or not a number


@inlined
def int_digit(number: int, i: int) -> int:
    """Digit `i` of an int object, which must have it."""
    return get_half(number + INT_DIGITS + (i << 2))


@inlined
def int_value(number: int) -> int:
    """The value of an int object; MINUS, which no record gets from here, if it has more than 63 bits."""
    tag = get(number + INT_TAG)
    digits = tag >> 3
    value = int_digit(number, 0)
    if digits > 1:
        value |= int_digit(number, 1) << DIGIT_BITS
        if digits > 2:
            if digits > 3 or int_digit(number, 2) >> 3 != 0:
                return MINUS
            value |= int_digit(number, 2) << 2 * DIGIT_BITS
    return -value if tag & SIGN_OF_INT else value


@inlined
def single_fits(word: int) -> bool:
    """Does the double in this word fit a single after rounding? Not if only rounding makes it infinite."""
    return single_bits(word) & SINGLE_EXPONENT != SINGLE_EXPONENT or word & EXPONENT == EXPONENT


@inlined
def field_fits(channel: int, field: int, value: int) -> bool:
    """Is this object a plain value for the field? Runs no Python."""
    kind = get(field + FIELD.KIND)
    of = get(value + OBJECT_TYPE)
    if of == get(channel + CHANNEL.FLOAT_TYPE):
        return kind == FIELD_DOUBLE or (kind == FIELD_SINGLE and single_fits(get(value + FLOAT_VALUE)))
    if of == get(channel + CHANNEL.INT_TYPE):
        number = int_value(value)
        return get(field + FIELD.LEAST) <= number and number <= get(field + FIELD.MOST)
    return kind == FIELD_BOOL and (value == get(channel + CHANNEL.TRUE) or value == get(channel + CHANNEL.FALSE))


@inlined
def field_write(channel: int, field: int, value: int, record: int) -> None:
    """Write a plain value into its field."""
    kind = get(field + FIELD.KIND)
    at = record + get(field + FIELD.AT)
    if kind == FIELD_BOOL:
        write_8(at, 1 if value == get(channel + CHANNEL.TRUE) else 0)
        return
    if get(value + OBJECT_TYPE) == get(channel + CHANNEL.FLOAT_TYPE):
        word = get(value + FLOAT_VALUE)
    else:
        word = int_value(value)
        if kind <= FIELD_SINGLE:
            word = double_bits(word)
    if kind == FIELD_SINGLE:
        word = single_bits(word)
    if kind == FIELD_SINGLE or kind == FIELD_INT32:
        write_32(at, word)
    elif kind == FIELD_INT16:
        write_16(at, word)
    elif kind == FIELD_INT8:
        write_8(at, word)
    else:
        write_64(at, word)


@inlined
def fields_fit(channel: int, values: int, count: int) -> bool:
    """Are these all plain values, one for each field?"""
    if count != get(channel + CHANNEL.FIELD_COUNT):
        return False
    field = get(channel + CHANNEL.FIELDS)
    for i in range(count):
        if not field_fits(channel, field + (i << FIELD_BITS), get(values + (i << 3))):
            return False
    return True


@inlined
def fields_write(channel: int, values: int, count: int, record: int) -> None:
    """Write all fields of a record."""
    field = get(channel + CHANNEL.FIELDS)
    for i in range(count):
        field_write(channel, field + (i << FIELD_BITS), get(values + (i << 3)), record)
