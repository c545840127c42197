"""Answers to files and in the terminal, from runs and from any model; the best of several by a reward model."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForSequenceClassification, GenerationConfig

from prefopt import sample
from prefopt.config import compose_request, config_dir, read_keys
from prefopt.data.prompts import Prompt, read_prompts
from prefopt.errors import INTERRUPTED, OK, WRONG, RequestError
from prefopt.jobs.assemble import build_module, prepare_parts
from prefopt.jobs.chat import Shown
from prefopt.jobs.judging import judge_runs
from prefopt.jobs.loading import open_judge, open_model, open_run
from prefopt.jobs.sample import Reply, open_speaker
from prefopt.reports.compare.runs import read_runs
from prefopt.rewards.model import judged
from prefopt.run import finished_run
from prefopt.settings import SampleSettings
from tests.models.saved import pairs_file, saved_model, tokenizer, trained

# Turns end in <end>, which neither the tokenizer nor the model's settings name as an end.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


class Made:
    """A policy's run under LoRA, a reward model's run, and a base with a chat template; the prompts of a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, saved_model(folder / "base")
        for name, options in (("run", ["model=hf_lora"]), ("judge", ["model=hf", "loss=bradley_terry"])):
            (folder / name).mkdir()
            pairs_file(folder / name)
            found = trained(folder / name, f"model.name={self.base}", "optimizer.lr=0.05", *options)
            setattr(self, name, str(found))
        self.chats = saved_model(folder / "chats", seed=3)
        words = tokenizer(19)
        words.add_tokens(["user", "assistant", "<end>"], special_tokens=True)
        words.chat_template = TEMPLATE
        words.save_pretrained(self.chats)
        self.end = words.convert_tokens_to_ids("<end>")
        self.prompts = str(folder / "prompts.jsonl")
        Path(self.prompts).write_text('{"prompt": "w3 w4"}\n\n{"prompt": "w5", "chosen": "w6"}\n')


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefopt.sample", *arguments])
    return sample.main()


def asked(*overrides: str) -> SampleSettings:
    """The settings of a request, which says "max_new_tokens=5" unless told otherwise."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return read_keys(compose("sample", ["max_new_tokens=5", *overrides]), SampleSettings)


# ---------------------------------------------------------------- files


def test_a_file_is_answered(made, tmp_path, monkeypatch):
    """n answers a prompt in the prompts' order, the same again by seed, others by another."""
    found = []
    for i, seed in enumerate((0, 0, 1)):
        more = ["n=3", "max_new_tokens=4", f"seed={seed}"]
        assert (
            call(monkeypatch, f"run={made.run}", f"prompts={made.prompts}", f"out={tmp_path / str(i)}.jsonl", *more)
            == OK
        )
        found.append([json.loads(line) for line in (tmp_path / f"{i}.jsonl").open()])
    first = found[0]
    assert [row["prompt"] for row in first] == ["w3 w4", "w5"]
    assert all(len(row["answers"]) == 3 and set(row) == {"prompt", "answers"} for row in first)
    assert all(1 <= len(answer.split()) <= 4 for row in first for answer in row["answers"] if answer)
    assert first == found[1] != found[2]


def test_answers_are_the_runs(made):
    """The greedy ones that training wrote down, drawn again from the folder."""
    rows = [json.loads(line) for line in (Path(made.run) / "samples.jsonl").open()]
    speaker = open_speaker(asked(f"run={made.run}", "temperature=0", "max_new_tokens=4"), finished_run(made.run))
    found = speaker.answers([Prompt(row["prompt"]) for row in rows])
    assert [answers.texts for answers in found] == [[row["greedy"]] for row in rows]
    assert any(row["greedy"] != row["base_greedy"] for row in rows)


