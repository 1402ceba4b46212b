"""Seeded defects of the C++ executor, as those of the kernels in `mutants`; `native_case` has the cases that kill."""

from __future__ import annotations

MIXER, HIDDEN, LONG, CAUSAL, FULL = (
    ("native", name) for name in ("mixer", "hidden", "long inner", "attention", "full attention")
)

NATIVE = (
    ("mlp.h", "load(residual + at) + load(packed + at)", "load(residual + at) - load(packed + at)", MIXER),
    ("mlp.h", "inverse_rms(sum(squares), D, eps)", "inverse_rms(sum(squares), rows, eps)", MIXER),
    ("mlp.h", "gate[r] = t.c[r][0];\n    up[r] = t.c[r][1];", "gate[r] = t.c[r][1];\n    up[r] = t.c[r][0];", MIXER),
    ("mlp.h", "width, D, out, f0 > 0);", "width, D, out, false);", LONG),
    ("mlp.h", "s.injects ? state + summed", "s.injects ? state - summed", MIXER),
    ("mlp.h", "i < count; ++i) total", "i + 1 < count; ++i) total", MIXER),
    ("mlp.h", "load(residual + r * NR + v * W) + t.c[r][v]", "t.c[r][v]", MIXER),
    ("mlp.h", "total = fma(y, y, total);", "total = total + y;", MIXER),
    ("mlp.h", "/ set1(static_cast<float>(L)) + set1(layer.eps)", "/ set1(static_cast<float>(L))", MIXER),
    ("mlp.h", "if (layer.norm_hidden) norm_rows", "if (!layer.norm_hidden) norm_rows", HIDDEN),
    ("gemm.h", "k < K; ++k, ++j, b += NR", "k < K - 1; ++k, ++j, b += NR", MIXER),
    ("gemm.h", "k = kChain; k < K; k += kChain", "k = 2 * kChain; k < K; k += kChain", LONG),
    ("simd.h", "e[i] = set1(0.0f) - gate[i]", "e[i] = gate[i]", MIXER),
    ("simd.h", "5.0000001201e-1f", "5.001e-1f", MIXER),
    ("attention.h", "fma(minus, load_first(sin + i, left)", "fma(high, load_first(sin + i, left)", FULL),
    ("attention.h", "part == 0 ? 1.0f / std::sqrt", "part == 0 ? std::sqrt", FULL),
    ("attention.h", "a.causal ? l + r + 1 : L", "a.causal ? l + R : L", CAUSAL),
    ("attention.h", "load(mixed + (v * R + r) * W) * set1(scale[r])", "load(mixed + (v * R + r) * W)", FULL),
    ("attention.h", "norm_rows(x, residual, D, rows, layer.eps)", "norm_rows(x, nullptr, D, rows, layer.eps)", FULL),
    ("halting.h", "return logits[0] > 0;", "return logits[0] < 0;", MIXER),
    ("halting.h", "return logits[0] > logits[1];", "return logits[0] < logits[1];", HIDDEN),
    ("halting.h", "accumulated += 1 /", "accumulated = 1 /", CAUSAL),
    ("halting.h", "< h.tolerance", "> h.tolerance", LONG),
    ("halting.h", "total / rows +", "total +", HIDDEN),
    ("executor.cpp", "|| steps >= h.max_steps", "|| steps > h.max_steps", FULL),
    ("pack.cpp", "gate_up + (half * F + f) * N", "gate_up + ((1 - half) * F + f) * N", MIXER),
)  # fmt: skip
