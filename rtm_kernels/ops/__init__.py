"""Kernels, one folder per op: `reference` is the specification, `api` the one public function."""
