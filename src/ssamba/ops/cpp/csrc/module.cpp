// The Python module: chooses an instruction set, divides the work among threads, and sums their partial results.
//
// Arrays arrive as addresses and strides (ops/cpp/*.py has checked them): for tensors this costs a fraction of an array
// protocol. A Rows argument is the tuple (address, batch stride, row stride, is bfloat16), strides in elements; address
// 0 means absent. Types for Python: ../_cpu.pyi. Shapes: see kernels.hpp.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(_M_X64) && defined(_MSC_VER)
#include <intrin.h>
#endif

#include "kernels.hpp"
#include "threads.hpp"

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
  if (name == "avx512")  // F, DQ, BW, VL, and the operating system saves the registers
    return avx2 && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1) && (enabled & 0xe6) == 0xe6;
#endif
  return false;
}

const std::vector<const Kernels*>& built() {  // best first
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

const RowsTuple NOTHING = {0, 0, 0, false};

// Where step sizes come from: rows of delta (B, L, E), or, with rank > 0, rows of its low-rank factor (B, L, rank) and
// weights (E, rank).
using StepTuple = std::tuple<RowsTuple, Address, int64_t>;

Scan scan_of(const Sizes& sizes, bool softplus, bool reverse, const RowsTuple& u, const StepTuple& step, Address A,
             const RowsTuple& B, const RowsTuple& C, Address D, const RowsTuple& z, Address bias, Address lengths,
             Address initial_state, Address borders) {
  Scan in;
  std::tie(in.batch, in.length, in.channels, in.state) = sizes;
  in.softplus = softplus;
  in.reverse = reverse;
  in.logarithms = false;
  in.u = rows(u);
  in.rank = std::get<2>(step);
  in.low_weight = at<const float>(std::get<1>(step));
  in.low = in.rank > 0 ? rows(std::get<0>(step)) : Rows{nullptr, 0, 0, FLOAT32};
  in.delta = in.rank > 0 ? Rows{nullptr, 0, 0, FLOAT32} : rows(std::get<0>(step));
  in.z = rows(z);
  in.B = rows(B);
  in.C = rows(C);
  in.A = at<const float>(A);
  in.D = at<const float>(D);
  in.bias = at<const float>(bias);
  in.lengths = at<const int64_t>(lengths);
  in.initial_state = at<const float>(initial_state);
  in.borders = at<float>(borders);
  in.constants = nullptr;
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

// The constants that a scan's clips share, computed once if there are several clips; else empty.
std::vector<float> make_constants(const Kernels& kernels, Scan* in) {
  std::vector<float> constants;
  if (in->batch > 1) {
    constants.resize(static_cast<size_t>(kernels.scan_constants_size(*in, (in->channels + BLOCK - 1) / BLOCK)));
    kernels.scan_constants(*in, constants.data());
    in->constants = constants.data();
  }
  return constants;
}

// --- What Python calls --------------------------------------------------------------------------------------------

void scan_forward(const std::string& capability, int threads, const Sizes& sizes, bool softplus, bool reverse,
                  const RowsTuple& u, const StepTuple& step, Address A, const RowsTuple& B, const RowsTuple& C, Address D,
                  const RowsTuple& z, Address bias, Address lengths, Address initial_state, Address borders,
                  const RowsTuple& out, Address last_state) {
  const Kernels& kernels = kernels_called(capability);
  ScanForward args = {
      scan_of(sizes, softplus, reverse, u, step, A, B, C, D, z, bias, lengths, initial_state, borders), false, rows(out),
      at<float>(last_state), 1.0f};
  const nb::gil_scoped_release release;
  const std::vector<float> constants = make_constants(kernels, &args.in);
  expect_writes(args.out, args.in.batch, args.in.length, args.in.channels);
  if (args.in.borders != nullptr)
    expect_writes(args.in.borders, args.in.batch * ((args.in.length + CHUNK - 1) / CHUNK) * args.in.channels * args.in.state * 4);
  const int64_t blocks = (args.in.channels + BLOCK - 1) / BLOCK;
  deal_out(threads, args.in.batch, blocks, args.in.length, args.in.lengths,
           [&](int64_t clip, int64_t first, int64_t last) {
             kernels.scan_forward(args, clip, first, last, scratch(kernels.scan_forward_scratch(args.in, last - first)));
           });
}

// Gradients of A, D and the bias are float32, those of B and C (B, L, N) have the dtypes of B and C. An address of 0
// skips a gradient; that of z is skipped if z is absent.
void scan_backward(const std::string& capability, int threads, const Sizes& sizes, bool softplus, bool reverse,
                   const RowsTuple& u, const StepTuple& step, Address A, const RowsTuple& B, const RowsTuple& C, Address D,
                   const RowsTuple& z, Address bias, Address lengths, Address borders, const RowsTuple& grad_out,
                   Address grad_last, const RowsTuple& grad_u, const RowsTuple& grad_delta, Address grad_A,
                   const RowsTuple& grad_B, const RowsTuple& grad_C, Address grad_D, const RowsTuple& grad_z,
                   Address grad_bias, Address grad_initial) {
  const Kernels& kernels = kernels_called(capability);
  ScanBackward args;
  args.in = scan_of(sizes, softplus, reverse, u, step, A, B, C, D, z, bias, lengths, 0, borders);
  const int64_t batch = args.in.batch, length = args.in.length, channels = args.in.channels, N = args.in.state;
  const int64_t groups = (channels + GROUP - 1) / GROUP, matrix = channels * N;
  args.grad_out = rows(grad_out);
  args.grad_last = at<const float>(grad_last);
  args.grad_u = rows(grad_u);
  args.grad_delta = rows(grad_delta);
  args.grad_z = rows(grad_z);
  args.grad_initial = at<float>(grad_initial);
  const nb::gil_scoped_release release;
  const std::vector<float> constants = make_constants(kernels, &args.in);
  for (const Rows& target : {args.grad_u, args.grad_delta, args.grad_z}) expect_writes(target, batch, length, channels);
  const int64_t part_B = batch * groups * length * N;
  PartsMemory parts(2 * part_B + batch * (matrix + 2 * channels));
  args.part_B = parts.data();
  expect_writes(args.part_B, 2 * part_B * 4);
  args.part_C = args.part_B + part_B;
  args.part_A = args.part_C + part_B;
  args.part_D = args.part_A + batch * matrix;
  args.part_bias = args.part_D + batch * channels;
  std::vector<int8_t> levels(static_cast<size_t>(batch * groups), int8_t{-1});
  args.part_level = levels.data();
  deal_out(threads, batch, groups, length, args.in.lengths, [&](int64_t clip, int64_t first, int64_t last) {
    kernels.scan_backward(args, clip, first, last, scratch(kernels.scan_backward_scratch(args.in, last - first)));
  });
  const Rows targets[] = {rows(grad_B), rows(grad_C)};
  constexpr int64_t STEPS = 256;
  deal_out(threads, batch, (length + STEPS - 1) / STEPS, length, nullptr, [&](int64_t clip, int64_t first, int64_t last) {
    const int64_t valid = clip_length(args.in.lengths, clip, length);
    float* memory = scratch(most_subtrees(groups) * STEPS * N);
    for (int64_t block = first; block < last; ++block) {
      const int64_t t0 = block * STEPS, steps = std::min(STEPS, length - t0);
      const int64_t summed = groups == 0 ? 0 : std::max<int64_t>(0, std::min(steps, valid - t0));
      for (int i = 0; i < 2; ++i) {
        const float* part = (i == 0 ? args.part_B : args.part_C) + (clip * groups * length + t0) * N;
        const float* sums = nullptr;
        if (summed > 0) sums = add_subtrees(part, levels.data() + clip * groups, groups, length * N, summed * N, memory, STEPS * N);
        const Rows& target = targets[i];
        const int64_t bytes = target.dtype == FLOAT32 ? 4 : 2;
        for (int64_t k = 0; k < steps; ++k) {
          char* to = static_cast<char*>(target.data) + (clip * target.batch_stride + (t0 + k) * target.row_stride) * bytes;
          if (k >= summed)
            std::memset(to, 0, static_cast<size_t>(N * bytes));
          else if (target.dtype == FLOAT32)
            std::memcpy(to, sums + k * N, static_cast<size_t>(N * bytes));
          else
            store_bfloat16(sums + k * N, N, reinterpret_cast<uint16_t*>(to));
        }
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
  ConvForward args = {conv_of(sizes, silu, reverse, x, bias, lengths), rows(out), nullptr, 0, rows(NOTHING)};
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
                   const RowsTuple& grad_x, bool accumulate, Address grad_weight, Address grad_bias) {
  const Kernels& kernels = kernels_called(capability);
  ConvBackward args;
  args.in = conv_of(sizes, silu, reverse, x, bias, lengths);
  args.accumulate = accumulate;
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

// --- The two directions of a block --------------------------------------------------------------------------------

constexpr float MEAN = 0.5f;  // a block's output is the mean of two directions: the gate is halved

// With `starts` (B), clips are packed one after another without padding: clip b begins at row starts[b], and `sizes`
// has the number of clips and the length of the longest. The kernels then process each clip as a batch of one.
Rows from_row(Rows rows, int64_t row) {
  const int64_t size = rows.dtype == FLOAT32 ? 4 : 2;
  if (rows.data != nullptr) rows.data = static_cast<char*>(rows.data) + row * rows.row_stride * size;
  return rows;
}

ConvForward alone(ConvForward args, int64_t start, int64_t length) {
  args.in.batch = 1;
  args.in.length = length;
  args.in.lengths = nullptr;
  args.in.x = from_row(args.in.x, start);
  args.out = from_row(args.out, start);
  args.projected = from_row(args.projected, start);
  return args;
}

ScanForward alone(ScanForward args, int64_t start, int64_t length) {
  args.in.batch = 1;
  args.in.length = length;
  args.in.lengths = nullptr;
  for (Rows* rows : {&args.in.u, &args.in.low, &args.in.z, &args.in.B, &args.in.C, &args.out}) *rows = from_row(*rows, start);
  return args;
}

// One direction's convolution: whether it is reversed, weight (E, taps), bias, the address of row `first_row` of its
// output; the projection (columns, E) by which the output is multiplied, 0 for none, and row `first_row` of that
// product.
using ConvTuple = std::tuple<bool, Address, Address, RowsTuple, Address, RowsTuple>;

// The convolutions of one or two directions over the same x (B, L, E), with SiLU, and their product with the
// projection: rows [first_row, last_row) of each clip, all rows with `starts`.
void mixer_conv(const std::string& capability, int threads, const Sizes& sizes, const RowsTuple& x, Address lengths,
                Address starts, int64_t first_row, int64_t last_row, int64_t columns, const std::vector<ConvTuple>& directions) {
  const Kernels& kernels = kernels_called(capability);
  const auto row_0 = [=](RowsTuple first) {
    const auto [address, batch_stride, row_stride, is_bf16] = first;
    if (address != 0) std::get<0>(first) -= static_cast<Address>(first_row * row_stride * (is_bf16 ? 2 : 4));
    return rows(first);
  };
  std::vector<ConvForward> convs;
  std::vector<std::vector<float>> weights;
  for (const auto& [reverse, weight, bias, out, projection, projected] : directions) {
    ConvForward args = {conv_of(sizes, true, reverse, x, bias, lengths), row_0(out), at<const float>(projection), columns,
                        row_0(projected)};
    weights.push_back(taps_first(at<const float>(weight), args.in.channels, args.in.taps));
    args.in.weight = weights.back().data();
    convs.push_back(args);
  }
  const nb::gil_scoped_release release;
  const int64_t count = static_cast<int64_t>(convs.size());
  if (starts != 0) {
    constexpr int64_t PIECES = 8;  // per clip and direction
    const Conv& in = convs.front().in;
    deal_out(threads, in.batch, PIECES * count, in.length, in.lengths, [&](int64_t clip, int64_t first, int64_t last) {
      const int64_t length = clip_length(in.lengths, clip, in.length), start = at<const int64_t>(starts)[clip];
      for (int64_t i = first / PIECES; i * PIECES < last; ++i) {
        const int64_t from = std::max<int64_t>(first - i * PIECES, 0), to = std::min(last - i * PIECES, PIECES);
        const auto cut = [=](int64_t piece) { return piece == PIECES ? length : length * piece / PIECES / 4 * 4; };
        kernels.conv_forward(alone(convs[static_cast<size_t>(i)], start, length), 0, cut(from), cut(to));
      }
    });
    return;
  }
  constexpr int64_t STEPS = 32;
  const int64_t blocks = (last_row - first_row + STEPS - 1) / STEPS;
  deal_out(threads, std::get<0>(sizes), blocks * count, last_row - first_row, nullptr,
           [&](int64_t clip, int64_t first, int64_t last) {
             // Unit b * count + i is block b of direction i: a thread processes the same rows in all directions.
             for (int64_t i = 0; i < count; ++i) {
               const int64_t from = (first - i + count - 1) / count, to = (last - i + count - 1) / count;
               if (from < to)
                 kernels.conv_forward(convs[static_cast<size_t>(i)], clip, first_row + from * STEPS,
                                      std::min(first_row + to * STEPS, last_row));
             }
           });
}

// One direction's scan: whether it is reversed, u, delta's low-rank factor with its weights, log(-A), B, C, D, delta's
// bias, the state before (0: zeros), where to write the state after (0: nowhere; may be the state before), and where to
// save the state before each chunk (0: nowhere).
using ScanTuple = std::tuple<bool, RowsTuple, StepTuple, Address, RowsTuple, RowsTuple, Address, Address, Address, Address, Address>;

// The scans of one or two directions. Their sum is written to `y`, or added to it if `accumulate`; with z, the sum is
// halved and gated after the last direction. With `starts`, the states before and after must be absent.
void mixer_scan(const std::string& capability, int threads, const Sizes& sizes, const RowsTuple& z, const RowsTuple& y,
                Address lengths, Address starts, bool accumulate, const std::vector<ScanTuple>& directions) {
  const Kernels& kernels = kernels_called(capability);
  std::vector<ScanForward> scans;
  for (const auto& [reverse, u, step, A_log, B, C, D, bias, before, after, borders] : directions) {
    const bool last = scans.size() + 1 == directions.size();
    scans.push_back({scan_of(sizes, true, reverse, u, step, A_log, B, C, D, last ? z : NOTHING, bias, lengths, before, borders),
                     accumulate || !scans.empty(), rows(y), at<float>(after), MEAN});
    scans.back().in.logarithms = true;
  }
  const nb::gil_scoped_release release;
  std::vector<std::vector<float>> constants;
  for (ScanForward& scan : scans) constants.push_back(make_constants(kernels, &scan.in));
  const Scan& in = scans.front().in;
  if (starts == 0) expect_writes(rows(y), in.batch, in.length, in.channels);
  deal_out(threads, in.batch, (in.channels + BLOCK - 1) / BLOCK, in.length, in.lengths,
           [&](int64_t clip, int64_t first, int64_t last) {
             for (const ScanForward& scan : scans) {
               float* memory = scratch(kernels.scan_forward_scratch(scan.in, last - first));
               if (starts == 0) {
                 kernels.scan_forward(scan, clip, first, last, memory);
               } else {
                 const int64_t length = clip_length(in.lengths, clip, in.length);
                 kernels.scan_forward(alone(scan, at<const int64_t>(starts)[clip], length), 0, first, last, memory);
               }
             }
           });
}

// gated = y silu(z) / 2; with `grad`, the gradient of gated: turn it into that of y, and fill `grad_z`.
void mixer_gate(const std::string& capability, int threads, const std::tuple<int64_t, int64_t, int64_t>& sizes,
                const RowsTuple& y, const RowsTuple& z, Address lengths, const RowsTuple& gated, const RowsTuple& grad,
                const RowsTuple& grad_z) {
  const Kernels& kernels = kernels_called(capability);
  const auto [batch, length, channels] = sizes;
  const Gate args = {batch,   length,  channels,    MEAN,       at<const int64_t>(lengths),
                     rows(y), rows(z), rows(gated), rows(grad), rows(grad_z)};
  const nb::gil_scoped_release release;
  constexpr int64_t STEPS = 32;
  deal_out(threads, batch, (length + STEPS - 1) / STEPS, length, nullptr, [&](int64_t clip, int64_t first, int64_t last) {
    kernels.gate(args, clip, first * STEPS, std::min(last * STEPS, args.length));
  });
}

}  // namespace
}  // namespace ssamba

NB_MODULE(_cpu, m) {
  m.doc() = "The selective scan and the causal convolution for CPUs. Called by ssamba.ops.cpp, which checks the arguments.";
  m.attr("CHUNK") = ssamba::CHUNK;
  m.attr("BLOCK") = ssamba::BLOCK;
#ifdef _OPENMP
  m.attr("OPENMP") = true;
#else
  m.attr("OPENMP") = false;
#endif
  m.def("capabilities", &ssamba::capabilities, "Instruction sets that are built in and run here, best first.");
  m.def("scan_forward", &ssamba::scan_forward);
  m.def("scan_backward", &ssamba::scan_backward);
  m.def("conv_forward", &ssamba::conv_forward);
  m.def("conv_backward", &ssamba::conv_backward);
  m.def("mixer_conv", &ssamba::mixer_conv);
  m.def("mixer_scan", &ssamba::mixer_scan);
  m.def("mixer_gate", &ssamba::mixer_gate);
}