def test_the_best_of_several_is_kept(made, tmp_path, monkeypatch):
    """The rewards that transformers' own classifier gives are the largest of each group of four."""
    options = [f"run={made.run}", f"prompts={made.prompts}", f"reward.name={made.judge}", "max_new_tokens=4"]
    assert call(monkeypatch, *options, f"out={tmp_path / 'all.jsonl'}", "n=8") == OK
    assert call(monkeypatch, *options, f"out={tmp_path / 'best.jsonl'}", "n=2", "best_of=4") == OK
    every, best = ([json.loads(line) for line in (tmp_path / f"{n}.jsonl").open()] for n in ("all", "best"))
    model = AutoModelForSequenceClassification.from_pretrained(Path(made.judge) / "model")
    words = tokenizer()
    for whole, kept in zip(every, best, strict=True):
        texts = [f"{whole['prompt']} {answer} <eos>" for answer in whole["answers"]]
        with torch.no_grad():  # our tokenizer writes no <bos>
            rewards = [float(model(**words(text, return_tensors="pt")).logits) for text in texts]
        assert whole["rewards"] == pytest.approx(rewards, abs=1e-4)
        for half in (0, 1):
            group = range(4 * half, 4 * half + 4)
            winner = max(group, key=lambda i: rewards[i])
            assert kept["answers"][half] == whole["answers"][winner]
            assert kept["rewards"][half] == pytest.approx(rewards[winner], abs=1e-4)
        assert len(set(whole["answers"])) > 4


def test_what_the_judge_cannot_read_never_wins(made):
    """An answer that begins with a template's mark has no reward; an empty one has that of its end."""
    judge = open_judge(made.judge)
    found = judged(judge, "w3 w4", ["<|im_start|> w5", "", "w5"])
    assert found[0] != found[0]
    assert found[1] == found[1] != found[2]
    long = judged(judge, "w3 w4", ["w5 " * 200, "w5"])  # more than the model has positions
    assert long[0] != long[0]
    assert long[1] == pytest.approx(found[2])
    (alone,) = judged(judge, "w3 w4", ["<|im_start|> w5"])  # with nothing left to ask the model
    assert alone != alone
    speaker = open_speaker(asked(f"run={made.run}", "best_of=2", f"reward.name={made.judge}"), finished_run(made.run))
    assert speaker._kept(Prompt("w3 w4"), ["<|im_start|>", "w5"]) == Reply(["w5"], [pytest.approx(found[2])])


def test_the_answers_of_runs_are_judged(made):
    """As transformers' own classifier judges them, prompt and answer and end."""
    runs, _ = judge_runs(read_runs([Path(made.run)]).runs, made.judge)
    model = AutoModelForSequenceClassification.from_pretrained(Path(made.judge) / "model")
    words = tokenizer()
    (worth,) = (run.judged for run in runs)
    for row, own, base in zip(runs[0].samples, worth.own, worth.base, strict=True):
        for answers, rewards in ((row["sampled"], own), (row["base_sampled"], base)):
            with torch.no_grad():
                expected = [
                    float(model(**words(f"{row['prompt']} {said} <eos>", return_tensors="pt")).logits)
                    for said in answers
                ]
            assert rewards == pytest.approx(expected, abs=1e-4)
    assert len({value for said in worth.own for value in said}) > 1


def test_sampling_stops_at_every_end(made, tmp_path):
    """That of the template's turns too, which only the renderer knows; and those of the generation settings."""
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(made.chats)
    opened = open_model(made.chats)
    assert set(opened.policy().end_ids) == {2, 7, made.end}
    speaker = open_speaker(asked(f"model.name={made.chats}", "max_new_tokens=60"), None)
    drawn: list[list[int]] = []
    for _ in range(20):
        drawn.append([])
        speaker.answers([Prompt("w3")], lambda tokens: drawn[-1].append(int(tokens[0])))
    assert all(not {2, 7, made.end} & set(ids[:-1]) for ids in drawn)
    assert {ids[-1] for ids in drawn} >= {7, made.end}
    run = open_run(finished_run(made.run))
    assert run.policy().end_ids == run.renderer.end_ids


