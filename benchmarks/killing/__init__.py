"""Parts of `benchmarks.faults`: start processes, kill them, and compare their files."""
