# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The lm-evaluation-harness: exact conditional bounds, noise that no batching changes, and whole local tasks."""

import itertools
import json
import random
import re
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from launching import start
from tiny import random_image_model, random_model, training_arguments
from tokenizers import Tokenizer, models
from toy import ToyWorld
from transformers import PreTrainedTokenizerFast

from md4_hf import (
    LoraArguments,
    MD4Config,
    MD4ForCausalLM,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    Objective,
    add_adapter,
    build_byte_tokenizer,
    build_text8_tokenizer,
    example_nelbo,
    load_model,
    make_pipeline,
    nelbo_weight,
    token_nelbo,
)


pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from md4_hf.evaluation import harness
from md4_hf.evaluation.harness import MD4LM, GenerationOptions, ScoredSequence, noise_index


LENGTH, DRAWS = 32, 4
GENMD4 = {"masking_schedule": "poly", "learn_masking_schedule": True}
TASK = """\
task: endings
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "{{beginning}}"
doc_to_choice: "{{endings}}"
doc_to_target: label
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""


def request(*args, doc=None, kind="loglikelihood", doc_id=None):
    """Of the document {"number": doc}, or of none; `doc_id` is the place that the harness gives it."""
    return Instance(kind, {} if doc is None else {"number": doc}, args, 0, metadata=("task", doc_id, 1))


def text_model(**kwargs):
    return random_model(28, LENGTH, std=0.3, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 32 characters with its tokenizer, which has no token to pad with."""
    folder = tmp_path_factory.mktemp("lm") / "model"
    text_model(time_conditioning=False).save_pretrained(folder)
    build_text8_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return MD4LM(str(folder), draws=DRAWS, batch_size=4)


@pytest.fixture(scope="module")
def questions():
    """Nine questions of three endings each, which differ in length; some contexts are too long."""
    letters = random.Random(0)

    def words(count):
        return " ".join("".join(letters.choices("abcdefgh", k=3)) for _ in range(count))

    return [{"beginning": words(n), "endings": [f" {words(k)}" for k in (1, 2, 3)], "label": n % 3} for n in range(9)]


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory, questions):
    return write_task(tmp_path_factory.mktemp("tasks"), questions)


def write_task(folder, questions):
    data = folder / "endings.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    (folder / "endings.yaml").write_text(TASK.replace("DATA", str(data)), encoding="utf-8")
    return folder


def requests_of(questions):
    return [
        request(question["beginning"], ending, doc=number, doc_id=number)
        for number, question in enumerate(questions)
        for ending in question["endings"]
    ]


def bound(model, ids, num_given, index, seed=0, draws=DRAWS):
    """The bound of the ids after the given ones, one row by itself, by the estimator that suits the model."""
    any_order = not (model.config.time_conditioning or model.config.learn_masking_schedule)
    ids, index = torch.tensor([ids]), torch.tensor([index])
    inputs = {"input_ids": ids, "labels": ids.masked_fill(torch.arange(ids.shape[1]) < num_given, -100)}
    options = {"seed": seed, "num_draws": draws, "estimator": "any_order" if any_order else "time"}
    with torch.no_grad():
        return -example_nelbo(model, Objective.of(model), inputs, index, **options)[0].item()


