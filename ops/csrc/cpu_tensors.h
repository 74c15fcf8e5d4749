// Tensors as the CPU kernels see them: checked for memory safety, contiguous, in plain pointers.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

namespace recon {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor new_floats(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape));
}

inline Tensor new_indices(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), ScalarType::Long);
}

inline void check_points(const char* name, const Tensor& points) {
  STD_TORCH_CHECK(
      points.dim() == 3 && points.size(2) == 3 && points.size(1) > 0,
      name, " must have shape (B, N, 3) with at least one point");
}

inline void check_same(const char* first, const Tensor& a, const char* second, const Tensor& b) {
  STD_TORCH_CHECK(
      a.size(0) == b.size(0), first, " has a batch of ", a.size(0), " but ", second,
      " has one of ", b.size(0));
  STD_TORCH_CHECK(
      a.scalar_type() == b.scalar_type(), first, " and ", second, " must have the same dtype");
}

// Calls f(T{}) with the dtype of floating point coordinates.
template <typename F>
void dispatch_geometry(const char* name, const Tensor& points, F f) {
  switch (points.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    default: STD_TORCH_CHECK(false, name, " must be float32 or float64");
  }
}

// Calls f(T{}) with the dtype of floating point features.
template <typename F>
void dispatch_features(const char* name, const Tensor& features, F f) {
  switch (features.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(torch::headeronly::Half{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{});
    default: STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16");
  }
}

// Sums are taken in float32, of float64 in float64.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// Calls f(pointer) with the dtype of indices, after checking that they lie in 0..limit - 1.
template <typename F>
void dispatch_indices(const char* name, const Tensor& idx, int64_t limit, F f) {
  const auto run = [&](auto* values) {
    int64_t low = 0, high = -1;
    for (int64_t i = 0, n = idx.numel(); i < n; ++i) {
      low = std::min<int64_t>(low, values[i]);
      high = std::max<int64_t>(high, values[i]);
    }
    STD_TORCH_CHECK(
        low >= 0 && high < limit, name, " must lie in 0..", limit - 1, ", found ", low, "..", high);
    f(values);
  };
  switch (idx.scalar_type()) {
    case ScalarType::Int: return run(idx.const_data_ptr<int32_t>());
    case ScalarType::Long: return run(idx.const_data_ptr<int64_t>());
    default: STD_TORCH_CHECK(false, name, " must be int32 or int64");
  }
}

inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Starts arrays on a cache line, which a load of a whole line then touches alone.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, size_t) { ::operator delete(data, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const { return true; }
  template <typename U>
  bool operator!=(const LineAllocator<U>&) const { return false; }
};

template <typename T>
using Aligned = std::vector<T, LineAllocator<T>>;

// A cloud with one row an axis, padded with NaN, which is further away than everything.
template <typename T>
struct Cloud {
  int64_t size = 0, padded = 0;
  Aligned<T> data;

  void load(const T* points, int64_t n, int64_t step) {
    size = n;
    padded = round_up(n, step);
    data.resize(3 * padded);
    for (int axis = 0; axis < 3; ++axis) {
      T* row = data.data() + axis * padded;
      for (int64_t i = 0; i < n; ++i) row[i] = points[3 * i + axis];
      std::fill(row + n, row + padded, std::numeric_limits<T>::quiet_NaN());
    }
  }
  const T* x() const { return data.data(); }
  const T* y() const { return data.data() + padded; }
  const T* z() const { return data.data() + 2 * padded; }
};

} // namespace recon
