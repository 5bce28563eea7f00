"""What the loop measures and records of itself, for readers who must not stop it: histograms, live figures, the event
ring, the calls of other threads; and the probes by which the hot path reaches them.
"""
