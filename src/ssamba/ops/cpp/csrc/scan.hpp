// The selective scan, forward and backward, for one clip and a range of channels.
//
//   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t      y_t = (C_t . h_t + D u_t) silu(z_t)   (Mamba, arXiv:2312.00752)
//
// A vector holds W channels, so that the sum over the N states needs no horizontal sum; the states of a vector stay in
// registers over a tile of CHUNK steps. The outer loop is over tiles and the inner one over vectors, so that rows of
// the inputs are read from end to end. In a tile, softplus, recurrence and gate are separate loops over small buffers.
// A reversed scan goes through the rows from the last valid one to the first. A is stored as A log2(e), for 2^x.
//
// Backward, with g_t the gradient of h_t and a prime for the gradient of the loss:
//   g_t = C_t y'_t + exp(delta_{t+1} A) g_{t+1}      where y' = out' silu(z)
//   C'_t = sum over channels of y'_t h_t        B'_t = sum over channels of delta_t u_t g_t
//   A' = sum_t delta_t w_t with w_t = exp(delta_t A) g_t h_{t-1}
//   u'_t = delta_t (B_t . g_t) + D y'_t        delta'_t = (A . w_t + u_t (B_t . g_t)) times the slope of softplus
//
// s counts steps in the order of the scan.
//
// Entry points: scan_forward and scan_backward. module.cpp calls them, from mixer_scan for models and from its own
// scan_forward and scan_backward for the operator. ssamba/ops/dispatch.py `resolve` chooses the backend,
// ssamba/ops/cpp/extension.py the instruction set.
#pragma once

constexpr int64_t TILE = CHUNK * W;  // floats of one quantity of a vector in a tile

static inline float* border_of(const Scan& in, int64_t clip, int64_t chunk, int64_t channel) {
  const int64_t chunks = (in.length + CHUNK - 1) / CHUNK;
  const int64_t padded = (in.channels + BLOCK - 1) / BLOCK * BLOCK;
  return in.borders + ((clip * chunks + chunk) * padded + channel) * in.state;
}

// Convert (channels, N) to (N, W) for the vector starting at `channel`, and back; lanes beyond the last channel are
// zero.
static inline void to_lanes(const float* matrix, int64_t channel, int64_t count, int64_t state, float* lanes) {
  for (int64_t n = 0; n < state; ++n)
    for (int64_t i = 0; i < W; ++i) lanes[n * W + i] = i < count ? matrix[(channel + i) * state + n] : 0.0f;
}

static inline void from_lanes(const float* lanes, int64_t channel, int64_t count, int64_t state, float* matrix) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t n = 0; n < state; ++n) matrix[(channel + i) * state + n] = lanes[n * W + i];
}

// The constants of a vector of channels (N + 3 + rank, W): A log2(e), its largest magnitude, D, the bias, and the
// weights of delta's low-rank factor.
static void prepare_constants(const Scan& in, int64_t channel, int64_t count, float* constants) {
  to_lanes(in.A, channel, count, in.state, constants);
  V magnitude = set1(0.0f);
  for (int64_t n = 0; n < in.state; ++n) {
    // Finite, so that an A of -inf times a step or a gradient of zero is not a NaN.
    V a = load(constants + n * W);
    if (in.logarithms) a = sub(set1(0.0f), exp2_product<true>(a, set1(1.44269504f)));
    a = at_most(1e30f, at_least(-1e30f, mul(a, set1(1.44269504f))));
    store(constants + n * W, a);
    magnitude = maximum(absolute(a), magnitude);
  }
  float* rest = constants + in.state * W;
  store(rest, magnitude);
  store(rest + W, in.D == nullptr ? set1(0.0f) : load_floats(in.D + channel, count));
  store(rest + 2 * W, in.bias == nullptr ? set1(0.0f) : load_floats(in.bias + channel, count));
  if (in.rank > 0) to_lanes(in.low_weight, channel, count, in.rank, rest + 3 * W);
}

static inline int64_t constants_size(const Scan& in) { return (in.state + 3 + in.rank) * W; }

static int64_t scan_constants_size(const Scan& in, int64_t blocks) { return blocks * (BLOCK / W) * constants_size(in); }

