// The depthwise causal convolution with its SiLU, forward and backward.
//
//   p_s = bias + sum_k weight_k x_{s-(K-1)+k}      y_s = silu(p_s)
// Backward, with p' = y' silu'(p):
//   x'_s = sum_k weight_k p'_{s+(K-1)-k}      weight'_k = sum_s p'_s x_{s-(K-1)+k}      bias' = sum_s p'_s
//
// K is the number of taps; s counts steps in the direction of the convolution, with zeros outside the clip.
#pragma once

// Return p_s for one vector of channels.
static inline V convolve(const Conv& in, int64_t clip, int64_t length, int64_t s, int64_t channel, int64_t count) {
  V p = in.bias == nullptr ? set1(0.0f) : load_floats(in.bias + channel, count);
  const int64_t missing = in.taps - 1 - s;  // taps that reach before the clip
  for (int64_t k = missing > 0 ? missing : 0; k < in.taps; ++k) {
    const int64_t row = row_of(in.reverse, length, s - (in.taps - 1) + k);
    p = fma(load_floats(in.weight + k * in.channels + channel, count), load_row(in.x, clip, row, channel, count), p);
  }
  return p;
}

// The common case: K = TAPS, full vectors, no tap reaches before the clip. ROWS steps together share the loads of
// inputs.
constexpr int TAPS = 4, ROWS = 4;

template <typename T>
static inline V load_as(const T* p);
template <>
inline V load_as<float>(const float* p) { return load(p); }
template <>
inline V load_as<uint16_t>(const uint16_t* p) { return load_bf16(p); }
static inline void store_as(float* p, V a) { store(p, a); }
static inline void store_as(uint16_t* p, V a) { store_bf16(p, a); }

// x and out point to the first channel of step s; x_step and out_step lead to the next step, in elements.
template <typename T>
static void conv_strip(const Conv& in, const T* x, int64_t x_step, T* out, int64_t out_step, int64_t channels) {
  for (int64_t channel = 0; channel + W <= channels; channel += W) {
    V weight[TAPS], rows[ROWS + TAPS - 1];
#pragma GCC unroll 4
    for (int k = 0; k < TAPS; ++k) weight[k] = load(in.weight + k * in.channels + channel);
#pragma GCC unroll 7
    for (int i = 0; i < ROWS + TAPS - 1; ++i) rows[i] = load_as<T>(x + (i - (TAPS - 1)) * x_step + channel);
    const V bias = in.bias == nullptr ? set1(0.0f) : load(in.bias + channel);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      V p = bias;
#pragma GCC unroll 4
      for (int k = 0; k < TAPS; ++k) p = fma(weight[k], rows[i + k], p);
      store_as(out + i * out_step + channel, in.silu ? silu(p) : p);
    }
  }
}

template <typename T>
static void conv_strip_at(const ConvForward& args, int64_t clip, int64_t length, int64_t s, int64_t channels) {
  const Conv& in = args.in;
  const int64_t row = row_of(in.reverse, length, s), sign = in.reverse ? -1 : 1;
  conv_strip<T>(in, static_cast<const T*>(in.x.data) + offset_of(in.x, clip, row, 0), sign * in.x.row_stride,
                static_cast<T*>(args.out.data) + offset_of(args.out, clip, row, 0), sign * args.out.row_stride, channels);
}

// Rows [first_row, last_row), all of them valid.
static void conv_rows(const ConvForward& args, int64_t clip, int64_t length, int64_t first_row, int64_t last_row) {
  const Conv& in = args.in;
  const int64_t last = in.reverse ? length - first_row : last_row;
  for (int64_t s = in.reverse ? length - last_row : first_row; s < last;) {
    int64_t done = 0, steps = 1;  // channels, steps
    if (in.taps == TAPS && s >= TAPS - 1 && s + ROWS <= last && in.x.dtype == args.out.dtype) {
      steps = ROWS;
      done = in.channels / W * W;
      if (in.x.dtype == FLOAT32)
        conv_strip_at<float>(args, clip, length, s, done);
      else
        conv_strip_at<uint16_t>(args, clip, length, s, done);
    }
    for (int64_t i = 0; i < steps; ++i, ++s)
      for (int64_t channel = done; channel < in.channels; channel += W) {
        const int64_t count = smaller(W, in.channels - channel);
        const V p = convolve(in, clip, length, s, channel, count);
        store_row(args.out, clip, row_of(in.reverse, length, s), channel, in.silu ? silu(p) : p, count);
      }
  }
}

