"""A second reader of weights files, in NumPy alone, which shares no code with seqjax.

It opens a file that `experiments.export` wrote and computes the model's equations in float64. Rows
are cut to their lengths instead of masked, so a comparison with seqjax shows that padding has no
influence. It pads rows only if a config treats padding as text.

It supports what the shipped configs use, except Okt's words, and refuses everything else.
"""

import itertools
import json
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PAD, START, END, UNKNOWN = range(4)  # reserved ids; those of tokens follow
KERAS_PUNCTUATION = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


class WeightsFile(NamedTuple):
    """The content of a weights file."""

    config: dict[str, Any]
    texts: dict[str, str]  # file name -> text of files such as vocabulary.json
    weights: dict[str, Any]  # nested: the tensor "output.kernel" is weights["output"]["kernel"]


def read_weights(path: Path) -> WeightsFile:
    """Reads a safetensors file: the header's length in 8 bytes, a header in JSON, the numbers."""
    data, weights = path.read_bytes(), {}
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    for name, tensor in header.items():
        *parts, last = name.split(".")
        branch = weights
        for part in parts:
            branch = branch.setdefault(part, {})
        begin, end = tensor["data_offsets"]
        assert tensor["dtype"] == "F32", f"{name} is {tensor['dtype']}"
        numbers = np.frombuffer(data[start + begin : start + end], "<f4").astype(np.float64)
        branch[last] = numbers.reshape(tensor["shape"])
    texts = {name: entry["text"] for name, entry in json.loads(metadata["files"]).items()}
    return WeightsFile(json.loads(metadata["config"]), texts, weights)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2  # 1 / (1 + exp(-x)) could overflow


