"""Speed, cost and reach of every tensor product of the package, and of other libraries in the same run."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.bench.product_cases import NODE_KINDS, Case, EdgeCase, Entry, NodeCase, PowerCase
from equijax.bench.product_peers import installed_peers, peers_of
from equijax.bench.take_turns import Program, Times, compile_program, time_in_turns
from equijax.config.yaml import parse_value, validate
from equijax.doctor import describe_installation
from equijax.errors import EquijaxError, did_you_mean, located
from equijax.ops import TENSOR_PRODUCTS
from equijax.precision import DType, precision

BASELINE = "clebsch_gordan"
TASKS = ("forward", "forward+backward", "double backward")
Record = dict[str, Any]
"""One line of the JSON file: a product on a case and task, or the reason why there is no time."""


def parse_product(text: str) -> tuple[str, Any]:
    """Label and options of `NAME` or `NAME:field=value,field=value`, as in `cp:rank=28`."""
    name, _, fields = text.partition(":")
    if name not in TENSOR_PRODUCTS:
        raise EquijaxError(f"there is no tensor product '{name}'; {did_you_mean(name, TENSOR_PRODUCTS)}")
    values = {}
    for field in filter(None, fields.split(",")):
        key, equals, value = field.partition("=")
        if not equals:
            raise located(f"is '{field}'", key=f"--product {text}", expected="field=value")
        values[key] = parse_value(value)
    options_class: Any = TENSOR_PRODUCTS[name]
    return text, validate(options_class, values, f"--product {text}")


def all_products() -> dict[str, Any]:
    """Every row of `TENSOR_PRODUCTS` with its default options."""
    return dict(map(parse_product, TENSOR_PRODUCTS))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Which cases and sizes to time; without `lmax` every family has its own."""

    case: str = "all"
    lmax: tuple[int, ...] = ()
    channels: tuple[int, ...] = (64,)
    batch: tuple[int, ...] = (1000,)
    edges: tuple[int, ...] = (1000, 20000)
    neighbors: int = 40
    lmax_edge: int = 3
    correlation: int = 3
    block: int = 0

    def cases(self) -> Iterator[Case]:
        """The product of all lists."""
        chosen = ("nodes", "edges", "powers") if self.case == "all" else (self.case,)
        for channels in self.channels:
            if any(kind in chosen or "nodes" in chosen for kind in NODE_KINDS):
                for kind in NODE_KINDS:
                    if kind in chosen or "nodes" in chosen:
                        for l in self.lmax or (1, 2, 3, 4):
                            yield from (NodeCase(kind, l, channels, batch) for batch in self.batch)
            if "edges" in chosen:
                for l in self.lmax or (1, 2):
                    for edges in self.edges:
                        nodes = max(1, round(edges / self.neighbors))
                        # Padding to whole blocks would copy all weights, which a model makes inside the block.
                        block = next((b for b in range(self.block, 0, -1) if nodes % b == 0), 0)
                        shape = (l, self.lmax_edge, channels, nodes, min(self.neighbors, edges), block)
                        yield EdgeCase("mace", *shape)
                        if l != self.lmax_edge:
                            yield EdgeCase("nequip", *shape)
            if "powers" in chosen:
                for l in self.lmax or (3,):
                    for lmax_out in (0, 1):
                        yield from (PowerCase(l, lmax_out, self.correlation, channels, b) for b in self.batch)


CASE_NAMES = ("all", "nodes", "edges", "powers", *NODE_KINDS)


