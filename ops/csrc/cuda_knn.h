// Nearest neighbors of queries in small clouds: one warp a query, a sorted list over its lanes.
#pragma once

#include "cuda_device.h"

namespace recon_ops {

using Entry = unsigned long long;  // (distance key << 32) | index: one order for both

constexpr Entry kNoEntry = ~0ull;
constexpr int kKnnWarps = 8;       // queries a block
constexpr int kTilePoints = 1920;  // a multiple of kStep; 22.5 KiB
constexpr int kStep = 128;         // points a warp looks at between two votes
constexpr int kQueue = 31 + kStep;

enum class KnnOutput { kDistances, kPatches, kBall };

struct KnnArguments {
  const float* xyz;    // (B, N, 3)
  const float* query;  // (B, S, 3)
  int64_t* idx;        // (B, S, K)
  float* values;       // (B, S, K) distances or (B, S, K, 3) patches
  int64_t* count;      // (B, S) of a ball query
  int num_points;
  int num_queries;
  int k;               // entries to find
  int slots;           // entries a row of idx holds: k, or more for a ball query
  unsigned limit;      // only keys below it are taken
  int blocks_a_cloud;
};

__device__ __forceinline__ Entry keep(Entry mine, int lane_mask, bool smaller) {
  const Entry other = __shfl_xor_sync(kFullWarp, mine, lane_mask);
  return (other < mine) == smaller ? other : mine;
}

// Bitonic sort over the warp, largest entry in lane 0.
__device__ __forceinline__ Entry sort_descending(Entry entry, int lane) {
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      entry = keep(entry, stride, ((lane & size) != 0) == ((lane & stride) == 0));
    }
  }
  return entry;
}

template <bool Ascending>
__device__ __forceinline__ Entry merge_bitonic(Entry entry, int lane) {
#pragma unroll
  for (int stride = 16; stride > 0; stride /= 2) {
    entry = keep(entry, stride, ((lane & stride) == 0) == Ascending);
  }
  return entry;
}

// Merges 32 entries into the ascending list of 32 * L, whose largest fall off its end.
template <int L>
__device__ __forceinline__ void insert(Entry (&list)[L], Entry batch, int lane) {
  batch = sort_descending(batch, lane);
  unrolled<L>([&](auto l) {
    const Entry low = batch < list[l] ? batch : list[l];
    const Entry high = batch < list[l] ? list[l] : batch;
    list[l] = merge_bitonic<true>(low, lane);
    if (l + 1 < L) batch = merge_bitonic<false>(high, lane);
  });
}

// The entry at a position of the list, for all lanes.
template <int L>
__device__ __forceinline__ Entry entry_at(const Entry (&list)[L], int position) {
  Entry entry = kNoEntry;
  unrolled<L>([&](auto l) {
    if (l == position / 32) entry = list[l];
  });
  return __shfl_sync(kFullWarp, entry, position % 32);
}

// One warp's search: its list, the threshold of the list, and the entries that wait to be merged.
template <int L, bool Passes>
struct Search {
  Entry list[L];
  Entry* queue;
  Entry floor;         // with passes, entries below this one were found by an earlier pass
  unsigned limit;      // no entry with a key at or above it is wanted
  unsigned threshold;  // the key that an entry must be below now
  int wanted;
  int waiting;
  int lane;

  __device__ __forceinline__ void begin(int entries, Entry lowest) {
    unrolled<L>([&](auto l) { list[l] = kNoEntry; });
    floor = lowest;
    threshold = limit;
    wanted = entries;
    waiting = 0;
  }

  __device__ __forceinline__ bool candidate(unsigned key, unsigned index) const {
    if constexpr (Passes) {
      const Entry entry = (static_cast<Entry>(key) << 32) | index;
      return key < threshold && entry >= floor;
    }
    return key < threshold;
  }

  __device__ __forceinline__ void merge(Entry batch) {
    insert<L>(list, batch, lane);
    threshold = min(limit, static_cast<unsigned>(entry_at<L>(list, wanted - 1) >> 32));
  }

