// Chamfer kernels: a warp a pair for tiny sets, tiles of both sets for large ones.
#pragma once

#include "cuda_device.h"

namespace recon_ops {

constexpr int kPairWarps = 8;  // pairs of tiny sets a block
constexpr int kBatch = 8;      // points of the other side taken at a time

struct ChamferArguments {
  const float* a;  // (B, n, 3)
  const float* b;  // (B, m, 3)
  float* d_ab;     // (B, n) and the rest, where distances are asked for
  float* d_ba;
  int64_t* i_ab;
  int64_t* i_ba;
  float* grad_a;   // (B, n, 3) and the rest, where the loss is asked for
  float* grad_b;
  float* partial;  // one sum a block
  int64_t pairs;
  int n;
  int m;
  float weight_ab;  // of one term in the loss
  float weight_ba;
  bool squared;
};

__device__ __forceinline__ unsigned smallest_of_warp(unsigned key) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kFullWarp, key);
#else
  for (int mask = 16; mask > 0; mask /= 2) key = min(key, __shfl_xor_sync(kFullWarp, key, mask));
  return key;
#endif
}

// The gradient of a term with respect to its point is scale * (point - match); it is 0 where the
// plain distance is 0, whose root has no derivative.
__device__ __forceinline__ float term_scale(float squared_distance, float weight, bool squared) {
  if (squared) return 2.0f * weight;
  return squared_distance > 0.0f ? weight / __fsqrt_rn(squared_distance) : 0.0f;
}

__device__ __forceinline__ float term(float squared_distance, bool squared) {
  return squared ? squared_distance : __fsqrt_rn(squared_distance);
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(kFullWarp, value, mask);
  return value;
}

// One side of a pair, spread over the lanes: element r of a lane is point r * 32 + lane.
template <int R>
struct Side {
  float x[R], y[R], z[R];
  unsigned key[R];  // of the nearest point of the other side
  int match[R];
};

// Writes for each point of the other side which points of this side chose it, as a mask a round.
template <int R>
__device__ __forceinline__ void note_choices(
    const Side<R>& side, int count, unsigned (*chosen_by)[R], int lane) {
  unrolled<R>([&](auto r) {
    const bool valid = r * 32 + lane < count;
    const unsigned lanes = __ballot_sync(kFullWarp, valid);
    if (valid) {
      const unsigned same = __match_any_sync(lanes, side.match[r]);
      if (lane == __ffs(same) - 1) chosen_by[side.match[r]][r] = same;
    }
  });
}

// The gradient of one side: its own terms, then those of the other side's points that chose it, in
// index order.
template <int R, int Other>
__device__ __forceinline__ void write_gradient(
    const Side<R>& side, const float4* own, const float4* other,
    const unsigned (*chosen_by)[Other], float* grad, int count, int lane) {
  unrolled<R>([&](auto r) {
    const int i = r * 32 + lane;
    if (i >= count) return;
    const float4 match = other[side.match[r]];
    const float scale = own[i].w;
    float gx = scale * (side.x[r] - match.x);
    float gy = scale * (side.y[r] - match.y);
    float gz = scale * (side.z[r] - match.z);
    for (int round = 0; round < Other; ++round) {
      for (unsigned mask = chosen_by[i][round]; mask != 0; mask &= mask - 1) {
        const float4 p = other[round * 32 + __ffs(mask) - 1];
        gx += p.w * (side.x[r] - p.x);
        gy += p.w * (side.y[r] - p.y);
        gz += p.w * (side.z[r] - p.z);
      }
    }
    grad[i * 3] = gx;
    grad[i * 3 + 1] = gy;
    grad[i * 3 + 2] = gz;
  });
}

