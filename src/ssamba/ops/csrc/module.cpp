// The Python module: picks an instruction set, deals the work out to threads, and adds up what they leave in parts.
//
// Arrays arrive as addresses and strides (ops/cpu.py has checked them): for tensors this costs a fraction of an array protocol.
// A Rows argument is the tuple (address, batch stride, row stride, is bfloat16), strides in elements; address 0 means absent.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
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
#if defined(SSAMBA_X86) && defined(_MSC_VER)
#include <intrin.h>
#endif

#include "kernels.hpp"

namespace nb = nanobind;

namespace ssamba {
namespace {

// --- Instruction sets ---------------------------------------------------------------------------------------------

bool machine_has(const std::string& name) {
  if (name == "generic") return true;
#if defined(SSAMBA_X86) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(SSAMBA_X86)
  int info[4];
  __cpuid(info, 1);
  const bool fma = info[2] & (1 << 12), saves_state = info[2] & (1 << 27);
  __cpuidex(info, 7, 0);
  const unsigned b = static_cast<unsigned>(info[1]);
  const unsigned long long enabled = saves_state ? _xgetbv(0) : 0;
  const bool avx2 = fma && (b >> 5 & 1) && (enabled & 6) == 6;
  if (name == "avx2") return avx2;
  if (name == "avx512")  // F, DQ, BW, VL, and the system saves the registers
    return avx2 && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1) && (enabled & 0xe6) == 0xe6;
#endif
  return false;
}

const std::vector<const Kernels*>& built() {  // the best first
  static const std::vector<const Kernels*> tables = {
#ifdef SSAMBA_BUILT_AVX512
      &kernels_avx512,
#endif
#ifdef SSAMBA_BUILT_AVX2
      &kernels_avx2,
#endif
      &kernels_generic};
  return tables;
}

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const Kernels* table : built())
    if (machine_has(table->name)) names.push_back(table->name);
  return names;
}

const Kernels& kernels_called(const std::string& name) {
  for (const Kernels* table : built())
    if (name == table->name && machine_has(name)) return *table;
  throw std::invalid_argument("no kernels for " + name);
}

// --- Threads ------------------------------------------------------------------------------------------------------

// Numbers below 1.2e-38 count as zero while a kernel runs: a state that fades away would otherwise slow it down tenfold.
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

// Each thread keeps its working memory: getting it fresh from the system costs more than a short scan.
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

// What a backward pass adds up at the end. The calling thread keeps it for the next pass, unless it is large.
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

// Fresh memory comes in pages, and the first touch of each costs about as much as the scan of a row: for big results, ask for pages
// of 2 MiB instead of 4 KiB. A hint only.
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

