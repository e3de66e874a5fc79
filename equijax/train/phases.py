"""A model that changes its form while it trains: SPHNet computes fewer paths once it has chosen them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import jax

if TYPE_CHECKING:
    from equijax.train.progress import Progress
    from equijax.train.setup import TrainingTask
    from equijax.train.step import TrainState

Params = Any


class Phases(Protocol):
    """The forms of a model, one after another. A phase is known by its name and its choice, which checkpoints keep."""

    def name(self, epoch: int) -> str:
        """The phase that an epoch belongs to."""

    def choice(self, task: TrainingTask, name: str, params: Params) -> Any:
        """What a phase that begins decides from the parameters, as JSON; None when it has nothing to decide."""

    def task(self, task: TrainingTask, name: str, choice: Any) -> TrainingTask:
        """The task with the module and objective of a phase."""

    def parameters(self, task: TrainingTask, tree: Params, choice: Any) -> Params:
        """The part of a tree shaped as the parameters before the choice that belongs to the model after it."""


def into_phase(task: TrainingTask, state: TrainState, best: Params, progress: Progress) -> tuple[TrainState, Params]:
    """A state and the best parameters of the phases before a choice, for the model after the choice of `progress`.

    The moments of the optimiser and the moving average go with their parameters.
    """
    phases = task.objective.phases
    if phases is None or progress.choice is None:
        return state, best
    shapes = [jax.tree.structure(tree) for tree in (state.params, state.frozen) if tree is not None]

    def like_parameters(node: Any) -> bool:
        return jax.tree.structure(node) in shapes

    def converted(node: Any) -> Any:
        if not like_parameters(node):
            return node
        held = jax.tree.map(lambda leaf: _ABSENT if leaf is None else leaf, node, is_leaf=lambda leaf: leaf is None)
        held = phases.parameters(task, held, progress.choice)
        return jax.tree.map(lambda leaf: None if leaf is _ABSENT else leaf, held)

    return jax.tree.map(converted, state, is_leaf=like_parameters), phases.parameters(task, best, progress.choice)


class _Absent:
    """Stands for a parameter that is trained, among the frozen ones, or the other way round."""

    def take(self, *_: Any, **__: Any) -> _Absent:
        return self


_ABSENT = _Absent()
