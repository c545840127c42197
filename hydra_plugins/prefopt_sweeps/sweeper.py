"""Hydra's own sweeper, but one that writes nothing before every job is known to be sound."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser


class PointSweeper(BasicSweeper):
    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        assert self.hydra_context is not None
        from prefopt.config.sweeps import keep_worst
        from prefopt.errors import RequestError

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        searched = next((o for o in overrides if o.is_interval_sweep()), None)
        if searched is not None:
            raise RequestError(f"{searched.input_line}: an interval is searched, by hydra/sweeper=optuna")
        found, started = [], 0
        for batch in self.split_arguments(overrides, self.max_batch_size):
            returned = self.launcher.launch(batch, initial_job_idx=started)
            for one in returned:
                code = one.return_value  # raises what a job raised, where a launcher of Hydra's keeps it
                if isinstance(code, int):
                    keep_worst(code)
            started += len(batch)
            found.append(returned)
        return found