  // Queues the candidates among 32 points, one a lane.
  __device__ __forceinline__ void offer(unsigned key, unsigned index, unsigned num_points) {
    const bool hit = index < num_points && candidate(key, index);
    const unsigned hits = __ballot_sync(kFullWarp, hit);
    if (hit) {
      queue[waiting + __popc(hits & ((1u << lane) - 1))] = (static_cast<Entry>(key) << 32) | index;
    }
    waiting += __popc(hits);
  }

  __device__ __forceinline__ void drain() {
    if (waiting < 32) return;
    __syncwarp();
    do {
      waiting -= 32;
      merge(queue[waiting + lane]);
    } while (waiting >= 32);
    __syncwarp();
  }

  __device__ __forceinline__ void finish() {
    __syncwarp();
    if (waiting > 0) merge(lane < waiting ? queue[lane] : kNoEntry);
    __syncwarp();
  }
};

// Copies points [first, first + count) of a cloud; x, y, z stay interleaved, which three loads of
// stride 3 read without bank conflicts. NaN fills the last step.
__device__ __forceinline__ void load_tile(float* tile, const float* xyz, int first, int count) {
  const float* source = xyz + static_cast<int64_t>(first) * 3;
  const int values = count * 3;
  if ((reinterpret_cast<uintptr_t>(source) & 15) == 0) {
    const int packs = values / 4;
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
      reinterpret_cast<float4*>(tile)[i] = reinterpret_cast<const float4*>(source)[i];
    }
    for (int i = packs * 4 + threadIdx.x; i < values; i += blockDim.x) tile[i] = source[i];
  } else {
    for (int i = threadIdx.x; i < values; i += blockDim.x) tile[i] = source[i];
  }
  const int end = (count + kStep - 1) / kStep * kStep * 3;
  for (int i = values + threadIdx.x; i < end; i += blockDim.x) tile[i] = NAN;
}

// L lists of 32; with Passes, any k by repeated searches for the next 32 * L entries.
template <int L, bool Passes, KnnOutput Output>
__global__ void __launch_bounds__(kKnnWarps * 32) knn_kernel(const KnnArguments args) {
  extern __shared__ float4 shared[];
  float* tile = reinterpret_cast<float*>(shared);
  __shared__ Entry queues[kKnnWarps][kQueue];

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int n = args.num_points;
  const int64_t cloud = blockIdx.x / args.blocks_a_cloud;
  const int q = (blockIdx.x % args.blocks_a_cloud) * kKnnWarps + warp;
  const bool active = q < args.num_queries;
  const int64_t row = cloud * args.num_queries + (active ? q : 0);
  const float* xyz = args.xyz + cloud * n * 3;
  const float qx = args.query[row * 3];
  const float qy = args.query[row * 3 + 1];
  const float qz = args.query[row * 3 + 2];
  const auto key_of = [&](int i) {
    return distance_key(
        squared_distance(tile[i * 3], tile[i * 3 + 1], tile[i * 3 + 2], qx, qy, qz));
  };

  Search<L, Passes> search;
  search.queue = queues[warp];
  search.lane = lane;
  search.limit = args.limit;
  Entry floor = 0;
  int64_t nearest = 0;
  int found = 0;
  for (int done = 0; done < args.k; done += 32 * L) {
    search.begin(min(args.k - done, 32 * L), floor);
    for (int first = 0; first < n; first += kTilePoints) {
      const int count = min(kTilePoints, n - first);
      if (first > 0 || done > 0) __syncthreads();
      load_tile(tile, xyz, first, count);
      __syncthreads();
      if (!active) continue;
      for (int base = 0; base < count; base += kStep) {
        unsigned key[kStep / 32];
        bool any = false;
#pragma unroll
        for (int u = 0; u < kStep / 32; ++u) {
          key[u] = key_of(base + u * 32 + lane);
          any = any || key[u] < search.threshold;
        }
        if (!__any_sync(kFullWarp, any)) continue;
#pragma unroll
        for (int u = 0; u < kStep / 32; ++u) {
          search.offer(key[u], first + base + u * 32 + lane, n);
        }
        search.drain();
      }
    }
    if (!active) continue;
    search.finish();

    unrolled<L>([&](auto l) {
      const int j = done + l * 32 + lane;
      const Entry entry = search.list[l];
      const int64_t index = static_cast<unsigned>(entry);
      const bool hit = j < args.k && entry != kNoEntry;
      if constexpr (Output == KnnOutput::kBall) {
        if (l == 0 && done == 0) nearest = __shfl_sync(kFullWarp, hit ? index : 0, 0);
        found += __popc(__ballot_sync(kFullWarp, hit));
        if (j < args.k) args.idx[row * args.slots + j] = hit ? index : nearest;
      } else if (hit) {
        args.idx[row * args.k + j] = index;
        if constexpr (Output == KnnOutput::kDistances) {
          args.values[row * args.k + j] = __uint_as_float(static_cast<unsigned>(entry >> 32));
        } else {
          float* patch = args.values + (row * args.k + j) * 3;
          patch[0] = xyz[index * 3] - qx;
          patch[1] = xyz[index * 3 + 1] - qy;
          patch[2] = xyz[index * 3 + 2] - qz;
        }
      }
    });
    if constexpr (Passes) {
      const Entry last = entry_at<L>(search.list, 32 * L - 1);
      floor = last == kNoEntry ? kNoEntry : last + 1;
    }
  }
  if constexpr (Output == KnnOutput::kBall) {
    if (!active) return;
    for (int j = args.k + lane; j < args.slots; j += 32) args.idx[row * args.slots + j] = nearest;
    if (lane == 0) args.count[row] = found;
  }
}

