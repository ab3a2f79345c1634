# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Language models of transformers as networks of MD4 models: `backbone="auto"` and `from_backbone`."""

import itertools
import math
import warnings

import pytest
import torch
from clean_environment import link_packages, run_isolated
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BloomConfig,
    DynamicCache,
    EsmConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from md4_hf import LoraArguments, MD4Config, MD4ForMaskedDiffusion, add_adapter, load_adapter, make_pipeline
from md4_hf.core import modeling_md4_auto


ROWS, LENGTH, POSITIONS = 40, 12, 24
SIZES = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": POSITIONS}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
MASKED = {
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "roberta": RobertaConfig(**{**SIZES, "max_position_embeddings": POSITIONS + 1, "pad_token_id": 0}),
    "modernbert": ModernBertConfig(
        **SIZES, **IDS, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4
    ),
}
CAUSAL = {
    "gpt2": GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8),
}
FAMILIES = {**MASKED, **CAUSAL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model of each family with normal weights, saved without a tokenizer."""
    root = tmp_path_factory.mktemp("backbones")
    for seed, (name, config) in enumerate(FAMILIES.items()):
        save_language_model(config, root / name, seed)
    return root


def save_language_model(config, folder, seed=0):
    torch.manual_seed(seed)
    auto = AutoModelForMaskedLM if config.model_type in (*MASKED, "esm") else AutoModelForCausalLM
    model = auto.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def open_source(folder, name, **options):
    auto = AutoModelForMaskedLM if name in MASKED else AutoModelForCausalLM
    return auto.from_pretrained(folder / name, **options).eval()


def some_ids(batch=2, length=LENGTH):
    """Ids with masks, and none of the padding, which RoBERTa reads positions from."""
    ids = torch.randint(3, ROWS, (batch, length), generator=torch.Generator().manual_seed(0))
    ids[:, ::3] = ROWS
    return ids


def clean_ids(batch=2, length=LENGTH):
    return torch.randint(3, ROWS, (batch, length), generator=torch.Generator().manual_seed(1))


def tokenizer_of(num_tokens, mask_token=None):
    vocab = {f"t{i}": i for i in range(num_tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask_token)


each_family = pytest.mark.parametrize("name", FAMILIES)
each_causal = pytest.mark.parametrize("name", CAUSAL)


# The function that it begins as ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_logits_are_those_of_the_masked_language_model(folders, name):
    ids = clean_ids()
    logits = MD4ForMaskedDiffusion.from_backbone(folders / name)(ids).logits
    assert_close(logits[..., :ROWS], open_source(folders, name)(ids).logits, rtol=0, atol=1e-6)
    assert (logits[..., ROWS] == torch.finfo(logits.dtype).min).all()  # of the mask


@each_causal
@pytest.mark.parametrize("predicts_next", [False, True])
def test_logits_are_those_of_the_causal_language_model_shifted_where_it_predicts_the_next(
    folders, name, predicts_next
):
    ids = clean_ids()
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, is_causal=True, predicts_next=predicts_next)
    expected = open_source(folders, name)(ids).logits
    if predicts_next:
        expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    assert_close(model(ids).logits[..., :ROWS], expected, rtol=0, atol=1e-6)


@each_causal
def test_causal_models_attend_both_ways_unless_they_are_kept_causal(folders, name):
    ids = clean_ids()
    other = ids.clone()
    other[:, -1] = 3
    for is_causal in (False, True):
        model = MD4ForMaskedDiffusion.from_backbone(folders / name, is_causal=is_causal)
        assert model.config.backbone_config.is_causal == is_causal
        same = torch.isclose(model(ids).logits[:, 0], model(other).logits[:, 0], rtol=0, atol=1e-6).all()
        assert same == is_causal
    expected = open_source(folders, name)(ids, is_causal=False).logits
    model = MD4ForMaskedDiffusion.from_backbone(folders / name)
    assert_close(model(ids).logits[..., :ROWS], expected, rtol=0, atol=1e-6)


@each_family
def test_it_comes_back_from_disk_and_as_any_model(folders, name, tmp_path):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, masking_schedule="cosine", schedule_eps=1e-3)
    model.save_pretrained(tmp_path)
    for loaded in (MD4ForMaskedDiffusion.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded.config.backbone_config) is type(FAMILIES[name])
        assert loaded.config.masking_schedule == "cosine"
        assert_close(loaded(some_ids()).logits, model(some_ids()).logits, rtol=0, atol=0)
    config = MD4Config.from_pretrained(tmp_path)
    assert MD4Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings == FAMILIES[name].tie_word_embeddings


@pytest.mark.slow
def test_a_saved_folder_opens_without_the_package(folders, tmp_path):
    names = ("roberta", "qwen3")
    for name in names:
        model = MD4ForMaskedDiffusion.from_backbone(folders / name, predicts_next=name == "qwen3")
        model.save_pretrained(tmp_path / name)
        torch.save(model(some_ids()).logits, tmp_path / f"{name}.pt")
    code = f"""import importlib.util, torch
assert importlib.util.find_spec("md4_hf") is None
from transformers import AutoModel, AutoModelForMaskedLM
for name in {names}:
    for loader in (AutoModel, AutoModelForMaskedLM):
        model = loader.from_pretrained(f"{tmp_path}/{{name}}", trust_remote_code=True)
        ids = torch.tensor({some_ids().tolist()})
        assert torch.equal(model(ids).logits, torch.load(f"{tmp_path}/{{name}}.pt")), name
print("done")
"""
    packages = link_packages(tmp_path / "site", "torch", "transformers")
    assert "done" in run_isolated(packages, code, tmp_path / "home")


# Attention ------------------------------------------------------------------------------------------------------------


@each_family
def test_eager_attention_and_sdpa_agree_with_padding_on_either_side(folders, name):
    ids, models = some_ids(), {}
    for implementation in ("eager", "sdpa"):
        models[implementation] = MD4ForMaskedDiffusion.from_backbone(
            folders / name, attn_implementation=implementation, predicts_next=True
        )
        config = models[implementation].config
        assert config._attn_implementation == config.backbone_config._attn_implementation == implementation
    eager, sdpa = models.values()
    alone = eager(ids[:, :8]).logits
    assert_close(sdpa(ids[:, :8]).logits, alone, rtol=0, atol=1e-5)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    for model in models.values():
        assert_close(model(ids, attention_mask=mask).logits[:, :8], alone, rtol=0, atol=1e-5)
        left = torch.cat([torch.full((2, 4), 5), ids[:, :8]], dim=1)
        positions = (torch.arange(LENGTH) - 4).clamp(min=0)[None]
        logits = model(left, attention_mask=mask.flip(1), position_ids=positions).logits[:, 4:]
        assert_close(logits, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "modernbert"])
@pytest.mark.parametrize("predicts_next", [False, True])
def test_packed_documents_do_not_see_each_other(folders, name, predicts_next):
    ids = some_ids(length=10)
    for implementation in ("eager", "sdpa"):
        model = MD4ForMaskedDiffusion.from_backbone(
            folders / name, attn_implementation=implementation, predicts_next=predicts_next
        )
        document_ids = torch.tensor([[0] * 4 + [1] * 6]).expand(2, -1)
        packed = model(ids, document_ids=document_ids).logits
        alone = torch.cat([model(ids[:, :4]).logits, model(ids[:, 4:]).logits], dim=1)
        assert_close(packed, alone, rtol=0, atol=1e-5)


def test_masks_of_pairs_are_refused_where_layers_have_windows(folders):
    model = MD4ForMaskedDiffusion.from_backbone(folders / "modernbert")
    with pytest.raises(ValueError, match="`document_ids` must not .* sliding windows of 2"):
        model(some_ids(), document_ids=torch.zeros(2, LENGTH, dtype=torch.long))
    with pytest.raises(ValueError, match="`attention_mask` must not .* sliding windows of 2"):
        model(some_ids(), attention_mask=torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool))


def test_masks_of_pairs_are_refused_by_models_that_read_masks_of_rows_only(tmp_path):
    save_language_model(BloomConfig(vocab_size=ROWS, hidden_size=32, n_layer=1, n_head=4), tmp_path)
    model = MD4ForMaskedDiffusion.from_backbone(tmp_path)
    with pytest.raises(ValueError, match="`document_ids` must not .* without transformers' attention interface"):
        model(some_ids(), document_ids=torch.zeros(2, LENGTH, dtype=torch.long))


def test_a_window_that_is_longer_than_the_row_is_no_obstacle(tmp_path):
    config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=64)
    model = MD4ForMaskedDiffusion.from_backbone(save_language_model(config, tmp_path))
    document_ids = torch.tensor([[0] * 4 + [1] * 8]).expand(2, -1)
    alone = torch.cat([model(some_ids()[:, :4]).logits, model(some_ids()[:, 4:]).logits], dim=1)
    assert_close(model(some_ids(), document_ids=document_ids).logits, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_mask_of_booleans_for_pairs_hides_what_is_false(folders, name, implementation):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, attn_implementation=implementation)
    is_open = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    ids, other = some_ids(), some_ids()
    other[:, -1] = 3
    logits = [model(x, attention_mask=is_open).logits[:, :-1] for x in (ids, other)]
    assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_learned_positions_limit_the_length(folders, name):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name)
    assert model.config.max_position_embeddings == POSITIONS
    model(some_ids(1, POSITIONS))
    with pytest.raises(ValueError, match=f"`input_ids` must have at most {POSITIONS} tokens, .* got {POSITIONS + 1}"):
        model(some_ids(1, POSITIONS + 1))


# Training -------------------------------------------------------------------------------------------------------------


@each_family
def test_the_lean_loss_is_the_loss_from_all_logits(folders, name):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, predicts_next=name in CAUSAL).train()
    labels, timesteps = clean_ids(), torch.tensor([0.3, 0.7])
    gradients = []
    for output_logits in (False, True):
        torch.manual_seed(3)  # of the dropout
        outputs = model(some_ids().where(some_ids() == ROWS, labels), timesteps, labels, output_logits=output_logits)
        outputs.loss.backward()
        gradients.append([outputs.loss.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    assert_close(*gradients, rtol=1e-4, atol=1e-5)


@each_family
def test_gradient_checkpointing_changes_no_gradient(folders, name):
    gradients = []
    for checkpointing in (False, True):
        model = MD4ForMaskedDiffusion.from_backbone(folders / name).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        torch.manual_seed(3)
        labels = clean_ids()
        model(some_ids().where(some_ids() == ROWS, labels), torch.tensor([0.3, 0.7]), labels).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(*gradients, rtol=1e-5, atol=1e-6)


@each_family
def test_the_head_runs_at_chosen_positions_only(folders, name):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, predicts_next=name in CAUSAL)
    position_mask = some_ids() == ROWS
    assert_close(model(some_ids(), position_mask=position_mask).logits, model(some_ids()).logits[position_mask])


@each_family
def test_hidden_states_and_attentions_are_the_backbone_s(folders, name):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, attn_implementation="eager")
    outputs = model(clean_ids(), output_hidden_states=True, output_attentions=True)
    source = open_source(folders, name, attn_implementation="eager")
    options = {"is_causal": False} if name in CAUSAL else {}
    expected = source(clean_ids(), output_hidden_states=True, output_attentions=True, **options)
    assert_close(outputs.hidden_states, expected.hidden_states)
    assert_close(outputs.attentions, expected.attentions)


@pytest.mark.parametrize("name", ["gpt2", "modernbert", "qwen2"])
def test_an_adapter_with_its_base_is_the_merged_model(folders, name, tmp_path):
    base = MD4ForMaskedDiffusion.from_backbone(folders / name)
    base.save_pretrained(tmp_path / "base")
    base = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the orientation of GPT-2's weights
        adapted = add_adapter(base, LoraArguments(lora_r=2))
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = adapted.eval()(some_ids()).logits
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "base")
    assert not torch.allclose(fresh(some_ids()).logits, expected, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = load_adapter(fresh, str(tmp_path / "adapter")).merge_and_unload()
    assert_close(merged(some_ids()).logits, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_bound_of_an_exact_denoiser_is_minus_log_p(folders):
    """Over independent tokens, the sum over numbers of masks n of 1/n times the mean over masks of this size."""
    model = MD4ForMaskedDiffusion.from_backbone(folders / "bert")
    log_p = torch.randn(ROWS, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    model.lm_head.weight.zero_()
    model.lm_head.bias[:ROWS] = log_p
    x0, bound = torch.tensor([[7, 3, 20]]), 0.0
    for n in (1, 2, 3):
        subsets = [list(subset) for subset in itertools.combinations(range(3), n)]
        for subset in subsets:
            xt = x0.clone()
            xt[0, subset] = ROWS
            loss = model(xt, labels=x0, timesteps=torch.tensor([1.0]))  # the weight of t = 1 is near 1
            weight = model.masking_process.weight(torch.tensor([1.0])).item()
            bound += loss.token_nelbo.sum().item() / weight / n / len(subsets)
    assert bound == pytest.approx(-log_p[x0].sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["roberta", "qwen3"])
def test_a_pipeline_samples_from_it(folders, name):
    pipeline = make_pipeline(MD4ForMaskedDiffusion.from_backbone(folders / name, predicts_next=name == "qwen3"))
    output = pipeline(
        num_samples=2, length=8, num_inference_steps=4, output_type="ids", generator=torch.Generator().manual_seed(0)
    )
    assert output.sequences.shape == (2, 8) and (output.sequences < ROWS).all()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_cached_keys_stand_for_the_tokens_before(folders, name):
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, is_causal=True)
    cache = DynamicCache()
    model(clean_ids()[:, :5], past_key_values=cache)
    rest = model(clean_ids()[:, 5:], past_key_values=cache).logits
    assert_close(rest, model(clean_ids()).logits[:, 5:], rtol=0, atol=1e-5)


def test_a_backbone_is_tried_with_the_attention_that_it_will_have(folders, monkeypatch):
    tried, probe = [], modeling_md4_auto.probe

    def spy(language_model, *args):
        tried.append(language_model.config._attn_implementation)
        return probe(language_model, *args)

    monkeypatch.setattr(modeling_md4_auto, "probe", spy)
    MD4ForMaskedDiffusion.from_backbone(folders / "llama", attn_implementation="eager")
    MD4ForMaskedDiffusion.from_backbone(folders / "llama")
    assert tried == ["eager"] * 4 + ["sdpa"] * 4


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_new_mask_begins_as_the_mean_of_the_tokens(folders, name):
    """The tokenizer has 30 of the 40 rows: the mask is 30, the rows above have no token."""
    source = open_source(folders, name)
    model = MD4ForMaskedDiffusion.from_backbone(folders / name, tokenizer_of(30))
    assert (model.config.vocab_size, model.config.mask_token_id) == (ROWS, 30)
    assert model.config.unused_token_ids == [[31, ROWS]]
    for own, old in (
        (model.get_input_embeddings(), source.get_input_embeddings()),
        (model.lm_head, source.get_output_embeddings()),
    ):
        assert_close(own.weight[30], old.weight[:30].mean(dim=0))
        assert_close(own.weight[:30], old.weight[:30], rtol=0, atol=0)
    logits = model(clean_ids() % 30).logits
    assert (logits[..., 30:] == torch.finfo(logits.dtype).min).all()


def test_a_mask_token_of_the_tokenizer_is_used_as_it_is(folders):
    model = MD4ForMaskedDiffusion.from_backbone(folders / "bert", tokenizer_of(ROWS, mask_token="t4"))
    assert (model.config.vocab_size, model.config.mask_token_id, model.config.unused_token_ids) == (ROWS, 4, None)
    rows = open_source(folders, "bert").get_input_embeddings().weight
    assert_close(model.get_input_embeddings().weight, rows, rtol=0, atol=0)


def test_a_mask_that_the_caller_added_to_the_model_s_own_tokenizer_is_new(folders, tmp_path):
    source = open_source(folders, "llama")
    source.save_pretrained(tmp_path)
    tokenizer_of(30).save_pretrained(tmp_path)
    model = MD4ForMaskedDiffusion.from_backbone(tmp_path, tokenizer_of(31, mask_token="t30"))
    expected = source.get_input_embeddings().weight[:30].mean(dim=0)
    assert_close(model.get_input_embeddings().weight[30], expected)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(folders):
    with pytest.raises(ValueError, match="`tokenizer` must have ids below .* 40, got up to 41"):
        MD4ForMaskedDiffusion.from_backbone(folders / "llama", tokenizer_of(42))


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, options, message",
    [
        (MambaConfig(vocab_size=ROWS, hidden_size=32, num_hidden_layers=1), {}, "attend to all tokens, got 'mamba'"),
        (T5Config(vocab_size=ROWS, d_model=16, num_layers=1), {}, "masked or a causal language model, got 't5'"),
        (
            GPTNeoConfig(
                vocab_size=ROWS, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]]
            ),
            {},
            "`is_causal` must be True .* 'gpt_neo'",
        ),
        (Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=1), {}, "logits are linear"),
        (EsmConfig(**SIZES, pad_token_id=1, mask_token_id=3), {}, "logits are linear"),  # a bias behind the head
        (
            JambaConfig(
                **SIZES, num_key_value_heads=2, attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False
            ),
            {},
            "layers of .*linear_attention",
        ),
        (MASKED["bert"], {"is_causal": True}, "`is_causal` must be False for a masked language model"),
        (CAUSAL["llama"], {"time_conditioning": True}, '`time_conditioning` must be left out with `backbone="auto"`'),
        (CAUSAL["llama"], {"num_classes": 3}, '`num_classes` must be left out with `backbone="auto"`'),
    ],
)
def test_other_kinds_of_models_are_refused(config, options, message, tmp_path):
    if config.model_type == "t5":
        config.save_pretrained(tmp_path)
    else:
        save_language_model(config, tmp_path)
    with pytest.raises(ValueError, match=message):
        MD4ForMaskedDiffusion.from_backbone(tmp_path, **options)


def test_fields_of_the_configuration_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match='`backbone_config` must be given with "auto"'):
        MD4Config(backbone="auto")
    with pytest.raises(ValueError, match='`backbone_config` must be given with "auto"'):
        MD4Config(backbone_config=CAUSAL["llama"])
    with pytest.raises(ValueError, match="`backbone_config` must have a `model_type`, got None"):
        MD4Config(backbone="auto", backbone_config={"hidden_size": 3})
    with pytest.raises(ValueError, match="`predicts_next` must be False"):
        MD4Config(predicts_next=True)


def test_the_length_is_at_most_the_backbone_s():
    sizes = {"backbone": "auto", "backbone_config": CAUSAL["llama"].to_dict()}
    assert MD4Config(**sizes).max_position_embeddings == POSITIONS
    config = MD4Config(**sizes, max_position_embeddings=8)
    assert config.sample_shape == (8,) and config.hidden_size == 32 and not config.time_conditioning
    assert math.prod(config.sample_shape) == 8
