# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The record of an unmasking is the sample, step by step; its page and its animation show that and nothing else."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import quiet, random_image_model, random_model, seeded, with_normal_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from md4_hf import (
    MD4Config,
    MD4ForCausalLM,
    MD4ForDiscreteDiffusion,
    TrajectoryRecorder,
    build_byte_tokenizer,
    build_text8_tokenizer,
    make_pipeline,
)
from md4_hf.data.token_pieces import TokenPieces
from md4_hf.evaluation.trajectories import Moment
from md4_hf.evaluation.trajectory_animation import MASK as MASK_CELL
from md4_hf.evaluation.trajectory_animation import MAX_FRAMES, chosen_moments, ends_of_lines, settled


TOKENIZER = build_byte_tokenizer()
MASK = TOKENIZER.mask_token_id
PROMPTS = ["é</script> & <mask:12>", "日本<mask:9> <!-- end"]
SAMPLERS = {
    "ancestral": {},
    "order": {"order": "confidence", "temperature": 0.0},
    "adaptive order": {"order": "threshold", "threshold": 0.3},
    "remasking": {"remasking": "cap", "eta": 0.5},
    "loop": {"remasking": "loop"},
    "gibbs": {"corrector": "gibbs", "corrector_steps": 2, "corrector_size": 3},
    "forward-backward": {"corrector": "forward_backward", "corrector_steps": 1, "corrector_eta": 0.3},
    "cached blocks": {"block_length": 5},
    "blocks of whole rows": {"block_length": 5, "use_cache": False, "order": "entropy"},
}


@pytest.fixture(scope="module")
def pipe():
    return quiet(
        make_pipeline(random_model(MASK + 1, 80, std=0.2, time_conditioning=False).eval(), tokenizer=TOKENIZER)
    )


class Calls:
    """Network calls of a pipeline, with the number of rows of each."""

    def __init__(self, pipe):
        self.rows = []
        self.hook = pipe.model.register_forward_pre_hook(
            lambda module, args, kwargs: self.rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )

    def taken(self):
        self.hook.remove()
        return self.rows


def recorded(pipe, **arguments):
    """Output and recorder of a call, which is compared with the same one without a recorder."""
    recorder = TrajectoryRecorder()
    calls = Calls(pipe)
    expected = pipe(generator=seeded(), **arguments)
    expected_calls, calls = calls.taken(), Calls(pipe)
    output = pipe(generator=seeded(), callback_on_step_end=recorder, **arguments)
    assert calls.taken() == expected_calls, "a recorder costs no network call, and no row waits for another"
    assert [x.tolist() for x in output.sequences] == [x.tolist() for x in expected.sequences], "nor changes a draw"
    return output, recorder


def check_course(trajectory, ids):
    """Every change is one, tokens have probabilities, prompts stay, and the end is the sample."""
    assert trajectory.is_finished and trajectory.ids == ids
    assert trajectory.moments == sorted(trajectory.moments)
    now, num_decided = list(trajectory.start), 0
    for events in trajectory.events.values():
        for event in events:
            assert trajectory.start[event.position] == MASK, "a prompt is kept"
            if event.token == MASK:
                assert now[event.position] != MASK and event.probability is None
            else:
                num_decided += 1
                assert event.probability is None or 0.0 < event.probability <= 1.0
            now[event.position] = event.token
    assert now == ids
    return num_decided


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_is_recorded_step_by_step(pipe, kind):
    arguments = {"prompt": PROMPTS, "num_samples": 2, "num_inference_steps": 10, **SAMPLERS[kind]}
    output, recorder = recorded(pipe, **arguments)
    assert len(recorder.trajectories) == 4
    again = 0
    for trajectory, ids in zip(recorder.trajectories, output.sequences, strict=True):
        num_decided = check_course(trajectory, ids.tolist())
        assert len(trajectory.ids) == len(ids), "padding is left out"
        assert max(trajectory.moments).step < pipe.num_timesteps
        again += num_decided - sum(token == MASK for token in trajectory.start)
        is_corrected = any(moment.correction for moment in trajectory.moments)
        assert is_corrected == ("corrector" in SAMPLERS[kind])
    is_changing = kind in ("remasking", "loop", "gibbs", "forward-backward")
    assert (again > 0) == is_changing, "tokens are decided once, unless the sampler changes them"


