"""Architectures: one file, one config class and one row of `MODELS` each."""

from equijax.models.contract import ModelConfig as ModelConfig
from equijax.models.contract import ModelStatistics as ModelStatistics
from equijax.models.contract import NodeOutputs as NodeOutputs
from equijax.models.mace import MACEConfig as MACEConfig

MODELS = {
    "mace": MACEConfig,
}

# The type of `model:` in an experiment.
# With more rows: Annotated[MACEConfig | ..., pydantic.Field(discriminator="name")].
AnyModelConfig = MACEConfig
