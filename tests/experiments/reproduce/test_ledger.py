"""The ledger: rules of verdicts, figures that need no training, and a small ledger of real runs."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import assert_one_line, enter_empty, run_command
from support.toys import assert_picture, get_config, read_json

import experiments.reproduce.trials
from experiments.reproduce import cafe
from experiments.reproduce.cafe import CAFE_DEFAULT, CAFE_FAITHFUL
from experiments.reproduce.figure import TESTED, Explanation, Figure, judge
from experiments.reproduce.figures import SECTIONS, tagging
from experiments.reproduce.figures.words import WORDS_DEFAULT, WORDS_EPOCHS, WORDS_FAITHFUL
from experiments.reproduce.ledger import NAMES, choose_figures, reproduce
from experiments.reproduce.measure import arbitrary, first_below, one, proved
from experiments.reproduce.show import cells, make_markdown, make_tables, save_ledger, show_values
from experiments.reproduce.trials import MANY, Spec, TrialSet, train_trials
from experiments.reproduce.verdict import (
    BETTERED,
    MET,
    OUTSIDE,
    UNMEASURED,
    UNPRINTED,
    UNREPRODUCIBLE,
    VERDICTS,
    alike,
    at_least,
    fixed,
    higher,
    holds,
    in_size,
    lower,
    lower_curve,
    nearly_all,
    occurs,
    reported,
    same,
    unprinted,
    usually,
    vanishes,
    varies,
    within,
)
from seqjax.errors import UserError
from seqjax.sweeps.sweep import GROUPS, divide, train_group
from seqjax.training.logger import read_records
from seqjax.training.trials import Trial, save_failure

FIGURES = [figure for figures in SECTIONS.values() for figure in figures]
RANK = [OUTSIDE, MET, BETTERED]
numbers = st.floats(0.01, 100)
values = st.lists(numbers, min_size=1, max_size=40)


# Rules


@given(values, st.lists(numbers, max_size=5), st.integers(0, 39))
def test_what_one_of_the_middle_seeds_found_is_not_outside(faithful, default, which):
    printed = float(np.median(faithful))
    for rule in (lower, higher, alike):
        assert rule(printed, faithful, default) != OUTSIDE


@given(values, values, numbers, st.floats(0, 50))
def test_better_values_get_no_worse_a_verdict(faithful, default, printed, gain):
    higher_values = [[value + gain for value in part] for part in (faithful, default)]
    before, after = higher(printed, faithful, default), higher(printed, *higher_values)
    assert RANK.index(before) <= RANK.index(after)


@given(values, values, numbers)
def test_lower_is_higher_upside_down(faithful, default, printed):
    down = [[-value for value in part] for part in (faithful, default)]
    assert lower(printed, faithful, default) == higher(-printed, *down)


@given(values, numbers)
def test_what_has_no_better_side_is_never_bettered(faithful, printed):
    inside = np.quantile(faithful, 0.05) <= printed <= np.quantile(faithful, 0.95)
    assert alike(printed, faithful, []) == (MET if inside else OUTSIDE)


def test_a_better_default_does_not_hide_a_worse_faithful():
    assert higher(0.9, [0.8, 0.81], [0.99]) == OUTSIDE
    assert higher(0.9, [0.8, 0.95], [0.99]) == BETTERED
    assert higher(0.9, [0.8, 0.95], [0.91, 0.85]) == MET
    assert higher(0.9, [], [0.99]) == BETTERED


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=9), numbers)
def test_a_curve_is_judged_as_one(curves, factor):
    scores = [np.mean(np.log(c)) for c in curves]
    assert lower_curve(curves[0], curves, []) == within("lower")(scores[0], scores, [])


def test_rules_of_what_is_no_number():
    assert same((1, 3), [(1, 3)] * 2, []) == MET and same((1, 3), [(1, 3), (3, 1)], []) == OUTSIDE
    assert occurs("a", ["b"] * 19 + ["a"], []) == MET and occurs("a", ["b"] * 21, []) == OUTSIDE
    assert occurs("a", ["b"] * 20 + ["a"], []) == OUTSIDE
    assert holds(None, ["a test"], []) == MET and holds(None, [""], []) == OUTSIDE
    assert fixed(None, ["shown"], [True]) == BETTERED and fixed(None, [], [False]) == OUTSIDE
    assert fixed(None, [""], [True]) == OUTSIDE  # the weakness could not be shown
    assert vanishes(None, [0.3], [0.0]) == BETTERED and vanishes(None, [0.0], [0.0]) == OUTSIDE
    assert vanishes(None, [True], [False] * 20 + [True]) == BETTERED
    assert vanishes(None, [True], [False] * 9 + [True]) == OUTSIDE
    assert fixed(None, [], []) == OUTSIDE  # nothing shows it
    assert reported(None, [0.9], [0.1, 0.2]) == BETTERED
    assert reported(None, [0.9], []) == reported(None, [0.9], [np.nan]) == OUTSIDE
    assert reported(None, [""], [0.1]) == OUTSIDE
    assert varies(None, [], [1.0, 2.0]) == BETTERED and varies(None, [], [1.0] * 2) == OUTSIDE
    assert nearly_all(None, [], [1.0] * 19 + [0.5]) == BETTERED
    assert nearly_all(None, [], [1.0] * 9 + [0.5]) == nearly_all(None, [], []) == OUTSIDE
    assert usually("a", ["a", "b"], []) == MET and usually("a", ["a", "b", "b"], []) == OUTSIDE
    assert in_size(1.0, [0.5] * 99 + [1.5], []) == MET and in_size(1.0, [0.5] * 100, []) == OUTSIDE
    assert at_least(78, [78, 100], []) == MET and at_least(78, [100, 77], []) == OUTSIDE
    assert unprinted(None, [0.1], [0.2]) == UNPRINTED


# Figures


def test_every_figure_says_where_it_was_printed_and_what_it_is():
    for figure in FIGURES:
        assert re.fullmatch(r"R[0-4]:\d+|all", figure.source), figure.what
        assert figure.config in NAMES and figure.what == figure.what.strip() != ""
        assert not figure.default_is or figure.default is not Figure._field_defaults["default"]
        if figure.epochs:
            assert len(figure.printed) == len(figure.epochs) and min(figure.printed) >= 0
    assert len({(f.source, f.config, f.what) for f in FIGURES}) == len(FIGURES)


class Trained(Exception):
    """A figure asks for trials."""


@pytest.fixture(scope="module")
def static():
    """The lines that need no training."""
    study = TrialSet(get_config, Path("nowhere"), 2)

    def refuse(spec):
        raise Trained

    study.trials = refuse
    lines = []
    for figure in FIGURES:
        try:
            lines.append(judge(figure, study))
        except Trained:
            continue
    return lines


@pytest.mark.slow
def test_figures_that_need_no_training_are_right(static):
    assert len(static) > 100
    right = (MET, BETTERED, UNREPRODUCIBLE)
    assert [line[:3] for line in static if line.verdict not in right] == []
    found = {x for line in static for x in jax.tree.leaves(line.faithful)}
    for count in (84, 108, 326, 364, 416, 692, 832, 849, 15_256, 20_200, 21_386, 48_809, 58_010):
        assert count in found
    assert 4_163_536 in found


def test_an_unproved_line_is_outside():
    study = TrialSet(get_config, Path("nowhere"))
    there = proved("experiments/reproduce/test_ledger", "an_unproved_line_is_outside")
    assert there(study) == [
        "tests/experiments/reproduce/test_ledger.py: an unproved line is outside"
    ]
    gone = Figure(
        "R0:1",
        "layers",
        "x",
        None,
        proved("experiments/reproduce/test_ledger", "of_no_kind"),
        holds,
    )
    assert judge(gone, study).verdict == OUTSIDE
    assert proved("test_of_no_file", "x")(study) == [""]


# Explanations


class FakeStudy(TrialSet):
    """Trials as they are told."""

    def __init__(self, trials):
        self.trials = trials.__getitem__


def trial(losses, **more):
    """Records and result of a run of these losses."""
    records = [{"epoch": i, "train": {"loss": x} | more} for i, x in enumerate(losses, 1)]
    return SimpleNamespace(records=[records], results=[{"train": {"loss": losses[-1]} | more}])


def test_an_explanation_must_be_found_true():
    def line(is_true):
        figure = Figure(
            "R0:1",
            "layers",
            "x",
            1.0,
            one(lambda study: 2.0),
            why=lambda study: Explanation("because", is_true),
        )
        return judge(figure, FakeStudy({}))

    assert line(True)[3:] == (UNREPRODUCIBLE, f"{TESTED}because")
    assert line(True).is_explained and not line(False).is_explained
    assert line(False)[3:] == (OUTSIDE, "refuted: because")


def test_the_gru_needs_more_steps_than_are_shown():
    short = trial([1.1] * 99 + [1.0])
    late = FakeStudy({tagging.GRU_TAGGER: short, tagging.LONG: trial([1.0] * 700 + [0.1] * 300)})
    told, is_true, _ = tagging.stale(late)
    assert is_true and "at step 701" in told
    early = FakeStudy({tagging.GRU_TAGGER: short, tagging.LONG: trial([1.0] * 50 + [0.1] * 950)})
    never = FakeStudy({tagging.GRU_TAGGER: short, tagging.LONG: trial([1.0] * 1000)})
    assert not tagging.stale(early).is_true and not tagging.stale(never).is_true


@pytest.mark.parametrize(
    ("losses", "is_true"), [([0.95, 1.0], True), ([0.16, 1.0], False), ([1.0], True)]
)
def test_six_right_tags_are_lucky_only_with_another_loss(losses, is_true):
    """The last seed has not all tags right."""
    results = [{"train": {"loss": x, "accuracy": 1.0}} for x in losses[:-1]]
    results.append({"train": {"loss": losses[-1], "accuracy": 0.5}})
    late = trial([1.0] * 700 + [0.1] * 300)
    study = FakeStudy({tagging.GRU_TAGGER: SimpleNamespace(results=results), tagging.LONG: late})
    assert tagging.lucky(study).is_true == is_true


@pytest.mark.parametrize(("shared", "is_true"), [(0, True), (4, True), (5, False), (16, False)])
def test_dialogues_of_another_corpus_are_rare_in_ours(shared, is_true):
    questions, answers, _ = zip(*cafe.DIALOGUES, strict=True)
    part = SimpleNamespace(sources=[*questions[:shared]], targets=[f"{x} !" for x in answers[:2]])
    study = FakeStudy({})
    study.pairs = {CAFE_DEFAULT: SimpleNamespace(splits={"train": part})}.__getitem__
    told, found, _ = cafe.other_dialogues(study)
    assert found == is_true and f"{shared} are in ours" in told and "answers 2;" in told


@pytest.mark.parametrize(
    ("real", "factor", "is_true"),
    [(0.2, 1, True), (0.2, 2, False), (0.2, 0.5, False), (0.3, 1, False)],
)
def test_padding_explains_the_cafes_loss_only_if_it_does(real, factor, is_true):
    masked = [10.0, *(factor * loss for loss in cafe.LOSS_OF_REAL)]
    records = [{"train": {"cross_entropy": x, "accuracy_padded": 0.8}} for x in masked]
    result = {"train": {"padding_share": 1 - real}}
    study = FakeStudy({CAFE_FAITHFUL: SimpleNamespace(records=[records], results=[result])})
    assert cafe.loss_is_diluted(study).is_true == is_true


@pytest.mark.parametrize(("off", "is_true"), [(0.0, True), (0.2, False)])
def test_padding_explains_the_cafes_accuracy_only_if_it_does(off, is_true):
    records = [{"train": {"accuracy": x + off}} for x in (0.0, *cafe.ACCURACY_OF_REAL)]
    study = FakeStudy({CAFE_FAITHFUL: SimpleNamespace(records=[records], results=[])})
    assert cafe.accuracy_is_inflated(study).is_true == is_true


def test_the_printed_accuracies_imply_399_rows():
    assert [n for n in range(300, 500) if cafe.rows_of(n)] == [399]


def test_an_answer_is_arbitrary_if_less_than_half_agree():
    told, is_true, _ = arbitrary(lambda study: ["a", "b", "a", "c", "d"])(FakeStudy({}))
    assert is_true and told == "5 seeds give 4 different answers, the most frequent 2 times"
    assert not arbitrary(lambda study: ["a", "b", "a", "c"])(FakeStudy({})).is_true


def test_what_needs_a_missing_package_says_so():
    def needs(cause):
        def measure(study):
            raise UserError("okt needs konlpy") from cause

        return Figure("R0:1", "layers", "x", 1, measure)

    line = judge(needs(ImportError()), FakeStudy({}))
    assert line.verdict == UNMEASURED and line.note == "okt needs konlpy" and line.is_explained
    with pytest.raises(UserError):
        judge(needs(None), FakeStudy({}))


# A small ledger


def small_config(name, variant):
    """A config of real length and no size."""
    config = get_config(name, variant)
    config.model.hidden_size = 3
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The ledger of one config, of one seed, and where it lies."""
    directory = tmp_path_factory.mktemp("ledger")
    sections, study = reproduce(["word_translation"], small_config, directory, 1)
    return sections, study, directory