def test_the_record_agrees_with_what_a_callback_sees(pipe):
    seen = []
    arguments = {"prompt": PROMPTS, "num_inference_steps": 6, "remasking": "rescale", "eta": 0.6}

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["sample"].clone())
        return {}

    pipe(generator=seeded(), callback_on_step_end=look, **arguments)
    _, recorder = recorded(pipe, **arguments)
    for row, trajectory in enumerate(recorder.trajectories):
        states = dict(trajectory.states())
        for step, sample in enumerate(seen):
            reached = [ids for moment, ids in states.items() if moment.step <= step]
            now = reached[-1] if reached else trajectory.start
            assert now == sample[row, : len(now)].tolist()


def test_probabilities_are_the_models_own_also_at_temperature_0(pipe):
    arguments = {"prompt": "ab<mask:6>", "num_inference_steps": 6, "order": "sequential", "temperature": 0.0}
    _, recorder = recorded(pipe, **arguments)
    (trajectory,) = recorder.trajectories
    before = torch.tensor([trajectory.start])
    for moment, events in trajectory.events.items():
        with torch.no_grad():
            mu = pipe.model(before, timesteps=torch.ones(1)).logits.double().softmax(-1)[0]
        for event in events:
            assert event.probability == pytest.approx(mu[event.position, event.token].item(), rel=1e-4), moment
            assert event.probability < 1.0
        for event in events:
            before[0, event.position] = event.token


def test_what_is_filled_behind_an_end_is_no_decision_and_is_not_shown(pipe):
    eos = TOKENIZER.eos_token_id

    def ends_soon(input_ids, logits):
        return logits.index_add(1, torch.tensor([eos]), torch.full((len(logits), 1), 8.0))

    arguments = {"prompt": "ab<mask:20>", "eos_early_stop": True, "order": "sequential", "num_inference_steps": 20}
    output, recorder = recorded(pipe, logits_processor=ends_soon, **arguments)
    (trajectory,) = recorder.trajectories
    check_course(trajectory, output.sequences[0].tolist())
    end = trajectory.ids.index(eos)
    assert end < 15 and trajectory.num_drawn == end + 1 and set(trajectory.ids[end:]) == {eos}
    (sample,) = page_data(recorder, "page.html")["samples"]
    assert len(sample["start"]) == end + 1


def test_a_recorder_keeps_a_number_of_rows_and_calls_add_up(pipe):
    recorder, seen = TrajectoryRecorder(max_samples=3, on_change=lambda row: seen.append(row)), []
    for _ in range(2):
        pipe(prompt="a<mask:3>", num_samples=2, num_inference_steps=3, callback_on_step_end=recorder)
    assert recorder.is_full and [row.is_finished for row in recorder.trajectories] == [True] * 3
    assert {id(row) for row in seen} == {id(row) for row in recorder.trajectories}
    recorder.clear()
    assert not recorder.trajectories and not recorder.is_full
    with pytest.raises(ValueError, match="`max_samples` must be >= 1, got 0"):
        TrajectoryRecorder(max_samples=0)


