"""The microbenchmark of tensor products on tiny sizes: what records hold, what is refused; never how long it took."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from equijax.bench.product_cases import EdgeCase, NodeCase, PowerCase
from equijax.bench.product_plots import write_plots
from equijax.bench.product_tables import by_case, comparison_table, refusals, seconds
from equijax.bench.rotations import random_rotation, rotate, wigner_matrices
from equijax.bench.tensor_products import (
    TASKS,
    Sizes,
    all_products,
    append_records,
    parse_product,
    read_records,
    run_case,
)
from equijax.errors import EquijaxError
from equijax.ops import TENSOR_PRODUCTS
from equijax.ops.tensor_product import NodeProduct
from equijax.precision import precision

EDGES = EdgeCase("mace", lmax=0, lmax_edge=1, channels=2, nodes=3, neighbors=2)


class Refusing(NodeProduct):
    """A product that does not like any sizes."""

    def bind_nodes(self, lmax_1, lmax_2, lmax_out):
        raise EquijaxError(f"no rule for {lmax_1}")


class Broken(NodeProduct):
    """A product with a mistake."""

    def bind_nodes(self, lmax_1, lmax_2, lmax_out):
        raise TypeError("wrong")


@pytest.fixture(scope="module")
def edge_records():
    products = dict([parse_product("clebsch_gordan")])
    return run_case(EDGES, products, seconds=0.001)


def fake(product, lmax, task, time, expressivity=5, case="mimo"):
    """A record as of a run."""
    return {
        "product": product, "kind": "equijax", "case": case, "task": task, "dtype": "float32", "refused": None,
        "sizes": {"lmax": lmax, "lmax_out": 2 * lmax, "channels": 4, "batch": 10},
        "cpu_median_s": time, "wall_median_s": time, "cpu_min_s": time, "wall_min_s": time, "path_count": 5,
        "expressivity": expressivity, "equivariance_error": 1e-7, "xla_flops": 1e6, "temp_bytes": 100,
        "compile_s": 0.1, "machine": {"gpu": "no"},
    }  # fmt: skip


def fakes(factor=1.0):
    products = ("clebsch_gordan", "gaunt_grid")
    return [
        fake(p, l, task, factor * l * 1e-4 * (1 + i), 4 * l + i)
        for i, p in enumerate(products)
        for l in (1, 2)
        for task in TASKS
    ]


def test_a_case_gives_all_tasks_of_products_and_peers(edge_records):
    found = {(record["product"], record["task"]) for record in edge_records}
    assert {(name, task) for name in ("clebsch_gordan", "e3nn_jax", "e3nn_jax uvu") for task in TASKS} <= found
    assert not [record["refused"] for record in edge_records if record["refused"]]
    for record in edge_records:
        assert record["sizes"]["edges"] == 6
        assert 0 < record["cpu_min_s"] <= record["cpu_median_s"]
        assert 0 < record["wall_min_s"] <= record["wall_median_s"]
        assert record["xla_flops"] > 0
        assert record["path_count"] == 2
    own = [record for record in edge_records if record["kind"] == "equijax"]
    assert {record["expressivity"] for record in own} == {2}
    assert all(record["equivariance_error"] < 1e-5 for record in own)


def test_peers_compute_the_same_messages():
    from equijax.bench.product_peers import peers_of

    with precision("float64"):
        own = EDGES.entry(all_products()["clebsch_gordan"], "float64", measures=False)
        # Couplings come in another order in each library, which unit weights hide.
        ours = own.function(own.inputs, np.ones_like(own.weights), own.fixed)
        expected = sum(float((np.asarray(array) ** 2).sum()) for array in ours)
        peers = {name: build("float64") for name, build in peers_of(EDGES)}
        for name in ("e3nn_jax", "e3nn_jax uvu"):
            peer = peers[name]
            result = np.asarray(peer.function(peer.inputs, np.ones_like(peer.weights), None))
            assert result.size == sum(array.size for array in ours)
            np.testing.assert_allclose((result**2).sum(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("L", "dense", "grid"),
    [
        pytest.param(1, 0.00166, 0.0084, marks=pytest.mark.slow),
        pytest.param(2, 0.0169, 0.0515, marks=pytest.mark.slow),
        pytest.param(4, 0.330, 0.445, marks=pytest.mark.slow),
    ],
)
def test_flops_of_the_price_of_freedom(L, dense, grid):
    """XLA's count of the benchmarks of Xie et al. (arXiv:2506.13523) in GFLOP per 10,000 products, with e3nn-jax."""
    import e3nn_jax as e3nn

    inputs, outputs = e3nn.s2_irreps(L), e3nn.s2_irreps(2 * L)

    def clebsch_gordan(x, y):
        return e3nn.tensor_product(e3nn.IrrepsArray(inputs, x), e3nn.IrrepsArray(inputs, y), filter_ir_out=outputs)

    def gaunt_grid(x, y):
        f, g = (
            e3nn.to_s2grid(
                e3nn.IrrepsArray(inputs, z), 2 * L + 1, 2 * (2 * L + 1), quadrature="gausslegendre", fft=False
            )
            for z in (x, y)
        )
        return e3nn.from_s2grid(f.replace_values(f.grid_values * g.grid_values), outputs, fft=False)

    shape = jax.ShapeDtypeStruct((10_000, (L + 1) ** 2), np.float32)
    for function, published in ((clebsch_gordan, dense), (gaunt_grid, grid)):
        compiled = jax.jit(lambda x, y, function=function: function(x, y).array).lower(shape, shape).compile()
        flops = compiled.cost_analysis()["flops"]
        # The tables have two to three digits.
        assert flops / 1e9 == pytest.approx(published, rel=0.005)


