"""Annotators: who judges the answers of a policy that trains on its own."""

from prefopt.rewards.base import Annotator, Answer, Calibrating, Judged

__all__ = ["Annotator", "Answer", "Calibrating", "Judged"]
