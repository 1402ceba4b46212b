"""Kernels of `h + swiglu(h)` over the rows of a strided [batch, rows, features] view.

`swiglu_norm` and `mixer_norm` are these kernels over two views of the same latent: [1, B*L, D] and [B, D, L].
"""
