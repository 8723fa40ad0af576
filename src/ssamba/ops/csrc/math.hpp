// Softplus, sigmoid and typed rows on top of the vectors of one instruction set.
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

// Softplus and its derivative, the sigmoid, from one exponential.
static inline V softplus(V x, V* slope) {
  const V e = exp_minus(absolute(x));
  const V s = reciprocal(add(e, set1(1.0f)));
  *slope = where_negative(x, mul(e, s), s);
  return add(at_least(0.0f, x), log1p_unit(e));
}

// x sigmoid(x), and 0 rather than -inf * 0.
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

// `count` (at most W) channels of a row; lanes beyond are zero.
static inline V load_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, int64_t count) {
  const int64_t offset = offset_of(rows, clip, row, channel);
  if (rows.dtype == FLOAT32) {
    const float* p = static_cast<const float*>(rows.data) + offset;
    return count == W ? load(p) : load_part(p, count);
  }
  const uint16_t* p = static_cast<const uint16_t*>(rows.data) + offset;
  return count == W ? load_bf16(p) : load_part_bf16(p, count);
}

static inline void store_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, V a, int64_t count) {
  const int64_t offset = offset_of(rows, clip, row, channel);
  if (rows.dtype == FLOAT32) {
    float* p = static_cast<float*>(rows.data) + offset;
    count == W ? store(p, a) : store_part(p, a, count);
  } else {
    uint16_t* p = static_cast<uint16_t*>(rows.data) + offset;
    count == W ? store_bf16(p, a) : store_part_bf16(p, a, count);
  }
}

static inline void zero_row(const Rows& rows, int64_t clip, int64_t row, int64_t channel, int64_t count) {
  const int64_t size = rows.dtype == FLOAT32 ? 4 : 2;
  std::memset(static_cast<char*>(rows.data) + offset_of(rows, clip, row, channel) * size, 0,
              static_cast<size_t>(count * size));
}

static inline V load_floats(const float* p, int64_t count) { return count == W ? load(p) : load_part(p, count); }
static inline void store_floats(float* p, V a, int64_t count) { count == W ? store(p, a) : store_part(p, a, count); }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Step s of a clip, counted in the order of the scan, stands in this row.
static inline int64_t row_of(bool reverse, int64_t length, int64_t s) { return reverse ? length - 1 - s : s; }

static inline int64_t clip_length(const int64_t* lengths, int64_t clip, int64_t length) {
  if (lengths == nullptr) return length;
  return lengths[clip] < 0 ? 0 : smaller(lengths[clip], length);
}

// A vector of channels in the rows of a tile, in the order of the scan.
struct Column {
  char* first;
  int64_t step;  // bytes to the row of the next step
  int64_t count;
  bool is_float32;
};

static inline Column column(const Rows& rows, bool reverse, int64_t clip, int64_t length, int64_t s0, int64_t channel, int64_t count) {
  const int64_t size = rows.dtype == FLOAT32 ? 4 : 2;
  return {static_cast<char*>(rows.data) + offset_of(rows, clip, row_of(reverse, length, s0), channel) * size,
          (reverse ? -rows.row_stride : rows.row_stride) * size, count, rows.dtype == FLOAT32};
}

// What a loop over steps compiled for it alone may rely on.
static inline bool is_plain(const Column& column) { return column.is_float32 && column.count == W; }

template <bool PLAIN>
static inline V load_step(const Column& column, int64_t k) {
  const char* p = column.first + k * column.step;
  if (PLAIN) return load(reinterpret_cast<const float*>(p));
  if (column.is_float32) return load_floats(reinterpret_cast<const float*>(p), column.count);
  const uint16_t* narrow = reinterpret_cast<const uint16_t*>(p);
  return column.count == W ? load_bf16(narrow) : load_part_bf16(narrow, column.count);
}

template <bool PLAIN>
static inline void store_step(const Column& column, int64_t k, V a) {
  char* p = column.first + k * column.step;
  if (PLAIN) {
    store(reinterpret_cast<float*>(p), a);
  } else if (column.is_float32) {
    store_floats(reinterpret_cast<float*>(p), a, column.count);
  } else {
    uint16_t* narrow = reinterpret_cast<uint16_t*>(p);
    column.count == W ? store_bf16(narrow, a) : store_part_bf16(narrow, a, column.count);
  }
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
