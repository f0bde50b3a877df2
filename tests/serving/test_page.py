"""The page: the functions behind its tabs, and the whole page in a browser."""

import html
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import jax
import numpy as np
import pytest
from support.toys import CONFIGS, assert_picture, few_digits, tiny_config

import seqjax.plots
from seqjax.config import text_pairs_config
from seqjax.data import images
from seqjax.data.images import load_mnist
from seqjax.data.parallel_text import Split
from seqjax.errors import UserError
from seqjax.files import write_json
from seqjax.inference.responder import Answer, AttentionMap, Responder
from seqjax.serving.page import (
    BLANK,
    as_mnist,
    converse,
    load_reader,
    make_page,
    probabilities_by_row,
    read_drawing,
    reading_table,
    reply_messages,
    serve_page,
    translate,
)
from seqjax.serving.repl import NO_TEXT, UNSURE
from seqjax.tasks.registry import make_task
from seqjax.training.fit import fit

# Text that a page could mistake for HTML, markdown or a formula; if it did, the browser would
# request the "http:" addresses.
HOSTILE = (
    "<b>x</b> <img src=http://evil.invalid/a.png onerror='document.title=1'> &lt; **y** `z` "
    "![i](http://evil.invalid/b.png) [l](javascript:alert(1)) $$x^2$$ $y$ <thinking>no</thinking>"
)
PAIRS = (
    ("a cat", "une chatte"),
    ("the dog", "le chien"),
    ("one bird", "un oiseau"),
    (HOSTILE, HOSTILE),
)


class Parrot(Responder):
    """Replies with the question in capitals; the confidence is 0.9 for short questions."""

    def __init__(self, attention: bool = True, end: str = ""):
        self.attention, self.end = attention, end
        self.train = Split(["polly?"], ["POLLY?"], [])

    def answer(self, question):
        sure = len(question) < 6
        confidence = 0.9 if sure else 0.1
        return Answer(question.upper() + self.end, -1.5, confidence, not sure, sure, "polly?", 0.25)

    def beam(self, question, beam_size, n_best):
        assert question
        return [self.answer(question[:end]) for end in range(len(question), 0, -1)][:n_best]

    def sample(self, question, temperature, seed):
        assert temperature == 0
        return self.answer(question)

    def stream(self, question):
        yield from (question.upper()[: end + 1] for end in range(len(question)))

    def explain(self, question):
        weights = np.eye(len(question), dtype=np.float32)
        return AttentionMap(weights, [*question], [*question.upper()]) if self.attention else None


def contents(messages):
    return [message["content"] for message in messages]


def test_only_replies_without_abstention_are_streamed():
    (whole,) = map(contents, reply_messages(Parrot(), " ab ", True))
    *growing, last = map(contents, reply_messages(Parrot(), " ab ", False))
    assert growing == [["A"], ["AB"]]
    assert last == whole
    assert whole[0] == "AB"
    assert whole[1].splitlines()[0] == "nearest training question (similarity 0.25): polly?"
    assert whole[1].splitlines()[2:] == ["-1.50  AB", "-1.50  A"]


def test_an_unsure_reply_is_withheld_on_request_only():
    (messages,) = reply_messages(Parrot(), "a < b & c", True)
    assert messages[0]["content"] == UNSURE["en"]
    assert messages[1]["metadata"]["title"] == "score -1.50 nats, confidence 0.10, cut off"
    assert "-1.50  A &lt; B &amp; C" in messages[1]["content"]
    *_, messages = reply_messages(Parrot(), "a < b & c", False)
    assert messages[0]["content"] == "A &lt; B &amp; C"


@pytest.mark.parametrize("abstain", [False, True])
def test_a_chat_shows_text_as_text_on_both_sides(abstain):
    question, shown = "<b>\u202e x\x1b[1m & $$y$$", "&lt;b&gt;  x [1m &amp; $$y$$"
    reply = "<B>  X [1M & $$Y$$  ."
    history = [{"role": "user", "content": "before"}]
    responder = Parrot(end="\x1b\u202e.")
    *_, chat = converse(responder, question, history, abstain)
    assert [message["role"] for message in chat] == ["user", "user", "assistant", "assistant"]
    assert chat[0] == history[0]
    assert chat[1]["content"] == shown
    assert chat[2]["content"] == (UNSURE["en"] if abstain else html.escape(reply))
    text = "".join(contents(chat))
    assert not re.search("[<>\x1b\u202e]", text)
    rows, _ = translate(responder, question)
    assert rows[0][0] == reply


def test_the_chat_is_shown_at_once_and_then_grows():
    first, *rest = converse(Parrot(), "ab", [], False)
    assert first == [{"role": "user", "content": "ab"}]
    assert [contents(chat) for chat in rest[:-1]] == [["ab", "A"], ["ab", "AB"]]