template <int R>
__device__ __forceinline__ void load_side(
    Side<R>& side, float4* own, const float* points, int count, int lane) {
  unrolled<R>([&](auto r) {
    const int i = r * 32 + lane;
    const bool valid = i < count;
    side.x[r] = valid ? points[i * 3] : 0.0f;
    side.y[r] = valid ? points[i * 3 + 1] : 0.0f;
    side.z[r] = valid ? points[i * 3 + 2] : 0.0f;
    own[i] = make_float4(side.x[r], side.y[r], side.z[r], 0.0f);
    side.key[r] = kNoKey;
    side.match[r] = 0;
  });
}

// Up to 32 * RA by 32 * RB points a pair, just as many if Full. Every distance is computed once: each lane keeps the
// nearest of its own points while a reduction over the warp finds the nearest to the other side's.
template <int RA, int RB, bool Loss, bool Full>
__global__ void __launch_bounds__(kPairWarps * 32) chamfer_pair_kernel(const ChamferArguments args) {
  __shared__ float4 points_a[kPairWarps][32 * RA];
  __shared__ float4 points_b[kPairWarps][32 * RB];
  __shared__ unsigned chose_a[kPairWarps][32 * RA][RB];
  __shared__ unsigned chose_b[kPairWarps][32 * RB][RA];
  __shared__ float sums[kPairWarps];
#if __CUDA_ARCH__ >= 900
  if constexpr (Loss) cudaTriggerProgrammaticLaunchCompletion();  // sum_kernel may be set up
#endif

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kPairWarps + warp;
  const int n = args.n, m = args.m;
  float sum = 0.0f;
  if (pair < args.pairs) {
    Side<RA> a;
    Side<RB> b;
    load_side(a, points_a[warp], args.a + pair * n * 3, n, lane);
    load_side(b, points_b[warp], args.b + pair * m * 3, m, lane);
    unsigned outside[RA];  // makes the keys of missing points sort last
    unrolled<RA>([&](auto r) { outside[r] = r * 32 + lane < n ? 0u : 0x80000000u; });
    __syncwarp();
    // The masks of lanes with the nearest point to a point of b wait where chose_b comes later.
    unrolled<RB>([&](auto round) {
      const int count = Full ? 32 : min(32, m - round * 32);
      // In batches, so that the latencies of loads, reductions and votes overlap.
      for (int batch = 0; batch < count; batch += kBatch) {
        unsigned key[kBatch][RA];
        unsigned smallest[kBatch];
        unrolled<kBatch>([&](auto u) {
          const int j = round * 32 + batch + u;
          const float4 p = points_b[warp][j];
          smallest[u] = kNoKey;
          unrolled<RA>([&](auto r) {
            key[u][r] = distance_key(squared_distance(a.x[r], a.y[r], a.z[r], p.x, p.y, p.z));
            if (key[u][r] < a.key[r] && (Full || batch + u < count)) {
              a.key[r] = key[u][r];
              a.match[r] = j;
            }
            if constexpr (!Full) key[u][r] |= outside[r];
            smallest[u] = min(smallest[u], key[u][r]);
          });
        });
        unrolled<kBatch>([&](auto u) { smallest[u] = smallest_of_warp(smallest[u]); });
        unrolled<kBatch>([&](auto u) {
          unrolled<RA>([&](auto r) {
            key[u][r] = __ballot_sync(kFullWarp, key[u][r] == smallest[u]);
          });
        });
        unrolled<kBatch>([&](auto u) {  // all lanes store the same
          unrolled<RA>([&](auto r) { chose_b[warp][round * 32 + batch + u][r] = key[u][r]; });
        });
      }
    });
    __syncwarp();
    unrolled<RB>([&](auto round) {
      const int j = round * 32 + lane;
      if (j >= m) return;
      unrolled_until<RA>([&](auto r) {  // the lowest index of those at the smallest distance
        const unsigned holders = chose_b[warp][j][r];
        b.match[round] = r * 32 + __ffs(holders) - 1;
        return holders != 0;
      });
      const float4 p = points_a[warp][b.match[round]];
      b.key[round] = distance_key(
          squared_distance(b.x[round], b.y[round], b.z[round], p.x, p.y, p.z));
    });
    __syncwarp();

    if constexpr (!Loss) {
      unrolled<RA>([&](auto r) {
        const int i = r * 32 + lane;
        if (i >= n) return;
        args.d_ab[pair * n + i] = __uint_as_float(a.key[r]);
        args.i_ab[pair * n + i] = a.match[r];
      });
      unrolled<RB>([&](auto r) {
        const int i = r * 32 + lane;
        if (i >= m) return;
        args.d_ba[pair * m + i] = __uint_as_float(b.key[r]);
        args.i_ba[pair * m + i] = b.match[r];
      });
      return;
    }

    unrolled<RA>([&](auto r) {
      const int i = r * 32 + lane;
      const float d = __uint_as_float(a.key[r]);
      unrolled<RB>([&](auto round) { chose_a[warp][i][round] = 0; });
      if (i >= n) return;
      points_a[warp][i].w = term_scale(d, args.weight_ab, args.squared);
      sum += args.weight_ab * term(d, args.squared);
    });
    unrolled<RB>([&](auto r) {
      const int i = r * 32 + lane;
      const float d = __uint_as_float(b.key[r]);
      unrolled<RA>([&](auto round) { chose_b[warp][i][round] = 0; });
      if (i >= m) return;
      points_b[warp][i].w = term_scale(d, args.weight_ba, args.squared);
      sum += args.weight_ba * term(d, args.squared);
    });
    __syncwarp();
    note_choices(a, n, chose_b[warp], lane);
    note_choices(b, m, chose_a[warp], lane);
    __syncwarp();
    write_gradient(
        a, points_a[warp], points_b[warp], chose_a[warp], args.grad_a + pair * n * 3, n, lane);
    write_gradient(
        b, points_b[warp], points_a[warp], chose_b[warp], args.grad_b + pair * m * 3, m, lane);
    sum = warp_sum(sum);
  }
  if constexpr (Loss) {
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      float total = 0.0f;
      for (int w = 0; w < kPairWarps; ++w) total += sums[w];
      args.partial[blockIdx.x] = total;
    }
  }
}

