"""A conversation with a trained run: lines in, replies out.

A line that begins with a colon is a command, which sets how the lines after it are answered; every
other line is a question.
"""

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from seqjax.errors import UserError, one_line, unknown_name
from seqjax.inference.responder import Answer, Responder

HINT = "Write a question; :help lists the commands, :quit ends."
HELP = """\
:greedy      answer with the most probable token at each step
:beam [N]    with the best reply of a beam of N (4)
:nbest [N]   with the N best replies of a beam (4)
:sample [T]  with a reply drawn at random at temperature T (1); draws start anew with each :sample
:scores      show or hide score, confidence, and whether a reply was finished
:why         what the reply to the last question rests on
:help        this list
:quit        the end, as Ctrl-D
A question that begins with a colon needs a blank before it."""
COMMANDS = re.findall(r"^:\w+", HELP, re.MULTILINE)
NUMBERS = {":beam": (int, 4, 1, 64), ":nbest": (int, 4, 1, 64), ":sample": (float, 1, 0, 10)}
DECODERS = ("greedy", "beam", "sample")  # each also a command
NO_TEXT, NO_REPLY = "(no text: write a question)", "(an empty reply)"
UNSURE = {"ko": "잘 모르겠습니다. 다르게 물어봐 주세요.", "en": "I do not know."}


class Chat:
    """What one responder says, in the way that was last asked for.

    On a terminal a greedy reply is shown word by word as it grows, if the responder never abstains:
    what must first be judged appears whole.
    """

    def __init__(self, responder: Responder, decoder: str = "greedy", on_terminal: bool = False):
        self.responder, self.on_terminal, self.ended = responder, on_terminal, False
        self._unsure = UNSURE[language(responder.train.targets)]
        self._question, self._scores = "", False
        for command in (":sample", ":beam", f":{decoder}"):  # the first two for their defaults
            self._obey(command)

    def say(self, line: str) -> Iterator[str]:
        """What there is to say to a line, in pieces as they are known; the last ends a line."""
        if line.startswith(":"):
            try:
                yield self._obey(line) + "\n" * (not self.ended)
            except UserError as error:
                yield f"{error}\n"
        elif question := one_line(line).strip():
            self._question = question
            grows = self.on_terminal and self._decoder == "greedy"
            if grows and self.responder.abstention is None:
                yield from whole_words(self.responder.stream(question))
                yield f"{self._figures(self._answers(question)[0]) if self._scores else ''}\n"
            else:
                yield from self._judged(question)
        else:
            yield f"{NO_TEXT}\n"

    def _judged(self, question: str) -> Iterator[str]:
        """The replies, each on its line, or the one line that there is none."""
        answers = self._answers(question)
        if self._abstains(question, answers[0]):
            yield f"{self._unsure}{self._figures(answers[0])}\n"
            return
        for number, answer in enumerate(answers, 1):
            rank = f"{number}. " if self._n_best > 1 else ""
            yield f"{rank}{one_line(answer.text) or NO_REPLY}{self._figures(answer)}\n"

    def _answers(self, question: str) -> list[Answer]:
        """The replies of the decoder that was asked for, at least one."""
        if self._decoder == "beam":
            return self.responder.beam(question, self._beam_size, self._n_best)
        if self._decoder == "sample":
            return [self.responder.sample(question, self._temperature, next(self._seeds))]
        return [self.responder.greedy(question)]

    def _abstains(self, question: str, best: Answer) -> bool:
        """Whether not to answer: never without an abstention, always where no word is known."""
        if self.responder.abstention is None:
            return False
        text = self.responder.text
        # Word by word, since the blanks between unknown characters are known.
        ids = text.encode_sources(question.split())
        return best.abstains or bool(np.isin(ids, (text.source.pad_id, text.source.unk_id)).all())

    def _figures(self, answer: Answer) -> str:
        end = "finished" if answer.finished else "cut off"
        shown = f"  (score {answer.score:.2f} nats, confidence {answer.confidence:.2f}, {end})"
        return shown if self._scores else ""

    def _obey(self, line: str) -> str:
        """Does what a command says and tells what it did; raises UserError for no command."""
        name, *words = line.split()
        if name not in COMMANDS:
            raise unknown_name("command", name[:20], COMMANDS)
        number = _read_number(name, words)
        if name == ":help":
            return HELP
        if name == ":why":
            return self._why()
        if name == ":quit":
            self.ended = True
            return ""
        if name == ":scores":
            self._scores = not self._scores
            return f"scores {'shown' if self._scores else 'hidden'}"
        self._decoder, self._n_best = name[1:], 1
        if name == ":sample":
            self._temperature, self._seeds = number, itertools.count()
            return f"a reply drawn at random at temperature {number}"
        if name == ":beam":
            self._beam_size = number
            return f"the best reply of a beam of {number}"
        if name == ":nbest":
            self._decoder, self._n_best = "beam", number
            self._beam_size = max(number, self._beam_size)
            return f"the {number} best of a beam of {self._beam_size}"
        return "the most probable token at each step"

    def _why(self) -> str:
        """The nearest training question, and where attention looked."""
        if not self._question:
            return "nothing was asked yet"
        answer = self.responder.answer(self._question)
        train = self.responder.train
        lines = [
            f"nearest training question, of similarity {answer.similarity:.2f}: {answer.nearest}",
            f"its answer: {train.targets[train.sources.index(answer.nearest)]}",
        ]
        looks = self.responder.explain(self._question)
        if looks is not None and looks.source:
            lines.append("each token of the run's own reply looked most at:")
            for token, weights in zip(looks.target, looks.weights, strict=True):
                most = int(np.argmax(weights))
                lines.append(f"  {token} <- {looks.source[most]} ({weights[most]:.2f})")
        return "\n".join(map(one_line, lines))


