"""Compatibility sweep: bitalloc on the models that people bring; run it with ``python -m benchmarks.compatibility``."""