constexpr int kSumThreads = 512;

// Adds the blocks' sums in one fixed order. It may be launched early: it waits for what came before.
__global__ void __launch_bounds__(kSumThreads) sum_kernel(
    const float* __restrict__ partial, int count, float* __restrict__ loss) {
  __shared__ float sums[kSumThreads / 32];
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = warp_sum(threadIdx.x < kSumThreads / 32 ? sums[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) *loss = sum;
  }
}

constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * 32;
constexpr int kChunkColumns = 32;  // columns after which a row notes the best chunk

struct TileArguments {
  const float* a;            // (B, n, 3), the rows
  const float* b;            // (B, m, 3), the columns
  unsigned long long* best_a;  // (B, n): (distance key << 32) | chunk of columns
  unsigned long long* best_b;  // (B, m): (distance key << 32) | chunk of rows
  int n;
  int m;
  int row_blocks;
  int column_blocks;
  int columns_a_block;  // a multiple of kTileThreads
};

// All distances of a block of rows and a range of columns, each computed once and used both ways.
// Only minima are kept here, with the chunk they were found in; resolve_kernel finds the index.
template <int R>
__global__ void __launch_bounds__(kTileThreads) chamfer_tile_kernel(const TileArguments args) {
  __shared__ float4 tile[kTileThreads];
  __shared__ unsigned column_keys[kTileWarps][kTileThreads];

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  int64_t block = blockIdx.x;
  const int row_block = block % args.row_blocks;
  block /= args.row_blocks;
  const int column_block = block % args.column_blocks;
  const int64_t cloud = block / args.column_blocks;
  const float* a = args.a + cloud * args.n * 3;
  const float* b = args.b + cloud * args.m * 3;
  const int first_row = (row_block * kTileWarps + warp) * 32 * R + lane;

  // Points that are missing sit at infinity, which no minimum takes; fminf leaves NaN out too.
  float x[R], y[R], z[R], best[R];
  int chunk[R];
  unrolled<R>([&](auto r) {
    const int i = first_row + r * 32;
    x[r] = i < args.n ? a[i * 3] : INFINITY;
    y[r] = i < args.n ? a[i * 3 + 1] : INFINITY;
    z[r] = i < args.n ? a[i * 3 + 2] : INFINITY;
    best[r] = INFINITY;
    chunk[r] = column_block * (args.columns_a_block / kChunkColumns);
  });

  const int begin = column_block * args.columns_a_block;
  const int end = min(begin + args.columns_a_block, args.m);
  for (int base = begin; base < end; base += kTileThreads) {
    const int column = base + threadIdx.x;
    const bool inside = column < end;
    tile[threadIdx.x] = make_float4(
        inside ? b[column * 3] : INFINITY, inside ? b[column * 3 + 1] : INFINITY,
        inside ? b[column * 3 + 2] : INFINITY, 0.0f);
    __syncthreads();
    for (int part = 0; part < kTileThreads; part += kChunkColumns) {
      float row_minimum[R];
      unrolled<R>([&](auto r) { row_minimum[r] = INFINITY; });
      unsigned mine = kNoKey;
#pragma unroll 8
      for (int j = 0; j < kChunkColumns; ++j) {
        const float4 p = tile[part + j];
        float column_minimum = INFINITY;
        unrolled<R>([&](auto r) {
          const float d = squared_distance(x[r], y[r], z[r], p.x, p.y, p.z);
          row_minimum[r] = fminf(row_minimum[r], d);
          column_minimum = fminf(column_minimum, d);
        });
        const unsigned smallest = smallest_of_warp(__float_as_uint(column_minimum));
        if (lane == j) mine = smallest;
      }
      column_keys[warp][part + lane] = mine;
      unrolled<R>([&](auto r) {
        if (row_minimum[r] < best[r]) {
          best[r] = row_minimum[r];
          chunk[r] = (base + part) / kChunkColumns;
        }
      });
    }
    __syncthreads();
    if (inside) {
      unsigned key = kNoKey;
      int holder = 0;
#pragma unroll
      for (int w = 0; w < kTileWarps; ++w) {
        const unsigned other = column_keys[w][threadIdx.x];
        if (other < key) {
          key = other;
          holder = w;
        }
      }
      atomicMin(
          args.best_b + cloud * args.m + column,
          (static_cast<unsigned long long>(key) << 32) |
              static_cast<unsigned>(row_block * kTileWarps + holder));
    }
    // The next round overwrites column_keys only after its own first barrier.
  }
  unrolled<R>([&](auto r) {
    const int i = first_row + r * 32;
    if (i >= args.n) return;
    atomicMin(
        args.best_a + cloud * args.n + i,
        (static_cast<unsigned long long>(__float_as_uint(best[r])) << 32) |
            static_cast<unsigned>(chunk[r]));
  });
}

