// What the kernels of symmetric layers compute, in plain data. n digits (and rows, columns, boxes), L = n^2 positions.
#pragma once

#include <string>

#include "kernels.h"

namespace rtm {

constexpr i64 kMaxSide = 25, kMaxBands = 5, kMaxCells = 625;

// C copies of the digits and r other channels; F copies and s other hidden units of the channel mix; `copies` of the
// groups and `still` other hidden units of the token mix. p: rounded up to whole vectors.
struct SymmetricSizes {
  i64 n, box, L, C, r, F, s, copies, still, Cp, Rp, Fp, Sp;
  i64 state() const { return L * (n * Cp + Rp); }
  i64 lanes() const { return n * Cp + Rp; }
};

// Parts of a row that a product runs over.
struct Segments {
  int count;
  i64 first[4], size[4];
};

// A weight [K, N]: for each vector of columns, its K rows.
struct Panels {
  const float* at;
  i64 K, vectors;
};

struct SymmetricChannel {
  Panels gate, up, gate_up_shared, down, down_shared;
  Panels gate_up_t, gate_up_shared_t, down_t, down_shared_t;  // for the gradient
};

// Coefficients [copies, line | box, own | near | all], and of the units that see the board alone.
struct SymmetricMixer {
  const float *gate, *up, *down, *gate_still, *up_still, *down_still;
};

struct SymmetricLayer {
  SymmetricMixer mixer;
  SymmetricChannel channel;
  float eps;
};

// gate_up [2F, C'], gate_up_shared [2(F + s), C' + R'], down [F, C'], down_shared [F + s, C' + R']; mixer
// [3 copies 6 + 3 still, W] floats, one per lane.
struct SymmetricGradients {
  float *gate_up, *gate_up_shared, *down, *down_shared, *mixer;
};

struct SymmetricKernels {
  const char* name;
  i64 width;
  // mid = token mix of x, out = channel mix of mid; the reciprocal norms [lanes] and [L] may be null.
  void (*forward)(const SymmetricSizes&, const SymmetricLayer&, const float* x, float* mid, float* out,
                  float* token_rstd, float* channel_rstd, float* scratch);
  // d: the gradient of out becomes that of x.
  void (*backward)(const SymmetricSizes&, const SymmetricLayer&, const float* x, const float* mid, const float* out,
                   const float* token_rstd, const float* channel_rstd, float* d, const SymmetricGradients&,
                   float* scratch);
  i64 (*scratch_size)(const SymmetricSizes&);
};

// For n of 4, 9, 16 or 25.
const SymmetricKernels* portable_symmetric_kernels(i64 n);
const SymmetricKernels* avx2_symmetric_kernels(i64 n);  // null when not compiled in
const SymmetricKernels* avx512_symmetric_kernels(i64 n);

// Of the instruction set of that name; null where this processor does not run it.
const SymmetricKernels* symmetric_kernels(const std::string& isa, i64 n);

}  // namespace rtm
