"""What a user can write under `training:`, with defaults that are those of the MACE command line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from equijax.config.base import StrictModel
from equijax.graph.batching import BatchBudget

Fraction = Annotated[float, Field(gt=0, lt=1)]
LossKind = Literal["mse", "mae", "huber", "conditional_huber"]

# mace-torch decays these weights and no others (its `interactions.*.linear.weight` and `products.*`).
MACE_DECAY_GROUP = (r"interactions_\d+/linear/.*", r"products_\d+/.*")


class OptimizerConfig(StrictModel):
    """Adam with the weight decay inside the gradient (as torch.optim.Adam), or AdamW with it outside."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: PositiveFloat = 0.01
    """peak learning rate; schedules multiply it"""
    amsgrad: bool = True
    """keep the largest second moment (Reddi et al. 2018), as in mace-torch"""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """applies to the parameters named by decay_parameters only"""
    decay_parameters: tuple[str, ...] = MACE_DECAY_GROUP
    """regular expressions; a parameter decays when one matches its whole path, such as products_0/linear/0e"""


class ConstantSchedule(StrictModel):
    """The learning rate of the optimizer, all the way."""

    name: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0
    """steps over which the rate rises linearly from zero"""


class PlateauSchedule(StrictModel):
    """Lower the rate when the validation loss has stopped falling."""

    name: Literal["plateau"] = "plateau"
    factor: Fraction = 0.8
    patience: NonNegativeInt = 50
    """evaluations without improvement that are tolerated"""
    threshold: NonNegativeFloat = 1e-4
    """an improvement is a loss below best * (1 - threshold)"""
    min_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0


class CosineSchedule(StrictModel):
    """Half a cosine from the learning rate down to a fraction of it."""

    name: Literal["cosine"] = "cosine"
    epochs: PositiveInt | None = None
    """length of the descent; null means max_epochs, which can then not be changed on resume"""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: NonNegativeInt = 0


class LinearSchedule(StrictModel):
    """A straight line from the learning rate down to a fraction of it, as SPHNet and QHNet are trained."""

    name: Literal["linear"] = "linear"
    epochs: PositiveInt | None = None
    """length of the descent; null means max_epochs, which can then not be changed on resume"""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


class ExponentialSchedule(StrictModel):
    """Multiply the rate by `decay` after each epoch."""

    name: Literal["exponential"] = "exponential"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.999
    warmup_steps: NonNegativeInt = 0


Schedule = Annotated[
    ConstantSchedule | PlateauSchedule | CosineSchedule | LinearSchedule | ExponentialSchedule,
    Field(discriminator="name"),
]


class LossTerm(StrictModel):
    """One label's share of the loss: weight x the mean penalty over the labelled values of a batch."""

    kind: LossKind = "mse"
    """conditional_huber shrinks delta for large reference forces, as MACE's `universal` loss does"""
    weight: NonNegativeFloat = 1.0
    delta: PositiveFloat = 0.01
    """where a Huber penalty turns from quadratic to linear, in the unit of the label"""


class EnergyTerm(LossTerm):
    """The energy's share; `per_atom` divides the error by the number of atoms first."""

    per_atom: bool = True


class TargetTerm(StrictModel):
    """The share of a tensor target: weight x the mean over its irreps of the penalty of their errors.

    The error of an irrep is the norm of its 2l+1 components, so that it does not depend on the orientation, divided by
    √(2l+1) and by the root mean square of the training labels: 1 is the error of a model that knows nothing.
    """

    kind: Literal["mse", "mae", "huber"] = "mse"
    weight: NonNegativeFloat = 1.0
    delta: PositiveFloat = 0.1
    """where a Huber penalty turns from quadratic to linear, in the root mean square of the labels"""
    per_irrep: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """relative weights, such as {0e: 1.0, 2e: 3.0}; irreps that are not named count once"""


class HamiltonianTerm(StrictModel):
    """The share of a Hamiltonian: weight x the mean over the elements of all blocks of |e| + e², with e in Hartree.

    Blocks are those of every atom and of every pair of atoms once; mae and mse are one of the two alone.
    """

    kind: Literal["mae_mse", "mae", "mse"] = "mae_mse"
    weight: NonNegativeFloat = 1.0


class WavefunctionTerm(StrictModel):
    """The share of what an error E of a Hamiltonian does to the orbitals C of the reference (WALoss, arXiv 2502.19227).

    For a late stage of the training: from the start it slows the elements of the matrix down.
    """

    kind: Literal["orbitals", "projection", "both"] = "orbitals"
    """orbitals: mean squares of the diagonal and of the rest of C^T E C in kcal/mol; projection: mean square of 100 E C
    in Hartree"""
    weight: NonNegativeFloat = 1.0
    frontier_weight: PositiveFloat = 1.0
    """how much more an orbital up to the LUMO counts than one above"""


