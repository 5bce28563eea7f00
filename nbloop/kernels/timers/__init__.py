"""Timers: the slots that any thread arms and cancels, and the queue of the loop thread (near ones in a heap, far ones
in buckets). Other folders use `timer_slots` and `timer_queue` only.
"""
