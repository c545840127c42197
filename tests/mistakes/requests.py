"""Options, groups and configuration files that are wrong by themselves."""

from __future__ import annotations

from tests.mistakes.asking import both, mistake, writes

DPO = "_target_: prefopt.objectives.dpo.DPO\n"
LAUGHS = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
LAUGHS += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]  # 10^10 values in ten lines
GLOBAL = "# @package _global_\n"
TWO = "trainer.devices=2 trainer.accelerator=cpu strategy=ddp"


def in_loss(content: str | bytes):
    return writes("mine/loss/own.yaml", content)


def in_experiment(content: str):
    return writes("mine/experiment/own.yaml", GLOBAL + content)


MADE = "os.mkdir, path: made"  # what would leave a folder behind


def in_hydra(section: str, content: str):
    return in_experiment(f"hydra:\n  {section}: {{{content}}}\n")


OPTIONS = [
    mistake(
        "loss=dpoo", "loss=dpoo: no such option; did you mean 'dpo'?", "accepted: bradley_terry, dpo, grpo", real=True
    ),
    mistake("loss@trainer=null", "a group's option is a name, or several in brackets", "Got NoneType"),
    mistake("optimiser.lr=1", "optimiser: no such key; did you mean 'optimizer'?", "accepted: cache_dir, data, debug"),
    mistake("los=dpo", "los: no such key; did you mean 'loss'?"),
    mistake("loss.betta=1", "loss.betta: no such key; did you mean 'beta'?", "accepted under loss: average, beta"),
    mistake("trainer.max_step=3", "trainer.max_step: no such key; did you mean 'max_steps'?"),
    mistake("+data.shuffle=true", "data.shuffle: no such key", "accepted under data: batch_size, batch_tokens"),
    mistake("+trainer.device=2", "trainer.device: no such key; did you mean 'devices'?"),
    mistake("preset=ipo_original", "preset=ipo_original is not for loss=dpo"),
    mistake("trainer.max_steps=0", "trainer.max_steps must be at least 1; got 0", real=True),
    mistake("trainer.max_steps=many", "trainer.max_steps: Value 'many'", "Integer"),
    mistake("data.batch_size=0", "data.batch_size must be at least 1; got 0"),
    mistake(
        "data.batch_size=4 data.micro_batch_size=8",
        "data.micro_batch_size must be at most data.batch_size, which is 4; got 8",
    ),
    mistake("data.soft=targett", "data.soft must be one of weight, target; got 'targett'; did you mean 'target'?"),
    mistake("loss=dpo,ipo", "loss=dpo,ipo: one value at a time"),
    mistake("loss.beta=[1", "loss.beta=[1: cannot be read: ", "accepted: key=value"),
    mistake("dpo", "dpo: cannot be read: ", "accepted: key=value"),
    mistake("--resume", "unrecognized arguments: --resume", "settings are key=value"),
]
LOSSES = [
    mistake("loss.beta=0", "loss.beta must be a number > 0; got 0"),
    mistake("loss.beta=-0.1", "loss.beta must be a number > 0; got -0.1", real=True),
    mistake("loss.beta=nan", "loss.beta must be a number > 0; got nan"),
    mistake("loss.beta=high", "loss.beta must be a number > 0; got 'high'"),
    mistake("loss.label_smoothing=0.5", "loss.label_smoothing must be a number >= 0 and < 0.5; got 0.5"),
    mistake(
        "loss=ipo data.soft=target", "data.soft=target: loss=ipo takes no soft target; data.soft=weight is for any"
    ),
    mistake("trainer.clip=inf", "trainer.clip must be a finite number; got inf"),
    mistake("strategy=deepspeed strategy.offload=maybe", "strategy.offload: "),
    mistake("trainer.accelerator=tpu", "trainer.accelerator must be one of auto, cpu, gpu, cuda"),
    mistake("optimizer.lr=-1", "optimizer or schedule: Invalid learning rate: -1"),
    mistake(
        "loss=bradley_terry source=rollouts",
        "source=rollouts: loss=bradley_terry trains nothing that answers; take source=recorded",
    ),
    mistake("loss=rloo source.samples=1", "source.samples must be at least 2: loss=rloo compares a prompt's answers"),
    mistake("loss=dpo source=rollouts source.samples=1", "source.samples must be at least 2: loss=dpo compares"),
    mistake(
        "loss=rloo model=tiny_lora model.adapter.dropout=0.1",
        "model.adapter.dropout must be 0: loss=rloo holds the policy against the one that answered",
        "got 0.1",
    ),
    mistake("loss=ppo data.batch_tokens=99", "data.batch_tokens must be null with source=rollouts"),
    mistake("loss=ppo source.prompts=8", "source.prompts must be at least data.batch_size=64; got 8"),
    mistake("loss=dpo source=rollouts source.kl_target=3", "source.kl_target: this loss has no KL coefficient"),
    mistake("loss=ppo loss.beta=0 source.kl_target=3", "source.kl_target: this loss has no KL coefficient"),
    mistake("loss=ppo source=rollout", "source=rollout: no such option; did you mean 'rollouts'?"),
    mistake("loss=ppo source.min_new_tokens=99", "source.min_new_tokens must be from 0 to source.max_new_tokens"),
    mistake("loss=ppo guards.kl.do=halt", "guards.kl.do must be one of off, warn, stop, rollback; got 'halt'"),
    mistake("loss=ppo guards.kll.at=1", "guards.kll: no such key; did you mean 'kl'?"),
    mistake("loss=ppo source.kl_target=3 source.kl_horizon=51", "source.kl_horizon must be above 51.2"),
    mistake("loss=kto source=rollouts data.batch_size=7", "source.prompts must be at least 8: loss=kto"),
    mistake(f"loss=ppo data.batch_size=1 {TWO}", "at least trainer.devices=2"),
    mistake(f"loss=ppo reward.scale=running {TWO}", "reward.scale must be none"),
    mistake("loss=ppo source.watch=runs/nowhere", "source.watch=runs/nowhere"),
    mistake("loss=ppo reward=modle", "reward=modle: no such option; did you mean 'model'?"),
    mistake("loss=ppo reward=model", "reward.name must be a run, hub name or folder with reward.kind=model", real=True),
    mistake("loss=ppo reward=model reward.name=runs/nowhere", "reward.name=runs/nowhere"),
    mistake("loss=ppo source=recorded", "source=recorded: loss=ppo learns from its own answers; take source=rollouts"),
]
DEVICES = [
    mistake("trainer.devices=2", "trainer.devices=2 needs strategy=ddp; strategy=single is one device"),
    mistake(
        "strategy=ddp trainer.devices=64 trainer.accelerator=gpu",
        "trainer.devices=64 with trainer.accelerator=gpu: this machine has ",
        "trainer.accelerator=cpu",
    ),
    mistake("trainer.accelerator=gpus", "trainer.accelerator must be one of auto, cpu, gpu", "did you mean 'gpu'?"),
    mistake("model=tiny_4bit", "model.quant needs bitsandbytes: pip install 'prefopt[quant]'", needs="bitsandbytes"),
]
TARGETS = [
    mistake(
        "loss._target_=os.system", "loss._target_=os.system is not called", "accepted: prefopt.objectives.*", real=True
    ),
    mistake("optimizer._target_=subprocess.run", "optimizer._target_=subprocess.run is not called", "torch.optim.*"),
    mistake("+loss.x._target_=os.system", "loss.x._target_: nothing below loss is built"),
    mistake("+loss.x=[{_target_:os.system}]", "loss.x.0._target_: nothing below loss is built"),
    mistake("loss._target_=null", "loss must be a section with a _target_"),
    mistake(
        "loss._target_=prefopt.objectives.base.torch.hub.load",
        "loss._target_=prefopt.objectives.base.torch.hub.load leads out of prefopt.objectives",
    ),
    mistake(
        "loss._target_=prefopt.objectives.dpo.DPOO",
        "loss._target_=prefopt.objectives.dpo.DPOO: no such class or function; did you mean 'DPO'?",
    ),
    mistake("optimizer._target_=torch.optim.AdamWW", "no such class or function; did you mean 'AdamW'?"),
    mistake("loss._target_=prefopt.objectives.dpo.dpo_loss.__class__", "leads out of prefopt.objectives"),
]
EXPERIMENT = "--config-dir mine experiment=own"
OTHER_LOGGING = " is none of Hydra's own; others can call anything"
HYDRA = [
    mistake(
        EXPERIMENT,
        f"hydra.job_logging{OTHER_LOGGING}",
        "accepted: hydra/job_logging=default, hydra/job_logging=disabled, ",
        make=in_hydra("job_logging", f"handlers: {{h: {{(): {MADE}}}}}, root: {{handlers: [h]}}"),
        real=True,
    ),
    mistake(
        EXPERIMENT,
        f"hydra.hydra_logging{OTHER_LOGGING}",
        make=in_hydra("hydra_logging", f"handlers: {{h: {{class: {MADE}}}}}, root: {{handlers: [h]}}"),
    ),
    mistake(
        "--config-dir mine +any@hydra.job_logging=own",
        f"hydra.job_logging{OTHER_LOGGING}",
        make=writes("mine/any/own.yaml", f"handlers: {{h: {{(): {MADE}}}}}\nroot: {{handlers: [h]}}\n"),
    ),
    mistake(
        EXPERIMENT,
        "hydra.callbacks is Hydra's own and must stay empty",
        make=in_hydra("callbacks", f"x: {{_target_: {MADE}}}"),
    ),
    mistake(
        "--config-dir mine hydra/callbacks=own",
        "hydra.callbacks is Hydra's own",
        make=writes("mine/hydra/callbacks/own.yaml", f"x: {{_target_: {MADE}}}\n"),
    ),
    mistake("+hydra.callbacks={x:{_target_:os.mkdir,path:made}}", "hydra.callbacks is Hydra's own"),
    mistake(EXPERIMENT, "hydra.job.env_set is Hydra's own", make=in_hydra("job", "env_set: {PATH: mine}")),
    mistake(
        "hydra.launcher.parallel={_target_:os.mkdir,path:made}",
        "hydra.launcher.parallel._target_: nothing below hydra is built",
    ),
    mistake(
        "+evil={_target_:os.mkdir,path:made} hydra.launcher.parallel=${evil}",
        "hydra.launcher.parallel._target_: nothing below hydra is built",
    ),
    mistake(
        EXPERIMENT,
        "hydra.sweeper.params=${hydra:help.template}: ${} is not followed there",
        make=in_hydra("sweeper", "params: '\\${hydra:help.template}'"),
    ),
    mistake(
        EXPERIMENT,
        "hydra.sweeper: ",
        "HydraConfig was not set",
        make=in_hydra("sweeper", "params: '${oc.decode:${hydra:help.template}}'"),
    ),
    mistake(
        "--config-dir mine --config-name own",
        "own.yaml: hydra.searchpath: pkg://mine.evil is no folder",
        make=both(
            writes("mine/own.yaml", "defaults: [train, _self_]\nhydra: {searchpath: ['pkg://mine.evil']}\n"),
            writes("mine/evil/__init__.py", "import os; os.mkdir('made')"),
        ),
    ),
    mistake("--experimental-rerun job.pickle", "--experimental-rerun reads a pickle, which can run code"),
]
OWN = "--config-dir mine loss=own"
FILES = [
    mistake(
        OWN, "own.yaml: its aliases (*name) stand for over 100000 values", real=True, make=in_loss("\n".join(LAUGHS))
    ),
    mistake(OWN, "own.yaml: its aliases", make=in_loss("a: &a [*a]\n")),
    mistake(OWN, "own.yaml: ", " bytes of YAML; at most 1048576 are read", make=in_loss("a: b\n" * 300_000)),
    mistake(OWN, "mine/loss/own.yaml:3: not YAML: ", "'\\t'", make=in_loss(f"{DPO}beta:\n\t- 1\n")),
    mistake(OWN, "mine/loss/own.yaml:3: not YAML: found duplicate key beta", make=in_loss(f"{DPO}beta: 1\nbeta: 2\n")),
    mistake(OWN, "mine/loss/own.yaml: cannot be read as YAML: ", make=in_loss("a: !!timestamp 2020\n")),
    mistake(OWN, "mine/loss/own.yaml: cannot be read as YAML: 'utf-8'", make=in_loss(b"beta: \xff\n")),
    mistake(
        OWN, "mine/loss/own.yaml:1: not YAML: ", "os.system", make=in_loss("!!python/object/apply:os.system [a]\n")
    ),
    mistake(OWN, "loss must be a section with a _target_", "got [1, 2]", make=in_loss("- 1\n- 2\n")),
    mistake(
        OWN,
        "loss.beta=${oc.decode:'{_target_: ",
        "${} is not followed there",
        make=in_loss(DPO + f"beta: \"\\\\${{oc.decode:'{{_target_: {MADE}}}'}}\"\n"),
    ),
    mistake(OWN, "loss._target_=os.system is not called", make=in_loss("_target_: os.system\ncommand: touch called\n")),
    mistake("--config-dir mine experiment=own", "trainer: ", "5", make=in_experiment("trainer: 5\n")),
    mistake("--config-dir mine experiment=own", "defaults must be a list", make=in_experiment("defaults: 5\n")),
    mistake("--config-dir mine experiment=own", "seed: Value 'zero'", make=in_experiment("seed: zero\n")),
    mistake("--config-dir nowhere loss=own", "Additional config directory '", "/nowhere' not found"),
]
