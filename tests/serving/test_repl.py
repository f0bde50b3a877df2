"""Chat: one line for every line of input, from the chosen decoder, and never a traceback."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.texts import PAIRS, make_pairs, random_params
from support.toys import CONFIGS

from seqjax.config import text_pairs_config
from seqjax.data.vocabulary import Vocabulary
from seqjax.inference.calibration import Abstention
from seqjax.inference.responder import Answer, AttentionMap, Responder
from seqjax.serving.repl import (
    COMMANDS,
    HELP,
    HINT,
    NO_REPLY,
    NO_TEXT,
    UNSURE,
    Chat,
    language,
    one_line,
    piped_lines,
    prompted_lines,
    talk,
    whole_words,
)
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit

SURE = Abstention(0.0, 0.0, 0.0, 0.5)
KOREAN, ENGLISH = UNSURE["ko"], UNSURE["en"]


class Fake(Responder):
    """Replies with the arguments of the call, with a fixed confidence and attention."""

    def __init__(self, pairs, abstention=None, confidence=0.9, looks=None, reply=None):
        self.text, self.train, self.abstention = pairs.text, pairs.splits["train"], abstention
        self.confidence, self.looks, self.reply = confidence, looks, reply

    def _fixed(self, text: str) -> Answer:
        abstains = self.abstention is not None and self.confidence < self.abstention.threshold
        text = text if self.reply is None else self.reply
        return Answer(text, -1.5, self.confidence, abstains, len(text) < 99, "cad", 0.25)

    def answer(self, question):
        return self._fixed(f"{question} plainly")

    def sample(self, question, temperature, seed, top_k=None, top_p=None):
        filters = f" of {top_k} and {top_p}" if top_k or top_p else ""
        return self._fixed(f"{question} at {temperature}{filters} from {seed}")

    def beam(self, question, beam_size, n_best):
        return [self._fixed(f"{question} {i} of {beam_size}") for i in range(n_best)]

    def stream(self, question):
        words = f"{question} at 0.0 from 0".split(" ")
        yield from (" ".join(words[:i]) for i in range(1, len(words) + 1))

    def explain(self, question):
        return self.looks


class Output(io.StringIO):
    """A stream with the attributes of IO that beartype looks for."""

    mode, name = "w", "output"


@cache
def pairs():
    return make_pairs({"pairs": (*PAIRS, ("a d", "마"))})


def responses(lines, responder: Responder | None = None, **options) -> list[str]:
    """The response of a chat to each of the lines."""
    chat = Chat(responder or Fake(pairs()), **options)
    return ["".join(chat.say(line)).removesuffix("\n") for line in lines]


def piped(data: bytes, chat: Chat) -> str:
    output = Output()
    talk(chat, piped_lines(io.BytesIO(data)), output)
    return output.getvalue()


# Commands


@pytest.mark.parametrize(
    ("command", "response"),
    [
        (":greedy", "a at 0.0 from 0"),
        (":beam", "a 0 of 4"),
        (":beam 7", "a 0 of 7"),
        (":nbest 2", "1. a 0 of 4\n2. a 1 of 4"),
        (":nbest 5", "\n".join(f"{i + 1}. a {i} of 5" for i in range(5))),
        (":nbest 1", "a 0 of 4"),
        (":sample 0.8", "a at 0.8 from 0"),
        (":sample", "a at 1.0 from 0"),
        (":sample 0.8 top_k=20", "a at 0.8 of 20 and None from 0"),
        (":sample top_p=0.9 temperature=2", "a at 2.0 of None and 0.9 from 0"),
        (":sample top_k=1 0 top_p=1", "a at 0.0 of 1 and 1.0 from 0"),
        (":beam beam_size=7", "a 0 of 7"),
        ("  :beam 7", None),  # a question
    ],
)
def test_a_command_sets_how_the_next_lines_are_answered(command, response):
    lines = responses([command, "a", "a"])
    if response is None:
        assert lines[0] == ":beam 7 at 0.0 from 0"
    elif "sample" in command:
        assert lines[1:] == [response, response.replace("from 0", "from 1")]
    else:
        assert lines[1:] == [response, response]
    assert "\n" not in lines[0]


def test_the_last_command_counts():
    lines = responses([":beam 9", ":nbest 2", "a", ":beam 3", "a", ":greedy", "a"])
    assert lines[2] == "1. a 0 of 9\n2. a 1 of 9"
    assert (lines[4], lines[6]) == ("a 0 of 3", "a at 0.0 from 0")


@pytest.mark.parametrize("decoder", ["greedy", "beam", "sample"])
def test_a_chat_may_begin_with_any_decoder(decoder):
    assert responses(["a"], decoder=decoder) == responses([f":{decoder}", "a"])[1:]


def test_draws_differ_and_can_be_repeated():
    seeds = [line.split()[-1] for line in responses([":sample", "a", "a", "a", ":sample 2", "a"])]
    assert seeds[1:4] == ["0", "1", "2"] and seeds[5] == "0"


def test_a_sample_command_says_and_replaces_all_options():
    lines = responses([":sample 0.8 top_k=20 top_p=0.9", ":sample top_k=3", "a", ":sample", "a"])
    assert lines[:2] == [
        "a random reply drawn at temperature 0.8, top_k 20, top_p 0.9",
        "a random reply drawn at temperature 1.0, top_k 3",
    ]
    assert lines[2] == "a at 1.0 of 3 and None from 0" and lines[4] == "a at 1.0 from 0"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("0.8 top_p=2", ":sample takes a number above 0 and at most 1 as top_p, not '2'"),
        ("top_p=0", ":sample takes a number above 0 and at most 1 as top_p, not '0'"),
        ("top_p=nan", "as top_p, not 'nan'"),
        ("top_p=", "as top_p, not ''"),
        ("top_k=0", ":sample takes a whole number of at least 1 as top_k, not '0'"),
        ("top_k=2.5", "as top_k, not '2.5'"),
        ("top_k==2", "as top_k, not '=2'"),
        ("temperature=11", ":sample takes a number from 0 to 10 as temperature, not '11'"),
        (
            "0.8 top_x=1",
            "unknown option of :sample 'top_x': did you mean 'top_p'? "
            "known: temperature, top_k, top_p",
        ),
        ("=1", "unknown option of :sample '': known: temperature, top_k, top_p"),
        ("top_p=0.9 top_p=0.8", ":sample takes one top_p, not 'top_p=0.9 top_p=0.8'"),
        ("0.8 temperature=0.9", ":sample takes one temperature, not '0.8 temperature=0.9'"),
    ],
)
def test_a_mistaken_sample_loses_no_option_and_no_draw(wrong, message):
    lines = responses([":sample 0.7 top_k=5 top_p=0.9", "a", f":sample {wrong}", "a"])
    assert message in lines[2] and "\n" not in lines[2] and len(lines[2]) < 120
    assert [lines[1], lines[3]] == [f"a at 0.7 of 5 and 0.9 from {seed}" for seed in (0, 1)]


@given(st.integers(-5, 80) | st.integers())
def test_a_beam_has_a_legal_size_or_the_old_one(size):
    message, response = responses([f":beam {size}", "a"])
    assert response == f"a 0 of {size}" if 1 <= size <= 64 else response == "a at 0.0 from 0"
    assert ("from 1 to 64" in message) == (not 1 <= size <= 64)


@given(st.floats())
def test_a_temperature_is_legal_or_the_old_decoder_stays(temperature):
    message, response = responses([f":sample {temperature}", "a"])
    legal = 0 <= temperature <= 10
    assert response == (f"a at {temperature} from 0" if legal else "a at 0.0 from 0")
    assert ("a number from 0 to 10" in message) == (not legal)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (":sampel", "unknown command ':sampel': did you mean ':sample'?"),
        (":", "unknown command ':': known: :beam, :greedy, "),
        (":)", "unknown command ':)'"),
        (":" + "x" * 10_000, "unknown command"),
        (":greedy\x1b[2J", r"unknown command ':greedy\x1b[2J'"),
        (":sample x", ":sample takes a number from 0 to 10 as temperature, not 'x'"),
        (":sample 0.8 0.9", "not '0.8 0.9'"),
        (":nbest 0", ":nbest takes a whole number from 1 to 64 as n_best, not '0'"),
        (":beam 10000", ":beam takes a whole number from 1 to 64 as beam_size, not '10000'"),
        (":beam " + "9" * 5000, "not '99999999999999999999'"),
        (":beam 2.5", "not '2.5'"),
        (":greedy 3", ":greedy stands alone: leave out '3'"),
        (":quit now", ":quit stands alone"),
    ],
)
def test_a_mistaken_command_is_one_line_and_changes_nothing(line, expected):
    chat = Chat(Fake(pairs()))
    message = "".join(chat.say(line))
    assert expected in message and len(message) < 200
    assert message.splitlines() == [message[:-1]] and not chat.ended
    assert "".join(chat.say("a")) == "a at 0.0 from 0\n"


def test_the_list_of_commands_is_that_of_the_help():
    assert responses([":help"]) == [HELP]
    assert set(COMMANDS) == set(re.findall(r"^(:\w+)", HELP, re.MULTILINE)) and len(COMMANDS) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_help_is_one(command):
    chat = Chat(Fake(pairs()))
    assert "unknown" not in "".join(chat.say(command))
    assert chat.ended == (command == ":quit")


def test_scores_are_shown_and_hidden():
    lines = responses(["a", ":scores", "a", ":nbest 2", "a", ":scores", ":greedy", "a"])
    figures = "  (score -1.50 nats, confidence 0.90, finished)"
    assert lines[2] == lines[0] + figures
    assert lines[4].count(figures) == 2
    assert lines[-1] == lines[0]
    cut_off = Fake(pairs(), reply="b" * 100)
    assert responses([":scores", "a"], cut_off)[1].endswith("confidence 0.90, cut off)")


def test_why_shows_the_nearest_question_and_the_attention():
    weights = np.array([[0.1, 0.9], [0.75, 0.25]])
    looks = AttentionMap(weights, ["x", "y\n"], ["나", "<eos>"])
    before, _, plain = responses([":why", "a", ":why"])
    assert before == "nothing was asked yet"
    source, target = PAIRS[1]
    assert plain.splitlines() == [
        f"nearest training question, of similarity 0.25: {source}",
        f"its answer: {target}",
    ]
    explained = responses(["a", ":why"], Fake(pairs(), looks=looks))[1]
    assert explained.startswith(plain)
    assert explained.splitlines()[3:] == ["  나 <- y  (0.90)", "  <eos> <- x (0.75)"]
    # A question of unknown characters has no token to look at.
    nothing = AttentionMap(np.zeros((2, 0)), [], ["나", "<eos>"])
    assert responses(["a", ":why"], Fake(pairs(), looks=nothing))[1] == plain


# Abstention


@pytest.mark.parametrize(
    ("question", "abstention", "confidence", "answered"),
    [
        ("abc", SURE, 0.9, True),
        ("abc", SURE, 0.1, False),
        ("abc", None, 0.1, True),  # --abstain=off
        ("xyz", SURE, 0.9, False),  # not one known character
        ("x y z", SURE, 0.9, False),  # but for the blanks
        ("\ufffd", SURE, 0.9, False),
        ("xyz b", SURE, 0.9, True),
        ("xyz", None, 0.9, True),
    ],
)
def test_a_reply_is_given_if_it_is_sure_enough(question, abstention, confidence, answered):
    lines = ["", ":beam", ":nbest 3", ":sample 2"]
    for line in lines:
        response = responses([line, question], Fake(pairs(), abstention, confidence))[1]
        assert (response == KOREAN) == (not answered)
        assert (question in response) == answered


def test_figures_stand_beside_what_is_not_given():
    response = responses([":scores", "abc"], Fake(pairs(), SURE, 0.1))[1]
    assert response == f"{KOREAN}  (score -1.50 nats, confidence 0.10, finished)"


def test_a_chat_abstains_in_the_language_of_its_replies():
    english = make_pairs({"pairs": (("가", "one"), ("나", "둘 two"))})
    assert responses(["가"], Fake(english, SURE, 0.1)) == [ENGLISH]
    assert language(["안녕 hello 하세요"]) == "en"  # five of ten
    assert language(["안녕 hello 하세요요", "123 !?"]) == "ko"
    assert language(["\u1112\u1161\u11ab a"]) == "en"  # one syllable of three code points
    assert language(["!", ""]) == language([]) == "en"


# Piped input

BYTES = st.lists(
    st.sampled_from(
        [b"a", b" ", b"\n", b"\r", b"\0", b"\x1b[2J", b"\xea\xb0", b"\xef\xbb\xbf", b"\xff"]
    )
    | st.sampled_from(["가", "🙂", "\u2028\x85\x0b", "d" * 10_000]).map(str.encode)
    | st.binary(max_size=5),
    max_size=12,
).map(b"".join)


@given(BYTES, st.sampled_from(["greedy", "beam", "sample"]), st.sampled_from([None, SURE]))
def test_each_line_of_input_gets_one_line(data, decoder, abstention):
    data = data.replace(b":", b";")  # no commands
    lines = piped(data, Chat(Fake(pairs(), abstention), decoder)).splitlines()
    asked = [line.decode("utf-8", "replace") for line in io.BytesIO(data)]
    assert len(lines) == len(asked)
    for question, response in zip(asked, lines, strict=True):
        blank = not one_line(question.removeprefix("\ufeff")).strip()
        assert (response == NO_TEXT) == blank and response == one_line(response)


def test_a_byte_order_mark_is_no_text():
    response = piped(b"\xef\xbb\xbf:beam\na\n\xef\xbb\xbf\n", Chat(Fake(pairs())))
    assert response.splitlines() == ["the best reply of a beam of 4", "a 0 of 4", NO_TEXT]


@given(st.lists(st.sampled_from([*COMMANDS, ":", "a", "3", "0.5", "-1", "nan", "\0", " "])))
def test_no_command_ends_a_chat_but_one(words):
    line = ":" + " ".join(words).removeprefix(":")
    chat = Chat(Fake(pairs()))
    assert "".join(chat.say(line)).endswith("\n") == (line.split() != [":quit"])
    assert chat.ended == (line.split() == [":quit"])


def test_a_reply_is_one_line_whatever_is_in_it():
    for reply in ("a\nb", "a\x1bb", "a\u2028b"):
        assert responses(["a"], Fake(pairs(), reply=reply)) == ["a b"]
    assert (
        responses(["a"], Fake(pairs(), reply="")) == ["".join(whole_words(["", ""]))] == [NO_REPLY]
    )


def test_a_line_is_answered_before_the_next_is_read():
    written, flushed = [], []

    class Watched(Output):
        def flush(self):
            flushed.append(self.getvalue())

    output = Watched()

    def lines():
        for line in ("a\n", ":scores\n", "\n", ":quit\n", "never"):
            yield line
            written.append(output.getvalue().count("\n"))
            assert flushed[-1] == output.getvalue()

    talk(Chat(Fake(pairs())), lines(), output)
    assert written == [1, 2, 3]  # and nothing is read after :quit
    assert output.getvalue().count("\n") == 3


# On a terminal


def test_a_person_is_asked_until_the_end_of_file():
    replies = iter(["a", KeyboardInterrupt(), "", "  ", " b", EOFError()])

    def ask(prompt):
        output.write(prompt)
        reply = next(replies)
        if isinstance(reply, str):
            return reply
        raise reply

    output = Output()
    assert list(prompted_lines(ask, output)) == ["a", " b"]
    assert output.getvalue() == f"{HINT}\n> > \n> > > > \n"


def test_a_reply_can_be_interrupted_on_a_terminal():
    class Slow(Fake):
        def stream(self, question):
            yield "so "
            if question == "long":
                raise KeyboardInterrupt
            yield "so be it"

    output = Output()
    talk(Chat(Slow(pairs()), on_terminal=True), ["long", "short"], output)
    assert output.getvalue() == "so \nso be it\n"

    class Stopped(Fake):
        def sample(self, question, temperature, seed, top_k=None, top_p=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # of a pipe it is the whole command that is stopped
        talk(Chat(Stopped(pairs())), ["long"], output)


@pytest.mark.parametrize(
    ("lines", "abstention", "on_terminal", "grows"),
    [
        ([], None, True, True),
        ([":scores"], None, True, True),
        ([], None, False, False),
        ([], SURE, True, False),  # to be judged first
        ([":beam"], None, True, False),
        ([":sample"], None, True, False),
        ([":beam", ":greedy"], None, True, True),
    ],
)
def test_a_reply_grows_where_nothing_must_be_known_first(lines, abstention, on_terminal, grows):
    chat, whole = (Chat(Fake(pairs(), abstention), on_terminal=on) for on in (on_terminal, False))
    for line in lines:
        assert list(chat.say(line)) == list(whole.say(line))
    pieces = list(chat.say("a b c"))
    assert (len([piece for piece in pieces if piece.strip()]) > 1) == grows
    assert "".join(pieces) == "".join(whole.say("a b c"))


TEXTS = ["각 가나 다", "naïve q\u0302\u0323 e\u0302\u0323", "🙂 말 말이 많다", "a, b c"]
KINDS = ["characters", "jamo", "whitespace", "words", "byte_bpe(size=262)", "unigram(size=60)"]


@cache
def vocabulary(spec: str) -> Vocabulary:
    return Vocabulary.fit(spec, TEXTS)


@pytest.mark.parametrize("spec", KINDS)
@given(data=st.data())
def test_what_was_shown_of_a_reply_stays(spec, data):
    v = vocabulary(spec)
    ids = data.draw(st.lists(st.integers(3, v.size - 1), min_size=1, max_size=12))
    texts = [v.decode(ids[: i + 1]) for i in range(len(ids))]
    response = list(whole_words(iter(texts)))
    assert "".join(response) == (one_line(texts[-1]) or NO_REPLY)
    for i, text in enumerate(texts):
        assert one_line(text).startswith("".join(response[: i + 1])) or i + 1 == len(texts)


# With models


@pytest.mark.parametrize("attention", ["none", "dot"])
def test_a_model_answers_anything(attention):
    data = make_pairs(attention=attention, decode={"decoder": "beam"})
    responder = data.responder(random_params(data.text))
    lines = ["abc", "cad", "b d", "xyz", "a" * 10_000, "🙂", "가나"]
    whole, growing = (responses(lines, responder, on_terminal=on) for on in (False, True))
    for greedy in (":sample 0", ":sample 2 top_k=1", ":sample 2 top_p=0.001"):
        assert whole == growing == responses([greedy, *lines], responder)[1:]
    assert len(set(whole)) > 2, whole
    best = responses([":scores", ":nbest 4", "abc"], responder)[-1].splitlines()
    assert [line[:3] for line in best] == ["1. ", "2. ", "3. ", "4. "]
    for line in lines:
        why = responses([line, ":why"], responder)[1]
        assert ("looked most at" in why) == (attention == "dot")


# As a separate process


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run trained for one epoch."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    config = text_pairs_config("")
    config.model.update({"embed_size": 5, "hidden_size": 6})
    config.data.pairs = PAIRS
    config.train.update({"num_epochs": 1, "num_devices": 1, "batch_size": 5, "monitor": "epoch"})
    fit(make_task(config.lock(), workdir), config, workdir)
    return workdir


# Runs a command on a new terminal, connected to the pipes of this process.
ON_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def start(*args: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent), "PYTHONUTF8": "1"}
    command = [*before, sys.executable, "-m", "experiments.chat", *args]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    watch = threading.Timer(300, process.kill)  # a chat that waits for more fails
    watch.daemon = True
    watch.start()
    return process


@pytest.mark.slow
def test_a_run_is_talked_to_through_a_pipe(run):
    data = b"\xef\xbb\xbfabc\r\n\n:beam 2\nabc\n:nbest 2\nb\n:sampel\n"
    data += b":sample 0.8 top_p=0.9\nabc\n\xea\xb0\0\n" + b"d" * 10_000
    out, err = start(f"--workdir={run}", "--abstain=off").communicate(data)
    lines = out.decode("utf-8").splitlines()
    assert err == b"" and len(lines) == 12
    assert (lines[1], lines[2]) == (NO_TEXT, "the best reply of a beam of 2")
    assert lines[5].startswith("1. ") and lines[6].startswith("2. ")
    assert lines[7].startswith("unknown command ':sampel'")
    assert lines[8] == "a random reply drawn at temperature 0.8, top_p 0.9"


@pytest.mark.slow
def test_a_chat_that_nobody_hears_ends_quietly(run):
    with start(f"--workdir={run}", "--decoder=beam") as process:
        process.stdout.close()
        process.stdin.write(b"abc\n" * 3)
        process.stdin.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.slow
def test_a_run_is_talked_to_on_a_terminal(run):
    pytest.importorskip("pty")
    steps = (("> ", "xyz\n"), (f"{KOREAN}\r\n> ", "half"), ("half", "\x03"), ("\n> ", "\x04"))
    with start(f"--workdir={run}", before=(sys.executable, "-c", ON_TERMINAL)) as process:
        for awaited, typed in steps:
            response = b""
            while awaited.encode() not in response:
                response += (piece := os.read(process.stdout.fileno(), 4096))
                assert piece, response
            # What is awaited may be the terminal's echo, before readline listens for Ctrl-C.
            time.sleep(1.0 if typed == "\x03" else 0.0)
            process.stdin.write(typed.encode())
            process.stdin.flush()
        assert process.communicate() == (b"\r\n", b"") and process.returncode == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--workdir=nowhere",), b"nowhere/config.json does not exist"),
        (("--workdir=nowhere", "--decoder=bean"), b"<greedy|beam|sample>"),
    ],
)
def test_a_mistake_is_one_line(args, expected):
    process = start(*args)
    out, err = process.communicate(b"abc\n")
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert err.startswith(b"error: ") and expected in err
