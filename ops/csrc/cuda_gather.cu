// gather_points, group_points and their gradient on CUDA.
#include <algorithm>

#include "cuda_features.h"
#include "cuda_segments.h"

namespace recon_ops {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kScanSources = 1024;  // up to here each block looks for its sources itself
constexpr int kScanRows = 32;           // rows a block of that kernel

// (B, N, C) by (B, M): x threads move one row's vectors, the index is read once a row.
template <typename T, int V, typename Index>
__global__ void __launch_bounds__(kThreads) gather_kernel(
    const Pack<T, V>* __restrict__ features, const Index* __restrict__ idx,
    Pack<T, V>* __restrict__ out, int64_t rows, int64_t sources, int64_t num_points, int vectors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t index = idx[row];
  const bool inside = index_in_range(index, num_points);
  const Pack<T, V>* source = features + (divided(row, sources) * num_points + (inside ? index : 0)) * vectors;
  Pack<T, V>* target = out + row * vectors;
  for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
    Pack<T, V> pack = source[v];
    if (!inside) {
#pragma unroll
      for (int e = 0; e < V; ++e) pack.value[e] = narrow_to<T>(NAN);
    }
    target[v] = pack;
  }
}

template <typename A, typename T, int V>
__device__ __forceinline__ void add(A (&sum)[V], const Pack<T, V>& pack) {
#pragma unroll
  for (int e = 0; e < V; ++e) sum[e] += widen(pack.value[e]);
}

template <typename T, int V, typename A>
__device__ __forceinline__ Pack<T, V> rounded(const A (&sum)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int e = 0; e < V; ++e) pack.value[e] = narrow_to<T>(sum[e]);
  return pack;
}

// Few sources: a block notes which of them point at its rows, a bit a source, then a warp a row adds
// those in order.
template <typename T, int V, typename Index>
__global__ void __launch_bounds__(kThreads) scan_backward_kernel(
    const Pack<T, V>* __restrict__ grad, const Index* __restrict__ idx, Pack<T, V>* __restrict__ out,
    int sources, int num_points, int vectors, int blocks_a_cloud) {
  using A = typename Accumulator<T>::type;
  constexpr int kHeld = V * sizeof(A) <= 16 ? 4 : 2;  // vectors a lane sums at a time
  constexpr int kWords = kScanSources / 32;
  __shared__ unsigned chosen_by[kScanRows][kWords];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int64_t cloud = blockIdx.x / blocks_a_cloud;
  const int first = (blockIdx.x % blocks_a_cloud) * kScanRows;
  idx += cloud * sources;
  grad += cloud * sources * vectors;
  out += cloud * num_points * vectors;
  for (int i = threadIdx.x; i < kScanRows * kWords; i += kThreads) {
    chosen_by[i / kWords][i % kWords] = 0;
  }
  __syncthreads();
  for (int s = threadIdx.x; s < sources; s += kThreads) {
    const int64_t target = idx[s];
    const int64_t row = target - first;
    if (index_in_range(target, num_points) && row >= 0 && row < kScanRows) {
      atomicOr(&chosen_by[row][s / 32], 1u << (s % 32));  // any order gives the same bits
    }
  }
  __syncthreads();
  static_assert(kWords == 32);
  for (int row = warp; row < min(kScanRows, num_points - first); row += kThreads / 32) {
    const unsigned word = chosen_by[row][lane];
    const unsigned words = __ballot_sync(kFullWarp, word != 0);
    for (int v0 = 0; v0 < vectors; v0 += 32 * kHeld) {
      A sum[kHeld][V] = {};
      for (unsigned rest = words; rest != 0; rest &= rest - 1) {
        const int w = __ffs(rest) - 1;
        for (unsigned hits = __shfl_sync(kFullWarp, word, w); hits != 0; hits &= hits - 1) {
          const Pack<T, V>* source = grad + static_cast<int64_t>(w * 32 + __ffs(hits) - 1) * vectors;
          unrolled<kHeld>([&](auto h) {
            const int v = v0 + h * 32 + lane;
            if (v < vectors) add(sum[h], source[v]);
          });
        }
      }
      unrolled<kHeld>([&](auto h) {
        const int v = v0 + h * 32 + lane;
        if (v < vectors) out[static_cast<int64_t>(first + row) * vectors + v] = rounded<T, V>(sum[h]);
      });
    }
  }
}

// Any number of sources: each row sums its segment in source order.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) segment_backward_kernel(
    const Pack<T, V>* __restrict__ grad, const int* __restrict__ offsets,
    const int* __restrict__ order, Pack<T, V>* __restrict__ out, int64_t rows, int64_t sources,
    int num_points, int vectors) {
  using A = typename Accumulator<T>::type;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int64_t cloud = divided(row, num_points);
  offsets += row + cloud;  // a cloud has num_points + 1 of them
  order += cloud * sources;
  grad += cloud * sources * vectors;
  const int begin = offsets[0], end = offsets[1];
  for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
    A sum[V] = {};
    int s = begin;
    for (; s + 4 <= end; s += 4) {
      Pack<T, V> pack[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) pack[u] = grad[static_cast<int64_t>(order[s + u]) * vectors + v];
#pragma unroll
      for (int u = 0; u < 4; ++u) add(sum, pack[u]);
    }
    for (; s < end; ++s) add(sum, grad[static_cast<int64_t>(order[s]) * vectors + v]);
    out[row * vectors + v] = rounded<T, V>(sum);
  }
}