// The first points in index order within a radius: 32 points a step, placed by a prefix count.
__global__ void __launch_bounds__(kKnnWarps * 32) ball_kernel(const KnnArguments args, float radius2) {
  extern __shared__ float4 shared[];
  float* tile = reinterpret_cast<float*>(shared);

  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int n = args.num_points;
  const int64_t cloud = blockIdx.x / args.blocks_a_cloud;
  const int q = (blockIdx.x % args.blocks_a_cloud) * kKnnWarps + warp;
  const bool active = q < args.num_queries;
  const int64_t row = cloud * args.num_queries + (active ? q : 0);
  const float* xyz = args.xyz + cloud * n * 3;
  int64_t* idx = args.idx + row * args.slots;
  const float qx = args.query[row * 3];
  const float qy = args.query[row * 3 + 1];
  const float qz = args.query[row * 3 + 2];

  int found = active ? 0 : args.k;
  int64_t nearest = 0;
  for (int first = 0; first < n; first += kTilePoints) {
    const int count = min(kTilePoints, n - first);
    if (first > 0 && __syncthreads_and(found >= args.k)) break;
    load_tile(tile, xyz, first, count);
    __syncthreads();
    for (int base = 0; base < count && found < args.k; base += kStep) {
      bool hit[kStep / 32];
      bool any = false;
#pragma unroll
      for (int u = 0; u < kStep / 32; ++u) {
        const float* p = tile + (base + u * 32 + lane) * 3;
        hit[u] = squared_distance(p[0], p[1], p[2], qx, qy, qz) < radius2;  // not where NaN fills
        any = any || hit[u];
      }
      if (!__any_sync(kFullWarp, any)) continue;
#pragma unroll
      for (int u = 0; u < kStep / 32; ++u) {
        const unsigned hits = __ballot_sync(kFullWarp, hit[u]);
        const int slot = found + __popc(hits & ((1u << lane) - 1));
        const int index = first + base + u * 32 + lane;
        if (hit[u] && slot < args.k) idx[slot] = index;
        if (found == 0 && hits != 0) nearest = index - lane + __ffs(hits) - 1;
        found += __popc(hits);
      }
    }
  }
  if (!active) return;
  found = min(found, args.k);
  for (int j = found + lane; j < args.slots; j += 32) idx[j] = nearest;
  if (lane == 0) args.count[row] = found;
}

}  // namespace recon_ops
