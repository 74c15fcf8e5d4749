from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recon_ray.losses.contrast import gather_batch, self_contrast

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def _vectors() -> torch.Tensor:
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(z, dim=-1)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    part = slice(3 * rank, 3 * rank + 3)
    z = _vectors()[part].requires_grad_()
    loss = self_contrast(*gather_batch(z, LABELS[part]))
    loss.backward()
    torch.save({"loss": loss.detach(), "grad": z.grad / 2}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_contrast_over_two_workers_equals_that_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    z = _vectors().requires_grad_()
    loss = self_contrast(z, LABELS)
    loss.backward()
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach())
    # Half of each worker's gradient: what averaging the parameters' gradients leaves of it.
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), z.grad)


def test_one_process_keeps_its_batch() -> None:
    z = _vectors()
    assert gather_batch(z, LABELS)[0] is z