// Runs work(thread) for each of `threads` threads.
template <typename Work>
void on_threads(int threads, const Work& work) {
#ifdef _OPENMP
  if (threads > 1) {
    bool out_of_memory = false;
#pragma omp parallel num_threads(threads)
    {
      const FlushToZero guard;
      try {
        // Fewer threads may come than were asked for; the work is the same whoever does it.
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

// Never beyond the arrays, whatever a compiled graph (which cannot check) passes on.
int64_t clip_length(const int64_t* lengths, int64_t clip, int64_t length) {
  return lengths == nullptr ? length : std::clamp<int64_t>(lengths[clip], 0, length);
}

// Cuts the (clip, unit) pairs into one run per thread of nearly equal work, a unit of a clip being worth its length, and calls
// piece(clip, first unit, last unit) for the parts of the calling thread's run that lie in one clip.
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
      // A unit belongs to the thread in whose share its middle lies.
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

// out[row, :] = sum over parts of part[i, row, :], in that order. `parts` are `distance` floats apart.
void add_parts(const float* part, int64_t parts, int64_t distance, int64_t size, float* out) {
  std::memcpy(out, part, static_cast<size_t>(size) * sizeof(float));
  for (int64_t i = 1; i < parts; ++i)
    for (int64_t j = 0; j < size; ++j) out[j] += part[i * distance + j];
}

void store_bfloat16(const float* from, int64_t size, uint16_t* to) {
  for (int64_t j = 0; j < size; ++j) {
    uint32_t bits;
    std::memcpy(&bits, from + j, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to[j] = nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// --- Arguments ----------------------------------------------------------------------------------------------------

using Address = uintptr_t;
using RowsTuple = std::tuple<Address, int64_t, int64_t, bool>;
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows rows(const RowsTuple& t) {
  return {at<void>(std::get<0>(t)), std::get<1>(t), std::get<2>(t), std::get<3>(t) ? BFLOAT16 : FLOAT32};
}

Scan scan_of(const Sizes& sizes, bool softplus, bool reverse, const RowsTuple& u, const RowsTuple& delta, Address A,
             const RowsTuple& B, const RowsTuple& C, Address D, const RowsTuple& z, Address bias, Address lengths,
             Address initial_state, Address borders) {
  Scan in;
  std::tie(in.batch, in.length, in.channels, in.state) = sizes;
  in.softplus = softplus;
  in.reverse = reverse;
  in.u = rows(u);
  in.delta = rows(delta);
  in.z = rows(z);
  in.B = rows(B);
  in.C = rows(C);
  in.A = at<const float>(A);
  in.D = at<const float>(D);
  in.bias = at<const float>(bias);
  in.lengths = at<const int64_t>(lengths);
  in.initial_state = at<const float>(initial_state);
  in.borders = at<float>(borders);
  return in;
}

Conv conv_of(const Sizes& sizes, bool silu, bool reverse, const RowsTuple& x, Address bias, Address lengths) {
  Conv in;
  std::tie(in.batch, in.length, in.channels, in.taps) = sizes;
  in.silu = silu;
  in.reverse = reverse;
  in.x = rows(x);
  in.weight = nullptr;
  in.bias = at<const float>(bias);
  in.lengths = at<const int64_t>(lengths);
  return in;
}

std::vector<float> taps_first(const float* weight, int64_t channels, int64_t taps) {
  std::vector<float> transposed(static_cast<size_t>(channels * taps));
  for (int64_t d = 0; d < channels; ++d)
    for (int64_t k = 0; k < taps; ++k) transposed[static_cast<size_t>(k * channels + d)] = weight[d * taps + k];
  return transposed;
}

// --- What Python calls --------------------------------------------------------------------------------------------

void scan_forward(const std::string& capability, int threads, const Sizes& sizes, bool softplus, bool reverse,
                  const RowsTuple& u, const RowsTuple& delta, Address A, const RowsTuple& B, const RowsTuple& C, Address D,
                  const RowsTuple& z, Address bias, Address lengths, Address initial_state, Address borders,
                  const RowsTuple& out, Address last_state) {
  const Kernels& kernels = kernels_called(capability);
  const ScanForward args = {
      scan_of(sizes, softplus, reverse, u, delta, A, B, C, D, z, bias, lengths, initial_state, borders), rows(out),
      at<float>(last_state)};
  const nb::gil_scoped_release release;
  expect_writes(args.out, args.in.batch, args.in.length, args.in.channels);
  if (args.in.borders != nullptr)
    expect_writes(args.in.borders, args.in.batch * ((args.in.length + CHUNK - 1) / CHUNK) * args.in.channels * args.in.state * 4);
  const int64_t blocks = (args.in.channels + BLOCK - 1) / BLOCK;
  deal_out(threads, args.in.batch, blocks, args.in.length, args.in.lengths,
           [&](int64_t clip, int64_t first, int64_t last) {
             kernels.scan_forward(args, clip, first, last, scratch(kernels.scan_forward_scratch(args.in, last - first)));
           });
}

// The gradients of A, D and the bias come in float32, those of B and C as (B, L, N) of `projections_bf16`; an address of 0 leaves
// one out (z's with z).
void scan_backward(const std::string& capability, int threads, const Sizes& sizes, bool softplus, bool reverse,
                   const RowsTuple& u, const RowsTuple& delta, Address A, const RowsTuple& B, const RowsTuple& C, Address D,
                   const RowsTuple& z, Address bias, Address lengths, Address borders, const RowsTuple& grad_out,
                   Address grad_last, const RowsTuple& grad_u, const RowsTuple& grad_delta, Address grad_A,
                   const RowsTuple& grad_B, const RowsTuple& grad_C, Address grad_D, const RowsTuple& grad_z,
                   Address grad_bias, Address grad_initial) {
  const Kernels& kernels = kernels_called(capability);
  ScanBackward args;
  args.in = scan_of(sizes, softplus, reverse, u, delta, A, B, C, D, z, bias, lengths, 0, borders);
  const int64_t batch = args.in.batch, length = args.in.length, channels = args.in.channels, N = args.in.state;
  const int64_t groups = (channels + GROUP - 1) / GROUP, matrix = channels * N;
  args.grad_out = rows(grad_out);
  args.grad_last = at<const float>(grad_last);
  args.grad_u = rows(grad_u);
  args.grad_delta = rows(grad_delta);
  args.grad_z = rows(grad_z);
  args.grad_initial = at<float>(grad_initial);
  const nb::gil_scoped_release release;
  for (const Rows& target : {args.grad_u, args.grad_delta, args.grad_z}) expect_writes(target, batch, length, channels);
  const int64_t part_B = batch * groups * length * N;
  PartsMemory parts(2 * part_B + batch * (matrix + 2 * channels));
  args.part_B = parts.data();
  args.part_C = args.part_B + part_B;
  args.part_A = args.part_C + part_B;
  args.part_D = args.part_A + batch * matrix;
  args.part_bias = args.part_D + batch * channels;
  deal_out(threads, batch, groups, length, args.in.lengths, [&](int64_t clip, int64_t first, int64_t last) {
    kernels.scan_backward(args, clip, first, last, scratch(kernels.scan_backward_scratch(args.in, last - first)));
  });
  const Rows targets[] = {rows(grad_B), rows(grad_C)};
  constexpr int64_t STEPS = 256;
  deal_out(threads, batch, (length + STEPS - 1) / STEPS, length, nullptr, [&](int64_t clip, int64_t first, int64_t last) {
    const int64_t valid = clip_length(args.in.lengths, clip, length);
    float* sums = scratch(STEPS * N);
    for (int64_t block = first; block < last; ++block) {
      const int64_t t0 = block * STEPS, steps = std::min(STEPS, length - t0);
      const int64_t size = std::max<int64_t>(0, std::min(steps, valid - t0)) * N;
      for (int i = 0; i < 2; ++i) {
        const float* part = (i == 0 ? args.part_B : args.part_C) + (clip * groups * length + t0) * N;
        add_parts(part, size > 0 ? groups : 0, length * N, size, sums);
        std::memset(sums + size, 0, static_cast<size_t>(steps * N - size) * sizeof(float));
        const int64_t offset = clip * targets[i].batch_stride + t0 * N;
        if (targets[i].dtype == BFLOAT16)
          store_bfloat16(sums, steps * N, static_cast<uint16_t*>(targets[i].data) + offset);
        else
          std::memcpy(static_cast<float*>(targets[i].data) + offset, sums, static_cast<size_t>(steps * N) * sizeof(float));
      }
    }
  });
  if (batch > 0) {
    add_parts(args.part_A, batch, matrix, matrix, at<float>(grad_A));
    if (grad_D != 0) add_parts(args.part_D, batch, channels, channels, at<float>(grad_D));
    if (grad_bias != 0) add_parts(args.part_bias, batch, channels, channels, at<float>(grad_bias));
  }
}

void conv_forward(const std::string& capability, int threads, const Sizes& sizes, bool silu, bool reverse,
                  const RowsTuple& x, Address weight, Address bias, Address lengths, const RowsTuple& out) {
  const Kernels& kernels = kernels_called(capability);
  ConvForward args = {conv_of(sizes, silu, reverse, x, bias, lengths), rows(out)};
  const nb::gil_scoped_release release;
  const std::vector<float> transposed = taps_first(at<const float>(weight), args.in.channels, args.in.taps);
  args.in.weight = transposed.data();
  constexpr int64_t STEPS = 32;
  deal_out(threads, args.in.batch, (args.in.length + STEPS - 1) / STEPS, args.in.length, nullptr,
           [&](int64_t clip, int64_t first, int64_t last) {
             kernels.conv_forward(args, clip, first * STEPS, std::min(last * STEPS, args.in.length));
           });
}

void conv_backward(const std::string& capability, int threads, const Sizes& sizes, bool silu, bool reverse,
                   const RowsTuple& x, Address weight, Address bias, Address lengths, const RowsTuple& grad_out,
                   const RowsTuple& grad_x, Address grad_weight, Address grad_bias) {
  const Kernels& kernels = kernels_called(capability);
  ConvBackward args;
  args.in = conv_of(sizes, silu, reverse, x, bias, lengths);
  args.grad_out = rows(grad_out);
  args.grad_x = rows(grad_x);
  const int64_t batch = args.in.batch, channels = args.in.channels, taps = args.in.taps;
  const nb::gil_scoped_release release;
  const std::vector<float> transposed = taps_first(at<const float>(weight), channels, taps);
  args.in.weight = transposed.data();
  std::vector<float> parts(static_cast<size_t>(batch * channels * (taps + 1)));
  args.part_weight = parts.data();
  args.part_bias = args.part_weight + batch * channels * taps;
  deal_out(threads, batch, (channels + BLOCK - 1) / BLOCK, args.in.length, args.in.lengths,
           [&](int64_t clip, int64_t first, int64_t last) {
             kernels.conv_backward(args, clip, first, last, scratch(kernels.conv_backward_scratch(args.in, last - first)));
           });
  if (batch > 0) {
    std::vector<float> sums(static_cast<size_t>(channels * taps));
    add_parts(args.part_weight, batch, channels * taps, channels * taps, sums.data());
    for (int64_t d = 0; d < channels; ++d)
      for (int64_t k = 0; k < taps; ++k) at<float>(grad_weight)[d * taps + k] = sums[static_cast<size_t>(k * channels + d)];
    if (grad_bias != 0) add_parts(args.part_bias, batch, channels, channels, at<float>(grad_bias));
  }
}

}  // namespace
}  // namespace ssamba

NB_MODULE(_cpu, m) {
  m.doc() = "The selective scan and the causal convolution for CPUs. Called by ssamba.ops.cpu, which checks the arguments.";
  m.attr("CHUNK") = ssamba::CHUNK;
  m.attr("BLOCK") = ssamba::BLOCK;
#ifdef _OPENMP
  m.attr("OPENMP") = true;
#else
  m.attr("OPENMP") = false;
#endif
  m.def("capabilities", &ssamba::capabilities, "Instruction sets that are built in and run here, the best first.");
  m.def("scan_forward", &ssamba::scan_forward);
  m.def("scan_backward", &ssamba::scan_backward);
  m.def("conv_forward", &ssamba::conv_forward);
  m.def("conv_backward", &ssamba::conv_backward);
}
