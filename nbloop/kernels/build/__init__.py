"""From plain Python to machine code: the compiler, the cached object file, and the processor that it is made for."""
