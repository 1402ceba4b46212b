// What a kernel set computes, in plain data: no torch header, so that each instruction set compiles in seconds.
//
// Names follow the package: B batch, L sequence, D hidden, F inner width. W is the vector width in floats.
//   columns(N)  weight [N, K] as panels [N / 2W][K][2W], the right operand of a product over rows
//   rows(N)     weight [N, K] as tiles [tile][K / W][rows][W], the left operand of a product over columns
// Activations that are a left operand have the `rows` layout too, as one tile: [K / W][rows][W].
#pragma once

#include <algorithm>  // all that a kernel set needs, compiled before it names its instructions
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace rtm {

using i64 = std::int64_t;

constexpr i64 kRowChunk = 98;  // rows of a sample that one call of a row kernel keeps in the second-level cache
constexpr i64 kInnerBlock = 512;  // inner width computed before it is multiplied by its rows of the down projection

inline i64 ceil_div(i64 n, i64 d) { return (n + d - 1) / d; }
inline i64 round_up(i64 n, i64 d) { return ceil_div(n, d) * d; }
inline i64 part(i64 n, i64 parts, i64 i) { return n * i / parts; }  // start of part i of n things in equal parts

// The latents whose sum a step feeds to its stack: (state + ...) + (inject + ...), each sum from left to right.
struct Sources {
  const float* const* state;
  i64 states;
  const float* const* inject;
  i64 injects;
};

// A packed weight. A word is 32 bits of a row: one float, two bfloat16 or four int8 neighbours along K.
struct Linear {
  const float* words;
  bool reduced;            // held in the kernel set's own format instead of float32
  const float* scale;      // int8: the value of one unit of each output
  const std::int32_t* offset;  // int8: what cancels the bias of 128 of the activations, for each output
};

struct SwiGLU {
  Linear gate_up;
  Linear down;  // of the channel mix: one block of columns after the other for each kInnerBlock of F
  i64 inner;  // F rounded up to W; the weights are padded with zeros
};

struct Attention {
  Linear qkv;  // the panels of q, of k and of v
  Linear out;
  i64 heads, head_dim;
  bool causal, qk_norm;
  const float* cos;  // [L, head_dim], or null without rotary positions
  const float* sin;
};

// A depthwise convolution on the hidden units of a SwiGLU, along the sequence or over the square grid of the positions
// from `prefix` on, which the positions before do not take part in.
struct Conv {
  const float* weight;  // [F / W][taps][W], or null without a convolution
  const float* bias;    // [F]
  i64 width, prefix;
  bool grid;
  i64 taps() const { return grid ? width * width : width; }
};

// Where the hidden units of a sample lie for its convolution. Every neighbour of a position has a place, at the same
// distance from each: those beside the sequence or the grid share margins, which hold zeros.
struct Places {
  i64 prefix, height, side, row, lead, count;  // taps: height x width; positions of a line, places from line to line
  Places(const Conv& c, i64 L) : prefix(c.grid ? c.prefix : 0), height(c.grid ? c.width : 1), side(c.grid ? 0 : L) {
    while (c.grid && side * side < L - prefix) ++side;
    row = side + c.width / 2;
    lead = height / 2 * row + c.width / 2;
    count = prefix + 2 * lead + (c.grid ? side : 1) * row;
  }
  i64 of(i64 l) const { return l < prefix ? l : prefix + lead + (l - prefix) / side * row + (l - prefix) % side; }
};

struct Layer {
  bool attends;
  bool norm_hidden;  // the token mix normalises over D instead of L
  float eps;
  SwiGLU mixer;
  Attention attention;
  SwiGLU channel;
  Conv conv;  // of the channel mix; without attention such a layer has no mixer
};

// Activations of one attention layer of one sample.
struct Heads {
  float* query;  // [heads][head_dim / W][L][W], scaled
  float* key;    // [heads][L / 2W][head_dim][2W]
  float* value;  // [heads][head_dim / 2W][L][2W]
  float* mixed;  // [L, D]
};

struct HeadSizes {
  i64 query, key, value;
};

enum class Format { float32, bfloat16, int8 };  // of the products' operands; sums, norms and latents are float32

inline i64 per_word(Format format) { return format == Format::float32 ? 1 : format == Format::bfloat16 ? 2 : 4; }

struct Kernels {
  const char* name;
  Format format;
  i64 width;     // W
  i64 max_rows;  // rows of the largest register tile

  // work[:, tile] = rms_norm(h + swiglu over L of h) for the tiles [first, last) of 2W channels, h = sum of sources.
  // With norm_hidden the sum is left for `channel_mix` to normalise.
  void (*token_mix)(const Layer&, const Sources&, float* work, i64 L, i64 D, i64 first, i64 last, float* scratch);
  // dst[rows] = rms_norm(h + swiglu over D of h), h = work[rows], rows [first, last) at most kRowChunk of them.
  void (*channel_mix)(const Layer&, const float* work, float* dst, i64 D, i64 first, i64 last, float* scratch);

  // work[rows] = sum of sources; q, k and v of these rows into `heads`.
  void (*attention_project)(const Layer&, const Sources&, float* work, const Heads& heads, i64 L, i64 D, i64 first,
                            i64 last, float* scratch);
  // heads.mixed[rows, head] = softmax(q k^T) v.
  void (*attend)(const Layer&, const Heads& heads, i64 L, i64 D, i64 head, i64 first, i64 last, float* scratch);
  // dst[rows] = channel mix of h, h = rms_norm(work + out_proj(mixed)).
  void (*attention_channel_mix)(const Layer&, const float* mixed, const float* work, float* dst, i64 D, i64 first,
                                i64 last, float* scratch);

  // With a convolution, in place of the channel mix: all hidden units act [F / W][places][W] and h into work, then dst.
  void (*conv_expand)(const Layer&, const Sources&, float* work, float* act, i64 L, i64 D, i64 first, i64 last,
                      float* scratch);
  void (*attention_conv_expand)(const Layer&, const float* mixed, float* work, float* act, i64 L, i64 D, i64 first,
                                i64 last, float* scratch);
  void (*conv_reduce)(const Layer&, const float* act, const float* work, float* dst, i64 L, i64 D, i64 first, i64 last,
                      float* scratch);

  // out[rows, N] = x[rows] w + bias, w the columns of [N, D] in float32, bias [N rounded up to 2W].
  void (*project)(const Linear& w, const float* bias, const float* x, float* out, i64 D, i64 N, i64 first, i64 last,
                  float* scratch);

  i64 (*scratch_size)(const Layer&, i64 L, i64 D);  // floats that any of the calls needs
  HeadSizes (*head_sizes)(const Layer&, i64 L);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null when not compiled in
const Kernels* avx512_kernels();
const Kernels* avx512_bfloat16_kernels();
const Kernels* avx512_int8_kernels();

std::vector<const Kernels*> supported_kernels(Format);  // those this processor runs, the fastest first

}  // namespace rtm
