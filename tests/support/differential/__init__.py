"""Random programs over promises, microtasks and macrotasks, run by Node and by nbloop's JavaScript view.

`programs` makes them from seeds and writes them as JavaScript, which ``node.mjs`` runs; `here` interprets them over
`nbloop.js`; `compare` runs both, and finds the smallest program that still differs.
"""