// Prepare the constants of `width` channels from `first` on.
static void prepare_all_constants(const Scan& in, int64_t first, int64_t width, float* constants) {
  for (int64_t offset = 0; offset < width; offset += W)
    prepare_constants(in, first + offset, smaller(W, width - offset), constants + offset / W * constants_size(in));
}

static void scan_constants(const Scan& in, float* constants) { prepare_all_constants(in, 0, in.channels, constants); }

// Return the constants of some channels: those of the whole scan, or computed in `own`.
static inline const float* constants_of(const Scan& in, int64_t first, int64_t width, float* own) {
  if (in.constants != nullptr) return in.constants + first / W * constants_size(in);
  prepare_all_constants(in, first, width, own);
  return own;
}

// The rows of B, C or delta's low-rank factor of a tile in float32: in place, or converted into `buffer`.
struct Coefficients {
  const float* first;  // of the tile's first step
  int64_t step;        // to the next step
};

static inline Coefficients coefficients(const Scan& in, const Rows& rows, int64_t columns, int64_t clip, int64_t length,
                                        int64_t s0, int64_t steps, float* buffer) {
  const int64_t row = row_of(in.reverse, length, s0);
  const int64_t offset = clip * rows.batch_stride + row * rows.row_stride;
  const int64_t step = in.reverse ? -rows.row_stride : rows.row_stride;
  if (rows.dtype == FLOAT32) return {static_cast<const float*>(rows.data) + offset, step};
  const uint16_t* p = static_cast<const uint16_t*>(rows.data) + offset;
  for (int64_t k = 0; k < steps; ++k)
    for (int64_t n = 0; n < columns; ++n) {
      const uint32_t bits = static_cast<uint32_t>(p[k * step + n]) << 16;
      std::memcpy(buffer + k * columns + n, &bits, sizeof bits);
    }
  return {buffer, columns};
}

// Load the step sizes of a tile before softplus, with their bias, into `delta` (CHUNK, W): as given, or computed from
// their low-rank factor with `weight` (rank, W).
static inline void load_steps(const Scan& in, Coefficients low, const float* weight, V bias, int64_t clip, int64_t length,
                              int64_t s0, int64_t steps, int64_t channel, int64_t count, float* delta) {
  if (in.rank == 0) {
    for (int64_t k = 0; k < steps; ++k)
      store(delta + k * W, add(load_row(in.delta, clip, row_of(in.reverse, length, s0 + k), channel, count), bias));
    return;
  }
  constexpr int64_t TOGETHER = 8;  // steps whose sums are in registers at once
  for (int64_t k = 0; k < steps; k += TOGETHER) {
    if (k + TOGETHER <= steps) {
      V sums[TOGETHER];
#pragma GCC unroll 8
      for (int i = 0; i < TOGETHER; ++i) sums[i] = bias;
      for (int64_t r = 0; r < in.rank; ++r) {
        const V w = load(weight + r * W);
        const float* factor = low.first + k * low.step + r;
#pragma GCC unroll 8
        for (int i = 0; i < TOGETHER; ++i) sums[i] = fma(w, set1(factor[i * low.step]), sums[i]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < TOGETHER; ++i) store(delta + (k + i) * W, sums[i]);
    } else {
      for (int64_t i = k; i < steps; ++i) {
        V sum = bias;
        for (int64_t r = 0; r < in.rank; ++r) sum = fma(load(weight + r * W), set1(low.first[i * low.step + r]), sum);
        store(delta + i * W, sum);
      }
    }
  }
}

// Prefetching. The hardware does not predict the reads and writes of a tile, because a vector goes down a column;
// prefetched during the recurrence, the data arrives while the arithmetic goes on. Vectors form strips of up to STRIP
// channels, and during one strip the next is fetched row by row: memory is faster with longer pieces than one cache
// line.
constexpr int64_t STRIP = 128;

struct Ahead {
  uintptr_t at[4];
  int64_t row_bytes[4], piece_bytes[4];  // to the next row; of BLOCK channels
  int64_t piece, pieces;                 // in a row
};

static inline void fetch(Ahead* ahead) {
  const bool row_done = ahead->piece + 1 == ahead->pieces;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    prefetch(ahead->at[i]);
    ahead->at[i] += static_cast<uintptr_t>(row_done ? ahead->row_bytes[i] : ahead->piece_bytes[i]);
  }
  ahead->piece = row_done ? 0 : ahead->piece + 1;
}

