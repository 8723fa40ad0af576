// The gate of a block, y silu(z) times a constant, and its gradients, separate from the scan: two scans share one gate.
#pragma once

static void gate(const Gate& args, int64_t clip, int64_t first_row, int64_t last_row) {
  const int64_t length = clip_length(args.lengths, clip, args.length);
  const V opening = set1(args.opening);
  for (int64_t row = first_row; row < last_row; ++row) {
    if (row >= length) {
      zero_row(args.gated, clip, row, 0, args.channels);
      if (args.grad.data == nullptr) continue;
      zero_row(args.grad, clip, row, 0, args.channels);
      zero_row(args.grad_z, clip, row, 0, args.channels);
      continue;
    }
    for (int64_t channel = 0; channel < args.channels; channel += W) {
      const int64_t count = smaller(W, args.channels - channel);
      const V y = load_row(args.y, clip, row, channel, count), z = load_row(args.z, clip, row, channel, count);
      const V s = sigmoid(z), open = mul(mul(at_least(-1e4f, z), s), opening);
      store_row(args.gated, clip, row, channel, mul(y, open), count);
      if (args.grad.data == nullptr) continue;
      const V g = load_row(args.grad, clip, row, channel, count);
      store_row(args.grad_z, clip, row, channel, mul(mul(mul(g, y), silu_slope(z, s)), opening), count);
      store_row(args.grad, clip, row, channel, mul(g, open), count);
    }
  }
}
