"""Hydra at the edge: what was asked becomes a `Request`, or two lines that say what is wrong with it."""

from prefopt.config.answer import command
from prefopt.config.guard import config_dir
from prefopt.config.request import Request, build_request, compose_request, trained_objective, trained_settings
from prefopt.config.typed import read_keys, read_settings

__all__ = [
    "Request",
    "build_request",
    "command",
    "compose_request",
    "config_dir",
    "read_keys",
    "read_settings",
    "trained_objective",
    "trained_settings",
]
