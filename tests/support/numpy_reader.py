"""What a weights file computes, by NumPy alone: a second reader, which shares no code with seqjax.

It opens the file that `experiments.export` writes and follows the equations, in float64. A row is
cut to its length and never masked: that padding behind it changes nothing is what the comparison
with the package is to show. Only where a config reads padding as if it were text is there any.

Of configs it knows what the shipped ones use, Okt's words apart, and refuses all else.
"""

import itertools
import json
import struct
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PAD, START, END, UNKNOWN = range(4)  # ids that stand for no text; those of pieces follow
KERAS_PUNCTUATION = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


class WeightsFile(NamedTuple):
    """All that is read of the file."""

    config: dict[str, Any]
    texts: dict[str, str]  # of the files that were fitted, such as vocabulary.json
    weights: dict[str, Any]  # nested: the tensor "output.kernel" is weights["output"]["kernel"]


def read_weights(path: Path) -> WeightsFile:
    """A safetensors file is the length of a header in 8 bytes, the header in JSON, the numbers."""
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
    """The state after one more input: [h], or [h, c] of an LSTM."""
    h, w, u = state[0], weights["w_x"], weights["w_h"]
    if cell == "simple_rnn":
        return [np.tanh(x @ w + h @ u + weights["b"])]
    if cell == "lstm":
        i, f, g, o = np.split(x @ w + h @ u + weights["b"], 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    assert cell == "gru", f"unknown cell {cell}"
    after = "b_h" in weights  # the reset comes after the product, which has a bias of its own
    x_r, x_z, x_n = np.split(x @ w + weights["b_x" if after else "b"], 3, axis=-1)
    u_r, u_z, u_n = np.split(u, 3, axis=-1)
    b_r, b_z, b_n = np.split(weights["b_h"], 3) if after else (0, 0, 0)
    r, z = sigmoid(x_r + h @ u_r + b_r), sigmoid(x_z + h @ u_z + b_z)
    n = np.tanh(x_n + (r * (h @ u_n + b_n) if after else (r * h) @ u_n))
    return [(1 - z) * n + z * h]


def run_cell(cell: str, weights: dict[str, Any], xs: np.ndarray, state: Any = None) -> tuple:
    """The outputs [..., T, H] for inputs [..., T, I], and the last state; the first is zero."""
    size = len(weights["w_h"])
    state = state or [np.zeros((*xs.shape[:-2], size))] * (2 if cell == "lstm" else 1)
    ys = np.zeros((*xs.shape[:-1], size))
    for t in range(xs.shape[-2]):
        state = step(cell, weights, state, xs[..., t, :])
        ys[..., t, :] = state[0]
    return ys, state


def run_stack(spec: str, layers: dict[str, Any], xs: np.ndarray, states: Any = None) -> tuple:
    """The top layer's outputs, and the last states: of each layer one, or forward and backward."""
    cell, ends = spec.partition("(")[0], []
    for number in range(len(layers)):
        layer = layers[f"layer_{number}"]
        if "weights" in layer:
            xs, end = run_cell(cell, layer["weights"], xs, states and states[number][0])
            ends.append([end])
        else:
            ahead, first = run_cell(cell, layer["forward"], xs)
            back, second = run_cell(cell, layer["backward"], xs[..., ::-1, :])
            xs = np.concatenate([ahead, back[..., ::-1, :]], axis=-1)
            ends.append([first, second])
    return xs, ends


def dense(weights: dict[str, Any], x: np.ndarray) -> np.ndarray:
    return x @ weights["kernel"] + weights["bias"]


def one_hot(ids: Any, size: int) -> np.ndarray:
    """For each id a row of zeros with a one at its place; zeros only where it is below 0."""
    return (np.asarray(ids)[..., None] == np.arange(size)).astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Loss and accuracy, the mean over all labels."""
    nats = -np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)
    right = logits.argmax(axis=-1) == labels
    return {"loss": float(nats.mean()), "accuracy": float(right.mean())}


def read_sequences(file: WeightsFile, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [..., C] of whole sequences [..., T, I], and [..., T, C] of each of their steps."""
    outputs, states = run_stack(file.config["model"]["cell"], file.weights["stack"], xs)
    ends = np.concatenate([state[0] for state in states[-1]], axis=-1)  # of each direction its own
    return dense(file.weights["output"], ends), dense(file.weights["output"], outputs)


class Vocabulary:
    """Text to ids and back, from what stands in a vocabulary.json."""

    def __init__(self, text: str):
        content = json.loads(text)
        self.kind, _, options = content["spec"].partition("(")
        known = self.kind in ("characters", "whitespace", "words", "unigram")
        assert known and "analyzer" not in options, content["spec"]
        pieces = content["model"]
        if self.kind == "unigram":
            self.scores = dict(pieces["model"]["vocab"])
            pieces = list(self.scores)[1:]  # the first stands for what is missing
        self.ids = {piece: number for number, piece in enumerate(pieces, UNKNOWN + 1)}
        self.keeps_unknown = "unknown=False" not in options
        unknown = "\N{REPLACEMENT CHARACTER}" if self.keeps_unknown else None
        self.pieces = [None, None, None, unknown, *pieces]

    def encode(self, text: str) -> list[int]:
        ids = [self.ids.get(p, UNKNOWN) for p in self.split(unicodedata.normalize("NFC", text))]
        return [i for i in ids if i != UNKNOWN or self.keeps_unknown]

    def decode(self, ids: Iterable[int]) -> str:
        pieces = (self.pieces[i] for i in itertools.takewhile(lambda i: i != END, ids))
        between = " " if self.kind in ("whitespace", "words") else ""
        text = between.join(piece for piece in pieces if piece is not None)
        return text.removeprefix(" ") if self.kind == "unigram" else text

    def split(self, text: str) -> list[str]:
        if self.kind == "characters":
            return list(text)
        if self.kind == "whitespace":
            return text.split()
        if self.kind == "words":
            return [word for word in text.lower().translate(KERAS_PUNCTUATION).split(" ") if word]
        words = text.split(" ") if text else []  # a word begins with its blank, the first one too
        return [piece for word in words for piece in self.likeliest_split(f" {word}")]

    def likeliest_split(self, word: str) -> list[str]:
        """The pieces of a word with the highest sum of scores (Viterbi's algorithm)."""
        missing = min(self.scores.values()) - 10  # of a character that is no piece itself
        best: list[tuple[float, list[str]]] = [(0.0, [])]  # score and pieces up to each character
        for end in range(1, len(word) + 1):
            ways = [
                (score + self.scores.get(piece, missing), [*pieces, piece])
                for begin, (score, pieces) in enumerate(best)
                if (piece := word[begin:end]) in self.scores or len(piece) == 1
            ]
            best.append(max(ways, key=lambda way: way[0]))
        runs = itertools.groupby(best[-1][1], key=self.scores.__contains__)
        # Missing characters side by side are one unknown piece.
        return [p for known, run in runs for p in (run if known else ["".join(run)])]


class Translator:
    """A model of text pairs. The longest of its training texts bound all others, where the config
    sets no bound."""

    def __init__(self, file: WeightsFile, sources: Iterable[str], targets: Iterable[str]):
        self.weights, self.model, data = file.weights, file.config["model"], file.config["data"]
        self.rules, loss = file.config["decode"], file.config["loss"]
        assert self.rules["repetition_penalty"] == 1 and self.rules["no_repeat_ngram"] == 0
        assert loss["label_smoothing"] == 0
        texts = [file.texts.get(name) for name in ("vocabulary.json", "source_vocabulary.json")]
        self.target, self.source = Vocabulary(texts[0]), Vocabulary(texts[1] or texts[0])
        self.masked, decoder = loss["mask_padding"], self.rules["decoder"]
        assert self.masked or data["source_padding"] == "post"
        self.boundaries = data["boundaries"]  # without, texts have no start and no end symbol
        assert decoder in (("greedy", "fed_padding") if self.boundaries else ("teacher_forced",))
        self.blind = decoder == "fed_padding"  # reads padding in place of its own words
        self.first = 0 if self.boundaries else UNKNOWN + 1  # the id that is number 0 to the model
        self.least_size = data["vocab_size"]
        longest = max(len(self.source.encode(text)) for text in sources)
        self.source_length = data["max_source_length"] or longest
        longest = max(len(self.target.encode(text)) for text in targets) + 2 * self.boundaries
        self.target_length = data["max_target_length"] or longest

    def start(self, source: str) -> tuple:
        """The decoder before its first token: its layers' states, which are the encoder's last, the
        memory [S, O] that attention looks at, and the last attentional vector [H]."""
        ids = self.source.encode(source)[: self.source_length]
        ids += [] if self.masked else [PAD] * (self.source_length - len(ids))
        table = "target_embed" if self.model["share_embeddings"] else "source_embed"
        inputs = self.inputs(table, ids, self.source)
        outputs, states = run_stack(self.model["cell"], self.weights["encoder"], inputs)
        if self.model["bidirectional"]:  # of each layer both h, then both c, make one of each
            numbers = itertools.count()

            def bridge(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
                return np.tanh(dense(self.weights[f"bridge_{next(numbers)}"], np.concatenate(pair)))

            states = [[[bridge(pair) for pair in zip(*ends, strict=True)]] for ends in states]
        return states, outputs, np.zeros(self.model["hidden_size"])

    def read(self, state: tuple, token: int) -> tuple[tuple, np.ndarray]:
        """The decoder after one more token, and the logits [V] of the next."""
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
        """The mean of the memory's rows, weighted by how well each fits the query."""
        weights = self.weights.get("attention", {})  # a dot product may need none
        keys = dense(weights["of_memory"], memory) if "of_memory" in weights else memory
        if self.model["attention"] == "additive":
            scores = dense(weights["of_sum"], np.tanh(dense(weights["of_query"], query) + keys))
        else:
            scores = keys @ query[:, None]
        odds = np.exp(scores - scores.max(initial=-1e30))
        return odds[:, 0] @ memory / max(odds.sum(), 1)  # the sum is below 1 for no rows only

    def inputs(self, table: str, ids: Sequence[int], vocabulary: Vocabulary) -> np.ndarray:
        """What the model reads of ids [T]: rows of an embedding, or of zeros and a one."""
        numbers = np.array(ids, int) - self.first
        if self.model["embed_size"]:
            return self.weights[table]["embedding"][numbers]
        return one_hot(numbers, max(len(vocabulary.pieces) - self.first, self.least_size))

    def taught(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits [T, V] after each token of the right answer, and the ids [T] that follow it."""
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
        """Accuracy of real tokens, given those before them; the loss as the config counts it."""
        rows = [self.taught(*pair) for pair in pairs]
        logits, ids = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        real, labels = ids != PAD, np.maximum(ids - self.first, 0)
        found = measure(logits[real], labels[real])
        if not self.masked:  # zeros in place of a padding symbol cost nothing, but count
            everywhere = measure(logits, labels)["loss"]
            found["loss"] = everywhere if self.boundaries else found["loss"] * float(real.mean())
        return found

    def reply(self, source: str) -> tuple[list[int], float]:
        """The likeliest token after each that was emitted, the end included, and their nats."""
        banned = [] if self.blind else [PAD, START] + [UNKNOWN] * self.rules["ban_unknown"]
        bound = self.source_length + 1 if self.blind else self.target_length - 1
        state, token, tokens, score = self.start(source), START, [], 0.0
        while len(tokens) < bound and END not in tokens:
            state, logits = self.read(state, PAD if self.blind and tokens else token)
            log_odds = log_softmax(logits[: len(self.target.pieces)])  # others stand for no text
            too_short = not self.blind and len(tokens) < self.rules["min_length"]
            log_odds[banned + [END] * too_short] = -np.inf
            token = int(log_odds.argmax())
            tokens.append(token)
            score += float(log_odds[token])
        return tokens, score

    def continued(self, source: str, target: str) -> list[int]:
        """The first token as given, then the likeliest after each given one: no generation."""
        given = self.target.encode(target)[: self.target_length]
        logits, _ = self.taught(source, target)
        return [given[0], *(logits[: len(given) - 1].argmax(axis=-1) + self.first)]
