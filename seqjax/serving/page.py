"""A web page on this machine for trained runs: chat, translation, digits.

Only this file imports gradio, and only when a page is made. Plain functions compute what a tab
shows from the text or the drawing that it is given.
"""

import html
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from seqjax.errors import UserError, one_line
from seqjax.inference.calibration import ABSTENTION_FILE
from seqjax.inference.responder import Responder
from seqjax.plots import draw_attention
from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config
from seqjax.serving.repl import NO_REPLY, NO_TEXT, UNSURE, language, load_responder
from seqjax.tasks.mnist_rows import brightness, make_model
from seqjax.training.fit import load_run
from seqjax.typing import Params

_BEAM = {"beam_size": 4, "n_best": 3}
_BEAM_LABEL = "best 3 of a beam of 4, by score and length"
BLANK = "Draw a digit: the pad is empty."
DigitReader = Callable[[np.ndarray], np.ndarray]  # uint8 [28, 28] -> probabilities [28, 10] by row

# Selects the brush, because the pad starts without a tool and loses it when it is cleared.
_TAKE_BRUSH = """() => setTimeout(function take() {
    const brush = document.querySelector('#pad button[aria-label="Brush"]');
    brush ? brush.click() : setTimeout(take, 100); }, 100)"""
_TABLE_CSS = """
table { border-collapse: collapse; margin: auto; font-size: 11px; text-align: center; }
td, th { height: 13px; line-height: 13px; padding: 0; min-width: 10px; }
td:nth-child(n + 29), th { min-width: 26px; }
"""


def make_page(runs: Mapping[str, Path]) -> Any:
    """Returns a gradio page with a tab for each run: `chat`, `translate`, `digits`.

    Raises UserError if there is no run, if a tab cannot use its run, or if gradio is missing.
    """
    if not runs:
        raise UserError("no run to show: give --chat=RUNDIR, --translate=RUNDIR or --digits=RUNDIR")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: pip install 'seqjax[demo]'") from error
    tabs = {"chat": _chat_tab, "translate": _translate_tab, "digits": _digits_tab}
    with gr.Blocks(title="seqjax") as page:
        for name, workdir in runs.items():
            with gr.Tab(name.capitalize()) as tab:
                tabs[name](gr, tab, workdir)
    return page


def serve_page(page: Any, port: int) -> None:
    """Serves a page to this machine only, until Ctrl-C; raises UserError if the port is in use."""
    address = {"server_name": "127.0.0.1", "server_port": port, "share": False, "ssr_mode": False}
    try:
        page.launch(**address, footer_links=[], quiet=True, prevent_thread_lock=True)
    except OSError:
        raise UserError(f"port {port} is in use: choose another with --port=N") from None
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _chat_tab(gr: Any, _tab: Any, workdir: Path) -> None:
    can_abstain = (workdir / ABSTENTION_FILE).exists()
    responder = load_responder(workdir, can_abstain)
    label = "withhold replies that are probably wrong"
    abstain = gr.Checkbox(can_abstain, label=label, interactive=can_abstain)
    window = gr.Chatbot(
        label=str(workdir),
        height="65vh",
        render_markdown=False,
        latex_delimiters=[],
        reasoning_tags=None,
        buttons=[],
    )
    # gr.ChatInterface would render HTML that somebody has written into a question.
    text = gr.Textbox(label="question", submit_btn=True, autofocus=True)

    def submit(*inputs: Any) -> Iterator[tuple[Any, Any]]:
        text_left: Any = ""
        for chat in converse(responder, *inputs):
            yield text_left, chat
            text_left = gr.skip()  # keeps what the person writes in the meantime

    text.submit(submit, [text, window, abstain], [text, window])


def _translate_tab(gr: Any, _tab: Any, workdir: Path) -> None:
    responder = load_responder(workdir, abstain=False)

    def submit(text: str) -> tuple[Any, Any]:
        rows, picture = translate(responder, text)
        return rows, gr.Image(picture, visible=picture is not None)

    text = gr.Textbox(label=f"text for {workdir}", submit_btn=True)
    best = gr.Dataframe(headers=["translation", "score [nats]"], label=_BEAM_LABEL)
    label = "attention of each token of the reply by the run's own decoder"
    attention = gr.Image(label=label, visible=False, buttons=["download", "fullscreen"])
    text.submit(submit, text, [best, attention])


def _digits_tab(gr: Any, tab: Any, workdir: Path) -> None:
    read = load_reader(workdir)
    brush = gr.Brush(default_size=12, colors=["#000000"], color_mode="fixed")
    options = {"canvas_size": (280, 280), "fixed_canvas": True, "layers": False, "image_mode": "L"}
    with gr.Row():
        with gr.Column():
            pad = gr.Sketchpad(label=str(workdir), elem_id="pad", brush=brush, **options)
            line = gr.Markdown(BLANK)
            probs = gr.Label(label="after the last row", num_top_classes=3)
        with gr.Column():  # without this column the pad would take up the whole row
            table = gr.HTML(css_template=_TABLE_CSS, apply_default_css=False)
    pad.change(partial(read_drawing, read), pad, [line, probs, table])
    tab.select(None, js=_TAKE_BRUSH)
    pad.clear(None, js=_TAKE_BRUSH)


