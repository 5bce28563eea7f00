"""The JavaScript view's timer methods: milliseconds, callback first, with HTML's clamp always on."""

from __future__ import annotations

from ..base.atomics import get
from ..base.clock import loop_ns
from ..base.kernel import MANY, data, inlined, kernel
from ..base.layout import REFUSED_ARGUMENTS, REFUSED_MILLISECONDS, STATE
from ..base.refusal import refuse
from .scheduling import pack
from .timer_methods import arm, nanoseconds


@inlined
def arm_milliseconds(base: int, arguments: int, count: int, repeat: bool) -> int:
    """Arm a timer or interval from ``callback, ms=0, *args``."""
    if count == 0:
        refuse(base, REFUSED_ARGUMENTS, get(base + STATE.NONE))
        return 0
    delay = 0
    if count > 1:
        delay = nanoseconds(base, get(arguments + 8), 1e6, REFUSED_MILLISECONDS)
        if delay < 0:
            return 0
    word = pack(base, get(arguments), arguments + 16, count - 2)
    if word == 0:
        return 0
    return arm(base, word, loop_ns(base), delay, delay if repeat else -1, 1, get(arguments))


@kernel(MANY)
def set_timeout(self: int, arguments: int, count: int) -> int:
    """Arm a one-shot timer."""
    return arm_milliseconds(data(self), arguments, count, False)


@kernel(MANY)
def set_interval(self: int, arguments: int, count: int) -> int:
    """Arm an interval."""
    return arm_milliseconds(data(self), arguments, count, True)
