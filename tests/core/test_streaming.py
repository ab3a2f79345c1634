# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Texts that are handed on while they are written, and texts that end with a string."""

import threading

import pytest
import torch
from tiny import quiet, random_image_model, random_model, seeded, with_normal_weights
from transformers import TextIteratorStreamer, TextStreamer

from md4_hf import MD4Config, MD4ForCausalLM, build_byte_tokenizer, make_pipeline


TOKENIZER = build_byte_tokenizer()
EOS, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id
SCRIPT = b"one two. three four. five six"  # of which each token follows from its place


def letters(input_ids, logits):
    """At each place of a row the letter of the script, whatever the model says."""
    masked = (input_ids == MASK).sum(dim=1)
    allowed = torch.tensor([SCRIPT[(input_ids.shape[1] - count) % len(SCRIPT)] for count in masked.tolist()])
    return torch.full_like(logits, -1e4).scatter(1, allowed[:, None], 1e4)


def make(block_size=None, **kwargs):
    return random_model(MASK + 1, 32, std=0.2, time_conditioning=False, block_size=block_size, **kwargs).eval()


class Recorder:
    """Notes all that a streamer is given."""

    def __init__(self):
        self.given, self.ends = [], 0

    def put(self, ids):
        assert not self.ends and ids.device.type == "cpu"
        self.given.append(ids.clone())

    def end(self):
        self.ends += 1


class DraftRecorder(Recorder):
    """Notes drafts too, with the number of tokens that were final before them."""

    def __init__(self):
        super().__init__()
        self.drafts = []

    def put_draft(self, ids):
        self.drafts.append((sum(x.numel() for x in self.given), ids.clone()))


BLOCKS = {
    "block model": (4, {}),
    "approximate": (None, {"block_length": 4}),
    "whole rows": (None, {"block_length": 4, "use_cache": False}),
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("options", [{}, {"remasking": "cap", "eta": 0.3}], ids=str)
def test_a_streamer_gets_the_prompt_and_then_each_block(kind, options):
    block_size, blocks = BLOCKS[kind]
    model, recorder = make(block_size), DraftRecorder()
    arguments = {"max_new_tokens": 11, "seed": 0, "num_inference_steps": 3, **blocks, **options}
    (row,) = model.generate([[1, 2, 3, 4, 5]], streamer=recorder, **arguments)
    assert torch.equal(row, model.generate([[1, 2, 3, 4, 5]], **arguments)[0]), "a streamer changes no draw"
    sizes = [ids.numel() for ids in recorder.given]
    assert sizes == ([5, 3, 4, 4] if kind == "block model" else [5, 4, 4, 3]) and recorder.ends == 1
    assert recorder.given[0].shape == (1, 5) and all(ids.dim() == 1 for ids in recorder.given[1:])
    assert torch.equal(torch.cat([ids.flatten() for ids in recorder.given]), row)
    assert {first for first, _ in recorder.drafts} <= {5, 9, 13, 8, 12}
    for first, ids in recorder.drafts:
        assert len(ids) <= 4
        if options == {}:  # decided tokens stay
            final = row[first : first + len(ids)]
            assert torch.equal(ids[ids != MASK], final[ids != MASK])
    assert any((ids == MASK).any() for _, ids in recorder.drafts)


def test_without_blocks_the_text_comes_at_once_with_drafts_of_all_of_it():
    model, recorder = make(), DraftRecorder()
    (row,) = model.generate([[1, 2, MASK, 4]], max_new_tokens=6, streamer=recorder, seed=0, order="confidence")
    assert [ids.tolist() for ids in recorder.given] == [[[1, 2]], row[2:].tolist()] and recorder.ends == 1
    assert all(len(ids) == 8 for _, ids in recorder.drafts)
    assert [int((ids == MASK).sum()) for _, ids in recorder.drafts] == [6, 5, 4, 3, 2, 1, 0]


def test_the_streamers_of_transformers_print_and_iterate(capsys):
    model = make(4)
    arguments = {"max_new_tokens": 20, "logits_processor": letters, "order": "sequential"}
    ids = torch.tensor([[*SCRIPT[:4]]])
    model.generate(ids, streamer=TextStreamer(TOKENIZER), **arguments)
    assert capsys.readouterr().out == SCRIPT[:24].decode() + "\n"
    model.generate(ids, streamer=TextStreamer(TOKENIZER, skip_prompt=True), **arguments)
    assert capsys.readouterr().out == SCRIPT[4:24].decode() + "\n"
    pipe, streamer = quiet(make_pipeline(model, TOKENIZER)), TextIteratorStreamer(TOKENIZER, skip_prompt=True)
    thread = threading.Thread(target=pipe, kwargs={"prompt": "one ", "streamer": streamer, **arguments})
    thread.start()
    pieces = [*streamer]
    thread.join()
    assert "".join(pieces) == SCRIPT[4:24].decode() and len(pieces) > 3


def test_transformers_own_streamer_of_drafts_is_served(capsys):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "TextDiffusionStreamer"):  # of newer releases
        pytest.skip("this release of transformers has no streamer of drafts")
    streamer = transformers.TextDiffusionStreamer(TOKENIZER)
    make(4).generate([[*b"one "]], max_new_tokens=8, logits_processor=letters, order="sequential", streamer=streamer)
    output = capsys.readouterr().out
    assert "\033[33m" in output and output.rstrip().endswith(SCRIPT[8:12].decode().strip())


