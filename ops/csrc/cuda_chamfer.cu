// chamfer_distance, its gradient, and the fused loss on CUDA.
#include "cuda_chamfer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cuda_segments.h"

namespace recon_ops {
namespace {

constexpr int64_t kTiny = 64;  // points a side up to which a warp takes a pair

void check_pair(const Tensor& a, const char* first, const Tensor& b, const char* second) {
  check_points(a, first);
  check_points(b, second);
  check_same(a, first, b, second);
}

bool is_tiny(const Tensor& a, const Tensor& b) { return a.size(1) <= kTiny && b.size(1) <= kTiny; }

ChamferArguments pair_arguments(const Tensor& a, const Tensor& b) {
  ChamferArguments args{};
  args.a = data<const float>(a);
  args.b = data<const float>(b);
  args.pairs = a.size(0);
  args.n = static_cast<int>(a.size(1));
  args.m = static_cast<int>(b.size(1));
  return args;
}

int64_t pair_blocks(int64_t pairs, int64_t n, int64_t m) {
  return ceil_div(pairs, n <= 32 && m <= 32 ? kPairWarps<1, 1> : kPairWarps<2, 2>);
}

// The launch overlaps with the end of the kernel before it where the code that runs waits for that
// (compiled for sm_90 or later; newer GPUs also run older code, which does not wait).
template <typename... Parameters, typename... Arguments>
void launch_early(
    void (*kernel)(Parameters...), unsigned blocks, unsigned threads, cudaStream_t stream,
    const char* name, Arguments&&... args) {
  cudaFuncAttributes compiled{};
  check_cuda(cudaFuncGetAttributes(&compiled, kernel), name);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = compiled.ptxVersion >= 90 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(args)...), name);
}

template <int RA, int RB, bool Loss, bool Squared, bool Full>
void launch_pair_kernel(const ChamferArguments& args, cudaStream_t stream) {
  constexpr int kThreads = kPairWarps<RA, RB> * 32;
  const unsigned blocks = grid_size(pair_blocks(args.pairs, args.n, args.m), "chamfer");
  // As many blocks as the registers allow need more shared memory than the driver would set apart.
  auto* kernel = chamfer_pair_kernel<RA, RB, Loss, Squared, Full>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "chamfer");
  launch_early(kernel, blocks, kThreads, stream, "chamfer", args);
}

template <bool Loss, bool Squared>
void launch_pairs(const ChamferArguments& args, cudaStream_t stream) {
  const bool small_a = args.n <= 32, small_b = args.m <= 32;
  if (args.n == 32 && args.m == 32) launch_pair_kernel<1, 1, Loss, Squared, true>(args, stream);
  else if (small_a && small_b) launch_pair_kernel<1, 1, Loss, Squared, false>(args, stream);
  else if (small_a) launch_pair_kernel<1, 2, Loss, Squared, false>(args, stream);
  else if (small_b) launch_pair_kernel<2, 1, Loss, Squared, false>(args, stream);
  else launch_pair_kernel<2, 2, Loss, Squared, false>(args, stream);
}

void launch_sum(const float* partial, int count, float* loss, cudaStream_t stream) {
  launch_early(sum_kernel, 1, kSumThreads, stream, "chamfer_loss", partial, count, loss);
}

struct Nearest {
  Tensor d_ab, d_ba, i_ab, i_ba;
};

template <int R>
void launch_tiles(
    TileArguments& args, int64_t batch, int64_t& row_chunk, cudaStream_t stream) {
  constexpr int kRows = kTileThreads * R;
  args.row_blocks = static_cast<int>(ceil_div(args.n, kRows));
  row_chunk = 32 * R;
  // Split the columns until there are about four waves of blocks, so that the last one is small.
  const int64_t wanted = multiprocessors() * 20ll;
  const int64_t tiles = ceil_div(args.m, kTileThreads);
  const int64_t splits = std::clamp<int64_t>(wanted / (batch * args.row_blocks), 1, tiles);
  args.columns_a_block = static_cast<int>(ceil_div(tiles, splits) * kTileThreads);
  args.column_blocks = static_cast<int>(ceil_div(args.m, args.columns_a_block));
  const unsigned blocks = grid_size(batch * args.row_blocks * args.column_blocks, "chamfer");
  chamfer_tile_kernel<R><<<blocks, kTileThreads, 0, stream>>>(args);
  check_launch("chamfer");
}

