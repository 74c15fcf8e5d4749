// The operators' schemas. Kernels are registered where they are written: csrc/*.cpp for the CPU,
// csrc/*.cu for CUDA. Index outputs are int64; index inputs are int32 or int64.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(recon_ops, m) {
  m.def("furthest_point_sample(Tensor xyz, int num_samples, Tensor? start, float min_sq_norm) -> (Tensor idx, Tensor points)");
  m.def("knn(Tensor xyz, Tensor query, int k, bool sorted) -> (Tensor sq_dist, Tensor idx)");
  m.def("group_knn(Tensor xyz, Tensor centers, int k) -> (Tensor patches, Tensor idx)");
  m.def("ball_query(Tensor xyz, Tensor query, float radius, int max_neighbors, bool nearest) -> (Tensor idx, Tensor count)");
  m.def("gather_points(Tensor features, Tensor idx) -> Tensor");
  m.def("gather_points_backward(Tensor grad, Tensor idx, int num_points) -> Tensor");
  m.def("group_points(Tensor features, Tensor idx) -> Tensor");
  m.def("three_nn(Tensor unknown, Tensor known) -> (Tensor dist, Tensor idx)");
  m.def("three_interpolate(Tensor features, Tensor idx, Tensor weight) -> Tensor");
  m.def("three_interpolate_backward(Tensor grad, Tensor features, Tensor idx, Tensor weight) -> (Tensor, Tensor)");
  m.def("chamfer_distance(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("chamfer_distance_backward(Tensor a, Tensor b, Tensor grad_ab, Tensor grad_ba, Tensor i_ab, Tensor i_ba) -> (Tensor, Tensor)");
  // The gradients that are asked for lie in one row, that of `pred` first.
  m.def("chamfer_loss_forward(Tensor pred, Tensor target, bool squared, bool with_grad_pred, bool with_grad_target) -> (Tensor loss, Tensor grads)");
  m.def("cpu_instructions() -> int"); // 0 baseline, 1 AVX2, 2 AVX-512
}
