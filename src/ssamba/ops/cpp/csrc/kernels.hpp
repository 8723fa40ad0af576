// Arguments of the kernels as plain structs, and one table of kernels per instruction set.
//
// kernels.cpp is compiled once per instruction set and exports one `Kernels` table each; module.cpp (compiled for the
// baseline) picks a table at run time, cuts the work into pieces and runs them on the threads. Nothing here may be
// an inline function or a std:: template: the linker keeps one copy, possibly the one with the wrong instructions.
//
// Shapes: B clips, L tokens, E channels, N states of a channel; `rank` (of delta's projection) and `taps` (of the
// convolution) are words. In these sources W is the number of lanes of a vector.
#pragma once

#include <cstdint>

namespace ssamba {

// In the forward passes, channels are divided among threads in blocks of BLOCK. The scan's backward pass sums the
// gradients of B and C over channels: within a group of GROUP channels in a fixed order, then over the groups in pairs,
// pairs of pairs and so on (Subtree), so that the result does not depend on the number of threads, and threads pass on
// few sums.
constexpr int64_t BLOCK = 16;
constexpr int64_t GROUP = 32;
// The forward pass saves the state before every CHUNK steps; the backward pass recomputes the inside of a chunk.
constexpr int64_t CHUNK = 64;

// The sum over groups [first, first + 2^level), where 2^level divides `first`: the sum of its two halves. If the number
// of groups is no power of two, the remaining sums are added from the end.
struct Subtree {
  int64_t first;
  int level;
};

// Whether the two subtrees are the halves of one that is a level higher.
static constexpr bool are_halves(Subtree before, Subtree after) {
  return before.level == after.level && (before.first >> before.level) % 2 == 0;
}

// The most subtrees that can be incomplete at a time among `groups` groups, including the current one.
static constexpr int most_subtrees(int64_t groups) {
  int levels = 2;
  for (; groups > 1; groups /= 2) ++levels;
  return 2 * levels;
}

enum DType : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

// A (B, L, channels) array whose last dimension is contiguous; strides count elements. `data` null: absent.
struct Rows {
  void* data;
  int64_t batch_stride;
  int64_t row_stride;
  int32_t dtype;
};

struct Scan {
  int64_t batch, length, channels, state;
  bool softplus, reverse, logarithms;
  Rows u, delta, z;             // (B, L, E)
  Rows low;                     // (B, L, rank): with rank > 0, delta is low . low_weight and `delta` is absent
  const float* low_weight;      // (E, rank)
  int64_t rank;
  Rows B, C;                    // (B, L, N)
  const float* A;               // (E, N), with `logarithms` log(-A)
  const float* D;               // (E) or null
  const float* bias;            // (E) or null
  const int64_t* lengths;       // (B) or null
  const float* initial_state;   // (B, E, N) or null: zeros
  float* borders;               // states before each chunk (B, chunks, padded E, N) in the kernels' own order, or null
  const float* constants;       // computed by scan_constants, once for all clips; null: each piece computes its own
};

struct ScanForward {
  Scan in;
  bool accumulate;    // add to `out`, before the gate
  Rows out;           // (B, L, E)
  float* last_state;  // (B, E, N) or null
  float opening;      // factor of silu(z)
};

struct ScanBackward {
  Scan in;
  Rows grad_out;                     // (B, L, E)
  const float* grad_last;            // (B, E, N) or null: zeros
  Rows grad_u, grad_delta, grad_z;   // (B, L, E)
  float* grad_initial;               // (B, E, N) or null
  float *part_B, *part_C;            // (B, groups, L, N): the sum of a subtree, at its first group
  int8_t* part_level;                // (B, groups): the level of the subtree at this group; negative: none
  float* part_A;                     // (B, E, N): partial sums of each clip
  float *part_D, *part_bias;         // (B, E) or null
};

struct Conv {
  int64_t batch, length, channels, taps;
  bool silu, reverse;
  Rows x;                    // (B, L, E)
  const float* weight;       // (taps, E): transposed, so that channels are contiguous
  const float* bias;         // (E) or null
  const int64_t* lengths;    // (B) or null
};

struct ConvForward {
  Conv in;
  Rows out;                 // (B, L, E)
  const float* projection;  // (columns, E) by which the output is multiplied, or null; float32 only
  int64_t columns;
  Rows projected;           // (B, L, columns)
};

struct ConvBackward {
  Conv in;
  bool accumulate;        // add to `grad_x`
  Rows grad_out, grad_x;  // (B, L, E)
  float* part_weight;     // (B, taps, E): partial sums of each clip
  float* part_bias;       // (B, E) or null
};

// gated = opening y silu(z). With `grad`, the gradient of `gated`: turn it into that of y, and compute that of z.
struct Gate {
  int64_t batch, length, channels;
  float opening;
  const int64_t* lengths;   // (B) or null
  Rows y, z, gated;         // (B, L, E)
  Rows grad, grad_z;        // (B, L, E), or absent
};

// One instruction set. Each function processes one clip and a range of channel blocks (or steps) on the calling thread.
struct Kernels {
  const char* name;
  int64_t (*scan_constants_size)(const Scan&, int64_t blocks);                  // floats
  void (*scan_constants)(const Scan&, float* constants);
  int64_t (*scan_forward_scratch)(const Scan&, int64_t blocks);                 // floats
  void (*scan_forward)(const ScanForward&, int64_t clip, int64_t first_block, int64_t last_block, float* scratch);
  int64_t (*scan_backward_scratch)(const Scan&, int64_t groups);                // floats
  void (*scan_backward)(const ScanBackward&, int64_t clip, int64_t first_group, int64_t last_group, float* scratch);
  void (*conv_forward)(const ConvForward&, int64_t clip, int64_t first_step, int64_t last_step);
  int64_t (*conv_backward_scratch)(const Conv&, int64_t blocks);                // floats
  void (*conv_backward)(const ConvBackward&, int64_t clip, int64_t first_block, int64_t last_block, float* scratch);
  void (*gate)(const Gate&, int64_t clip, int64_t first_row, int64_t last_row);
};

extern const Kernels kernels_generic;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace ssamba