void find_nearest(const Tensor& a, const Tensor& b, Nearest& found, cudaStream_t stream) {
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  Tensor best = empty(a, {batch * (n + m)}, ScalarType::Long);
  auto* keys = reinterpret_cast<unsigned long long*>(best.data_ptr());
  check_cuda(cudaMemsetAsync(keys, 0xff, batch * (n + m) * 8, stream), "chamfer");
  TileArguments args{};
  args.a = data<const float>(a);
  args.b = data<const float>(b);
  args.best_a = keys;
  args.best_b = keys + batch * n;
  args.n = static_cast<int>(n);
  args.m = static_cast<int>(m);
  int64_t row_chunk = 0;
  if (n > 512) launch_tiles<8>(args, batch, row_chunk, stream);
  else launch_tiles<2>(args, batch, row_chunk, stream);

  const ResolveSide side_a{
      args.a, args.b, args.best_a, data<float>(found.d_ab), data<int64_t>(found.i_ab), args.n,
      args.m, kChunkColumns};
  const ResolveSide side_b{
      args.b, args.a, args.best_b, data<float>(found.d_ba), data<int64_t>(found.i_ba), args.m,
      args.n, static_cast<int>(row_chunk)};
  const unsigned blocks = grid_size(ceil_div(batch * (n + m), 8), "chamfer");
  resolve_kernel<<<blocks, 256, 0, stream>>>(side_a, side_b, batch * n, batch * m);
  check_launch("chamfer");
}

