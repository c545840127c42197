"""A conversation in the terminal. What the model writes is shown without control codes, as it is drawn."""

from __future__ import annotations

import re

from torch import Tensor

from prefopt.data.examples import Message
from prefopt.data.prompts import Prompt
from prefopt.errors import OK, RequestError, nearest, plain
from prefopt.jobs.sample import Speaker
from prefopt.progress import say

COMMANDS = ("/quit", "/reset")


def chat(speaker: Speaker) -> int:
    """Ask and answer until /quit, the end of input or Ctrl-C between answers; during one, Ctrl-C stops the answer."""
    turns = speaker.renderer.chat
    how = "a chat" if turns else "text is completed as it stands, nothing is remembered"
    say(f"{how} · /reset forgets · /quit ends")
    said: list[Message] = []
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return OK
        if line.strip() == "/quit":
            return OK
        if line.strip() == "/reset":
            said.clear()
        elif re.fullmatch(r"\s*/\w+\s*", line):
            say(f"{line.strip()}: no such command{nearest(line.strip(), COMMANDS)}")
        elif line.strip():
            asked: Message = {"role": "user", "content": line}
            answer = _answer(speaker, Prompt([*said, asked] if turns else line))
            if answer is not None and turns:
                said += [asked, {"role": "assistant", "content": answer}]


def _answer(speaker: Speaker, prompt: Prompt) -> str | None:
    """The answer, shown; None where there is none to go on from."""
    shown = Shown(speaker) if speaker.judge is None else None
    try:
        (reply,) = speaker.answers([prompt], shown)
    except KeyboardInterrupt:
        print()
        return None
    except RequestError as error:
        say(str(error))
        return None
    (text,) = reply.texts
    if shown is None:
        print(plain(text, keep="\n\t"))
    else:
        shown.end(text)
    return text


class Shown:
    """Prints an answer while it is drawn, as far as its text is certain: half a character waits for its other half."""

    def __init__(self, speaker: Speaker) -> None:
        self._text = speaker.renderer.text
        self._ids: list[int] = []
        self._printed = ""

    def __call__(self, tokens: Tensor) -> None:
        self._ids.append(int(tokens[0]))
        self._show(self._text(self._ids).rstrip("\N{REPLACEMENT CHARACTER}"))

    def end(self, text: str) -> None:
        """The rest of it; all of it again where a later token changed how earlier ones read."""
        if not text.startswith(self._printed):
            print()
            self._printed = ""
        self._show(text)
        print()

    def _show(self, text: str) -> None:
        if text.startswith(self._printed):
            print(plain(text[len(self._printed) :], keep="\n\t"), end="", flush=True)
            self._printed = text
