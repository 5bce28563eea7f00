"""Objects that cannot be copied.

A copy of a loop, a promise or a handle would share memory that one of the two frees, or callbacks that one of the two
runs; a copy made by pickle would hold addresses of another process. So these objects refuse all of Python's ways to
copy: `copy.copy`, `copy.deepcopy` and `pickle` all call `__reduce_ex__`, and pass the copied state to `__setstate__`,
which even a subclass with its own `__reduce__` cannot avoid.
"""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Unique:
    """A base class for objects that cannot be copied or pickled: TypeError."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        self.__setstate__(None)

    def __setstate__(self, state: object, /) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: a copy would share its memory, callbacks and threads"
        )
