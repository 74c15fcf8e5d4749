// Device-side pieces shared by the CUDA kernels: distances, sortable keys, loads of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace recon_ops {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr unsigned kNoKey = 0xffffffffu;  // sorts after every distance, NaN included

// The one distance formula of all backends; its order of operations is part of the contract.
__device__ __forceinline__ float squared_distance(
    float ax, float ay, float az, float bx, float by, float bz) {
  const float dx = __fsub_rn(ax, bx);
  const float dy = __fsub_rn(ay, by);
  const float dz = __fsub_rn(az, bz);
  return __fmaf_rn(dz, dz, __fmaf_rn(dy, dy, __fmul_rn(dx, dx)));
}

// Squared distances are never negative, so their bits order as unsigned integers; arithmetic gives
// the canonical NaN 0x7fffffff, which comes after infinity.
__device__ __forceinline__ unsigned distance_key(float squared) { return __float_as_uint(squared); }

__device__ __forceinline__ bool is_finite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T, typename A>
__device__ __forceinline__ T narrow_to(A v) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (std::is_same_v<T, __half>) {
      return __float2half_rn(v);
    } else {
      return __float2bfloat16_rn(v);
    }
  } else {
    return static_cast<T>(v);
  }
}

template <int I>
struct Constant {
  __host__ __device__ constexpr operator int() const { return I; }
};

// Calls f(0), f(1), ... f(Count - 1) with compile-time numbers, so that arrays stay in registers.
template <int Count, typename F>
__device__ __forceinline__ void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (f(Constant<I>{}), ...);
  }(std::make_integer_sequence<int, Count>{});
}

// The same until one of the calls returns true.
template <int Count, typename F>
__device__ __forceinline__ bool unrolled_until(F&& f) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return (f(Constant<I>{}) || ...);
  }(std::make_integer_sequence<int, Count>{});
}

// V consecutive elements, moved as one access.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};

// Rows are counted in 64 bits, but nearly always fit into 32, where a division is much cheaper.
__device__ __forceinline__ int64_t divided(int64_t row, int64_t by) {
  if (((row | by) >> 32) == 0) return static_cast<unsigned>(row) / static_cast<unsigned>(by);
  return row / by;
}

// An index that lies outside is a caller's error: reads become NaN, sums leave it out, and a build
// with RECON_OPS_DEBUG stops in the kernel.
__device__ __forceinline__ bool index_in_range(int64_t index, int64_t limit) {
  const bool inside = index >= 0 && index < limit;
#ifdef RECON_OPS_DEBUG
  if (!inside) __trap();
#endif
  return inside;
}

}  // namespace recon_ops
