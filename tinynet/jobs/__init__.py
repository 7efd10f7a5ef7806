"""Whole jobs, from a question to rows: they tie the rooms together for commands, demo and
notebooks.
"""