Nearest empty_nearest(const Tensor& a, const Tensor& b) {
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  return {
      empty(a, {batch, n}, ScalarType::Float), empty(a, {batch, m}, ScalarType::Float),
      empty(a, {batch, n}, ScalarType::Long), empty(a, {batch, m}, ScalarType::Long)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a_in, const Tensor& b_in) {
  const Tensor a = dense(a_in);
  const Tensor b = dense(b_in);
  check_pair(a, "a", b, "b");
  DeviceGuard guard(a.get_device_index());
  Nearest found = empty_nearest(a, b);
  if (a.size(0) > 0) {
    const cudaStream_t stream = current_stream(a);
    if (is_tiny(a, b)) {
      ChamferArguments args = pair_arguments(a, b);
      args.d_ab = data<float>(found.d_ab);
      args.d_ba = data<float>(found.d_ba);
      args.i_ab = data<int64_t>(found.i_ab);
      args.i_ba = data<int64_t>(found.i_ba);
      launch_pairs<false, true>(args, stream);
    } else {
      find_nearest(a, b, found, stream);
    }
  }
  return {found.d_ab, found.d_ba, found.i_ab, found.i_ba};
}

// Writes the gradients of the sides that have a place for them.
void write_gradients(
    const Tensor& a, const Tensor& b, const Tensor& scale_ab, const Tensor& scale_ba,
    const Tensor& i_ab, const Tensor& i_ba, float factor, float* grad_a, float* grad_b,
    cudaStream_t stream) {
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  const auto side = [&](const Tensor& points, const Tensor& other, const Tensor& idx,
                        const Tensor& scale, const Tensor& other_scale, const Segments& into,
                        float* grad) {
    return GradientSide{
        data<const float>(points), data<const float>(other), data<const int64_t>(idx),
        data<const float>(scale), data<const float>(other_scale), data<const int>(into.offsets),
        data<const int>(into.order), grad, static_cast<int>(points.size(1)),
        static_cast<int>(other.size(1))};
  };
  Segments into_a, into_b;
  GradientSide side_a{}, side_b{};
  if (grad_a != nullptr) {
    into_a = build_segments(i_ba, batch, m, n);
    side_a = side(a, b, i_ab, scale_ab, scale_ba, into_a, grad_a);
  }
  if (grad_b != nullptr) {
    into_b = build_segments(i_ab, batch, n, m);
    side_b = side(b, a, i_ba, scale_ba, scale_ab, into_b, grad_b);
  }
  const int64_t rows_a = grad_a != nullptr ? batch * n : 0;
  const int64_t rows_b = grad_b != nullptr ? batch * m : 0;
  if (rows_a + rows_b == 0) return;
  const unsigned blocks = grid_size(ceil_div(rows_a + rows_b, 256), "chamfer gradient");
  gradient_kernel<<<blocks, 256, 0, stream>>>(side_a, side_b, rows_a, rows_b, factor);
  check_launch("chamfer gradient");
}

void check_terms(
    const Tensor& points, const Tensor& grad, const char* grad_name, const Tensor& index,
    const char* index_name) {
  check_same(points, "a", grad, grad_name);
  check_same(points, "a", index, index_name);
  check_index(index, index_name, 2);
  STD_TORCH_CHECK(
      grad.dim() == 2 && grad.size(1) == points.size(1) &&
          grad.scalar_type() == ScalarType::Float,
      grad_name, " must be float32 with one value a point");
  STD_TORCH_CHECK(index.size(1) == points.size(1), index_name, " must have one index a point");
}

std::tuple<Tensor, Tensor> chamfer_distance_backward(
    const Tensor& a_in, const Tensor& b_in, const Tensor& grad_ab_in, const Tensor& grad_ba_in,
    const Tensor& i_ab_in, const Tensor& i_ba_in) {
  const Tensor a = dense(a_in);
  const Tensor b = dense(b_in);
  const Tensor grad_ab = dense(grad_ab_in);
  const Tensor grad_ba = dense(grad_ba_in);
  const Tensor i_ab = dense(i_ab_in);
  const Tensor i_ba = dense(i_ba_in);
  check_pair(a, "a", b, "b");
  check_terms(a, grad_ab, "grad_ab", i_ab, "i_ab");
  check_terms(b, grad_ba, "grad_ba", i_ba, "i_ba");
  DeviceGuard guard(a.get_device_index());
  Tensor grad_a = empty(a, {a.size(0), a.size(1), 3}, ScalarType::Float);
  Tensor grad_b = empty(b, {b.size(0), b.size(1), 3}, ScalarType::Float);
  if (a.size(0) > 0) {
    const Tensor to_b = torch::stable::to(i_ab, ScalarType::Long);
    const Tensor to_a = torch::stable::to(i_ba, ScalarType::Long);
    write_gradients(
        a, b, grad_ab, grad_ba, to_b, to_a, 2.0f, data<float>(grad_a), data<float>(grad_b),
        current_stream(a));
  }
  return {grad_a, grad_b};
}

std::tuple<Tensor, Tensor> chamfer_loss_forward(
    const Tensor& pred_in, const Tensor& target_in, bool squared, bool with_grad_pred,
    bool with_grad_target) {
  const Tensor pred = dense(pred_in);
  const Tensor target = dense(target_in);
  check_pair(pred, "pred", target, "target");
  DeviceGuard guard(pred.get_device_index());
  const int64_t batch = pred.size(0), n = pred.size(1), m = target.size(1);
  Tensor loss = empty(pred, {}, ScalarType::Float);
  const int64_t numbers_pred = with_grad_pred ? batch * n * 3 : 0;
  const int64_t numbers_target = with_grad_target ? batch * m * 3 : 0;
  Tensor grads = empty(pred, {numbers_pred + numbers_target}, ScalarType::Float);
  float* grad_pred = with_grad_pred ? data<float>(grads) : nullptr;
  float* grad_target = with_grad_target ? data<float>(grads) + numbers_pred : nullptr;
  if (batch == 0) {
    torch::stable::fill_(loss, std::nan(""));  // the mean of nothing
    return {loss, grads};
  }
  const cudaStream_t stream = current_stream(pred);
  const double share = squared ? 1.0 : 0.5;
  const float weight_ab = static_cast<float>(share / (static_cast<double>(batch) * n));
  const float weight_ba = static_cast<float>(share / (static_cast<double>(batch) * m));
  unsigned blocks = 0;
  Tensor partial = loss;
  if (is_tiny(pred, target)) {
    blocks = grid_size(pair_blocks(batch, n, m), "chamfer_loss");
    partial = empty(pred, {static_cast<int64_t>(blocks)}, ScalarType::Float);
    ChamferArguments args = pair_arguments(pred, target);
    args.grad_a = grad_pred;
    args.grad_b = grad_target;
    args.partial = data<float>(partial);
    args.weight_ab = weight_ab;
    args.weight_ba = weight_ba;
    if (squared) launch_pairs<true, true>(args, stream);
    else launch_pairs<true, false>(args, stream);
  } else {
    Nearest found = empty_nearest(pred, target);
    find_nearest(pred, target, found, stream);
    blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(batch * (n + m), 256), 1024));
    partial = empty(pred, {static_cast<int64_t>(blocks)}, ScalarType::Float);
    Tensor scale_ab = empty(pred, {batch, n}, ScalarType::Float);
    Tensor scale_ba = empty(pred, {batch, m}, ScalarType::Float);
    terms_kernel<<<blocks, 256, 0, stream>>>(
        data<const float>(found.d_ab), data<const float>(found.d_ba), data<float>(scale_ab),
        data<float>(scale_ba), data<float>(partial), batch * n, batch * m, weight_ab, weight_ba,
        squared);
    check_launch("chamfer_loss");
    write_gradients(
        pred, target, scale_ab, scale_ba, found.i_ab, found.i_ba, 1.0f, grad_pred, grad_target,
        stream);
  }
  launch_sum(data<const float>(partial), static_cast<int>(blocks), data<float>(loss), stream);
  return {loss, grads};
}

}  // namespace
}  // namespace recon_ops

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CUDA, m) {
  m.impl("chamfer_distance", TORCH_BOX(&recon_ops::chamfer_distance));
  m.impl("chamfer_distance_backward", TORCH_BOX(&recon_ops::chamfer_distance_backward));
  m.impl("chamfer_loss_forward", TORCH_BOX(&recon_ops::chamfer_loss_forward));
}
