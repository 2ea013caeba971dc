"""Names of the model types that slmc adds to transformers.

In a process that has not imported slmc, transformers refuses the type by its name, and the name is
all of the model that its message shows. So the name says what to import.
"""

from typing import Any

from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMPORT = "slmc.model.loading"
"""The module whose import makes all types known."""


def name_with_import(name: str) -> str:
    """The name of a type as ``config.json`` has it."""
    return f"{name} (first: import {IMPORT})"


def register(config: Any, model: Any, former: str) -> None:
    """Make a type known to transformers, also by its former name.

    Args:
        config: The class of the config.
        model: The class of the model.
        former: Name of the type in models that slmc wrote before names said what to import.
    """
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    CONFIG_MAPPING.register(former, config)
