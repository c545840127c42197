"""prefopt on one CUDA GPU: a Llama shape of 1B parameters with random weights, bfloat16, full and LoRA.

    PREFOPT_TEST_DATA=… python benchmarks/gpu.py [--parts speed,memory,attention,sharing] [--modes full,lora]

speed      DPO on lengths like HH-RLHF's: pairs/s and tokens/s (a prompt counts once) of prefopt's scoring and objective
           in a bare loop, of TRL at its best, and the share of the FLOPs that the device's matrix products could do
memory     peak of a DPO loss under a vocabulary of 128k, by completion tokens: prefopt's head, whole logits, Liger
attention  FlexAttention against varlen flash attention merged by log-sum-exp, on the same forests
sharing    prompt:completion at 1:4 to 8:1: a prompt read once, once for each completion, padded, and as TRL does it

The systems of speed run in processes of their own, in turn, round after round; the first pass over the steps
warms up and is not counted. What is optional (TRL, Liger) is reported as absent where it cannot be had; --peers names
TRL's environment, made where it is missing, or is none. The parts are meant to take about eight minutes on an H100,
most of them starting and compiling: three to four, one, one and two; fewer --parts, --modes or --rounds take less. The
results go to benchmarks/results/gpu-PART.json.

--miniature goes through every part at a tiny size on the CPU, and writes only where --out says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems import gpu_inputs as inputs
from benchmarks.systems import gpu_report as report
from benchmarks.systems.gpu_common import MODES, Settings, Step, write_steps
from benchmarks.systems.launch import PEERS, RESULTS, peers_python

SYSTEMS = Path(__file__).resolve().parent / "systems"
LIMIT = 300  # seconds that a process may take
PACKAGES = ("prefopt", "torch", "transformers", "peft", "triton", "liger-kernel", "flash-attn")
Found = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large everything is. hh: means and the limit of lengths, None for HH-RLHF's own. sharing: pairs of a step and
    steps; row: mean and longest tokens of a prompt with one completion; heads: completion tokens."""

    shape: str
    device: str
    pairs: int
    steps: int
    hh: tuple[tuple[float, float, float], int] | None
    sharing: tuple[int, int]
    row: tuple[int, int]
    heads: tuple[int, ...]


FULL = Scale("1b", "cuda", 16, 10, None, (8, 4), (384, 1024), (1024, 2048, 4096, 8192, 16_384))
MINIATURE = Scale("miniature", "cpu", 2, 2, ((12.0, 6.0, 7.0), 40), (2, 2), (24, 60), (256, 512))


@dataclass
class Bench:
    """peers: TRL's python; none: why there is none. failed: what of prefopt's own did not run."""

    asked: argparse.Namespace
    scale: Scale
    settings: Settings
    folder: Path
    peers: Path | None
    none: str
    failed: list[str]

    def child(self, script: str, *arguments: str) -> Found:
        """The report of a process; {"failed": its last line} where it has none, {"absent": why} where it cannot run."""
        python = Path(sys.executable)
        if script == "gpu_peer":
            if self.peers is None:
                return {"absent": self.none}
            python = self.peers
        found = run(python, script, self.folder, arguments)
        if "failed" in found:
            print(f"{script} {' '.join(arguments)} failed: {found['failed']}", file=sys.stderr, flush=True)
            self.failed += [script] if script != "gpu_peer" else []
        return found

    def steps(self, name: str, lengths: list[inputs.Lengths], pairs: int) -> list[Step]:
        found = inputs.steps_of(lengths, pairs, self.settings.sizes["vocab_size"], self.settings.seed)
        write_steps(self.folder, name, found)
        return found

    def hh(self) -> tuple[list[Step], str]:
        """The steps of lengths like HH-RLHF's, and where the lengths are from."""
        count = self.asked.pairs * self.asked.steps
        if self.scale.hh is None:
            lengths, origin = inputs.hh_lengths(count, self.settings.seed)
        else:
            lengths, origin = inputs.drawn_lengths(count, *self.scale.hh, self.settings.seed), "a miniature"
        return self.steps("hh", lengths, self.asked.pairs), origin


def run(python: Path, script: str, folder: Path, arguments: tuple[str, ...]) -> Found:
    path = folder / "report.json"
    path.unlink(missing_ok=True)
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    if python != Path(sys.executable):
        own["PYTHONPATH"] = ""
    command = [str(python), str(SYSTEMS / f"{script}.py"), str(folder), str(path), *arguments]
    try:
        done = subprocess.run(
            command, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT} s"}
    if done.returncode or not path.exists():
        return {"failed": (done.stderr.strip().splitlines() or ["without a word"])[-1]}
    return json.loads(path.read_text())


