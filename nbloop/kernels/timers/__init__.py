"""Timers: the slots that any thread arms and cancels, and the loop thread's queue (near timers in a heap, far ones in
buckets). Other folders use `timer_slots` and `timer_queue` only.
"""