def test_figures_are_those_of_the_runs(small):
    sections, study, directory = small
    workdirs = {
        spec: directory / spec.directory / "seed-0" for spec in (WORDS_FAITHFUL, WORDS_DEFAULT)
    }
    assert set(study.used) == set(workdirs)
    records = read_records(workdirs[WORDS_FAITHFUL] / "metrics.jsonl")
    lines = {line.figure.what: line for part in sections.values() for line in part}
    cost = lines["cost under dropout [nats]"]
    assert cost.faithful == [tuple(records[epoch - 1]["train"]["loss"] for epoch in WORDS_EPOCHS)]
    result = read_json(workdirs[WORDS_DEFAULT] / "result.json")
    assert lines["decoder"].default == [result["train"]["exact_match"]]
    assert first_below(WORDS_FAITHFUL, "loss", np.inf)(study) == [1]
    assert first_below(WORDS_FAITHFUL, "loss", 0.0)(study) == [np.inf]
    assert type(lines["translation of word"].faithful[0]) is str
    assert lines["pairs"].verdict == MET and lines["symbols of encoder and decoder"].verdict == MET
    sizes = lines["parameters by layer, and all"]
    assert (sizes.verdict, sizes.note) == (OUTSIDE, "") and not sizes.is_explained


def test_what_is_finished_is_not_trained_again(small, monkeypatch):
    _, study, directory = small
    monkeypatch.setattr(experiments.reproduce.trials, "train_groups", None)
    again = TrialSet(small_config, directory, 1)
    for spec in study.used:
        assert again.trials(spec).results == study.trials(spec).results
    with pytest.raises(TypeError):  # a seed more is trained
        TrialSet(small_config, directory, 2).trials(WORDS_DEFAULT)


