"""Several devices, of one process or of many, that share every batch: the mesh, its arrays, and sums over it.

Every device holds all parameters and computes the loss of its part of the batch, divided by the number of labels of
the whole batch; the sum over the devices is then the loss, and that of the gradients its gradient, as one device has
them. Every process runs the same loop with the same numbers; process 0 alone writes files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from equijax.errors import EquijaxError
from equijax.train.batches import Shares

AXIS = "device"
"""The axis over the devices in a compiled step."""

_ALL, _PARTS = PartitionSpec(), PartitionSpec(AXIS)


class Wishes(NamedTuple):
    """What a process would like to happen after a step, and all do when it has reached them: the number of the signal
    that asks it to stop (0: none), and whether a checkpoint is due."""

    signal: int = 0
    checkpoint: bool = False


@dataclasses.dataclass(frozen=True)
class Devices:
    """At least two devices, in the order of the parts of a batch."""

    mesh: Mesh

    @property
    def count(self) -> int:
        return int(self.mesh.devices.size)

    @property
    def shares(self) -> Shares:
        """The parts of a batch, with those of this process."""
        own = [k for k, device in enumerate(self.mesh.devices) if device.process_index == jax.process_index()]
        return Shares(self.count, tuple(own))

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that writes files."""
        return jax.process_index() == 0

    def replicated(self, tree: Any) -> Any:
        """Host arrays, which are the same in every process, on every device."""
        sharding = NamedSharding(self.mesh, _ALL)

        def placed(leaf: Any) -> jax.Array:
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(placed, tree)

    def placed(self, parts: Sequence[Any]) -> Any:
        """Trees of host arrays, one for each device of this process, as arrays with an axis over all devices."""
        sharding = NamedSharding(self.mesh, _PARTS)
        local = [self.mesh.devices[k] for k in self.shares.own]
        pieces = [
            jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], part), device)
            for part, device in zip(parts, local, strict=True)
        ]

        def joined(*leaves: jax.Array) -> jax.Array:
            shape = (self.count, *leaves[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

        return jax.tree.map(joined, *pieces)

    def placed_with(self, parts: Sequence[Any], wishes: Wishes) -> Any:
        """(batch, wishes) as a `step` takes them."""
        numbers = np.array([wishes.signal, wishes.checkpoint], np.int32)
        return self.placed([(part, numbers) for part in parts])

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step(state, batch, learning_rate, weights) -> (state, metrics)` of one part, which sums over `AXIS` itself,
        as a function of (batch, wishes); the metrics have the `wishes` of any process."""

        def of_part(state: Any, shared: Any, learning_rate: Any, weights: Any) -> Any:
            batch, wishes = jax.tree.map(lambda leaf: leaf[0], shared)
            state, metrics = step(state, batch, learning_rate, weights)
            return state, metrics | {"wishes": jax.lax.pmax(wishes, AXIS)}

        return self._mapped(of_part, (_ALL, _PARTS, _ALL, _ALL))

    def evaluation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """`evaluate(params, batch) -> sums` with the sums of all parts and `finite_graphs` [parts, G]."""

        def of_part(params: Any, batch: Any) -> Any:
            sums = evaluate(params, jax.tree.map(lambda leaf: leaf[0], batch))
            finite = jax.lax.all_gather(sums.pop("finite_graphs"), AXIS)
            return sum_over_devices(sums) | {"finite_graphs": finite}

        return self._mapped(of_part, (_ALL, _PARTS))

    def summed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(params, batch)`, summed over the parts."""

        def of_part(params: Any, batch: Any) -> Any:
            return sum_over_devices(function(params, jax.tree.map(lambda leaf: leaf[0], batch)))

        return self._mapped(of_part, (_ALL, _PARTS))

    def _mapped(self, function: Callable[..., Any], in_specs: Any) -> Callable[..., Any]:
        # Outputs are equal on all devices by construction, which JAX cannot know of sums in a committee's vmap.
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=_ALL, check_vma=False)

    def from_leader(self, arrays: Any, text: str) -> tuple[Any, str]:
        """`arrays` (host arrays of the same shapes everywhere) and `text` of process 0, in every process."""
        if jax.process_count() == 1:
            return arrays, text
        content = np.frombuffer(text.encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.array(len(content), np.int32)))
        buffer = np.zeros(length, np.uint8)
        if self.is_leader:
            buffer[:] = content
        told = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
        arrays = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))
        return arrays, told.tobytes().decode()

    def refuse_differences(self, digests: dict[str, bytes]) -> None:
        """EquijaxError in every process when one has another value than process 0; `digests` have 32 bytes each."""
        if jax.process_count() == 1:
            return
        own = np.stack([np.frombuffer(digest, np.uint8) for digest in digests.values()])
        found = np.asarray(multihost_utils.process_allgather(own)).reshape(jax.process_count(), *own.shape)
        for process, values in enumerate(found):
            for name, value, first in zip(digests, values, found[0], strict=True):
                if not np.array_equal(value, first):
                    raise EquijaxError(
                        f"process {process} has another {name} than process 0; fix: start all with the same files, "
                        "options and versions"
                    )


def training_devices(setting: Literal["all"] | int) -> Devices | None:
    """The devices that `training.devices` asks for; None for one device of one process, which needs none of this.

    Raises EquijaxError when there are fewer, and when processes would have nothing to do.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = jax.process_count()
    count = len(devices) if setting == "all" else setting
    kind = devices[0].platform
    if count > len(devices):
        more = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}" if kind == "cpu" else "more processes"
        raise EquijaxError(
            f"training.devices: is {count}, and there are {len(devices)} ({kind}); expected at most {len(devices)}, or "
            f"start with {more}"
        )
    if processes > 1 and count < len(devices):
        raise EquijaxError(
            f"training.devices: is {count}, and {processes} processes have {len(devices)} devices ({kind}) together; "
            f"expected all or {len(devices)}; add --set training.devices=all"
        )
    return None if count == 1 else Devices(Mesh(np.array(devices[:count]), (AXIS,)))


def with_counts_of_all(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The sums of a part with every count that of the whole batch, inside a step of several devices."""
    counts = {name: jax.lax.stop_gradient(value) for name, value in sums.items() if name.endswith("_count")}
    return sums | sum_over_devices(counts)


def sum_over_devices(tree: Any) -> Any:
    """Inside a step of several devices the sum of every leaf over all, in one message per type of number."""
    leaves, structure = jax.tree.flatten(tree)
    summed: list[Any] = [None] * len(leaves)
    for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):  # the same order in every process
        places = [k for k, leaf in enumerate(leaves) if leaf.dtype == dtype]
        ends = np.cumsum([leaves[k].size for k in places])
        total = jax.lax.psum(jnp.concatenate([leaves[k].ravel() for k in places]), AXIS)
        for k, part in zip(places, jnp.split(total, ends[:-1]), strict=True):
            summed[k] = part.reshape(leaves[k].shape)
    return jax.tree.unflatten(structure, summed)
