// Furthest point sampling kernels. One block a cloud; points and distances stay in registers.
#pragma once

#include "cuda_device.h"

namespace recon_ops {

struct FpsArguments {
  const float* xyz;          // (B, N, 3)
  const int64_t* start;      // (B,) or null for index 0
  float* distances;          // (B, N), used by the kernel for large clouds only
  int64_t* idx;              // (B, S)
  float* points;             // (B, S, 3)
  float min_sq_norm;
  int num_points;
  int num_samples;
};

// Whether a point may be chosen: finite, and not within the radius that is skipped.
__device__ __forceinline__ bool eligible(float x, float y, float z, float min_sq_norm) {
  const float norm =
      __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
  return is_finite(x) && is_finite(y) && is_finite(z) && norm > min_sq_norm;
}

__device__ __forceinline__ float finite_or_zero(float v) { return is_finite(v) ? v : 0.0f; }

__device__ __forceinline__ int start_index(const FpsArguments& args, int cloud) {
  const int64_t start = args.start == nullptr ? 0 : args.start[cloud];
  return index_in_range(start, args.num_points) ? static_cast<int>(start) : 0;
}

// Largest value of a warp. Distances are >= 0, or -1 where a point may not be chosen: their bits
// order like signed integers.
__device__ __forceinline__ int warp_max(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kFullWarp, value);
#else
  for (int mask = 16; mask > 0; mask >>= 1) {
    value = max(value, __shfl_xor_sync(kFullWarp, value, mask));
  }
  return value;
#endif
}

__device__ __forceinline__ unsigned warp_min(unsigned value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kFullWarp, value);
#else
  for (int mask = 16; mask > 0; mask >>= 1) {
    value = min(value, __shfl_xor_sync(kFullWarp, value, mask));
  }
  return value;
#endif
}

__device__ __forceinline__ int max_of_three(int a, int b, int c) {
#if __CUDA_ARCH__ >= 900
  return __vimax3_s32(a, b, c);
#else
  return max(max(a, b), c);
#endif
}

// Shared memory by 32-bit addresses that are computed once: the compiler otherwise reads special
// registers for them in every step, on the critical path.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(pointer));
  asm volatile("mov.u32 %0, %0;" : "+r"(address));
  return address;
}

// Predicated by hand: a branch would cost more than the store.
__device__ __forceinline__ void store_shared_if_equal(
    int a, int b, unsigned address, float x, float y, float z, int w) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.eq.s32 p, %0, %1;\n\t"
      "@p st.shared.v4.b32 [%2], {%3, %4, %5, %6};\n\t}" ::"r"(a),
      "r"(b), "r"(address), "r"(__float_as_int(x)), "r"(__float_as_int(y)),
      "r"(__float_as_int(z)), "r"(w)
      : "memory");
}