def test_training_stops_at_the_end_of_turn_too(made, tmp_path):
    """The policy that trains and the base it is compared with end their answers as the data does."""
    folders = [f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    asked = ["model=hf", f"model.name={made.chats}", "data=jsonl", f"data.train={pairs_file(tmp_path, 96)}", *folders]
    request = compose_request(asked)
    parts = prepare_parts(request)
    assert parts.dataset.train[0].completions[0][-1] == made.end
    module = build_module(request, parts.base)
    assert made.end in parts.renderer.end_ids == module.policy.end_ids
    with module.base.policy(torch.device("cpu")) as base:
        assert base.end_ids == parts.renderer.end_ids


def test_a_reward_model_is_not_padded_with_the_end_of_turn(tmp_path):
    """transformers reads the reward before the padding: there, the answer would lose its last token."""
    base = saved_model(tmp_path / "base", seed=3)
    words = tokenizer(19, pad_token="<end>")
    words.add_tokens(["user", "assistant"], special_tokens=True)
    words.chat_template = TEMPLATE
    words.save_pretrained(base)
    run = trained(tmp_path, "model=hf", f"model.name={base}", "loss=bradley_terry")
    config = json.loads((run / "model/config.json").read_text())
    assert config["pad_token_id"] not in (None, words.convert_tokens_to_ids("<end>"))


def test_a_runs_model_reads_text_as_the_run_does(made, tmp_path):
    """RUN and RUN/model are one: a tokenizer that has a template does not make turns of what trained as plain text."""
    named = ["model=hf", f"model.name={made.chats}", "data.prompts=text"]
    (tmp_path / "rows").mkdir()
    rows = f"data.train={pairs_file(tmp_path / 'rows', 96)}"
    for loss in ("dpo", "bradley_terry"):
        trained(tmp_path, *named, f"loss={loss}", rows, f"run_dir={tmp_path / loss}")
    whole, inside = (open_judge(f"{tmp_path}/bradley_terry{end}") for end in ("", "/model"))
    assert not inside.renderer.chat
    assert judged(inside, "w3 w4", ["w5", "w6 w8"]) == judged(whole, "w3 w4", ["w5", "w6 w8"])
    opened = open_model(f"{tmp_path}/dpo/model")
    run = open_run(finished_run(f"{tmp_path}/dpo"))
    assert not opened.renderer.chat
    assert opened.renderer.prompt("w3").tolist() == run.renderer.prompt("w3").tolist()
    assert open_model(f"{tmp_path}/dpo/model", chat=True).renderer.chat
    shutil.copytree(tmp_path / "dpo/model", tmp_path / "elsewhere/model")
    assert open_model(str(tmp_path / "elsewhere/model")).renderer.chat


def test_prompts_of_every_shape(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": "x"}, {"prompt": [turns[0]]}, {"messages": turns}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts(str(tmp_path / "p.jsonl"), "prompts")
    assert [prompt.prompt for prompt in found] == ["x", (turns[0],), (turns[0],)]
    (tmp_path / "p.txt").write_text("one\n\n two \r\n")
    assert read_prompts(str(tmp_path / "p.txt"), "prompts") == [
        Prompt("one", f"{tmp_path / 'p.txt'}:1"),
        Prompt(" two ", f"{tmp_path / 'p.txt'}:3"),
    ]


def test_rows_of_training_ask_what_they_ask_there(tmp_path):
    """Where the prompt stands in no column of its own."""
    asked = "\n\nHuman: a\n\nAssistant:"
    (tmp_path / "hh.jsonl").write_text(json.dumps({"chosen": f"{asked} b", "rejected": f"{asked} c"}) + "\n")
    (tmp_path / "alpaca.csv").write_text("instruction,input,output\na,x,b\nc,y,d\n")
    assert read_prompts(str(tmp_path / "hh.jsonl"), "prompts") == [Prompt(asked, f"{tmp_path / 'hh.jsonl'}:1")]
    assert [prompt.prompt for prompt in read_prompts(str(tmp_path / "alpaca.csv"), "prompts")] == ["a\nx", "c\ny"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "p.jsonl",
            '{"prompt": "x"}\n{"prmpt": "x"}\n',
            "p.jsonl:2: no column prompt or messages; did you mean",
        ),
        ("p.jsonl", '{"prompt": 3}\n', "p.jsonl:1: column 'prompt' must be text"),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "b"}]}\n', "holds an answer and no question"),
        ("p.jsonl", "{\n", "p.jsonl:1: not JSON"),
        ("p.txt", "\n", "holds no prompts"),
        ("p.doc", "x", ".doc is not read"),
    ],
)
def test_a_wrong_file_names_its_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError) as error:
        read_prompts(str(tmp_path / name), "prompts")
    assert said in str(error.value)


# ---------------------------------------------------------------- a conversation


