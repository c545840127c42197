"""DPO with LoRA, and with LoRA on 4 bits, in bf16-mixed on a GPU and in float32 on the CPU: do their losses agree?

    PREFOPT_TEST_DATA=… python benchmarks/devices.py [--device gpu] [--steps 30]

Both train through prefopt's own command, from the same weights on the same rows of HH-RLHF, a Llama of 15M parameters.
bfloat16 has 8 bits of mantissa, so a loss near log 2 may differ by about 2^-8; what is printed is the largest
difference of any step's loss, beside how far the loss itself moved. Also the median step and the peak of each run's
memory: of the device's tensors on a GPU, of the whole process on a CPU. The results go to
benchmarks/results/devices.json. --device cpu compares the two precisions on the CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems.inputs import make
from benchmarks.systems.launch import launch, preference_data, save, where

MODELS = ("hf_lora", "hf_4bit")
TOLERANCE = 2**-6  # nats, of one step's loss: four roundings of a number below one


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", default="devices", help="name of the results")
    asked = parser.parse_args()
    name = device_name(asked.device)
    if not name:
        print("benchmarks/devices.py needs a CUDA device; --device cpu compares precisions on the CPU", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"tolerance": TOLERANCE, "device": name}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, preference_data(), "small", 8 * asked.steps, seed=0)
        for model in MODELS:
            found[model] = compared(folder, model, asked)
            say(model, found[model])
    save(asked.out, found | where(asked.threads))
    return int(any(found[model]["largest difference"] > TOLERANCE for model in MODELS))


def compared(folder: Path, model: str, asked: argparse.Namespace) -> dict[str, Any]:
    how = {"cpu, 32": ("cpu", "32"), f"{asked.device}, bf16-mixed": (asked.device, "bf16-mixed")}
    runs = {}
    for name, (device, precision) in how.items():
        named = [f"model={model}", f"trainer.accelerator={device}", f"trainer.precision={precision}"]
        told = launch("ours", folder, ["dpo", *named, "optimizer.lr=1e-3"], asked.steps, asked.threads)
        seconds = statistics.median(told["seconds"][1:])
        runs[name] = {"loss": told["loss"], "seconds_per_step": seconds, "peak_bytes": told["peak"]}
    curves = [run["loss"] for run in runs.values()]
    worst = max(abs(a - b) for a, b in zip(*curves, strict=True))
    return {"runs": runs, "largest difference": worst, "range of the loss": max(curves[0]) - min(curves[0])}


def say(model: str, found: dict[str, Any]) -> None:
    worst, moved = found["largest difference"], found["range of the loss"]
    print(f"{model}: largest difference {worst:.2g} (allowed {TOLERANCE:.2g}); the loss moved by {moved:.2g}")
    for name, run in found["runs"].items():
        peak = run["peak_bytes"] / 2**20
        print(f"  {name:15} {run['seconds_per_step']:.4f} s a step, peak {peak:.0f} MiB", flush=True)


def device_name(device: str) -> str:
    import torch

    if device == "cpu":
        return "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


if __name__ == "__main__":
    sys.exit(main())