def test_a_group_whose_trials_have_begun_to_end_goes_on(small, tmp_path):
    """A kill between two results costs no training."""
    _, study, _ = small
    configs = [study.config(WORDS_FAITHFUL, seed) for seed in (0, 1)]
    trials = [Trial(config, tmp_path / f"seed-{config.seed}") for config in configs]
    [group] = divide(trials, 1, tmp_path / GROUPS)
    train_group(*group, until=95)
    save_failure(trials[0], "as if it had ended")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "experiments.reproduce.trials.LiveTable.look", lambda table, *told: seen.append(told)
        )
        with pytest.raises(UserError, match="seed-0 failed: as if it had ended"):
            train_trials(configs, tmp_path)
    assert {record["epoch"] for _, records in seen for record in records} == {96, 97, 98, 99, 100}


def test_trials_of_other_configs_are_left_alone(small):
    _, study, directory = small
    config = study.config(WORDS_FAITHFUL._replace(changes=(("optim.learning_rate", 0.5),)))
    with pytest.raises(UserError, match="holds a run of another config"):
        train_trials([config], directory / WORDS_FAITHFUL.directory)


def test_a_trial_that_fails_is_named(small, tmp_path):
    _, study, _ = small
    config = study.config(WORDS_FAITHFUL).copy_and_resolve_references()
    with config.unlocked():
        config.optim.learning_rate = 1e38
        config.train.num_epochs = 2
    with pytest.raises(UserError, match=r"seed-0 failed: .* the loss is nan .*; remove it") as info:
        train_trials([config.lock()], tmp_path)
    with pytest.raises(UserError) as again:  # and is not trained again
        train_trials([config.lock()], tmp_path)
    assert str(again.value) == str(info.value)


