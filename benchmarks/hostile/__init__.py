"""Create hostile files, and check what each command of tinynet does with them."""
