"""Trained runs as a page on this machine: chat, translation, digits.

This is the one file that imports gradio, and only when a page is made. What a tab does is a plain
function of what a person wrote or drew.
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

from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError, one_line
from seqjax.inference.calibration import FILE as ABSTENTION
from seqjax.inference.responder import Responder
from seqjax.plots import draw_attention
from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config
from seqjax.serving.load import load_responder
from seqjax.serving.repl import NO_REPLY, NO_TEXT, UNSURE, language
from seqjax.tasks.mnist_rows import brightness, make_model
from seqjax.tasks.registry import make_task
from seqjax.training.fit import restore_best
from seqjax.training.setup import make_setup
from seqjax.typing import Params

BEST = {"beam_size": 4, "n_best": 3}
BEST_LABEL = "best 3 of a beam of 4, by score and length"
BLANK = "Draw a digit: the pad is empty."
Reader = Callable[[np.ndarray], np.ndarray]  # uint8 [28, 28] to probabilities [28, 10] by row

# The pad starts without a tool, and drops it when it is cleared; a person wants to draw at once.
TAKE_BRUSH = """() => setTimeout(function take() {
    const brush = document.querySelector('#pad button[aria-label="Brush"]');
    brush ? brush.click() : setTimeout(take, 100); }, 100)"""
TABLE_CSS = """
table { border-collapse: collapse; margin: auto; font-size: 11px; text-align: center; }
td, th { height: 13px; line-height: 13px; padding: 0; min-width: 10px; }
td:nth-child(n + 29), th { min-width: 26px; }
"""


def make_page(runs: Mapping[str, Path]) -> Any:
    """A gradio page with a tab for each run: `chat`, `translate`, `digits`. Serves nothing yet.

    Raises UserError without a run, for one that a tab cannot use, and where gradio is missing.
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


def serve(page: Any, port: int) -> None:
    """Serves a page to this machine only, until Ctrl-C."""
    address = {"server_name": "127.0.0.1", "server_port": port, "share": False, "ssr_mode": False}
    try:
        page.launch(**address, footer_links=[], quiet=True, prevent_thread_lock=True)
    except OSError:
        raise UserError(f"port {port} is in use: choose another with --port=N") from None
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _chat_tab(gr: Any, _tab: Any, workdir: Path) -> None:
    can_abstain = (workdir / ABSTENTION).exists()
    responder = load_responder(workdir, can_abstain)
    label = "abstain from what is probably wrong"
    abstain = gr.Checkbox(can_abstain, label=label, interactive=can_abstain)
    window = gr.Chatbot(
        label=str(workdir),
        height="65vh",
        render_markdown=False,
        latex_delimiters=[],
        reasoning_tags=None,
        buttons=[],
    )
    # Not gr.ChatInterface, which would show a question as the HTML that somebody wrote into it.
    text = gr.Textbox(label="question", submit_btn=True, autofocus=True)

    def say(*asked: Any) -> Iterator[tuple[Any, Any]]:
        left: Any = ""
        for chat in converse(responder, *asked):
            yield left, chat
            left = gr.skip()  # what is written meanwhile stays

    text.submit(say, [text, window, abstain], [text, window])


def _translate_tab(gr: Any, _tab: Any, workdir: Path) -> None:
    responder = load_responder(workdir, abstain=False)

    def show(text: str) -> tuple[Any, Any]:
        rows, picture = translate(responder, text)
        return rows, gr.Image(picture, visible=picture is not None)

    text = gr.Textbox(label=f"text for {workdir}", submit_btn=True)
    best = gr.Dataframe(headers=["translation", "score [nats]"], label=BEST_LABEL)
    label = "where each token of the run's own reply looked"
    look = gr.Image(label=label, visible=False, buttons=["download", "fullscreen"])
    text.submit(show, text, [best, look])


def _digits_tab(gr: Any, tab: Any, workdir: Path) -> None:
    read = load_reader(workdir)
    brush = gr.Brush(default_size=12, colors=["#000000"], color_mode="fixed")
    options = {"canvas_size": (280, 280), "fixed_canvas": True, "layers": False, "image_mode": "L"}
    with gr.Row():
        with gr.Column():
            pad = gr.Sketchpad(label=str(workdir), elem_id="pad", brush=brush, **options)
            line = gr.Markdown(BLANK)
            odds = gr.Label(label="after the last row", num_top_classes=3)
        with gr.Column():  # or the pad, laid out before it, takes the whole row for its own
            table = gr.HTML(css_template=TABLE_CSS, apply_default_css=False)
    pad.change(partial(read_drawing, read), pad, [line, odds, table])
    tab.select(None, js=TAKE_BRUSH)
    pad.clear(None, js=TAKE_BRUSH)