@pytest.mark.parametrize("baseline", ["ar", "sedd-absorb", "d3pm-uniform"])
def test_baselines_are_recorded_too(baseline):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    model_class = MD4ForCausalLM if baseline == "ar" else MD4ForDiscreteDiffusion
    own = {"is_causal": True} if baseline == "ar" else {"baseline": baseline}
    model = with_normal_weights(MD4Config(vocab_size=28, **sizes, **own), 0.2, model_class=model_class)
    baseline_pipe = quiet(make_pipeline(model, tokenizer=build_text8_tokenizer()))
    steps = {} if baseline == "ar" else {"num_inference_steps": 6}
    output, recorder = recorded(baseline_pipe, prompt=["abc", "a"], length=12, **steps)
    for trajectory, ids in zip(recorder.trajectories, output.sequences, strict=True):
        assert trajectory.ids == ids.tolist()
        assert all(
            0.0 <= event.probability <= 1.0
            for events in trajectory.events.values()
            for event in events
            if event.token != trajectory.mask_token_id
        )
    if baseline == "ar":
        steps_of_row = [moment.step for moment in recorder.trajectories[0].moments]
        assert steps_of_row == [2 + k for k in range(9)]


# Tokens ---------------------------------------------------------------------------------------------------------------


def wordpiece():
    vocab = {"[UNK]": 0, "play": 1, "##ing": 2, "the": 3, ",": 4, "[MASK]": 5}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", unk_token="[UNK]")


