"""What threads hand over besides callbacks. Channels: records that any thread puts into a ring, and the loop's thread
takes out of it in batches. Permits: the word of a queue of objects between any loops and threads.
"""
