// 4 float32 lanes for any instruction set: GCC's and Clang's vector extension compiles to SSE2, NEON or another set;
// other compilers get a struct and loops. The same names are defined by vec_avx2.hpp and vec_avx512.hpp.
#pragma once

constexpr int W = 4;           // lanes
constexpr int MAX_STATES = 8;  // states of a vector of channels that fit in the registers
constexpr bool ALWAYS_SAFE = true;  // exp2_product has no limited range

#if defined(__GNUC__) && !defined(SSAMBA_PLAIN_LOOPS)
typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));
#define SSAMBA_LANE(a, i) a[i]
static inline V add(V a, V b) { return a + b; }
static inline V sub(V a, V b) { return a - b; }
static inline V mul(V a, V b) { return a * b; }
static inline V fma(V a, V b, V c) { return a * b + c; }  // fused where the machine can (-ffp-contract=fast)
static inline V quotient(V a, V b) { return a / b; }
static inline V choose(VI mask, V yes, V no) { return (V)((mask & (VI)yes) | (~mask & (VI)no)); }
static inline V set1(float a) { return V{a, a, a, a}; }
// With a NaN in `a`, both return the NaN: the comparison is false.
static inline V at_most(float limit, V a) { return choose(set1(limit) < a, set1(limit), a); }
static inline V at_least(float limit, V a) { return choose(set1(limit) > a, set1(limit), a); }
static inline V maximum(V a, V b) { return choose(a > b, a, b); }
static inline V where_negative(V a, V yes, V no) { return choose(a < set1(0.0f), yes, no); }
static inline V absolute(V a) { return (V)((VI)a & 0x7fffffff); }
static inline V add_exponent(V a, V n) { return (V)((VI)a + ((VI)n << 23)); }
#else
struct V {
  float lane[W];
};
#define SSAMBA_LANE(a, i) a.lane[i]
#define SSAMBA_EACH(expression)                     \
  V result;                                         \
  for (int i = 0; i < W; ++i) result.lane[i] = expression; \
  return result
static inline V add(V a, V b) { SSAMBA_EACH(a.lane[i] + b.lane[i]); }
static inline V sub(V a, V b) { SSAMBA_EACH(a.lane[i] - b.lane[i]); }
static inline V mul(V a, V b) { SSAMBA_EACH(a.lane[i] * b.lane[i]); }
static inline V fma(V a, V b, V c) { SSAMBA_EACH(a.lane[i] * b.lane[i] + c.lane[i]); }
static inline V quotient(V a, V b) { SSAMBA_EACH(a.lane[i] / b.lane[i]); }
static inline V set1(float a) { SSAMBA_EACH(a); }
static inline V at_most(float limit, V a) { SSAMBA_EACH(limit < a.lane[i] ? limit : a.lane[i]); }
static inline V at_least(float limit, V a) { SSAMBA_EACH(limit > a.lane[i] ? limit : a.lane[i]); }
static inline V maximum(V a, V b) { SSAMBA_EACH(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
static inline V where_negative(V a, V yes, V no) { SSAMBA_EACH(a.lane[i] < 0.0f ? yes.lane[i] : no.lane[i]); }
static inline V absolute(V a) { SSAMBA_EACH(a.lane[i] < 0.0f ? -a.lane[i] : a.lane[i]); }
static inline V add_exponent(V a, V n) {
  uint32_t bits[W], power[W];
  std::memcpy(bits, a.lane, sizeof bits);
  std::memcpy(power, n.lane, sizeof power);
  for (int i = 0; i < W; ++i) bits[i] += power[i] << 23;
  std::memcpy(a.lane, bits, sizeof bits);
  return a;
}
#endif

static inline V load(const float* p) {
  V a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
static inline void store(float* p, V a) { std::memcpy(p, &a, sizeof a); }
static inline bool all_below(V a, float limit) {  // a NaN is not below
  bool all = true;
  for (int i = 0; i < W; ++i) all &= SSAMBA_LANE(a, i) < limit;
  return all;
}
static inline float horizontal_sum(V a) {
  return (SSAMBA_LANE(a, 0) + SSAMBA_LANE(a, 2)) + (SSAMBA_LANE(a, 1) + SSAMBA_LANE(a, 3));
}
static inline V load_part(const float* p, int64_t count) {
  float whole[W] = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
  return load(whole);
}
static inline void store_part(float* p, V a, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = SSAMBA_LANE(a, i);
}
static inline V load_part_bf16(const uint16_t* p, int64_t count) {
  uint32_t bits[W] = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint32_t>(p[i]) << 16;
  V a;
  std::memcpy(&a, bits, sizeof a);
  return a;
}
static inline void store_part_bf16(uint16_t* p, V a, int64_t count) {  // to the nearest, ties to even
  uint32_t bits[W];
  std::memcpy(bits, &a, sizeof a);
  for (int64_t i = 0; i < count; ++i) {
    const bool nan = (bits[i] & 0x7fffffffu) > 0x7f800000u;
    p[i] = nan ? 0x7fc0 : static_cast<uint16_t>((bits[i] + 0x7fffu + ((bits[i] >> 16) & 1u)) >> 16);
  }
}
static inline V load_bf16(const uint16_t* p) { return load_part_bf16(p, W); }
static inline void store_bf16(uint16_t* p, V a) { store_part_bf16(p, a, W); }

static inline V reciprocal(V a) { return quotient(set1(1.0f), a); }

// See vec_avx2.hpp for both.
static inline V exp2_parts(V n_magic, V r) {
  V p = set1(1.53533619e-4f);
  p = fma(p, r, set1(1.33988744e-3f));
  p = fma(p, r, set1(9.61843736e-3f));
  p = fma(p, r, set1(5.55033247e-2f));
  p = fma(p, r, set1(2.40226479e-1f));
  p = fma(p, r, set1(6.93147203e-1f));
  return add_exponent(fma(p, r, set1(1.0f)), n_magic);
}

template <bool SAFE>
static inline V exp2_product(V a, V b) {
  const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V t = at_most(128.0f, at_least(-127.0f, mul(a, b)));
  const V n_magic = add(t, magic);
  return exp2_parts(n_magic, sub(t, sub(n_magic, magic)));
}

// See vec_avx2.hpp.
static inline V exp_minus(V a) {
  a = at_most(87.0f, a);
  const V magic = set1(12582912.0f);
  const V n_magic = fma(a, set1(-1.44269504f), magic);
  const V n = sub(n_magic, magic);
  V r = fma(n, set1(-0.693359375f), sub(set1(0.0f), a));
  r = fma(n, set1(2.12194440e-4f), r);
  return exp2_parts(n_magic, mul(r, set1(1.44269504f)));
}
