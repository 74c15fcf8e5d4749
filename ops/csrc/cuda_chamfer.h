// Chamfer kernels: a warp a pair for tiny sets, tiles of both sets for large ones.
#pragma once

#include "cuda_device.h"

namespace recon_ops {

// Pairs of tiny sets a block; their tables and points fit into 48 KiB.
template <int RA, int RB>
constexpr int kPairWarps = RA * RB == 1 ? 8 : 4;
// Blocks that run at once on a multiprocessor with enough shared memory: all those of a usual batch.
#if __CUDA_ARCH__ >= 900
constexpr int kPairBlocks = 5;
#else
constexpr int kPairBlocks = 1;
#endif

struct ChamferArguments {
  const float* a;  // (B, n, 3)
  const float* b;  // (B, m, 3)
  float* d_ab;     // (B, n) and the rest, where distances are asked for
  float* d_ba;
  int64_t* i_ab;
  int64_t* i_ba;
  float* grad_a;   // (B, n, 3), where the loss is asked for, or null where it is not needed
  float* grad_b;
  float* partial;  // one sum a block
  int64_t pairs;
  int n;
  int m;
  float weight_ab;  // of one term in the loss
  float weight_ba;
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

// Missing points are NaN: their distances sort last, and after those of all points before them.
template <int R, bool Full>
__device__ __forceinline__ void load_side(
    Side<R>& side, const float* points, int count, int lane) {
  unrolled<R>([&](auto r) {
    const int i = r * 32 + lane;
    const bool valid = Full || i < count;
    side.x[r] = valid ? points[i * 3] : NAN;
    side.y[r] = valid ? points[i * 3 + 1] : NAN;
    side.z[r] = valid ? points[i * 3 + 2] : NAN;
    side.key[r] = kNoKey;
  });
}

template <int R>
__device__ __forceinline__ void share(const Side<R>& side, float4* points, int lane) {
  unrolled<R>([&](auto r) {
    points[r * 32 + lane] = make_float4(side.x[r], side.y[r], side.z[r], 0.0f);
  });
}

// The smallest of 32 keys, taken four at a time: only the group that holds it is noted, and which
// of the four it is comes at the end. A key from before wins ties.
struct Smallest {
  unsigned key;
  int group;

  __device__ __forceinline__ void take(int from, const uint4& keys) {
    const unsigned low = min(__vimin3_u32(keys.x, keys.y, keys.z), min(keys.w, key));
    if (low < key) group = from;
    key = low;
  }

