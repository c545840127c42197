"""`-m hydra/sweeper=optuna`: intervals are searched, all other values compared."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.prefopt_sweeps.launcher import SweepLauncher


class OptunaSweeper(Sweeper):
    """See conf/hydra/sweeper/optuna.yaml."""

    def __init__(self, trials: int, metric: str, direction: str, seed: int) -> None:
        self.wanted: dict[str, Any] = {"trials": trials, "metric": metric, "direction": direction, "seed": seed}
        self.launcher: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from prefopt.config.search import Wanted, search
        from prefopt.errors import RequestError

        if not isinstance(self.launcher, SweepLauncher):
            raise RequestError("hydra/sweeper=optuna needs prefopt's own launcher, hydra/launcher=sweep")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        search(parser.parse_overrides(arguments), Wanted(**self.wanted), self.launcher)
