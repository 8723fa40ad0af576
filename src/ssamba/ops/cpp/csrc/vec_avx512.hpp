// 16 float32 lanes of AVX-512. The same names are defined by vec_avx2.hpp and vec_generic.hpp.
#pragma once

#define SSAMBA_ADDS_16_ROWS

constexpr int W = 16;           // lanes
constexpr int MAX_STATES = 16;  // states of a vector of channels that fit in the registers
constexpr bool ALWAYS_SAFE = false;  // exp2_product<false> has a limited range

using V = __m512;

static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, V a) { _mm512_storeu_ps(p, a); }
static inline V set1(float a) { return _mm512_set1_ps(a); }
static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
// With a NaN in `a`, both return the NaN (the second operand).
static inline V at_most(float limit, V a) { return _mm512_min_ps(set1(limit), a); }
static inline V at_least(float limit, V a) { return _mm512_max_ps(set1(limit), a); }
static inline V maximum(V a, V b) { return _mm512_max_ps(a, b); }
static inline V absolute(V a) { return _mm512_abs_ps(a); }
static inline V where_negative(V a, V yes, V no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes);
}
// True if every lane is below the limit; a NaN is not.
static inline bool all_below(V a, float limit) { return _mm512_cmp_ps_mask(a, set1(limit), _CMP_LT_OQ) == 0xffff; }
static inline float horizontal_sum(V a) { return _mm512_reduce_add_ps(a); }

static inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
static inline V load_part(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
static inline void store_part(float* p, V a, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), a); }

static inline V widen(__m256i a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
static inline __m256i narrow(V a) {  // to the nearest, ties to even
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}
static inline V load_bf16(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
static inline void store_bf16(uint16_t* p, V a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
static inline V load_part_bf16(const uint16_t* p, int64_t count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
static inline void store_part_bf16(uint16_t* p, V a, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(a));
}

// 1 / a for a in [1, 2]: an estimate of 14 bits and one Newton step.
static inline V reciprocal(V a) {
  const V x = _mm512_rcp14_ps(a);
  return _mm512_fmadd_ps(x, _mm512_fnmadd_ps(a, x, set1(1.0f)), x);
}

// 2^(k + r) for k a multiple of 1/16 and |r| <= 1/32, about 1 ulp: the fractional part of k picks from a table, r goes
// through a polynomial of degree 3, and scalef multiplies by the integer power, correct up to infinity and down to
// zero. k_magic is k + 1.5 * 2^19, a sum whose unit in the last place is 1/16, so that its lowest bits are the place in
// the table.
constexpr float MAGIC = 786432.0f;

static inline V exp2_parts(V k_magic, V k, V r) {
  const V table = _mm512_setr_ps(
      1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
      1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f);
  const V entry = _mm512_permutexvar_ps(_mm512_castps_si512(k_magic), table);
  V p = _mm512_fmadd_ps(set1(0.0555021365f), r, set1(0.240234288f));
  p = _mm512_fmadd_ps(p, r, set1(0.693147183f));
  return _mm512_scalef_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(entry, r), entry), k);
}

// 2^(a b). k and r come out of fused operations, so the product is never rounded. `SAFE = false` is for |a b| < 2^17;
// beyond, k could not be represented.
template <bool SAFE>
static inline V exp2_product(V a, V b) {
  const V magic = set1(MAGIC);
  if (SAFE) {
    const V t = at_most(300.0f, at_least(-300.0f, _mm512_mul_ps(a, b)));
    const V k_magic = _mm512_add_ps(t, magic), k = _mm512_sub_ps(k_magic, magic);
    return exp2_parts(k_magic, k, _mm512_sub_ps(t, k));
  }
  const V k_magic = _mm512_fmadd_ps(a, b, magic), k = _mm512_sub_ps(k_magic, magic);
  return exp2_parts(k_magic, k, _mm512_fmsub_ps(a, b, k));
}

// exp(-a) for a >= 0 (from 87 on the value at 87, 1.6e-38), about 1 ulp; log2(e) in two parts.
static inline V exp_minus(V a) {
  a = at_most(87.0f, a);
  const V magic = set1(MAGIC), k_magic = _mm512_fnmadd_ps(a, set1(1.44269502f), magic), k = _mm512_sub_ps(k_magic, magic);
  const V r = _mm512_fnmsub_ps(a, set1(1.44269502f), k);
  return exp2_parts(k_magic, k, _mm512_fnmadd_ps(a, set1(1.92596299e-8f), r));
}

// out[n] += the sum of the lanes of rows[n], for 16 rows: halve the vectors four times.
static inline void add_16_row_sums(const V* rows, float* out) {
  V a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // lanes: 8 partial sums of row i, then 8 of row i + 8
    const V low = _mm512_shuffle_f32x4(rows[i], rows[i + 8], 0x44);
    const V high = _mm512_shuffle_f32x4(rows[i], rows[i + 8], 0xee);
    a[i] = add(low, high);
  }
  V b[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // blocks of 4: row i, i + 4, i + 8, i + 12
    const V low = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);   // first halves: i, i + 8, i + 4, i + 12
    const V high = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    b[i] = add(low, high);
  }
  const V c0 = add(_mm512_unpacklo_ps(b[0], b[2]), _mm512_unpackhi_ps(b[0], b[2]));  // (0, 2) interleaved, 2 sums each
  const V c1 = add(_mm512_unpacklo_ps(b[1], b[3]), _mm512_unpackhi_ps(b[1], b[3]));  // (1, 3)
  const V d = add(_mm512_unpacklo_ps(c0, c1), _mm512_unpackhi_ps(c0, c1));           // rows 0, 1, 2, 3 of each block
  // Blocks are in the order 0, 8, 4, 12.
  const V ordered = _mm512_shuffle_f32x4(d, d, 0xd8);
  store(out, add(load(out), ordered));
}
