# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The metrics of `metrics/` as `evaluate` loads them, and the sample metrics they are made of."""

import doctest
import math
import os
import re
from collections import Counter
from pathlib import Path

import evaluate
import pytest
import torch
from launching import run_python
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from md4_hf.evaluation.sample_statistics import token_entropy
from md4_hf.evaluation.samples import CITATION, checked_examples, generative_perplexity
from md4_hf.objective.estimators import nelbo_metrics, ratio_with_stderr


ROOT = Path(__file__).parents[2]
METRICS = ROOT / "metrics"
NAMES = sorted(path.parent.name for path in METRICS.glob("*/*.py"))
LIKELIHOOD = "masked_diffusion_likelihood"

WORDS = "the a value of an object list strings is used".split()
TEXTS = ["the value of an object", "a list", "the the the the the the", "strings of the list of a value is used"]
NELBO_NATS = [180.2, 171.9, 190.4, 12.7]  # none of them a float32
SIZES = [64, 60, 70, 5]
CHARACTERS = [128, 120, 131, 9]


def load(name, **kwargs):
    return evaluate.load(str(METRICS / name), **kwargs)


def make_tokenizer(**special_tokens):
    """One token per word."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<s>", "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special_tokens)


def make_model(**kwargs):
    torch.manual_seed(0)
    # The initial weights are made large: otherwise every distribution is nearly uniform, and every mistake hidden.
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 12, "initializer_range": 0.5}
    special = {"vocab_size": 12, "bos_token_id": 10, "eos_token_id": 10}
    return GPT2LMHeadModel(GPT2Config(**special, **sizes, **kwargs))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(bos_token="<s>")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("causal")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def nats_by_hand(model, ids):
    """−Σ_n log p(x^n | x^{<n}), one forward pass per token and neither padding nor shift."""
    model.eval()
    total = 0.0
    for n in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:n]])).logits[0, -1].double()
        total -= logits.log_softmax(-1)[ids[n]].item()
    return total


def entropy_by_hand(ids):
    return -sum(count / len(ids) * math.log(count / len(ids)) for count in Counter(ids).values())


# Loading --------------------------------------------------------------------------------------------------------------


def test_the_metrics_are_three():
    assert {LIKELIHOOD, "generative_perplexity", "token_entropy"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_says_what_it_is(name):
    metric = load(name)
    assert isinstance(metric, evaluate.Metric) and metric.name == name
    assert "2406.04329" in metric.citation and len(metric.description) > 100
    assert metric.inputs_description in metric.compute.__doc__
    card = (METRICS / name / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and "Limits:" in card


def test_a_bound_is_called_a_monte_carlo_upper_bound():
    for text in (load(LIKELIHOOD).description, (METRICS / LIKELIHOOD / "README.md").read_text(encoding="utf-8")):
        assert "upper bound" in text.lower() and "Monte Carlo" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_metric_runs_and_prints_what_it_says(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    source = load(name).inputs_description.replace('"gpt2"', repr(str(folder)))
    example = doctest.DocTestParser().get_doctest(source, {}, name, None, None)
    report = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert results.attempted > 0 and results.failed == 0, "".join(report)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_names_every_output_and_its_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = (METRICS / name / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(code.replace('"gpt2"', repr(str(folder))), names)
    for described in (card.split("| output")[1], load(name).inputs_description.split("Returns:")[1]):
        assert set(names["results"]) <= set(re.findall(r"\w+", described))


def test_the_citation_stands_in_one_place():
    assert {load(name).citation for name in NAMES} == {CITATION}
    assert not any("@inproceedings" in path.read_text(encoding="utf-8") for path in METRICS.glob("*/*.py"))


def test_the_metrics_load_offline_from_another_folder_with_caches_of_their_own(tmp_path, folder):
    """Nothing but caches is written."""
    code = f"""
import evaluate