AnyTerm = LossTerm | TargetTerm | HamiltonianTerm | WavefunctionTerm

_OWN_TERMS = ("energy", "forces", "stress", "hamiltonian", "wavefunction")


class LossConfig(StrictModel):
    """Weights in units of 1/eV², Å²/eV², Å⁶/eV² for mse. A null term is left out. Energy and forces that are not
    mentioned are left out where the data have tensor targets and no such labels."""

    energy: EnergyTerm | None = EnergyTerm(weight=1.0)
    forces: LossTerm | None = LossTerm(weight=100.0)
    stress: LossTerm | None = None
    targets: dict[str, TargetTerm | None] = Field(default_factory=dict)
    """tensor targets by name; one that is not mentioned has the default term"""
    hamiltonian: HamiltonianTerm | None = None
    """of models of Hamiltonians, which have no other terms; not mentioned, it has its defaults"""
    wavefunction: WavefunctionTerm | None = None
    """of models of Hamiltonians; needs overlap matrices in the data"""

    @model_validator(mode="after")
    def _is_sound(self) -> LossConfig:
        for name in ("energy", "stress"):
            term = getattr(self, name)
            if term is not None and term.kind == "conditional_huber":
                raise ValueError(f"{name}: conditional_huber is for forces; use huber")
        return self

    @property
    def terms(self) -> dict[str, AnyTerm]:
        """The terms that there are, by the name of their label."""
        named: dict[str, AnyTerm | None] = {name: getattr(self, name) for name in _OWN_TERMS}
        named |= self.targets
        return {name: term for name, term in named.items() if term is not None}

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the terms with a positive weight."""
        return tuple(name for name, term in self.terms.items() if term.weight > 0)

    @classmethod
    def of(cls, terms: Mapping[str, AnyTerm]) -> LossConfig:
        """The loss with exactly these terms."""
        own: dict[str, Any] = {name: terms.get(name) for name in _OWN_TERMS}
        targets: dict[str, Any] = {name: term for name, term in terms.items() if name not in own}
        return cls(**own, targets=targets)

    def for_labels(self, targets: Iterable[str], present: Collection[str]) -> LossConfig:
        """The loss with a term for every one of `targets`. With targets, the default terms of energy and forces are
        left out when they are not among the labels that are `present`."""
        names = tuple(targets)
        if not names:
            return self
        terms = self.terms | {name: TargetTerm() for name in names if name not in self.targets}
        unasked = {"energy", "forces"} - self.model_fields_set - set(present)
        return LossConfig.of({name: term for name, term in terms.items() if name not in unasked})

    def for_hamiltonians(self) -> LossConfig:
        """The loss of a model of Hamiltonians. Raises ValueError for terms that such a model has nothing for."""
        fields = type(self).model_fields
        # The defaults of the other models may be written out, as they are in the config.yaml of a run.
        asked = [n for n in ("energy", "forces", "stress") if n in self.terms and self.terms[n] != fields[n].default]
        for name in [*asked, *(f"targets.{name}" for name in self.targets)]:
            raise ValueError(f"{name}: a model of Hamiltonians does not predict it; remove the term")
        terms: dict[str, AnyTerm] = {"hamiltonian": HamiltonianTerm()}
        terms |= {name: term for name, term in self.terms.items() if name in ("hamiltonian", "wavefunction")}
        if not any(term.weight > 0 for term in terms.values()):
            raise ValueError("all weights are zero")
        return LossConfig.of(terms)


class LearningRateGroup(StrictModel):
    """Parameters whose learning rate is the run's times a factor."""

    parameters: Annotated[tuple[str, ...], Field(min_length=1)]
    """regular expressions; the group holds the parameters whose whole path one of them matches"""
    factor: PositiveFloat
    """multiplies the learning rate; to keep parameters as they are, use frozen_parameters"""


class StageConfig(StrictModel):
    """A later part of the training with its own loss and learning rate (MACE's stage two)."""

    from_epoch: PositiveInt
    """first epoch of the stage, counted from zero"""
    learning_rate: PositiveFloat | None = None
    """constant rate of the stage; null keeps the schedule running"""
    loss: LossConfig | None = None
    """null keeps the loss of the stage before"""


class EarlyStopping(StrictModel):
    """End a stage when the validation loss has not improved for `patience` evaluations."""

    patience: PositiveInt = 100


class SkipNonFinite(StrictModel):
    """Leave out batches with a NaN or infinite loss or gradient, up to a number of them."""

    skip: PositiveInt
    """batches that may be left out in the whole run"""


