"""How work and wake-ups arrive from any thread: the ticket queue, and the protocol of sleeping and waking."""
