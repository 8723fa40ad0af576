// Dividing work among threads, and the threads' workspaces. Part of module.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#define SSAMBA_X86 1
#endif

#include "kernels.hpp"

namespace ssamba {
namespace {

// Flush numbers below 1.2e-38 to zero while a kernel runs: a decaying state would otherwise slow it down tenfold.
class FlushToZero {
 public:
#if defined(SSAMBA_X86)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__) && defined(__GNUC__)
  FlushToZero() {
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before_));
    set(before_ | (1ull << 24));
  }
  ~FlushToZero() { set(before_); }

 private:
  static void set(unsigned long long value) { __asm__ __volatile__("msr fpcr, %0" : : "r"(value)); }
  unsigned long long before_;
#else
  FlushToZero() {}
#endif
};

// Return the calling thread's workspace, which is reused: fresh memory from the system costs more than a short scan.
float* scratch(int64_t floats) {
  struct Memory {
    float* data = nullptr;
    int64_t size = 0;
    ~Memory() { std::free(data); }
  };
  static thread_local Memory memory;
  if (memory.size < floats) {
    std::free(memory.data);
    memory.size = 0;
    memory.data = static_cast<float*>(std::malloc(static_cast<size_t>(floats) * sizeof(float) + 64));
    if (memory.data == nullptr) throw std::bad_alloc();
    memory.size = floats;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.data);
  const auto aligned = reinterpret_cast<float*>((address + 63) / 64 * 64);
#ifdef SSAMBA_POISON
  std::fill(aligned, aligned + floats, std::numeric_limits<float>::quiet_NaN());
#endif
  return aligned;
}

// Partial sums of a backward pass. The calling thread reuses the memory for the next pass, unless it is large.
class PartsMemory {
 public:
  explicit PartsMemory(int64_t floats) {
    constexpr size_t KEPT = size_t{1} << 22;
    static thread_local std::vector<float> kept;
    const auto size = static_cast<size_t>(floats);
    if (size > KEPT) {
      own_.reset(new float[size]);
      data_ = own_.get();
    } else {
      if (kept.size() < size) kept.resize(size);
      data_ = kept.data();
    }
#ifdef SSAMBA_POISON
    std::fill(data_, data_ + size, std::numeric_limits<float>::quiet_NaN());
#endif
  }
  float* data() { return data_; }

 private:
  std::unique_ptr<float[]> own_;
  float* data_;
};

// The first touch of each fresh page costs about as much as the scan of a row: for big results, request pages of 2 MiB
// instead of 4 KiB. Only a hint.
void expect_writes(const void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t HUGE_PAGE = uintptr_t{1} << 21;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (address + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t last = (address + static_cast<uintptr_t>(bytes)) / HUGE_PAGE * HUGE_PAGE;
  if (data != nullptr && last >= first + 2 * HUGE_PAGE)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

void expect_writes(const Rows& rows, int64_t batch, int64_t length, int64_t channels) {
  if (rows.row_stride == channels) expect_writes(rows.data, batch * length * channels * (rows.dtype == FLOAT32 ? 4 : 2));
}

// Run work(i) for each i below `threads`, in parallel.
template <typename Work>
void on_threads(int threads, const Work& work) {
#ifdef _OPENMP
  if (threads > 1) {
    bool out_of_memory = false;
#pragma omp parallel num_threads(threads)
    {
      const FlushToZero guard;
      try {
        // OpenMP may start fewer threads than requested; the result does not depend on which thread does the work.
        for (int i = omp_get_thread_num(); i < threads; i += omp_get_num_threads()) work(i);
      } catch (const std::bad_alloc&) {
#pragma omp atomic write
        out_of_memory = true;
      }
    }
    if (out_of_memory) throw std::bad_alloc();
    return;
  }
#endif
  const FlushToZero guard;
  for (int i = 0; i < threads; ++i) work(i);
}

// Clamp lengths to the arrays, because a compiled graph cannot check them.
int64_t clip_length(const int64_t* lengths, int64_t clip, int64_t length) {
  return lengths == nullptr ? length : std::clamp<int64_t>(lengths[clip], 0, length);
}

// Divide the (clip, unit) pairs into one run per thread of nearly equal work, where a unit costs its clip's length, and
// call piece(clip, first unit, last unit) for each clip in the calling thread's run.
template <typename Piece>
void deal_out(int threads, int64_t batch, int64_t units, int64_t length, const int64_t* lengths, const Piece& piece) {
  const auto worth = [=](int64_t clip) { return clip_length(lengths, clip, length) + length / 16 + 1; };
  int64_t total = 0;
  for (int64_t clip = 0; clip < batch; ++clip) total += worth(clip) * units;
  if (total == 0) return;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, batch * units)));
  on_threads(threads, [&](int thread) {
    const int64_t from = total / threads * thread + total % threads * thread / threads;
    const int64_t to = total / threads * (thread + 1) + total % threads * (thread + 1) / threads;
    int64_t before = 0;
    for (int64_t clip = 0; clip < batch && before < to; ++clip) {
      const int64_t each = worth(clip);
      // A unit belongs to the thread whose share contains its middle.
      const auto first_after = [&](int64_t limit) {
        const int64_t position = limit - before - each / 2;
        return position <= 0 ? 0 : std::min(units, (position + each - 1) / each);
      };
      const int64_t first = first_after(from), last = first_after(to);
      if (first < last) piece(clip, first, last);
      before += each * units;
    }
  });
}

// out[j] = the sum of part[i * distance + j] over i below `parts`, in that order.
void add_parts(const float* part, int64_t parts, int64_t distance, int64_t size, float* out) {
  std::memcpy(out, part, static_cast<size_t>(size) * sizeof(float));
  for (int64_t i = 1; i < parts; ++i)
    for (int64_t j = 0; j < size; ++j) out[j] += part[i * distance + j];
}

// Return the sum over `groups` of arrays of floats, `distance` apart, given as the sums of the subtrees that `levels`
// names. The result is one of them or in `memory`, which has room for most_subtrees(groups) arrays, `stride` apart.
const float* add_subtrees(const float* part, const int8_t* levels, int64_t groups, int64_t distance, int64_t size, float* memory,
                          int64_t stride) {
  Subtree trees[64];
  const float* sums[64];
  int count = 0;
  const auto join = [&] {  // adds the last two
    float* sum = memory + (count - 2) * stride;
    for (int64_t j = 0; j < size; ++j) sum[j] = sums[count - 2][j] + sums[count - 1][j];
    sums[--count - 1] = sum;
  };
  for (int64_t group = 0; group < groups; group += int64_t{1} << levels[group]) {
    trees[count] = {group, levels[group]};
    sums[count++] = part + group * distance;
    while (count > 1 && are_halves(trees[count - 2], trees[count - 1])) {
      ++trees[count - 2].level;
      join();
    }
  }
  while (count > 1) join();
  return sums[0];
}

void store_bfloat16(const float* from, int64_t size, uint16_t* to) {
  for (int64_t j = 0; j < size; ++j) {
    uint32_t bits;
    std::memcpy(&bits, from + j, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to[j] = nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

}  // namespace
}  // namespace ssamba
