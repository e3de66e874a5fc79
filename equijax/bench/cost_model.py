"""What a step costs, from the program as it is written: nothing is compiled and no array is made.

The steps of a model are traced for abstract arrays, so a graph may have any size, and the operations are counted:
floating-point operations of matrix products and of everything else, the bytes that have to pass through memory, and
the largest set of arrays that is alive at once. Elementwise operations count as fused into whatever reads them, as XLA
does; only results of matrix products, gathers, sums and loops are arrays in memory. Loops over blocks count as often as
they run, which the compiler's own count (`cost_analysis`) does not do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.extend import core

from equijax.bench.steps import Step
from equijax.precision import DType, precision

LARGE_PRODUCT = 2**17
"""Operations of one matrix product of a batch from which on it runs at the speed of large ones."""
MAPPED_ABOVE = 32 * 2**20
"""Bytes; glibc's default allocator maps larger blocks anew on every call, and the kernel fills every page."""

# Names of JAX's primitives: what costs nothing once it is fused, what is one operation per number, and what is a call.
_FREE_NAMES = """
    broadcast_in_dim reshape squeeze slice iota expand_dims transpose rev convert_element_type copy copy_p name
    stop_gradient bitcast_convert_type split symbolic_zeros zeros_like pad concatenate stack unstack
"""
_ELEMENTWISE_NAMES = """
    add sub mul div neg abs sign max min select_n exp exp2 expm1 log log1p tanh logistic sqrt rsqrt cbrt pow integer_pow
    square sin cos tan asin acos atan atan2 sinh cosh erf erf_inv erfc and or not xor eq ne lt le gt ge floor ceil round
    is_finite clamp rem add_any nextafter shift_left shift_right_logical shift_right_arithmetic population_count
"""
_INLINED_NAMES = """
    jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_lin
"""
_FREE, _ELEMENTWISE, _INLINED = (
    frozenset(names.split()) for names in (_FREE_NAMES, _ELEMENTWISE_NAMES, _INLINED_NAMES)
)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Operations and bytes of one call; see the module."""

    large_products: float = 0.0
    """Floating-point operations of matrix products that are large."""
    small_products: float = 0.0
    """Those of batches of small ones."""
    elementwise: float = 0.0
    """All others: one per number."""
    bytes_moved: float = 0.0
    """Read and written in memory between fused operations."""
    temporary_bytes: float = 0.0
    """The largest sum of arrays alive at once, without arguments and results."""
    operations: int = 0
    """Operations that remain after fusion, each of which costs a call."""

    @property
    def flops(self) -> float:
        return self.large_products + self.small_products + self.elementwise

    @property
    def mapped_bytes(self) -> float:
        """Memory that the kernel has to provide anew on every call under glibc's default allocator."""
        return self.temporary_bytes if self.temporary_bytes > MAPPED_ABOVE else 0.0

    def as_json(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def count_step(step: Step, params: Any, graph: Any, vectors: Any, dtype: DType = "float32") -> Costs:
    """Costs of step(params, graph, vectors); arrays may be abstract, as those of `abstract_graph`."""

    def abstract(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    with precision(dtype):
        traced = jax.make_jaxpr(step)(*jax.tree.map(abstract, (params, graph, vectors)))
    return count_jaxpr(traced.jaxpr)


def count_jaxpr(jaxpr: Any) -> Costs:
    """Costs of a traced program."""
    equations, results = _flat(jaxpr)
    return _Counter(_needed(equations, results), results).counted()


@dataclasses.dataclass(frozen=True)
class _Equation:
    """One operation; arrays are told apart by number. `inner` are the costs of one round of a loop."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[Any, ...]
    out_shapes: tuple[Any, ...]
    params: dict[str, Any]


def _flat(jaxpr: Any) -> tuple[list[_Equation], set[int]]:
    """The operations with all calls written out, and the numbers of the results."""
    equations: list[_Equation] = []
    count = 0

    def fresh() -> int:
        nonlocal count
        count += 1
        return count

    def walk(jaxpr: Any, given: Iterable[int]) -> list[int]:
        numbers: dict[Any, int] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given))

        def number(atom: Any) -> int:
            return 0 if isinstance(atom, core.Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            inputs = [number(atom) for atom in eqn.invars]
            inner = _inner(eqn)
            if eqn.primitive.name in _INLINED and inner is not None:
                body, consts = inner
                outputs = walk(body, [*(fresh() for _ in range(consts)), *inputs[-len(body.invars) :]])
            else:
                outputs = [fresh() for _ in eqn.outvars]
                shapes = tuple(atom.aval for atom in eqn.invars)
                out = tuple(var.aval for var in eqn.outvars)
                equations.append(
                    _Equation(eqn.primitive.name, tuple(inputs), tuple(outputs), shapes, out, dict(eqn.params))
                )
            numbers.update(zip(eqn.outvars, outputs))
        return [number(atom) for atom in jaxpr.outvars]

    arguments = [fresh() for _ in [*jaxpr.constvars, *jaxpr.invars]]
    return equations, set(walk(jaxpr, arguments))


def _inner(eqn: Any) -> tuple[Any, int] | None:
    """(jaxpr, number of its constants) of a call."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(key)
        if found is not None:
            body = found.jaxpr if hasattr(found, "jaxpr") else found
            return body, len(body.constvars)
    return None


def _needed(equations: list[_Equation], results: set[int]) -> list[_Equation]:
    """Those whose outputs are used; the compiler leaves out the others."""
    wanted, kept = set(results), []
    for equation in reversed(equations):
        if wanted & set(equation.outputs):
            wanted |= set(equation.inputs)
            kept.append(equation)
    return kept[::-1]


class _Counter:
    """Goes through flat operations, fuses what is elementwise, and adds up."""

    def __init__(self, equations: list[_Equation], results: set[int]) -> None:
        self.equations, self.results = equations, results
        consumers: dict[int, set[str]] = {}
        for equation in equations:
            for number in equation.inputs:
                consumers.setdefault(number, set()).add(equation.name)
        self._consumers = consumers
        self.sizes: dict[int, int] = {}
        """Bytes of the arrays that are in memory."""
        self._sources: dict[int, frozenset[int]] = {}

    def counted(self) -> Costs:
        large = small = elementwise = moved = 0.0
        operations = 0
        births: list[tuple[tuple[int, ...], float]] = []
        last_use: dict[int, int] = {}
        for equation in self.equations:
            read = frozenset().union(*(self._origin(number) for number in equation.inputs))
            one_round, rounds = self._loop(equation)
            large += rounds * one_round.large_products
            small += rounds * one_round.small_products
            elementwise += rounds * one_round.elementwise
            moved += rounds * one_round.bytes_moved
            operations += rounds * one_round.operations
            flops = _flops(equation)
            if equation.name == "dot_general":
                batches = math.prod(
                    equation.shapes[0].shape[axis] for axis in equation.params["dimension_numbers"][1][0]
                )
                if flops / max(batches, 1) >= LARGE_PRODUCT:
                    large += flops
                else:
                    small += flops
            else:
                elementwise += flops
            if self._is_fused(equation):
                for number in equation.outputs:
                    self._sources[number] = read
                continue
            operations += 1
            step = len(births)
            for number in read:
                last_use[number] = step
            own = 0
            for number, aval in zip(equation.outputs, equation.out_shapes):
                self._sources[number] = frozenset((number,))
                self.sizes[number] = _bytes(aval)
                own += self.sizes[number]
                last_use.setdefault(number, step)
            births.append((equation.outputs, one_round.temporary_bytes))
            moved += own + sum(self.sizes.get(number, 0) for number in read)
        return Costs(large, small, elementwise, moved, self._peak(births, last_use), operations)

    def _origin(self, number: int) -> frozenset[int]:
        """The arrays in memory from which a fused one is computed."""
        return self._sources.get(number, frozenset((number,)) if number else frozenset())

    def _is_fused(self, equation: _Equation) -> bool:
        if equation.name not in _FREE | _ELEMENTWISE:
            return False
        # What a matrix product, a gather or a loop reads has to be in memory; a sum computes what it adds.
        readers = set().union(*(self._consumers.get(number, set()) for number in equation.outputs))
        into_memory = {name for name in readers if name not in _FREE | _ELEMENTWISE and not name.startswith("reduce_")}
        if into_memory or self.results & set(equation.outputs):
            return equation.name in ("reshape", "squeeze", "expand_dims", "convert_element_type", "iota")
        return True

    def _loop(self, equation: _Equation) -> tuple[Costs, int]:
        """Costs of one round of a loop or of the dearest branch, and how often it runs."""
        if equation.name == "scan":
            return count_jaxpr(equation.params["jaxpr"].jaxpr), int(equation.params["length"])
        if equation.name == "while":
            return count_jaxpr(equation.params["body_jaxpr"].jaxpr), 1
        if equation.name == "cond":
            found = [count_jaxpr(branch.jaxpr) for branch in equation.params["branches"]]
            return max(found, key=lambda costs: costs.flops), 1
        return Costs(), 0

    def _peak(self, births: list[tuple[tuple[int, ...], float]], last_use: dict[int, int]) -> float:
        """The largest sum of arrays alive at once; results belong to the caller."""
        deaths: dict[int, list[int]] = {}
        for number, step in last_use.items():
            deaths.setdefault(step, []).append(number)
        alive = peak = 0.0
        for step, (outputs, inside) in enumerate(births):
            own = sum(self.sizes[number] for number in outputs if number not in self.results)
            alive += own
            peak = max(peak, alive + inside)
            for number in deaths.get(step, []):
                if number in self.sizes and number not in self.results:
                    alive -= self.sizes[number]
        return peak


def _flops(equation: _Equation) -> float:
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.shapes[0].shape[axis] for axis in contracted)
        return 2.0 * depth * math.prod(equation.out_shapes[0].shape)
    if equation.name in _ELEMENTWISE:
        return float(math.prod(equation.out_shapes[0].shape))
    if equation.name.startswith(("reduce_", "cum", "arg")) or equation.name == "sum_to_senders":
        return float(math.prod(equation.shapes[0].shape))
    return 0.0


def _bytes(aval: Any) -> int:
    return int(math.prod(aval.shape)) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0
