#include "executor.h"

namespace rtm {

namespace {

// The sum of d(i)^2 for i in [0, n), in eight lanes.
template <class F>
double squares(i64 n, const F& d) {
  constexpr i64 kLanes = 8;
  double lanes[kLanes] = {};
  for (i64 i = 0; i + kLanes <= n; i += kLanes)
    for (i64 j = 0; j < kLanes; ++j) lanes[j] += d(i + j) * d(i + j);
  for (i64 i = n / kLanes * kLanes; i < n; ++i) lanes[0] += d(i) * d(i);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

double size_of(const float* y, i64 n) {
  return squares(n, [y](i64 i) { return static_cast<double>(y[i]); });
}

bool all_finite(const float* y, i64 n) { return std::isfinite(size_of(y, n)); }  // no float's square overflows

// |y - previous| / |y|
double relative_change(const float* y, const float* previous, i64 n) {
  const double change = squares(n, [=](i64 i) { return static_cast<double>(y[i]) - previous[i]; });
  return std::sqrt(change) / std::fmax(std::sqrt(size_of(y, n)), 1e-30);
}

}  // namespace

// One sample of one call: where it lives, and whether its threads work on it together (team) or on one each.
struct Executor::Sample {
  const std::vector<float*>& latents;
  const float* x;
  i64 offset, L;
  bool team;
  int thread;
  Workspace& workspace;
};

// f(first, last, scratch) over all of [0, n): split over the team, or by the calling thread alone.
template <class F>
void Executor::split(const Sample& s, i64 n, const F& f) {
  const auto& scratch = s.workspace.scratch;
  if (s.team)
    parallel_for(s.workspace.threads, n, [&](i64 first, i64 last, i64 i) { f(first, last, scratch[i].get()); });
  else
    f(0, n, scratch[s.thread].get());
}

// The same over the rows of a sample, in chunks of at most kRowChunk.
template <class F>
void Executor::split_rows(const Sample& s, const F& f) {
  const i64 chunks = std::min(s.L, round_up(ceil_div(s.L, kRowChunk), s.team ? s.workspace.threads : 1));
  split(s, chunks, [&](i64 first, i64 last, float* scratch) {
    for (i64 i = first; i < last; ++i) f(part(s.L, chunks, i), part(s.L, chunks, i + 1), scratch);
  });
}

void Executor::add_layer(i64 stack, PackedLayer layer) {
  const auto shape = [](const Conv& c) { return std::array{c.width, c.prefix, static_cast<i64>(c.grid)}; };
  for (const auto& other : stacks_)
    for (const PackedLayer& packed : other)
      if (layer.layer.conv.weight && packed.layer.conv.weight && shape(layer.layer.conv) != shape(packed.layer.conv))
        throw std::invalid_argument("the convolutions of a model have one width, over one grid");
  if (stack >= static_cast<i64>(stacks_.size())) stacks_.resize(stack + 1);
  stacks_[stack].push_back(std::move(layer));
}

void Executor::run_mlp(const Layer& layer, const Sources& sources, float* dst, const Sample& s) const {
  float* work = s.workspace.work[s.thread].get();
  split(s, ceil_div(D_, 2 * kernels_->width), [&](i64 first, i64 last, float* scratch) {
    kernels_->token_mix(layer, sources, work, s.L, D_, first, last, scratch);
  });
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    kernels_->channel_mix(layer, work, dst, D_, first, last, scratch);
  });
}

void Executor::run_conv(const Layer& layer, const Sources& sources, float* dst, const Sample& s) const {
  float *work = s.workspace.work[s.thread].get(), *act = s.workspace.act[s.thread].get();
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    kernels_->conv_expand(layer, sources, work, act, s.L, D_, first, last, scratch);
  });
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    kernels_->conv_reduce(layer, act, work, dst, s.L, D_, first, last, scratch);
  });
}

void Executor::run_attention(const Layer& layer, const Sources& sources, float* dst, const Sample& s) const {
  const Workspace& memory = s.workspace;
  float* work = memory.work[s.thread].get();
  const Heads heads{memory.query[s.thread].get(), memory.key[s.thread].get(), memory.value[s.thread].get(),
                    memory.mixed[s.thread].get()};
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    kernels_->attention_project(layer, sources, work, heads, s.L, D_, first, last, scratch);
  });
  const i64 count = layer.attention.heads;
  const i64 parts = s.team ? std::min(s.L, ceil_div(4 * s.workspace.threads, count)) : 1;  // of the rows of a head
  split(s, count * parts, [&](i64 first, i64 last, float* scratch) {
    for (i64 i = first; i < last; ++i)
      kernels_->attend(layer, heads, s.L, D_, i / parts, part(s.L, parts, i % parts), part(s.L, parts, i % parts + 1),
                       scratch);
  });
  float* act = memory.act[s.thread].get();
  if (layer.conv.weight)
    split_rows(s, [&](i64 first, i64 last, float* scratch) {
      kernels_->attention_conv_expand(layer, heads.mixed, work, act, s.L, D_, first, last, scratch);
    });
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    layer.conv.weight ? kernels_->conv_reduce(layer, act, work, dst, s.L, D_, first, last, scratch)
                      : kernels_->attention_channel_mix(layer, heads.mixed, work, dst, D_, first, last, scratch);
  });
}

