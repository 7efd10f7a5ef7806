"""What `benchmarks.faults` is made of: processes that are ended, what they leave, and what should
be there.
"""
