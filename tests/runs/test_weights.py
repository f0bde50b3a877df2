"""Weights files: what goes in comes out, and nothing else does; what is forged leads nowhere."""

import json
import shutil
import struct
from pathlib import Path

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import assert_one_line, run_command
from support.same_runs import read_result
from support.texts import QUESTIONS
from support.toys import evaluate, read_json, tiny_config

import seqjax.plots
import seqjax.runs.weights
from seqjax.errors import UserError
from seqjax.parameters import named_arrays
from seqjax.runs.weights import WEIGHTS_FILE, WeightsFile, read_weights, write_weights
from seqjax.runs.workdir import load_run_config
from seqjax.serving.export import export_run, import_run
from seqjax.serving.repl import Chat, load_responder
from seqjax.tasks.registry import make_task
from seqjax.training.early_stopping import Progress
from seqjax.training.fit import fit, load_run, restore_best
from seqjax.training.setup import make_setup


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Draws nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
        yield


@pytest.fixture(scope="module")
def runs(text_run, tmp_path_factory) -> Path:
    """A folder with two runs, of texts and of the toy, their exports, and the texts' data."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(text_run, folder / "texts")
    for name in ("questions.tsv", "labels.txt"):
        shutil.copy(text_run.parent / name, folder)
    toy = tiny_config("recall")
    fit(make_task(toy, folder / "toy"), toy, folder / "toy")
    for name in ("texts", "toy"):
        export_run(folder / name, folder / f"{name}.safetensors")
    return folder


def data_of(runs: Path) -> dict[str, str]:
    return {"name": str(runs / "questions.tsv"), "labels": str(runs / "labels.txt")}


def saying(message: str, *arguments, workdir: Path) -> None:
    """The import is refused in one line, and nothing is written."""
    before = sorted(workdir.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        import_run(*arguments)
    assert "\n" not in str(caught.value)
    assert sorted(workdir.parent.iterdir()) == before


# The file

arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
tensors = st.dictionaries(st.text("ab.0한", min_size=1), arrays | arrays.map(np.transpose))


@given(tensors=tensors, step=st.sampled_from([1, 2, -1]))
def test_what_is_written_is_read(tensors, step, tmp_path_factory):
    tensors = {name: x[::step] if x.ndim else x for name, x in tensors.items()}
    files = {"vocabulary.json": "{한 \n\r\n}"}
    progress = Progress(3, 0.1 + 0.2, 2, 1, True)._asdict()
    weights = WeightsFile({"a": [1, {"b": None}]}, progress, files, tensors)
    path = tmp_path_factory.mktemp("weights") / "any.name"
    write_weights(path, weights)
    assert_same(read_weights(path), weights)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def assert_same(found: WeightsFile, wanted: WeightsFile) -> None:
    assert found[:3] == wanted[:3]
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, x in wanted.tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (x.dtype, x.shape)
        assert found.tensors[name].tobytes() == x.tobytes()


@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_no_byte_can_be_altered_or_cut_off_or_added(where, change, cut, runs):
    path, altered = runs / "toy.safetensors", runs / "altered"
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    if cut:
        altered.write_bytes(data[:place])
    else:
        data[place] ^= change
        altered.write_bytes(data)
    try:
        found = read_weights(altered)
    except UserError as error:
        assert str(altered) in str(error) and "\n" not in str(error)
    else:  # a blank of the header became another one
        assert not cut
        assert_same(found, read_weights(path))
    altered.write_bytes(path.read_bytes() + bytes([change]))
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        read_weights(altered)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read "),
        (b"", "is damaged or no safetensors file"),
        (b"q,a\nWhere?,Here.\n", "is damaged or no safetensors file .*header too large"),
        (struct.pack("<Q", 2**40) + b"{}", "is damaged or no safetensors file .*header too large"),
        (struct.pack("<Q", 2) + b"{}", "is not of seqjax: give a file that experiments.export"),
    ],
)
def test_a_file_of_another_kind_is_refused(data, message, tmp_path):
    path = tmp_path / "file"
    if data is None:
        path.mkdir()
        saying(message, tmp_path / "none", tmp_path / "run", {}, workdir=tmp_path / "run")
    else:
        path.write_bytes(data)
    saying(message, path, tmp_path / "run", {}, workdir=tmp_path / "run")


def test_another_version_is_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(seqjax.runs.weights, "_VERSION", "2")
    with pytest.raises(UserError, match="has format version '1', but this seqjax reads 2: export"):
        read_weights(runs / "toy.safetensors")


# There and back


def test_an_imported_run_equals_the_exported_one(runs, tmp_path):
    workdir = tmp_path / "new" / "run"
    import_run(runs / "texts.safetensors", workdir, data_of(runs))
    names = {"config.json", "vocabulary.json", "abstention.json", WEIGHTS_FILE}
    assert {path.name for path in workdir.iterdir()} == names
    results, answers = [], []
    for run in (runs / "texts", workdir):
        config = load_run_config(run, print)
        results.append(evaluate(make_task(config, run), config, run))
        responder = load_responder(run)
        lines = [":scores", *(question for question, *_ in QUESTIONS), ":beam", "라떼?", "xyz"]
        answers.append([[*Chat(responder).say(line)] for line in lines])
    assert results[0] == results[1] == read_result(runs / "texts")
    assert answers[0] == answers[1]


def test_weights_stay_bit_identical_over_many_exports(runs, tmp_path):
    first = read_weights(runs / "toy.safetensors")
    import_run(runs / "toy.safetensors", tmp_path / "run", {})
    export_run(tmp_path / "run", tmp_path / "again")
    assert_same(read_weights(tmp_path / "again"), first)
    config = load_run_config(tmp_path / "run", print)
    params, progress = restore_best(make_setup(make_task(config), config), tmp_path / "run")
    flat = [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]
    assert sorted(flat) == sorted(x.tobytes() for x in first.tensors.values())
    assert progress._asdict() == first.progress


def test_an_export_overwrites_an_export_of_the_same_run_only(runs, tmp_path, capsys):
    output = tmp_path / "file"
    for _ in range(2):
        export_run(runs / "toy", output)
    assert "weights of epoch 1, SHA-256 " in capsys.readouterr().out
    with pytest.raises(UserError, match="holds the weights of another run: give another --output"):
        export_run(runs / "texts", output)
    output.write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="is not a weights file of seqjax: give another --output"):
        export_run(runs / "toy", output)
    assert output.read_text(encoding="utf-8") == "dear"
    with pytest.raises(UserError, match=r"cannot write .* \(No such file.*\): give another"):
        export_run(runs / "toy", tmp_path / "none" / "file")
    with pytest.raises(UserError, match="config.json does not exist"):
        export_run(tmp_path, tmp_path / "other")


def test_a_directory_in_use_is_left_alone(runs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter").touch()
    for workdir in (tmp_path / "run", tmp_path / "run" / "letter"):
        saying("exists already", runs / "toy.safetensors", workdir, {}, workdir=workdir)
    inside = tmp_path / "run" / "letter" / "run"
    with pytest.raises(UserError, match="cannot make .*: give another --workdir"):
        import_run(runs / "toy.safetensors", inside, {})
    (tmp_path / "empty").mkdir()
    import_run(runs / "toy.safetensors", tmp_path / "empty", {})


def test_what_lies_beside_imported_weights_must_be_theirs(runs, tmp_path):
    workdir = tmp_path / "run"
    import_run(runs / "texts.safetensors", workdir, data_of(runs))
    config = load_run_config(workdir, print)
    setup = make_setup(make_task(config, workdir), config)
    for name in ("vocabulary.json", WEIGHTS_FILE):
        whole = (workdir / name).read_bytes()
        (workdir / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{name} is (not the one of this run|damaged)"):
            restore_best(setup, workdir)
        (workdir / name).write_bytes(whole)
    other = config.copy_and_resolve_references().unlock()
    other.model.state_dropout = (0.5,)
    with pytest.raises(UserError, match=r"is of another config \(model.state_dropout: \[0.0\] ->"):
        restore_best(setup._replace(config=other), workdir)
    restore_best(setup, workdir)


# What a stranger may write, with all its digests right


def forged(tmp_path, monkeypatch, source, change) -> Path:
    """A file like the source, changed, that no honest export would write."""
    monkeypatch.setattr(seqjax.runs.weights, "read_weights", lambda path: None)
    write_weights(tmp_path / "forged", change(source))
    monkeypatch.undo()
    return tmp_path / "forged"


def with_config(**fields):
    """Sets `section__field` in the config."""

    def change(weights: WeightsFile) -> WeightsFile:
        config = json.loads(json.dumps(weights.config))
        for name, value in fields.items():
            section, _, field = name.partition("__")
            config.update({section: value}) if not field else config[section].update({field: value})
        return weights._replace(config=config)

    return change


def with_tensor(change):
    """Changes the tensors, of which the first has the given name."""

    def changed(weights: WeightsFile) -> WeightsFile:
        return weights._replace(tensors=change(dict(weights.tensors)))

    return changed


def test_weights_in_bfloat16_are_read(runs, tmp_path, monkeypatch):
    narrow = with_tensor(lambda t: {n: x.astype(jnp.bfloat16) for n, x in t.items()})
    source = read_weights(runs / "toy.safetensors")
    import_run(forged(tmp_path, monkeypatch, source, narrow), tmp_path / "run", {})
    _, params, _ = load_run(tmp_path / "run")
    for name, x in named_arrays(params):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, source.tensors[name], rtol=2**-8)


def test_equal_weights_are_equal_files(runs, tmp_path):
    source = read_weights(runs / "toy.safetensors")
    for i in range(6):  # the library's own order is another one each time
        write_weights(tmp_path / f"{i}", source)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(6)}) == 1


UNUSABLE = "forged(: .* must be of type| holds a config that cannot be used)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_tensor(lambda t: dict([*t.items()][1:])), "is not there, but in the model of its"),
        (with_tensor(lambda t: t | {"x": np.ones(2)}), r"x is float64\[2\], but .* not there"),
        (with_tensor(lambda t: {n: x.T for n, x in t.items()}), "but in the model of its config"),
        (with_tensor(lambda t: {n: x.astype("f2") for n, x in t.items()}), r"is float16\["),
        (
            with_tensor(lambda t: {n: x * np.nan for n, x in t.items()}),
            "values that are not finite",
        ),
        (with_config(model__hidden_size=10**3), "but in the model of its config"),
        (with_config(model__hidden_size="a\nb"), UNUSABLE),
        (with_config(task="system"), "unknown task 'system'"),
        (with_config(task="mnist_rows"), "is not read by the task mnist_rows"),
        (with_config(optim=3), UNUSABLE),
        (with_config(data__labels=3), UNUSABLE),
        (with_config(data=[1]), UNUSABLE),
        (with_config(train={}), UNUSABLE),
        (with_config(train__num_devices="all"), UNUSABLE),
        (lambda w: w._replace(config=[]), "header that contradicts itself"),
        (lambda w: w._replace(progress=w.progress | {"epoch": "\x1b[2J"}), "contradicts itself"),
        (lambda w: w._replace(progress={"epoch": 1}), "header of another form"),
        (lambda w: w._replace(progress=[1]), "header of another form"),
        (
            lambda w: w._replace(files=w.files | {"result.json": "{}"}),
            "not hold the vocabularies of",
        ),
        (lambda w: w._replace(files={"../evil.json": "{}"}), r"a file '../evil.json', which no"),
        (lambda w: w._replace(files={"vocabulary.json": "{}"}), "not hold the vocabularies of its"),
    ],
)
def test_a_forged_file_is_refused(change, message, runs, tmp_path, monkeypatch):
    source = read_weights(runs / "toy.safetensors")
    path = forged(tmp_path, monkeypatch, source, change)
    saying(message, path, tmp_path / "a" / "run", {}, workdir=tmp_path / "a")


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("name", "/etc/passwd", "data"),
        ("name", "a/../../b.csv", "data"),
        ("labels", "../labels.txt", "labels"),
        ("held_out", "/etc/passwd", "held_out"),
        ("name", "tfds:../../x", "data"),
        ("name", "tfds:mnist/..", "data"),
        ("name", "tfds:x/a/b", "data"),
    ],
)
def test_a_path_that_leads_outside_is_refused(field, value, flag, runs, tmp_path, monkeypatch):
    source = read_weights(runs / "texts.safetensors")
    path = forged(tmp_path, monkeypatch, source, with_config(**{f"data__{field}": value}))
    message = f"data.{field} is .*, a place on another machine: give --{flag}=FILE"
    given = {name: text for name, text in data_of(runs).items() if name != field}
    saying(message, path, tmp_path / "run", given, workdir=tmp_path / "run")


@pytest.mark.parametrize("files", [{}, {"abstention.json": "{}"}])
def test_a_vocabulary_is_never_fitted_anew(files, runs, tmp_path, monkeypatch):
    source = read_weights(runs / "texts.safetensors")
    path = forged(tmp_path, monkeypatch, source, lambda w: w._replace(files=files))
    saying("hold the vocabularies", path, tmp_path / "x", data_of(runs), workdir=tmp_path / "x")


def test_what_belongs_to_a_machine_is_not_imported(runs, tmp_path, monkeypatch):
    change = with_config(train__compilation_cache_dir="/evil", train__num_devices=10**6)
    path = forged(tmp_path, monkeypatch, read_weights(runs / "toy.safetensors"), change)
    import_run(path, tmp_path / "run", {})
    train = read_json(tmp_path / "run" / "config.json")["train"]
    assert train["num_devices"] == 0 and "compilation_cache_dir" not in train
    with pytest.raises(UserError, match="is of the task recall, without data.labels"):
        import_run(path, tmp_path / "other", {"labels": "x"})


def test_the_commands_end_well_or_with_one_line_and_code_2(runs, tmp_path, monkeypatch, capsys):
    def run(*command):
        return run_command(monkeypatch, capsys, *command)

    code, out, err = run("export", f"--workdir={runs}/toy", f"--output={tmp_path}/toy")
    assert (code, out.count("\n"), err) == (0, 1, "")
    whole, cut = tmp_path / "toy", tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-1])
    into = f"--workdir={tmp_path}/run"
    assert_one_line(run("import_weights", f"--weights={cut}", into), "cut is damaged or no safe")
    assert_one_line(run("import_weights", into), "--weights is missing")
    assert_one_line(run("export", "--format=pickle", into), "safetensors")
    code, out, err = run("import_weights", f"--weights={whole}", into)
    assert (code, out, err) == (0, f"imported to {tmp_path}/run: weights of epoch 1\n", "")
    assert_one_line(run("import_weights", f"--weights={whole}", into), "exists already")


def test_an_imported_run_is_not_trained_on(runs, tmp_path):
    workdir = tmp_path / "run"
    import_run(runs / "toy.safetensors", workdir, {})
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    config = load_run_config(workdir, print)
    with pytest.raises(UserError, match="weights trained elsewhere: give a new --workdir"):
        fit(make_task(config, workdir), config, workdir)
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before