def test_all_products_answer_or_say_why_not():
    case = NodeCase("siso", lmax=2, channels=1, batch=2)
    for name, options in all_products().items():
        if not isinstance(options, NodeProduct):
            continue
        with precision("float32"):
            try:
                entry = case.entry(options, "float32", measures=False)
            except EquijaxError:
                continue
            result = entry.function(entry.inputs, entry.weights, entry.fixed)
        assert result.shape == (2, 5, 1), name
        assert entry.equivariance_error < 1e-4, name


def test_refusals_and_failures_are_records():
    case = NodeCase("mimo", lmax=1, channels=1, batch=2)
    records = run_case(case, {"refusing": Refusing(), "broken": Broken()}, seconds=0.001, peers=False)
    assert refusals(records) == ["refusing: no rule for 1", "broken: TypeError: wrong"]


def test_natural_parity_has_no_odd_square():
    case = NodeCase("siso", lmax=1, channels=1, batch=2)
    _, options = parse_product("clebsch_gordan")
    with precision("float32"), pytest.raises(EquijaxError, match="respects inversion"):
        case.entry(options, "float32", measures=False)
    _, options = parse_product("clebsch_gordan:parity=any")
    with precision("float32"):
        assert case.entry(options, "float32", measures=True).expressivity == 1


def test_a_single_degree_agrees_with_the_whole_product():
    product = NodeCase("simo", lmax=2, channels=2, batch=3).bind(all_products()["clebsch_gordan"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 5, 2))
    weights = np.ones((product.path_count, 2))
    with precision("float64"):
        rows = np.asarray(product.apply_rows(x, y, weights))
    assert rows.shape == (3, 25, 2)
    # The scalar is the scalar product, scaled by the root of the dimension.
    np.testing.assert_allclose(rows[:, 0], (x * y).sum(1) / np.sqrt(5), atol=1e-12)
    assert np.abs(rows[:, 1:4]).max() == 0.0


