"""The persistent executor: a program interpreted by one cooperative kernel, for small batches."""
