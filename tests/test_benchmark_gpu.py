"""benchmarks/gpu.py at a tiny size on the CPU: what it counts, and that the systems it compares compute the same."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from benchmarks import gpu
from benchmarks.systems import bare, gpu_attention, gpu_floor, gpu_inputs, gpu_memory, gpu_ours
from benchmarks.systems.gpu_common import SHAPES, Settings, write_steps
from prefopt.objectives import create
from prefopt.scoring import forest, logprobs
from prefopt.scoring.forest import Tree

TINY = dict(zip(SHAPES["1b"], (4, 6, 1, 2, 1, 10), strict=True))  # hidden, inner, layers, heads, key heads, words
SETTINGS = Settings("miniature", "cpu", seed=0, passes=1)
LENGTHS = [(3, 4, 2), (1, 2, 5), (6, 1, 1), (5, 3, 3)]
VOCABULARY = SHAPES["miniature"]["vocab_size"]


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """What a process of the benchmark sets for itself goes when the test goes."""
    monkeypatch.setattr(logprobs, "CHUNK", logprobs.CHUNK)


@pytest.fixture
def steps() -> list:
    return gpu_inputs.steps_of(LENGTHS, 2, VOCABULARY, seed=0)


class TestInputs:
    def test_tokens_are_counted(self, steps):
        """Rows of 7, 6, 7 and 8 tokens: the steps are (1, 2, 5) with (3, 4, 2), padded to 7, and (6, 1, 1) with
        (5, 3, 3), padded to 8."""
        told = gpu_inputs.told(steps)
        found = [[gpu_inputs.lengths_of(pair) for pair in step] for step in steps]
        assert sorted(found) == [[(1, 2, 5), (3, 4, 2)], [(6, 1, 1), (5, 3, 3)]]
        assert told["shared"] == (9 + 8 + 8 + 11) / 2
        assert told["unshared"] == (12 + 9 + 14 + 16) / 2
        assert told["padded"] == (4 * 7 + 4 * 8) / 2
        assert told["completions"] == (6 + 7 + 2 + 6) / 2
        assert told["prompt"] == 15 / 4

    def test_completions_end_and_ids_are_words(self, steps):
        for prompt, chosen, rejected in (pair for step in steps for pair in step):
            assert chosen[-1] == rejected[-1] == 1
            assert all(3 <= token < VOCABULARY for token in prompt + chosen[:-1] + rejected[:-1])

    def test_drawn_lengths_have_their_means(self):
        """Within 5 % over 4,000 draws where nothing is too long; the median is that of HH-RLHF's prompts."""
        found = gpu_inputs.drawn_lengths(4000, gpu_inputs.HH_MEANS, 10**6, seed=0)
        for side, mean in enumerate(gpu_inputs.HH_MEANS):
            assert sum(one[side] for one in found) / len(found) == pytest.approx(mean, rel=0.05)
        assert sorted(one[0] for one in found)[2000] == pytest.approx(97, rel=0.05)
        assert max(map(gpu_inputs.longest, gpu_inputs.drawn_lengths(200, gpu_inputs.HH_MEANS, 100, seed=0))) <= 100

    def test_ratios(self):
        assert gpu_inputs.ratio_means(4.0, 100) == (80.0, 20.0, 20.0)
        assert gpu_inputs.ratio_means(0.25, 100) == (20.0, 80.0, 80.0)

    def test_real_lengths(self, real_data, monkeypatch):
        """About those of the lognormal; a little lower, because the longest rows are left out."""
        monkeypatch.setenv("PREFOPT_TEST_DATA", str(real_data))
        found, told = gpu_inputs.hh_lengths(1000, seed=0)
        assert told.startswith("HH-RLHF")
        means = [sum(one[side] for one in found) / len(found) for side in range(3)]
        assert means == pytest.approx(gpu_inputs.HH_MEANS, rel=0.15)
        assert max(map(gpu_inputs.longest, found)) <= 512