// Return what vector `offset` / W fetches of the strip after its own; the piece has `width` channels from
// `first_channel` on.
static inline Ahead look_ahead(const Scan& in, const Rows* const (&streams)[4], int64_t clip, int64_t length, int64_t s0,
                               int64_t first_channel, int64_t width, int64_t offset, bool backward) {
  const int64_t strips = (width + STRIP - 1) / STRIP;
  const int64_t strip_width = ((width + strips - 1) / strips + BLOCK - 1) / BLOCK * BLOCK;
  const int64_t strip = offset / strip_width * strip_width;
  const bool last = strip + strip_width >= width;
  const int64_t next = last ? 0 : strip + strip_width;
  const int64_t own_width = smaller(strip_width, width - strip), next_width = smaller(strip_width, width - next);
  const int64_t s = s0 + (last ? (backward ? -CHUNK : CHUNK) : 0) + CHUNK * (offset - strip) / own_width;
  Ahead ahead;
  ahead.piece = 0;
  ahead.pieces = (next_width + BLOCK - 1) / BLOCK;
  for (int i = 0; i < 4; ++i) {
    const Rows& rows = streams[i]->data == nullptr ? in.u : *streams[i];
    const int64_t size = rows.dtype == FLOAT32 ? 4 : 2;
    const int64_t start = offset_of(rows, clip, row_of(in.reverse, length, s), first_channel + next);
    ahead.at[i] = reinterpret_cast<uintptr_t>(rows.data) + static_cast<uintptr_t>(start * size);
    ahead.piece_bytes[i] = BLOCK * size;
    ahead.row_bytes[i] = ((in.reverse ? -rows.row_stride : rows.row_stride) - (ahead.pieces - 1) * BLOCK) * size;
  }
  return ahead;
}

// The recurrence over a tile for NB states of a vector; y accumulates. `h` is (NB, W).
template <int NB, bool SAFE>
static void advance(const float* A, Coefficients B, Coefficients C, const float* delta, const float* drive, float* y,
                    int64_t steps, Ahead ahead, float* h) {
  V state[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) state[n] = load(h + n * W);
  for (int64_t k = 0; k < steps; ++k) {
    fetch(&ahead);
    const V d = load(delta + k * W), x = load(drive + k * W);
    V even = load(y + k * W), odd = set1(0.0f);
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const V decay = exp2_product<SAFE>(d, load(A + n * W));
      state[n] = fma(decay, state[n], mul(x, set1(B.first[n])));
      V& sum = n % 2 ? odd : even;
      sum = fma(state[n], set1(C.first[n]), sum);
    }
    store(y + k * W, add(even, odd));
    B.first += B.step;
    C.first += C.step;
  }
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) store(h + n * W, state[n]);
}

template <bool SAFE>
static void advance_all(int64_t state, const float* A, Coefficients B, Coefficients C, const float* delta,
                        const float* drive, float* y, int64_t steps, Ahead ahead, float* h) {
  int64_t n = 0;
  while (n < state) {
    const int64_t left = state - n;
    const Coefficients b = {B.first + n, B.step}, c = {C.first + n, C.step};
    if (left >= 16 && MAX_STATES >= 16) {
      advance<MAX_STATES, SAFE>(A + n * W, b, c, delta, drive, y, steps, ahead, h + n * W);
      n += MAX_STATES;
    } else if (left >= 8) {
      advance<8, SAFE>(A + n * W, b, c, delta, drive, y, steps, ahead, h + n * W);
      n += 8;
    } else if (left >= 4) {
      advance<4, SAFE>(A + n * W, b, c, delta, drive, y, steps, ahead, h + n * W);
      n += 4;
    } else {
      advance<1, SAFE>(A + n * W, b, c, delta, drive, y, steps, ahead, h + n * W);
      n += 1;
    }
  }
}

// Fill the buffers that the recurrence over a tile reads: delta (from load_steps) becomes the step, drive is delta u,
// and y is D u plus `before`, if given. Return the longest step of each lane.
template <bool PLAIN>
static V enter_tile(const Scan& in, V D, const Column& u, const Column* before, int64_t steps, float* delta, float* drive, float* y) {
  V longest = set1(0.0f);
  for (int64_t k = 0; k < steps; ++k) {
    const V u_k = load_step<PLAIN>(u, k), skip = mul(D, u_k);
    V d = load(delta + k * W);
    if (in.softplus) d = softplus(d);
    longest = maximum(absolute(d), longest);
    store(delta + k * W, d);
    store(drive + k * W, mul(d, u_k));
    store(y + k * W, before != nullptr ? add(skip, load_step<PLAIN>(*before, k)) : skip);
  }
  return longest;
}

