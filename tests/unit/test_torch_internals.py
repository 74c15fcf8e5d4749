"""Private names of torch that are needed, and the public ones that would replace them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._functorch import config as autograd_config

from recon_ray import torch_internals


def test_the_store_of_the_process_group_is_found(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        found = torch_internals.default_store()
        found.set("key", "value")
        assert found.check(["key"])
        assert found.get("key") == b"value"
    finally:
        dist.destroy_process_group()
    assert not hasattr(dist, "get_default_store"), "there is a public function now"


def test_graphs_with_custom_functions_are_cached_only_if_torch_is_told(monkeypatch: Any) -> None:
    name = "autograd_cache_allow_custom_autograd_functions"
    with autograd_config.patch({name: False}):
        torch_internals.cache_custom_autograd_functions()
        assert getattr(autograd_config, name) is True
    assert autograd_config.get_config_copy()[name] in (False, True)
    assert name in Path(str(autograd_config.__file__)).read_text()


def test_tensors_are_copied_and_added_in_place() -> None:
    sources = [torch.ones(2), torch.full((3,), 2.0)]
    targets = [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3)]
    torch_internals.copy_tensors(targets, sources)
    torch_internals.add_tensors(targets[1:], sources[1:])
    assert [target.tolist() for target in targets] == [[1.0, 1.0], [4.0, 4.0, 4.0]]
    for name in ("foreach_copy_", "foreach_add_"):
        assert not hasattr(torch, name), f"torch.{name} is public now"


def test_operations_are_seen_and_storages_identified() -> None:
    class Counter(torch_internals.DispatchMode):
        seen = 0

        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            self.seen += 1
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        values = torch.ones(4) + 1
    assert counter.seen == 2
    found = torch_internals.storages({"a": [values, values[:2]], "b": (torch.ones(1), 5)})
    assert len(found) == 2
    assert torch_internals.storages(values).keys() <= found.keys()
