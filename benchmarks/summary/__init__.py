"""Write ``docs/BENCHMARKS.md``, one page with the main figures of every file in ``benchmarks/results``."""
