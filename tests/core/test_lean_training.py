# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training pays for masked tokens only: the same loss and gradients as from all logits, which never exist."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import md4_hf.core.linear_nelbo as linear_nelbo_module
from md4_hf.core import triton_nll
from md4_hf.core.linear_nelbo import linear_nelbo
from md4_hf.core.masked_diffusion import cross_entropy_nats, genmd4_cross_entropy_nats
from md4_hf.core.modeling_md4_layers import MD4Head


LENGTH, VOCAB = 16, 40
MASK = VOCAB - 1
KINDS = {
    "time": {},
    "time and class": {"num_classes": 3},
    "unconditional": {"time_conditioning": False},
    "tied": {"tie_word_embeddings": True},
    "discrete": {"num_train_timesteps": 10},
    "genmd4": {"masking_schedule": "poly", "learn_masking_schedule": True},
}


def make_model(**kwargs):
    return random_model(VOCAB, LENGTH, std=0.2, **kwargs).train()


def make_batch(config, batch=5, seed=0):
    """A noised batch with its labels, some of which are not scored."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(MASK, (batch, LENGTH), generator=generator)
    labels = torch.where(torch.rand(batch, LENGTH, generator=generator) < 0.1, -100, x0)
    t = torch.linspace(0.1, 1.0, batch)
    if config.learn_masking_schedule:
        inputs = {"input_ids": x0, "mask_noise": torch.rand(batch, 2, LENGTH, generator=generator)}
    else:
        masked = (torch.rand(batch, LENGTH, generator=generator) < t[:, None]) & (labels != -100)
        inputs = {"input_ids": torch.where(masked, MASK, x0)}
    if config.num_classes is not None:
        inputs["class_labels"] = torch.arange(batch) % config.num_classes
    return {**inputs, "labels": labels, "timesteps": t}


def loss_and_gradients(model, batch, **kwargs):
    model.zero_grad()
    output = model(**batch, **kwargs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The function ---------------------------------------------------------------------------------------------------------


def head_inputs(rows=23, hidden=16, dtype=torch.float64, genmd4=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, hidden), (VOCAB, hidden), (VOCAB,)]
    learned = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    learned.append(0.5 + torch.rand(VOCAB, generator=generator, dtype=dtype) if genmd4 else None)
    target = torch.randint(MASK, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator, dtype=dtype)
    return [x if x is None else x.requires_grad_() for x in learned], target, weight


def plain_values(learned, target, weight):
    hidden_states, head, bias, exponents = learned
    logits = F.linear(hidden_states, head, bias).masked_fill(torch.arange(VOCAB) == MASK, -1e30)
    if exponents is None:
        return weight * cross_entropy_nats(logits, target)
    return weight * genmd4_cross_entropy_nats(logits, target, exponents)


def lean_values(learned, target, weight):
    hidden_states, head, bias, exponents = learned
    return linear_nelbo(hidden_states, head, bias, target, weight, MASK, exponents)


@pytest.mark.parametrize("genmd4", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 23])
@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
def test_values_and_gradients_are_those_of_the_logits(monkeypatch, genmd4, rows, rows_at_a_time):
    monkeypatch.setitem(linear_nelbo_module.LOGITS_AT_A_TIME, "cpu", rows_at_a_time * VOCAB)
    learned, target, weight = head_inputs(rows, genmd4=genmd4)
    differentiable = [x for x in learned if x is not None]
    expected = plain_values(learned, target, weight)
    total, values = lean_values(learned, target, weight)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(total, expected.sum())
    per_row = torch.arange(1.0, rows + 1, dtype=torch.float64)
    of_sum = (3.0 * total, 3.0 * expected.sum())
    of_single_values = ((per_row * values).sum() + total, ((per_row + 1) * expected).sum())
    for lean, plain in (of_sum, of_single_values):
        lean_gradients = torch.autograd.grad(lean, differentiable, retain_graph=True)
        plain_gradients = torch.autograd.grad(plain, differentiable, retain_graph=True)
        for ours, theirs in zip(lean_gradients, plain_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
        assert (lean_gradients[1][MASK] == 0).all() and lean_gradients[2][MASK] == 0, "the mask has no part in it"


@pytest.mark.parametrize("genmd4", [False, True])
def test_under_bf16_autocast_it_is_as_precise_as_the_logits(genmd4):
    learned, target, weight = head_inputs(200, 64, torch.float32, genmd4)
    learned = [x if x is None else (x * 0.3).detach().requires_grad_() for x in learned]
    exact = plain_values([x if x is None else x.double() for x in learned], target, weight.double()).sum()
    with torch.autocast("cpu", torch.bfloat16):
        plain, lean = plain_values(learned, target, weight).sum(), lean_values(learned, target, weight)[0]
    assert lean.dtype == torch.float32
    assert abs(lean - exact) < 1e-2 * abs(exact)
    differentiable = [x for x in learned if x is not None]
    gradients = (torch.autograd.grad(x, differentiable) for x in (lean, plain, exact))
    for ours, theirs, true in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        error, plain_error = ((x - true).norm() / true.norm() for x in (ours, theirs))
        assert error < 0.02 and error < 1.5 * plain_error + 1e-4


@pytest.mark.parametrize("mask_token_id", [0, MASK])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("genmd4", [False, True])
def test_parts_and_blocks_do_not_show(monkeypatch, genmd4, dtype, tolerance, mask_token_id):
    """Of 50 rows 16 at a time, the last of which are padded, in blocks of a few rows and a few tokens."""
    monkeypatch.setitem(linear_nelbo_module.LOGITS_AT_A_TIME, "cpu", 16 * VOCAB)
    monkeypatch.setattr(linear_nelbo_module, "CACHED_NUMBERS", 3 * VOCAB)
    learned, _, weight = head_inputs(50, 16, torch.float32, genmd4)
    learned = [x if x is None else (x * 0.5).detach().requires_grad_() for x in learned]
    target = torch.arange(1, 51) % (VOCAB - 1)
    target[target == mask_token_id] = 1
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        total, values = linear_nelbo(*learned[:3], target, weight, mask_token_id, learned[3])
    exact = [x if x is None else x.detach().double().requires_grad_() for x in learned]
    suppressed = torch.zeros(VOCAB, dtype=torch.float64).masked_fill(torch.arange(VOCAB) == mask_token_id, -1e30)
    nats = cross_entropy_nats if not genmd4 else lambda x, y: genmd4_cross_entropy_nats(x, y, exact[3])
    expected = weight.double() * nats(F.linear(*exact[:3]) + suppressed, target)
    assert (values - expected).norm() < tolerance * expected.norm()
    differentiable = [[x for x in given if x is not None] for given in (learned, exact)]
    ours = torch.autograd.grad(total, differentiable[0])
    theirs = torch.autograd.grad(expected.sum(), differentiable[1])
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).norm() < tolerance * other.norm()


def test_the_gradient_is_handed_over_once_and_made_again_for_a_second_pass():
    learned, target, weight = head_inputs(dtype=torch.float32)
    states, head = learned[:2]
    total, _ = linear_nelbo(states, head, None, target, weight, MASK)
    total.backward(retain_graph=True)
    first = head.grad.clone()
    (2.0 * total).backward()
    torch.testing.assert_close(head.grad, 3.0 * first)


def test_coefficients_of_any_sign_do_not_overflow_in_float16():
    """A sample that is to become less probable has a negative coefficient."""
    learned, target, weight = head_inputs(30, 16, torch.float32)
    states, head = (x.detach().half().requires_grad_() for x in learned[:2])
    gradients = []
    for sign in (1.0, -1.0):
        _, values = linear_nelbo(states, head, None, target, weight, MASK)
        gradients.append(torch.autograd.grad((sign * values).sum(), (states, head)))
    for up, down in zip(*gradients, strict=True):
        assert up.isfinite().all() and up.abs().max() > 0
        torch.testing.assert_close(up, -down)


def test_large_weights_do_not_overflow_in_float16():
    """At t near 0 the weight of a masked token is 1e4, and a hidden state of 10 times that is more than float16 has."""
    learned, target, weight = head_inputs(30, 16, torch.float32)
    states, head = (10 * learned[0]).detach().half().requires_grad_(), learned[1].detach().half().requires_grad_()
    weight = torch.full_like(weight, 1e4)
    total, _ = linear_nelbo(states, head, None, target, weight, MASK)
    gradients = torch.autograd.grad(total * 1e-5, (states, head))
    exact = [x.detach().double().requires_grad_() for x in (states, head)]
    expected = torch.autograd.grad(plain_values([*exact, None, None], target, weight.double()).sum() * 1e-5, exact)
    for ours, true in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float16 and ours.isfinite().all()
        assert (ours.double() - true).norm() < 0.02 * true.norm()


@pytest.mark.parametrize("genmd4", [False, True])
def test_frozen_parameters_get_no_gradient_and_cost_none(genmd4):
    learned, target, weight = head_inputs(genmd4=genmd4)
    expected = torch.autograd.grad(plain_values(learned, target, weight).sum(), learned[0])[0]
    states, *head_parameters = learned
    frozen = [x if x is None else x.detach() for x in head_parameters]
    with LargestTensor() as largest:
        total, values = linear_nelbo(states, frozen[0], frozen[1], target, weight, MASK, frozen[2])
        for loss in (total, values.sum()):
            (gradient,) = torch.autograd.grad(loss, states, retain_graph=True)
            torch.testing.assert_close(gradient, expected)
    assert largest.elements < VOCAB * 23 * 2


def test_a_second_derivative_is_refused():
    learned, target, weight = head_inputs()
    total, _ = lean_values(learned, target, weight)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(total, learned[0], create_graph=True)


@pytest.mark.parametrize("genmd4", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_padded_ids_change_nothing(monkeypatch, genmd4, dtype):
    """As on an accelerator, where the logits have more columns than there are ids."""
    learned, target, weight = head_inputs(genmd4=genmd4)

    def outcome():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            total, values = lean_values(learned, target, weight)
        return total, values, *torch.autograd.grad(total, [x for x in learned if x is not None])

    expected = outcome()
    monkeypatch.setitem(linear_nelbo_module.ALIGNED_IDS, "cpu", 64)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    for found, x in zip(outcome(), expected, strict=True):
        torch.testing.assert_close(found, x, **tolerance)
        assert found._base is None, "a view"


TRITON_SCRIPT = """
import torch
from md4_hf.core import triton_nll

