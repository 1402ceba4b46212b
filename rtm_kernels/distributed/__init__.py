"""Solving past one process: Ray Data and Ray Serve (extra `ray`), and the ranks of torchrun."""
