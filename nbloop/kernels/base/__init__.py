"""What every kernel is written in: the verbs that read and write words, the C functions, the layout of the records, the
declaration of kernels, the clock, and how a call is refused.
"""
