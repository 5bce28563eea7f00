"""The command line: `demo` shows the loop at work beside asyncio, `doctor` says what of this machine it can use.

`nbloop.__main__` parses the arguments and imports one of the two; nothing else of nbloop imports this package.
"""