class PathGateSchedule(StrictModel):
    """Phases of SPHNet's gate on tensor products: paths drawn at random for every step, then those of the largest
    weights, then a model that has those alone, and is faster."""

    random_epochs: NonNegativeInt = 2
    adaptive_epochs: NonNegativeInt = 1


class TrainingConfig(StrictModel):
    """How to fit the model."""

    max_epochs: PositiveInt = 100
    committee: Annotated[int, Field(ge=1, le=64)] = 1
    """models to train at once, which differ in their initial parameters alone (those of seed, seed + 1, ...): their
    mean is the prediction, their spread its uncertainty"""
    devices: Literal["all"] | PositiveInt = 1
    """devices that share every batch, of all processes together; `all` takes those that there are. The results are the
    same for any number"""
    batch: BatchBudget = BatchBudget(max_structures=10)
    valid_batch: BatchBudget | None = None
    """budget for validation; null means the training budget"""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule = PlateauSchedule()
    frozen_parameters: tuple[str, ...] = ()
    """regular expressions; parameters whose whole path one of them matches keep their value"""
    learning_rate_groups: tuple[LearningRateGroup, ...] = ()
    """parameters with a learning rate of their own, such as [{parameters: [readouts_.*], factor: 10.0}]"""
    loss: LossConfig = LossConfig()
    stages: tuple[StageConfig, ...] = ()
    """later stages in ascending from_epoch"""
    path_gate: PathGateSchedule | None = None
    """phases of a model with a gate on the paths of its products; null: the default ones"""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.99
    """moving average of the parameters that is evaluated and saved; null turns it off"""
    clip_grad_norm: PositiveFloat | None = 10.0
    """largest global norm of the gradient; null turns clipping off"""
    early_stopping: EarlyStopping | None = None
    evaluate_every: PositiveInt = 1
    """epochs between validations; the last epoch of a stage is always validated"""
    on_nan: Literal["stop"] | SkipNonFinite = "stop"
    """`stop`, or {skip: N} to leave out up to N batches whose loss or gradient is not finite"""
    max_compilations: PositiveInt = 4
    """padded batch shapes to aim for; fewer shapes mean more padding"""
    checkpoint_every_seconds: PositiveFloat | None = 120.0
    checkpoint_every_steps: PositiveInt | None = None
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """checkpoints on disk; older ones are removed"""
    log_every_steps: PositiveInt | None = None
    """also write a training record every so many steps; null writes one per epoch"""
    tensorboard: bool = False
    """also write TensorBoard events (needs the extra `tensorboard`)"""

    @model_validator(mode="after")
    def _stages_ascend(self) -> TrainingConfig:
        starts = [stage.from_epoch for stage in self.stages]
        if starts != sorted(set(starts)):
            raise ValueError(f"stages: from_epoch must ascend, got {starts}")
        if starts and starts[-1] >= self.max_epochs:
            raise ValueError(f"stages: from_epoch {starts[-1]} is never reached, max_epochs is {self.max_epochs}")
        return self

    def for_hamiltonians(self) -> TrainingConfig:
        """This with the losses of all stages as `LossConfig.for_hamiltonians` makes them. Raises ValueError for a
        committee."""
        if self.committee > 1:
            raise ValueError(f"committee: got {self.committee}; models of Hamiltonians have no committees, expected 1")
        stages = tuple(
            s if s.loss is None else s.model_copy(update={"loss": s.loss.for_hamiltonians()}) for s in self.stages
        )
        return self.model_copy(update={"loss": self.loss.for_hamiltonians(), "stages": stages})

    def for_labels(self, targets: Iterable[str], present: Collection[str]) -> TrainingConfig:
        """This with the losses of all stages as `LossConfig.for_labels` makes them."""
        names = tuple(targets)
        stages = tuple(
            s if s.loss is None else s.model_copy(update={"loss": s.loss.for_labels(names, present)})
            for s in self.stages
        )
        return self.model_copy(update={"loss": self.loss.for_labels(names, present), "stages": stages})

    def stage_loss(self, stage: int) -> LossConfig:
        """The loss of stage 0 (before any of `stages`), 1, ..."""
        losses = [self.loss, *(entry.loss for entry in self.stages[:stage])]
        return [loss for loss in losses if loss is not None][-1]

    def stage_learning_rate(self, stage: int) -> float | None:
        """The constant rate of a stage, or None where the schedule runs."""
        rates = [entry.learning_rate for entry in self.stages[:stage] if entry.learning_rate is not None]
        return rates[-1] if rates else None

    @property
    def allowed_skips(self) -> int:
        """How many non-finite batches may be left out."""
        return 0 if self.on_nan == "stop" else self.on_nan.skip