# ---------------------------------------------------------------- the parts


def speed(bench: Bench) -> Found:
    steps, origin = bench.hh()
    modes = bench.asked.modes
    floor = bench.child("gpu_floor", "hh", *modes)
    runs: dict[str, dict[str, list[Found]]] = {mode: {"prefopt": [], "TRL": []} for mode in modes}
    for number in range(bench.asked.rounds):
        for mode, systems in runs.items():
            systems["prefopt"].append(bench.child("gpu_ours", "train", mode, "hh"))
            theirs = bench.child("gpu_peer", mode, "hh")
            systems["TRL"].append({**theirs, **theirs.get("hh", {})})
            for name, found in systems.items():
                report.say_speed(number + 1, mode, name, found[-1], len(steps))
    return report.speed(runs, floor, steps) | {"lengths": origin}


def memory(bench: Bench) -> Found:
    found = bench.child("gpu_memory", *(str(count) for count in bench.scale.heads))
    for name, one in found.get("heads", {}).items():
        report.say_memory(name, one)
    return found


def attention(bench: Bench) -> Found:
    bench.hh()
    found = bench.child("gpu_attention", "hh")
    report.say_attention(found)
    return found


def sharing(bench: Bench) -> Found:
    (pairs, count), (row, limit) = bench.scale.sharing, bench.scale.row
    steps = {}
    for name, ratio in inputs.RATIOS.items():
        means = inputs.ratio_means(ratio, row)
        lengths = inputs.drawn_lengths(pairs * count, means, limit, bench.settings.seed)
        steps[name] = bench.steps(name, lengths, pairs)
    own = bench.child("gpu_ours", "sharing", *steps)
    theirs = bench.child("gpu_peer", "full", *steps)
    found = report.sharing(own, theirs, steps)
    report.say_sharing(found)
    return found


PARTS: dict[str, Callable[[Bench], Found]] = {f.__name__: f for f in (speed, memory, attention, sharing)}


# ---------------------------------------------------------------- the command


def asked_for() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=_among(tuple(PARTS)), default=tuple(PARTS), help=", ".join(PARTS))
    parser.add_argument("--modes", type=_among(MODES), default=MODES, help="of speed: full, lora")
    parser.add_argument("--pairs", type=int, help="of a step of speed")
    parser.add_argument("--steps", type=int, help="of speed, in a pass")
    parser.add_argument("--passes", type=int, default=2, help="over the steps that are counted, in every process")
    parser.add_argument("--rounds", type=int, default=2, help="of speed's processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--peers", default=str(PEERS), help="TRL's environment, or none")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--miniature", action="store_true", help="tiny, on the CPU")
    return parser.parse_args()


def _among(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def chosen(text: str) -> tuple[str, ...]:
        wrong = set(text.split(",")) - set(known)
        if wrong:
            raise argparse.ArgumentTypeError(f"{sorted(wrong)[0]!r} is none of {', '.join(known)}")
        return tuple(name for name in known if name in text.split(","))

    return chosen


def find_peers(named: str, may_install: bool) -> tuple[Path | None, str]:
    """TRL's python, and why there is none: the named environment, this one where TRL is in it, or a new one."""
    if named == "none":
        return None, "not asked for"
    if Path(named, "bin", "python").exists():
        return Path(named, "bin", "python"), ""
    if find_spec("trl"):
        return Path(sys.executable), ""
    if not may_install:
        return None, "TRL is not installed"
    try:
        return peers_python(Path(named)), ""
    except (subprocess.CalledProcessError, OSError) as error:
        return None, f"TRL could not be installed: {error}"


def where() -> Found:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"versions": versions}


def main() -> int:
    asked = asked_for()
    scale = MINIATURE if asked.miniature else FULL
    if not asked.miniature and not report.has_cuda():
        print("benchmarks/gpu.py needs a CUDA device; --miniature goes through it on a CPU", file=sys.stderr)
        return 2
    for name in ("pairs", "steps"):
        setattr(asked, name, getattr(asked, name) or getattr(scale, name))
    settings = Settings(scale.shape, scale.device, asked.seed, asked.passes, asked.rank)
    peers, none = find_peers(asked.peers, may_install=not asked.miniature)
    out = asked.out or (None if asked.miniature else RESULTS)
    with tempfile.TemporaryDirectory() as place:
        settings.write(Path(place))
        bench = Bench(asked, scale, settings, Path(place), peers, none, [])
        for name in asked.parts:
            found = PARTS[name](bench) | {"settings": asdict(settings)} | where()
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