print(evaluate.load({str(METRICS / LIKELIHOOD)!r}).compute(predictions=[2.0, 4.0], references=[1, 2]))
print(evaluate.load({str(METRICS / "token_entropy")!r}).compute(predictions=[[1, 2]])["token_entropy"])
metric = evaluate.load({str(METRICS / "generative_perplexity")!r})
print(metric.compute(predictions=["the value"], model_id={str(folder)!r}, device="cpu")["num_tokens"])
"""
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    before = sorted(METRICS.rglob("*"))
    perplexity, entropy, num_tokens = run_python("-c", code, cwd=elsewhere, env=environment).splitlines()
    assert "'num_tokens': 3" in perplexity and float(entropy) == pytest.approx(math.log(2)) and num_tokens == "1"
    assert list(elsewhere.iterdir()) == [] and sorted(METRICS.rglob("*")) == before
    assert (cache / "modules" / "evaluate_modules" / "metrics" / LIKELIHOOD).is_dir()


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_added_one_by_one_count_as_one(keep_in_memory):
    metric = load(LIKELIHOOD, keep_in_memory=keep_in_memory)
    expected = metric.compute(predictions=NELBO_NATS, references=SIZES, num_characters=CHARACTERS)
    metric.add_batch(predictions=NELBO_NATS[:3], references=SIZES[:3])
    metric.add(prediction=NELBO_NATS[3], reference=SIZES[3])
    assert metric.compute(num_characters=CHARACTERS) == expected


# Likelihood -----------------------------------------------------------------------------------------------------------


def test_the_perplexity_bound_is_that_of_nelbo_metrics():
    results = load(LIKELIHOOD).compute(predictions=NELBO_NATS, references=SIZES)
    expected = nelbo_metrics(torch.tensor(NELBO_NATS, dtype=torch.float64), torch.tensor(SIZES))
    assert {key: results[key] for key in expected} == expected
    assert results["perplexity"] == pytest.approx(math.exp(sum(NELBO_NATS) / sum(SIZES)), rel=1e-12)
    assert results["perplexity_stderr"] == pytest.approx(results["perplexity"] * results["loss_stderr"], rel=1e-12)
    assert (results["num_tokens"], results["num_examples"]) == (sum(SIZES), len(SIZES))


def test_the_bits_are_those_of_the_evaluation():
    options = {"num_characters": CHARACTERS, "are_dimensions": True}
    results = load(LIKELIHOOD).compute(predictions=NELBO_NATS, references=SIZES, **options)
    nelbo = torch.tensor(NELBO_NATS, dtype=torch.float64)
    for unit, sizes in (("character", CHARACTERS), ("dimension", SIZES)):
        stderr = ratio_with_stderr(nelbo, torch.tensor(sizes).double())[1]
        expected = sum(NELBO_NATS) / sum(sizes) / math.log(2)
        assert results[f"bits_per_{unit}"] == pytest.approx(expected, rel=1e-12)
        assert results[f"bits_per_{unit}_stderr"] == pytest.approx(stderr / math.log(2), rel=1e-12)
    assert results["bits_per_token"] == results["bits_per_dimension"]
    expected = nelbo_metrics(nelbo, torch.tensor(SIZES), torch.tensor(CHARACTERS), are_dimensions=True)
    assert {key: results[key] for key in expected} == expected


def test_a_uniform_model_of_bytes_has_eight_bits_per_dimension():
    nelbo = [12 * math.log(256)] * 2
    results = load(LIKELIHOOD).compute(predictions=nelbo, references=[12, 12], are_dimensions=True)
    assert results["bits_per_dimension"] == pytest.approx(8.0, rel=1e-12)
    assert results["bits_per_dimension_stderr"] == pytest.approx(0.0, abs=1e-12)


def test_one_example_has_no_standard_error():
    results = load(LIKELIHOOD).compute(predictions=[3.0], references=[2])
    assert results["perplexity"] == pytest.approx(math.exp(1.5)) and math.isnan(results["perplexity_stderr"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_do_as_well_as_lists(dtype):
    nelbo = torch.tensor([2.0, 4.0], dtype=dtype, requires_grad=True)
    sizes = torch.tensor([1.0, 2.0])
    given = {"num_characters": sizes, "num_bytes": 4 * sizes}
    results = load(LIKELIHOOD).compute(predictions=nelbo, references=2 * sizes, **given)
    assert results["bits_per_character"] == pytest.approx(2 / math.log(2))
    assert results["bits_per_byte"] == pytest.approx(0.5 / math.log(2))


def test_after_an_error_a_metric_that_keeps_files_starts_afresh():
    metric = load(LIKELIHOOD)
    with pytest.raises(ValueError, match="got -1.0 at index 1"):
        metric.compute(predictions=[1.0, -1.0], references=[1, 1])
    assert metric.compute(predictions=[1.0], references=[1])["num_examples"] == 1


@pytest.mark.parametrize(
    "predictions, references, message",
    [
        ([], [], "`predictions` must hold the NELBO of at least one example, got none"),
        ([2.0, -0.5], [1, 1], "`predictions` must be finite and >= 0 nats, got -0.5 at index 1"),
        ([math.nan, 1.0], [1, 1], "`predictions` must be finite and >= 0 nats, got nan at index 0"),
        ([2.0, 1.0], [1, -3], "`references` must be whole and >= 0, got -3.0 at index 1"),
        ([2.0, 1.0], [1, 2.5], "`references` must be whole and >= 0, got 2.5 at index 1"),
        ([2.0, None], [1, 2], r"`predictions` must be a list of numbers, got \[2.0, None\]"),
        ([0.0, 0.0], [0, 0], "`references` must not be 0 in all, got 2 times 0"),
        ([2.0, 1.0], [1, 2, 3], r"number of predictions \(2\) and references \(3\)"),
    ],
)
def test_a_bound_refuses_what_it_cannot_be(predictions, references, message):
    # In a file, what was refused stays locked, and the next file takes a second.
    metric = load(LIKELIHOOD, keep_in_memory=True)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=[1.0], references=[1])["num_examples"] == 1, "the metric can be used again"


def test_every_nelbo_needs_its_size():
    with pytest.raises(ValueError, match=r"`references` must have one number for each of 2 predictions, got 1"):
        checked_examples([1.0, 2.0], [3])
    with pytest.raises(ValueError, match=r"`predictions` must be a list of numbers, got shape \(1, 2\)"):
        checked_examples([[1.0, 2.0]], [3])
    with pytest.raises(ValueError, match=r"`num_characters` must be finite and >= 0, got -2.5 at index 1"):
        checked_examples([1.0, 2.0], [3, 4], num_characters=[1, -2.5])


def test_a_block_may_stand_for_a_part_of_a_character():
    *_, sizes = checked_examples([1.0, 2.0], [3, 4], num_characters=[1, 2.5])
    assert sizes["num_characters"].tolist() == [1.0, 2.5]


# Token entropy --------------------------------------------------------------------------------------------------------


def test_the_entropy_of_known_sequences():
    sequences = [[7] * 9, [1, 2, 3, 4], [1, 1, 2, 2], [0, 0, 0, 5], [3]]
    expected = [0.0, math.log(4), math.log(2), 0.75 * math.log(4 / 3) + 0.25 * math.log(4), 0.0]
    results = load("token_entropy").compute(predictions=sequences)
    assert results["token_entropies"] == pytest.approx(expected, abs=1e-12)
    assert results["token_entropy"] == pytest.approx(sum(expected) / 5, abs=1e-12)
    assert results["num_sequences"] == 5


def test_the_entropy_is_of_each_sequence_and_not_of_all_together():
    """All together, the tokens of two constant sequences have the entropy log 2."""
    assert token_entropy([[1, 1, 1], [2, 2, 2]])["token_entropy"] == 0.0


def test_the_entropy_depends_neither_on_the_order_nor_on_the_names_of_the_tokens():
    ids = torch.randint(5, (3, 40))
    expected = token_entropy(ids)["token_entropies"]
    assert token_entropy(ids[:, torch.randperm(40)])["token_entropies"] == pytest.approx(expected, abs=1e-12)
    assert token_entropy(ids * 10_000 + 3)["token_entropies"] == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx([entropy_by_hand(row.tolist()) for row in ids], abs=1e-12)


@pytest.mark.parametrize("as_input", [list, torch.stack, lambda rows: [row.tolist() for row in rows]])
def test_sequences_come_as_tensors_or_lists(as_input):
    rows = [torch.tensor([1, 2, 2]), torch.tensor([4, 4, 4])]
    expected = token_entropy(rows)
    assert token_entropy(as_input(rows)) == expected
    assert load("token_entropy").compute(predictions=as_input(rows)) == expected


@pytest.mark.parametrize(
    "sequences, message",
    [
        ([], "`sequences` must hold at least one sequence of token ids, got none"),
        ([[1], []], r"`sequences` must hold lists of at least one token id, got shape \(0,\) at index 1"),
        ([1, 2], r"`sequences` must hold lists of at least one token id, got shape \(\) at index 0"),
        ([[1, -100]], "`sequences` must hold token ids >= 0, got -100 at index 0"),
        ([[1.5, 2.0]], "`sequences` must hold integers, got torch.float32 at index 0"),
        (["text"], "`sequences` must hold token ids, got 'text' at index 0"),
    ],
)
def test_the_entropy_refuses_what_is_not_token_ids(sequences, message):
    with pytest.raises(ValueError, match=message):
        token_entropy(sequences)


@pytest.mark.parametrize("sequences, message", [([], "got none"), ([[1], []], "index 1"), ([[1, -100]], "got -100")])
def test_the_loaded_entropy_refuses_the_same(sequences, message):
    with pytest.raises(ValueError, match=message):
        load("token_entropy", keep_in_memory=True).compute(predictions=sequences)


# Generative perplexity ------------------------------------------------------------------------------------------------


def test_the_generative_perplexity_is_the_one_computed_by_hand(model, tokenizer, folder):
    ids = [[WORDS.index(word) for word in text.split()] for text in TEXTS]
    nats = [nats_by_hand(model, [tokenizer.bos_token_id, *row]) for row in ids]
    counts = [len(row) for row in ids]
    options = {"model_id": str(folder), "batch_size": 3, "add_bos": True, "device": "cpu"}
    results = load("generative_perplexity").compute(predictions=TEXTS, **options)
    # float32 logits: about 1e-6 nats per token
    assert results["text_nats"] == pytest.approx(nats, rel=1e-5)
    assert results["text_num_tokens"] == counts
    assert results["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(counts)), rel=1e-5)
    mean = sum(math.exp(total / count) for total, count in zip(nats, counts, strict=True)) / len(ids)
    assert results["mean_perplexity"] == pytest.approx(mean, rel=1e-5)
    assert results["nats_per_token"] == pytest.approx(math.log(results["perplexity"]), rel=1e-12)
    assert results["token_entropy"] == pytest.approx(sum(map(entropy_by_hand, ids)) / len(ids), abs=1e-12)
    assert (results["num_texts"], results["num_tokens"], results["num_truncated"]) == (4, sum(counts), 0)
    assert abs(results["perplexity"] - results["mean_perplexity"]) > 0.1, "these texts tell the two apart"


@pytest.mark.parametrize("how", ["no BOS in the tokenizer", "by default", "by default of the module"])
def test_without_bos_the_first_token_is_given_and_not_scored(model, tokenizer, folder, how):
    if how == "by default":
        results = generative_perplexity(TEXTS, model, tokenizer)
    elif how == "by default of the module":
        metric = load("generative_perplexity")
        results = metric.compute(predictions=TEXTS, model_id=str(folder), device="cpu")
    else:
        results = generative_perplexity(TEXTS, model, make_tokenizer(), add_bos=True)
    ids = [[WORDS.index(word) for word in text.split()] for text in TEXTS]
    assert results["text_num_tokens"] == [len(row) - 1 for row in ids]
    assert results["text_nats"] == pytest.approx([nats_by_hand(model, row) for row in ids], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_neither_padding_nor_batch_size_nor_order_changes_the_result(model, tokenizer, batch_size):
    expected = generative_perplexity(TEXTS, model, tokenizer, add_bos=True, batch_size=4)
    results = generative_perplexity(TEXTS[::-1], model, tokenizer, add_bos=True, batch_size=batch_size)
    assert results["text_nats"][::-1] == pytest.approx(expected["text_nats"], rel=1e-5)
    assert results["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    for padding_side in ("left", "right"):
        padded = make_tokenizer(bos_token="<s>", pad_token="<s>", padding_side=padding_side)
        results = generative_perplexity(TEXTS, model, padded, add_bos=True, batch_size=batch_size)
        assert results["text_nats"] == pytest.approx(expected["text_nats"], rel=1e-5)


def test_the_bos_token_counts_where_the_tokenizer_adds_its_own(model):
    """A tokenizer that puts BOS before every text would otherwise put it there twice."""
    from tokenizers.processors import TemplateProcessing

    plain, adding = make_tokenizer(bos_token="<s>"), make_tokenizer(bos_token="<s>")
    bos = ("<s>", plain.bos_token_id)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    assert adding("the value")["input_ids"][0] == plain.bos_token_id
    first, second = (generative_perplexity(TEXTS, model, x, add_bos=True) for x in (adding, plain))
    assert first == second


@pytest.mark.parametrize("max_length", [None, 6])
def test_long_texts_are_cut_to_their_first_tokens_and_counted(model, tokenizer, max_length):
    length = max_length or 12
    texts = ["the value of an object is a list of strings used the value of the list", "a list"]
    results = generative_perplexity(texts, model, tokenizer, add_bos=True, max_length=max_length)
    kept = " ".join(texts[0].split()[: length - 1])
    expected = generative_perplexity([kept, texts[1]], model, tokenizer, add_bos=True)
    assert results == {**expected, "num_truncated": 1}
    assert results["text_num_tokens"] == [length - 1, 2]


def test_the_tokenizer_limits_a_model_without_a_limit(tokenizer):
    limited = make_tokenizer(bos_token="<s>", model_max_length=4)
    model = make_model()
    model.config.get_text_config = lambda: None  # no max_position_embeddings there
    results = generative_perplexity([TEXTS[0]], model, limited)
    assert results["num_tokens"] == 3 and results["num_truncated"] == 1
    assert generative_perplexity([TEXTS[0]], model, tokenizer)["num_truncated"] == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_without_dropout_and_given_back_as_it_was(tokenizer, training):
    model = make_model(resid_pdrop=0.5, embd_pdrop=0.5).train(training)
    results = [generative_perplexity(TEXTS, model, tokenizer)["perplexity"] for _ in range(2)]
    assert results[0] == results[1] and model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_repetition_lowers_the_entropy_that_stands_beside_the_perplexity(model, tokenizer):
    repeated = generative_perplexity(["the the the the"], model, tokenizer)
    varied = generative_perplexity(["the value of strings"], model, tokenizer)
    assert repeated["token_entropy"] == 0.0 and varied["token_entropy"] == pytest.approx(math.log(4))


def test_the_nats_of_a_model_of_low_precision_are_computed_in_high_precision(tokenizer):
    """Logits of bfloat16 are what they are; in bfloat16, their log-softmax and the sum would lose 0.4 % each."""
    model = make_model().bfloat16().eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *(WORDS.index(word) for word in TEXTS[0].split())]])
    with torch.no_grad():
        log_probability = model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = -log_probability.gather(1, ids[0, 1:, None]).sum().item()
    results = generative_perplexity(TEXTS[:1], model, tokenizer, add_bos=True)
    assert results["text_nats"] == pytest.approx([expected], rel=1e-6)


def test_progress_is_shown_on_request_only(model, tokenizer, capfd):
    generative_perplexity(TEXTS, model, tokenizer)
    assert "Generative perplexity" not in capfd.readouterr().err
    generative_perplexity(TEXTS, model, tokenizer, progress=True)
    assert "Generative perplexity" in capfd.readouterr().err


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ([], {}, "`texts` must hold at least one text, got none"),
        ("the value", {}, "`texts` must be a list of texts, got one text: 'the value'"),
        (["the value", 3], {}, "`texts` must hold texts, got int at index 1"),
        (["the value", "the"], {}, "`texts` must have at least 2 tokens each, got 1 at index 1: 'the'"),
        (["the value", ""], {}, "`texts` must have at least 2 tokens each, got 0 at index 1: ''"),
        (TEXTS, {"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        (TEXTS, {"batch_size": 2.0}, "`batch_size` must be an integer >= 1, got 2.0"),
        (TEXTS, {"max_length": 1}, "`max_length` must be an integer >= 2, got 1"),
        (TEXTS, {"max_length": -3}, "`max_length` must be an integer >= 2, got -3"),
        (TEXTS, {"max_length": 13}, "`max_length` must be <= 12, the length of the model, got 13"),
    ],
)
def test_bad_texts_and_numbers_are_refused_before_any_work(model, tokenizer, texts, options, message, monkeypatch):
    monkeypatch.setattr(model, "forward", lambda **_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        generative_perplexity(texts, model, tokenizer, **options)


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    model = make_model()
    model.resize_token_embeddings(9)
    with pytest.raises(ValueError, match="`tokenizer` must give ids below 9, the vocabulary of the model, got 10"):
        generative_perplexity(TEXTS, model, tokenizer, add_bos=True)


def test_the_loaded_metric_refuses_before_it_loads_the_model(folder, monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_: pytest.fail("loaded"))
    metric = load("generative_perplexity", keep_in_memory=True)
    with pytest.raises(ValueError, match="`texts` must have at least 2 tokens each, got 1 at index 0"):
        metric.compute(predictions=["the"], model_id=str(folder))
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1, got 0"):
        metric.compute(predictions=TEXTS, model_id=str(folder), batch_size=0)
    with pytest.raises(ValueError, match="`texts` must hold at least one text, got none"):
        metric.compute(predictions=[], model_id=str(folder))
