"""What there is one of.

A copy of a loop, a promise or a handle would share memory that one of the two frees, or callbacks that one of the two
runs; a copy made by pickle would hold addresses of another process. So these refuse, in every way that Python copies:
`copy.copy`, `copy.deepcopy` and `pickle` all ask for `__reduce_ex__`, and all of them give what they have copied to
`__setstate__`, which a subclass's own `__reduce__` cannot avoid.
"""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Unique:
    """A base of classes whose instances cannot be copied or pickled: a TypeError says so."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        self.__setstate__(None)

    def __setstate__(self, state: object, /) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: its memory, callbacks and threads are this one's"
        )
