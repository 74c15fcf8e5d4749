// Inverse of an index list: for each target the sources that point at it, in source order.
#pragma once

#include "cuda_host.h"

namespace recon_ops {

struct Segments {
  Tensor offsets;  // (B, N + 1) int32
  Tensor order;    // (B, M) int32, sources sorted by target, then by source
};

// Sorts the M sources of each row of idx (B, M) by their target in 0..num_targets - 1 with a stable
// counting sort, so that sums over a segment have one order. Workspace comes from torch.
Segments build_segments(const Tensor& idx, int64_t batch, int64_t sources, int64_t num_targets);

}  // namespace recon_ops
