/* The C interface of the library: no Python, no PyTorch, nothing of C++.

   Tensors are contiguous float32, row-major. A function that can fail returns NULL, or what is wrong; that text lives
   until the next call in the same thread. `threads` is how many threads the call may use. Calls that compute may run
   in several threads at once on one model, and no result depends on threads. */
#ifndef RTM_INTERFACE_H
#define RTM_INTERFACE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef _WIN32
#define RTM_API __declspec(dllexport)
#else
#define RTM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Weights of a layer. The mixer is an MLP, attention, or, with a convolution, neither: the others' pointers are NULL. */
typedef struct {
  const float *gate_up, *down;             /* channel mix [2F, D], [D, F] */
  const float *mixer_gate_up, *mixer_down; /* token mix [2F', L], [L, F'] */
  const float *qkv, *out, *cos, *sin;      /* attention [3D, D], [D, D]; rotary tables [L, D / heads] or NULL */
  const float *conv, *conv_bias;           /* on the hidden units [F, taps], [F]; or NULL */
  int64_t F, mixer_F, L, heads, conv_width, prefix;
  double eps;
  bool causal, qk_norm, conv_grid;
  bool norm_hidden; /* the token mix normalises over D instead of L */
  bool reduced;     /* products in the precision of the model, instead of float32 */
} rtm_layer;

RTM_API const char* rtm_sources(void); /* a digest of the files that the library was built from */

/* Instruction sets of this processor that compute in float32, bfloat16 or int8: names with a comma after each, the
   fastest first. */
RTM_API const char* rtm_isas(const char* precision);

/* GOMP_parallel of the OpenMP runtime whose threads are used. */
RTM_API void rtm_set_team(void (*team)(void (*body)(void*), void* data, unsigned threads, unsigned flags));

/* Programs over layers of any weights. The tape has for each of its steps: dst, stack, n, state[n], m, inject[m]. */
RTM_API const char* rtm_native_new(const char* isa, const char* precision, int64_t D, int64_t latents,
                                   const int64_t* tape, int64_t steps, void** model);
RTM_API void rtm_native_free(void* model);
RTM_API const char* rtm_native_add_layer(void* model, int64_t stack, const rtm_layer* layer);
/* weight [N, D] and bias [N]; the first `tokens` rows are those of the vocabulary, for positions from `prefix` on. */
RTM_API const char* rtm_native_set_heads(void* model, int64_t output, int64_t N, int64_t tokens, int64_t prefix,
                                         const float* weight, const float* bias);
/* Steps [begin, end) in place: latents and x [B, L, D]. */
RTM_API const char* rtm_native_run(void* model, float* const* latents, const float* x, int64_t B, int64_t L,
                                   int64_t begin, int64_t end, int64_t threads);
/* All steps, then the heads: logits [B, L, N], answers [B, L - prefix], finite [B], change [B]. */
RTM_API const char* rtm_native_act_step(void* model, float* const* latents, const float* x, int64_t B, int64_t L,
                                        float* logits, int32_t* answers, bool* finite, float* change, int64_t threads);

/* Programs over symmetric layers; latents, x and gradients are [B, state] in the layout of the kernels. `sizes` are
   n, C, r, F, s, copies, still (symmetric_layers.h). */
RTM_API const char* rtm_symmetric_new(const char* isa, const int64_t* sizes, int64_t latents, double eps,
                                      const int64_t* tape, int64_t steps, void** model);
RTM_API void rtm_symmetric_free(void* model);
RTM_API int64_t rtm_symmetric_state(void* model);
RTM_API int64_t rtm_symmetric_saved(void* model, int64_t begin, int64_t end);
/* The ten weights of `SymmetricTensors`. */
RTM_API const char* rtm_symmetric_set_layer(void* model, int64_t stack, int64_t layer, float* const* weights);
/* [B, L, D] into the layout, and back. */
RTM_API const char* rtm_symmetric_sort(void* model, const float* x, int64_t B, float* sorted, int64_t threads);
RTM_API const char* rtm_symmetric_unsort(void* model, const float* sorted, int64_t B, float* x, int64_t threads);
/* Steps [begin, end) in place; `saved` [B, rtm_symmetric_saved] for the backward pass, or NULL. */
RTM_API const char* rtm_symmetric_forward(void* model, float* const* latents, const float* x, int64_t B, int64_t begin,
                                          int64_t end, float* saved, int64_t threads);
/* Gradients of the latents become those before the steps, dx is added to, ten of each of the `layers` are written. */
RTM_API const char* rtm_symmetric_backward(void* model, float* const* latents, float* dx, const float* saved, int64_t B,
                                           int64_t begin, int64_t end, float* const* weights, int64_t layers,
                                           int64_t threads);

#ifdef __cplusplus
}
#endif

#endif
