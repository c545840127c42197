"""Pipelines: what they are called, their stages, their folder."""

from __future__ import annotations

from tests.mistakes.asking import mistake, pairs, writes

OWN = "--config-dir mine pipeline=own"


def in_pipeline(content: str):
    return writes("mine/pipeline/own.yaml", content)


NAMES = [
    mistake(
        "pipeline=rlfh", "pipeline=rlfh: no such option; did you mean 'rlhf'?", "accepted: online_dpo, rlhf", real=True
    ),
    mistake("pipeline_dir=a", "pipeline_dir=a is for a pipeline; name one, e.g. pipeline=rlhf"),
    mistake("pipeline.ppo.loss.beta=1", "pipeline.ppo.loss.beta=1: no pipeline is named; take one, e.g. pipeline="),
    mistake("pipeline=rlhf run_dir=a", "run_dir is each stage's own in a pipeline; name pipeline_dir instead"),
    mistake(
        "-m pipeline=rlhf seed=0,1", "pipeline= is several runs, one after another: start it by itself, without -m"
    ),
    mistake("pipeline=rlhf sweep=offline", "sweep= names many runs: start them with -m (stage: sft)"),
    mistake("pipeline=rlhf pipeline.round=2", "pipeline.round: no such key; did you mean 'rounds'?"),
    mistake("pipeline=rlhf pipeline.rounds=0", "pipeline.rounds must be at least 1; got 0"),
    mistake("pipeline=rlhf pipeline.rounds=many", "pipeline.rounds: Value 'many'"),
    mistake("pipeline=rlhf trainer.max_step=3", "trainer.max_step: no such key; did you mean 'max_steps'?", real=True),
]
STAGES = [
    mistake(
        "pipeline=rlhf pipeline.pppo.loss.beta=0.3",
        "pipeline.pppo: no such stage; did you mean 'ppo'?",
        "accepted: sft, rm, ppo, fresh",
        real=True,
    ),
    mistake(
        "pipeline=rlhf pipeline.ppo.loss.betta=0.3",
        "loss.betta: no such key; did you mean 'beta'? (stage: ppo)",
        "accepted under loss: beta",
        real=True,
    ),
    mistake("pipeline=rlhf pipeline.ppo.source.samples=0", "source.samples must be at least 1; got 0 (stage: ppo)"),
    mistake("pipeline=rlhf pipeline.ppo.loss.beta=-1", "beta must be a number >= 0; got -1 (stage: ppo)"),
    mistake(
        "pipeline=rlhf pipeline.rm.loss=simpoo", "loss=simpoo: no such option", "did you mean 'simpo'?", "(stage: rm)"
    ),
    mistake(
        "pipeline=rlhf loss.beta=0.3",
        "loss.beta=0.3: every stage has a loss of its own",
        "pipeline.STAGE.loss.beta=0.3",
    ),
    mistake(
        "pipeline=rlhf reward=gold",
        "reward=gold: the stages differ in reward; name the stage: pipeline.ppo.reward=gold",
    ),
    mistake(
        "pipeline=rlhf pipeline.rm.data=jsonl pipeline.rm.data.train=b.jsonl",
        "data.train=b.jsonl: no such file; did you mean 'a.jsonl'? (stage: rm)",
        make=pairs("a.jsonl"),
    ),
    mistake(
        "pipeline=rlhf pipeline.rounds=2 data=jsonl data.train=a.jsonl",
        "pipeline.rounds=2: nobody judges fresh pairs: the true reward is known in the controlled world only",
        "name a judge: pipeline.fresh.reward=model pipeline.fresh.reward.name=RUN",
        make=pairs("a.jsonl"),
    ),
    mistake(
        "pipeline=rlhf pipeline.rounds=2 pipeline.fresh.reward=model pipeline.fresh.reward.name=runs/nowhere",
        "reward.name=runs/nowhere: no such folder",
        "(stage: fresh)",
    ),
    mistake(OWN, "pipeline.stages must be at least two; got []", make=in_pipeline("rounds: 1\n")),
    mistake(OWN, "pipeline.stage: no such key; did you mean 'stages'?", make=in_pipeline("stage: []\n")),
    mistake(
        OWN,
        "pipeline.stages: rm names sfft, no earlier stage; did you mean 'sft'?",
        make=in_pipeline("stages: [{name: sft, words: [loss=sft]}, {name: rm, start: sfft, words: []}]\n"),
    ),
]
FOLDERS = [
    mistake("pipeline=rlhf pipeline_dir=a", "/a holds other files and no pipeline", make=writes("a/b", "")),
    mistake(
        "pipeline=rlhf pipeline_dir=a",
        "/a holds another pipeline: online_dpo; name a new pipeline_dir",
        make=writes("a/pipeline.json", '{"pipeline": "online_dpo", "stages": []}'),
    ),
    mistake(
        "pipeline=rlhf pipeline_dir=a", "/a: its pipeline.json cannot be read", make=writes("a/pipeline.json", "{")
    ),
    mistake("pipeline=rlhf pipeline_dir=a", "/a is a file; name a folder", make=writes("a", "")),
]
