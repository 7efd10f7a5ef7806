"""Hostile files by script, and what each command of tinynet makes of them."""