void gather_into(const Tensor& features, const Tensor& idx, Tensor& out, const char* what) {
  const int64_t sources = idx.numel() / std::max<int64_t>(idx.size(0), 1);
  const int64_t rows = idx.numel(), channels = features.size(2);
  if (rows == 0 || channels == 0) return;
  const cudaStream_t stream = current_stream(features);
  dispatch_features(features, "features", [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(channels, {features.data_ptr(), out.data_ptr()}, [&](auto width) {
      constexpr int V = decltype(width)();
      const int vectors = static_cast<int>(channels / V);
      const RowBlock block = row_block(rows, vectors, 64, kThreads, what);
      dispatch_index(idx, [&](auto index_type) {
        using Index = typename decltype(index_type)::type;
        gather_kernel<T, V, Index><<<block.blocks, block.threads, 0, stream>>>(
            data<const Pack<T, V>>(features), data<const Index>(idx), data<Pack<T, V>>(out), rows,
            sources, features.size(1), vectors);
      });
    });
  });
  check_launch(what);
}

void check_gather(const Tensor& features, const Tensor& idx, int64_t dims) {
  check_features(features, "features", 3);
  check_index(idx, "idx", dims);
  check_same(features, "features", idx, "idx");
  STD_TORCH_CHECK(
      features.size(1) >= 1 || idx.numel() == 0, "features must hold at least one row");
}

Tensor gather_points(const Tensor& features_in, const Tensor& idx_in) {
  const Tensor features = dense(features_in);
  const Tensor idx = dense(idx_in);
  check_gather(features, idx, 2);
  DeviceGuard guard(features.get_device_index());
  Tensor out = empty(
      features, {idx.size(0), idx.size(1), features.size(2)}, features.scalar_type());
  gather_into(features, idx, out, "gather_points");
  return out;
}

Tensor group_points(const Tensor& features_in, const Tensor& idx_in) {
  const Tensor features = dense(features_in);
  const Tensor idx = dense(idx_in);
  check_gather(features, idx, 3);
  DeviceGuard guard(features.get_device_index());
  Tensor out = empty(
      features, {idx.size(0), idx.size(1), idx.size(2), features.size(2)}, features.scalar_type());
  gather_into(features, idx, out, "group_points");
  return out;
}

Tensor gather_points_backward(const Tensor& grad_in, const Tensor& idx_in, int64_t num_points) {
  const Tensor grad = dense(grad_in);
  const Tensor idx = dense(idx_in);
  check_features(grad, "grad", 3);
  check_index(idx, "idx", 2);
  check_same(grad, "grad", idx, "idx");
  STD_TORCH_CHECK(
      grad.size(1) == idx.size(1), "grad has ", grad.size(1), " rows but idx has ", idx.size(1));
  STD_TORCH_CHECK(
      num_points >= 0 && num_points < (1ll << 31) - 1, "num_points must be in 0..2**31 - 2, found ",
      num_points);
  DeviceGuard guard(grad.get_device_index());
  const int64_t batch = idx.size(0), sources = idx.size(1), channels = grad.size(2);
  Tensor out = empty(grad, {batch, num_points, channels}, grad.scalar_type());
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(grad);
  const bool scan = sources <= kScanSources;
  std::optional<Segments> segments;
  if (!scan) segments = build_segments(idx, batch, sources, num_points);
  dispatch_features(grad, "grad", [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(channels, {grad.data_ptr(), out.data_ptr()}, [&](auto width) {
      constexpr int V = decltype(width)();
      const int vectors = static_cast<int>(channels / V);
      const auto* from = data<const Pack<T, V>>(grad);
      auto* to = data<Pack<T, V>>(out);
      if (scan) {
        const int64_t blocks = ceil_div(num_points, kScanRows);
        dispatch_index(idx, [&](auto index_type) {
          using Index = typename decltype(index_type)::type;
          scan_backward_kernel<T, V, Index>
              <<<grid_size(batch * blocks, "gather_points_backward"), kThreads, 0, stream>>>(
                  from, data<const Index>(idx), to, static_cast<int>(sources),
                  static_cast<int>(num_points), vectors, static_cast<int>(blocks));
        });
      } else {
        const int64_t rows = batch * num_points;
        const RowBlock block = row_block(rows, vectors, 64, kThreads, "gather_points_backward");
        segment_backward_kernel<T, V><<<block.blocks, block.threads, 0, stream>>>(
            from, data<const int>(segments->offsets), data<const int>(segments->order), to, rows,
            sources, static_cast<int>(num_points), vectors);
      }
    });
  });
  check_launch("gather_points_backward");
  return out;
}

}  // namespace
}  // namespace recon_ops

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CUDA, m) {
  m.impl("gather_points", TORCH_BOX(&recon_ops::gather_points));
  m.impl("gather_points_backward", TORCH_BOX(&recon_ops::gather_points_backward));
  m.impl("group_points", TORCH_BOX(&recon_ops::group_points));
}