template <bool PLAIN>
static void leave_tile(const float* y, const Column* z, V opening, int64_t steps, const Column& out) {
  for (int64_t k = 0; k < steps; ++k) {
    const V y_k = load(y + k * W);
    store_step<PLAIN>(out, k, z == nullptr ? y_k : mul(y_k, mul(silu(load_step<PLAIN>(*z, k)), opening)));
  }
}

static int64_t scan_forward_scratch(const Scan& in, int64_t blocks) {
  const int64_t vectors = blocks * (BLOCK / W);
  return scan_constants_size(in, blocks) + vectors * in.state * W + 3 * TILE + CHUNK * (2 * in.state + in.rank);
}

static void scan_forward(const ScanForward& args, int64_t clip, int64_t first_block, int64_t last_block, float* scratch) {
  const Scan& in = args.in;
  const int64_t length = clip_length(in.lengths, clip, in.length), N = in.state, size = N * W;
  const int64_t first_channel = first_block * BLOCK;
  const int64_t width = smaller(last_block * BLOCK, in.channels) - first_channel, vectors = (width + W - 1) / W;
  const Rows* const streams[] = {&in.u, &in.delta, &in.z, &args.out};
  const int64_t stride = constants_size(in);
  const float* constants = constants_of(in, first_channel, width, scratch);
  float* states = scratch + vectors * stride;
  float *delta = states + vectors * size, *drive = delta + TILE, *y = drive + TILE;
  const V opening = set1(args.opening);
  float *buffer_B = y + TILE, *buffer_C = buffer_B + CHUNK * N, *buffer_low = buffer_C + CHUNK * N;

  for (int64_t j = 0; j < vectors; ++j) {
    const int64_t channel = first_channel + j * W, count = smaller(W, in.channels - channel);
    if (in.initial_state != nullptr)
      to_lanes(in.initial_state + clip * in.channels * N, channel, count, N, states + j * size);
    else
      std::memset(states + j * size, 0, static_cast<size_t>(size) * sizeof(float));
  }
  for (int64_t s0 = 0; s0 < length; s0 += CHUNK) {
    const int64_t steps = smaller(CHUNK, length - s0);
    const Coefficients B = coefficients(in, in.B, N, clip, length, s0, steps, buffer_B);
    const Coefficients C = coefficients(in, in.C, N, clip, length, s0, steps, buffer_C);
    const Coefficients low = in.rank > 0 ? coefficients(in, in.low, in.rank, clip, length, s0, steps, buffer_low) : B;
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t channel = first_channel + j * W, count = smaller(W, in.channels - channel);
      const float *A = constants + j * stride, *rest = A + size;
      const V D = load(rest + W), bias = load(rest + 2 * W);
      float* h = states + j * size;
      if (in.borders != nullptr)
        std::memcpy(border_of(in, clip, s0 / CHUNK, channel), h, static_cast<size_t>(size) * sizeof(float));
      load_steps(in, low, rest + 3 * W, bias, clip, length, s0, steps, channel, count, delta);
      const auto of = [&](const Rows& rows) { return column(rows, in.reverse, clip, length, s0, channel, count); };
      const Column u = of(in.u), z = in.z.data != nullptr ? of(in.z) : Column{}, out = of(args.out);
      const Column *before = args.accumulate ? &out : nullptr, *gate = in.z.data != nullptr ? &z : nullptr;
      const bool plain = is_plain(u) && is_plain(out) && (gate == nullptr || is_plain(z));
      const V longest = plain ? enter_tile<true>(in, D, u, before, steps, delta, drive, y)
                              : enter_tile<false>(in, D, u, before, steps, delta, drive, y);
      const Ahead ahead = look_ahead(in, streams, clip, length, s0, first_channel, width, j * W, false);
      if (ALWAYS_SAFE || all_below(mul(longest, load(rest)), 1e5f))
        advance_all<false>(N, A, B, C, delta, drive, y, steps, ahead, h);
      else
        advance_all<true>(N, A, B, C, delta, drive, y, steps, ahead, h);
      plain ? leave_tile<true>(y, gate, opening, steps, out) : leave_tile<false>(y, gate, opening, steps, out);
    }
  }
  for (int64_t row = length; row < in.length; ++row) zero_row(args.out, clip, row, first_channel, width);
  if (args.last_state == nullptr) return;
  for (int64_t j = 0; j < vectors; ++j)
    from_lanes(states + j * size, first_channel + j * W, smaller(W, width - j * W), N,
               args.last_state + clip * in.channels * N);
}

