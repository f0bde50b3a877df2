"""Small text models with random weights, and a run of texts, for several tests."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import seqjax.plots
from seqjax.config import text_pairs_config
from seqjax.models.text_to_text import TextToText
from seqjax.parameters import parameter_shapes
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq_data import Seq2SeqData, load_seq2seq_data
from seqjax.training.fit import fit
from support.oracles import random_like

PAIRS = (
    ("abc", "가나"),
    ("cad", "나다라가"),
    ("b", "다"),
    ("dabcab", "라가나"),
    ("bd", "나"),
)


def make_pairs(
    data: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    **model: Any,
) -> Seq2SeqData:
    """Returns the pairs above with a small model for them; keywords set fields of `model`."""
    config = text_pairs_config("")
    config.model.update({"embed_size": 5, "hidden_size": 6} | model)
    config.data.update({"pairs": PAIRS} | (data or {}))
    config.loss.update(loss or {})
    config.decode.update(decode or {})
    return load_seq2seq_data(config)


def make_text(**changes: Any) -> TextToText:
    """Returns the model of `make_pairs`."""
    return make_pairs(**changes).text


def random_params(text: TextToText, seed: int = 0) -> Any:
    """Returns distinct random weights that give replies of several tokens, some of which end."""
    params = random_like(parameter_shapes(text.init), seed, scale=1.0)
    params["output"]["bias"][text.target.eos_id] += 1.5
    return jax.tree.map(jnp.asarray, params)


def batch_of(text: TextToText, pairs: Any = PAIRS) -> dict[str, jax.Array]:
    """Returns the pairs as a batch, each row of weight 1."""
    sources, targets = zip(*pairs, strict=True)
    arrays = {"source": text.encode_sources(sources), "target": text.encode_targets(targets)}
    return jax.tree.map(jnp.asarray, arrays) | {"weight": jnp.ones(len(pairs))}


def replies_of(text: TextToText, params: Any, batch: dict[str, Any]) -> list[str]:
    """Returns the decoder's replies as texts."""
    tokens = jax.jit(text.replies)(params, batch).tokens
    return [text.target.decode(row) for row in np.asarray(tokens)]


QUESTIONS = (
    ("몇 시에 여나요?", "아홉 시요.", "open"),
    ("언제 열어요?", "아홉 시요.", "open"),
    ("문은 언제 여나요", "아홉 시에 엽니다.", "open"),
    ("여는 시간이 언제죠?", "아홉 시요.", "open"),
    ("라떼 있어요?", "네, 있어요.", "latte"),
    ("라떼도 되나요?", "네, 있어요.", "latte"),
    ("라떼 한 잔 주세요", "네!", "latte"),
    ("혹시 라떼 있나요", "네, 있어요.", "latte"),
)


def run_config(directory: Path, **model: Any) -> ConfigDict:
    """Returns a config that memorizes the questions above; writes its files to the directory."""
    for name, lines in (
        ("questions.tsv", [f"{question}\t{answer}" for question, answer, _ in QUESTIONS]),
        ("labels.txt", [label for *_, label in QUESTIONS]),
    ):
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = text_pairs_config(str(directory / "questions.tsv"))
    config.model.update({"cell": "gru", "embed_size": 8, "hidden_size": 16} | model)
    config.data.update(form="tsv", labels=str(directory / "labels.txt"), ask=("라떼요?",))
    config.optim.learning_rate = 0.03
    config.train.update(batch_size=8, num_epochs=60, eval_every_epochs=60, num_devices=1)
    config.train.update(monitor="epoch", checkpoint_every_epochs=60)
    return config.lock()


def train_text_run(directory: Path) -> None:
    """Trains the run of `run_config` in `directory/run`, without drawing pictures."""
    config = run_config(directory, attention="dot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
        fit(make_task(config, directory / "run"), config, directory / "run")