def talk(chat: Chat, lines: Iterable[str], output: IO[str]) -> None:
    """Says to each line at once what there is to say, until the lines or the chat end."""
    for line in lines:
        try:
            for piece in chat.say(line):
                print(piece, end="", file=output, flush=True)
        except KeyboardInterrupt:
            if not chat.on_terminal:
                raise
            print(file=output)  # a person stops this reply, not the chat
        if chat.ended:
            return


def prompted_lines(ask: Callable[[str], str], output: IO[str]) -> Iterator[str]:
    """What a person types, but for empty lines; Ctrl-C drops a line, Ctrl-D ends."""
    with contextlib.suppress(ImportError):  # not on every system
        import readline  # noqa: F401  (gives `input` editing, and a history in memory)
    print(HINT, file=output)
    while True:
        try:
            if (line := ask("> ")).strip():
                yield line
        except KeyboardInterrupt:
            print(file=output)
        except EOFError:
            break
    print(file=output)


def piped_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """The lines of what should be UTF-8: other bytes are read as U+FFFD."""
    for line in lines:
        yield line.decode("utf-8", "replace").removeprefix("\ufeff")


def whole_words(texts: Iterable[str]) -> Iterator[str]:
    """What each text of a growing reply adds to it; together they are the last text.

    With every vocabulary the next token may still change the last word, but nothing before it.
    """
    shown, text = 0, ""
    for text in map(one_line, texts):
        ready = max(shown, text.rfind(" ") + 1)
        yield text[shown:ready]
        shown = ready
    yield text[shown:] if text else NO_REPLY


def language(texts: Iterable[str]) -> str:
    """ "ko" if most letters are Hangul, else "en"."""
    letters = [c for text in texts for c in unicodedata.normalize("NFC", text) if c.isalpha()]
    return "ko" if 2 * sum("가" <= c <= "힣" for c in letters) > len(letters) else "en"


def _read_number(name: str, words: list[str]) -> Any:
    """The number that a command gives or its default, None for one without; or a UserError."""
    given = " ".join(words)[:20]
    if name not in NUMBERS:
        if words:
            raise UserError(f"{name} stands alone: leave out {given!r}")
        return None
    kind, default, least, most = NUMBERS[name]
    with contextlib.suppress(ValueError):  # no number, or several
        (value,) = map(kind, words or [default])
        if least <= value <= most:
            return value
    what = "a whole number" if kind is int else "a number"
    raise UserError(f"{name} takes {what} from {least} to {most}, not {given!r}")