triton_nll.LARGEST_BLOCK = 32
for vocab, width, dtype in ((50, 64, torch.float32), (28, 32, torch.bfloat16), (64, 64, torch.float16)):
    torch.manual_seed(0)
    logits = torch.randn(5, width, device=DEVICE).mul(3.0).to(dtype)
    target = torch.arange(40, 45, device=DEVICE) % (vocab - 1)
    logits[:, :3] = -torch.inf  # as of ids without a token
    logits[:, vocab:] = torch.nan  # no one has written there
    exact = logits[:, :vocab].double()
    exact[:, vocab - 1] = -torch.inf
    log_mu = exact.log_softmax(-1)
    expected = -log_mu.gather(1, target[:, None]).squeeze(1)
    gradient = log_mu.exp() - torch.nn.functional.one_hot(target, vocab)
    before = logits.clone()
    nll = triton_nll.nll_and_gradient(logits, target, vocab, vocab - 1, False)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-5)
    nll = triton_nll.nll_and_gradient(logits, target, vocab, vocab - 1, True)
    torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits[:, :vocab].double(), gradient, rtol=0.01, atol=tolerance)
    assert (logits[:, vocab:] == 0).all()
assert triton_nll.reason_against(DEVICE) is None
triton_nll._nll_kernel = None
assert "not subscriptable" in triton_nll.reason_against(DEVICE)
print("compared")
"""


def test_a_kernel_that_cannot_run_is_replaced_with_a_warning(monkeypatch):
    monkeypatch.setattr(triton_nll, "HAS_TRITON", False)
    linear_nelbo_module.triton_kernel.cache_clear()
    with pytest.warns(UserWarning, match="it is not installed"):
        assert linear_nelbo_module.triton_kernel() is None
    linear_nelbo_module.triton_kernel.cache_clear()


def test_the_kernel_in_triton_gives_the_same():
    """In Triton's interpreter where there is no GPU: it has to be chosen before Triton is imported."""
    pytest.importorskip("triton", reason="needs triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, **({} if device == "cuda" else {"TRITON_INTERPRET": "1"})}
    script = TRITON_SCRIPT.replace("DEVICE", repr(device))
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "compared\n"


def test_torch_accepts_the_operator():
    learned, target, weight = head_inputs(dtype=torch.float32)
    arguments = (*learned[:3], target, weight, None, MASK, torch.float32, [True, True, True, False])
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.md4_hf.linear_nelbo, arguments, test_utils=checks)


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_gives_the_loss_and_gradients_of_all_logits(kind, dtype):
    model = make_model(**KINDS[kind])
    batch = make_batch(model.config)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        plain, expected = loss_and_gradients(model, batch, output_logits=True)
        lean, gradients = loss_and_gradients(model, batch)
    assert lean.logits is None and plain.logits is not None
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(lean.loss, plain.loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lean.token_nelbo, plain.token_nelbo, rtol=3 * tolerance, atol=3 * tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=float(5 * tolerance * scale), msg=name)