def test_blocks_change_nothing():
    whole = EdgeCase("mace", 1, 1, 2, nodes=6, neighbors=2)
    blocked = EdgeCase("mace", 1, 1, 2, nodes=6, neighbors=2, block=2)
    options = all_products()["clebsch_gordan"]
    with precision("float64"):
        for a, b in zip(*(e.function(e.inputs, e.weights, None) for e in (
            case.entry(options, "float64", measures=False) for case in (whole, blocked)
        ))):  # fmt: skip
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_contractions_have_weights_per_species():
    case = PowerCase(lmax=1, lmax_out=0, correlation=2, channels=2, nodes=3)
    with precision("float32"):
        entry = case.entry(all_products()["clebsch_gordan"], "float32", measures=False)
        assert entry.function(entry.inputs, entry.weights, entry.fixed).shape == (3, 1, 2)
    assert entry.equivariance_error < 1e-5


def test_wigner_matrices_are_a_representation():
    first, second = random_rotation(1), random_rotation(2)
    a, b, product = (wigner_matrices(r, 3) for r in (first, second, first @ second))
    np.testing.assert_allclose(a[1], first, atol=1e-12)
    for l in range(4):
        np.testing.assert_allclose(a[l] @ a[l].T, np.eye(2 * l + 1), atol=1e-12)
        np.testing.assert_allclose(a[l] @ b[l], product[l], atol=1e-12)
    np.testing.assert_allclose(rotate(np.eye(4), a, 0)[1:, 1:], first, atol=1e-12)


def test_families_have_their_own_degrees():
    names = [(case.name, case.sizes["lmax"]) for case in Sizes(edges=(100,)).cases()]
    assert names[:5] == [("siso", 1), ("siso", 2), ("siso", 3), ("siso", 4), ("simo", 1)]
    assert [name for name in names if name[0].startswith("edges")] == [
        ("edges_mace", 1), ("edges_nequip", 1), ("edges_mace", 2), ("edges_nequip", 2)
    ]  # fmt: skip
    assert names[-2:] == [("powers", 3), ("powers", 3)]
    assert [case.sizes["lmax"] for case in Sizes(case="simo", lmax=(5,)).cases()] == [5]


def test_names_and_options_of_products():
    assert parse_product("clebsch_gordan:parity=any")[1].parity == "any"
    assert set(all_products()) == set(TENSOR_PRODUCTS)
    with pytest.raises(EquijaxError, match=r"there is no tensor product 'gaunt'; .*gaunt_grid"):
        parse_product("gaunt")
    with pytest.raises(EquijaxError, match="expected field=value"):
        parse_product("clebsch_gordan:parity")
    with pytest.raises(EquijaxError, match="parity"):
        parse_product("clebsch_gordan:parity=odd")


def test_files_and_comparison(tmp_path):
    path = tmp_path / "a" / "old.jsonl"
    append_records(path, fakes())
    append_records(path, fakes(2.0))
    earlier = read_records(path)
    assert len(earlier) == len(fakes())
    table, matched = comparison_table(fakes(1.0), earlier)
    assert matched == len(earlier)
    assert set(table.columns[2]._cells) == {"0.50"}
    other = [record | {"dtype": "float64"} for record in fakes()]
    assert comparison_table(other, earlier)[1] == 0
    path.write_text(json.dumps({"product": "x"}) + "\n")
    with pytest.raises(EquijaxError, match="is not a record"):
        read_records(path)
    with pytest.raises(EquijaxError, match="cannot be read"):
        read_records(tmp_path / "nothing.jsonl")


def test_plots_are_written(tmp_path):
    paths = write_plots(tmp_path, fakes())
    assert {path.name.rsplit("_float32_")[1] for path in paths} == {
        "time.png", "per_degree_of_freedom.png", "pareto.png"
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(by_case(fakes())) == 2


def test_units():
    assert [seconds(value) for value in (2.5, 0.0123, 3e-7)] == ["2.50 s", "12.3 ms", "0.30 µs"]
