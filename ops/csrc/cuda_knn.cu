// knn, group_knn and ball_query on CUDA.
#include "cuda_knn.h"

#include <algorithm>
#include <cstring>

#include "cuda_host.h"

namespace recon_ops {
namespace {

void check_search(const Tensor& xyz, const Tensor& query, const char* query_name) {
  check_points(xyz, "xyz");
  check_points(query, query_name);
  check_same(xyz, "xyz", query, query_name);
}

void check_k(int64_t k, int64_t n) {
  STD_TORCH_CHECK(k >= 1 && k <= n, "k must be in 1..", n, " (points in xyz), found ", k);
}

KnnArguments arguments(
    const Tensor& xyz, const Tensor& query, Tensor& idx, int64_t k, unsigned limit) {
  KnnArguments args{};
  args.xyz = data<const float>(xyz);
  args.query = data<const float>(query);
  args.idx = data<int64_t>(idx);
  args.num_points = static_cast<int>(xyz.size(1));
  args.num_queries = static_cast<int>(query.size(1));
  args.k = static_cast<int>(k);
  args.slots = static_cast<int>(idx.size(2));
  args.limit = limit;
  args.blocks_a_cloud = static_cast<int>(ceil_div(query.size(1), kKnnWarps));
  return args;
}

int tile_bytes(const KnnArguments& args) {
  const int steps = static_cast<int>(ceil_div(args.num_points, kStep));
  return std::min(steps * kStep, kTilePoints) * 3 * static_cast<int>(sizeof(float));
}

template <KnnOutput Output>
void launch(const KnnArguments& args, const Tensor& xyz, const char* what) {
  const unsigned grid = grid_size(xyz.size(0) * args.blocks_a_cloud, what);
  const int bytes = tile_bytes(args);
  const cudaStream_t stream = current_stream(xyz);
  constexpr int kThreads = kKnnWarps * 32;
  if (args.k <= 32) {
    knn_kernel<1, false, Output><<<grid, kThreads, bytes, stream>>>(args);
  } else if (args.k <= 64) {
    knn_kernel<2, false, Output><<<grid, kThreads, bytes, stream>>>(args);
  } else if (args.k <= 128) {
    knn_kernel<4, false, Output><<<grid, kThreads, bytes, stream>>>(args);
  } else {
    knn_kernel<8, true, Output><<<grid, kThreads, bytes, stream>>>(args);
  }
  check_launch(what);
}

std::tuple<Tensor, Tensor> knn(const Tensor& xyz_in, const Tensor& query_in, int64_t k, bool sorted) {
  const Tensor xyz = dense(xyz_in);
  const Tensor query = dense(query_in);
  check_search(xyz, query, "query");
  check_k(k, xyz.size(1));
  (void)sorted;  // the list is sorted at no further cost
  DeviceGuard guard(xyz.get_device_index());
  const int64_t batch = xyz.size(0), queries = query.size(1);
  Tensor distances = empty(xyz, {batch, queries, k}, ScalarType::Float);
  Tensor idx = empty(xyz, {batch, queries, k}, ScalarType::Long);
  if (batch == 0) return {distances, idx};
  KnnArguments args = arguments(xyz, query, idx, k, kNoKey);
  args.values = data<float>(distances);
  launch<KnnOutput::kDistances>(args, xyz, "knn");
  return {distances, idx};
}

std::tuple<Tensor, Tensor> group_knn(const Tensor& xyz_in, const Tensor& centers_in, int64_t k) {
  const Tensor xyz = dense(xyz_in);
  const Tensor centers = dense(centers_in);
  check_search(xyz, centers, "centers");
  check_k(k, xyz.size(1));
  DeviceGuard guard(xyz.get_device_index());
  const int64_t batch = xyz.size(0), groups = centers.size(1);
  Tensor patches = empty(xyz, {batch, groups, k, 3}, ScalarType::Float);
  Tensor idx = empty(xyz, {batch, groups, k}, ScalarType::Long);
  if (batch == 0) return {patches, idx};
  KnnArguments args = arguments(xyz, centers, idx, k, kNoKey);
  args.values = data<float>(patches);
  launch<KnnOutput::kPatches>(args, xyz, "group_knn");
  return {patches, idx};
}

// The smallest key that is not closer than the radius; 0 lets nothing through.
unsigned radius_limit(float radius2) {
  if (!(radius2 > 0.0f)) return 0;
  unsigned bits = 0;
  static_assert(sizeof(bits) == sizeof(radius2));
  std::memcpy(&bits, &radius2, sizeof(bits));
  return bits;
}

std::tuple<Tensor, Tensor> ball_query(
    const Tensor& xyz_in, const Tensor& query_in, double radius, int64_t max_neighbors, bool nearest) {
  const Tensor xyz = dense(xyz_in);
  const Tensor query = dense(query_in);
  check_search(xyz, query, "query");
  STD_TORCH_CHECK(
      max_neighbors >= 1 && max_neighbors <= (1 << 29), "max_neighbors must be in 1..2**29, found ",
      max_neighbors);
  DeviceGuard guard(xyz.get_device_index());
  const int64_t batch = xyz.size(0), queries = query.size(1);
  Tensor idx = empty(xyz, {batch, queries, max_neighbors}, ScalarType::Long);
  Tensor count = empty(xyz, {batch, queries}, ScalarType::Long);
  if (batch == 0) return {idx, count};
  const float radius2 = static_cast<float>(radius * radius);
  const int64_t k = std::min(max_neighbors, xyz.size(1));
  KnnArguments args = arguments(xyz, query, idx, k, radius_limit(radius2));
  args.count = data<int64_t>(count);
  if (nearest) {
    launch<KnnOutput::kBall>(args, xyz, "ball_query");
  } else {
    const unsigned grid = grid_size(batch * args.blocks_a_cloud, "ball_query");
    ball_kernel<<<grid, kKnnWarps * 32, tile_bytes(args), current_stream(xyz)>>>(args, radius2);
    check_launch("ball_query");
  }
  return {idx, count};
}

}  // namespace
}  // namespace recon_ops

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CUDA, m) {
  m.impl("knn", TORCH_BOX(&recon_ops::knn));
  m.impl("group_knn", TORCH_BOX(&recon_ops::group_knn));
  m.impl("ball_query", TORCH_BOX(&recon_ops::ball_query));
}
