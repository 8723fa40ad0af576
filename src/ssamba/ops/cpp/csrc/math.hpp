// Softplus, sigmoid and typed rows over the vectors of one instruction set.
#pragma once

// log(1 + e) for e in [0, 1], relative error about 1 ulp.
static inline V log1p_unit(V e) {
  V p = set1(-0.0032440233f);
  p = fma(p, e, set1(0.0198514539f));
  p = fma(p, e, set1(-0.0569595184f));
  p = fma(p, e, set1(0.106036533f));
  p = fma(p, e, set1(-0.153055916f));
  p = fma(p, e, set1(0.196759389f));
  p = fma(p, e, set1(-0.249541336f));
  p = fma(p, e, set1(0.333299624f));
  p = fma(p, e, set1(-0.499999024f));
  p = fma(p, e, set1(0.999999995f));
  return mul(p, e);
}

static inline V softplus(V x) { return add(at_least(0.0f, x), log1p_unit(exp_minus(absolute(x)))); }

static inline V sigmoid(V x) {
  const V e = exp_minus(absolute(x));
  const V s = reciprocal(add(e, set1(1.0f)));
  return where_negative(x, mul(e, s), s);
}

// Return softplus; write its derivative, the sigmoid, to `slope`: both from one exponential.
static inline V softplus(V x, V* slope) {
  const V e = exp_minus(absolute(x));
  const V s = reciprocal(add(e, set1(1.0f)));
  *slope = where_negative(x, mul(e, s), s);
  return add(at_least(0.0f, x), log1p_unit(e));
}

// x sigmoid(x); 0 instead of -inf * 0.
static inline V silu(V x) { return mul(at_least(-1e4f, x), sigmoid(x)); }

// The derivative of x sigmoid(x), given s = sigmoid(x).
static inline V silu_slope(V x, V s) {
  const V bounded = at_most(1e4f, at_least(-1e4f, x));
  return mul(s, fma(bounded, sub(set1(1.0f), s), set1(1.0f)));
}

static inline void prefetch(uintptr_t address) {
#if defined(__GNUC__)
  __builtin_prefetch(reinterpret_cast<const void*>(address));
#endif
}

static inline int64_t offset_of(const Rows& rows, int64_t clip, int64_t row, int64_t channel) {
  return clip * rows.batch_stride + row * rows.row_stride + channel;
}

static inline char* address_of(const Rows& rows, int64_t clip, int64_t row, int64_t channel) {
  return static_cast<char*>(rows.data) + offset_of(rows, clip, row, channel) * (rows.dtype == FLOAT32 ? 4 : 2);
}

static inline V load_floats(const float* p, int64_t count) { return count == W ? load(p) : load_part(p, count); }
static inline void store_floats(float* p, V a, int64_t count) { count == W ? store(p, a) : store_part(p, a, count); }

// `count` (at most W) channels in either dtype; lanes beyond are zero.
static inline V load_channels(const char* p, bool is_float32, int64_t count) {
  if (is_float32) return load_floats(reinterpret_cast<const float*>(p), count);
  const uint16_t* narrow = reinterpret_cast<const uint16_t*>(p);
  return count == W ? load_bf16(narrow) : load_part_bf16(narrow, count);
}

static inline void store_channels(char* p, bool is_float32, V a, int64_t count) {
  if (is_float32) {
    store_floats(reinterpret_cast<float*>(p), a, count);
  } else {
    uint16_t* narrow = reinterpret_cast<uint16_t*>(p);
    count == W ? store_bf16(narrow, a) : store_part_bf16(narrow, a, count);
  }
}

static inline V load_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, int64_t count) {
  return load_channels(address_of(rows, clip, row, channel), rows.dtype == FLOAT32, count);
}

static inline void store_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, V a, int64_t count) {
  store_channels(address_of(rows, clip, row, channel), rows.dtype == FLOAT32, a, count);
}

static inline void zero_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, int64_t count) {
  std::memset(address_of(rows, clip, row, channel), 0, static_cast<size_t>(count * (rows.dtype == FLOAT32 ? 4 : 2)));
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Return the row of step s of a clip, counted in the order of the scan.
static inline int64_t row_of(bool reverse, int64_t length, int64_t s) { return reverse ? length - 1 - s : s; }

static inline int64_t clip_length(const int64_t* lengths, int64_t clip, int64_t length) {
  if (lengths == nullptr) return length;
  return lengths[clip] < 0 ? 0 : smaller(lengths[clip], length);
}

// One vector of channels in the rows of a tile, in the order of the scan.
struct Column {
  char* first;
  int64_t step;  // bytes to the row of the next step
  int64_t count;
  bool is_float32;
};

static inline Column column(const Rows& rows, bool reverse, int64_t clip, int64_t length, int64_t s0, int64_t channel, int64_t count) {
  const int64_t size = rows.dtype == FLOAT32 ? 4 : 2;
  return {address_of(rows, clip, row_of(reverse, length, s0), channel), (reverse ? -rows.row_stride : rows.row_stride) * size,
          count, rows.dtype == FLOAT32};
}

// Whether loops specialized for full float32 vectors (PLAIN) may process this column.
static inline bool is_plain(const Column& column) { return column.is_float32 && column.count == W; }

template <bool PLAIN>
static inline V load_step(const Column& column, int64_t k) {
  const char* p = column.first + k * column.step;
  return PLAIN ? load(reinterpret_cast<const float*>(p)) : load_channels(p, column.is_float32, column.count);
}

template <bool PLAIN>
static inline void store_step(const Column& column, int64_t k, V a) {
  char* p = column.first + k * column.step;
  PLAIN ? store(reinterpret_cast<float*>(p), a) : store_channels(p, column.is_float32, a, column.count);
}

// out[n] += the sum of the lanes of rows[n].
template <int COUNT>
static inline void add_row_sums(const V* rows, float* out) {
  for (int n = 0; n < COUNT; ++n) out[n] += horizontal_sum(rows[n]);
}
#if defined(SSAMBA_ADDS_16_ROWS)
template <>
inline void add_row_sums<16>(const V* rows, float* out) { add_16_row_sums(rows, out); }
#endif
#if defined(SSAMBA_ADDS_8_ROWS)
template <>
inline void add_row_sums<8>(const V* rows, float* out) { add_8_row_sums(rows, out); }
#endif
