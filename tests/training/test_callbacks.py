"""The progress bar of a training."""

import io
import sys

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState

from md4_hf.training.callbacks import BitsProgressCallback


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_the_latest_losses_in_bits(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    callback, state = BitsProgressCallback(), TrainerState(is_world_process_zero=True)
    callback.training_bar = tqdm(total=2, file=io.StringIO())
    heldout = {"eval_loss_stderr": 0.1, "eval_bits_per_token": 2.5, "eval_bits_per_character": 2.0}
    for logs in ({"bits_per_token": 2.33219}, {**heldout, "eval_bits_per_character_stderr": 0.0551}):
        callback.on_log(None, state, TrainerControl(), logs=logs)
    assert callback.training_bar.postfix == "train=2.332 bits/token, held-out=2.000 ± 0.055 bits/character"


def test_the_bars_have_labels():
    callback, control = BitsProgressCallback(), TrainerControl()
    for is_first in (True, False):
        state = TrainerState(is_world_process_zero=is_first, max_steps=2)
        callback.on_prediction_step(None, state, control, eval_dataloader=[1, 2])
        assert (callback.prediction_bar is not None) == is_first
        assert not is_first or callback.prediction_bar.desc == "Evaluating: "
        callback.on_evaluate(None, state, control)
        callback.on_train_begin(None, state, control)
        assert not is_first or callback.training_bar.desc == "Training: "
        callback.on_train_end(None, state, control) if is_first else None
