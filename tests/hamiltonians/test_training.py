"""Training of models of Hamiltonians: phases, resume across their boundaries, files that a run leaves."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import equijax
from equijax.errors import EquijaxError
from equijax.precision import precision
from equijax.train.hamiltonian_objective import kept_paths
from equijax.train.interruption import TrainingInterrupted
from equijax.train.trainer import Trainer
from tests.hamiltonians.toy import KEPT, PATHS, waters
from tests.hamiltonians.toy_runs import run, task
from tests.train.toy_training import digest

OPTIONS = {"stages": [{"from_epoch": 3, "loss": {"wavefunction": {"weight": 1e-4}}}]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    import equijax.models
    from tests.hamiltonians.toy import ToyGateConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(equijax.models.HAMILTONIAN_MODELS, "toy_hamiltonian", ToyGateConfig)
        yield run(tmp_path_factory.mktemp("hamiltonians") / "run", OPTIONS, report=True)


def records(directory, kind):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_phases_follow_the_schedule_and_the_last_one_has_the_kept_paths_alone(finished):
    events = [event for event in records(finished, "event") if event["event"] == "phase"]
    assert [(event["phase"], event["epoch"]) for event in events] == [("random", 0), ("adaptive", 1), ("fixed", 2)]
    model = equijax.load(finished / "model.safetensors")
    assert model.metadata["training"]["phase"] == "fixed"
    assert len(model.kept_paths[0]) == KEPT
    assert model.params["weight"].shape[0] == KEPT < PATHS
    compilations = next(event for event in records(finished, "event") if event["event"] == "finished")["compilations"]
    # Steps: random, adaptive, fixed, fixed with the loss of wavefunctions. Evaluations: by form and loss.
    assert compilations["step"] == 4


def test_a_run_leaves_errors_and_a_report_with_pictures(finished):
    losses = [record["loss"] for record in records(finished, "valid")]
    assert losses[3] < losses[0]  # the loss of the last stage has another term
    assert records(finished, "valid")[-1]["hamiltonian_mae"] > 0
    metrics = json.loads((finished / "test_metrics.json").read_text())
    assert set(metrics) == {"valid", "hot"}
    assert set(metrics["hot"]["hamiltonian"]) == {"mae", "mae_diagonal", "mae_off_diagonal", "by_shell"}
    assert 0 < metrics["hot"]["orbitals"]["occupied_overlap"] <= 1 + 1e-12
    page = (finished / "report.html").read_text()
    assert "By shell block" in page
    assert "p-d, two atoms" in page
    assert page.count('alt="True and predicted Hamiltonian') == 2
    summary = json.loads((finished / "data_summary.json").read_text())
    assert summary["functional"] == "b3lyp5"
    assert summary["sets"]["train"]["labels"]["hamiltonian"] == 6


@pytest.mark.parametrize("stop_at", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 8))])
def test_a_resumed_run_is_the_same_bit_for_bit_across_phases(finished, tmp_path, monkeypatch, stop_at):
    """Three steps make an epoch: stops inside the random, adaptive and fixed phases, and where they change."""
    directory = tmp_path / "run"
    save_if_due = Trainer._save_if_due

    def stop(self):
        save_if_due(self)
        if self.progress.step == stop_at:
            self._save()
            raise TrainingInterrupted(130)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_if_due", stop)
        with pytest.raises(TrainingInterrupted):
            run(directory, OPTIONS)
    run(directory, OPTIONS)
    assert digest(directory) == digest(finished)


def test_the_fixed_phase_starts_where_the_adaptive_one_was():
    """The moments of the optimiser and the average lose the same paths as the parameters; frozen ones, too."""
    from equijax.train.optimizer import build_optimizer
    from equijax.train.parameter_groups import learning_rate_factors, trained_and_frozen
    from equijax.train.phases import into_phase
    from equijax.train.progress import Progress
    from equijax.train.setup import initial_parameters
    from equijax.train.step import initial_state

    dense = task({"frozen_parameters": ["gate"]})
    with precision("float32"):
        params = initial_parameters(dense)
        factors = learning_rate_factors(dense.training, params)
        trained, frozen = trained_and_frozen(params, factors)
        optimizer = build_optimizer(dense.training.optimizer, trained, factors)
        state = initial_state(trained, optimizer, 0.99, frozen)
        choice = dense.objective.phases.choice(dense, "fixed", params)
        sparse = dense.objective.phases.task(dense, "fixed", choice)
        fixed, best = into_phase(dense, state, params, Progress(seed=0, phase="fixed", choice=choice))
        batch = dense.train.assemble([0, 1])
        before = dense.objective.predict(dense.module, params, batch)
        for tree in (fixed.all_params, fixed.evaluated, best):
            after = sparse.objective.predict(sparse.module, tree, batch)
            np.testing.assert_allclose(after.pairs, before.pairs, atol=1e-6)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(fixed.opt_state) if leaf.ndim} == {KEPT}
        assert kept_paths(choice) == ((2, 3),)


def test_random_paths_differ_from_step_to_step_and_validation_has_none():
    dense = task()
    random = dense.objective.phases.task(dense, "random", None)
    with precision("float32"):
        from equijax.train.setup import initial_parameters

        params = initial_parameters(random)
        batch = random.train.assemble([0, 1])
        step = [np.asarray(random.objective.predict(random.module, params, batch, n).pairs) for n in range(6)]
        evaluated = random.objective.predict(random.module, params, batch)
        adaptive = dense.objective.predict(dense.module, params, batch, 0)
    assert len({block.tobytes() for block in step}) > 1
    np.testing.assert_array_equal(evaluated.pairs, adaptive.pairs)


def test_options_of_other_models_are_refused():
    from equijax.train.hamiltonian_setup import HamiltonianDataset, hamiltonian_task
    from tests.hamiltonians.toy import ToyGateConfig
    from tests.hamiltonians.toy_runs import ToyExperiment, TrainingConfig

    with pytest.raises(EquijaxError, match=r"training.loss: forces: a model of Hamiltonians does not predict it"):
        task({"loss": {"forces": {"weight": 1.0}}})
    with pytest.raises(EquijaxError, match=r"training.path_gate: this toy_hamiltonian has no gate"):
        task(model=ToyGateConfig(path_sparsity=0.0))
    frames = waters(3)
    bare = [type(f)(f.atomic_numbers, f.positions, labels={k: f.labels[k] for k in list(f.labels)[:2]}) for f in frames]
    dataset = HamiltonianDataset(bare, bare, {}, "def2-svp", "b3lyp5", {})
    experiment = ToyExperiment(TrainingConfig(loss={"wavefunction": {}}))
    with pytest.raises(EquijaxError, match=r"overlap: missing, and training.loss.wavefunction needs"):
        hamiltonian_task(experiment, dataset)