  __device__ __forceinline__ int place(const uint4& keys) const {
    int within = 3;
    if (keys.z == key) within = 2;
    if (keys.y == key) within = 1;
    if (keys.x == key) within = 0;
    return group * 4 + within;
  }
};

// A table of keys, a row a lane; rows are set apart so that neither rows nor columns conflict.
constexpr int kTableRow = 9;  // groups of four

// Compares 32 points of each side, one a lane, and keeps the nearest of either. Every distance is
// computed once, by the lane of its point of the first side, and comes to the other by the table.
template <int RA, int RB, int R, int Round>
__device__ __forceinline__ void compare(
    Side<RA>& a, Constant<R> r, Side<RB>& b, Constant<Round> round, const float4* points_b,
    uint4* table, int lane) {
  Smallest row{a.key[r], Round == 0 ? 0 : -1};
  uint4* own = table + lane * kTableRow;
#pragma unroll 2  // measured faster on an H100 than all eight in a straight line
  for (int group = 0; group < 8; ++group) {
    const auto key = [&](int j) {
      const float4 p = points_b[round * 32 + group * 4 + j];
      return distance_key(squared_distance(a.x[r], a.y[r], a.z[r], p.x, p.y, p.z));
    };
    const uint4 four = make_uint4(key(0), key(1), key(2), key(3));
    own[group] = four;
    row.take(group, four);
  }
  a.key[r] = row.key;
  if (Round == 0 || row.group >= 0) a.match[r] = round * 32 + row.place(own[row.group]);
  __syncwarp();

  Smallest column{b.key[round], R == 0 ? 0 : -1};
  const unsigned* words = reinterpret_cast<const unsigned*>(table) + lane;
  const auto four_rows = [&](int group) {
    const unsigned* first = words + group * 16 * kTableRow;
    return make_uint4(
        first[0], first[4 * kTableRow], first[8 * kTableRow], first[12 * kTableRow]);
  };
#pragma unroll 2
  for (int group = 0; group < 8; ++group) column.take(group, four_rows(group));
  b.key[round] = column.key;
  if (R == 0 || column.group >= 0) {
    b.match[round] = r * 32 + column.place(four_rows(column.group));
  }
  __syncwarp();  // the table is overwritten
}

// For each point of a lane, the points of the other side that chose it: a mask a round of theirs.
template <int R, int Other, bool Full>
__device__ __forceinline__ void find_choosers(
    const Side<Other>& other, int others, int lane, unsigned (&choosers)[R][Other]) {
  unrolled<Other>([&](auto round) {
    unsigned same = Full ? kFullWarp : __ballot_sync(kFullWarp, round * 32 + lane < others);
    const auto agree = [&](int bit, bool set) {
      const unsigned votes = __ballot_sync(kFullWarp, other.match[round] & (1 << bit));
      return votes ^ (set ? 0u : kFullWarp);
    };
    unrolled<5>([&](auto bit) { same &= agree(bit, (lane & (1 << bit)) != 0); });
    if constexpr (R == 1) {
      choosers[0][round] = same;
    } else {
      choosers[0][round] = same & agree(5, false);
      choosers[1][round] = same & agree(5, true);
    }
  });
}

// The gradient of one side: its own terms, then those of the other side's points that chose it, in
// a fixed order.
template <int R, int Other, bool Squared, bool Full>
struct Gradient {
  float x[R], y[R], z[R];

  __device__ __forceinline__ void compute(
      const Side<R>& side, const Side<Other>& chosen, const float4* own, const float4* other,
      int others, float weight, float other_weight, int lane) {
    unsigned choosers[R][Other];
    find_choosers<R, Other, Full>(chosen, others, lane, choosers);
    unrolled<R>([&](auto r) {
      const float4 match = other[side.match[r]];
      const float scale = Squared ? 2.0f * weight : own[r * 32 + lane].w;
      x[r] = scale * (side.x[r] - match.x);
      y[r] = scale * (side.y[r] - match.y);
      z[r] = scale * (side.z[r] - match.z);
      unrolled<Other>([&](auto round) {
        for (unsigned mask = choosers[r][round]; mask != 0;) {
          const int last = 31 - __clz(mask);
          mask ^= 1u << last;
          const float4 p = other[round * 32 + last];
          const float pull = Squared ? 2.0f * other_weight : p.w;
          x[r] += pull * (side.x[r] - p.x);
          y[r] += pull * (side.y[r] - p.y);
          z[r] += pull * (side.z[r] - p.z);
        }
      });
    });
  }