// Rerun the recurrence and save what the backward sweep needs: states h (steps + 1, N, W), of which row 0 is given, and
// decays (steps, N, W). y accumulates for the gradient of the gate. The gradient of C is complete here: it needs only
// h.
template <int NB, bool SAFE>
static void replay(int64_t N, const float* A, Coefficients B, Coefficients C, const float* delta, const float* drive,
                   const float* grad_y, float* y, float* grad_C, int64_t steps, Ahead ahead, float* h, float* decays) {
  V state[NB], products[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) state[n] = load(h + n * W);
  for (int64_t k = 0; k < steps; ++k) {
    fetch(&ahead);
    const V d = load(delta + k * W), x = load(drive + k * W), dy = load(grad_y + k * W);
    V even = load(y + k * W), odd = set1(0.0f);
    float *h_k = h + (k + 1) * N * W, *decay_k = decays + k * N * W;
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const V decay = exp2_product<SAFE>(d, load(A + n * W));
      store(decay_k + n * W, decay);
      state[n] = fma(decay, state[n], mul(x, set1(B.first[n])));
      store(h_k + n * W, state[n]);
      V& sum = n % 2 ? odd : even;
      sum = fma(state[n], set1(C.first[n]), sum);
      products[n] = mul(dy, state[n]);
    }
    add_row_sums<NB>(products, grad_C + k * N);
    store(y + k * W, add(even, odd));
    B.first += B.step;
    C.first += C.step;
  }
}

// Sweep from the last step to the first. `carry` (NB, W) is exp(delta A) g of the step after, and at the end that of
// the tile's first step; drive_slope becomes B . g, and step_slope A . w.
template <int NB>
static void sweep_back(int64_t N, const float* A, Coefficients B, Coefficients C, const float* delta, const float* drive,
                       const float* grad_y, float* drive_slope, float* step_slope, float* grad_B, int64_t steps,
                       Ahead ahead, const float* h, const float* decays, float* carry, float* grad_A) {
  V c[NB], products[NB];
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) c[n] = load(carry + n * W);
  for (int64_t k = steps - 1; k >= 0; --k) {
    fetch(&ahead);
    const V d = load(delta + k * W), x = load(drive + k * W), dy = load(grad_y + k * W);
    const float *h_before = h + k * N * W, *decay_k = decays + k * N * W;
    const float *B_k = B.first + k * B.step, *C_k = C.first + k * C.step;
    V along_B = load(drive_slope + k * W), along_A = load(step_slope + k * W);
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) {
      const V g = fma(dy, set1(C_k[n]), c[n]);
      along_B = fma(g, set1(B_k[n]), along_B);
      products[n] = mul(x, g);
      c[n] = mul(load(decay_k + n * W), g);
      const V w = mul(c[n], load(h_before + n * W));
      store(grad_A + n * W, fma(w, d, load(grad_A + n * W)));
      along_A = fma(w, load(A + n * W), along_A);
    }
    add_row_sums<NB>(products, grad_B + k * N);
    store(drive_slope + k * W, along_B);
    store(step_slope + k * W, along_A);
  }
#pragma GCC unroll 16
  for (int n = 0; n < NB; ++n) store(carry + n * W, c[n]);
}

// The buffers of one vector in a tile: each (CHUNK, W) but B, C (CHUNK, N), h (CHUNK + 1, N, W) and decays (CHUNK, N,
// W).
struct Workbench {
  float *u, *delta, *drive, *slope, *grad_y, *gate_slope, *y, *drive_slope, *step_slope;
  float *buffer_B, *buffer_C, *h, *decays, *buffer_low;
  float *grad_B, *grad_C;  // of the current group, in the last of the incomplete sums
};

