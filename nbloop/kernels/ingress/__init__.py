"""How work and wake-ups come in from any thread: the ticket queue, and the protocol of sleeping and waking."""
