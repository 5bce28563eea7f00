"""Channels: records that any thread puts into a ring, and the loop's thread takes out of it in batches."""
