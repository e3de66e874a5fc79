"""Counted costs against what can be counted by hand and against the compiler, and the fit of a machine."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.bench.cost_model import Costs, count_jaxpr, count_step
from equijax.bench.roofline import PARTS, Rates, fit_machine, work
from equijax.bench.steps import abstract_graph, md_step
from equijax.errors import EquijaxError
from equijax.precision import jit
from tests.toy_model import toy_potential


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def counted(function, *arguments) -> Costs:
    return count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_chain_of_products_by_hand():
    costs = counted(lambda x, a, b: jnp.tanh(x @ a) @ b, array(1000, 64), array(64, 128), array(128, 32))
    assert costs.large_products == 2 * 1000 * 64 * 128 + 2 * 1000 * 128 * 32
    assert costs.elementwise == 1000 * 128
    # x @ a and its tanh; the result belongs to the caller.
    assert costs.temporary_bytes == 2 * 4 * 1000 * 128


def test_small_products_of_a_batch_are_told_apart():
    costs = counted(lambda x, y: x @ y, array(500, 7, 3), array(500, 3, 8))
    assert (costs.large_products, costs.small_products) == (0, 2 * 500 * 7 * 3 * 8)


def test_elementwise_operations_are_fused_and_unused_ones_left_out():
    def function(x):
        jnp.exp(x) @ jnp.ones((64, 64))
        return jnp.sum((x * 2 + 1) ** 2)

    costs = counted(function, array(1000, 64))
    assert costs.large_products == 0
    assert costs.temporary_bytes == 0
    assert costs.elementwise == 4 * 64_000


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x, a):
        return jax.lax.scan(lambda y, _: (y @ a, None), x, None, length=10)[0]

    once = counted(lambda x, a: x @ a, array(100, 64), array(64, 64))
    assert counted(looped, array(100, 64), array(64, 64)).flops == 10 * once.flops


def test_calls_and_recomputation_are_written_out():
    def layer(x, a):
        return jnp.sum(jax.nn.silu(x @ a))

    plain = counted(jax.grad(layer), array(100, 64), array(64, 64))
    again = counted(jax.grad(jax.checkpoint(layer)), array(100, 64), array(64, 64))
    # The product of the forward pass, which the first keeps, is needed for the derivative only.
    assert plain.large_products == again.large_products == 2 * 2 * 100 * 64 * 64


def test_operations_are_those_of_the_compiler():
    def loss(a, x):
        return jnp.sum(jax.nn.silu(x @ a) ** 2)

    arguments = (array(64, 64), array(3000, 64))
    compiled = jit(jax.grad(loss)).lower(*arguments).compile()
    assert counted(jax.grad(loss), *arguments).flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


def test_a_step_is_linear_in_the_atoms():
    potential = toy_potential()
    step = md_step(potential.module)
    few, many = (count_step(step, potential.params, *abstract_graph(n, 12)) for n in (100, 300))
    assert few.flops > 0
    assert many.flops == pytest.approx(3 * few.flops, rel=0.02)
    assert many.bytes_moved == pytest.approx(3 * few.bytes_moved, rel=0.02)


def test_the_fit_finds_efficiencies_and_needs_enough_steps():
    rates = Rates(*(10.0**power for power in (11, 10, 10, 10, 9, 6)))
    rng = np.random.default_rng(0)
    costs = [
        dataclasses.replace(Costs(*10.0 ** rng.uniform(8, 10, 5)), operations=int(10 ** rng.uniform(2, 5)))
        for _ in range(20)
    ]
    costs = [dataclasses.replace(cost, temporary_bytes=cost.temporary_bytes + 4e7) for cost in costs]
    true = {part: 0.1 + 0.1 * number for number, part in enumerate(PARTS)}
    seconds = [sum(work(cost, part) / (getattr(rates, part) * true[part]) for part in PARTS) for cost in costs]
    machine = fit_machine(rates, costs, seconds)
    assert machine.efficiencies == pytest.approx(true, rel=1e-6)
    assert machine.seconds(costs[0]) == pytest.approx(seconds[0])
    with pytest.raises(EquijaxError, match="too few"):
        fit_machine(rates, costs[:3], seconds[:3])