def converse(
    responder: Responder, question: str, history: list[dict[str, Any]], abstain: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yields the chat with the new question, and then with its reply as it grows."""
    chat = [*history, _message(question, role="user")]
    yield chat
    for messages in reply_messages(responder, question, abstain):
        yield chat + messages


def reply_messages(
    responder: Responder, question: str, abstain: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yields the messages that answer a question: the growing reply, then also its details.

    Without `abstain`, the greedy reply grows token by token. With `abstain`, the reply appears as a
    whole or is withheld; the folded details show the best replies in either case.
    """
    question = one_line(question).strip()
    if not question:
        yield [_message(NO_TEXT)]
        return
    if abstain:
        answer = responder.answer(question)
    else:
        for text in responder.stream(question):
            yield [_message(text)]
        answer = responder.greedy(question)
    unsure = UNSURE[language(responder.train.targets)]
    title = f"score {answer.score:.2f} nats, confidence {answer.confidence:.2f}"
    details = [
        f"nearest training question (similarity {answer.similarity:.2f}): {answer.nearest}",
        f"{_BEAM_LABEL}:",
        *(f"{best.score:.2f}  {best.text}" for best in responder.beam(question, **_BEAM)),
    ]
    folded = {"title": title if answer.finished else f"{title}, cut off", "status": "done"}
    yield [
        _message(unsure if abstain and answer.abstains else answer.text or NO_REPLY),
        _message(*details) | {"metadata": folded},
    ]


def _message(*lines: str, role: str = "assistant") -> dict[str, Any]:
    text = "\n".join(map(one_line, lines))
    return {"role": role, "content": html.escape(text, quote=False)}  # gradio reads it as HTML


def translate(responder: Responder, text: str) -> tuple[list[list[str]], Image.Image | None]:
    """Returns the best translations, each with its score, and a picture of the attention.

    The picture is None for a model without attention. A blank text has no translation and no
    picture.
    """
    text = one_line(text).strip()
    if not text:
        return [], None
    replies = responder.beam(text, **_BEAM)
    rows = [[one_line(best.text) or NO_REPLY, f"{best.score:.2f}"] for best in replies]
    attention = responder.explain(text)
    if attention is None or not attention.source or not attention.target:
        return rows, None
    with tempfile.TemporaryDirectory() as directory:
        draw_attention([attention], Path(directory) / "attention.png")
        return rows, Image.open(Path(directory) / "attention.png").convert("RGB")


def load_reader(workdir: Path) -> DigitReader:
    """Returns a function that reads a digit row by row with the best weights of a run.

    Raises UserError for a directory without a run, and for a run that cannot be used.
    """
    config = load_run_config(workdir, say)
    if (config.task, config.data.get("name")) != ("mnist_rows", "mnist"):
        raise UserError(
            f"{workdir} is not a run of mnist_rows with data.name=mnist: it cannot read digits"
        )
    if config.model.bidirectional:
        raise UserError(
            f"{workdir} is bidirectional, so it predicts nothing before the last row: give a run "
            "with model.bidirectional=False"
        )
    params = jax.device_get(load_run(workdir, config).params)
    read = jax.jit(partial(probabilities_by_row, config, params, num_classes=10))
    return lambda image: np.array(read(image[None])[0])


def read_drawing(
    read: DigitReader, drawing: Mapping[str, Any] | None
) -> tuple[str, dict[str, float] | None, str]:
    """Returns how a drawing is read: a line, the probabilities at its end, and an HTML table of
    the probabilities after each row.

    A pad that was never touched has no composite; a pad that was erased has no ink.
    """
    pixels = drawing["composite"] if drawing else None
    image = None if pixels is None else as_mnist(np.subtract(255, pixels))  # black on white
    if image is None:
        return BLANK, None, ""
    table = read(image)
    digits = table.argmax(axis=1)
    *_, last_change = (0, *np.flatnonzero(np.diff(digits)) + 1)
    probs = {str(digit): float(p) for digit, p in enumerate(table[-1])}
    line = (
        f"Read as {digits[-1]}, the most probable digit from row {last_change + 1} of "
        f"{len(table)} on."
    )
    return line, probs, reading_table(image, table)


def reading_table(image: UInt8[np.ndarray, "T I"], table: Float[np.ndarray, "T C"]) -> str:
    """Returns an HTML table of an image's rows, each with the probabilities in percent after it."""
    names = "".join(f"<th>{name}</th>" for name in range(table.shape[1]))
    lines = [f'<tr><th colspan="{image.shape[1]}"></th>{names}</tr>']
    for pixels, probs in zip(image, table, strict=True):
        cells = [f'<td style="background: rgb({p} {p} {p})"></td>' for p in pixels]
        for p in probs:
            text = f"{100 * p:.0f}" if p >= 0.005 else ""
            cells.append(f'<td style="background: rgb(59 130 246 / {p:.2f})">{text}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def probabilities_by_row(
    config, params: Params, images: UInt8[Array, "B T I"], num_classes: int
) -> Float[Array, "B T C"]:
    """Returns the class probabilities of the images cut off after each row."""
    _, bind = make_model(config, images.shape[-1], num_classes)
    return jax.nn.softmax(bind(params).every_step(brightness(images)))


def as_mnist(ink: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "28 28"] | None:
    """Returns a drawing (255 where there is ink) in the form of MNIST's digits.

    Returns None if there is no ink.

    The ink is scaled to fit 20 x 20 pixels, and its centre of mass is put on pixel 14 of 28 x 28.
    """
    rows, columns = (np.flatnonzero((ink > 16).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    crop = ink.astype(np.float32)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(20 * n / max(crop.shape))) for n in crop.shape)
    digit = np.array(Image.fromarray(crop).resize((width, height), Image.Resampling.BOX))
    masses = digit.sum(axis=1), digit.sum(axis=0)
    centres = [np.average(np.arange(len(mass)), weights=mass) for mass in masses]
    top, left = (
        int(np.clip(round(14 - centre), 0, 28 - length))
        for centre, length in zip(centres, digit.shape, strict=True)
    )
    image = np.zeros((28, 28), np.uint8)
    image[top : top + height, left : left + width] = digit * (
        255 / digit.max()
    )  # keeps thin lines dark
    return image
