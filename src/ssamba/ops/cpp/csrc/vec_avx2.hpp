// 8 float32 lanes of AVX2 and FMA. The same names are defined by vec_avx512.hpp and vec_generic.hpp.
#pragma once

#define SSAMBA_ADDS_8_ROWS

constexpr int W = 8;           // lanes
constexpr int MAX_STATES = 8;  // states of a vector of channels that fit in the registers
constexpr bool ALWAYS_SAFE = true;  // exp2_product has no limited range

using V = __m256;

static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, V a) { _mm256_storeu_ps(p, a); }
static inline V set1(float a) { return _mm256_set1_ps(a); }
static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
// With a NaN in `a`, both return the NaN (the second operand).
static inline V at_most(float limit, V a) { return _mm256_min_ps(set1(limit), a); }
static inline V at_least(float limit, V a) { return _mm256_max_ps(set1(limit), a); }
static inline V maximum(V a, V b) { return _mm256_max_ps(a, b); }
static inline V absolute(V a) { return _mm256_andnot_ps(set1(-0.0f), a); }
static inline V where_negative(V a, V yes, V no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LT_OQ));
}
// True if every lane is below the limit; a NaN is not.
static inline bool all_below(V a, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, set1(limit), _CMP_LT_OQ)) == 0xff;
}
static inline float horizontal_sum(V a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline V load_part(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
static inline void store_part(float* p, V a, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), a); }

static inline V load_bf16(const uint16_t* p) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}
static inline void store_bf16(uint16_t* p, V a) {  // to the nearest, ties to even
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
static inline V load_part_bf16(const uint16_t* p, int64_t count) {
  uint16_t whole[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
  return load_bf16(whole);
}
static inline void store_part_bf16(uint16_t* p, V a, int64_t count) {
  uint16_t whole[8];
  store_bf16(whole, a);
  for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
}

static inline V reciprocal(V a) { return _mm256_div_ps(set1(1.0f), a); }

// 2^(n + r) for n_magic = n + 1.5 * 2^23, n from -127 to 128 and |r| <= 1/2, about 1 ulp: 2^r comes from a polynomial
// of degree 6, and n is added to its exponent (the bits of n_magic end in those of n).
static inline V exp2_parts(V n_magic, V r) {
  V p = set1(1.53533619e-4f);
  p = fma(p, r, set1(1.33988744e-3f));
  p = fma(p, r, set1(9.61843736e-3f));
  p = fma(p, r, set1(5.55033247e-2f));
  p = fma(p, r, set1(2.40226479e-1f));
  p = fma(p, r, set1(6.93147203e-1f));
  p = fma(p, r, set1(1.0f));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n_magic), 23)));
}

// 2^(a b), about 1 ulp next to the rounding of the product; 0 from 2^-127 down and infinity from 2^128 on: r is 0 at
// both ends of the range, so the exponents add up to 0 or 255 with an empty mantissa. Safe for any product.
template <bool SAFE>
static inline V exp2_product(V a, V b) {
  const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V t = at_most(128.0f, at_least(-127.0f, mul(a, b)));
  const V n_magic = add(t, magic);
  return exp2_parts(n_magic, sub(t, sub(n_magic, magic)));
}

// exp(-a) for a >= 0 (from 87 on the value at 87, 1.6e-38), about 1 ulp: -a = n ln 2 + r, with ln 2 in two parts of
// which the first has so few bits that n ln 2 is exact without a fused multiply-add.
static inline V exp_minus(V a) {
  a = at_most(87.0f, a);
  const V magic = set1(12582912.0f);
  const V n_magic = fma(a, set1(-1.44269504f), magic);
  const V n = sub(n_magic, magic);
  V r = fma(n, set1(-0.693359375f), sub(set1(0.0f), a));
  r = fma(n, set1(2.12194440e-4f), r);
  return exp2_parts(n_magic, mul(r, set1(1.44269504f)));
}

static inline void add_8_row_sums(const V* rows, float* out) {  // out[n] += the sum of the lanes of rows[n]
  const V ab = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
  const V cd = _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
  const V sums = add(_mm256_permute2f128_ps(ab, cd, 0x20), _mm256_permute2f128_ps(ab, cd, 0x31));
  store(out, add(load(out), sums));
}
