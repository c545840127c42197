"""Conversations to text by a tokenizer's chat template, and what that template writes around an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prefopt.data.examples import Message
from prefopt.errors import RequestError, first_line

PROBE = "prefopt-probe"  # an answer that no template changes or contains
# Some templates write today's date (Llama 3.2, SmolLM3, Granite): the same rows would be other tokens tomorrow, and a
# resumed run would train on other data. A macro of the same name stands before transformers' own function.
FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format | replace('%d', '26') | replace('%B', 'July') | replace('%b', 'Jul')"
    " | replace('%m', '07') | replace('%Y', '2024') | replace('%A', 'Friday') }}{% endmacro %}{{ '' }}"
)
WAY_OUT = "render these rows yourself and set data.templated=true"


@dataclass(frozen=True, slots=True)
class Turn:
    """How a template writes an answer after the generation prompt: lead, answer, close, end token, rest.

    Llama 2 has the lead " " and the close " "; Qwen3 leads with an empty <think> block. What a template without a token
    of its own writes after an answer (a line break) is all close.
    """

    lead: str
    close: str
    end: str  # the end-of-turn token, "" where the template writes none
    rest: str  # a line break, an EOS after the end-of-turn token: no part of the completion


class ChatTemplate:
    """A tokenizer's own template. Every refusal is one line that names the row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.turn = self._find_turn() if tokenizer.chat_template else None

    def prompt(self, turns: Sequence[Message], source: str) -> str:
        return self._render(turns, source, add_generation_prompt=True)

    def answer(self, turns: Sequence[Message], before: str, text: str, source: str) -> str:
        """What the template writes for this answer after `before`, the prompt, up to its end-of-turn token.

        Empty when the template trims the answer to nothing.
        """
        turn = self.turn
        if turn is None:
            raise RequestError(f"{source}: the chat template does not show how it ends an answer; {WAY_OUT}")
        whole = self._render([*turns, {"role": "assistant", "content": text}], source)
        if not whole.startswith(before):
            raise RequestError(f"{source}: {self._why_no_prefix(turns, before, whole, source)}; {WAY_OUT}")
        written, after = whole[len(before) :], turn.close + turn.end + turn.rest
        if not written.endswith(after):
            raise RequestError(
                f"{source}: the chat template ends this answer in {written[-20:]!r}, others in {after!r}"
            )
        said = written[: len(written) - len(after)]
        if _letters(text) not in _letters(said):
            raise RequestError(f"{source}: the chat template leaves out a part of this answer; {WAY_OUT}")
        return said + turn.close if said != turn.lead else ""

    def _find_turn(self) -> Turn | None:
        """From a conversation of its own; None where the template writes no answer, or refuses all of these."""
        user = {"role": "user", "content": "Hi"}
        for turns in ([user], [{"role": "system", "content": "Help."}, user]):
            try:
                before = self.prompt(turns, "")
                whole = self._render([*turns, {"role": "assistant", "content": PROBE}], "")
            except RequestError:
                continue
            head, found, tail = whole.rpartition(PROBE)
            if found:
                return self._split(head[len(before) :] if head.startswith(before) else "", tail)
        return None

    def _split(self, lead: str, tail: str) -> Turn:
        """The end-of-turn token is the first token of the tokenizer's own that the template writes after an answer."""
        tokens = (str(token.content) for token in self.tokenizer.added_tokens_decoder.values())
        places = [(tail.find(token), -len(token), token) for token in tokens if token in tail]
        if not places:
            return Turn(lead, tail, "", "")
        place, _, end = min(places)
        return Turn(lead, tail[:place], end, tail[place + len(end) :])

    def _why_no_prefix(self, turns: Sequence[Message], before: str, whole: str, source: str) -> str:
        bare = self._render(turns, source)
        if before.startswith(bare) and whole.startswith(bare):
            return f"the chat template's generation prompt {before[len(bare) :]!r} does not begin its answers"
        return "the chat template writes the prompt differently once an answer follows"

    def _render(self, turns: Sequence[Message], source: str, *, add_generation_prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise RequestError(
                f"{source}: messages need a chat template, and this tokenizer has none; give the prompt as text"
            )
        said: list[Any] = list(turns)
        try:
            template = self.tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = FIXED_DATE + template
            return str(
                self.tokenizer.apply_chat_template(
                    said, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # roles and orders that it does not know
            raise RequestError(f"{source}: the chat template refuses these messages: {first_line(error)}") from error


def _letters(text: str) -> str:
    """Templates trim answers, and may set other line breaks around thoughts."""
    return "".join(text.split())


# ---------------------------------------------------------------- text as turns

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def dialogue(text: str) -> list[Message]:
    """The turns of an HH dialogue, "\\n\\nHuman: … \\n\\nAssistant:", without the last, empty one; [] of other text.

    The space after a speaker is dropped. What one speaker says in several turns becomes one: templates alternate.
    """
    whole = "\n\n" + text.lstrip("\n")
    if not whole.startswith("\n\nHuman:") or "\n\nAssistant:" not in whole:
        return []
    _, *parts = SPEAKER.split(whole)
    turns: list[Message] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLES[speaker], said.removeprefix(" ")
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{content}"}
        else:
            turns.append({"role": role, "content": content})
    if turns[-1]["role"] != "assistant" or turns.pop()["content"].strip():
        raise ValueError(r"a dialogue must end in '\n\nAssistant:', where the answer begins")
    return turns
