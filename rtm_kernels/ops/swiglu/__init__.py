"""Kernels over the rows of strided [batch, rows, features] views: SwiGLU, products with a residual, RMSNorm, injection.

The half layers are these kernels over two views of a latent [B, L, D]: [1, B*L, D] and [B, D, L].
"""
