"""The built-in methods of a loop, a producer handle and the JavaScript view: arguments in, one structure called, a
status turned into a result.
"""