def metaspace():
    vocab = [("<unk>", 0.0), ("▁the", -1.0), ("▁", -1.0), ("cat", -1.0), ("▁sat", -1.0), ("[MASK]", -1.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", unk_token="<unk>")


@pytest.mark.parametrize("make, text", [(wordpiece, "the playing , the"), (metaspace, "the cat sat the")])
def test_pieces_of_words_have_their_spaces(make, text):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = TokenPieces(tokenizer, tokenizer.mask_token_id)
    assert "".join(pieces(ids)) == tokenizer.decode(ids)
    half = [*ids[:1], tokenizer.mask_token_id, *ids[2:]]
    assert pieces(half)[1] is None and "".join(filter(None, pieces(half)[2:])).strip() in tokenizer.decode(ids)


def test_bytes_make_up_characters_wherever_masks_are():
    text = "naïve 日本 🙂 x"
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = TokenPieces(TOKENIZER, MASK)
    assert "".join(pieces(ids)) == text and len(pieces(ids)) == len(ids)
    generator = seeded()
    for share in (0.2, 0.5, 0.8):
        masked = (torch.rand(len(ids), generator=generator) < share).tolist()
        mixed = [MASK if is_masked else token for token, is_masked in zip(ids, masked, strict=True)]
        found = pieces(mixed)
        assert [piece is None for piece in found] == masked
        runs = "".join("\0" if piece is None else piece for piece in found).split("\0")
        given = [
            list(map(int, run.split())) for run in " ".join("|" if t == MASK else str(t) for t in mixed).split("|")
        ]
        assert runs == [TOKENIZER.decode(run) for run in given]


def test_without_a_tokenizer_tokens_are_numbers():
    assert TokenPieces(None, 9)([3, 9, 12]) == ["3 ", None, "12 "]


# The page -------------------------------------------------------------------------------------------------------------


def page_data(recorder, path, **options):
    recorder.to_html(path, **options)
    with open(path, encoding="utf-8") as stream:
        return json.loads(script(stream.read(), 'type="application/json" id="trajectory"'))


def script(page, attributes):
    (text,) = re.findall(f"<script {attributes}>(.*?)</script>", page, re.DOTALL)
    return text


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_no_text_breaks_the_page_and_nothing_is_loaded(pipe):
    text = "</script><script>alert(1)</script><!-- <script> ]]> \u2028 &lt; <mask:3>"
    _, recorder = recorded(pipe, prompt=text, num_inference_steps=3)
    data = page_data(recorder, "page.html", title="<b>@DATA@ & more")
    with open("page.html", encoding="utf-8") as stream:
        page = stream.read()
    assert page.count("<script") == page.count("</script>") == 3 and "<!--" not in page and "\u2028" not in page
    assert "<title>&lt;b&gt;@DATA@ &amp; more</title>" in page and "<b>" not in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    assert "".join(piece or "" for piece in data["samples"][0]["start"]) == text.removesuffix("<mask:3>")
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    assert {"slider", "play", "speed", "text", "color", "details", "theme", "position"} <= ids


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's script")
@pytest.mark.parametrize("kind", ["ancestral", "remasking", "gibbs", "cached blocks"])
def test_the_page_shows_the_text_of_every_step(pipe, kind):
    arguments = {"prompt": PROMPTS, "num_inference_steps": 10, **SAMPLERS[kind]}
    _, recorder = recorded(pipe, **arguments)
    data = page_data(recorder, "page.html")
    with open("page.html", encoding="utf-8") as stream:
        page = stream.read()
    for name in ("logic", "player"):
        with open(f"{name}.js", "w", encoding="utf-8") as stream:
            stream.write(script(page, f'id="{name}"'))
        subprocess.run(["node", "--check", f"{name}.js"], check=True)
    with open("shown.js", "w", encoding="utf-8") as stream:
        stream.write(script(page, 'id="logic"') + SHOWN.replace("DATA", json.dumps(data)))
    answer = subprocess.run(["node", "shown.js"], check=True, capture_output=True, encoding="utf-8").stdout
    shown = json.loads(answer)
    pieces = TokenPieces(TOKENIZER, MASK)
    moments = sorted({moment for row in recorder.trajectories for moment in row.moments})
    for row, frames in zip(recorder.trajectories, shown, strict=True):
        states = dict(row.states())
        expected = [row.start]
        for moment in moments:
            expected.append(states.get(moment, expected[-1]))
        assert [frame["texts"] for frame in frames] == [pieces(ids) for ids in expected]
        last = {place: (moments.index(moment) + 1, event) for place, (moment, event) in row.last_events.items()}
        for place, (frame, event) in last.items():
            cell = frames[-1]["cells"][place]
            assert cell["frame"] == frame and cell["probability"] == pytest.approx(event.probability, abs=1e-4)
            assert re.search(rf"step {moments[frame - 1].step + 1} of \d+", frames[-1]["words"][place])
        given = [words.endswith("· given") for words in frames[-1]["words"]]
        assert given == row.is_given


SHOWN = """
const data = DATA, frames = [...data.labels.keys()];
console.log(JSON.stringify(data.samples.map((sample) => frames.map((frame) => {
  const cells = cellsAt(sample, frame);
  const words = cells.map((cell) => describe(cell, data.labels, String(cell.value)));
  return { texts: cells.map((cell) => cell.value), cells, words };
}))));
"""


def test_images_are_recorded_shown_and_animated():
    image_pipe = quiet(make_pipeline(random_image_model(16, [4, 6], num_channels=3)))
    given = torch.randint(16, (2, 3, 4, 6), generator=seeded())
    hole = torch.zeros(4, 6, dtype=torch.bool)
    hole[:, 2:] = True
    ids = given.masked_fill(hole, 16)
    output, recorder = recorded(image_pipe, input_ids=ids, num_inference_steps=8, output_type="ids")
    for trajectory, image, start in zip(recorder.trajectories, output.sequences, ids, strict=True):
        assert trajectory.ids == image.flatten().tolist() and trajectory.start == start.flatten().tolist()
        assert trajectory.shape == (3, 4, 6)
    data = page_data(recorder, "page.html")
    assert data["shape"] == [3, 4, 6] and data["levels"] == [17 * level for level in range(16)]
    values = list(data["samples"][1]["start"])
    for _, entries in data["samples"][1]["changes"]:
        for place, value, probability in entries:
            values[place] = value
            assert 0.0 < probability <= 1.0
    assert values == output.sequences[1].flatten().tolist()
    recorder.to_gif("images.gif")
    with PIL.Image.open("images.gif") as animation:
        assert animation.info["loop"] == 0
        animation.seek(animation.n_frames - 1)
        picture = np.asarray(animation.convert("RGB")).astype(int)
    enlarge = 384 // (2 * 6)
    for x, y in ((0, 0), (5, 3)):
        pixel = picture[y * enlarge + enlarge // 2, x * enlarge + enlarge // 2]
        assert np.abs(pixel - 17 * output.sequences[0][:, y, x].numpy()).max() <= 8, "of a palette of 256 colours"


# The animation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color_by", ["step", "confidence"])
def test_an_animation_of_texts_begins_with_masks_and_ends_with_the_text(pipe, color_by):
    _, recorder = recorded(pipe, prompt=["the value\n of <mask:20>"], num_samples=2, num_inference_steps=30)
    recorder.to_gif("texts.gif", color_by=color_by, seconds=3.0)
    with PIL.Image.open("texts.gif") as animation:
        durations, pictures = [], []
        for number in range(animation.n_frames):
            animation.seek(number)
            durations.append(animation.info["duration"])
            pictures.append(np.asarray(animation.convert("RGB")))
    assert 4000 < sum(durations) < 6000 and durations[-1] >= 2000
    assert {picture.shape for picture in pictures} == {pictures[0].shape} and len(pictures) > 10
    colorful = [int((np.ptp(picture.astype(int), axis=2) > 60).sum()) for picture in pictures]
    assert colorful[0] == 0 and colorful[-1] > 100


def test_a_long_run_has_a_bounded_number_of_pictures():
    for count in (1, 7, MAX_FRAMES, 1000):
        moments = [Moment(step) for step in range(count)]
        chosen = chosen_moments(moments)
        assert len(chosen) == min(count, MAX_FRAMES) and chosen[-1] == moments[-1] and chosen == sorted(set(chosen))


def test_errors_name_the_argument_and_leave_no_file(pipe, tmp_path):
    empty = TrajectoryRecorder()
    _, recorder = recorded(pipe, prompt="a<mask:2>", num_inference_steps=2)
    for write, options, words in [
        (empty.to_html, {}, "must have recorded"),
        (empty.to_gif, {}, "must have recorded"),
        (recorder.to_html, {"color_by": "time"}, "`color_by` must be one of"),
        (recorder.to_gif, {"color_by": "time"}, "`color_by` must be one of"),
        (recorder.to_gif, {"seconds": 0.0}, "`seconds` must be > 0, got 0.0"),
        (recorder.to_gif, {"seconds": math.nan}, "`seconds` must be > 0, got nan"),
        (recorder.to_gif, {"max_samples": 0}, "`max_samples` must be >= 1, got 0"),
        (recorder.to_gif, {"font": "none.ttf"}, "`font`"),
    ]:
        with pytest.raises(ValueError, match=words):
            write("file", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_text_stays_in_its_place_while_its_masks_are_as_wide_as_their_tokens():
    words = "one two three"
    colours = ["a", "b", "c"]
    pieces = ["one", " two", " three"]
    states = [[True, True, True], [False, True, True], [False, True, False], [False, False, False]]
    frames = [
        [
            (MASK_CELL if hidden else piece, colour)
            for hidden, piece, colour in zip(state, pieces, colours, strict=True)
        ]
        for state in states
    ]
    texts = ["".join(text for text, _ in frame) for frame in settled(frames)]
    assert texts == ["░░░ ░░░ ░░░░░", "one ░░░ ░░░░░", "one ░░░ three", words]
    assert [[colour for _, colour in frame] for frame in settled(frames)] == [colours] * 4
    for other in ("een", "\N{CJK UNIFIED IDEOGRAPH-65E5}"):  # a token that changes, and one that is two columns wide
        changed = [[(other, "a"), *frames[1][1:]], *frames] if other == "een" else [[(other, "a")], [(other, "a")]]
        assert settled(changed) == changed


@pytest.mark.parametrize(
    "text",
    ["word " * 40, "x" * 200, "a\n" + "of the lines " * 20 + "\n\nb", "x" * 80 + " y", "x" * 79 + " yy " + "z" * 81],
)
def test_lines_end_between_words(text):
    ends = ends_of_lines(text)
    assert all(text[place] == " " for place in ends)
    lines = "".join("\n" if place in ends else character for place, character in enumerate(text)).split("\n")
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)
    assert " ".join(lines).split() == text.split()
