"""The built-in methods of a loop, a producer handle and the JavaScript view: each converts arguments, calls one
structure, and turns a status into a result.
"""