def machine_fingerprint() -> dict[str, str]:
    """Everything a time depends on besides the program: versions, device, processor, threads, allocator."""
    facts = describe_installation() | {"processor": _processor(), "device": jax.devices()[0].device_kind}
    facts |= {f"peer {name}": version for name, version in installed_peers().items()}
    return facts | {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def run_case(
    case: Case,
    products: Mapping[str, Any],
    dtype: DType = "float32",
    seconds: float = 1.0,
    *,
    peers: bool = True,
    measures: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """All products and peers on one case, taking turns in each task; `seconds` per product and task.

    A product that refuses the sizes, or fails, gets one record with the reason under "refused" and no times.
    """
    common: Record = {"case": case.name, "sizes": case.sizes, "dtype": dtype}
    builders: dict[str, tuple[str, Callable[[], Entry]]] = {
        label: ("equijax", lambda options=options: case.entry(options, dtype, measures))  # type: ignore[misc]
        for label, options in products.items()
        if isinstance(options, case.family)
    }
    if peers:
        for label, build in peers_of(case):
            builders[label] = ("peer", lambda build=build: build(dtype))  # type: ignore[misc]
    records: list[Record] = []
    entries: dict[str, Entry] = {}
    with precision(dtype):
        for label, (kind, make) in builders.items():
            common_of_label = common | {"product": label, "kind": kind}
            report(f"{label}: properties")
            try:
                entries[label] = make()
            except Exception as error:
                records.append(common_of_label | {"task": None, "refused": _reason(error)})
        for task in TASKS:
            programs: dict[str, Program] = {}
            for label, entry in entries.items():
                report(f"{label}: {task}, compiling")
                try:
                    programs[label] = _compiled(entry, task)
                    programs[label].call()
                except Exception as error:
                    programs.pop(label, None)
                    failed = {"product": label, "kind": builders[label][0], "task": task, "refused": _reason(error)}
                    records.append(common | failed)
            report(f"{task}, timing {len(programs)} programs")
            for label, times in time_in_turns(programs, seconds).items():
                row: Record = {"product": label, "kind": builders[label][0], "task": task, "refused": None}
                records.append(common | row | _numbers(entries[label], programs[label], times))
    return records


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, EquijaxError) else f"{type(error).__name__}: {text}"


def _numbers(entry: Entry, program: Program, times: Times) -> Record:
    properties = ("path_count", "is_o3", "flops", "expressivity", "interactability", "equivariance_error")
    numbers = dataclasses.asdict(times) | {name: getattr(entry, name) for name in properties}
    for name in ("compile_s", "xla_flops", "xla_bytes", "temp_bytes"):
        numbers[name] = getattr(program, name)
    if entry.has_loop:
        numbers |= {"xla_flops": None, "xla_bytes": None}
    return numbers


def _compiled(entry: Entry, task: str) -> Program:
    """The program of a task. `double backward` is the gradient of the squared gradient, as in a loss of forces."""
    arguments = (entry.inputs, entry.weights, entry.fixed)
    if task == "forward":
        return compile_program(entry.function, *arguments)
    shapes = jax.eval_shape(entry.function, *arguments)
    rng = np.random.default_rng(4)
    cotangent = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)

    def backward(inputs: Any, weights: Any, fixed: Any, cotangent: Any) -> Any:
        result, pull = jax.vjp(lambda i, w: entry.function(i, w, fixed), inputs, weights)
        return result, pull(cotangent)

    def double_backward(inputs: Any, weights: Any, fixed: Any, cotangent: Any) -> Any:
        def squared(inputs: Any, weights: Any) -> jax.Array:
            _, pull = jax.vjp(lambda i: entry.function(i, weights, fixed), inputs)
            return sum((jnp.vdot(g, g) for g in jax.tree.leaves(pull(cotangent))), jnp.zeros(()))

        return jax.grad(squared, (0, 1))(inputs, weights)

    return compile_program(backward if task == TASKS[1] else double_backward, *arguments, cotangent)


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Add lines to a JSON-lines file, in one write, so that an interrupted run leaves whole cases."""
    stamp = {"time": time.strftime("%Y-%m-%dT%H:%M:%S")}
    text = "".join(json.dumps(record | stamp, default=float) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise located(f"cannot be written: {error.strerror or error}", file=path) from error


def read_records(path: Path) -> list[Record]:
    """The records of a JSON-lines file; of repeated measurements the last one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise located(f"cannot be read ({getattr(error, 'strerror', None) or error})", file=path) from error
    found: dict[tuple, Record] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = record_key(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = "a record of `equijax bench tensor-products --json`"
            raise located("is not a record", file=f"{path}:{number}", expected=expected) from error
        found.pop(key, None)
        found[key] = record
    return list(found.values())


def record_key(record: Record) -> tuple:
    """What two measurements must share to be compared."""
    sizes = tuple(sorted(record["sizes"].items()))
    return record["product"], record["case"], record["task"], sizes, record["dtype"]


def clock(record: Record) -> float:
    """The median that tables show: CPU time of the process, or wall time where a device does the work."""
    is_cpu = record.get("machine", {}).get("gpu", "no") == "no"
    return record["cpu_median_s" if is_cpu else "wall_median_s"]