static void conv_forward(const ConvForward& args, int64_t clip, int64_t first_row, int64_t last_row) {
  const int64_t length = clip_length(args.in.lengths, clip, args.in.length);
  for (int64_t row = first_row > length ? first_row : length; row < last_row; ++row) {
    zero_row(args.out, clip, row, 0, args.in.channels);
    if (args.projection != nullptr) zero_row(args.projected, clip, row, 0, args.columns);
  }
  last_row = smaller(last_row, length);
  if (args.projection == nullptr) {
    conv_rows(args, clip, length, first_row, last_row);
    return;
  }
  for (int64_t row = first_row; row < last_row; row += PROJECTED_ROWS) {
    const int64_t end = smaller(row + PROJECTED_ROWS, last_row);
    conv_rows(args, clip, length, row, end);
    project(args, clip, row, end);
  }
}

static int64_t conv_backward_scratch(const Conv& in, int64_t blocks) {
  const int64_t vectors = blocks * (BLOCK / W);
  // For each vector: gradients of the weights (K, W) and the bias (W), p' of the K - 1 steps after the tile; then p' of
  // a tile.
  return vectors * 2 * in.taps * W + (CHUNK + in.taps) * W;
}

static inline void store_grad_x(const ConvBackward& args, int64_t clip, int64_t row, int64_t channel, V grad, int64_t count) {
  if (args.accumulate) grad = add(grad, load_row(args.grad_x, clip, row, channel, count));
  store_row(args.grad_x, clip, row, channel, grad, count);
}

// The common case, K = TAPS, for one vector in one tile: inputs, weights and their gradients stay in registers.
static void conv_backward_tile(const ConvBackward& args, int64_t clip, int64_t length, int64_t s0, int64_t steps,
                               int64_t channel, int64_t count, float* grad_p, float* grad_weight, float* grad_bias) {
  const Conv& in = args.in;
  V weight[TAPS], weight_sum[TAPS], x[TAPS];  // x[k] is that of step s - (TAPS - 1) + k
#pragma GCC unroll 4
  for (int k = 0; k < TAPS; ++k) {
    weight[k] = load_floats(in.weight + k * in.channels + channel, count);
    weight_sum[k] = load(grad_weight + k * W);
    const int64_t s = s0 + k - TAPS;  // one step early: the loop shifts first
    x[k] = s < 0 ? set1(0.0f) : load_row(in.x, clip, row_of(in.reverse, length, s), channel, count);
  }
  const V bias = in.bias == nullptr ? set1(0.0f) : load_floats(in.bias + channel, count);
  V bias_sum = load(grad_bias);
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t row = row_of(in.reverse, length, s0 + i);
    x[0] = x[1];
    x[1] = x[2];
    x[2] = x[3];
    x[3] = load_row(in.x, clip, row, channel, count);
    V g = load_row(args.grad_out, clip, row, channel, count);
    if (in.silu) {
      V p = bias;
#pragma GCC unroll 4
      for (int k = 0; k < TAPS; ++k) p = fma(weight[k], x[k], p);
      g = mul(g, silu_slope(p, sigmoid(p)));
    }
    store(grad_p + i * W, g);
    bias_sum = add(bias_sum, g);
#pragma GCC unroll 4
    for (int k = 0; k < TAPS; ++k) weight_sum[k] = fma(g, x[k], weight_sum[k]);
  }
  store(grad_bias, bias_sum);
