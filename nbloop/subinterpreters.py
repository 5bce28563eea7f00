"""Subinterpreters are refused, before the import of numpy: it fails there as well, and from then on it may fail in the
main interpreter, too.

Importing this module is the check.
"""

from __future__ import annotations

import ctypes

_current = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyInterpreterState_Get", ctypes.pythonapi))
_number = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(("PyInterpreterState_GetID", ctypes.pythonapi))

if _number(_current()) != 0:  # the main interpreter's is 0
    raise ImportError("nbloop works in the main interpreter only: neither its kernels nor numpy know subinterpreters")
