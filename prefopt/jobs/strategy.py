"""Lightning's strategies, as they are asked for."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

from prefopt.progress import say
from prefopt.settings import StrategySettings


def lightning_strategy(asked: StrategySettings, devices: int) -> str | Strategy:
    if asked.name == "deepspeed":
        say("strategy=deepspeed: no checkpoints; a run that is interrupted begins again")
        return ZeRO(stage=asked.stage, offload_optimizer=asked.offload)
    if asked.name == "fsdp":
        return ModelParallelStrategy(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return "auto" if asked.name == "single" else asked.name


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed, of which only the update is trusted: its checkpoints are folders of pickles, so none is written, and a
    run that is interrupted begins again."""

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning has divided by the accumulation, and DeepSpeed would divide by it again.
        super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)
