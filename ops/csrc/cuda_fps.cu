// furthest_point_sample on CUDA.
#include "cuda_fps.h"

#include "cuda_host.h"

namespace recon_ops {
namespace {

template <int T, int P>
void launch(const FpsArguments& args, unsigned clouds, cudaStream_t stream) {
  fps_kernel<T, P><<<clouds, T, 0, stream>>>(args);
}

// Threads and points a thread by the size of the cloud, the fastest measured on an H100 (sm_90):
// few points a thread while one warp a scheduler hides nothing anyway, more once the distances cost
// more than the reduction of each step, or where blocks share a multiprocessor.
// Returns false where the registers of a block do not hold the cloud.
bool launch_in_registers(const FpsArguments& args, unsigned clouds, cudaStream_t stream) {
  const int n = args.num_points;
  if (n <= 32) launch<32, 1>(args, clouds, stream);
  else if (n <= 64) launch<32, 2>(args, clouds, stream);
  else if (n <= 128) launch<32, 4>(args, clouds, stream);
  else if (n <= 256) launch<64, 4>(args, clouds, stream);
  else if (n <= 512) launch<128, 4>(args, clouds, stream);
  else if (n <= 1024 && clouds > 2u * multiprocessors()) launch<128, 8>(args, clouds, stream);
  else if (n <= 1024) launch<256, 4>(args, clouds, stream);
  else if (n <= 2048) launch<256, 8>(args, clouds, stream);
  else if (n <= 3072) launch<256, 12>(args, clouds, stream);
  else if (n <= 4096) launch<512, 8>(args, clouds, stream);
  else if (n <= 6144) launch<512, 12>(args, clouds, stream);
  else if (n <= 8192) launch<512, 16>(args, clouds, stream);
  else if (n <= 10240) launch<512, 20>(args, clouds, stream);
  else return false;
  return true;
}

std::tuple<Tensor, Tensor> furthest_point_sample(
    const Tensor& xyz_in, int64_t num_samples, std::optional<Tensor> start, double min_sq_norm) {
  const Tensor xyz = dense(xyz_in);
  check_points(xyz, "xyz");
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  STD_TORCH_CHECK(
      num_samples >= 1 && num_samples <= n, "num_samples must be in 1..", n,
      " (points in xyz), found ", num_samples);
  DeviceGuard guard(xyz.get_device_index());
  std::optional<Tensor> first;
  if (start.has_value()) {
    check_same(xyz, "xyz", *start, "start");
    check_index(*start, "start", 1);
    first = dense(torch::stable::to(*start, ScalarType::Long));
  }
  Tensor idx = empty(xyz, {batch, num_samples}, ScalarType::Long);
  Tensor points = empty(xyz, {batch, num_samples, 3}, ScalarType::Float);
  if (batch == 0) return {idx, points};

  FpsArguments args{
      data<const float>(xyz),
      first.has_value() ? data<const int64_t>(*first) : nullptr,
      nullptr,
      data<int64_t>(idx),
      data<float>(points),
      static_cast<float>(min_sq_norm),
      static_cast<int>(n),
      static_cast<int>(num_samples)};
  const cudaStream_t stream = current_stream(xyz);
  const unsigned clouds = grid_size(batch, "furthest_point_sample");
  if (!launch_in_registers(args, clouds, stream)) {
    Tensor distances = empty(xyz, {batch, n}, ScalarType::Float);
    args.distances = data<float>(distances);
    fps_large_kernel<1024><<<clouds, 1024, 0, stream>>>(args);
  }
  check_launch("furthest_point_sample");
  return {idx, points};
}

}  // namespace
}  // namespace recon_ops

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CUDA, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&recon_ops::furthest_point_sample));
}