def pair_tokenizer():
    """Letters, and "ab" as one token."""
    backend = Tokenizer(models.BPE({"[MASK]": 0, "a": 1, "b": 2, "c": 3, "ab": 4}, [("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")


# The bound on an enumerable world -------------------------------------------------------------------------------------


class ExactDenoiser(MD4ForMaskedDiffusion):
    """The exact denoiser of a world; its own weights are not used."""

    def __init__(self, world):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        sizes |= {"vocab_size": world.vocab + 1, "max_position_embeddings": world.length}
        super().__init__(MD4Config(**sizes, masking_schedule="poly", schedule_power=2.0, schedule_eps=0.0))
        self.world = world

    def forward(self, input_ids, timesteps, labels=None, attention_mask=None, position_mask=None, output_logits=True):
        # Rows of a batch may be shorter than the world: their padding is unknown, that is, masked.
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask == 0, self.world.mask)
        missing = self.world.length - input_ids.shape[1]
        logits = self.world.exact_logits(torch.nn.functional.pad(input_ids, (0, missing), value=self.world.mask))
        logits = logits[:, : input_ids.shape[1]]
        if labels is None:
            return SimpleNamespace(logits=logits[position_mask])
        weight = nelbo_weight(Objective.of(self).process.schedule, timesteps)
        nelbo = token_nelbo(logits, labels, input_ids, weight, self.world.mask)
        return SimpleNamespace(token_nelbo=nelbo, reconstruction_nelbo=torch.zeros(len(labels)))


def enumerated_nelbo(model, objective, inputs, index, *, seed, num_draws):
    """The expectation that `example_nelbo` estimates: over all numbers of masked tokens, and all sets of so many."""
    nelbos = []
    for row, (ids, labels) in enumerate(zip(inputs["input_ids"], inputs["labels"], strict=True)):
        mask = inputs["attention_mask"][row] if "attention_mask" in inputs else torch.ones_like(ids)
        scored, total = (labels != -100).nonzero().squeeze(1), 0.0
        for count in range(1, len(scored) + 1):
            patterns = list(itertools.combinations(scored.tolist(), count))
            for pattern in patterns:
                xt = ids.clone()
                xt[list(pattern)] = objective.process.mask_token_id
                is_opened = (xt != ids)[None]
                output = model(xt[None], None, attention_mask=mask[None], position_mask=is_opened)
                log_probability = output.logits.log_softmax(-1).gather(1, ids[list(pattern), None]).sum()
                total -= log_probability.item() / (count * len(patterns))
        nelbos.append(total)
    return torch.tensor(nelbos), None


def letters_tokenizer():
    """One letter is one token; nothing but the mask is added."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[]))
    tokenizer.add_special_tokens(["[MASK]"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]")


@pytest.fixture(scope="module")
def world_pairs():
    """All contexts and continuations of the world, an empty context too, with their exact log-likelihoods."""
    world = ToyWorld()
    texts = ["".join("abc"[token] for token in sequence) for sequence in world.sequences.tolist()]
    probability_of = dict(zip(texts, world.probability.tolist(), strict=True))

    def probability(prefix):
        return sum(p for text, p in probability_of.items() if text.startswith(prefix))

    pairs = [(text[:n], text[n:]) for text in texts for n in range(3)]
    exact = [(torch.tensor(probability_of[a + b]) / probability(a)).log().item() for a, b in pairs]
    return world, pairs, exact


def test_the_bound_of_the_exact_denoiser_is_the_log_likelihood(world_pairs, monkeypatch):
    """Exact up to float32: the expectation is enumerated."""
    monkeypatch.setitem(harness.ESTIMATORS, "enumerated", enumerated_nelbo)
    world, pairs, exact = world_pairs
    lm = MD4LM(ExactDenoiser(world), letters_tokenizer(), estimator="enumerated", batch_size=7)
    scores = lm.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    assert [score for score, _ in scores] == pytest.approx(exact, abs=1e-5)


def test_the_likelihood_of_an_order_of_the_exact_denoiser_is_the_log_likelihood(world_pairs):
    """With one token a step, given the context, which is no part of the run."""
    world, pairs, exact = world_pairs
    options = {"estimator": "policy", "order": "confidence", "num_inference_steps": "32"}
    lm = MD4LM(ExactDenoiser(world), letters_tokenizer(), **options, batch_size=7)
    scores = lm.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    assert [score for score, _ in scores] == pytest.approx(exact, abs=1e-5)
    info, expected = lm.get_model_info(), {"bound_estimator": "policy", "bound_order": "confidence"}
    assert info | expected == info and info["bound_num_inference_steps"] == 32 and "bound_draws" not in info


def test_the_estimate_tends_to_the_log_likelihood(world_pairs):
    """Under 1 - t^2, an estimate from K independent draws has a relative variance of at most 3 / K, if each token costs
    the same whatever else is masked. Allowed are 4 standard errors of the mean over the 81 pairs, whose noise is
    independent, and 6 of each."""
    world, pairs, exact = world_pairs
    draws, exact = 256, torch.tensor(exact)
    lm = MD4LM(ExactDenoiser(world), letters_tokenizer(), draws=draws, batch_size=81)
    requests = [request(*pair, doc=number) for number, pair in enumerate(pairs)]
    ratio = torch.tensor([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]) / exact
    deviation = (3.0 / draws) ** 0.5
    assert (ratio - 1.0).abs().max() < 6.0 * deviation
    assert (ratio - 1.0).mean().abs() < 4.0 * deviation / len(pairs) ** 0.5


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"time_conditioning": False}, GENMD4], ids=str)
def test_a_score_is_the_bound_of_the_continuation_alone(kwargs):
    model = text_model(**kwargs).eval()
    lm = MD4LM(model, build_text8_tokenizer(), draws=DRAWS, seed=5, batch_size=3)
    requests = [request("the cat", " sat", doc=3), request("", "a dog", doc=4), request("so ", "far", doc=5)]
    scores = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    encode = build_text8_tokenizer().encode
    expected = [
        bound(model, encode(text), num_given, noise_index(query), seed=5)
        for text, num_given, query in zip(["the cat sat", "a dog", "so far"], [7, 0, 2], requests, strict=True)
    ]
    assert scores == pytest.approx(expected, rel=1e-5)


def test_a_long_context_loses_its_beginning(lm):
    long = "abc " * 40 + "the cat"
    (score,) = lm.loglikelihood([request(long, " sat", doc=0)], disable_tqdm=True)
    ids = build_text8_tokenizer().encode(long + " sat")[-LENGTH:]
    assert score[0] == pytest.approx(bound(lm.model, ids, LENGTH - 4, noise_index(request(doc=0))), rel=1e-5)


def test_max_length_shortens_the_context(folder):
    lm = MD4LM(str(folder), draws=2, max_length="6")
    (score,) = lm.loglikelihood([request("the cat", " sat", doc=0)], disable_tqdm=True)
    ids = build_text8_tokenizer().encode("at sat")
    assert score[0] == pytest.approx(bound(lm.model, ids, 2, noise_index(request(doc=0)), draws=2), rel=1e-5)


def test_unknown_characters_and_names_of_special_tokens_are_text(lm):
    """text8 makes gaps of unknown characters; the mask's name in a text masks nothing."""
    (score,) = lm.loglikelihood([request("Émile?", " [MASK] 7", doc=1)], disable_tqdm=True)
    ids = build_text8_tokenizer().encode(" mile mask seven ")
    assert score[0] == pytest.approx(bound(lm.model, ids, 6, noise_index(request(doc=1))), rel=1e-5)


@pytest.mark.parametrize("context, continuation, num_given", [("a", "b", 0), ("a", "bc", 0), ("aa", "bb", 1)])
def test_a_token_across_the_join_belongs_to_the_continuation(context, continuation, num_given):
    tokenizer = pair_tokenizer()
    lm = MD4LM(random_model(len(tokenizer), 8, std=0.3, mask_token_id=tokenizer.mask_token_id), tokenizer, draws=DRAWS)
    ids = tokenizer.encode(context + continuation)
    scores = lm.loglikelihood([request(context, continuation, doc=0)], disable_tqdm=True)
    expected = bound(lm.model, ids, num_given, noise_index(request(doc=0)))
    assert scores[0][0] == pytest.approx(expected, rel=1e-5)


def test_a_sign_that_changes_no_token_is_part_of_the_last_one(lm):
    """text8 writes "." and ".!" alike, as a space."""
    (score,) = lm.loglikelihood([request("the cat.", "!", doc=0)], disable_tqdm=True)
    ids = build_text8_tokenizer().encode("the cat ")
    assert score[0] == pytest.approx(bound(lm.model, ids, 7, noise_index(request(doc=0))), rel=1e-5)


def test_greedy_is_what_the_sampler_gives_in_one_step(lm):
    encode, mask = lm.tokenizer.encode, lm.model.config.mask_token_id
    pipe = make_pipeline(lm.model, lm.tokenizer)
    requests = []
    for context in ("", "the cat", "no dog"):
        rows = [encode(context) + [mask] * 4]
        output = pipe(input_ids=rows, num_inference_steps=1, temperature=0.0, output_type="ids")
        letters = lm.tokenizer.convert_ids_to_tokens(output.sequences[0].tolist())
        requests.append(request(context, "".join(letters[len(context) :])))
        other = "a" if letters[-1] != "a" else "b"
        requests.append(request(context, "".join([*letters[len(context) : -1], other])))
    # Spaces that follow each other are one: such samples cannot be said as text.
    assert all(encode(query.args[1]) and "  " not in "".join(query.args) for query in requests)
    greedy = [is_greedy for _, is_greedy in lm.loglikelihood(requests, disable_tqdm=True)]
    assert greedy == [True, False] * 3


# The autoregressive baseline ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["sees time", "sees no time"])
def causal_folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("causal") / "model"
    diffusion = text_model(time_conditioning=request.param)
    config = MD4Config(**{**diffusion.config.to_dict(), "is_causal": True})
    model = MD4ForCausalLM(config)
    model.load_state_dict(diffusion.state_dict())
    model.save_pretrained(folder)
    build_text8_tokenizer().save_pretrained(folder)
    return folder


def log_probabilities(model, ids):
    """`(length, vocab)` log p of every token after those before it, by a forward for each, on the ids so far alone."""
    rows = []
    for place in range(len(ids)):
        # The mask stands before the first token, as the model itself has it.
        prefix = torch.tensor([[model.config.mask_token_id, *ids[:place]]])
        times = torch.zeros(1) if model.config.time_conditioning else None
        hidden_states = model.model(prefix, timesteps=times).last_hidden_state[0, -1]
        rows.append(model.lm_head(hidden_states)[:-1].log_softmax(-1))
    return torch.stack(rows)


@torch.no_grad()
def test_an_autoregressive_model_is_scored_exactly(causal_folder):
    lm = MD4LM(str(causal_folder), batch_size=3, draws=7)
    pairs = [("the cat", " sat"), ("", "a dog"), ("so ", "far"), ("abc " * 40 + "the cat", " sat"), ("a", "b")]
    scores = lm.loglikelihood([request(*pair, doc=0) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (score, _) in zip(pairs, scores, strict=True):
        ids = lm.tokenizer.encode(context + continuation)[-LENGTH:]
        num_scored = len(lm.tokenizer.encode(context + continuation)) - len(lm.tokenizer.encode(context.rstrip()))
        log_p = log_probabilities(lm.model, ids).gather(1, torch.tensor(ids)[:, None])[-num_scored:]
        assert score == pytest.approx(log_p.sum().item(), rel=1e-5)
    assert lm.get_model_info()["bound_estimator"] == "exact" and "bound_draws" not in lm.get_model_info()


@torch.no_grad()
def test_greedy_of_an_autoregressive_model_is_the_most_probable_token_at_each_step(causal_folder):
    lm = MD4LM(str(causal_folder), batch_size=2)
    for context in ("", "the cat"):
        ids = lm.tokenizer.encode(context)
        for _ in range(3):
            ids.append(log_probabilities(lm.model, [*ids, 0])[-1].argmax().item())
        # As ids and not as text, in which spaces that follow each other are one.
        given = len(ids) - 3
        sequences = [ScoredSequence(ids, given, 0), ScoredSequence([*ids[:-1], (ids[-1] + 1) % 27], given, 0)]
        assert [is_greedy for _, is_greedy in lm._score_batch(sequences)] == [True, False]


@torch.no_grad()
def test_whole_texts_of_an_autoregressive_model_are_scored_in_the_blocks_of_a_diffusion_model(causal_folder):
    lm = MD4LM(str(causal_folder), batch_size=2)
    text = "the quick brown fox jumps over the lazy dog and runs away"
    (total,) = lm.loglikelihood_rolling([request(text, kind="loglikelihood_rolling")], disable_tqdm=True)
    ids = torch.tensor(lm.tokenizer.encode(text))
    blocks = [block[None] for block in ids.split(LENGTH)]
    assert total == pytest.approx(-sum(lm.model(x, labels=x).token_nelbo.sum().item() for x in blocks), rel=1e-5)


def test_a_task_gives_both_kinds_of_model_their_figures_by_one_command(causal_folder, task_folder, questions):
    results = evaluate_task(task_folder, causal_folder, device="cpu")
    found = [[response[0][0] for response in sample["resps"]] for sample in results["samples"]["endings"]]
    model, encode = load_model(str(causal_folder)), build_text8_tokenizer().encode
    for question, scores in zip(questions, found, strict=True):
        for ending, score in zip(question["endings"], scores, strict=True):
            ids = torch.tensor([encode(question["beginning"] + ending)[-LENGTH:]])
            nelbo = model(ids, labels=ids).token_nelbo[0, -len(encode(ending)) :]
            assert score == pytest.approx(-nelbo.sum().item(), rel=1e-4)


def test_an_autoregressive_model_refuses_what_it_cannot_do(causal_folder):
    with pytest.raises(ValueError, match="`estimator` must be 'time' for a causal model, which needs none"):
        MD4LM(str(causal_folder), estimator="any_order")
    with pytest.raises(ValueError, match="`pretrained` must be a masked diffusion model for tasks that generate"):
        generations(MD4LM(str(causal_folder)), [request("the cat", {}, kind="generate_until")])


# The noise ------------------------------------------------------------------------------------------------------------


def test_scores_depend_neither_on_the_batch_nor_on_the_order(folder, questions):
    requests = requests_of(questions)
    scores = MD4LM(str(folder), draws=DRAWS, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    shuffled = random.Random(1).sample(range(len(requests)), len(requests))
    for batch_size in (5, "64"):
        lm = MD4LM(str(folder), draws=DRAWS, batch_size=batch_size)
        reordered = lm.loglikelihood([requests[i] for i in shuffled], disable_tqdm=True)
        assert [other[0] for other in reordered] == pytest.approx([scores[i][0] for i in shuffled], rel=1e-4)
        assert [other[1] for other in reordered] == [scores[i][1] for i in shuffled]
    other_seed = MD4LM(str(folder), draws=DRAWS, seed=1, batch_size=64).loglikelihood(requests, disable_tqdm=True)
    assert all(abs(a[0] - b[0]) > 1e-4 for a, b in zip(scores, other_seed, strict=True))


def test_auto_takes_smaller_batches_when_memory_is_short(folder, questions, monkeypatch):
    requests = requests_of(questions)
    expected = MD4LM(str(folder), draws=2, batch_size=4).loglikelihood(requests, disable_tqdm=True)
    sizes = []

    def short_of_memory(model, diffusion, inputs, index, **kwargs):
        sizes.append(len(index))
        if len(index) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return example_nelbo(model, diffusion, inputs, index, estimator="any_order", **kwargs)

    monkeypatch.setitem(harness.ESTIMATORS, "any_order", short_of_memory)
    lm = MD4LM(str(folder), draws=2, batch_size="auto", max_batch_size=16)
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert sizes == [16, 8] + [4] * 6 + [3]
    with pytest.raises(torch.OutOfMemoryError):
        MD4LM(str(folder), draws=2, batch_size=16).loglikelihood(requests, disable_tqdm=True)


def test_one_token_choices_are_ranked_exactly(lm):
    """All endings meet the same times and masks: their bounds are the exact negative logarithms times one number."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    requests = [request("the ca", letter, doc=9) for letter in letters]
    scores = torch.tensor([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)])
    ids = torch.tensor([[*lm.tokenizer.encode("the ca"), lm.model.config.mask_token_id]])
    with torch.no_grad():
        logits = lm.model(ids, timesteps=torch.ones(1)).logits
    exact = logits[0, -1, :-1].log_softmax(0)[:26]
    # The reconstruction term is the same for all.
    spread = (scores - scores[0])[1:] / (exact - exact[0])[1:]
    assert torch.allclose(spread, spread.mean().expand_as(spread), rtol=1e-3)
    assert scores.argsort().equal(exact.argsort())


def test_noise_is_keyed_by_document_and_else_by_context():
    assert noise_index(request("a", "b", doc=1)) == noise_index(request("c", "d", doc=1))
    assert noise_index(request("a", "b", doc=1)) != noise_index(request("a", "b", doc=2))
    assert noise_index(request("a", "b")) == noise_index(request("a", "c")) != noise_index(request("b", "c"))
    assert noise_index(request("a", doc=1, doc_id=7)) == noise_index(request("a", doc=1, doc_id=8))
    documents = [{"a": 1, "b": ["x"]}, {"b": ["x"], "a": 1}, {"a": 1, "b": ["y"]}]
    one, same, other = (noise_index(Instance("loglikelihood", document, ("a",), 0)) for document in documents)
    assert one == same != other, "the order of a document's columns is none of its content"
    indices = {noise_index(request("", doc=number), block) for number in range(100) for block in range(100)}
    assert len(indices) == 10_000 and all(0 <= index < 2**31 for index in indices)


# Whole texts and generations ------------------------------------------------------------------------------------------


def test_rolling_adds_the_bounds_of_disjoint_blocks(lm):
    texts = ["", "short", "the quick brown fox jumps over the lazy dog and runs away from the other foxes"]
    requests = [request(text, doc=n, kind="loglikelihood_rolling") for n, text in enumerate(texts)]
    totals = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    ids = lm.tokenizer.encode(texts[2])
    blocks = [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
    assert [len(block) for block in blocks] == [32, 32, 14]
    expected = sum(bound(lm.model, block, 0, noise_index(requests[2], n)) for n, block in enumerate(blocks))
    assert totals[0] == 0.0
    short = bound(lm.model, lm.tokenizer.encode("short"), 0, noise_index(requests[1], 0))
    assert totals[1:] == pytest.approx([short, expected], rel=1e-5)


def generations(lm, requests):
    return lm.generate_until(requests, disable_tqdm=True)


def test_generations_do_not_depend_on_the_batch_or_the_order(folder):
    prompts = ["the cat", "", "a " * 40, "some dog"]
    kwargs = [{"max_gen_toks": 9}, {"max_gen_toks": 9, "do_sample": True, "top_p": 0.9}]
    places = [(n, prompt, options) for options in kwargs for n, prompt in enumerate(prompts)]
    requests = [request(prompt, options, doc=n, kind="generate_until") for n, prompt, options in places]
    texts = generations(MD4LM(str(folder), batch_size=3), requests)
    assert all(len(text) == 9 for text in texts) and texts[:4] != texts[4:]
    assert generations(MD4LM(str(folder), batch_size=1), requests[::-1]) == texts[::-1]
    # Repeats of a request are other samples of it.
    repeated = generations(MD4LM(str(folder)), [requests[4]] * 3)
    assert repeated[0] == texts[4] and len(set(repeated)) == 3


def test_a_generation_ends_before_the_first_of_the_strings(lm):
    options = {"max_gen_toks": 20, "num_inference_steps": 8}
    (unlimited,) = generations(lm, [request("the cat", options, doc=0)])
    end, later = unlimited[5:7], unlimited[9:11]
    (limited,) = generations(lm, [request("the cat", {**options, "until": [later, end, ""]}, doc=0)])
    assert limited == unlimited[: min(unlimited.find(end), unlimited.find(later))]
    assert generations(lm, [request("the cat", {**options, "until": "7"}, doc=0)]) == [unlimited]


def test_generations_take_the_samplers_of_the_pipeline(lm):
    options = {"max_gen_toks": 9, "num_inference_steps": 9}
    samplers = [{"order": "sequential"}, {"order": "confidence", "block_length": 3, "use_cache": False}]
    for sampler in samplers:
        found = generations(lm, [request("the cat", {**options, **sampler})])
        output = lm._pipeline(prompt="the cat", gen_length=9, num_inference_steps=9, temperature=0.0, **sampler)
        assert found == [output.texts[0].removeprefix("the cat")]


def test_a_generation_ends_at_the_end_of_text():
    model = random_model(258, 16, std=0.3, time_conditioning=False)
    lm = MD4LM(model, build_byte_tokenizer(), max_gen_toks=8)
    # The pipeline is not asked: any sample will do.
    lm._pipeline = lambda input_ids, **kwargs: SimpleNamespace(
        sequences=[torch.tensor([*row[:-8], *b"yes", 256, *b"this"]) for row in input_ids]
    )
    assert generations(lm, [request("is it?", {})]) == ["yes"]


@pytest.mark.parametrize(
    "gen_kwargs, expected",
    [
        ({}, {"temperature": 0.0, "max_gen_toks": 7}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5}, {"temperature": 0.7, "top_k": 5}),
        ({"temperature": 0.7, "max_new_tokens": 3}, {"temperature": 0.7, "max_gen_toks": 3}),
        ({"until": ["\n", ""]}, {"until": ("\n",)}),
        ({"order": "entropy", "block_length": 4}, {"sampler": (("order", "entropy"), ("block_length", 4))}),
    ],
    ids=str,
)
def test_options_of_generations_follow_from_gen_kwargs(gen_kwargs, expected):
    options = vars(GenerationOptions.of(gen_kwargs, 7))
    assert {name: options[name] for name in expected} == expected


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"draws": 0}, "`draws` must be an integer >= 1, got 0."),
        ({"draws": "many"}, "`draws` must be"),
        ({"draws": 2.5}, "`draws` must be"),
        ({"draws": True}, "`draws` must be"),
        ({"seed": "x"}, "`seed` must be"),
        ({"estimator": "space"}, "`estimator` must be one of"),
        ({"order": "entropy"}, "`order` and `num_inference_steps` must be left out without estimator=policy"),
        ({"estimator": "policy", "order": "candidate"}, "`order` must not depend on the tokens that are drawn"),
        ({"estimator": "policy", "num_inference_steps": 0}, "`num_inference_steps` must be an integer >= 1"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"batch_size": "automatic"}, "`batch_size` must be"),
        ({"batch_size": "auto", "max_batch_size": 0}, "`max_batch_size` must be"),
        ({"max_length": 33}, "`max_length` must be an integer in [1, 32], got 33."),
        ({"max_gen_toks": 0}, "`max_gen_toks` must be"),
        ({"device": "abacus"}, "`device` must be"),
        ({"dtype": "int8"}, "`dtype` must be"),
        ({"dtype": "float7"}, "`dtype` must be"),
        ({"base": "other"}, "`base` must be left out"),
        ({"tokenizer": "bytes"}, "`tokenizer` must have ids below the model's number of rows"),
    ],
    ids=str,
)
def test_arguments_out_of_range(folder, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MD4LM(str(folder), **arguments)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: random_image_model(4, 8), "`pretrained` must be a model of text, got one of images"),
        (lambda: text_model(num_classes=3), "`pretrained` must be a model that needs no class label, got one with 3"),
        (text_model, "`tokenizer` must be given with a model, got None"),
        (lambda: 7, "`pretrained` must be a folder, a Hub id or an MD4 model, got 7"),
        (lambda: "./no/such", "no/such"),
    ],
)
def test_models_that_cannot_be_scored(make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        MD4LM(make())


@pytest.mark.parametrize(
    "context, continuation, message",
    [
        ("the cat", "", "`continuation` must have tokens, got '' after 'the cat'."),
        ("the cat", "x" * 33, "`continuation` must have at most 32 tokens, the model's length, got 33"),
    ],
)
def test_continuations_that_cannot_be_scored(lm, context, continuation, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lm.loglikelihood([request(context, continuation)], disable_tqdm=True)


@pytest.mark.parametrize(
    "gen_kwargs, message",
    [
        ({"num_beams": 4}, "`gen_kwargs` must be among"),
        ({"max_gen_toks": 32}, "`max_gen_toks` must be in [1, 31], to leave room for the prompt, got 32."),
        ({"max_gen_toks": 0}, "`max_gen_toks` must be an integer"),
        ({"until": 7}, "`until` must be a string or a list of strings, got 7."),
        ({"do_sample": "yes"}, "`do_sample` must be True or False, got 'yes'."),
        ({"temperature": -1.0}, "`temperature` must be a number >= 0, got -1.0."),
        ({"do_sample": True, "top_p": 2.0}, "`top_p` must"),
        ({"order": "first"}, "`order` must be one of ['candidate', 'confidence'"),
    ],
    ids=str,
)
def test_generations_that_cannot_be_made(lm, gen_kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generations(lm, [request("the cat", gen_kwargs)])


# In the harness -------------------------------------------------------------------------------------------------------


def expected_scores(folder, questions, draws=DRAWS):
    """The bounds of all endings, one by one."""
    model, encode = load_model(str(folder)), build_text8_tokenizer().encode
    scores = []
    for question in questions:
        index = noise_index(Instance("loglikelihood", question, (), 0, metadata=("endings", None, 1)))
        for ending in question["endings"]:
            ids, num_scored = encode(question["beginning"] + ending)[-LENGTH:], len(encode(ending))
            scores.append(bound(model, ids, len(ids) - num_scored, index, draws=draws))
    return torch.tensor(scores).view(len(questions), 3)


def expected_metrics(folder, questions, draws=DRAWS):
    scores = expected_scores(folder, questions, draws)
    num_characters = torch.tensor([[len(ending) for ending in question["endings"]] for question in questions])
    labels = torch.tensor([question["label"] for question in questions])
    return {
        "acc": (scores.argmax(1) == labels).double().mean().item(),
        "acc_norm": ((scores / num_characters).argmax(1) == labels).double().mean().item(),
    }


def evaluate_task(task_folder, folder, draws=DRAWS, **kwargs):
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    kwargs |= {"model": "md4_hf", "model_args": f"pretrained={folder},draws={draws}", "batch_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds
        return simple_evaluate(tasks=["endings"], task_manager=manager, bootstrap_iters=0, **kwargs)


def test_a_multiple_choice_task_of_a_local_file(folder, task_folder, questions, tmp_path):
    results = evaluate_task(task_folder, folder, device="cpu", use_cache=str(tmp_path / "cache"))
    found = [[response[0][0] for response in sample["resps"]] for sample in results["samples"]["endings"]]
    assert torch.allclose(torch.tensor(found), expected_scores(folder, questions), rtol=1e-4)
    expected = expected_metrics(folder, questions)
    assert {name: results["results"]["endings"][f"{name},none"] for name in expected} == pytest.approx(expected)
    assert 0.0 < expected["acc"] < 1.0
    assert results["config"]["bound_draws"] == DRAWS and results["max_length"] == LENGTH
    # What is in the harness's cache is not computed again.
    again = evaluate_task(task_folder, folder, draws=1, use_cache=str(tmp_path / "cache"))
    assert again["results"] == results["results"]


def test_a_chat_template_writes_the_prompts_of_a_task(folder, task_folder, questions, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = build_text8_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content }}{% endfor %} assistant"
    tokenizer.save_pretrained(tmp_path / "model")
    results = evaluate_task(task_folder, tmp_path / "model", draws=1, apply_chat_template=True)
    samples = sorted(results["samples"]["endings"], key=lambda sample: sample["doc_id"])
    prompts = [sample["arguments"][0][0] for sample in samples]
    assert prompts == [f"user {question['beginning']} assistant" for question in questions]
    lm = MD4LM(str(tmp_path / "model"), draws=1)
    assert (lm.chat_template(True), lm.chat_template()) == (tokenizer.chat_template, "")
    assert lm.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=False) == "user a"
    with pytest.raises(ValueError, match="`tokenizer` must have a chat template to read messages"):
        evaluate_task(task_folder, folder, draws=1, apply_chat_template=True)


def test_other_orders_and_parts_of_a_task_give_the_same_likelihoods(folder, task_folder, questions, tmp_path):
    shuffled = random.Random(2).sample(questions, len(questions))
    write_task(tmp_path, shuffled)

    def likelihoods(task_folder, limit=None):
        samples = evaluate_task(task_folder, folder, device="cpu", limit=limit)["samples"]["endings"]
        return {x["doc"]["beginning"]: [response[0][0] for response in x["resps"]] for x in samples}

    complete, limited = likelihoods(task_folder), likelihoods(tmp_path, limit=5)
    assert list(limited) == [question["beginning"] for question in shuffled[:5]] != list(complete)[:5]
    for beginning, found in limited.items():
        assert found == pytest.approx(complete[beginning], rel=1e-4)


def test_an_adapter_is_evaluated_on_its_base(folder, tmp_path):
    torch.manual_seed(0)
    model = add_adapter(load_model(str(folder)), LoraArguments(lora_r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    args = training_arguments(tmp_path / "adapter")
    MD4Trainer(model=model, args=args, processing_class=build_text8_tokenizer()).save_model()
    queries = [request("the cat", " sat", doc=0)]
    ((score, _),) = MD4LM(str(tmp_path / "adapter"), draws=4).loglikelihood(queries, disable_tqdm=True)
    ids = build_text8_tokenizer().encode("the cat sat")
    merged = model.eval().merge_and_unload()
    assert score == pytest.approx(bound(merged, ids, 7, noise_index(queries[0]), draws=4), rel=1e-4)


def test_the_models_of_the_harness_stay_registered():
    assert get_model("md4_hf") is MD4LM
    assert get_model("dummy").__module__.startswith("lm_eval.")


# What takes long: the index of the harness's own thousands of tasks, and the list of all packages here.
COMMAND = """
import functools
import lm_eval.evaluator, lm_eval.tasks
lm_eval.evaluator.add_env_info = lambda results: None
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
from md4_hf.cli import main
main()
"""


def start_command(folder, task_folder, output, **environment):
    model_args = f"pretrained={folder},draws={DRAWS}"
    arguments = f"--model md4_hf --model_args {model_args} --tasks endings --include_path {task_folder}"
    arguments += f" --batch_size 8 --output_path {output}"  # the device is the default, "cuda:0", which is not there
    return start(
        [sys.executable, "-c", COMMAND, "harness", *arguments.split()], CUDA_VISIBLE_DEVICES="", **environment
    )


def finished(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def written_metrics(output, expected):
    (path,) = output.rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]["endings"]
    return {name: results[f"{name},none"] for name in expected}


@pytest.mark.slow
def test_the_command(folder, task_folder, questions, tmp_path):
    table = finished(start_command(folder, task_folder, tmp_path))
    assert "|endings|" in table and "acc_norm" in table
    assert "There is no CUDA device (cuda:0, the harness's default): running on cpu." in table
    expected = expected_metrics(folder, questions)
    assert written_metrics(tmp_path, expected) == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(folder, task_folder, questions, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(2)]
    processes = [start_command(folder, task_folder, tmp_path, **variables) for variables in ranks]
    outputs = [finished(process) for process in processes]
    assert "|endings|" in outputs[0] and "|endings|" not in outputs[1]
    expected = expected_metrics(folder, questions)
    assert written_metrics(tmp_path, expected) == pytest.approx(expected)