def test_table_markdown_and_json_agree(small, tmp_path):
    sections, study, _ = small
    text, paths = make_markdown(sections, study), save_ledger(sections, study, tmp_path)
    assert [path.name for path in paths] == ["ledger.md", "ledger.json", "ledger.png"]
    assert paths[0].read_text(encoding="utf-8") == text
    assert_picture(paths[2])
    saved = read_json(paths[1])
    for title, lines in sections.items():
        rows = [
            row.split(" | ")
            for row in text.split(f"## {title}\n")[1].split("\n##")[0].splitlines()
            if row.startswith("| R")
        ]
        table = next(table for table in make_tables(sections) if table.title == title)
        assert len(rows) == len(lines) == len(saved["sections"][title]) == table.row_count
        columns = [list(column.cells) for column in table.columns]
        for i, (line, row, entry) in enumerate(
            zip(lines, rows, saved["sections"][title], strict=True)
        ):
            shown = cells(line)
            assert tuple(column[i] for column in columns) == shown
            assert row[1] == shown[1] and row[5] == entry["verdict"] == line.verdict in VERDICTS
            assert entry["note"] == line.note and len(entry["faithful"]["values"]) == len(
                line.faithful
            )
    assert "configs/word_translation.py:faithful --config.seed=0`, 1 seeds" in text
    assert saved["runs"][0]["seeds"] == 1 and "python" in saved["environment"]