  __device__ __forceinline__ void stage(float4* place, int lane) const {
    float* out = reinterpret_cast<float*>(place) + lane * 3;
    unrolled<R>([&](auto r) {
      out[r * 96] = x[r];
      out[r * 96 + 1] = y[r];
      out[r * 96 + 2] = z[r];
    });
  }
};

template <bool Full>
__device__ __forceinline__ void write_out(
    const float4* staged, float* grad, int count, int lane) {
  if constexpr (Full) {  // 96 numbers; a multiple of 16 bytes lies before them
    if (lane < 24) reinterpret_cast<float4*>(grad)[lane] = staged[lane];
  } else {
    const float* numbers = reinterpret_cast<const float*>(staged);
    for (int i = lane; i < count * 3; i += 32) grad[i] = numbers[i];
  }
}

// Up to 32 * RA by 32 * RB points a pair, just as many if Full: a warp a pair. It and sum_kernel may
// be launched early: they wait for what came before.
template <int RA, int RB, bool Loss, bool Squared, bool Full>
__global__ void __launch_bounds__(kPairWarps<RA, RB> * 32, RA * RB == 1 ? kPairBlocks : 1)
    chamfer_pair_kernel(const ChamferArguments args) {
  constexpr int kWarps = kPairWarps<RA, RB>;
  __shared__ uint4 tables[kWarps][32 * kTableRow];
  __shared__ float4 all_points_b[kWarps][32 * RB];
  __shared__ float sums[kWarps][32];
#if __CUDA_ARCH__ >= 900
  if constexpr (Loss) cudaTriggerProgrammaticLaunchCompletion();  // sum_kernel may be set up
  cudaGridDependencySynchronize();
#endif

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  const int n = Full ? 32 * RA : args.n, m = Full ? 32 * RB : args.m;
  float sum = 0.0f;
  if (pair < args.pairs) {
    Side<RA> a;
    Side<RB> b;
    load_side<RA, Full>(a, args.a + pair * n * 3, n, lane);
    load_side<RB, Full>(b, args.b + pair * m * 3, m, lane);
    float4* points_b = all_points_b[warp];
    share(b, points_b, lane);
    __syncwarp();
    unrolled<RB>([&](auto round) {
      unrolled<RA>([&](auto r) { compare(a, r, b, round, points_b, tables[warp], lane); });
    });

    if constexpr (!Loss) {
      unrolled<RA>([&](auto r) {
        const int i = r * 32 + lane;
        if (!Full && i >= n) return;
        args.d_ab[pair * n + i] = __uint_as_float(a.key[r]);
        args.i_ab[pair * n + i] = a.match[r];
      });
      unrolled<RB>([&](auto r) {
        const int i = r * 32 + lane;
        if (!Full && i >= m) return;
        args.d_ba[pair * m + i] = __uint_as_float(b.key[r]);
        args.i_ba[pair * m + i] = b.match[r];
      });
      return;
    }

    float4* points_a = reinterpret_cast<float4*>(tables[warp]);  // the table has been used
    share(a, points_a, lane);
    const auto add_term = [&](unsigned key, float weight, float4& point) {
      const float d = __uint_as_float(key);
      if constexpr (!Squared) point.w = term_scale(d, weight, false);
      sum += weight * term(d, Squared);
    };
    unrolled<RA>([&](auto r) {
      const int i = r * 32 + lane;
      if (Full || i < n) add_term(a.key[r], args.weight_ab, points_a[i]);
    });
    unrolled<RB>([&](auto r) {
      const int i = r * 32 + lane;
      if (Full || i < m) add_term(b.key[r], args.weight_ba, points_b[i]);
    });
    __syncwarp();
    const bool with_a = args.grad_a != nullptr, with_b = args.grad_b != nullptr;
    Gradient<RA, RB, Squared, Full> of_a;
    Gradient<RB, RA, Squared, Full> of_b;
    if (with_a) {
      of_a.compute(a, b, points_a, points_b, m, args.weight_ab, args.weight_ba, lane);
    }
    if (with_b) {
      of_b.compute(b, a, points_b, points_a, n, args.weight_ba, args.weight_ab, lane);
    }
    __syncwarp();  // the gradients take the place of the points, and go out from there
    if (with_a) of_a.stage(points_a, lane);
    if (with_b) of_b.stage(points_b, lane);
    __syncwarp();
    if (with_a) write_out<Full>(points_a, args.grad_a + pair * n * 3, n, lane);
    if (with_b) write_out<Full>(points_b, args.grad_b + pair * m * 3, m, lane);
  }
  if constexpr (Loss) {
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
      float total = 0.0f;
      unrolled<kWarps>([&](auto w) { total += sums[w][lane]; });
      total = warp_sum(total);
      if (lane == 0) args.partial[blockIdx.x] = total;
    }
  }
}

constexpr int kSumThreads = 512;

// Adds the blocks' sums in one fixed order.
__global__ void __launch_bounds__(kSumThreads) sum_kernel(
    const float* __restrict__ partial, int count, float* __restrict__ loss) {
  __shared__ float sums[kSumThreads / 32];
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();  // the next loss may be set up
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
