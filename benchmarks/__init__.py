"""Speed and memory of pairloss beside what a user would pick instead: ``python -m benchmarks``."""