def test_markdown_shows_symbols_as_they_stand():
    figure = Figure("R0:1", "layers", "a|b", "<bos> *x* &amp;", one(lambda study: "<eos>"))
    text = make_markdown(
        {"x": [judge(figure, FakeStudy({}))]}, TrialSet(get_config, Path("nowhere"))
    )
    row = "| R0:1 | a&#124;b | &lt;bos&gt; &#42;x&#42; &amp;amp; | &lt;eos&gt; |  | outside |  |"
    assert row in text


def test_a_partial_ledger_says_so_and_removes_old_curves(tmp_path):
    (tmp_path / "ledger.png").touch()
    study = TrialSet(get_config, tmp_path)
    study.flags = " --only=layers"
    line = judge(Figure("R0:1", "layers", "x", 1, one(lambda study: 1)), study)
    paths = save_ledger({"x": [line]}, study, tmp_path)
    assert [path.name for path in paths] == ["ledger.md", "ledger.json"]
    text = paths[0].read_text(encoding="utf-8")
    assert "`python -m experiments.reproduce --only=layers`" in text
    assert f"1 of {len(FIGURES)} figures: 1 met; 0 unexplained" in text
    assert not (tmp_path / "ledger.png").exists()


def test_values_are_shown_as_what_they_are():
    assert show_values([]) == "" and show_values([(1, 4)]) == "(1, 4)"
    assert show_values([1234]) == "1,234" and show_values([0.97189]) == "0.9719"
    assert show_values([1.0, 2.0, 3.0]) == "2 (1.1 to 2.9)"
    assert show_values([True, False]) == "1 of 2" and show_values([True]) == "yes"
    assert show_values(["a", "b", "a"]) == "a (2 of 3)" and show_values([""]) == "nothing"
    assert show_values([(1.0, 4.0), (3.0, 4.0)], is_curve=True) == "2 4"


def test_a_spec_has_a_command_and_a_directory_of_its_own():
    assert tagging.LONG.command.endswith(
        "svo_tagging.py:gru --config.train.num_epochs=1000 --config.seed=0"
    )
    specs = (
        tagging.LSTM_TAGGER,
        tagging.GRU_TAGGER,
        tagging.LONG,
        tagging.CONVERGED,
        tagging.CONVERGED_GRU,
    )
    assert len({spec.directory for spec in specs}) == len(specs)
    study = TrialSet(get_config, Path("nowhere"))
    assert study.num_seeds(Spec("mnist_rows")) == 5 and study.num_seeds(tagging.LSTM_TAGGER) == MANY


def test_only_chooses_by_config():
    assert choose_figures([]) == SECTIONS
    chosen = choose_figures(["layers", "svo_tagging"])
    assert {f.config for figures in chosen.values() for f in figures} == {"layers", "svo_tagging"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["--only=layers,mnist_row"],
            "unknown name in --only 'mnist_row': did you mean 'mnist_rows'?",
        ),
        (["--seeds=0"], "--seeds=0 must be at least 1"),
        (["--seed=3"], "unknown flag 'seed': did you mean 'seeds'?"),
    ],
)
def test_a_mistake_is_one_line(args, expected, tmp_path, monkeypatch, capfd):
    enter_empty(tmp_path, monkeypatch)
    assert_one_line(run_command(monkeypatch, capfd, "reproduce", *args), expected)
