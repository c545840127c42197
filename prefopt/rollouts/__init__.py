"""The live policy speaks: prompts in, annotated and credited answers out, as a source of training batches."""

from prefopt.rollouts.plan import RolloutPlan
from prefopt.rollouts.source import Rollouts

__all__ = ["RolloutPlan", "Rollouts"]
