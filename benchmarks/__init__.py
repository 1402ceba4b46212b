"""Benchmarks: like compared with like, interleaved in one process, refused unless the answer is right."""
