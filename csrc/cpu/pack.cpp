#include "pack.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace rtm {

namespace {

// Rows of a weight as words of a format, before they go to their places. Scales and offsets are appended to `packed`.
class Words {
 public:
  Words(Format format, i64 places, i64 K, i64 filled, const RowOf& row, PackedLinear& packed)
      : K_(ceil_div(K, per_word(format))), values_(places * K_) {
    for (i64 n = 0; n < places; ++n) {
      const float* source = row(n);
      char* words = reinterpret_cast<char*>(values_.data() + n * K_);
      if (format == Format::int8)
        to_int8(source, source ? filled : 0, words, packed);
      else if (!source)
        continue;
      else if (format == Format::bfloat16)
        to_bfloat16(source, filled, words);
      else
        std::copy_n(source, filled, values_.data() + n * K_);
    }
  }
  i64 K() const { return K_; }
  const float* row(i64 n) const { return values_.data() + n * K_; }

 private:
  static void to_bfloat16(const float* source, i64 K, char* words) {
    for (i64 i = 0; i < K; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, source + i, sizeof bits);
      const bool number = source[i] == source[i];
      const auto half = static_cast<std::uint16_t>((number ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16);
      std::memcpy(words + 2 * i, &half, sizeof half);
    }
  }

  static void to_int8(const float* source, i64 K, char* words, PackedLinear& packed) {
    float peak = 0;
    bool finite = true;
    for (i64 i = 0; i < K; ++i) {
      finite &= std::isfinite(source[i]);
      peak = std::max(peak, std::fabs(source[i]));
    }
    const float scale = finite ? peak / 127 : std::numeric_limits<float>::quiet_NaN();
    std::int32_t sum = 0;
    for (i64 i = 0; i < K; ++i) {
      const float ratio = scale > 0 ? source[i] / scale : 0;
      const long q = std::lrint(std::fmin(127.0f, std::fmax(-127.0f, ratio)));
      words[i] = static_cast<char>(static_cast<std::int8_t>(q));
      sum += static_cast<std::int32_t>(q);
    }
    packed.scale.push_back(scale);
    packed.offset.push_back(-128 * sum);
  }

  i64 K_;
  std::vector<float> values_;
};

// Panels [places / 2W][K][2W] of all places.
void to_columns(const Kernels& k, i64 places, const Words& source, float* panels) {
  const i64 NR = 2 * k.width, K = source.K();
  for (i64 n = 0; n < places; ++n)
    for (i64 i = 0; i < K; ++i) std::memcpy(panels + (n / NR * K + i) * NR + n % NR, source.row(n) + i, sizeof(float));
}

// One tile [K / W][rows][W] of `rows` places from `first` on.
void to_rows(const Kernels& k, i64 first, i64 rows, const Words& source, float* tile) {
  const i64 W = k.width, K = source.K();
  for (i64 r = 0; r < rows; ++r)
    for (i64 i = 0; i < K; ++i)
      std::memcpy(tile + (i / W * rows + r) * W + i % W, source.row(first + r) + i, sizeof(float));
}

}  // namespace

PackedLinear pack_linear(const Kernels& k, bool reduced, const float* weight, i64 N, i64 K, i64 parts) {
  const Format format = reduced ? k.format : Format::float32;
  const i64 places = round_up(N, 2 * k.width), size = places * ceil_div(K, per_word(format));
  PackedLinear packed{Buffer(parts * size), reduced, {}, {}};
  for (i64 p = 0; p < parts; ++p) {
    const Words words(format, places, K, K, [&](i64 n) { return n < N ? weight + (p * N + n) * K : nullptr; }, packed);
    to_columns(k, places, words, packed.words.get() + p * size);
  }
  return packed;
}

PackedSwiGLU pack_channel(const Kernels& k, bool reduced, const float* gate_up, const float* down, i64 F, i64 N) {
  const Format format = reduced ? k.format : Format::float32;
  const i64 W = k.width, inner = round_up(F, W), columns = round_up(N, 2 * W), per = per_word(format);
  PackedSwiGLU packed{{Buffer(2 * inner * ceil_div(N, per)), reduced, {}, {}},
                      {Buffer(ceil_div(inner, per) * columns), reduced, {}, {}},
                      inner};
  const auto paired = [&](i64 place) -> const float* {
    const i64 f = place / (2 * W) * W + place % W, half = place / W % 2;  // W gates, then their ups
    return f < F ? gate_up + (half * F + f) * N : nullptr;
  };
  to_columns(k, 2 * inner, Words(format, 2 * inner, N, N, paired, packed.gate_up), packed.gate_up.words.get());
  for (i64 f = 0; f < inner; f += kInnerBlock) {
    const i64 width = std::min(kInnerBlock, inner - f), filled = std::min(width, F - f);
    const auto row = [&](i64 n) { return n < N ? down + n * F + f : nullptr; };
    const Words words(format, columns, width, filled, row, packed.down);
    to_columns(k, columns, words, packed.down.words.get() + f / per * columns);
  }
  return packed;
}

PackedSwiGLU pack_mixer(const Kernels& k, bool reduced, const float* gate_up, const float* down, i64 F, i64 N) {
  const Format format = reduced ? k.format : Format::float32;
  const i64 W = k.width, per = per_word(format), inner = round_up(F, W);
  const i64 padded = round_up(ceil_div(N, per), W), padded_inner = round_up(ceil_div(inner, per), W);
  PackedSwiGLU packed{{Buffer(2 * inner * padded), reduced, {}, {}}, {Buffer(N * padded_inner), reduced, {}, {}}, inner};
  const i64 pairs = ceil_div(inner, k.max_rows / 2);
  for (i64 t = 0; t < pairs; ++t) {
    const i64 f0 = part(inner, pairs, t), half = part(inner, pairs, t + 1) - f0;  // `half` gates, then their ups
    const auto row = [&](i64 r) { return f0 + r % half < F ? gate_up + (r / half * F + f0 + r % half) * N : nullptr; };
    const Words words(format, 2 * half, N, N, row, packed.gate_up);
    to_rows(k, 0, 2 * half, words, packed.gate_up.words.get() + 2 * f0 * padded);
  }
  const Words words(format, N, inner, F, [&](i64 n) { return down + n * F; }, packed.down);
  const i64 tiles = ceil_div(N, k.max_rows);
  for (i64 t = 0; t < tiles; ++t) {
    const i64 n = part(N, tiles, t);
    to_rows(k, n, part(N, tiles, t + 1) - n, words, packed.down.words.get() + n * padded_inner);
  }
  return packed;
}

}  // namespace rtm