static float* lay_out(Workbench* bench, int64_t N, int64_t rank, float* scratch) {
  float** quantities[] = {&bench->u,          &bench->delta, &bench->drive,       &bench->slope,     &bench->grad_y,
                          &bench->gate_slope, &bench->y,     &bench->drive_slope, &bench->step_slope};
  for (float** quantity : quantities) {
    *quantity = scratch;
    scratch += TILE;
  }
  float** coefficients[] = {&bench->buffer_B, &bench->buffer_C};
  for (float** coefficient : coefficients) {
    *coefficient = scratch;
    scratch += CHUNK * N;
  }
  bench->h = scratch;
  bench->decays = bench->h + (CHUNK + 1) * N * W;
  bench->buffer_low = bench->decays + CHUNK * N * W;
  return bench->buffer_low + CHUNK * rank;
}

template <bool SAFE>
static void replay_all(int64_t N, const float* A, Coefficients B, Coefficients C, int64_t steps, Ahead ahead, const Workbench& w) {
  for (int64_t n = 0; n < N;) {
    const Coefficients b = {B.first + n, B.step}, c = {C.first + n, C.step};
#define SSAMBA_REPLAY(NB)                                                                                               \
  replay<NB, SAFE>(N, A + n * W, b, c, w.delta, w.drive, w.grad_y, w.y, w.grad_C + n, steps, ahead, w.h + n * W, w.decays + n * W); \
  n += NB
    if (N - n >= 16 && MAX_STATES >= 16) {
      SSAMBA_REPLAY(MAX_STATES);
    } else if (N - n >= 8) {
      SSAMBA_REPLAY(8);
    } else if (N - n >= 4) {
      SSAMBA_REPLAY(4);
    } else {
      SSAMBA_REPLAY(1);
    }
#undef SSAMBA_REPLAY
  }
}

static void sweep_back_all(int64_t N, const float* A, Coefficients B, Coefficients C, int64_t steps, Ahead ahead,
                           const Workbench& w, float* carry, float* grad_A) {
  for (int64_t n = 0; n < N;) {
    const Coefficients b = {B.first + n, B.step}, c = {C.first + n, C.step};
#define SSAMBA_SWEEP(NB)                                                                                        \
  sweep_back<NB>(N, A + n * W, b, c, w.delta, w.drive, w.grad_y, w.drive_slope, w.step_slope, w.grad_B + n, steps, ahead, \
                 w.h + n * W, w.decays + n * W, carry + n * W, grad_A + n * W);                                 \
  n += NB
    if (N - n >= 16 && MAX_STATES >= 16) {
      SSAMBA_SWEEP(MAX_STATES);
    } else if (N - n >= 8) {
      SSAMBA_SWEEP(8);
    } else if (N - n >= 4) {
      SSAMBA_SWEEP(4);
    } else {
      SSAMBA_SWEEP(1);
    }
#undef SSAMBA_SWEEP
  }
}

// Fill the buffers that replay and sweep_back read. Return the longest step of each lane.
template <bool PLAIN>
static V enter_tile_back(const Scan& in, V D, const Column& u, const Column* z, const Column& grad_out, int64_t steps, const Workbench& to) {
  V longest = set1(0.0f);
  for (int64_t k = 0; k < steps; ++k) {
    const V u_k = load_step<PLAIN>(u, k);
    V d = load(to.delta + k * W), slope = set1(1.0f), dy = load_step<PLAIN>(grad_out, k);
    if (in.softplus) d = softplus(d, &slope);
    longest = maximum(absolute(d), longest);
    if (z != nullptr) {
      const V z_k = load_step<PLAIN>(*z, k), s = sigmoid(z_k);
      store(to.gate_slope + k * W, mul(dy, silu_slope(z_k, s)));
      dy = mul(dy, mul(at_least(-1e4f, z_k), s));
    }
    store(to.u + k * W, u_k);
    store(to.delta + k * W, d);
    store(to.slope + k * W, slope);
    store(to.drive + k * W, mul(d, u_k));
    store(to.grad_y + k * W, dy);
    store(to.y + k * W, mul(D, u_k));
  }
  return longest;
}

