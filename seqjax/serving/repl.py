"""A conversation with a trained run: lines in, replies out.

A line that begins with a colon is a command, which sets how the following lines are answered; every
other line is a question.
"""

import contextlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from seqjax.errors import UserError, one_line, unknown_name
from seqjax.inference.calibration import load_abstention
from seqjax.inference.responder import Answer, Responder
from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config
from seqjax.training.fit import load_run

HINT = "Write a question; :help lists the commands, :quit ends the chat."
HELP = """\
:greedy      answer with the most probable token at each step
:beam [N]    answer with the best reply of a beam of N (4)
:nbest [N]   answer with the N best replies of a beam (4)
:sample [T] [top_k=K] [top_p=P]
             answer with a random reply at temperature T (1); top_k restricts each step to the K
             most probable tokens, top_p to the fewest that together have the probability P;
             every :sample starts the same draws anew
:scores      show or hide the score and confidence of a reply, and whether it was finished
:why         show what the reply to the last question rests on
:help        show this list
:quit        end the chat, as Ctrl-D does
A question that begins with a colon needs a space before it."""
COMMANDS = re.findall(r"^:\w+", HELP, re.MULTILINE)
CHAT_DECODERS = ("greedy", "beam", "sample")  # each is also a command
NO_TEXT, NO_REPLY = "(no text: write a question)", "(an empty reply)"
UNSURE = {"ko": "잘 모르겠습니다. 다르게 물어봐 주세요.", "en": "I do not know."}


class _Option(NamedTuple):
    """A number that a command takes, written `NUMBER` if it is the first, else `name=NUMBER`."""

    name: str
    kind: type
    default: Any
    is_legal: Callable[[Any], bool]
    legal: str  # the legal values, in words


def _size(name: str) -> _Option:
    return _Option(name, int, 4, lambda size: 1 <= size <= 64, "a whole number from 1 to 64")


OPTIONS = {
    ":beam": (_size("beam_size"),),
    ":nbest": (_size("n_best"),),
    ":sample": (
        _Option("temperature", float, 1.0, lambda t: 0 <= t <= 10, "a number from 0 to 10"),
        _Option("top_k", int, None, lambda k: k >= 1, "a whole number of at least 1"),
        _Option("top_p", float, None, lambda p: 0 < p <= 1, "a number above 0 and at most 1"),
    ),
}


class Chat:
    """A conversation with one responder, which answers as the last command says.

    On a terminal a greedy reply is shown word by word as it grows, unless the responder may
    abstain: a reply that it may withhold is shown only when complete.
    """

    def __init__(self, responder: Responder, decoder: str = "greedy", on_terminal: bool = False):
        self.responder, self.on_terminal, self.ended = responder, on_terminal, False
        self._unsure = UNSURE[language(responder.train.targets)]
        self._question, self._scores = "", False
        for command in (":sample", ":beam", f":{decoder}"):  # the first two set their defaults
            self._obey(command)

    def say(self, line: str) -> Iterator[str]:
        """Yields the response to a line, in pieces as they are known; the last one ends a line."""
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
                yield from self._complete(question)
        else:
            yield f"{NO_TEXT}\n"

    def _complete(self, question: str) -> Iterator[str]:
        """Yields the replies, each on its own line, or one line that says that there is none."""
        answers = self._answers(question)
        if self._abstains(question, answers[0]):
            yield f"{self._unsure}{self._figures(answers[0])}\n"
            return
        for number, answer in enumerate(answers, 1):
            rank = f"{number}. " if self._n_best > 1 else ""
            yield f"{rank}{one_line(answer.text) or NO_REPLY}{self._figures(answer)}\n"

    def _answers(self, question: str) -> list[Answer]:
        """Returns the replies of the chosen decoder, at least one."""
        if self._decoder == "beam":
            return self.responder.beam(question, self._beam_size, self._n_best)
        if self._decoder == "sample":
            seed = next(self._seeds)
            return [self.responder.sample(question, seed=seed, **self._sampling)]
        return [self.responder.greedy(question)]

    def _abstains(self, question: str, best: Answer) -> bool:
        """Returns whether a reply is withheld: never uncalibrated, always if no word is known."""
        if self.responder.abstention is None:
            return False
        text = self.responder.text
        # Encoded word by word, because the spaces between unknown characters are known.
        ids = text.encode_sources(question.split())
        return best.abstains or bool(np.isin(ids, (text.source.pad_id, text.source.unk_id)).all())

    def _figures(self, answer: Answer) -> str:
        end = "finished" if answer.finished else "cut off"
        shown = f"  (score {answer.score:.2f} nats, confidence {answer.confidence:.2f}, {end})"
        return shown if self._scores else ""

    def _obey(self, line: str) -> str:
        """Does what a command says and returns a message that says what was done.

        Raises UserError for a line that is not a command, and changes nothing.
        """
        name, *words = line.split()
        if name not in COMMANDS:
            raise unknown_name("command", name[:20], COMMANDS)
        options = _read_options(name, words)
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
            self._sampling, self._seeds = options, itertools.count()
            chosen = (f"{option} {value}" for option, value in options.items() if value is not None)
            return f"a random reply drawn at {', '.join(chosen)}"
        if name == ":beam":
            self._beam_size = options["beam_size"]
            return f"the best reply of a beam of {self._beam_size}"
        if name == ":nbest":
            self._decoder, self._n_best = "beam", options["n_best"]
            self._beam_size = max(self._n_best, self._beam_size)
            return f"the {self._n_best} best replies of a beam of {self._beam_size}"
        return "the most probable token at each step"

    def _why(self) -> str:
        """Returns the training question most similar to the last question, and its attention."""
        if not self._question:
            return "nothing was asked yet"
        answer = self.responder.answer(self._question)
        train = self.responder.train
        lines = [
            f"nearest training question, of similarity {answer.similarity:.2f}: {answer.nearest}",
            f"its answer: {train.targets[train.sources.index(answer.nearest)]}",
        ]
        attention = self.responder.explain(self._question)
        if attention is not None and attention.source:
            lines.append("each token of the run's own reply looked most at:")
            for token, weights in zip(attention.target, attention.weights, strict=True):
                most = int(np.argmax(weights))
                lines.append(f"  {token} <- {attention.source[most]} ({weights[most]:.2f})")
        return "\n".join(map(one_line, lines))


