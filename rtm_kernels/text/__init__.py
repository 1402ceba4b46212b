"""Recursion on text: bytes to words, a causal backbone of any program over the words, and bytes again."""