def test_a_streamer_gets_nothing_behind_the_end_and_is_told_of_errors():
    model, recorder = make(4, eos_token_id=EOS), Recorder()

    def ends(input_ids, logits):
        """The fifth new token is EOS."""
        at_end = (input_ids != MASK).sum(dim=1, keepdim=True) == 5
        letter, eos = (torch.nn.functional.one_hot(torch.tensor(x), MASK + 1) for x in (97, EOS))
        return torch.where(at_end, eos, letter) * 1e4

    arguments = {"order": "sequential", "streamer": recorder}
    found = model.generate([[97]], max_new_tokens=20, logits_processor=ends, **arguments)
    assert found.tolist() == [[97] * 5 + [EOS]]
    assert [ids.flatten().tolist() for ids in recorder.given] == [[97], [97] * 3, [97, EOS]] and recorder.ends == 1
    broken = Recorder()
    with pytest.raises(RuntimeError, match="the processor is broken"):
        model.generate([[1]], max_new_tokens=3, streamer=broken, logits_processor=fail)
    assert broken.ends == 1, "who waits for the text is not left waiting"


def fail(input_ids, logits):
    raise RuntimeError("the processor is broken")


def test_the_autoregressive_baseline_streams_token_by_token():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = MD4Config(vocab_size=MASK + 1, is_causal=True, **sizes)
    model, recorder = with_normal_weights(config, 0.3, model_class=MD4ForCausalLM).eval(), Recorder()
    (row,) = model.generate([[1, 2]], max_new_tokens=4, streamer=recorder, seed=0)
    assert [ids.flatten().tolist() for ids in recorder.given] == [[1, 2], *([token] for token in row[2:].tolist())]


# Stop strings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*BLOCKS, "no blocks"])
@pytest.mark.parametrize("stop", [". t", ["xyz", " four."], "e "])
def test_a_row_ends_with_the_token_that_completes_a_stop_string(kind, stop):
    block_size, blocks = BLOCKS.get(kind, (None, {}))
    model, text = make(block_size), SCRIPT.decode()
    strings = [stop] if isinstance(stop, str) else stop
    arguments = {"order": "sequential", "num_inference_steps": 30, "logits_processor": letters, **blocks}
    arguments |= {"stop_strings": stop, "max_new_tokens": 25}
    (row,) = model.generate([[*b"one"]], tokenizer=TOKENIZER, **arguments)
    place = min(text.index(string, 3) + len(string) for string in strings if string in text[3:])
    assert TOKENIZER.decode(row) == text[:place], "what is in the prompt ends nothing"
    pipe = quiet(make_pipeline(model, TOKENIZER))
    output = pipe(prompt="one", **arguments)
    assert output.texts == [text[:place]] and output.sequences.shape == (1, 28)
    with pytest.raises(ValueError, match="`stop_strings` need a tokenizer"):
        model.generate([[1]], **arguments)


def test_rows_end_where_their_own_text_does():
    arguments = {
        "order": "sequential",
        "logits_processor": letters,
        "max_new_tokens": 12,
        "stop_strings": ["o.", "ee"],
    }
    rows = [[*SCRIPT[:2]], [*SCRIPT[:9]], [*SCRIPT[:18]]]
    found = make(4).generate(rows, tokenizer=TOKENIZER, pad_token_id=0, **arguments)
    texts = [bytes(row[18:][row[18:] > 0].tolist()).decode() for row in found]
    assert texts == ["e two.", "three", "r. five sixo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_strings": ""}, "`stop_strings` must be one or more strings that are not empty, got ''"),
        ({"stop_strings": []}, r"`stop_strings` must be one or more strings that are not empty, got \[\]"),
        ({"stop_strings": ["a", 3]}, "`stop_strings` must be one or more strings"),
        ({"streamer": print}, "`streamer` must have methods `put` and `end`, got builtin_function_or_method"),
        ({"streamer": Recorder(), "num_samples": 2}, "`streamer` must be None for more than one row, got 2 rows"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        quiet(make_pipeline(make(), TOKENIZER))(prompt="a", **arguments)


def test_images_have_neither():
    pipe = quiet(make_pipeline(random_image_model(5, 4)))
    for name, value in (("stop_strings", "a"), ("streamer", Recorder()), ("max_new_tokens", 3)):
        with pytest.raises(ValueError, match=f"`{name}` must be None: the model is not one of text"):
            pipe(output_type="ids", generator=seeded(), **{name: value})
