// What the kernels are given and how they are reached: plain structs, and one table of functions per instruction set.
//
// kernels.cpp is compiled once per instruction set and exports one `Kernels` table each; module.cpp (compiled for the
// baseline) picks a table at run time, cuts the work into pieces and runs them on the threads. Nothing here may be
// an inline function or a std:: template: the linker keeps one copy, and it could keep the one with the wrong instructions.
//
// Shapes: B batch, L tokens, D channels, N state size, R rank of delta, K taps.
#pragma once

#include <cstdint>

namespace ssamba {

// Channels are dealt out to threads in blocks of BLOCK in the forward passes. The backward of the scan sums the gradients of B
// and C over channels: within a group of GROUP channels in a fixed order, then over the groups in pairs, pairs of pairs and so on
// (Subtree), so that the result does not depend on the number of threads, and threads pass on few sums.
constexpr int64_t BLOCK = 16;
constexpr int64_t GROUP = 32;
// The forward pass keeps the state before every CHUNK steps; the backward pass computes the inside of a chunk again.
constexpr int64_t CHUNK = 64;

// The sum over groups [first, first + 2^level), where 2^level divides `first`: the sum of its halves. What is left of groups that make up
// no power of two is added from the end.
struct Subtree {
  int64_t first;
  int level;
};

// Whether the subtree before may be added to, and grows one level.
static constexpr bool are_halves(Subtree before, Subtree after) {
  return before.level == after.level && (before.first >> before.level) % 2 == 0;
}

// Subtrees that can wait to be completed among so many groups, the one in work among them.
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
  Rows u, delta, z;             // (B, L, D)
  Rows low;                     // (B, L, R): with R > 0, delta is low . low_weight and `delta` is absent
  const float* low_weight;      // (D, R)
  int64_t rank;                 // R
  Rows B, C;                    // (B, L, N)
  const float* A;               // (D, N), with `logarithms` log(-A)
  const float* D;               // (D) or null
  const float* bias;            // (D) or null
  const int64_t* lengths;       // (B) or null
  const float* initial_state;   // (B, D, N) or null: zeros
  float* borders;               // (B, chunks, padded D, N) in the kernels' own order, or null: do not keep
  const float* constants;       // what scan_constants made, once for all clips; null: each piece makes its own
};

struct ScanForward {
  Scan in;
  bool accumulate;    // add to what stands in `out`, before the gate
  Rows out;           // (B, L, D)
  float* last_state;  // (B, D, N) or null: not wanted
  float opening;      // what silu(z) is multiplied by
};

struct ScanBackward {
  Scan in;
  Rows grad_out;                     // (B, L, D)
  const float* grad_last;            // (B, D, N) or null: zeros
  Rows grad_u, grad_delta, grad_z;   // (B, L, D)
  float* grad_initial;               // (B, D, N) or null: not wanted
  float *part_B, *part_C;            // (B, groups, L, N): in the place of its first group, the sum of a subtree
  int8_t* part_level;                // (B, groups): the level of the subtree that stands there; negative: none does
  float* part_A;                     // (B, D, N): one clip's share
  float *part_D, *part_bias;         // (B, D), or null: not wanted
};

struct Conv {
  int64_t batch, length, channels, taps;
  bool silu, reverse;
  Rows x;                    // (B, L, D)
  const float* weight;       // (K, D): transposed, so that channels are contiguous
  const float* bias;         // (D) or null
  const int64_t* lengths;    // (B) or null
};

struct ConvForward {
  Conv in;
  Rows out;                 // (B, L, D)
  const float* projection;  // (columns, D), by which what comes out is multiplied right away, or null; for float32
  int64_t columns;
  Rows projected;           // (B, L, columns)
};

struct ConvBackward {
  Conv in;
  bool accumulate;        // add to what stands in `grad_x`
  Rows grad_out, grad_x;  // (B, L, D)
  float* part_weight;     // (B, K, D): one clip's share
  float* part_bias;       // (B, D), or null: not wanted
};

// gated = opening y silu(z), and with `grad` the way back: grad, of `gated`, becomes that of y.
struct Gate {
  int64_t batch, length, channels;
  float opening;
  const int64_t* lengths;   // (B) or null
  Rows y, z, gated;         // (B, L, D)
  Rows grad, grad_z;        // (B, L, D), or absent
};

// One instruction set. Each function does one clip and a range of channel blocks (or of steps), on the calling thread.
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
