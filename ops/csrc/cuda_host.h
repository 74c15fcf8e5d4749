// Host-side pieces shared by the CUDA files: argument checks, stream, workspace, launch errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace recon_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kMaxGrid = 2147483647;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, " failed on the GPU: ", cudaGetErrorString(error));
}

inline void check_launch(const char* what) { check_cuda(cudaGetLastError(), what); }

// Blocks beyond 48 KiB of dynamic shared memory must ask for it, once a kernel and device.
template <typename Kernel>
void allow_shared_memory(Kernel kernel, int bytes, const char* what) {
  if (bytes > 48 * 1024) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline unsigned grid_size(int64_t blocks, const char* what) {
  STD_TORCH_CHECK(
      blocks <= kMaxGrid, what, " needs ", blocks, " blocks; at most ", kMaxGrid, " can be run");
  return static_cast<unsigned>(blocks);
}

inline void check_points(const Tensor& points, const char* name) {
  STD_TORCH_CHECK(points.is_cuda(), name, " must be on a CUDA device");
  STD_TORCH_CHECK(
      points.scalar_type() == ScalarType::Float, name, " must be float32 on a CUDA device");
  STD_TORCH_CHECK(points.dim() == 3 && points.size(2) == 3, name, " must have shape (B, N, 3)");
  STD_TORCH_CHECK(points.size(1) >= 1, name, " must hold at least one point");
  STD_TORCH_CHECK(
      points.size(1) <= (1 << 29), name, " must hold at most 2**29 points, found ", points.size(1));
}

inline void check_same(const Tensor& a, const char* first, const Tensor& b, const char* second) {
  STD_TORCH_CHECK(
      b.is_cuda() && a.get_device_index() == b.get_device_index(), second,
      " must be on the device of ", first);
  STD_TORCH_CHECK(
      a.size(0) == b.size(0), second, " has a batch of ", b.size(0), " but ", first, " has one of ",
      a.size(0));
}

inline void check_index(const Tensor& index, const char* name, int64_t dims) {
  STD_TORCH_CHECK(
      index.scalar_type() == ScalarType::Long || index.scalar_type() == ScalarType::Int, name,
      " must be int32 or int64");
  STD_TORCH_CHECK(index.dim() == dims, name, " must have ", dims, " dimensions, found ", index.dim());
}

inline void check_features(const Tensor& features, const char* name, int64_t dims) {
  STD_TORCH_CHECK(features.is_cuda(), name, " must be on a CUDA device");
  STD_TORCH_CHECK(
      features.dim() == dims, name, " must have ", dims, " dimensions, found ", features.dim());
}

// The tensor itself where it is contiguous, as it is when the Python wrappers call.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor empty(
    const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline int multiprocessors() {
  int device = 0;
  int count = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
      "cudaDeviceGetAttribute");
  return count;
}

}  // namespace recon_ops
