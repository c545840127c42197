"""Mutants: one small wrong change each; `python tests/mutants.py [NAME …]` shows that a test notices every one.

Each mutant is a copy of the package and its tests in a temporary folder, with one text replaced. The tests of the
mathematics (of a file that is not mathematics, its own) run on it, quickest first, and must fail; on an unchanged copy
they must pass. A survivor, or a text that is not found exactly once, exits 1.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import chdir
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
QUICK = ("tests/objectives/test_numbers.py", "tests/test_credit.py", "tests/test_records.py")  # most die here
SLOWER = tuple(
    f"tests/objectives/test_{name}.py" for name in ("gradients", "identities", "needs", "golden", "learning")
)
MODELS = tuple(
    f"tests/models/test_{name}.py" for name in ("reference", "references", "reward", "adapter", "files", "quant")
)
RENDERING = ("tests/data/test_render_templates.py", "tests/data/test_render.py")
PUBLISHED = ("tests/data/test_published.py",)
DATA = tuple(f"tests/data/test_{name}.py" for name in ("audit", "store", "views", "prepare", "shapes"))
OPTIMUM = ("tests/metrics/test_optimum.py", "tests/metrics/test_shares.py")
ROLLOUTS = ("tests/rollouts", "tests/test_invariance.py")
OWN = {  # beginnings of the files that are not mathematics
    "data/render": RENDERING,
    "data/template": RENDERING,
    "data/published": PUBLISHED,
    "data/world": ("tests/data/test_world.py",),
    "data/": DATA,
    "scoring/store": ("tests/scoring/test_store.py",),
    "scoring/generate": ("tests/scoring/test_generate.py",),
    "scoring/kv_cache": ("tests/scoring/test_generate.py",),
    "jobs/precision": ("tests/test_precision.py",),
    "config/search": ("tests/test_search.py",),
    "scoring/narrow": ("tests/scoring/test_narrow.py", "tests/scoring/test_forest.py"),
    "scoring/": ("tests/scoring/test_forest.py", "tests/scoring/test_score.py"),
    "models/": MODELS,
    "callbacks/remember": ("tests/test_remember.py",),
    "callbacks/selfcheck": ("tests/test_selfcheck.py",),
    "callbacks/belonging": ("tests/test_belonging.py",),
    "callbacks/guards": ("tests/rollouts/test_guards.py",),
    "callbacks/": MODELS,
    "metrics/optimum": OPTIMUM,
    "reports/compare/optimum": ("tests/reports/test_optimum.py",),
    "reports/compare/measures": ("tests/reports/test_judged.py",),
    "reports/compare/runs": ("tests/reports/test_judged.py",),
    "jobs/judging": ("tests/reports/test_judged.py",),
    "jobs/pooling": ("tests/test_pooling.py",),
    "jobs/optimum": ("tests/test_pooling.py",),
    "run/held": ("tests/test_held.py",),
    "run/finished": ("tests/test_held.py",),
    "settings/": ("tests/test_mistakes.py",),
    "metrics/": ("tests/test_metrics.py",),
    "module": MODELS,
    "rollouts/": ROLLOUTS,
    "rewards/": ("tests/rewards",),
}


class Mutant(NamedTuple):
    name: str
    file: str  # under prefopt/
    old: str
    new: str


def of(file: str, *mutants: tuple[str, str, str]) -> list[Mutant]:
    stem = Path(file).stem
    return [Mutant(f"{stem}: {name}", file, old, new) for name, old, new in mutants]


MUTANTS = [
    *of(
        "objectives/dpo.py",
        ("sign of the agreement", "-F.logsigmoid(beta * margin)", "-F.logsigmoid(-beta * margin)"),
        ("β forgotten in the flip", "-F.logsigmoid(-beta * margin)", "-F.logsigmoid(-margin)"),
        ("β forgotten", "agree, flip = -F.logsigmoid(beta * margin)", "agree, flip = -F.logsigmoid(margin)"),
        (
            "swapped halves",
            "self._ratio(chosen) - self._ratio(rejected)",
            "self._ratio(rejected) - self._ratio(chosen)",
        ),
        ("rejected forgotten", "margin = self._ratio(chosen) - self._ratio(rejected)", "margin = self._ratio(chosen)"),
        (
            "ε on the wrong side",
            "return (1 - label_smoothing) * agree + label_smoothing * flip",
            "return label_smoothing * agree + (1 - label_smoothing) * flip",
        ),
        ("robust is not divided", " / (1 - 2 * label_smoothing)", ""),
        ("robust divided by 1-ε", "(1 - 2 * label_smoothing)", "(1 - label_smoothing)"),
        ("robust adds the flip", "* agree - label_smoothing", "* agree + label_smoothing"),
        ("robust is ignored", "if robust:", "if False:"),
        ("reference forgotten", "else scores.logratio", "else scores.logp"),
        ("average is ignored", "scores.mean_logratio if self.average", "scores.logratio if self.average"),
        ("soft target forgotten", "under_target(self._loss, margin, chosen.columns)", "self._loss(margin)"),
        ("weight forgotten", "(chosen.weight * losses).sum()", "losses.sum()"),
        ("unit", '"pairs"),)', '"tokens"),)'),
        ("β forgotten in the reward", "return self.beta * self._ratio(scores)", "return self._ratio(scores)"),
        ("ε of one half is allowed", "at_least=0, below=0.5", "at_least=0, below=0.6"),
    ),
    *of(
        "objectives/ipo.py",
        ("target 1/β", "1 / (2 * beta)", "1 / beta"),
        ("sign of the target", "(margin - 1 / (2 * beta))", "(margin + 1 / (2 * beta))"),
        ("not squared", ") ** 2", ").abs()"),
        ("sum for mean", "scores.mean_logratio if self.average", "scores.logratio if self.average"),
        ("mean for sum", "else scores.logratio", "else scores.mean_logratio"),
        (
            "swapped halves",
            "self._ratio(chosen) - self._ratio(rejected)",
            "self._ratio(rejected) - self._ratio(chosen)",
        ),
        ("weight forgotten", "(chosen.weight * losses).sum()", "losses.sum()"),
    ),
    *of(
        "objectives/kto.py",
        (
            "sign of ρ - z",
            "torch.where(desirable, logratio - z, z - logratio)",
            "torch.where(desirable, z - logratio, logratio - z)",
        ),
        ("undesirable as desirable", "z - logratio))", "logratio - z))"),
        (
            "z forgotten",
            "torch.where(desirable, logratio - z, z - logratio)",
            "torch.where(desirable, logratio, -logratio)",
        ),
        ("β forgotten", "torch.sigmoid(beta * torch", "torch.sigmoid(torch"),
        ("gain for loss", "up * (1 - gain), down * (1 - gain)", "up * gain, down * gain"),
        ("λ swapped", "up * (1 - gain), down * (1 - gain)", "down * (1 - gain), up * (1 - gain)"),
        (
            "λ in float32",
            "torch.where(desirable, up * (1 - gain), down * (1 - gain))",
            "torch.where(desirable, up, down) * (1 - gain)",
        ),
        ("z is not clamped", 'statistics["z"].clamp(min=0)', 'statistics["z"]'),
        ("z is clamped the other way", ".clamp(min=0)", ".clamp(max=0)"),
        (
            "z is clamped before the mean",
            "(mismatched.weight * mismatched.logratio).sum()",
            "(mismatched.weight * mismatched.logratio).clamp(min=0).sum()",
        ),
        ("z carries a gradient", "scores.halves()[1].detach()", "scores.halves()[1]"),
        ("z of the labelled rows", "scores.halves()[1].detach()", "scores.halves()[0].detach()"),
        ("z is not weighted", "(mismatched.weight * mismatched.logratio).sum(), ", "mismatched.logratio.sum(), "),
        ("z is divided by rows", "mismatched.weight.sum())", "torch.ones_like(mismatched.weight).sum())"),
        ("z of log-probs", "mismatched.weight * mismatched.logratio", "mismatched.weight * mismatched.logp"),
        ("reference forgotten", "            labelled.logratio,", "            labelled.logp,"),
        ("per token", "            labelled.logratio,", "            labelled.mean_logratio,"),
        ("mismatched rows trained", "labelled, _ = scores.halves()", "_, labelled = scores.halves()"),
        ("weight forgotten", "(labelled.weight * losses).sum()", "losses.sum()"),
        ("Eq. 8 upside down", "{self.desirable_weight * down / up:.3g}", "{self.desirable_weight * up / down:.3g}"),
    ),
    *of(
        "objectives/orpo.py",
        ("odds forgotten", "(chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))", "chosen - rejected"),
        ("sign of the odds", "(chosen - rejected) - (log1mexp", "(chosen - rejected) + (log1mexp"),
        (
            "sum for mean",
            "log_odds_ratio(chosen.mean_logp, rejected.mean_logp)",
            "log_odds_ratio(chosen.logp, rejected.logp)",
        ),
        (
            "swapped halves",
            "log_odds_ratio(chosen.mean_logp, rejected.mean_logp)",
            "log_odds_ratio(rejected.mean_logp, chosen.mean_logp)",
        ),
        ("sign of the loss", "losses = -F.logsigmoid", "losses = F.logsigmoid"),
        ("β forgotten", '"pairs", self.beta)', '"pairs")'),
        (
            "no clamp at probability 1",
            "chosen, rejected = chosen.clamp(max=CERTAIN), rejected.clamp(max=CERTAIN)",
            "pass",
        ),
        ("log1p far and near", "torch.log1p(-torch.exp(torch.where(near, -1.0, x)))", "torch.log1p(-torch.exp(x))"),
        ("one branch", "return torch.where(near, close, far)", "return torch.log1p(-torch.exp(x))"),
        ("branches exchanged", "near = x > -math.log(2)", "near = x < -math.log(2)"),
        ("scope forgotten", ", scope=self.nll_scope)", ")"),
        ("reduction forgotten", "rows, self.nll_reduction, scope", "rows, scope"),
        ("weight forgotten", "(chosen.weight * losses).sum()", "losses.sum()"),
        ("prompt not asked for", 'self.refine(prompt=self.nll_scope == "text")', "pass"),
    ),
    *of(
        "objectives/simpo.py",
        ("sign of γ", "beta * margin - gamma", "beta * margin + gamma"),
        ("γ inside β", "beta * margin - gamma", "beta * (margin - gamma)"),
        ("sum for mean", "chosen.mean_logp - rejected.mean_logp", "chosen.logp - rejected.logp"),
        ("swapped halves", "chosen.mean_logp - rejected.mean_logp", "rejected.mean_logp - chosen.mean_logp"),
        ("weight forgotten", "(chosen.weight * losses).sum()", "losses.sum()"),
    ),
    *of(
        "objectives/bradley_terry.py",
        ("sign of the margin", "difference - margin", "difference + margin"),
        ("margin forgotten", 'chosen.columns.get("margin", 0.0)', "0.0"),
        ("swapped halves", "chosen.rewards - rejected.rewards, chosen", "rejected.rewards - chosen.rewards, chosen"),
        (
            "centres the difference",
            "(chosen.rewards + rejected.rewards) ** 2",
            "(chosen.rewards - rejected.rewards) ** 2",
        ),
        ("centering's scale", '"pairs", self.centering', '"pairs", self.centering / 2'),
        ("centering is not weighted", "(chosen.weight * squares).sum()", "squares.sum()"),
        ("weight forgotten", "(chosen.weight * losses).sum()", "losses.sum()"),
    ),
    *of(
        "objectives/sft.py",
        ("reduction forgotten", "self.reduction, scope", '"tokens", scope'),
        ("scope forgotten", "scope=self.nll_scope", 'scope="completion"'),
        ("reward is a sum", "return scores.mean_logp", "return scores.logp"),
    ),
    *of(
        "objectives/surrogate.py",
        (
            "minimum",
            "pessimistic = torch.maximum(-advantages * ratio",
            "pessimistic = torch.minimum(-advantages * ratio",
        ),
        ("not clipped", "-advantages * ratio.clamp(1 - low, 1 + high)", "-advantages * ratio"),
        ("always clipped", "torch.maximum(-advantages * ratio, ", "("),
        ("radii swapped", "ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
        ("dual clip is ignored", "if dual_clip is None:\n        return", "if True:\n        return"),
        ("dual clip of good actions", "torch.where(advantages < 0, torch", "torch.where(advantages > 0, torch"),
        (
            "dual clip of all actions",
            "torch.where(advantages < 0, torch.minimum(pessimistic, -advantages * dual_clip), pessimistic)",
            "torch.minimum(pessimistic, -advantages * dual_clip)",
        ),
        ("dual clip raises", "torch.minimum(pessimistic, -adv", "torch.maximum(pessimistic, -adv"),
        ("outside below only", "((ratio < 1 - low) | (ratio > 1 + high))", "(ratio < 1 - low)"),
        ("outside above only", "((ratio < 1 - low) | (ratio > 1 + high))", "(ratio > 1 + high)"),
        (
            "ratio upside down",
            'return scores.logps - scores.columns["old_logps"]',
            'return scores.columns["old_logps"] - scores.logps',
        ),
        (
            "clip_fraction is a number of tokens",
            "scores.total(outside(log_ratio(scores).exp(), low, high)) / scores.lengths.clamp(min=1)",
            "scores.total(outside(log_ratio(scores).exp(), low, high))",
        ),
        ("sign of the KL", "d = logps - ref_logps", "d = ref_logps - logps"),
        ("k2 is not halved", "d.square() / 2", "d.square()"),
        ("k3 without d", "torch.expm1(-d) + d", "torch.expm1(-d)"),
        ("k3 of -d", "torch.expm1(-d) + d", "torch.expm1(d) - d"),
        ("average is ignored", 'if average == "sequences":', "if False:"),
        ("sums are divided", 'if average == "sequences":', 'if average != "tokens":'),
        ("unit", '"tokens" if average == "tokens" else "rows"', '"tokens" if average != "sequences" else "rows"'),
        ("weight forgotten", "(scores.weight * totals).sum()", "totals.sum()"),
        ("coefficient forgotten", 'else "rows", coefficient)', 'else "rows")'),
        ("k1 in the loss is allowed", 'if self.kl == "k1" and self.kl_in == "loss":', "if False:"),
        ("reference always asked", "self.refine(reference=self.beta > 0)", "pass"),
        ("β forgotten in the implicit reward", "return self.beta * scores.logratio", "return scores.logratio"),
        ("warned without a KL", "if self.beta and self.kl_in", "if self.kl_in"),
        ("warned of the loss", 'and self.kl_in == "reward" and self.kl != "k1":', 'and self.kl != "k1":'),
        ("warned of k1", 'and self.kl_in == "reward" and self.kl != "k1":', 'and self.kl_in == "reward":'),
        ("shown KL is always k1", '{"kl": self.kl, "kl_k3": "k3"}', '{"kl": "k1", "kl_k3": "k3"}'),
        ("shown k3 is the optimised", '{"kl": self.kl, "kl_k3": "k3"}', '{"kl": self.kl, "kl_k3": self.kl}'),
        (
            "shown without a reference",
            "if scores.ref_logps is None:\n            return {}",
            "if False:\n            pass",
        ),
        ("KL in both, the loss too", 'if not self.beta or self.kl_in == "reward":', "if not self.beta:"),
        ("β of the KL forgotten", "scores.total(estimate), average, self.beta)", "scores.total(estimate), average)"),
        (
            "sign of the KL in the loss",
            "scores.total(estimate), average, self.beta)",
            "scores.total(estimate), average, -self.beta)",
        ),
        (
            "always k3",
            "estimate = kl_estimate(scores.logps, scores.ref_logps, self.kl)",
            'estimate = kl_estimate(scores.logps, scores.ref_logps, "k3")',
        ),
        ("KL averaged its own way", "scores.total(estimate), average, ", 'scores.total(estimate), "tokens", '),
        ("KL in both, the reward too", 'if not self.beta or self.kl_in == "loss":', "if not self.beta:"),
        ("KL rewarded", "return -self.beta * kl_estimate(", "return self.beta * kl_estimate("),
        ("β of the reward forgotten", "return -self.beta * kl_estimate(", "return -kl_estimate("),
        ("always k1", "scores.ref_logps, self.kl).where(", 'scores.ref_logps, "k1").where('),
        ("KL off the mask", "self.kl).where(scores.mask, 0)", "self.kl)"),
        ("KL forgotten in the reward", "return reward + self.kl_rewards(scores).sum(1)", "return reward"),
        ("KL of the mean token", "self.kl_rewards(scores).sum(1)", "self.kl_rewards(scores).mean(1)"),
        ("groups of any size", "if (sizes != sizes[0]).any():", "if False:"),
        ("credit off the mask", "advantages[:, None] * scores.mask", "advantages[:, None].expand_as(scores.mask)"),
        (
            "ratio of the mean token",
            "ratio = scores.total(log_ratio(scores)).exp()",
            "ratio = (scores.total(log_ratio(scores)) / scores.lengths).exp()",
        ),
        ("advantage of the whole answer", " / scores.lengths.clamp(min=1)  # alike on all tokens", ""),
        ("clip of the answer is ignored", "if self.clip is None:\n            losses", "if True:\n            losses"),
        ("answer always at its own samples", "losses = -advantages * ratio", "losses = -advantages * ratio.log()"),
        ("sign of the answer", "losses = -advantages * ratio", "losses = advantages * ratio"),
        ("answers per token", 'scores, losses, "sums")', 'scores, losses, "sequences")'),
        ("KL of answers per token", 'self.kl_terms(scores, "sums")', 'self.kl_terms(scores, "sequences")'),
        (
            "clip_fraction of the answer's tokens",
            "outside(scores.total(log_ratio(scores)).exp(), self.clip, self.clip)",
            "clip_fraction(scores, self.clip, self.clip)",
        ),
    ),
    *of(
        "objectives/rloo.py",
        ("KL forgotten", "rloo(self.answer_rewards(scores, reward), ", "rloo(reward, "),
        ("one group of all", "self.group_size(scores)))", "len(scores)))"),
    ),
    *of(
        "objectives/reinforce.py",
        ("KL forgotten", "advantages = self.answer_rewards(scores, reward)", "advantages = reward"),
        ("baseline is ignored", 'if self.baseline == "mean":', "if False:"),
        ("baseline always", 'if self.baseline == "mean":', "if True:"),
        ("whiten is ignored", "if self.whiten:", "if False:"),
        ("whitened always", "if self.whiten:", "if True:"),
        ("normalised by the baseline", "normalize=False)", "normalize=True)"),
        (
            "whitened over tokens",
            "whiten(advantages[:, None], torch.ones_like(scores.mask[:, :1]))[:, 0]",
            "whiten(advantages[:, None].expand_as(scores.mask), scores.mask).amax(1)",
        ),
    ),
    *of(
        "objectives/ppo.py",
        ("value loss is not halved", "return squares / 2", "return squares"),
        ("optimistic values", "torch.maximum(squares", "torch.minimum(squares"),
        ("values are not clipped", "(values - old_values).clamp(-clip, clip)", "(values - old_values)"),
        ("values clipped around returns", "old_values + (values - old_values)", "returns + (values - old_values)"),
        ("value_clip is ignored", "if clip is not None:\n        clipped", "if False:\n        clipped"),
        ("sign of the entropy", "-self.entropy_coef)", "self.entropy_coef)"),
        ("value_coef forgotten", '"tokens", self.value_coef)', '"tokens")'),
        ("dual clip is ignored", "self.clip, self.clip, self.dual_clip)", "self.clip, self.clip)"),
        (
            "surrogate per row",
            'mean_term("surrogate", scores, scores.total(surrogate), "tokens")',
            'mean_term("surrogate", scores, scores.total(surrogate), "sums")',
        ),
        ("KL forgotten in the loss", '            *self.kl_terms(scores, "tokens"),\n', ""),
        ("KL per row", 'self.kl_terms(scores, "tokens")', 'self.kl_terms(scores, "sums")'),
        (
            "KL forgotten in the reward",
            "rewards = scores.mask, self.kl_rewards(scores)",
            "rewards = scores.mask, 0 * scores.logps",
        ),
        ("reward on the first token", "last = mask.int().cumsum(1).argmax(1)", "last = mask.int().argmax(1)"),
        (
            "reward on the last position",
            "last = mask.int().cumsum(1).argmax(1)",
            "last = mask.sum(1) * 0 + mask.shape[1] - 1",
        ),
        ("KL lost under the reward", "rewards[rows, last] += reward", "rewards[rows, last] = reward"),
        ("not whitened", "whiten(advantages, mask) if self.whiten else advantages", "advantages"),
        ("always whitened", "whiten(advantages, mask) if self.whiten else advantages", "whiten(advantages, mask)"),
        ("γ and λ swapped", "mask, self.gamma, self.lam)", "mask, self.lam, self.gamma)"),
        ("γ forgotten", "mask, self.gamma, self.lam)", "mask, 1.0, self.lam)"),
        ("entropy not asked for", 'frozenset({"entropy"} if self.entropy_coef else ())', "frozenset()"),
        ("a dual clip of 1 is allowed", 'self.check("dual_clip", above=1)', 'self.check("dual_clip", above=0)'),
    ),
    *of(
        "objectives/grpo.py",
        ("clip_high is ignored", "self.clip if self.clip_high is None else self.clip_high", "self.clip"),
        (
            "clip_high on both sides",
            "return self.clip, self.clip if",
            "return self.clip_high or self.clip, self.clip if",
        ),
        ("average of the KL forgotten", "self.kl_terms(scores, self.average)", 'self.kl_terms(scores, "tokens")'),
        (
            "average of the surrogate forgotten",
            "scores.total(surrogate), self.average)",
            'scores.total(surrogate), "tokens")',
        ),
        ("normalize is ignored", "self.group_size(scores), self.normalize)", "self.group_size(scores))"),
        ("KL forgotten in the reward", "rewards = self.answer_rewards(scores, reward)", "rewards = reward"),
    ),
    *of(
        "objectives/base.py",
        ("soft target on one side", "(1 - p) * loss(-difference)", "(1 - p) * loss(difference)"),
        ("soft target turned round", "p * loss(difference) + (1 - p)", "(1 - p) * loss(difference) + p"),
        ("coefficient forgotten", "t.coefficient * t.sum / counts", "t.sum / counts"),
        ("not divided", "t.coefficient * t.sum / counts[t.unit] if", "t.coefficient * t.sum if"),
        ("mean of the terms", "torch.stack(parts).sum()", "torch.stack(parts).mean()"),
        ("sum of statistics", "name: s / c if c else", "name: s if c else"),
        ("likelihood for its negative", "nll, lengths = -scores.logp", "nll, lengths = scores.logp"),
        ("prompt adds to the likelihood", 'nll - scores.columns["prompt_logp"]', 'nll + scores.columns["prompt_logp"]'),
        ("prompt forgotten in the length", 'lengths + scores.columns["prompt_tokens"]', "lengths"),
        ("sequences are not divided", "nll = nll / lengths.clamp(min=1)", "pass"),
        (
            "prompt forgotten in the unit",
            'per_token = "demonstrated_text" if scope == "text" else "demonstrated_tokens"',
            'per_token = "demonstrated_tokens"',
        ),
        ("sum per token", 'unit = per_token if reduction == "tokens"', 'unit = per_token if reduction != "sequences"'),
        ("likelihood of all rows", "(scores.weight * nll).where(rows, 0).sum()", "(scores.weight * nll).sum()"),
        ("likelihood is not weighted", "(scores.weight * nll).where(rows, 0).sum()", "nll.where(rows, 0).sum()"),
        ("sft_weight is ignored", "coefficient=self.sft_weight)", "coefficient=1.0)"),
        (
            "sft_reduction is ignored",
            'likelihood_term("sft", scores, rows, self.sft_reduction, ',
            'likelihood_term("sft", scores, rows, ',
        ),
        ("garbage reaches the gradient", "self.terms(scores.zeroed(), statistics)", "self.terms(scores, statistics)"),
        ("missing scores pass", "            self.complete(scores)\n", ""),
        ("sft without log-probs", 'self.refine(heads=self.needs.heads | {"lm"})', "pass"),
        ("infinity is a number", " and math.isfinite(value)", ""),
        ("beta range is ignored", "self.beta_range[0] <= beta <= self.beta_range[1]", "self.beta_range[0] <= beta"),
    ),
    *of(
        "credit.py",
        ("λ forgotten", "gamma * lam * following)", "gamma * following)"),
        ("γ forgotten in δ", "rewards[:, t] + gamma * following_value", "rewards[:, t] + following_value"),
        ("γ forgotten in the sum", "gamma * lam * following)", "lam * following)"),
        (
            "next value is this one",
            "        following_value = values[:, t]\n",
            "        following_value = values[:, max(t - 1, 0)]\n",
        ),
        ("sign of the value", "following_value - values[:, t]", "following_value + values[:, t]"),
        ("reward of the step before", "delta = rewards[:, t] +", "delta = rewards[:, t - 1] +"),
        (
            "padding enters",
            "(delta + gamma * lam * following).where(mask[:, t], 0)",
            "(delta + gamma * lam * following)",
        ),
        (
            "values off the mask",
            "rewards.where(mask, 0), values.where(mask, 0)",
            "rewards.where(mask, 0), values.nan_to_num()",
        ),
        ("returns are advantages", "return advantages, advantages + values", "return advantages, advantages"),
        ("population std in groups", "groups.std(1, keepdim=True)", "groups.std(1, correction=0, keepdim=True)"),
        ("variance for std in groups", "groups.std(1, keepdim=True)", "groups.var(1, keepdim=True)"),
        ("std over all groups", "groups.std(1, keepdim=True)", "groups.std()"),
        ("mean over all groups", "centred - centred.mean(1, keepdim=True)", "groups - groups.mean()"),
        ("rounding speaks in groups", "centred = groups - groups[:, :1]", "centred = groups"),
        ("rounding speaks in rloo", "    groups = groups - groups[:, :1]", "    groups = groups"),
        ("normalize is ignored", "if normalize and group_size > 1", "if group_size > 1"),
        ("noise is blown up in groups", "std > _noise(groups.abs().amax(1, keepdim=True))", "std > 0"),
        ("noise is blown up by whitening", "std > _noise(x.where(mask, 0).abs().amax())", "std > 0"),
        ("everything is noise", "return 16 * torch", "return 1e8 * torch"),
        (
            "rloo with itself",
            "(groups.sum(1, keepdim=True) - groups) / (group_size - 1)",
            "groups.mean(1, keepdim=True)",
        ),
        ("rloo divides by G", "/ (group_size - 1)", "/ group_size"),
        ("sign of rloo", "(groups - others)", "(others - groups)"),
        (
            "whitened with the sample's variance",
            "(centred.square().sum() / n).sqrt()",
            "(centred.square().sum() / (n - 1)).sqrt()",
        ),
        ("variance for std in whitening", "(centred.square().sum() / n).sqrt()", "centred.square().sum() / n"),
        ("mean added back", "centred / std, 0)\n\n\ndef _groups", "x.where(mask, 0) / std, 0)\n\n\ndef _groups"),
        ("mean over the padding", "x.where(mask, 0).sum() / n)", "x.where(mask, 0).mean())"),
        ("whitened padding", "x.where(mask, 0).sum() / n).where(mask, 0)", "x.where(mask, 0).sum() / n).nan_to_num()"),
    ),
    *of(
        "models/reference.py",
        ("the policy's weights speak", "module._parameters[slot] = frozen[own[id(parameter)]]", "pass"),
        ("weights are not given back", "module._parameters[slot] = parameter", "pass"),
        ("the snapshot is no copy", "p.detach().clone()", "p.detach()"),
        ("the snapshot trains", "requires_grad=False)\n", "requires_grad=True)\n"),
        (
            "the average upside down",
            "mix * own[name].to(weight.device) + (1 - mix) * weight",
            "(1 - mix) * own[name].to(weight.device) + mix * weight",
        ),
        ("the reference is added to", "+ (1 - mix) * weight", "+ weight"),
        ("leaks pass", "leaks = leaking(policy)", "leaks = []"),
        ("dropout in the snapshot", "self._policy.evaluating(), ", ""),
    ),
    *of(
        "models/policy.py",
        ("the adapter stays on", ", self.model.disable_adapter():", ":"),
        ("an adapter in an adapter", 'if self.adapted and hasattr(self.causal, "get_base_model"):', "if False:"),
        ("4-bit weights counted by bytes", "p.numel() if state is None else state.shape.numel()", "p.numel()"),
    ),
    *of(
        "models/build.py",
        (
            "a continued adapter is switched off",
            "if base.adapter is None and not leaking(policy):",
            "if not leaking(policy):",
        ),
        ("leaks are switched off", "if base.adapter is None and not leaking(policy):", "if base.adapter is None:"),
        ("any vocabulary", "if mine != theirs:", "if False:"),
        ("no reference where one is needed", "        if needed:\n", "        if False:\n"),
        ("another model is the start", "if own.at_start and type(own)", "if type(own)"),
        ("two copies of one model", "start if own.at_start and type(own) is type(start) else own", "own"),
        ("the tokenizer may be larger", "if needed > rows:", "if needed > rows + 2:"),
        ("as large is too large", "if needed > rows:", "if needed >= rows:"),
        ("a classifier speaks", 'if "lm" in heads and is_classifier(base.name, base.key):', "if False:"),
        ("the head starts anew", "    init_from_classifier(policy, base.name, base.key)\n", ""),
        ("the base never moves", "if settings.sync_every is not None and needed:", "if False:"),
    ),
    *of(
        "models/adapter.py",
        ("tied weights are adapted", "if not skeleton.config.get_text_config().tie_word_embeddings:", "if True:"),
        ("nested", 'if hasattr(model, "peft_config") or any(', "if any(x for x in () if "),
        ("dora forgotten", "use_dora=settings.dora", "use_dora=False"),
        ("rslora forgotten", "use_rslora=settings.rslora", "use_rslora=False"),
        ("bias forgotten", '{"bias": settings.bias}', "{}"),
        ("layers forgotten", "settings.layers and list(settings.layers)", "None"),
        ("the head among all linear", " and m is not head}", "}"),
        ("a layer too many", "if layer >= count:", "if layer > count:"),
        ("the saved dropout stays", "    config.lora_dropout = dropout\n", ""),
    ),
    *of(
        "models/base.py",
        (
            "the adapter is not hashed",
            "        if self.adapter is not None:\n            model =",
            "        if False:\n            model =",
        ),
        ("names are not hashed", 'f"{name} {tuple', 'f"{tuple'),
        ("bytes are not hashed", "one.update(flat.view(torch.uint8).numpy().data)", "pass"),
        ("order is hashed", '"".join(sorted(found))', '"".join(found)'),
    ),
    *of(
        "models/reward.py",
        ("merged into the weights before quantising", "plain.get_submodule(name).weight.copy_(weight)", "pass"),
        (
            "padding that ends answers",
            "if candidate is not None and candidate not in end_ids:",
            "if candidate is not None:",
        ),
        ("a speaking policy as a classifier", 'if set(policy.heads) != {"scalar"} or policy.speaks:', "if False:"),
        ("two labels", "if len(weight) != 1:", "if False:"),
        ("another head", "    _set_head(policy, weight)\n    return", "    return"),
    ),
    *of(
        "callbacks/sync.py",
        ("synced on every micro-batch", "if between_steps(trainer, batch_idx) and trainer", "if trainer"),
        ("synced on every step", "trainer.global_step % self.every == 0", "True"),
        ("forgotten on resume", "weight.copy_(state[name])", "pass"),
    ),
    *of(
        "callbacks/remember.py",
        ("its pass is free", "self.counted() if wanted.trains else nullcontext()", "nullcontext()"),
        ("evaluation's pass counts", "self.counted() if wanted.trains else nullcontext()", "self.counted()"),
    ),
    *of(
        "callbacks/selfcheck.py",
        ("one token decides in low precision", "(gaps.mean(), LOW) if low", "(gaps.max(), LOW) if low"),
        ("float32 is judged as low precision", "(gaps.mean(), LOW) if low else", "(gaps.mean(), LOW) if True else"),
        ("a step that was skipped counts", "or self._skipped:", "or False:"),
    ),
    *of(
        "module.py",
        (
            "evaluation against what the reference became",
            "self.score(batch, self.base, always=",
            "self.score(batch, None, always=",
        ),
        (
            "a frozen adapter",
            "if not any(p.requires_grad for p in model.parameters()):",
            "if not self.policy.trainable():",
        ),
    ),
    *of(
        "records.py",
        (
            "padding enters the sum",
            'per_token.where(_given("mask", self.mask), 0).sum(1)',
            "per_token.nan_to_num().sum(1)",
        ),
        (
            "mean over the padded length",
            "return self.logp / self.lengths.clamp(min=1)",
            "return self.logp / self.mask.shape[1]",
        ),
        (
            "mean log-ratio over the padded length",
            "return self.logratio / self.lengths.clamp(min=1)",
            "return self.logratio / self.mask.shape[1]",
        ),
        ("reference added", '_given("logps", self.logps) - _given(', '_given("logps", self.logps) + _given('),
        (
            "halves swapped",
            "self.rows(slice(0, n // 2)), self.rows(slice(n // 2, n))",
            "self.rows(slice(n // 2, n)), self.rows(slice(0, n // 2))",
        ),
        ("pair columns cut", "column[rows] if len(column) == n else column", "column[rows]"),
        ("row columns handed whole", "column[rows] if len(column) == n else column", "column"),
        ("pair columns interleaved", "torch.cat((column, column))", "column.repeat_interleave(2)"),
        ("weight is ignored", '    if "weight" not in columns:\n', "    if True:\n"),
        (
            "units are not weighted",
            "weight = row_weight(n, columns, lengths.device).double()",
            "weight = torch.ones(n).double()",
        ),
        ("weights overwritten", "counted = weight.clone()", "counted = weight"),
        ("both rows of a pair count", "counted[n // 2 :] = 0", "pass"),
        ("mismatched tokens count", 'touched = weight if data == "pairs" else counted', "touched = weight"),
        ("tokens of the chosen only", 'touched = weight if data == "pairs" else counted', "touched = counted"),
        ("undesirable rows demonstrated", 'if data == "labels":', "if False:"),
        ("rejected rows demonstrated", "first = torch.arange(n) < n // 2", "first = torch.arange(n) < n"),
        ("prompts forgotten", "(shown * (lengths + prompts)).sum()", "(shown * lengths).sum()"),
        ("demonstrations are not weighted", "shown = weight * demonstrated", "shown = 1.0 * demonstrated"),
        (
            "half precision stays",
            "return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value",
            "return value",
        ),
        ("the first prompt token is learnt", "self.prompt_lengths[self.group] - 1", "self.prompt_lengths[self.group]"),
        ("counts carry a gradient", "column.detach().double().sum()", "column.double().sum()"),
        ("columns are not zeroed", "columns={**self.columns, **columns}", "columns=self.columns"),
        (
            "columns are not detached",
            "{name: column.detach() for name, column in self.columns.items()}",
            "self.columns",
        ),
    ),
    *of(
        "data/render.py",
        ("a template gets a BOS too", "if plain and ids[: len(start)] != start", "if ids[: len(start)] != start"),
        ("two BOS", "if plain and ids[: len(start)] != start", "if plain"),
        (
            "the EOS ends every turn",
            "return np.asarray([*ids, end] if ids",
            "return np.asarray([*ids, self.end_ids[0]] if ids",
        ),
        ("a space before completions", "ids = self._following(text)", "ids = self._ids(text)"),
        (
            "a text's own end is another",
            "return text[: found.start()], self._ends[found[1]]",
            "return text[: found.start()], self.end_ids[0]",
        ),
        ("sampling does not stop there", "*end_ids, self._turn_end]", "*end_ids]"),
        ("text and template share ids", "key = (opening.text, opening.turns is None)", "key = (opening.text, True)"),
        ("prompts are kept for ever", "if len(self._prompts) > PROMPTS:", "if False:"),
        ("the newest prompt goes", "self._prompts.popitem(last=False)", "self._prompts.popitem()"),
        ("a dialogue's space stays", "if opening.spoken:", "if False:"),
        ("rendered answers are taken", "self._refuse_rendered(source, (), [text])", "pass"),
        ("the template is no part of the key", '"template": tokenizer.chat_template,', ""),
    ),
    *of(
        "data/template.py",
        (
            "trimmed to nothing is something",
            'return said + turn.close if said != turn.lead else ""',
            "return said + turn.close",
        ),
        ("what is before the end is cut", "return said + turn.close if", "return said if"),
        ("the last token ends the turn", "place, _, end = min(places)", "place, _, end = max(places)"),
        ("what the template drops is lost", "if _letters(text) not in _letters(said):", "if False:"),
        ("another end is taken", "if not written.endswith(after):", "if False:"),
        ("today's date", 'if "strftime_now" in template:', "if False:"),
        ("turns of one speaker", 'if turns and turns[-1]["role"] == role:', "if False:"),
    ),
    *of(
        "data/audit.py",
        ("a tie is a win", "2 * (better > worse) + (better == worse)", "2 * (better >= worse)"),
        ("one judge agrees with himself", "if len(votes) > 1]", "]"),
        ("cycles of two", "if high and min(votes) == 0:", "if high:"),
        ("duplicates of the prompt", "content = key(example.content())", "content = key(example.prompt_text)"),
        ("a prompt's contradiction is another's", "(prompt, min(better, worse)", "(0, min(better, worse)"),
    ),
    *of(
        "data/store.py",
        ("the last block is lost", "        self._flush()\n        self._file.close()", "        self._file.close()"),
        ("blocks of another size", "number // BLOCK", "number // (BLOCK + 1)"),
    ),
    *of(
        "data/prepare.py",
        ("ties are kept", "if example.is_tie:", "if False:"),
        ("BOS is cut", "kept = int(prompt[0] == bos_id)", "kept = 0"),
        (
            "one side is cut",
            "tuple(c[:room] for c in encoded.completions)",
            "(encoded.completions[0][:room], *encoded.completions[1:])",
        ),
        ("leaks stay", '(None, 0, "leak") if leak else admit', "admit"),
        ("the recipe is no part of the key", ", json.dumps(asdict(recipe)))", ")"),
    ),
    *of(
        "data/views.py",
        ("a soft label has no weight", "e.weight if soft else e.confidence", "e.weight"),
        (
            "the second is the worst",
            "view.examples[i].example.shown for i in chosen), strict",
            "(0, 1) for i in chosen), strict",
        ),
    ),
    *of(
        "data/shapes.py",
        ("the second wins at 1", "2.0 - value)", "value - 1.0)"),
        ("rank 1 is the worst", "[-number for number in numbers]", "[number for number in numbers]"),
        ("a tie has a winner", 'if extras.pop("tie", False):', 'if extras.pop("tie", None) is None:'),
    ),
    *of(
        "data/published.py",
        ("the worse is chosen", "if second_is_better > 0", "if second_is_better < 0"),
        ("a tie is a win", "{} if second_is_better else", "{} if True else"),
        ("SHP turned round", '-1 if row["labels"] else 1', '1 if row["labels"] else -1'),
        ("SafeRLHF turned round", "1 if row[judgement] else -1", "-1 if row[judgement] else 1"),
        ("WebGPT turned round", 'row["score_1"], slice', 'row["score_0"], slice'),
        ("summaries turned round", '1 if row["choice"] else -1', '-1 if row["choice"] else 1'),
        ("the arena turned round", '{"model_a": -1, "model_b": 1}', '{"model_a": 1, "model_b": -1}'),
    ),
    *of(
        "scoring/forest.py",
        ("positions begin anew", "torch.arange(size, size + len(completions[r]))", "torch.arange(len(completions[r]))"),
        ("branches overlap", "at += len(completions[r])", "at += 0"),
        ("a second forest begins at 0", "offset += start + filling", "offset += 0"),
        ("large trees first", "key=lambda g: sizes[g])", "key=lambda g: -sizes[g])"),
    ),
    *of(
        "scoring/attention.py",
        ("branches see each other", "may[end:, start:end] = False", "pass"),
        ("a branch sees the future", "dtype=torch.bool).tril()", "dtype=torch.bool)"),
        ("merged with the shares swapped", "torch.lerp(own, seen, share)", "torch.lerp(seen, own, share)"),
        ("merged without the sum", "torch.logaddexp(lse_seen, lse_own)", "lse_own"),
        ("the prompt's keys learn from one branch", "dk[:, :, trunk] += dk_seen", "pass"),
        ("the prompt's values learn from one branch", "dv[:, :, trunk] += dv_seen", "pass"),
        ("a branch's view of the prompt does not learn", "dq_own + dq_seen", "dq_own"),
        ("scores are not scaled back", "dq.mul_(ctx.scale)", "dq"),
        ("a strip's keys alone learn", "dk[:, seen].baddbmm_(", "dk[:, seen].copy_(torch.zeros(())).baddbmm_("),
        ("a strip sees itself alone", "slice(tree.start, end)", "slice(start, end)"),
        (
            "a GPU's branches see each other",
            "(branch[i] == branch[j]) | (trunk[i] == branch[j])",
            "(trunk[i] == trunk[j])",
        ),
        ("dropout in attention is ignored", "if dropout or softcap is not None", "if softcap is not None"),
    ),
    *of(
        "scoring/sharing.py",
        ("windows are not looked at", "window is None or longest <= window", "True"),
        ("states are not compared", "worst <= near", "True"),
        ("other layers are taken for attention", "if kinds:", "if False:"),
        ("said every time", "reason not in _known.values()", "True"),
        ("dropout in attention is not seen", "if _drops_attention(policy):", "if False:"),
    ),
    *of(
        "scoring/narrow.py",
        ("all tokens are taken", "return (states[:, rows],)", "return (states,)"),
        ("put back in order", "index_copy_(1, rows, found)", "index_copy_(1, rows.argsort(), found)"),
        ("never", "if read is not None and", "if False and"),
        ("left whole by nobody", "_whole.add(policy.causal)", "pass"),
    ),
    *of(
        "scoring/score.py",
        ("prompts are not read", "[prompt_positions(batch)[:2]] if prompt else []", "[]"),
        ("rewards are not read", '[ends] if "scalar" in heads else []', "[]"),
        (
            "completions lie in their prompts",
            "self._completion_at = completion_at - self._prompts",
            "self._completion_at = completion_at",
        ),
        ("padding counts as read", "planted_tokens(batch) if shares", "padded_tokens(batch) if shares"),
    ),
    *of(
        "scoring/kv_cache.py",
        ("columns before a prompt are seen", "columns >= before[:, None]", "columns >= 0 * before[:, None]"),
        ("positions stand still", "self._positions = self._positions + 1", "pass"),
        ("equal prompts are mixed up", "[torch.tensor(which, device", "[torch.tensor(sorted(which), device"),
        ("rows leave without their keys", "(keys[rows], values[rows])", "(keys[: len(rows)], values[: len(rows)])"),
        ("left padding is seen", "mask[i, width - len(prompt) :] = 1", "mask[i] = 1"),
    ),
    *of(
        "scoring/generate.py",
        ("an answer ends again", "ended = going & torch.isin(ids, ends)", "ended = torch.isin(ids, ends)"),
        ("answers are mixed up", "tokens[live, step] = ids", "tokens[: len(ids), step] = ids"),
        ("weights stay by column", "weight.data = weight.data.contiguous()", "pass"),
    ),
    *of(
        "jobs/precision.py",
        ("errors are not looked at", "mode.error <= BOUNDS[mode.precision] and ", ""),
        ("slower is good enough", "mode.seconds * GAIN <= plain.seconds", "mode.seconds <= plain.seconds * GAIN"),
        ("measured anew on resume", "if before is not None:", "if False:"),
    ),
    *of(
        "config/search.py",
        ("a named sweep is searched", "if named is not None:", "if False:"),
        ("the same is proposed again", "wanted.seed + len(study.trials)", "wanted.seed"),
        ("what was begun is forgotten", "if self.begun:", "if False:"),
        (
            "one study takes all",
            "of = min(left, key=lambda one: len(one.study.trials) - len(one.begun))",
            "of = left[0]",
        ),
        ("studies of other settings are one", "o.partition", "'loss' not in o and o.partition"),
        ("a failed run is run again", 'elif status == "failed":', "elif False:"),
        ("an interrupted run is told", "if status in ENDED:", "if status:"),
        ("the upper end is not checked", 'for end in ("low", "high"):', 'for end in ("low",):'),
    ),
    *of(
        "scoring/logprobs.py",
        ("entropy without its own slope", "(found + entropy[:, None])", "found"),
        ("the target has no slope", "found.scatter_add_(1, targets[:, None], by_logp[:, None])", "pass"),
        ("the logits stay", "size = max(1, CHUNK // vocabulary)", "size = len(targets)"),
        ("dropout is drawn twice", "use_reentrant=False)", "use_reentrant=False, preserve_rng_state=False)"),
        ("top1 of the states", "logits.argmax(-1) == wanted", "logits.argmin(-1) == wanted"),
    ),
    *of(
        "scoring/store.py",
        ("damage is not noticed", "if file.metadata()[name] != _checksum(tensor)", "if False"),
        ("the boundary is no part of a row", 'len(prompt).to_bytes(8, "little") + prompt', "prompt"),
        ("what is known is computed again", "and self._get(k) is None", ""),
        ("a row is stored with its padding", "values[:length]", "values"),
        ("nobody waits", 'waiting for it")\n            lock.acquire()', 'waiting for it")'),
        ("what another wrote is not read", "self._read()\n                return", "return"),
        ("the second half of a key is not compared", "if self._second[at] == key[1]:", "if True:"),
    ),
    *of(
        "metrics/optimum.py",
        ("the mixture has no shares", "logps[sampled] + shares[:, None]", "logps[sampled]"),
        ("samples all weigh as the reference's", "return logps[self.reference] - ", "return 0 * "),
        ("the first policy is the reference", "return logps[self.reference] - ", "return logps[0] - "),
        ("rewards times β", "np.max(pool.rewards)) / betas", "np.max(pool.rewards)) * betas"),
        ("rewards are not centred", " - np.max(pool.rewards)) / betas", ") / betas"),
        ("Z of the wrong sign", ".sum(1) - log_z", ".sum(1) + log_z"),
        (
            "the reward of the reference",
            "reward, reference, column = p @ rewards",
            "reward, reference, column = u @ rewards",
        ),
        ("the mean of all samples", "p @ rewards, u @ rewards", "p @ rewards, rewards.mean()"),
        ("the reward's error is not about it", "p * (rewards - reward[:, None])", "p * rewards"),
        ("Z has no error", "along / column - p + u", "along / column"),
        ("the reference has no error in the KL", "along / column - p + u", "along / column - p"),
        ("the reference has no error in the gain", " - u * (rewards - reference)", ""),
        ("the gain's error at its β", "column * (p - u) - u", "along - u"),
        ("errors without policies", "np.flatnonzero(pool.counts)]", "[pool.reference]]"),
        ("policies pool their variance", "pool.source == k] for k in np.flatnonzero(pool.counts)", "k:] for k in [0]"),
        ("errors of n", "own.var(axis=-1, ddof=1)", "own.var(axis=-1)"),
        ("a sum's error is a mean's", "own.shape[-1] * own.var", "own.var"),
        ("effective size without squares", "1 / np.square(weights).sum(-1)", "1 / weights.max(-1)"),
        ("the reference may be thin", "np.minimum(_effective_size(p), _effective_size(u))", "_effective_size(p)"),
        ("the best prompt's size", "return column.min(0)", "return column.max(0)"),
        ("errors average", "np.sqrt(np.square(errors).sum(0)) / len(errors)", "errors.mean(0)"),
        (
            "dashed points give shares",
            "if right == len(roots) or not (sound[right - 1] and sound[right])",
            "if right == len(roots)",
        ),
        ("one end is reliable enough", "sound[right - 1] and sound[right]", "sound[right - 1]"),
        ("the other end is reliable enough", "sound[right - 1] and sound[right]", "sound[right]"),
        ("the curve goes on for ever", "right == len(roots) or not", "not"),
        ("shares at any KL", "if not kl >= LEAST_KL:", "if not kl >= 0:"),
        ("interpolated along the KL", "np.interp(math.sqrt(kl), roots,", "np.interp(kl, roots**2,"),
        ("an effective 99 will do", "RELIABLE_SIZE = 100", "RELIABLE_SIZE = 99"),
        (
            "a bound of dashed points",
            "sound = self.reliable\n        tangents",
            "sound = self.reliable | True\n        tangents",
        ),
        (
            "the largest reward is no bound",
            "np.minimum(tangents.min(1, initial=math.inf), self.largest)",
            "tangents.min(1)",
        ),
        ("tangents of slope 1 / β", "self.betas[sound] * (np", "1 / self.betas[sound] * (np"),
        ("mass of a sum", "ratio / len(ratio), pool", "ratio, pool"),
        ("β of half the KL", "_mean_kl(pools, middle) > kl", "_mean_kl(pools, middle) > kl / 2"),
        ("the span ends as wished", "min(highest, reach)", "highest"),
        ("best of all samples", "[pool.source == pool.reference])", ")"),
        ("best of n with replacement", "np.maximum(i - n, 0) / (i - 1)", "((i - 1) / i) ** n"),
        ("KL of best of n is log n", "np.log(n) - (n - 1) / n", "np.log(n)"),
        ("jackknife of a mean", "(total - 1) * left_out.var()", "left_out.var() / total"),
        ("places stay when one is left out", "weights * ordered[1:]", "weights * ordered[:-1]"),
    ),
    *of(
        "metrics/answers.py",
        ("the text's own length too", "[*lengths[:k], *lengths[k + 1 :]]", "lengths"),
        ("its own n-grams too", "second[gram] if count == first[gram] else first[gram]", "first[gram]"),
        ("against the others of all prompts", "for i in range(0, len(answers), per_prompt)]", "for i in [0]]"),
        ("one answer has others", "if per_prompt < 2:", "if per_prompt < 1:"),
        ("the longer of two as near", "min((abs(length - c), length)", "min((abs(length - c), -length)"),
        ("the shortest reference", "min((abs(length - c), length)", "min((0, length)"),
        ("nothing is like anything", "return float(r == 0)", "return 1.0"),
        ("bigrams at most", "ORDER, NO_MATCH = 4, 0.1", "ORDER, NO_MATCH = 2, 0.1"),
        ("no match is a half", "ORDER, NO_MATCH = 4, 0.1", "ORDER, NO_MATCH = 4, 0.5"),
        ("orders that a text is too short for", "min(ORDER, c) + 1)]", "min(ORDER, c + 1) + 1)]"),
        ("words alone", "range(1, min(ORDER, c) + 1)", "range(1, 2)"),
        ("counts add up over references", "max(first[gram], count)", "first[gram] + count"),
        ("the last reference alone", "max(first[gram], count)", "count"),
        ("the second largest is forgotten", "max(min(first[gram], count), second[gram])", "min(first[gram], count)"),
        ("each n-gram once", "sum(min(count, second", "sum(min(1, second"),
        ("shares of all words", "/ (c - n + 1)", "/ c"),
        ("longer is better", "min(0.0, 1 - r / c)", "(1 - r / c)"),
        ("short is no fault", "min(0.0, 1 - r / c)", "0.0"),
        ("penalty upside down", "min(0.0, 1 - r / c)", "min(0.0, 1 - c / r)"),
        ("a product for the mean", "sum(logs) / len(logs)", "sum(logs)"),
    ),
    *of(
        "metrics/rewardbench.py",
        (
            "subsets weigh alike",
            "sum(weights[n] * v for n, v in known.items()) / sum(weights[n] for n in known)",
            "sum(known.values()) / len(known)",
        ),
        ("subsets that are not there are wrong", "/ sum(weights[n] for n in known)", "/ sum(weights.values())"),
        ("math by its rows", '"math-prm": 984', '"math-prm": 447'),
        ("XSTest swapped", '"xstest-should-refuse": 154', '"xstest-should-refuse": 250'),
        ("overall of some sections", "if len(found) == len(SECTIONS):", "if found:"),
        ("overall is a sum", "sum(found.values()) / len(found)", "sum(found.values())"),
    ),
    *of(
        "metrics/held_out.py",
        ("completions for rows", 'len(np.unique(part["row"]))', 'len(part["row"])'),
        ("all rows in every slice", "values[named == name]", "values"),
        ("a slice of those without one", 'sorted(set(named) - {""})', "sorted(set(named))"),
    ),
    *of(
        "reports/compare/optimum.py",
        (
            "the last solid point is the first thin one",
            "np.insert(self.curve.kl, 0, 0.0)[thin[0]]",
            "self.curve.kl[thin[0]]",
        ),
        (
            "drawn along the KL",
            "np.interp(np.sqrt(kl), np.sqrt([0.0, *self.curve.kl])",
            "np.interp(kl, [0.0, *self.curve.kl]",
        ),
        ("drawn from nothing", "return self.curve.reference + gain", "return gain"),
        ("a share of the reward", "share = (gold - self.curve.reference) / most", "share = gold / most"),
        ("the base is known exactly", "self.base_stderr, share * self", "0.0, share * self"),
        ("the KL is known exactly", "share * self._slope(kl) * errors[1], ", ""),
        ("the KL's error has no slope", "share * self._slope(kl) * errors[1]", "share * errors[1]"),
        ("the optimum is known exactly", "errors[1], share * stderr)", "errors[1])"),
        ("the optimum's error counts whole", "share * stderr)", "stderr)"),
        ("a share's error is a gain's", "math.hypot(*parts) / most", "math.hypot(*parts)"),
        (
            "above the reward at one β",
            "gold - self.ceiling(kl), math",
            "gold - float(self.reward(np.array([kl]))[0]), math",
        ),
        ("a negative KL", "max(kl, 0.0)", "kl"),
        ("an error in KL of the other axis", "self._slope(kl) * kl_stderr, stderr)", "kl_stderr, stderr)"),
        ("the ceiling is known exactly", "kl_stderr, stderr)", "kl_stderr)"),
        ("β rises", "self.curve.kl, self.curve.betas)", "self.curve.kl, 1 / self.curve.betas)"),
        ("one bound for all prompts", "prompt_curve(pool, betas, most)", "prompt_curve(pool, betas, largest[0])"),
        ("best of more than there are", "if n < drawn", "if n <= 64"),
        ("two errors are sure", "SURELY = 3.0", "SURELY = 2.0"),
        ("doubts from below only", "if abs(mass - 1) >", "if 1 - mass >"),
    ),
    *of(
        "jobs/pooling.py",
        ("all seeds are the base's", "n, max_new_tokens, seed) for seed,", "n, max_new_tokens, 0) for seed,"),
        ("all samples are the base's", "_sampled(load, prompts, n,", "_sampled(loads[0], prompts, n,"),
        (
            "all say what the base says",
            "_scored(load, prompts, answers) for load",
            "_scored(loads[0], prompts, answers) for load",
        ),
        ("policies backwards", "for load in loads], axis=1)", "for load in loads[::-1]], axis=1)"),
        (
            "prompts before policies",
            "for some in by_policy for answer in some[p]]",
            "for some in by_policy for answer in some[0]]",
        ),
        ("the first prompt for all", "[prompts[p]], some", "[prompts[0]], some"),
        ("samples of the prompts before", "found[p * n : (p + 1) * n]", "found[p : p + n]"),
        ("the first part only", "range(0, len(some), ROWS)", "range(0, 1)"),
        ("parts that overlap", "answers[p][i : i + ROWS]", "answers[p][:ROWS]"),
        ("means per token", "score(policy, batch).logp.", "score(policy, batch).mean_logp."),
        ("judged under the last prompt", "world.gold(prompt, text) for text", "world.gold(prompts[-1], text) for text"),
        ("one largest reward", "world.largest(prompt) for", "world.largest(prompts[0]) for"),
        ("sources in turn", "np.repeat(np.arange(len(counts)), counts)", "np.arange(sum(counts)) % len(counts)"),
        ("own ends", "        policy.end_ids = ends\n", ""),
    ),
    *of(
        "jobs/optimum.py",
        ("the precision does not matter", 'run.config["trainer"]["precision"], longest]', "longest]"),
        ("the length does not matter", '["precision"], longest]', '["precision"]]'),
        ("the model does not matter", 'run.config["model"], run', "run"),
        ("the weights do not matter", '[run.summary["model_hash"], run', "[run"),
        ("the number does not matter", "[VERSION, counts, prompts,", "[VERSION, prompts,"),
        (
            "spread along the KL",
            "np.sqrt([max(known[run][0], 0.0) for run in front])",
            "[known[run][0] for run in front]",
        ),
        ("beaten runs too", "pareto(*zip(*known.values(), strict=True))", "range(len(known))"),
        ("nothing is left over", "samples - trained * each", "samples // 4"),
    ),
    *of(
        "data/world.py",
        ("the largest of one verb", "sum(nlargest(2, VERBS", "sum(nlargest(1, VERBS"),
        ("the largest without intensifiers", "max(INTENSIFIERS.values()) * sum", "sum"),
        ("the largest of any prompt", "_worth(self._factor(prompt) * best)", "_worth(1.25 * best)"),
        ("ties without noise go to the second", "np.heaviside(ahead, 0.5)", "np.heaviside(ahead, 0.0)"),
    ),
    *of(
        "jobs/judging.py",
        ("an unread answer is nothing", "value if math.isfinite(value) else worst", "value if value == value else 0.0"),
        ("the base's answers twice", 'Worth(own, of("base_sampled"))', "Worth(own, own)"),
    ),
    *of(
        "reports/compare/runs.py",
        ("the judge goes before the truth", "self.gold or self.judged", "self.judged or self.gold"),
    ),
    *of(
        "reports/compare/measures.py",
        ("a judged win is a loss", "np.heaviside(own - base, 0.5)", "np.heaviside(base - own, 0.5)"),
        ("the error of a whole, not of a sample", "prompts.std(ddof=1)", "prompts.std()"),
    ),
    *of(
        "rollouts/plan.py",
        ("later passes in the same order", "        if turn:\n", "        if turn < 0:\n"),
        ("every collection in one order", "+ collection) * 1_000_003 + turn", ") * 1_000_003 + turn"),
        ("collections begin anew", "start = collection * self.prompts", "start = 0"),
        ("passes are not counted", "(self.rows * self.passes)", "self.rows"),
        ("rows instead of prompts", "math.ceil(max_epochs * rows / prompts)", "math.ceil(max_epochs * rows)"),
    ),
    *of(
        "rollouts/source.py",
        ("answers of the first collection", "[self.plan.seed, number, self", "[self.plan.seed, 0, self"),
        ("one seed", "SeedSequence([self.plan.seed, number", "SeedSequence([0, number"),
        ("a prompt's answers apart", "answers[i * g : (i + 1) * g]", "answers[i::len(places)]"),
        ("scored against the policy", "module.reference or module.base, batch", "module, batch"),
        (
            "the reference is asked again",
            '        columns = {**columns, "ref_logps": scores.ref_logps}',
            "        pass",
        ),
        ("the coefficient stays", "self.module.objective = replace(self.module.objective, beta=beta)", "pass"),
        ("new answers after a kill", "        if state is not None:\n", "        if False:\n"),
        ("one collection for all", "if collection != self._number:", "if self._number is None:"),
        ("calibrated on every collection", "if not self.speaking.annotator.calibrated:", "if False:"),
    ),
    *of(
        "rollouts/collection.py",
        ("a filler counts", "float(not filler)", "1.0"),
        ("one answer to a prompt", "places = [row * g + k for", "places = [row * g for"),
        ("as wide as the collection", "column[places, :longest]", "column[places]"),
        (
            "ranks one after the other",
            "for place in sorted(at) for k in range(g)]",
            "for place in at for k in range(g)]",
        ),
        ("groups of one", "repeat_interleave(g)", "repeat_interleave(1)"),
    ),
    *of(
        "rollouts/examples.py",
        ("the worst first", "key=lambda k: -rewards[k]", "key=lambda k: rewards[k]"),
        ("a tie counts", "0.5 if scores[0] == scores[-1] else 1.0", "1.0"),
        ("always all answers", 'if pair == "random" else range(g)', "if False else range(g)"),
        ("the first prompt's rewards", "[i * g : (i + 1) * g].tolist()", "[:g].tolist()"),
    ),
    *of(
        "rollouts/kl.py",
        ("away from the target", "1 + answers / self.horizon * error", "1 - answers / self.horizon * error"),
        ("not clipped", "min(0.2, max(-0.2, kl / self.target - 1))", "kl / self.target - 1"),
    ),
    *of(
        "rollouts/measures.py",
        ("the sample's deviation", "std(1, correction=0)", "std(1)"),
        (
            "the reference's KL",
            "scores.logps.double(), scores.ref_logps.double()",
            "scores.ref_logps.double(), scores.logps.double()",
        ),
        ("entropy per answer", ".sum() / tokens)", ".sum() / len(flat))"),
        ("all answers are different", "len({tuple(ids.tolist()) for ids in group})", "len(group)"),
    ),
    *of(
        "run/held.py",
        ("any schema", "not in (None, SCHEMA)", "in ()"),
        ("any section", "if not isinstance(found.get(section, {}), dict):", "if False:"),
        ("any adapter", "if not isinstance(value, (kind, type(None))):", "if False:"),
        ("null steps stay null", 'found.get("resumed_at") or []', 'found.get("resumed_at")'),
        ("half a step", "isinstance(value, int) and _number(value)", "_number(value)"),
        ("no bound", "and abs(value) <= LARGEST", ""),
        ("words are numbers", "entry is None or _number(entry)", "True"),
        ("any step", "isinstance(value, list) and all(map(_whole, value))", "isinstance(value, list)"),
        ("any alarm", "isinstance(one, dict) and {*told} <= one.keys()", "isinstance(one, dict)"),
    ),
    *of(
        "run/finished.py",
        ("nothing is needed", "if name not in config), None)", "if False), None)"),
        ("any adapter", 'if run.adapted and not config["model"].get("adapter"):', "if False:"),
        ("what is missing is missing", "{**dict.fromkeys(KEYS), **summary}", "summary"),
    ),
    *of(
        "callbacks/belonging.py",
        ("nothing is looked at", "if checkpoint is not None and checkpoint.is_file():", "if False:"),
        ("nothing is too little", " or not held[name]:", ":"),
        ("any run's", '.get("request") != self.request', '.get("request") is None'),
        ("the checkpoint's fault for ever", "or self._begun:", ":"),
        ("nobody's fault", "if checkpoint is None or self._begun:", "if True:"),
    ),
    *of(
        "rollouts/guards.py",
        ("means, which one stumble moves", "np.median(", "np.mean("),
        ("of a running scale", 'seen.get("annotation_raw", seen["annotation"])', 'seen["annotation"]'),
        (
            "from the last high reward",
            "distance[-1] - distance[before].min() <= at",
            "distance[-1] - distance[-2] <= at",
        ),
        ("any reward that was higher", "reward[:-1] >= reward[-1]", "reward[:-1] > reward[-1]"),
        ("the last spread", '["annotation_spread"][0]', '["annotation_spread"][-1]'),
        ("any loss is one", "lost <= max(at * gain, moves)", "lost <= at * gain"),
        ("gain from nothing", "watched[peak] - watched[0], watched", "watched[peak], watched"),
        ("the reward may fall too", " or reward[-1] < reward[peak]", ""),
    ),
    *of(
        "callbacks/guards.py",
        ("a warning ends the run", 'if alarm.action != "warn"', "if alarm.action"),
        ("stopped runs go on", "trainer.should_stop or self.ends is not None", "trainer.should_stop"),
        ("the last weights, not the best", 'seen["watched"].argmax() == len(seen["watched"]) - 1', "True"),
        ("every time anew", "and name not in {alarm.guard for alarm in self.alarms}", ""),
        ("warnings keep nothing", 'if self.on[name].do != "warn"]', "]"),
        ("nothing goes back", "parameter.copy_(self.kept[name])", "pass"),
        ("not in a row", "for name in wrong}", "for name in {**self.wrong, **wrong}}"),
    ),
]


UNCHANGED = Mutant("the package as it is", "records.py", "", "")


def suites(mutant: Mutant) -> tuple[tuple[str, ...], ...]:
    """The tests that are run on it, one group after the other until one fails."""
    if mutant == UNCHANGED:
        return QUICK, SLOWER, *dict.fromkeys(OWN.values())
    own = next((tests for beginning, tests in OWN.items() if mutant.file.startswith(beginning)), None)
    return (own,) if own else (QUICK, SLOWER)


def try_one(mutant: Mutant) -> tuple[Mutant, str]:
    """'caught', 'SURVIVED', or why the mutant could not be tried. Runs in a process of its own, forked with torch."""
    source = (ROOT / "prefopt" / mutant.file).read_text()
    found = source.count(mutant.old)
    if found != 1 and mutant.old:
        return mutant, f"the text is found {found} times, not once"
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder, chdir(folder):
        for part in ("prefopt", "tests", "conf"):
            shutil.copytree(ROOT / part, part, ignore=shutil.ignore_patterns("__pycache__"))
        Path("prefopt", mutant.file).write_text(source.replace(mutant.old, mutant.new) if mutant.old else source)
        shutil.copy(ROOT / "pyproject.toml", "pyproject.toml")
        sys.path.insert(0, folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for tests in suites(mutant):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
            if code == pytest.ExitCode.TESTS_FAILED:
                return mutant, "caught"
            if code != pytest.ExitCode.OK:
                return mutant, "the tests did not run: " + Path("output").read_text().strip().splitlines()[-1]
    return mutant, "SURVIVED"


def main(wanted: list[str]) -> int:
    chosen = [m for m in MUTANTS if not wanted or any(w in m.name for w in wanted)]
    start, caught = time.monotonic(), 0
    torch.set_num_threads(1)
    with get_context("fork").Pool(PROCESSES, maxtasksperchild=1) as pool:
        unchanged = pool.apply_async(try_one, (UNCHANGED,))
        for mutant, verdict in pool.imap(try_one, chosen, chunksize=1):
            print(f"{verdict:10}{mutant.name}", flush=True)
            caught += verdict == "caught"
        passes = unchanged.get()[1] == "SURVIVED"
    print("passes" if passes else "FAILS", UNCHANGED.name, sep="    ")
    print(f"{caught} of {len(chosen)} mutants caught in {time.monotonic() - start:.0f} s")
    return 0 if passes and chosen and caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