struct ResolveSide {
  const float* points;                // (B, count, 3)
  const float* other;                 // (B, others, 3)
  const unsigned long long* best;     // (B, count)
  float* distance;                    // (B, count)
  int64_t* idx;                       // (B, count)
  int count;
  int others;
  int chunk;                          // points of the other side in a chunk
};

// Looks through the winning chunk for the lowest index with the winning distance: a warp a point.
__device__ __forceinline__ void resolve(const ResolveSide& side, int64_t row, int lane) {
  const int64_t cloud = divided(row, side.count);
  const float* points = side.points + row * 3;
  const float* other = side.other + cloud * side.others * 3;
  const unsigned long long best = side.best[row];
  const float wanted = __uint_as_float(static_cast<unsigned>(best >> 32));
  const int first = static_cast<int>(static_cast<unsigned>(best)) * side.chunk;
  const float x = points[0], y = points[1], z = points[2];
  int index = first;  // stays where all distances are NaN
  for (int base = first; base < min(first + side.chunk, side.others); base += 32) {
    const int j = min(base + lane, side.others - 1);
    const float d =
        squared_distance(x, y, z, other[j * 3], other[j * 3 + 1], other[j * 3 + 2]);
    const unsigned hits = __ballot_sync(kFullWarp, d == wanted && base + lane < side.others);
    if (hits != 0) {
      index = base + __ffs(hits) - 1;
      break;
    }
  }
  if (lane == 0) {
    side.distance[row] = squared_distance(
        x, y, z, other[index * 3], other[index * 3 + 1], other[index * 3 + 2]);
    side.idx[row] = index;
  }
}