def test_a_blank_text_is_no_question():
    assert [contents(messages) for messages in reply_messages(Parrot(), " \n", True)] == [[NO_TEXT]]
    assert translate(Parrot(), " \n") == ([], None)


def test_translations_have_scores_and_an_attention_picture(tmp_path):
    rows, picture = translate(Parrot(), "abcd")
    assert rows == [["ABCD", "-1.50"], ["ABC", "-1.50"], ["AB", "-1.50"]]
    picture.save(tmp_path / "attention.png")
    assert_picture(tmp_path / "attention.png")
    assert translate(Parrot(attention=False), "abcd") == (rows, None)


@pytest.mark.parametrize(("scale", "corner"), [(10, (0, 0)), (7, (50, 80))])
def test_a_digit_drawn_at_any_size_and_place_is_recovered(scale, corner):
    for digit in load_mnist()["x_test"][:20]:
        canvas = np.zeros((280, 280), np.uint8)
        canvas[tuple(slice(start, start + 28 * scale) for start in corner)] = np.kron(
            digit, np.ones((scale, scale), np.uint8)
        )
        image = as_mnist(canvas)
        assert image.shape == (28, 28)
        assert np.corrcoef(image.ravel(), digit.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("shape", [(200, 30), (3, 260), (1, 1), (90, 90)])
def test_a_drawing_fits_20_by_20_and_is_centred_by_mass(shape):
    canvas = np.zeros((280, 280), np.uint8)
    canvas[5 : 5 + shape[0], 2 : 2 + shape[1]] = np.tri(*shape, dtype=np.uint8) * 200
    image = as_mnist(canvas)
    assert image.max() == 255
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        mass = image.sum(axis=1 - axis)
        assert abs(np.average(np.arange(28), weights=mass) - 14) <= 0.51


def test_without_ink_there_is_no_digit():
    canvas = np.full((280, 280), 255, np.uint8)
    for drawing in (None, {"composite": None}, {"composite": canvas}, {"composite": canvas - 9}):
        assert read_drawing(lambda image: pytest.fail("read"), drawing) == (BLANK, None, "")


def test_a_reading_says_since_when_and_shows_every_row():
    canvas = np.full((280, 280), 255, np.uint8)
    canvas[40:240, 130:150] = 0
    table = np.eye(10)[[7] * 20 + [1] * 3 + [4] * 5] * 0.9 + 0.01
    line, probs, text = read_drawing(lambda image: table, {"composite": canvas})
    assert line == "Read as 4, the most probable digit from row 24 of 28 on."
    assert probs == pytest.approx({str(digit): 0.91 if digit == 4 else 0.01 for digit in range(10)})
    _, *rows = re.findall("<tr>(.*?)</tr>", text)
    shown = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in rows]
    assert {len(cells) for cells in shown} == {38}
    assert [cells[28:].index("91") for cells in shown] == [*table.argmax(axis=1)]
    line, *_ = read_drawing(lambda image: table[[-1] * 28], {"composite": canvas})
    assert line == "Read as 4, the most probable digit from row 1 of 28 on."


def test_a_row_of_a_table_is_a_row_of_the_image():
    text = reading_table(np.array([[0, 255], [7, 8]], np.uint8), np.array([[0.004, 0.06], [1, 0]]))
    assert "rgb(255 255 255)" in text.split("</tr>")[1]
    assert "rgb(7 7 7)" in text.split("</tr>")[2]
    assert "<th>0</th><th>1</th>" in text
    assert ">6<" in text.split("</tr>")[1]
    assert ">100<" in text.split("</tr>")[2]
    assert ">0<" not in text.replace("<th>0<", "")