def test_single_tokens_of_the_loss_have_their_gradient():
    model = make_model()
    batch, weight = make_batch(model.config), torch.rand(5, LENGTH)
    gradients = []
    for output_logits in (True, False):
        model.zero_grad()
        (weight * model(**batch, output_logits=output_logits).token_nelbo).sum().backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("kind", ["time", "genmd4"])
def test_no_tensor_of_masked_tokens_times_vocabulary_exists(monkeypatch, kind):
    vocab, batch = 3000, 8
    monkeypatch.setitem(linear_nelbo_module.LOGITS_AT_A_TIME, "cpu", 4 * vocab)
    model = random_model(vocab, LENGTH, std=0.02, **KINDS[kind]).train()
    x0 = torch.randint(vocab - 1, (batch, LENGTH))
    noise = {"mask_noise": torch.rand(batch, *([2] if kind == "genmd4" else []), LENGTH)}
    t = torch.full((batch,), 0.9)
    weights = max(parameter.numel() for parameter in model.parameters())
    found = {}
    for output_logits in (True, False):
        with LargestTensor() as largest:
            output = model(x0, timesteps=t, labels=x0, output_logits=output_logits, **noise)
            output.loss.backward()
        found[output_logits] = largest.elements
    masked = int((output.token_nelbo != 0).sum())
    assert found[True] >= masked * vocab, "the watch sees them where they are"
    assert found[False] <= weights < masked * vocab / 2


