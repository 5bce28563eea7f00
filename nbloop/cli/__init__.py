"""The command line: `demo` runs the loop beside asyncio, `doctor` reports what the loop can use here, `top` shows
running loops, `profile` samples a script, and `bench` times operations.

`nbloop.__main__` parses the arguments and imports the chosen command; nothing else in nbloop imports this package.
"""
