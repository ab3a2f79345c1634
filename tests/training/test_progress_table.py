"""Progress of a training: the bar on a terminal, and the table in place of raw logs."""

import io

import pytest
from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState

from md4_hf.training.progress_table import WIDTHS, BitsProgressCallback


TRAINED = {"loss": 1.6166, "bits_per_token": 2.33219, "learning_rate": 5e-3, "grad_norm": 0.31415, "epoch": 0.1}
HELD_OUT = {
    **{"eval_loss": 1.7, "eval_loss_stderr": 0.1, "eval_bits_per_token": 2.5},
    **{"eval_bits_per_character": 2.0, "eval_bits_per_character_stderr": 0.0551},
}


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr("md4_hf.training.progress_table.shows_bars", lambda: True)


def test_the_bar_shows_the_latest_losses_in_bits(terminal):
    callback, state = BitsProgressCallback(), TrainerState(is_world_process_zero=True)
    callback.training_bar = tqdm(total=2, file=io.StringIO())
    for logs in (TRAINED, HELD_OUT):
        callback.on_log(None, state, TrainerControl(), logs=logs)
    assert callback.training_bar.postfix == "train=2.332 bits/token, held-out=2.000 ± 0.055 bits/character"


def test_the_bars_have_labels(terminal):
    callback, control = BitsProgressCallback(), TrainerControl()
    for is_first in (True, False):
        state = TrainerState(is_world_process_zero=is_first, max_steps=2)
        callback.on_prediction_step(None, state, control, eval_dataloader=[1, 2])
        assert (callback.prediction_bar is not None) == is_first
        assert not is_first or callback.prediction_bar.desc == "Evaluating: "
        callback.on_evaluate(None, state, control)
        callback.on_train_begin(None, state, control)
        assert not is_first or callback.training_bar.desc == "Training: "
        callback.on_train_end(None, state, control)


def run_of_logs(callback, is_first=True):
    """A log, one that an evaluation follows, that evaluation, and what comes at the end of a training."""
    state, control = TrainerState(is_world_process_zero=is_first, max_steps=2000), TrainerControl()
    callback.on_train_begin(None, state, control)
    for step, evaluates in ((500, False), (1000, True)):
        state.global_step, control.should_evaluate = step, evaluates
        callback.on_step_end(None, state, control)
        callback.on_log(None, state, control, logs=TRAINED)
    control.should_evaluate = False
    callback.on_log(None, state, control, logs=HELD_OUT)
    callback.on_log(None, state, control, logs={"train_runtime": 3.0, "train_loss": 1.0})
    callback.on_train_end(None, state, control)
    callback.on_log(None, state, control, logs=HELD_OUT)  # of the finished model, which is printed by itself


def test_rows_stand_for_logs_and_evaluations_where_there_is_no_terminal(capsys):
    run_of_logs(BitsProgressCallback())
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out and "\x1b" not in out
    assert [line.split() for line in out.splitlines()] == [
        [*WIDTHS],
        ["500", "0.0", "2.332", "bits/token", "5.0e-03", "0.314"],
        ["1,000", "0.0", "2.332", "bits/token", "2.000", "±", "0.055", "bits/character", "5.0e-03", "0.314"],
    ]
    assert len({len(line) for line in out.splitlines()}) == 1, "columns are aligned"
    run_of_logs(BitsProgressCallback(), is_first=False)
    assert capsys.readouterr() == ("", "")


def test_only_evaluations_have_rows_where_a_bar_shows_the_rest(terminal, capsys):
    run_of_logs(BitsProgressCallback())
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == [*WIDTHS] and row.split()[:2] == ["1,000", "0.0"]
    run_of_logs(BitsProgressCallback(has_bar=False))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_loss_that_is_no_bound_has_no_bits(capsys):
    callback, state = BitsProgressCallback(), TrainerState(is_world_process_zero=True, global_step=3, max_steps=9)
    callback.on_train_begin(None, state, TrainerControl())
    callback.on_log(None, state, TrainerControl(), logs={"loss": 2.5, "grad_norm": None, "learning_rate": 1e-3})
    assert capsys.readouterr().out.splitlines()[-1].split() == ["3", "0.0", "loss", "2.500", "1.0e-03"]