def test_predictions_after_a_row_equal_those_of_a_cut_image(monkeypatch):
    monkeypatch.setattr(images, "load_mnist", few_digits)
    config = tiny_config("mnist_rows")
    task = make_task(config)
    params = task.init(jax.random.key(0))
    pixels = jax.numpy.asarray(task.splits["test"]["image"])
    probs = probabilities_by_row(config, params, pixels, 10)
    whole = jax.nn.softmax(task.predict(params, {"image": pixels}))
    np.testing.assert_allclose(probs[:, -1], whole, atol=1e-6)
    half = jax.nn.softmax(task.predict(params, {"image": pixels[:, :14]}))
    np.testing.assert_allclose(probs[:, 13], half, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (None, "", "", "config.json does not exist"),
        ("recall", "data.num_sequences", 40, "cannot read digits"),
        ("mnist_rows", "data.name", "tfds:kmnist", "cannot read digits"),
        ("mnist_rows", "model.bidirectional", True, "is bidirectional, so it predicts nothing"),
        ("mnist_rows", "data.valid_size", 8, "has no checkpoint yet"),
    ],
)
def test_a_run_that_cannot_read_digits_is_one_line(
    name, field, value, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(images, "load_mnist", few_digits)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    if name:
        config = tiny_config(name).unlock()
        config.update_from_flattened_dict({field: value})
        write_json(tmp_path / "config.json", config.to_dict())
    with pytest.raises(UserError, match=message) as caught:
        load_reader(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_page_needs_a_run_and_gradio(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="no run to show: give --chat=RUNDIR, "):
        make_page({})
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"needs gradio: pip install 'seqjax\[demo\]'"):
        make_page({"chat": tmp_path})


def test_a_port_in_use_is_one_line():
    class Page:
        def launch(self, **options):
            socket.create_server((options["server_name"], options["server_port"])).close()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use: choose another"):
            serve_page(Page(), port)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run that has memorised some translations, and an untrained run of digits."""
    monkeypatch.setattr(images, "load_mnist", few_digits)
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
    texts = text_pairs_config("")
    texts.data.update(pairs=PAIRS, source_vocabulary="whitespace")
    texts.model.update(embed_size=16, hidden_size=32, attention="dot")
    texts.optim.learning_rate = 0.02
    texts.train.update(num_epochs=120, eval_every_epochs=120, batch_size=3)
    texts.train.update(monitor="epoch", num_devices=1)
    configs = {"texts": texts.lock(), "digits": tiny_config("mnist_rows")}
    for name, config in configs.items():
        fit(make_task(config), config, tmp_path / name)
    return {name: tmp_path / name for name in configs}


@pytest.fixture
def served(runs):
    """The address of a served page; its process must exit with 0 after Ctrl-C."""
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = [f"--{tab}={runs['texts']}" for tab in ("chat", "translate")]
    command = [sys.executable, "-m", "experiments.demo", *flags, f"--digits={runs['digits']}"]

    with subprocess.Popen(
        [*command, f"--port={port}"], cwd=CONFIGS.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.fixture
def browser():
    """A headless Chromium, which records its requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium, driver = (
        next(filter(None, map(shutil.which, names)), None),
        shutil.which("chromedriver"),
    )
    if not (chromium and driver):
        pytest.skip("no chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1300,1000"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.mark.slow
def test_a_person_chats_translates_and_draws(browser, served, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def find(path):
        """Waits for an element that is displayed, and returns the first one."""

        def look(browser):
            seen = (e for e in browser.find_elements(By.XPATH, path) if e.is_displayed())
            return next(seen, None)

        return WebDriverWait(browser, 30).until(look, path)

    def read(text):
        return find(f"//*[contains(normalize-space(.), '{text}') and not(.//div)]")

    def find_text(path, text):
        """Waits for an element with exactly this text, without elements or formulas made of it."""

        def look(browser):
            elements = browser.find_elements(By.XPATH, path)
            return text in [e.get_property("textContent").strip() for e in elements]

        WebDriverWait(browser, 30).until(look, text)

    def write(text):
        find("//textarea").send_keys(text, "\n")

    def open_tab(name):
        find(f"//button[@role='tab' and normalize-space(.)='{name}']").click()

    browser.get(served)
    find("//input[@type='checkbox']").click()
    write(HOSTILE)
    for side in ("user", "bot"):
        find_text(f"//*[@data-testid='{side}']", HOSTILE)
    read("nats, confidence").click()
    assert f"similarity 1.00): {HOSTILE}\n" in read("nearest training question").text
    assert not find("//textarea").get_property("value")
    browser.save_screenshot(tmp_path / "chat.png")

    open_tab("Translate")
    write(HOSTILE)
    find_text("//div[contains(@class, 'cell')]", HOSTILE)
    picture = find("//*[@data-testid='image' or contains(@class, 'image')]//img")
    WebDriverWait(browser, 30).until(lambda _: int(picture.get_property("naturalWidth")) > 50)
    browser.save_screenshot(tmp_path / "translate.png")

    open_tab("Digits")
    read(BLANK)
    find("//*[@id='pad']//button[@aria-label='Brush size' or @aria-label='Brush Size']")
    pad = find("//*[@id='pad']//canvas")
    pen = ActionChains(browser, duration=20).move_to_element_with_offset(pad, -40, -80)
    pen.click_and_hold().move_by_offset(80, 0).move_by_offset(-50, 160).release().perform()
    digit = read("the most probable digit from row").text.split()[2].strip(",")
    _names, *rows = browser.execute_script(
        "return [...arguments[0].rows].map(row => [...row.cells].map(cell => cell.innerText))",
        find("//table[.//th[@colspan]]"),
    )
    assert len(rows) == 28
    assert max(rows[-1], key=lambda text: int(text or 0)) == rows[-1][28 + int(digit)]
    assert all(90 <= sum(int(text or 0) for text in row) <= 110 for row in rows)
    browser.save_screenshot(tmp_path / "digits.png")
    find("//*[@id='pad']//button[@aria-label='Clear canvas']").click()
    read(BLANK)

    assert browser.title == "seqjax"
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    places = {urlsplit(url)[:2] for url in urls}
    assert {host for scheme, host in places if scheme != "data"} == {urlsplit(served).netloc}
