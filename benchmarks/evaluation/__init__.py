"""Compute-aligned evaluation: accuracy for the FLOPs and joules that a puzzle costs, at equal training FLOPs."""