@pytest.mark.parametrize("wrap", ["lora", "modules_to_save", "resized"])
def test_other_heads_give_the_loss_of_their_logits(wrap):
    model = make_model()
    batch = make_batch(model.config)
    if wrap == "resized":
        model.resize_token_embeddings(VOCAB + 5)
        assert type(model.lm_head) is MD4Head
    else:
        targets = {"target_modules": ["lm_head"]} if wrap == "lora" else {"modules_to_save": ["lm_head"]}
        model = get_peft_model(model, LoraConfig(**{"target_modules": ["qkv_proj"], **targets})).train()
        for name, parameter in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    plain, lean = model(**batch, output_logits=True), model(**batch)
    torch.testing.assert_close(lean.loss, plain.loss)


def test_residual_dropout_drops_the_same_with_and_without_logits():
    model = make_model(residual_dropout=0.4)
    batch = make_batch(model.config)
    losses = []
    for output_logits in (True, False):
        torch.manual_seed(0)
        losses.append(model(**batch, output_logits=output_logits).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_hidden_states_are_whole_when_they_are_asked_for():
    model = make_model()
    batch = make_batch(model.config)
    output, expected = model(**batch, output_hidden_states=True), model(**batch)
    assert [x.shape for x in output.hidden_states] == [(5, LENGTH, 32)] * 3
    torch.testing.assert_close(output.loss, expected.loss)


# Compiled -------------------------------------------------------------------------------------------------------------


def assert_same_step(compiled, model, batch, **kwargs):
    """Compare losses and gradients of a compiled model with those of the model."""
    expected, expected_gradients = loss_and_gradients(model, batch)
    output, gradients = loss_and_gradients(compiled, batch, **kwargs)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.token_nelbo, expected.token_nelbo.detach(), rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        other = expected_gradients[name.removeprefix("_orig_mod.")]
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["time", "unconditional", "genmd4"])
def test_a_compiled_step_is_one_graph_for_any_number_of_masks(kind):
    model = make_model(**KINDS[kind])
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    bounds = [None] if kind == "genmd4" else [None, 5 * LENGTH - 8]
    for bound in bounds:
        for seed in range(3):
            batch = make_batch(model.config, seed=seed)
            with torch._dynamo.config.patch(error_on_recompile=seed > 0):
                assert_same_step(compiled, model, batch, max_masked=bound)