def talk(monkeypatch, capsys, lines: list[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code = call(monkeypatch, *arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_chat_remembers_until_it_is_reset(made, monkeypatch, capsys):
    """Every prompt is the template's rendering of all turns so far; EOF ends it well."""
    seen: list[str] = []
    from prefopt.jobs.sample import Speaker

    ids = Speaker.ids
    words = open_model(made.chats).base.tokenizer

    def spy(self, prompt):
        found = ids(self, prompt)
        seen.append(words.decode(found))
        return found

    monkeypatch.setattr(Speaker, "ids", spy)
    lines = ["w3", "w4", "/reset", "w5", "/rest", "  "]
    code, out, err = talk(monkeypatch, capsys, lines, f"model.name={made.chats}", "max_new_tokens=3", "temperature=0")
    assert code == OK
    assert seen[0] == "user w3 <end> assistant"
    assert seen[1].startswith("user w3 <end> assistant")
    assert seen[1].endswith("user w4 <end> assistant")
    assert seen[2] == "user w5 <end> assistant"
    assert len(seen) == 3
    first = seen[1].removeprefix(seen[0]).split("<end>")[0].strip()
    assert first
    assert first in out
    assert "/rest: no such command; did you mean '/reset'?" in err


def test_a_model_without_a_template_completes_text(made, monkeypatch, capsys):
    """Nothing is remembered: the same line has the same greedy answer; /quit ends it."""
    arguments = [f"run={made.run}", "temperature=0", "max_new_tokens=4"]
    code, out, err = talk(monkeypatch, capsys, ["w3 w4", "w3 w4", "/quit", "w5"], *arguments)
    assert code == OK
    answers = [part.strip() for part in out.split("> ")[1:]]
    assert len(answers) == 3
    assert answers[0] == answers[1] != ""
    assert answers[2] == ""
    assert "nothing is remembered" in err


def test_the_best_answer_is_shown(made, monkeypatch, capsys):
    arguments = [f"run={made.run}", f"reward.name={made.judge}", "best_of=3", "max_new_tokens=4"]
    code, out, _ = talk(monkeypatch, capsys, ["w3 w4"], *arguments)
    assert code == OK
    assert len(out.splitlines()) == 2


def test_what_cannot_be_asked_is_said_and_forgotten(made, monkeypatch, capsys):
    """Text with a template's mark, and more than the model holds; the conversation goes on."""
    lines = ["<|im_start|> w3", " ".join(["w3"] * 130), "w3"]
    code, out, err = talk(monkeypatch, capsys, lines, f"model.name={made.chats}", "max_new_tokens=3", "temperature=0")
    assert code == OK
    assert "as if a chat template had been applied" in err
    assert "this conversation: 133 tokens and max_new_tokens=3 exceed the model's 128" in err
    assert out.splitlines()[-2].startswith("> > > w")


def test_ctrl_c(made, monkeypatch, capsys):
    """During an answer it stops the answer, before one it ends the chat, before the model is there the command."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prefopt.jobs.sample.generate", stop)
        code, out, _ = talk(patch, capsys, ["w3", "w4"], f"run={made.run}", "max_new_tokens=3")
    assert (code, out) == (OK, "> \n> \n> \n")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.input", stop)
        assert call(patch, f"run={made.run}") == OK
    with monkeypatch.context() as patch:
        patch.setattr("prefopt.jobs.sample.open_speaker", stop)
        assert call(patch, f"run={made.run}") == INTERRUPTED


def test_model_text_does_not_steer_the_terminal(capsys):
    """Colours, bells and returns are spelled out, also when they are cut over tokens; half a character waits."""
    pieces = {1: "a\x1b", 2: "[31mred\r\n", 3: "\N{REPLACEMENT CHARACTER}", 4: "\x07\u202e end\t."}

    class Renderer:
        def text(self, ids):
            return "".join(pieces[i] for i in ids).replace("\N{REPLACEMENT CHARACTER}\x07", "é\x07")

    shown = Shown(type("Speaker", (), {"renderer": Renderer()})())
    for i in pieces:
        shown(torch.tensor([i]))
        if i == 3:
            assert capsys.readouterr().out == "a\\x1b[31mred\\r\n"
    shown.end(Renderer().text(list(pieces)))
    assert capsys.readouterr().out == "é\\x07\\u202e end\t.\n"


def test_folders_may_lie_under_the_home_folder(made, monkeypatch):
    """transformers do not know `~`: a run's judge, a model and an adapter are named to them in full."""
    monkeypatch.setenv("HOME", str(made.folder))
    judge, run, base = (place.replace(str(made.folder), "~") for place in (made.judge, made.run, made.base))
    assert judged(open_judge(judge), "w3", ["w5"]) == judged(open_judge(f"{judge}/model"), "w3", ["w5"])
    assert open_model(base).policy().size() == open_model(made.base).policy().size()
    assert open_model(f"{run}/model").base.adapter == f"{made.run}/model"


@pytest.mark.parametrize("name", ["config.json", "summary.json", "model/config.json"])
def test_a_run_whose_files_were_cut_is_refused(made, tmp_path, name):
    run = shutil.copytree(made.judge, tmp_path / "run")
    (run / name).write_text('{"loss": ')
    with pytest.raises(RequestError, match=rf"\Arun={run}\S*: its {Path(name).name} cannot be read: "):
        assert finished_run(str(run)).judges


# ---------------------------------------------------------------- wrong requests

FILES = ["prompts=PROMPTS", "out=OUT"]
WRONG_SAMPLES = [
    ([], "run or model.name must be given, and only one"),
    (["run=RUN", "model.name=gpt2"], "run or model.name must be given, and only one"),
    (["run=RUNN"], "no run there: no summary.json; did you mean 'run'?"),
    (["run=JUDGE"], "trained a reward model, which cannot answer; it judges with reward.name"),
    (["model.name=CLASSIFIER"], "is a reward model, which cannot answer; judge with reward.name"),
    (["run=RUN", "prompts=PROMPTS"], "prompts and out must be given together"),
    (["run=RUN", "prompts=PROMPT", "out=OUT"], "no such file; did you mean 'prompts.jsonl'?"),
    (["run=RUN", "prompts=PROMPTS", "out=PROMPTS"], "exists; name a new file"),
    (["run=RUN", *FILES, "n=0"], "n must be at least 1"),
    (["run=RUN", "n=2"], "n must be 1 in a chat"),
    (["run=RUN", *FILES, "temperature=-1"], "temperature must be at least 0"),
    (["run=RUN", *FILES, "temperature=0", "n=2"], "temperature must be above 0 where a prompt is answered more than"),
    (["run=RUN", *FILES, "top_p=0"], "top_p must be in (0, 1]"),
    (["run=RUN", *FILES, "max_new_tokens=0"], "max_new_tokens must be at least 1"),
    (["run=RUN", *FILES, "batch_size=0"], "batch_size must be at least 1"),
    (["run=RUN", *FILES, "best_of=4"], "best_of must be given with reward.name"),
    (["run=RUN", *FILES, "best_of=1", "reward.name=JUDGE"], "best_of must be at least 2"),
    (["run=RUN", "reward.name=JUDGE"], "reward.name must be given with best_of or prompts=FILE"),
    (["run=RUN", *FILES, "reward.name=RUN"], "this run trained loss=dpo, no reward model"),
    (["run=RUN", "device=cudda"], "device must be one of auto, cpu, cuda; got 'cudda'; did you mean 'cuda'?"),
    (["run=RUN", "model.dtype=float23"], "did you mean 'float32'?"),
    (["run=RUN", "chat=true"], "has no chat template; chat=false completes text"),
    (["run=RUN", "chat=maybe"], "chat"),
    (["model.name=gpt2", "base=there"], "base must be left out with model.name"),
    (["run=RUN", "temprature=1"], "temprature: no such key; did you mean 'temperature'?"),
    (["run=RUN", "model.nam=x"], "model.nam: no such key; did you mean 'name'?"),
    (["run=RUN", "+reward.typo=1"], "reward.typo"),
    (["run=RUN", "+typo=1"], "typo: no such key"),
    (["run=RUN", "seed=often"], "seed"),
    (
        ["run=RUN", *FILES, "max_new_tokens=127"],
        "jsonl:1: 2 tokens and max_new_tokens=127 exceed the model's 128",
    ),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG_SAMPLES)
def test_a_wrong_request_is_answered_in_two_lines(made, tmp_path, monkeypatch, capsys, arguments, said):
    places = {"RUNN": f"{made.run}n", "RUN": made.run, "JUDGE": made.judge, "CLASSIFIER": f"{made.judge}/model"}
    places |= {
        "PROMPTS": made.prompts,
        "PROMPT": made.prompts.replace("prompts.", "promts."),
        "OUT": f"{tmp_path}/o.jsonl",
    }
    given = [f"{key}={places.get(value, value)}" for key, _, value in (a.partition("=") for a in arguments)]
    assert call(monkeypatch, *given) == WRONG
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())