def step(cell: str, weights: dict[str, Any], state: list[np.ndarray], x: np.ndarray) -> list:
    """Returns the state after one more input: [h], or [h, c] for an LSTM."""
    h, w, u = state[0], weights["w_x"], weights["w_h"]
    if cell == "simple_rnn":
        return [np.tanh(x @ w + h @ u + weights["b"])]
    if cell == "lstm":
        i, f, g, o = np.split(x @ w + h @ u + weights["b"], 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    assert cell == "gru", f"unknown cell {cell}"
    after = "b_h" in weights  # reset_after=True: the recurrent product has a bias and is reset
    x_r, x_z, x_n = np.split(x @ w + weights["b_x" if after else "b"], 3, axis=-1)
    u_r, u_z, u_n = np.split(u, 3, axis=-1)
    b_r, b_z, b_n = np.split(weights["b_h"], 3) if after else (0, 0, 0)
    r, z = sigmoid(x_r + h @ u_r + b_r), sigmoid(x_z + h @ u_z + b_z)
    n = np.tanh(x_n + (r * (h @ u_n + b_n) if after else (r * h) @ u_n))
    return [(1 - z) * n + z * h]


def run_cell(cell: str, weights: dict[str, Any], xs: np.ndarray, state: Any = None) -> tuple:
    """Returns outputs [..., T, H] for inputs [..., T, I], and the last state; the first is zero."""
    size = len(weights["w_h"])
    state = state or [np.zeros((*xs.shape[:-2], size))] * (2 if cell == "lstm" else 1)
    ys = np.zeros((*xs.shape[:-1], size))
    for t in range(xs.shape[-2]):
        state = step(cell, weights, state, xs[..., t, :])
        ys[..., t, :] = state[0]
    return ys, state


def run_stack(spec: str, layers: dict[str, Any], xs: np.ndarray, states: Any = None) -> tuple:
    """Returns the top layer's outputs, and each layer's last states, one for each direction."""
    cell, last_states = spec.partition("(")[0], []
    for number in range(len(layers)):
        layer = layers[f"layer_{number}"]
        if "weights" in layer:
            xs, last = run_cell(cell, layer["weights"], xs, states and states[number][0])
            last_states.append([last])
        else:
            forward, last = run_cell(cell, layer["forward"], xs)
            backward, first = run_cell(cell, layer["backward"], xs[..., ::-1, :])
            xs = np.concatenate([forward, backward[..., ::-1, :]], axis=-1)
            last_states.append([last, first])
    return xs, last_states


def dense(weights: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return x @ weights["kernel"] + weights["bias"]


def one_hot(ids: Any, size: int) -> np.ndarray:
    """Returns for each id a row of zeros with a one at its place; an id below 0 gives zeros."""
    return (np.asarray(ids)[..., None] == np.arange(size)).astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns loss and accuracy, the means over all labels."""
    nats = -np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)
    is_correct = logits.argmax(axis=-1) == labels
    return {"loss": float(nats.mean()), "accuracy": float(is_correct.mean())}


def read_sequences(file: WeightsFile, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits [..., C] of sequences [..., T, I], and [..., T, C] of each of their steps."""
    outputs, states = run_stack(file.config["model"]["cell"], file.weights["stack"], xs)
    last = np.concatenate([state[0] for state in states[-1]], axis=-1)  # h of both directions
    return dense(file.weights["output"], last), dense(file.weights["output"], outputs)


class Vocabulary:
    """Encodes and decodes text with the content of a vocabulary.json."""

    def __init__(self, text: str):
        content = json.loads(text)
        self.kind, _, options = content["spec"].partition("(")
        known = self.kind in ("characters", "whitespace", "words", "unigram")
        assert known and "analyzer" not in options, content["spec"]
        tokens = content["model"]
        if self.kind == "unigram":
            self.scores = dict(tokens["model"]["vocab"])
            tokens = list(self.scores)[1:]  # the first is the unknown token
        self.ids = {token: number for number, token in enumerate(tokens, UNKNOWN + 1)}
        self.keeps_unknown = "unknown=False" not in options
        unknown = "\N{REPLACEMENT CHARACTER}" if self.keeps_unknown else None
        self.tokens = [None, None, None, unknown, *tokens]

    def encode(self, text: str) -> list[int]:
        ids = [self.ids.get(p, UNKNOWN) for p in self.split(unicodedata.normalize("NFC", text))]
        return [i for i in ids if i != UNKNOWN or self.keeps_unknown]

    def decode(self, ids: Iterable[int]) -> str:
        tokens = (self.tokens[i] for i in itertools.takewhile(lambda i: i != END, ids))
        separator = " " if self.kind in ("whitespace", "words") else ""
        text = separator.join(token for token in tokens if token is not None)
        return text.removeprefix(" ") if self.kind == "unigram" else text

    def split(self, text: str) -> list[str]:
        if self.kind == "characters":
            return list(text)
        if self.kind == "whitespace":
            return text.split()
        if self.kind == "words":
            return [word for word in text.lower().translate(KERAS_PUNCTUATION).split(" ") if word]
        words = text.split(" ") if text else []  # every word, also the first, begins with a space
        return [token for word in words for token in self.likeliest_split(f" {word}")]

    def likeliest_split(self, word: str) -> list[str]:
        """Returns the tokens of a word with the highest sum of scores (Viterbi's algorithm)."""
        unknown_score = min(self.scores.values()) - 10  # score of a character that is not a token
        best: list[tuple[float, list[str]]] = [(0.0, [])]  # score and tokens up to each character
        for end in range(1, len(word) + 1):
            splits = [
                (score + self.scores.get(token, unknown_score), [*tokens, token])
                for begin, (score, tokens) in enumerate(best)
                if (token := word[begin:end]) in self.scores or len(token) == 1
            ]
            best.append(max(splits, key=lambda split: split[0]))
        runs = itertools.groupby(best[-1][1], key=self.scores.__contains__)
        # Adjacent unknown characters are one unknown token.
        return [p for known, run in runs for p in (run if known else ["".join(run)])]


class Translator:
    """A model of text pairs; the training texts set the maximum lengths if the config does not."""

    def __init__(self, file: WeightsFile, sources: Iterable[str], targets: Iterable[str]):
        self.weights, self.model, data = file.weights, file.config["model"], file.config["data"]
        self.rules, loss = file.config["decode"], file.config["loss"]
        assert self.rules["repetition_penalty"] == 1 and self.rules["no_repeat_ngram"] == 0
        assert loss["label_smoothing"] == 0
        texts = [file.texts.get(name) for name in ("vocabulary.json", "source_vocabulary.json")]
        self.target, self.source = Vocabulary(texts[0]), Vocabulary(texts[1] or texts[0])
        self.masked, decoder = loss["mask_padding"], self.rules["decoder"]
        assert self.masked or data["source_padding"] == "post"
        self.boundaries = data["boundaries"]  # whether texts have a start and an end symbol
        assert decoder in (("greedy", "fed_padding") if self.boundaries else ("teacher_forced",))
        self.reads_padding = decoder == "fed_padding"  # reads padding instead of its own tokens
        self.first = 0 if self.boundaries else UNKNOWN + 1  # the id that the model counts as 0
        self.least_size = data["vocab_size"]
        longest = max(len(self.source.encode(text)) for text in sources)
        self.source_length = data["max_source_length"] or longest
        longest = max(len(self.target.encode(text)) for text in targets) + 2 * self.boundaries
        self.target_length = data["max_target_length"] or longest

    def start(self, source: str) -> tuple:
        """Returns the decoder's state before the first token: its layers' states, which are the
        encoder's last ones, the attention's memory [S, O], and the last attentional vector [H]."""
        ids = self.source.encode(source)[: self.source_length]
        ids += [] if self.masked else [PAD] * (self.source_length - len(ids))
        table = "target_embed" if self.model["share_embeddings"] else "source_embed"
        inputs = self.inputs(table, ids, self.source)
        outputs, states = run_stack(self.model["cell"], self.weights["encoder"], inputs)
        if self.model["bidirectional"]:  # each layer's two h are combined into one, then the two c
            numbers = itertools.count()

            def bridge(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
                return np.tanh(dense(self.weights[f"bridge_{next(numbers)}"], np.concatenate(pair)))

            states = [[[bridge(pair) for pair in zip(*both, strict=True)]] for both in states]
        return states, outputs, np.zeros(self.model["hidden_size"])

    def read(self, state: tuple, token: int) -> tuple[tuple, np.ndarray]:
        """Returns the decoder's state after one more token, and the logits [V] of the next one."""
        states, memory, feed = state
        x = self.inputs("target_embed", [token], self.target)
        if self.model["input_feeding"]:
            x = np.concatenate([x, feed[None]], axis=-1)
        outputs, states = run_stack(self.model["cell"], self.weights["decoder"], x, states)
        hidden = outputs[0]
        if self.model["attention"] != "none":
            both = np.concatenate([self.attend(hidden, memory), hidden])
            hidden = np.tanh(dense(self.weights["combine"], both))
        logits = dense(self.weights["output"], hidden)
        if self.model["tie_output"]:
            logits = self.weights["target_embed"]["embedding"] @ logits
        return (states, memory, hidden), logits

    def attend(self, query: np.ndarray, memory: np.ndarray) -> np.ndarray:
        """Returns the mean of the memory's rows, weighted by their attention scores."""
        weights = self.weights.get("attention", {})  # dot-product attention may have no weights
        keys = dense(weights["of_memory"], memory) if "of_memory" in weights else memory
        if self.model["attention"] == "additive":
            scores = dense(weights["of_sum"], np.tanh(dense(weights["of_query"], query) + keys))
        else:
            scores = keys @ query[:, None]
        exps = np.exp(scores - scores.max(initial=-1e30))
        return exps[:, 0] @ memory / max(exps.sum(), 1)  # the sum is below 1 only without rows

    def inputs(self, table: str, ids: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """Returns the model's inputs for ids [T]: rows of an embedding, or one-hot rows."""
        numbers = np.array(ids, int) - self.first
        if self.model["embed_size"]:
            return self.weights[table]["embedding"][numbers]
        return one_hot(numbers, max(len(vocabulary.tokens) - self.first, self.least_size))

    def teacher_forced(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits [T, V] after each token of the target, and the ids [T] that follow."""
        ids = self.target.encode(target)[: self.target_length - 2 * self.boundaries]
        ids = [START, *ids, END] if self.boundaries else [*ids, PAD]
        if not self.masked:
            ids += [PAD] * (self.target_length + (not self.boundaries) - len(ids))
        state, rows = self.start(source), []
        for token in ids[:-1]:
            state, logits = self.read(state, token)
            rows.append(logits)
        return np.stack(rows), np.array(ids[1:])

    def measure(self, pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
        """Returns the teacher-forced accuracy of real tokens; the loss as the config defines it."""
        rows = [self.teacher_forced(*pair) for pair in pairs]
        logits, ids = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        real, labels = ids != PAD, np.maximum(ids - self.first, 0)
        metrics = measure(logits[real], labels[real])
        if not self.masked:  # without boundaries, padding adds no loss but counts in the mean
            padded = measure(logits, labels)["loss"]
            metrics["loss"] = padded if self.boundaries else metrics["loss"] * float(real.mean())
        return metrics

    def reply(self, source: str) -> tuple[list[int], float]:
        """Returns the greedy reply's tokens, the end symbol included, and their log-probability."""
        banned = [] if self.reads_padding else [PAD, START] + [UNKNOWN] * self.rules["ban_unknown"]
        bound = self.source_length + 1 if self.reads_padding else self.target_length - 1
        state, token, tokens, score = self.start(source), START, [], 0.0
        while len(tokens) < bound and END not in tokens:
            state, logits = self.read(state, PAD if self.reads_padding and tokens else token)
            log_probs = log_softmax(logits[: len(self.target.tokens)])  # the others are not tokens
            too_short = not self.reads_padding and len(tokens) < self.rules["min_length"]
            log_probs[banned + [END] * too_short] = -np.inf
            token = int(log_probs.argmax())
            tokens.append(token)
            score += float(log_probs[token])
        return tokens, score

    def continued(self, source: str, target: str) -> list[int]:
        """Returns the target's first token, then the likeliest one after each of its tokens."""
        ids = self.target.encode(target)[: self.target_length]
        logits, _ = self.teacher_forced(source, target)
        return [ids[0], *(logits[: len(ids) - 1].argmax(axis=-1) + self.first)]
