// W_x u, the projection to delta's low-rank factor, B and C, of rows that the convolution has just computed and that
// are still in the cache.
//
// A tile of 4 rows and TILE_COLUMNS columns is summed in registers, one partial sum in each lane; PROJECTED_ROWS rows
// and PANEL channels of them stay in the first-level cache while the weight's rows are read once.
#pragma once

constexpr int TILE_ROWS = 4, TILE_COLUMNS = W == 16 ? 4 : 2;
constexpr int64_t PROJECTED_ROWS = 16, PANEL = 512;

// out[r][c] = u[r] . weight[c] over `channels`, added to it if `accumulate`; steps lead to the next row, in floats.
template <int R, int C>
static void project_tile(const float* u, int64_t u_step, const float* weight, int64_t weight_step, int64_t channels, bool accumulate,
                         float* out, int64_t out_step) {
  V sums[R * C];
#pragma GCC unroll 16
  for (int i = 0; i < R * C; ++i) sums[i] = set1(0.0f);
  int64_t channel = 0;
  for (; channel + W <= channels; channel += W) {
    V weights[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) weights[c] = load(weight + c * weight_step + channel);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V row = load(u + r * u_step + channel);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r * C + c] = fma(row, weights[c], sums[r * C + c]);
    }
  }
  if (channel < channels)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        sums[r * C + c] = fma(load_part(u + r * u_step + channel, channels - channel),
                              load_part(weight + c * weight_step + channel, channels - channel), sums[r * C + c]);
  float totals[R * C] = {};
  add_row_sums<R * C>(sums, totals);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      float& to = out[r * out_step + c];
      to = accumulate ? to + totals[r * C + c] : totals[r * C + c];
    }
}

template <int C>
static void project_columns(const float* u, int64_t u_step, const float* weight, int64_t weight_step, int64_t channels, bool accumulate,
                            float* out, int64_t out_step, int64_t rows) {
  int64_t row = 0;
  for (; row + TILE_ROWS <= rows; row += TILE_ROWS)
    project_tile<TILE_ROWS, C>(u + row * u_step, u_step, weight, weight_step, channels, accumulate, out + row * out_step, out_step);
  for (; row < rows; ++row)
    project_tile<1, C>(u + row * u_step, u_step, weight, weight_step, channels, accumulate, out + row * out_step, out_step);
}

// Project rows [first_row, last_row) of a clip's output, all of them valid, at most PROJECTED_ROWS.
static void project(const ConvForward& args, int64_t clip, int64_t first_row, int64_t last_row) {
  const int64_t channels = args.in.channels, u_step = args.out.row_stride, out_step = args.projected.row_stride;
  const float* u = static_cast<const float*>(args.out.data) + offset_of(args.out, clip, first_row, 0);
  float* out = static_cast<float*>(args.projected.data) + offset_of(args.projected, clip, first_row, 0);
  for (int64_t channel = 0; channel < channels; channel += PANEL) {
    const int64_t panel = smaller(PANEL, channels - channel), rows = last_row - first_row;
    const float* weight = args.projection + channel;
    int64_t c = 0;
    for (; c + TILE_COLUMNS <= args.columns; c += TILE_COLUMNS)
      project_columns<TILE_COLUMNS>(u + channel, u_step, weight + c * channels, channels, panel, channel > 0, out + c, out_step, rows);
    for (; c < args.columns; ++c)
      project_columns<1>(u + channel, u_step, weight + c * channels, channels, panel, channel > 0, out + c, out_step, rows);
  }
}