def load_responder(workdir: Path, abstain: bool = True) -> Responder:
    """Returns the best weights of a run of text pairs, ready to answer questions.

    With `abstain=False` it answers every question. Raises UserError for a directory without a run,
    and for a run of another task.
    """
    config = load_run_config(workdir, say)
    if config.task != "text_pairs":
        raise UserError(f"{workdir} is a run of {config.task}: give a run of text_pairs")
    run = load_run(workdir, config)
    abstention = load_abstention(workdir) if abstain else None
    return run.setup.task.data.responder(jax.device_get(run.params), abstention)


def talk(chat: Chat, lines: Iterable[str], output: IO[str]) -> None:
    """Writes the response to each line before it reads the next, until the lines or the chat end.

    On a terminal Ctrl-C ends a reply, not the chat; elsewhere KeyboardInterrupt is raised.
    """
    for line in lines:
        try:
            for piece in chat.say(line):
                print(piece, end="", file=output, flush=True)
        except KeyboardInterrupt:
            if not chat.on_terminal:
                raise
            print(file=output)
        if chat.ended:
            return


def prompted_lines(ask: Callable[[str], str], output: IO[str]) -> Iterator[str]:
    """Yields the lines that are typed, without empty ones; Ctrl-C drops a line, Ctrl-D ends."""
    with contextlib.suppress(ImportError):  # not available on every system
        import readline  # noqa: F401  (gives `input` line editing and a history in memory)
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
    """Yields the lines of a UTF-8 stream; bytes that are not UTF-8 are read as U+FFFD."""
    for line in lines:
        yield line.decode("utf-8", "replace").removeprefix("\ufeff")


def whole_words(texts: Iterable[str]) -> Iterator[str]:
    """Yields what each text of a growing reply adds to it; joined, these are the last text.

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


def _read_options(command: str, words: list[str]) -> dict[str, Any]:
    """Returns the values of a command's options by name, defaults where none is given.

    Raises UserError for a word that is not an option or whose value is not legal.
    """
    options = {option.name: option for option in OPTIONS.get(command, ())}
    shown = " ".join(words)[:40]
    if words and not options:
        raise UserError(f"{command} stands alone: leave out {shown!r}")
    values: dict[str, Any] = {}
    for word in words:
        name, value = word.split("=", 1) if "=" in word else (next(iter(options)), word)
        if name not in options:
            raise unknown_name(f"option of {command}", name[:20], options)
        if name in values:
            raise UserError(f"{command} takes one {name}, not {shown!r}")
        values[name] = _read_value(command, options[name], value)
    return {name: values.get(name, option.default) for name, option in options.items()}


def _read_value(command: str, option: _Option, text: str) -> Any:
    with contextlib.suppress(ValueError):  # not a number
        value = option.kind(text)
        if option.is_legal(value):
            return value
    raise UserError(f"{command} takes {option.legal} as {option.name}, not {text[:20]!r}")