// Write the gradients of u, delta and, with a gate, z from the results of sweep_back; add those of D and the bias to
// `grad_rest`.
template <bool PLAIN>
static void leave_tile_back(V D, const Workbench& from, int64_t steps, const Column& grad_u, const Column& grad_delta,
                            const Column* grad_z, float* grad_rest) {
  V grad_D = load(grad_rest), grad_bias = load(grad_rest + W);
  for (int64_t k = steps - 1; k >= 0; --k) {
    const V u = load(from.u + k * W), dy = load(from.grad_y + k * W), along_B = load(from.drive_slope + k * W);
    const V along_A = mul(load(from.step_slope + k * W), set1(0.693147181f));  // A is stored times log2(e)
    const V grad_step = mul(fma(u, along_B, along_A), load(from.slope + k * W));
    store_step<PLAIN>(grad_u, k, fma(load(from.delta + k * W), along_B, mul(D, dy)));
    store_step<PLAIN>(grad_delta, k, grad_step);
    if (grad_z != nullptr) store_step<PLAIN>(*grad_z, k, mul(load(from.gate_slope + k * W), load(from.y + k * W)));
    grad_D = fma(dy, u, grad_D);
    grad_bias = add(grad_bias, grad_step);
  }
  store(grad_rest, grad_D);
  store(grad_rest + W, grad_bias);
}

static int64_t scan_backward_scratch(const Scan& in, int64_t groups) {
  const int64_t vectors = groups * (GROUP / W), N = in.state;
  return scan_constants_size(in, groups * (GROUP / BLOCK)) + vectors * (2 * N + 2) * W + 9 * TILE + CHUNK * (2 * N + in.rank) +
         (2 * CHUNK + 1) * N * W + most_subtrees(groups) * 2 * CHUNK * N;
}