@pytest.mark.slow
def test_layers_compiled_one_by_one_serve_any_number_of_masks():
    model, reference = make_model(), make_model()
    torch.compiler.reset()
    for layer in model.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    for seed in range(4):
        batch = make_batch(model.config, seed=seed)
        with torch._dynamo.config.patch(error_on_recompile=seed > 1):
            assert_same_step(model, reference, batch)


def test_more_masks_than_foreseen_are_an_error():
    model = make_model()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    batch = make_batch(model.config)
    with pytest.raises(RuntimeError, match="`max_masked` must not be smaller"):
        compiled(**batch, max_masked=3)
    with pytest.raises(ValueError, match="`max_masked` must be at least the [0-9]+ masked tokens, got 3"):
        model(**batch, max_masked=3)


def test_a_compiled_step_takes_the_mask_for_the_first_token_too():
    model = random_model(VOCAB, LENGTH, std=0.2, mask_token_id=0).train()
    x0 = torch.randint(1, VOCAB, (4, LENGTH))
    labels = torch.where(torch.rand(4, LENGTH) < 0.3, -100, x0)
    labels[0, 0] = -100
    masked = (torch.rand(4, LENGTH) < 0.6) & (labels != -100)
    batch = {"input_ids": torch.where(masked, 0, x0), "labels": labels, "timesteps": torch.full((4,), 0.6)}
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for bound in (None, 4 * LENGTH - 8):
        assert_same_step(compiled, model, batch, max_masked=bound)


# Packed documents and cached keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["time", "unconditional"])
def test_packed_documents_are_denoised_as_if_each_were_alone(attention, kind):
    model = make_model(attn_implementation=attention, **KINDS[kind]).eval()
    rows = torch.randint(VOCAB, (2, LENGTH))
    document_ids = torch.tensor([[0] * 5 + [1] * 11, [4] * 8 + [2] * 1 + [3] * 7])
    t = torch.tensor([0.3, 0.8])
    packed = model(rows, timesteps=t, document_ids=document_ids).logits
    for row in range(2):
        for number in document_ids[row].unique():
            where = document_ids[row] == number
            alone = model(rows[row : row + 1, where], timesteps=t[row : row + 1]).logits[0]
            torch.testing.assert_close(packed[row, where], alone, rtol=1e-4, atol=1e-5)


def test_cached_keys_give_what_block_causal_attention_gives():
    model = make_model(time_conditioning=False, attn_implementation="sdpa").eval()
    ids, sizes = torch.randint(VOCAB, (2, 12)), (5, 3, 4)
    block = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    may_see = (block[:, None] >= block)[None, None].expand(2, 1, -1, -1)
    expected = model(ids, attention_mask=may_see).logits
    cache, found = DynamicCache(), []
    for part in ids.split(sizes, dim=1):
        found.append(model(part, past_key_values=cache).logits)
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_arguments_that_do_not_go_together_are_refused():
    ids, t = torch.zeros(1, 4, dtype=torch.long), torch.ones(1)
    with pytest.raises(ValueError, match="`past_key_values` need a model without `time_conditioning`"):
        make_model()(ids, timesteps=t, past_key_values=DynamicCache())
    model = make_model(time_conditioning=False)
    with pytest.raises(ValueError, match=r"`position_mask` must have shape \(1, 4\), got \(1, 3\)"):
        model(ids, position_mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`document_ids` must have shape \(1, 4\), got \(1, 3\)"):
        model(ids, document_ids=ids[:, :3])
    with pytest.raises(ValueError, match="`attention_mask` must be .* with `document_ids`"):
        model(ids, document_ids=ids, attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="Only one of `past_key_values` and `document_ids`"):
        model(ids, past_key_values=DynamicCache(), document_ids=ids)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="`document_ids` need eager, SDPA or flex attention"):
        model(ids, document_ids=ids)
