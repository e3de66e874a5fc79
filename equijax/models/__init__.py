"""Architectures: one file, one config class and one row of `MODELS` each."""

from typing import Annotated

import pydantic

from equijax.config.base import StrictModel
from equijax.models.contract import ModelConfig as ModelConfig
from equijax.models.contract import ModelStatistics as ModelStatistics
from equijax.models.contract import NodeOutputs as NodeOutputs
from equijax.models.equiformer_v2_config import EquiformerV2Config as EquiformerV2Config
from equijax.models.escn_config import ESCNConfig as ESCNConfig
from equijax.models.hamiltonian_contract import HamiltonianBlocks as HamiltonianBlocks
from equijax.models.hamiltonian_contract import HamiltonianModelConfig as HamiltonianModelConfig
from equijax.models.hamiltonian_contract import HamiltonianStatistics as HamiltonianStatistics
from equijax.models.mace import MACEConfig as MACEConfig
from equijax.models.qhnet import QHNetConfig as QHNetConfig
from equijax.models.sphnet import SPHNetConfig as SPHNetConfig
from equijax.models.tdn import TDNConfig as TDNConfig
from equijax.models.tensornet import TensorNetConfig as TensorNetConfig

MODELS: dict[str, type[StrictModel]] = {
    "mace": MACEConfig,
    "equiformer_v2": EquiformerV2Config,
    "tdn": TDNConfig,
    "escn": ESCNConfig,
    "tensornet": TensorNetConfig,
}

# The type of `model:` in an experiment.
AnyModelConfig = Annotated[
    MACEConfig | EquiformerV2Config | TDNConfig | ESCNConfig | TensorNetConfig,
    pydantic.Field(discriminator="name"),
]

HAMILTONIAN_MODELS: dict[str, type[StrictModel]] = {
    "sphnet": SPHNetConfig,
    "qhnet": QHNetConfig,
}
"""Architectures that predict Hamiltonians, under the contract of `equijax.models.hamiltonian_contract`."""

AnyHamiltonianModelConfig = Annotated[SPHNetConfig | QHNetConfig, pydantic.Field(discriminator="name")]