__device__ __forceinline__ void store_shared(unsigned address, int value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

__device__ __forceinline__ int load_shared(unsigned address) {
  int value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ int4 load_shared_pack(unsigned address) {
  int4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Calls f with the number in Low..High - 1 of the first element that equals `wanted`, in an
// ascending array that holds it.
template <int Low, int High, int Count, typename F>
__device__ __forceinline__ void at_first(const int (&ascending)[Count], int wanted, F&& f) {
  if constexpr (High - Low == 1) {
    f(Constant<Low>{});
  } else {
    constexpr int kMiddle = (Low + High) / 2;
    if (ascending[kMiddle - 1] == wanted) at_first<Low, kMiddle>(ascending, wanted, f);
    else at_first<kMiddle, High>(ascending, wanted, f);
  }
}

// T threads hold P consecutive points each, so that "lowest lane, then lowest warp" is "lowest
// index". A step: update, maximum of the thread, of the warp, one barrier, maximum of the warps,
// which every warp takes for itself. Slots alternate, which saves a second barrier.
template <int T, int P>
__global__ void __launch_bounds__(T) fps_kernel(const FpsArguments args) {
  constexpr int kWarps = T / 32;
  constexpr int kGroup = P % 4 == 0 ? 4 : 1;
  constexpr int kNever = 0xbf800000;  // the bits of -1: smaller than any distance
  __shared__ __align__(32 * kWarps) int4 winner[2][kWarps];  // x, y, z, index
  __shared__ __align__(8 * kWarps) int maximum[2][kWarps];

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int cloud = blockIdx.x;
  const int n = args.num_points;
  const float* xyz = args.xyz + static_cast<int64_t>(cloud) * n * 3;
  int64_t* idx = args.idx + static_cast<int64_t>(cloud) * args.num_samples;

  float x[P], y[P], z[P];
  int d[P];  // bits of the squared distance to the nearest chosen point, or kNever
  const int first = threadIdx.x * P;
  unrolled<P>([&](auto p) {
    x[p] = y[p] = z[p] = 0.0f;
    d[p] = kNever;
    if (first + p < n) {
      x[p] = xyz[(first + p) * 3];
      y[p] = xyz[(first + p) * 3 + 1];
      z[p] = xyz[(first + p) * 3 + 2];
      if (eligible(x[p], y[p], z[p], args.min_sq_norm)) d[p] = __float_as_int(INFINITY);
    }
  });

  const int start = start_index(args, cloud);
  float cx = finite_or_zero(xyz[start * 3]);
  float cy = finite_or_zero(xyz[start * 3 + 1]);
  float cz = finite_or_zero(xyz[start * 3 + 2]);
  if (threadIdx.x == 0) idx[0] = start;

  const unsigned lower_lanes = (1u << lane) - 1;
  unsigned own_winner = shared_address(&winner[1][warp]);
  unsigned own_maximum = shared_address(&maximum[1][warp]);
  unsigned winners = shared_address(&winner[1][0]);
  unsigned read_maximum = shared_address(&maximum[1][lane < kWarps ? lane : kWarps - 1]);
  int64_t* write = threadIdx.x == 0 ? idx + 1 : nullptr;

  for (int s = 1; s < args.num_samples; ++s) {
    int running[P / kGroup];  // maximum up to and with a group
    int best = kNever;
    unrolled<P / kGroup>([&](auto g) {
      constexpr int p = g * kGroup;
      unrolled<kGroup>([&](auto q) {
        constexpr int i = p + q;
        d[i] = min(d[i], __float_as_int(squared_distance(x[i], y[i], z[i], cx, cy, cz)));
      });
      if constexpr (kGroup == 4) {
        best = max_of_three(max_of_three(d[p], d[p + 1], d[p + 2]), d[p + 3], best);
      } else {
        best = max(best, d[p]);
      }
      running[g] = best;
    });

    const int largest = warp_max(best);
    const unsigned holders = __ballot_sync(kFullWarp, best == largest);
    if (best == largest && (holders & lower_lanes) == 0) {
      // Branches on purpose: one lane walks to the group of its point; of equals, the first is
      // stored last. The slowest of the warps decides, so the way is equally short to all groups.
      store_shared(own_maximum, largest);
      at_first<0, P / kGroup>(running, best, [&](auto g) {
        unrolled<kGroup>([&](auto q) {
          constexpr int p = g * kGroup + kGroup - 1 - q;
          store_shared_if_equal(d[p], best, own_winner, x[p], y[p], z[p], first + p);
        });
      });
    }
    int4 chosen;
    if constexpr (kWarps == 1) {
      __syncwarp();
      chosen = load_shared_pack(winners);
    } else {
      __syncthreads();
      const int other = load_shared(read_maximum);
      const unsigned warps = __ballot_sync(kFullWarp, other == warp_max(other));
      chosen = load_shared_pack(winners + (__ffs(warps) - 1) * 16);
    }
    cx = __int_as_float(chosen.x);
    cy = __int_as_float(chosen.y);
    cz = __int_as_float(chosen.z);
    if (write != nullptr) *write++ = chosen.w;
    own_winner ^= 16 * kWarps;
    winners ^= 16 * kWarps;
    own_maximum ^= 4 * kWarps;
    read_maximum ^= 4 * kWarps;
  }

  // The points as they are in the input, finite or not.
  __syncthreads();
  float* points = args.points + static_cast<int64_t>(cloud) * args.num_samples * 3;
  for (int s = threadIdx.x; s < args.num_samples; s += T) {
    const int64_t from = idx[s] * 3;
    points[s * 3] = xyz[from];
    points[s * 3 + 1] = xyz[from + 1];
    points[s * 3 + 2] = xyz[from + 2];
  }
}

// Clouds that do not fit into registers: distances in global memory, the rest as above.
template <int T>
__global__ void __launch_bounds__(T) fps_large_kernel(const FpsArguments args) {
  constexpr int kWarps = T / 32;
  __shared__ int maximum[2][kWarps];
  __shared__ unsigned holder[2][kWarps];

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t cloud = blockIdx.x;
  const int n = args.num_points;
  const float* xyz = args.xyz + cloud * n * 3;
  float* distances = args.distances + cloud * n;
  int64_t* idx = args.idx + cloud * args.num_samples;
  float* points = args.points + cloud * args.num_samples * 3;

  int chosen = start_index(args, blockIdx.x);
  for (int s = 0;; ++s) {
    const float raw_x = xyz[chosen * 3], raw_y = xyz[chosen * 3 + 1], raw_z = xyz[chosen * 3 + 2];
    if (threadIdx.x == 0) {
      idx[s] = chosen;
      points[s * 3] = raw_x;
      points[s * 3 + 1] = raw_y;
      points[s * 3 + 2] = raw_z;
    }
    if (s + 1 == args.num_samples) break;
    const float cx = finite_or_zero(raw_x), cy = finite_or_zero(raw_y), cz = finite_or_zero(raw_z);
    float best = -2.0f;
    int best_index = 0;
    for (int i = threadIdx.x; i < n; i += T) {
      const float x = xyz[i * 3], y = xyz[i * 3 + 1], z = xyz[i * 3 + 2];
      const float before =
          s > 0 ? distances[i] : (eligible(x, y, z, args.min_sq_norm) ? INFINITY : -1.0f);
      const float d = before < 0.0f ? before : fminf(before, squared_distance(x, y, z, cx, cy, cz));
      distances[i] = d;
      if (d > best) {
        best = d;
        best_index = i;
      }
    }
    const int buffer = s & 1;
    // Signed order does not hold between the negative values -1 and -2; map them to -1 and lower.
    const int bits = best == -2.0f ? INT32_MIN : __float_as_int(best);
    const int largest = warp_max(bits);
    const unsigned lowest = warp_min(bits == largest ? best_index : kNoKey);
    if (lane == 0) {
      maximum[buffer][warp] = largest;
      holder[buffer][warp] = lowest;
    }
    __syncthreads();
    const int other = maximum[buffer][lane < kWarps ? lane : kWarps - 1];
    const unsigned other_index = holder[buffer][lane < kWarps ? lane : kWarps - 1];
    chosen = warp_min(other == warp_max(other) ? other_index : kNoKey);
  }
}

}  // namespace recon_ops