__global__ void __launch_bounds__(256) resolve_kernel(
    const ResolveSide a, const ResolveSide b, int64_t rows_a, int64_t rows_b) {
  const int lane = threadIdx.x & 31;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + (threadIdx.x >> 5);
  if (row < rows_a) resolve(a, row, lane);
  else if (row < rows_a + rows_b) resolve(b, row - rows_a, lane);
}

struct GradientSide {
  const float* points;      // (B, count, 3)
  const float* other;       // (B, others, 3)
  const int64_t* idx;       // (B, count), matches of the points
  const float* scale;       // (B, count), of the own terms
  const float* other_scale; // (B, others), of the other side's terms
  const int* offsets;       // (B, count + 1), who of the other side chose a point
  const int* order;         // (B, others)
  float* grad;              // (B, count, 3)
  int count;
  int others;
};

__device__ __forceinline__ void gradient(const GradientSide& side, int64_t row, float factor) {
  const int64_t cloud = divided(row, side.count);
  const float* other = side.other + cloud * side.others * 3;
  const float* other_scale = side.other_scale + cloud * side.others;
  const int* order = side.order + cloud * side.others;
  const float x = side.points[row * 3], y = side.points[row * 3 + 1], z = side.points[row * 3 + 2];
  float gx = 0.0f, gy = 0.0f, gz = 0.0f;
  const auto accumulate = [&](int64_t j, float scale) {
    gx += scale * (x - other[j * 3]);
    gy += scale * (y - other[j * 3 + 1]);
    gz += scale * (z - other[j * 3 + 2]);
  };
  const int64_t match = side.idx[row];
  if (index_in_range(match, side.others)) accumulate(match, factor * side.scale[row]);
  const int begin = side.offsets[row + cloud], end = side.offsets[row + cloud + 1];
#pragma unroll 4
  for (int s = begin; s < end; ++s) accumulate(order[s], factor * other_scale[order[s]]);
  side.grad[row * 3] = gx;
  side.grad[row * 3 + 1] = gy;
  side.grad[row * 3 + 2] = gz;
}

__global__ void __launch_bounds__(256) gradient_kernel(
    const GradientSide a, const GradientSide b, int64_t rows_a, int64_t rows_b, float factor) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (row < rows_a) gradient(a, row, factor);
  else if (row < rows_a + rows_b) gradient(b, row - rows_a, factor);
}

// Terms of the loss from the distances: the scale of each gradient, and a sum a block.
__global__ void __launch_bounds__(256) terms_kernel(
    const float* __restrict__ d_ab, const float* __restrict__ d_ba, float* __restrict__ scale_ab,
    float* __restrict__ scale_ba, float* __restrict__ partial, int64_t rows_a, int64_t rows_b,
    float weight_ab, float weight_ba, bool squared) {
  __shared__ float sums[8];
  float sum = 0.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < rows_a + rows_b; i += stride) {
    const bool first = i < rows_a;
    const float d = first ? d_ab[i] : d_ba[i - rows_a];
    const float weight = first ? weight_ab : weight_ba;
    (first ? scale_ab[i] : scale_ba[i - rows_a]) = term_scale(d, weight, squared);
    sum += weight * term(d, squared);
  }
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (int w = 0; w < 8; ++w) total += sums[w];
    partial[blockIdx.x] = total;
  }
}

}  // namespace recon_ops
