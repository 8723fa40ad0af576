// Runs the generic scan of one clip, forward and backward: reads the arrays that aarch64.py writes, writes results.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.hpp"

using namespace ssamba;

static std::vector<float> take(std::FILE* file, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  if (std::fread(values.data(), 4, values.size(), file) != values.size()) std::exit(2);
  return values;
}

static Rows rows(std::vector<float>& data, int64_t width) {
  return {data.data(), static_cast<int64_t>(data.size()), width, FLOAT32};
}

int main(int, char** names) {
  std::FILE* file = std::fopen(names[1], "rb");
  int64_t sizes[4];  // L, E, N, reverse
  if (file == nullptr || std::fread(sizes, 8, 4, file) != 4) return 2;
  const int64_t L = sizes[0], E = sizes[1], N = sizes[2];
  std::vector<float> u = take(file, L * E), delta = take(file, L * E), z = take(file, L * E), B = take(file, L * N),
                     C = take(file, L * N), A = take(file, E * N), D = take(file, E), bias = take(file, E),
                     grad_out = take(file, L * E);
  std::fclose(file);
  const int64_t padded = (E + BLOCK - 1) / BLOCK * BLOCK, chunks = (L + CHUNK - 1) / CHUNK;
  std::vector<float> borders(static_cast<size_t>(chunks * padded * N)), last(static_cast<size_t>(E * N));
  Scan in = {1, L, E, N, true, sizes[3] != 0, false, rows(u, E), rows(delta, E), rows(z, E), {nullptr, 0, 0, 0},
             nullptr, 0, rows(B, N), rows(C, N), A.data(), D.data(), bias.data(), nullptr, nullptr, borders.data(),
             nullptr};
  std::vector<float> out(u.size());
  const ScanForward forward = {in, false, rows(out, E), last.data(), 1.0f};
  const Kernels& kernels = kernels_generic;
  const int64_t blocks = (E + BLOCK - 1) / BLOCK, groups = (E + GROUP - 1) / GROUP;
  if (groups != 1) return 3;
  auto memory = [](int64_t floats) {
    return static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64)));
  };
  kernels.scan_forward(forward, 0, 0, blocks, memory(kernels.scan_forward_scratch(in, blocks)));
  std::vector<float> grad_u(u.size()), grad_delta(u.size()), grad_z(u.size()), grad_B(B.size()), grad_C(B.size()),
      grad_A(A.size()), grad_D(D.size()), grad_bias(D.size());
  int8_t level = -1;
  const ScanBackward backward = {in, rows(grad_out, E), nullptr, rows(grad_u, E), rows(grad_delta, E), rows(grad_z, E),
                                 nullptr, grad_B.data(), grad_C.data(), &level, grad_A.data(), grad_D.data(),
                                 grad_bias.data()};
  if (std::getenv("FORWARD") == nullptr)
    kernels.scan_backward(backward, 0, 0, groups, memory(kernels.scan_backward_scratch(in, groups)));
  file = std::fopen(names[2], "wb");
  for (const auto* values : {&out, &last, &grad_u, &grad_delta, &grad_z, &grad_B, &grad_C, &grad_A, &grad_D, &grad_bias})
    std::fwrite(values->data(), 4, values->size(), file);
  std::fclose(file);
  return 0;
}
