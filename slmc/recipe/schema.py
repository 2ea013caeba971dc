"""The JSON Schema of recipes, with which editors complete and explain keys."""

from typing import Any

from pydantic.json_schema import models_json_schema

from slmc.artefact import WITH_ARTICLE, Kind
from slmc.config import StageConfig
from slmc.data.config import PrepareConfig
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.gates import Gate
from slmc.recipe.loading import Head
from slmc.recipe.resolved import VERSION
from slmc.recipe.seeds import Repeated
from slmc.recipe.steps import ID, WRITABLE, can_repeat, writable_roles
from slmc.stages import STAGES

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of recipes, generated from the configs of all stages."""
    stages = {name: STAGES[name] for name in sorted(WRITABLE)}
    configs: list[type[StageConfig]] = [
        PrepareConfig,
        EvaluateConfig,
        Gate,
        *(stage.config for stage in stages.values()),
    ]
    references, shared = models_json_schema(
        [(config, "validation") for config in dict.fromkeys(configs)],
        ref_template="#/$defs/{model}",
    )
    defs = shared["$defs"]

    def reference(config: type[StageConfig]) -> dict[str, Any]:
        return references[config, "validation"]

    def body(name: str) -> dict[str, Any]:
        config = defs[reference(stages[name].config)["$ref"].rpartition("/")[2]]
        takes = stages[name].takes
        roles = {role: _role(takes[role]) for role in takes if role in writable_roles(name)}
        lists = {
            key: {
                "type": "array",
                "items": _role(takes[listed[0]]),
                "minItems": 1,
                "maxItems": len(listed),
                "uniqueItems": True,
                "description": f"Several inputs instead of one {listed[0]}.",
            }
            for key, listed in stages[name].lists.items()
        }
        named = {"type": "string", "pattern": f"^{ID.pattern}$", "description": "Name of the step."}
        own = {"id": named} | (
            Repeated.model_json_schema()["properties"] if can_repeat(name) else {}
        )
        full = {**config, "properties": {**config["properties"], **roles, **lists, **own}}
        # A step without required settings may have no body: "- export:".
        return full if config.get("required") else {"anyOf": [full, {"type": "null"}]}

    top = Head.model_json_schema()
    keys = top["properties"]
    keys["version"]["const"] = VERSION
    keys["data"] |= reference(PrepareConfig)
    keys["evaluate"] |= reference(EvaluateConfig)
    keys["gates"]["items"] = reference(Gate)
    keys["steps"]["items"] = {
        "type": "object",
        "properties": {name: body(name) for name in stages},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"$schema": DIALECT, **top, "title": "slmc recipe", "$defs": defs}


def _role(kind: Kind) -> dict[str, Any]:
    return {
        "type": "string",
        "description": f"Id of an earlier step that makes {WITH_ARTICLE[kind]}.",
    }
