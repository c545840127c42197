"""What may be set, with types; the YAML files of conf/ explain each key and hold its default."""

from prefopt.settings.commands import (
    AskedEvaluation,
    EvaluateSettings,
    ExportSettings,
    NamedModel,
    NamedReward,
    SampleSettings,
)
from prefopt.settings.data import DataSettings, WorldSettings
from prefopt.settings.guards import GuardSettings, GuardsSettings
from prefopt.settings.models import ALL_LINEAR, AdapterSettings, ModelSettings, QuantSettings, TinySettings
from prefopt.settings.rewards import RewardSettings
from prefopt.settings.training import (
    BUILT,
    EvaluationSettings,
    Settings,
    SourceSettings,
    StrategySettings,
    TrainerSettings,
)

__all__ = [
    "ALL_LINEAR",
    "BUILT",
    "AdapterSettings",
    "AskedEvaluation",
    "DataSettings",
    "EvaluateSettings",
    "EvaluationSettings",
    "ExportSettings",
    "GuardSettings",
    "GuardsSettings",
    "ModelSettings",
    "NamedModel",
    "NamedReward",
    "QuantSettings",
    "RewardSettings",
    "SampleSettings",
    "Settings",
    "SourceSettings",
    "StrategySettings",
    "TinySettings",
    "TrainerSettings",
    "WorldSettings",
]