class TestFloor:
    """A layer's matrices have 16 + 8 + 8 + 16 + 3 · 24 = 120 weights, whose in + out add up to 58; the head has 40."""

    def test_full_training(self):
        assert gpu_floor.step_flops(TINY, tokens=5, spoken=3) == 3 * 2 * (5 * 120 + 3 * 40)

    def test_lora(self):
        base = 2 * 2 * (5 * 120 + 3 * 40)
        assert gpu_floor.step_flops(TINY, tokens=5, spoken=3, rank=2) == base + 3 * 2 * 5 * 2 * 58

    def test_attention(self):
        """Prompt of 2: 3 pairs. A branch of 1 sees 2 + 1, one of 2 sees 2 · 2 + 3."""
        step = [([5, 6], [7], [8, 9])]
        assert gpu_floor.pairs_seen(2, (1, 2)) == 3 + 3 + 7
        assert gpu_floor.attention_flops(TINY, step) == 3 * 4 * 4 * 13
        assert gpu_floor.counted(step[0:1]) == (5, 3)

    def test_weights_are_the_models(self):
        model = gpu_ours.policy_of(SETTINGS, "full").causal
        layer = [m.weight for m in model.model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        assert sorted(tuple(w.shape) for w in layer) == sorted(gpu_floor.layer_weights(SETTINGS.sizes))
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_the_rate_is_of_the_work_done(self, steps, monkeypatch):
        """Three products of every matrix in full training, two under LoRA, in half a second."""
        monkeypatch.setattr(gpu_floor, "matmul_seconds", lambda *_, by_weights: 0.5 if by_weights else 0.25)
        counts = [gpu_floor.counted(step) for step in steps]
        tokens, spoken = (round(sum(column) / 2) for column in zip(*counts, strict=True))
        whole = gpu_floor.step_flops(SETTINGS.sizes, tokens, spoken)
        assert gpu_floor.measured(SETTINGS, steps, "full")["rate"] == whole / 0.5
        assert gpu_floor.measured(SETTINGS, steps, "lora")["rate"] == pytest.approx(whole * 2 / 3 / 0.25)


class TestSystems:
    def test_every_layout_gives_the_textbooks_log_probs(self, steps):
        """Padded rows and whole logits, by other code."""
        policy = gpu_ours.policy_of(SETTINGS, "full")
        batch = gpu_ours.batch_of(steps[0])
        with torch.no_grad():
            expected, _ = bare.row_logps(policy.causal, steps[0])
            for name, scored in gpu_ours.layouts(policy).items():
                torch.testing.assert_close(scored(batch).logp, expected, rtol=1e-5, atol=1e-5, msg=name)

    def test_every_layout_reads_what_it_says(self, monkeypatch):
        """Pairs of 3 + 4 + 2 and 1 + 2 + 5 tokens."""
        (step,) = gpu_inputs.steps_of(LENGTHS[:2], 2, VOCABULARY, seed=0)
        ways = gpu_ours.layouts(gpu_ours.policy_of(SETTINGS, "full"))
        ways["shared"](gpu_ours.batch_of(step))  # tries the model out
        read: list[tuple[int, ...]] = []
        inner = gpu_ours.Policy.hidden_states
        watched = lambda self, ids, *more, **named: read.append(tuple(ids.shape)) or inner(self, ids, *more, **named)  # noqa: E731
        monkeypatch.setattr(gpu_ours.Policy, "hidden_states", watched)
        monkeypatch.setattr(forest, "ROUND", 1)
        for scored in ways.values():
            scored(gpu_ours.batch_of(step))
        assert read == [(1, 9 + 8), (1, 7 + 5 + 3 + 6), (4, 7), (4, 7)]

    def test_a_step_is_the_naive_loops(self, steps):
        """The DPO loss of prefopt's path and of bare.py's against the same other model."""
        policy = gpu_ours.policy_of(SETTINGS, "full")
        other = copy.deepcopy(policy.causal)
        with torch.no_grad():
            other.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        batch = gpu_ours.batch_of(steps[0])
        reference = gpu_ours.score_rows(gpu_ours.Policy(other), batch).logps.detach()
        scores = replace(gpu_ours.score(policy, batch), ref_logps=reference)
        loss = create("dpo", beta=0.1).loss(scores)
        expected = bare.dpo(policy.causal, other, steps[0])
        assert abs(float(expected.detach()) - math.log(2)) > 1e-6, "the models are the same"
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("mode", ["full", "lora"])
    def test_training(self, mode, steps):
        """At the start the policy is its reference."""
        found = gpu_ours.train(SETTINGS, mode, steps)
        assert len(found["seconds"]) == len(found["loss"]) == 2 * len(steps)
        assert found["loss"][0] == pytest.approx(math.log(2), abs=1e-6)
        assert found["loss"][-1] != found["loss"][0]
        assert found["falls back"] == ""

    @pytest.mark.parametrize("mode", ["full", "lora"])
    def test_trl_trains_alike(self, mode, steps):
        pytest.importorskip("trl")
        peer = import_module("benchmarks.systems.gpu_peer")
        found = peer.train(SETTINGS, mode, steps)
        own = gpu_ours.train(SETTINGS, mode, steps)["loss"]
        assert len(found["seconds"]) == len(own)
        assert found["loss"][-1] == pytest.approx(sum(own) / len(own), abs=1e-6)


class TestAttention:
    TREES = (Tree(0, 3, (2, 4, 1)), Tree(10, 2, (1,)), Tree(13, 4, ()), Tree(17, 1, (3, 2)))

    @pytest.mark.parametrize("trees", [TREES, TREES[1:3]], ids=["branches", "single rows"])
    @pytest.mark.usefixtures("plain_kernels")
    def test_merged_is_the_textbook(self, trees):
        """Output and gradients, in float64."""
        begin = trees[0].start
        trees = tuple(Tree(tree.start - begin, tree.prompt, tree.branches) for tree in trees)
        rows = gpu_attention.Forest(*torch.zeros(2, 1, trees[-1].end, dtype=torch.long), trees)
        given, grad = gpu_attention.drawn(SETTINGS, trees[-1].end)
        given, grad = [t.detach().double().requires_grad_() for t in given], grad.double()
        way = gpu_attention.ways(rows, 0.25, "cpu")["merged varlen"]
        truth = gpu_attention.both(lambda q, k, v: gpu_attention.textbook(rows, q, k, v, 0.25), given, grad)
        for mine, theirs in zip(gpu_attention.both(way, given, grad), truth, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    def test_every_way_is_held_against_it(self, steps, tmp_path):
        """On a CPU FlexAttention has no backward, and is named as absent, though its output is right; flash attention
        has no kernels for rows of any lengths, and nothing."""
        write_steps(tmp_path, "hh", steps)
        SETTINGS.write(tmp_path)
        for told in gpu_attention.main(tmp_path, "hh")["forests"].values():
            ways = told["ways"]
            assert ways.keys() == {"FlexAttention", "merged varlen", "prefopt"}
            assert "absent" in ways["FlexAttention"]
            assert "absent" in ways["merged varlen"]
            assert "absent" not in ways["prefopt"]
            assert all(error < 1e-6 for way in ways.values() for error in way["errors"].values())
            assert [len(way["errors"]) for way in ways.values()] == [1, 0, 4]


@pytest.mark.long
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_way_on_a_gpu(steps, tmp_path):
    """In bfloat16, the real kernels: what rounding costs, and no more."""
    write_steps(tmp_path, "hh", steps)
    replace(SETTINGS, device="cuda").write(tmp_path)
    for told in gpu_attention.main(tmp_path, "hh")["forests"].values():
        for name, way in told["ways"].items():
            assert "absent" not in way, (name, way)
            assert max(way["errors"].values()) < 2e-2, (name, way)


def test_heads_agree(tmp_path):
    """In chunks that are smaller than the rows, and whole: the same loss, or absent."""
    SETTINGS.write(tmp_path)
    found = gpu_memory.main(tmp_path, "256", "512")["heads"]
    truth = found["whole logits"]["cases"]
    assert truth["256"]["loss"] != truth["512"]["loss"]
    for name in ("whole logits", *gpu_memory.HEADS[:3], gpu_memory.OPTIONAL[0]):  # the other is another loss
        for tokens, case in found[name].get("cases", {}).items():
            assert case["loss"] == pytest.approx(truth[tokens]["loss"], rel=1e-5), name
    assert all("cases" in found[name] for name in gpu_memory.HEADS if name not in gpu_memory.OPTIONAL)
    loss = gpu_memory.loss_of("prefopt, chunks of 2^15 logits", SETTINGS)
    assert logprobs.CHUNK == 2**15
    assert gpu_memory.measured(SETTINGS, loss, 256)["loss"] == pytest.approx(truth["256"]["loss"], rel=1e-5)


def test_the_loss_of_the_heads():
    """A margin of -3 - (-4) nats: -log σ(0.1)."""
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    assert float(gpu_memory._dpo(logps, 0.1)) == pytest.approx(math.log1p(math.exp(-0.1)))


class TestCommand:
    def asked(self, monkeypatch, *arguments: str) -> int:
        def run(python, script, folder, arguments):
            found = import_module(f"benchmarks.systems.{script}").main(folder, *arguments)
            return json.loads(json.dumps(found))

        monkeypatch.setattr(gpu, "run", run)
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        return gpu.main()

    def test_it_needs_a_gpu(self, monkeypatch, capsys):
        monkeypatch.setattr(gpu.report, "has_cuda", lambda: False)
        assert self.asked(monkeypatch) == 2
        assert capsys.readouterr().err.strip().splitlines() == [
            "benchmarks/gpu.py needs a CUDA device; --miniature goes through it on a CPU"
        ]

    def test_a_part_that_does_not_exist(self, monkeypatch, capsys):
        with pytest.raises(SystemExit) as ended:
            self.asked(monkeypatch, "--parts", "speed,smell")
        assert ended.value.code == 2
        assert "'smell' is none of speed, memory, attention, sharing" in capsys.readouterr().err

    def test_the_miniature(self, monkeypatch, tmp_path, capsys):
        assert self.asked(monkeypatch, "--miniature", "--peers", "none", "--passes", "1", "--out", str(tmp_path)) == 0
        results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
        assert results.keys() == {"gpu-speed", "gpu-memory", "gpu-attention", "gpu-sharing"}
        speed = results["gpu-speed"]
        for mode in ("full", "lora"):
            own, floor = speed["modes"][mode]["prefopt"], speed["floor"][mode]
            took = own["seconds_per_step"]["median"]
            assert len(own["seconds"]) == 2, "two rounds"
            assert own["pairs_per_second"] == pytest.approx(2 / took)
            assert own["tokens_per_second"] == pytest.approx(speed["pairs"]["shared"] / took)
            assert own["share_of_matmul_rate"] == pytest.approx(floor["flops"] / took / floor["rate"])
            assert speed["modes"][mode]["TRL"] == {"absent": "not asked for"}
        ratios = results["gpu-sharing"]["ratios"]
        assert ratios.keys() == {"1:4", "1:1", "4:1", "8:1"}
        for one in ratios.values():
            assert one["losses differ by"] < 1e-5
            assert one["seconds_to_shared"].keys() == {"shared", "unshared", "padded", "rows"}
            assert one["seconds_to_shared"]["shared"]["median"] == 1
            assert one["tokens"]["shared"] < one["tokens"]["unshared"] <= one["tokens"]["padded"]
        said = capsys.readouterr().out
        assert "goal against TRL 2.5" in said
        assert "goal 45%" in said
        assert torch.__version__.startswith(speed["versions"]["torch"].partition("+")[0])

    def test_what_fails_is_told(self, monkeypatch, tmp_path, capsys):
        """The rest goes on, and the command's exit code tells."""
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--miniature", "--peers", "none", "--parts", "memory"])
        monkeypatch.setattr(gpu, "SYSTEMS", tmp_path)
        assert gpu.main() == 1
        assert "gpu_memory 256 512 failed: " in capsys.readouterr().err
