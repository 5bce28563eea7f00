"""What the loop measures and records for readers that must not stop it: histograms, live figures, the event ring, the
calls of other threads; and the probes through which the hot path reaches them.
"""