def converse(
    responder: Responder, question: str, history: list[dict[str, Any]], abstain: bool
) -> Iterator[list[dict[str, Any]]]:
    """The chat with the question, and then with its reply, as that grows."""
    asked = [*history, _message(question, role="user")]
    yield asked
    for messages in reply(responder, question, abstain):
        yield asked + messages


def reply(responder: Responder, question: str, abstain: bool) -> Iterator[list[dict[str, Any]]]:
    """What stands below a question, as it grows: a reply, then a folded message about it.

    Without abstaining it is the greedy reply, token by token. A reply that may be withheld appears
    whole; the folded message then still says what it would have been.
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
        f"nearest training question, of similarity {answer.similarity:.2f}: {answer.nearest}",
        f"{BEST_LABEL}:",
        *(f"{best.score:.2f}  {best.text}" for best in responder.beam(question, **BEST)),
    ]
    folded = {"title": title if answer.finished else f"{title}, cut off", "status": "done"}
    yield [
        _message(unsure if abstain and answer.abstains else answer.text or NO_REPLY),
        _message(*details) | {"metadata": folded},
    ]


def _message(*lines: str, role: str = "assistant") -> dict[str, Any]:
    text = "\n".join(map(one_line, lines))
    return {"role": role, "content": html.escape(text, quote=False)}  # it is read as HTML


def translate(responder: Responder, text: str) -> tuple[list[list[str]], Image.Image | None]:
    """The best translations, each with its score, and where the run's own reply looked: None for
    a model without attention. Nothing of both for a blank text."""
    text = one_line(text).strip()
    if not text:
        return [], None
    found = responder.beam(text, **BEST)
    rows = [[one_line(best.text) or NO_REPLY, f"{best.score:.2f}"] for best in found]
    look = responder.explain(text)
    if look is None or not look.source or not look.target:
        return rows, None
    with tempfile.TemporaryDirectory() as directory:
        draw_attention([look], Path(directory) / "attention.png")
        return rows, Image.open(Path(directory) / "attention.png").convert("RGB")


def load_reader(workdir: Path) -> Reader:
    """The best weights of a run of MNIST, reading an image row by row.

    Raises UserError for a directory that holds no run, or one of another kind.
    """
    config = load_run_config(workdir, say)
    if (config.task, config.data.get("name")) != ("mnist_rows", "mnist"):
        raise UserError(
            f"{workdir} is no run of mnist_rows with data.name=mnist: it knows no digits"
        )
    if config.model.bidirectional:
        raise UserError(f"{workdir} reads from both ends: it says nothing before the last row")
    start_jax(config.train)
    params, _ = restore_best(make_setup(make_task(config), config), workdir)
    read = jax.jit(partial(every_row, config, jax.device_get(params), num_classes=10))
    return lambda image: np.array(read(image[None])[0])


def read_drawing(
    read: Reader, drawing: Mapping[str, Any] | None
) -> tuple[str, dict[str, float] | None, str]:
    """A line on what a pad's drawing is read as, the probabilities at its end, and a table of
    those after each row. An untouched pad has no composite, an erased one no ink."""
    pixels = drawing["composite"] if drawing else None
    image = None if pixels is None else as_mnist(np.subtract(255, pixels))  # black on white
    if image is None:
        return BLANK, None, ""
    table = read(image)
    *_, since = (0, *np.flatnonzero(np.diff(table.argmax(axis=1))) + 1)  # the last change of mind
    odds = {str(digit): float(p) for digit, p in enumerate(table[-1])}
    line = f"Read as {table[-1].argmax()}, the likeliest from row {since + 1} of {len(table)} on."
    return line, odds, reading_table(image, table)


def reading_table(image: UInt8[np.ndarray, "T I"], table: Float[np.ndarray, "T C"]) -> str:
    """HTML: each row of an image, and beside it the probabilities in percent after that row."""
    names = "".join(f"<th>{name}</th>" for name in range(table.shape[1]))
    lines = [f'<tr><th colspan="{image.shape[1]}"></th>{names}</tr>']
    for pixels, odds in zip(image, table, strict=True):
        cells = [f'<td style="background: rgb({p} {p} {p})"></td>' for p in pixels]
        for p in odds:
            text = f"{100 * p:.0f}" if p >= 0.005 else ""
            cells.append(f'<td style="background: rgb(59 130 246 / {p:.2f})">{text}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def every_row(
    config, params: Params, images: UInt8[Array, "B T I"], num_classes: int
) -> Float[Array, "B T C"]:
    """Probabilities after each row: what the model would say if the images ended there."""
    _, bind = make_model(config, images.shape[-1], num_classes)
    return jax.nn.softmax(bind(params).every_step(brightness(images)))


def as_mnist(ink: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "28 28"] | None:
    """A drawing, 255 where there is ink, as MNIST has its digits: scaled to fit 20 x 20, its mass
    centred on pixel 14 of 28 x 28. None without ink."""
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
    image[top : top + height, left : left + width] = digit * (255 / digit.max())  # thin, not faint
    return image