#pragma GCC unroll 4
  for (int k = 0; k < TAPS; ++k) store(grad_weight + k * W, weight_sum[k]);
  for (int64_t i = 0; i < steps; ++i) {
    V sum = set1(0.0f);
#pragma GCC unroll 4
    for (int k = 0; k < TAPS; ++k) sum = fma(weight[k], load(grad_p + (i + TAPS - 1 - k) * W), sum);
    store_grad_x(args, clip, row_of(in.reverse, length, s0 + i), channel, sum, count);
  }
}

// From the last tile of the clip to the first, because x' of a step needs p' of the steps after it.
static void conv_backward(const ConvBackward& args, int64_t clip, int64_t first_block, int64_t last_block, float* scratch) {
  const Conv& in = args.in;
  const int64_t length = clip_length(in.lengths, clip, in.length), K = in.taps, first_channel = first_block * BLOCK;
  const int64_t width = smaller(last_block * BLOCK, in.channels) - first_channel;
  float *grad_p = scratch, *vector_data = scratch + (CHUNK + K) * W;
  std::memset(vector_data, 0, static_cast<size_t>((width + W - 1) / W * 2 * K * W) * sizeof(float));

  for (int64_t tile = (length + CHUNK - 1) / CHUNK - 1; tile >= 0; --tile) {
    const int64_t s0 = tile * CHUNK, steps = smaller(CHUNK, length - s0);
    for (int64_t offset = 0; offset < width; offset += W) {
      const int64_t channel = first_channel + offset, count = smaller(W, width - offset);
      float *grad_weight = vector_data + offset * 2 * K, *grad_bias = grad_weight + K * W, *after = grad_bias + W;
      std::memcpy(grad_p + steps * W, after, static_cast<size_t>((K - 1) * W) * sizeof(float));
      if (K == TAPS) {
        conv_backward_tile(args, clip, length, s0, steps, channel, count, grad_p, grad_weight, grad_bias);
      } else {
        V bias_sum = load(grad_bias);
        for (int64_t k = 0; k < steps; ++k) {
          const int64_t row = row_of(in.reverse, length, s0 + k);
          V g = load_row(args.grad_out, clip, row, channel, count);
          if (in.silu) {
            const V p = convolve(in, clip, length, s0 + k, channel, count);
            g = mul(g, silu_slope(p, sigmoid(p)));
          }
          store(grad_p + k * W, g);
          bias_sum = add(bias_sum, g);
        }
        store(grad_bias, bias_sum);
        for (int64_t k = 0; k < steps; ++k) {
          V sum = set1(0.0f);
          for (int64_t tap = 0; tap < K; ++tap)
            sum = fma(load_floats(in.weight + tap * in.channels + channel, count), load(grad_p + (k + K - 1 - tap) * W), sum);
          store_grad_x(args, clip, row_of(in.reverse, length, s0 + k), channel, sum, count);
        }
        for (int64_t tap = 0; tap < K; ++tap) {
          V sum = load(grad_weight + tap * W);
          const int64_t missing = K - 1 - tap - s0;  // steps whose tap reaches before the clip
          for (int64_t k = missing > 0 ? missing : 0; k < steps; ++k) {
            const int64_t row = row_of(in.reverse, length, s0 + k - (K - 1) + tap);
            sum = fma(load(grad_p + k * W), load_row(in.x, clip, row, channel, count), sum);
          }
          store(grad_weight + tap * W, sum);
        }
      }
      std::memcpy(after, grad_p, static_cast<size_t>((K - 1) * W) * sizeof(float));
    }
  }
  for (int64_t row = length; row < in.length; ++row) zero_row(args.grad_x, clip, row, first_channel, width);
  for (int64_t offset = 0; offset < width; offset += W) {
    const int64_t channel = first_channel + offset, count = smaller(W, width - offset);
    const float *grad_weight = vector_data + offset * 2 * K, *grad_bias = grad_weight + K * W;
    for (int64_t tap = 0; tap < K; ++tap)
      store_floats(args.part_weight + (clip * K + tap) * in.channels + channel, load(grad_weight + tap * W), count);
    if (args.part_bias != nullptr) store_floats(args.part_bias + clip * in.channels + channel, load(grad_bias), count);
  }
}