void Executor::run_sample(const Sample& s, i64 begin, i64 end) const {
  const auto pointer = [&](i64 i) -> const float* { return (i == latents_ ? s.x : s.latents[i]) + s.offset; };
  std::vector<const float*> state, inject;
  for (i64 i = begin; i < end; ++i) {
    const Step& step = tape_[i];
    state.clear();
    inject.clear();
    for (i64 n : step.state) state.push_back(pointer(n));
    for (i64 n : step.inject) inject.push_back(pointer(n));
    Sources sources{state.data(), static_cast<i64>(state.size()), inject.data(), static_cast<i64>(inject.size())};
    float* dst = s.latents[step.dst] + s.offset;
    const float* previous = dst;  // a layer after the first reads what the one before it wrote
    for (const PackedLayer& packed : stacks_[step.stack]) {
      const Layer& layer = packed.layer;
      layer.attends       ? run_attention(layer, sources, dst, s)
      : layer.conv.weight ? run_conv(layer, sources, dst, s)
                          : run_mlp(layer, sources, dst, s);
      sources = {&previous, 1, nullptr, 0};
    }
  }
}

// f(sample, b) for every sample: one thread each as long as all threads have one, then the team for the rest.
template <class F>
void Executor::for_each_sample(const std::vector<float*>& latents, const float* x, i64 B, i64 L, i64 threads,
                               const F& f) const {
  auto workspace = lease(L, threads);
  const i64 alone = B / threads * threads;
  std::atomic<i64> next{0};
  parallel_for(threads, alone ? threads : 0, [&](i64, i64, i64 slot) {
    for (i64 b = next++; b < alone; b = next++)
      f(Sample{latents, x, b * L * D_, L, false, static_cast<int>(slot), *workspace}, b);
  });
  for (i64 b = alone; b < B; ++b) f(Sample{latents, x, b * L * D_, L, true, 0, *workspace}, b);
  give_back(std::move(workspace));
}

void Executor::run(const std::vector<float*>& latents, const float* x, i64 B, i64 L, i64 begin, i64 end,
                   i64 threads) const {
  for_each_sample(latents, x, B, L, threads, [&](const Sample& s, i64) { run_sample(s, begin, end); });
}

void Executor::act_step(const std::vector<float*>& latents, const float* x, i64 B, i64 L, const Seen& seen,
                        i64 threads) const {
  const i64 positions = heads_.tokens ? L - heads_.prefix : 0;
  for_each_sample(latents, x, B, L, threads, [&](const Sample& s, i64 b) {
    step_sample(s, {seen.logits + b * L * heads_.N, seen.answers + b * positions, seen.finite + b, seen.change + b});
  });
}

void Executor::step_sample(const Sample& s, const Seen& seen) const {
  const i64 size = s.L * D_;
  const float* y = s.latents[heads_.output] + s.offset;
  Buffer& previous = s.workspace.previous[s.thread];
  if (!previous.get()) previous = Buffer(size);
  std::copy_n(y, size, previous.get());
  run_sample(s, 0, steps());
  read_heads(s, seen.logits);
  *seen.finite = all_finite(seen.logits, s.L * heads_.N);
  for (const float* latent : s.latents) *seen.finite &= all_finite(latent + s.offset, size);
  *seen.change = static_cast<float>(relative_change(y, previous.get(), size));
  for (i64 l = heads_.prefix; heads_.tokens && l < s.L; ++l) {
    const float* logits = seen.logits + l * heads_.N;
    seen.answers[l - heads_.prefix] =
        static_cast<std::int32_t>(std::max_element(logits, logits + heads_.tokens) - logits);
  }
}

void Executor::read_heads(const Sample& s, float* logits) const {
  if (heads_.N == 0) return;
  const float* y = s.latents[heads_.output] + s.offset;
  split_rows(s, [&](i64 first, i64 last, float* scratch) {
    kernels_->project(heads_.weight.view(), heads_.bias.get(), y, logits, D_, heads_.N, first, last, scratch);
  });
}

std::unique_ptr<Workspace> Executor::lease(i64 L, i64 threads) const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (leased_L_ != L || leased_threads_ != threads) idle_.clear();
    leased_L_ = L;
    leased_threads_ = threads;
    if (!idle_.empty()) {
      auto workspace = std::move(idle_.back());
      idle_.pop_back();
      return workspace;
    }
  }
  i64 scratch = kernels_->scratch_size(Layer{}, L, D_);  // what the heads need
  HeadSizes heads{0, 0, 0};
  i64 act = 0;
  for (const auto& stack : stacks_)
    for (const PackedLayer& packed : stack) {
      scratch = std::max(scratch, kernels_->scratch_size(packed.layer, L, D_));
      if (packed.layer.conv.weight)
        act = std::max(act, packed.layer.channel.inner * Places(packed.layer.conv, L).count);  // margins stay zero
      if (!packed.layer.attends) continue;
      const HeadSizes size = kernels_->head_sizes(packed.layer, L);
      heads = {std::max(heads.query, size.query), std::max(heads.key, size.key), std::max(heads.value, size.value)};
    }
  auto workspace = std::make_unique<Workspace>();
  workspace->L = L;
  workspace->threads = threads;
  for (i64 t = 0; t < threads; ++t) {
    workspace->scratch.emplace_back(scratch);
    workspace->work.emplace_back(L * D_);
    workspace->query.emplace_back(heads.query);
    workspace->key.emplace_back(heads.key);
    workspace->value.emplace_back(heads.value);
    workspace->previous.emplace_back();
    workspace->act.emplace_back(act);
    workspace->mixed.emplace_back(heads.query ? L * D_ : 0);
  }
  return workspace;
}

void Executor::give_back(std::unique_ptr<Workspace> workspace) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (workspace->L == leased_L_ && workspace->threads == leased_threads_) idle_.push_back(std::move(workspace));
}

}  // namespace rtm
