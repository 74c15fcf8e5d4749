// Dispatch over the dtypes of features and indices, and over the width of one access.
#pragma once

#include "cuda_device.h"
#include "cuda_host.h"

namespace recon_ops {

template <typename T>
struct Type {
  using type = T;
};

template <typename F>
void dispatch_features(const Tensor& features, const char* name, F&& call) {
  switch (features.scalar_type()) {
    case ScalarType::Float: return call(Type<float>{});
    case ScalarType::Double: return call(Type<double>{});
    case ScalarType::Half: return call(Type<__half>{});
    case ScalarType::BFloat16: return call(Type<__nv_bfloat16>{});
    default:
      STD_TORCH_CHECK(false, name, " must be float16, bfloat16, float32 or float64");
  }
}

template <typename F>
void dispatch_index(const Tensor& index, F&& call) {
  if (index.scalar_type() == ScalarType::Long) call(Type<int64_t>{});
  else call(Type<int32_t>{});
}

// Calls with 16 bytes' worth of elements where rows of `channels` allow it, else with 1.
template <typename T, typename F>
void dispatch_width(int64_t channels, std::initializer_list<const void*> pointers, F&& call) {
  constexpr int kWide = 16 / sizeof(T);
  bool aligned = channels % kWide == 0;
  for (const void* pointer : pointers) {
    aligned = aligned && (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
  }
  if (aligned) call(Constant<kWide>{});
  else call(Constant<1>{});
}

// A block of rows: x threads along a row's vectors (a power of two), y rows.
struct RowBlock {
  dim3 threads;
  unsigned blocks;
};

inline RowBlock row_block(int64_t rows, int64_t vectors, int most_x, int total, const char* what) {
  int x = 1;
  while (x < vectors && x < most_x) x *= 2;
  const int y = total / x;
  return {dim3(x, y), grid_size(ceil_div(rows, y), what)};
}

}  // namespace recon_ops
