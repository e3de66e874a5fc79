"""Configuration files: strict records, YAML 1.2 with line numbers, messages that name the key and the fix."""

from equijax.config.base import StrictModel as StrictModel
from equijax.config.yaml import load_yaml as load_yaml
from equijax.config.yaml import validate as validate