static void scan_backward(const ScanBackward& args, int64_t clip, int64_t first_group, int64_t last_group,
                          float* scratch) {
  const Scan& in = args.in;
  const int64_t length = clip_length(in.lengths, clip, in.length), N = in.state, size = N * W;
  const int64_t groups = (in.channels + GROUP - 1) / GROUP, first_channel = first_group * GROUP;
  const int64_t width = smaller(last_group * GROUP, in.channels) - first_channel, vectors = (width + W - 1) / W;
  const Rows* const reads[] = {&in.u, &in.delta, &in.z, &args.grad_out};
  const Rows* const writes[] = {&args.grad_u, &args.grad_delta, &args.grad_z, &args.grad_u};
  const bool gated = in.z.data != nullptr;
  // The running gradients of each vector: state (N, W), A (N, W), D and bias (W) each.
  const int64_t own = constants_size(in), stride = (2 * N + 2) * W;
  Workbench bench;
  float *made = lay_out(&bench, N, in.rank, scratch), *vector_data = made + vectors * own;
  // Sums over groups whose other half is not complete, in one tile: grad_B and grad_C (CHUNK, N) each.
  float* const waiting = vector_data + vectors * stride;
  const int64_t sums_size = 2 * CHUNK * N;
  Subtree trees[64];
  const float* constants = constants_of(in, first_channel, width, made);

  for (int64_t j = 0; j < vectors; ++j) {
    const int64_t channel = first_channel + j * W, count = smaller(W, in.channels - channel);
    float* carry = vector_data + j * stride;
    std::memset(carry, 0, static_cast<size_t>(2 * size + 2 * W) * sizeof(float));
    if (args.grad_last != nullptr) to_lanes(args.grad_last + clip * in.channels * N, channel, count, N, carry);
  }
  for (int64_t chunk = (length + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
    const int64_t s0 = chunk * CHUNK, steps = smaller(CHUNK, length - s0);
    const Coefficients B = coefficients(in, in.B, N, clip, length, s0, steps, bench.buffer_B);
    const Coefficients C = coefficients(in, in.C, N, clip, length, s0, steps, bench.buffer_C);
    const Coefficients low =
        in.rank > 0 ? coefficients(in, in.low, in.rank, clip, length, s0, steps, bench.buffer_low) : B;
    int64_t tree_count = 0;
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t channel = first_channel + j * W, count = smaller(W, in.channels - channel);
      const float *A = constants + j * own, *rest = A + size;
      float *carry = vector_data + j * stride, *grad_A = carry + size, *grad_rest = grad_A + size;
      const V D = load(rest + W), bias = load(rest + 2 * W);
      if (channel % GROUP == 0) {
        trees[tree_count] = {channel / GROUP, 0};
        bench.grad_B = waiting + tree_count++ * sums_size;
        bench.grad_C = bench.grad_B + CHUNK * N;
        std::memset(bench.grad_B, 0, static_cast<size_t>(sums_size) * sizeof(float));
      }
      std::memcpy(bench.h, border_of(in, clip, chunk, channel), static_cast<size_t>(size) * sizeof(float));
      std::memset(bench.drive_slope, 0, static_cast<size_t>(steps * W) * sizeof(float));
      std::memset(bench.step_slope, 0, static_cast<size_t>(steps * W) * sizeof(float));

      load_steps(in, low, rest + 3 * W, bias, clip, length, s0, steps, channel, count, bench.delta);
      const auto of = [&](const Rows& rows) { return column(rows, in.reverse, clip, length, s0, channel, count); };
      const Column u = of(in.u), z = gated ? of(in.z) : Column{}, grad_out = of(args.grad_out);
      const Column grad_u = of(args.grad_u), grad_delta = of(args.grad_delta), grad_z = gated ? of(args.grad_z) : Column{};
      const bool plain = is_plain(u) && is_plain(grad_out) && is_plain(grad_u) && is_plain(grad_delta) &&
                         (!gated || (is_plain(z) && is_plain(grad_z)));
      const V longest = plain ? enter_tile_back<true>(in, D, u, gated ? &z : nullptr, grad_out, steps, bench)
                              : enter_tile_back<false>(in, D, u, gated ? &z : nullptr, grad_out, steps, bench);
      const Ahead read = look_ahead(in, reads, clip, length, s0, first_channel, width, j * W, true);
      const Ahead written = look_ahead(in, writes, clip, length, s0, first_channel, width, j * W, true);
      if (ALWAYS_SAFE || all_below(mul(longest, load(rest)), 1e5f))
        replay_all<false>(N, A, B, C, steps, read, bench);
      else
        replay_all<true>(N, A, B, C, steps, read, bench);
      sweep_back_all(N, A, B, C, steps, written, bench, carry, grad_A);

      plain ? leave_tile_back<true>(D, bench, steps, grad_u, grad_delta, gated ? &grad_z : nullptr, grad_rest)
            : leave_tile_back<false>(D, bench, steps, grad_u, grad_delta, gated ? &grad_z : nullptr, grad_rest);

      if ((channel + W) % GROUP == 0 || j + 1 == vectors)  // the group is complete
        for (; tree_count > 1 && are_halves(trees[tree_count - 2], trees[tree_count - 1]); --tree_count) {
          float* sums = waiting + (tree_count - 2) * sums_size;
          for (int64_t i = 0; i < sums_size; i += W) store(sums + i, add(load(sums + i), load(sums + sums_size + i)));
          ++trees[tree_count - 2].level;
        }
    }
    for (int64_t i = 0; i < tree_count; ++i) {
      const float *grad_B = waiting + i * sums_size, *grad_C = grad_B + CHUNK * N;
      const int64_t place = clip * groups + trees[i].first;
      args.part_level[place] = static_cast<int8_t>(trees[i].level);
      for (int64_t k = 0; k < steps; ++k) {
        const int64_t row = place * in.length + row_of(in.reverse, length, s0 + k);
        std::memcpy(args.part_B + row * N, grad_B + k * N, static_cast<size_t>(N) * sizeof(float));
        std::memcpy(args.part_C + row * N, grad_C + k * N, static_cast<size_t>(N) * sizeof(float));
      }
    }
  }
  for (int64_t row = length; row < in.length; ++row) {
    zero_row(args.grad_u, clip, row, first_channel, width);
    zero_row(args.grad_delta, clip, row, first_channel, width);
    if (gated) zero_row(args.grad_z, clip, row, first_channel, width);
  }
  for (int64_t j = 0; j < vectors; ++j) {
    const int64_t channel = first_channel + j * W, count = smaller(W, in.channels - channel);
    const float *carry = vector_data + j * stride, *grad_A = carry + size, *grad_rest = grad_A + size;
    const int64_t matrix = clip * in.channels * N, row = clip * in.channels + channel;
    from_lanes(grad_A, channel, count, N, args.part_A + matrix);
    if (args.grad_initial != nullptr) from_lanes(carry, channel, count, N, args.grad_initial + matrix);
    if (args.part_D != nullptr) store_floats(args.part_D + row, load(grad_rest), count);
    if (args.part_bias != nullptr) store_floats(args.part_bias + row, load(grad_rest + W), count);
  }
}
