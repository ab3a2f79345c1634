# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samplers of LLaDA, Dream, Fast-dLLM and ReMDM: their recorded steps and runs are ours.

Their programs may predict the mask token, and draw ids without a token. Here the network of a record is therefore used
with a mask id of its own, one above its vocabulary: its mask is a token among others, which can be told apart.
"""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from peers import publish, state_of, words_tokenizer
from test_planned_sampling import CallRecorder
from tiny import quiet
from torch import nn
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, MD4ForMaskedDiffusion, make_schedule
from md4_hf.core.opening_orders import make_order
from md4_hf.core.remasking import make_remasking
from md4_hf.core.reverse_steps import RowMemory, StepPlan
from md4_hf.hub.convert import convert


LLADA, DREAM, FAST, REMDM = (f"peers/{name}" for name in ("llada_h64", "dream_h64", "fastdllm_steps", "remdm_steps"))
MASK = 128  # ours; the vocabulary of the networks has 128 ids


class PeerNetwork(nn.Module):
    """Network of a record with all its logits, also that of its own mask, which it sees where `MASK` is."""

    def __init__(self, model, own_mask):
        super().__init__()
        self.model, self.own_mask = model, own_mask
        self.config = SimpleNamespace(
            mask_token_id=MASK, vocab_size=MASK + 1, max_position_embeddings=64, time_conditioning=False
        )

    def forward(self, input_ids, timesteps=None, attention_mask=None, position_mask=None, class_labels=None):
        ids = input_ids.masked_fill(input_ids == MASK, self.own_mask)
        states = self.model.model(ids, attention_mask=attention_mask).last_hidden_state
        logits = nn.functional.pad(self.model.lm_head(states), (0, 1))
        return SimpleNamespace(logits=logits if position_mask is None else logits[position_mask])


@pytest.fixture(scope="module")
def network(golden, tmp_path_factory):
    """`network(case)` gives the network of a record, converted by this package."""
    made = {}

    def network_of(case):
        if case not in made:
            tensors, record = golden(case)
            root = tmp_path_factory.mktemp("peer")
            source = publish(root / "published", state_of(tensors), record["config"])
            words_tokenizer(record["tokenizer_size"]).save_pretrained(source)
            convert(source, root / "converted")
            model = MD4ForMaskedDiffusion.from_pretrained(root / "converted").eval()
            made[case] = PeerNetwork(model, record["mask_token_id"])
        return made[case]

    return network_of


def ours(ids, own_mask):
    """Ids of a record with our mask in place of its own."""
    return ids.masked_fill(ids == own_mask, MASK)


def scheduler_of(**options):
    settings = {"timestep_grid": "uniform", "schedule_eps": 0.0, **options}
    return MaskedDiffusionScheduler(MASK, **settings)


def before_and_after(tensors, run, own_mask):
    """Pairs of the ids before and after each step of a recorded run."""
    return list(pairwise(ours(torch.cat([tensors[f"{run}/start"][None], tensors[f"{run}/states"]]), own_mask)))


@pytest.mark.parametrize(("case", "name"), [(LLADA, "logits"), (DREAM, "logits_shifted")])
@torch.no_grad()
def test_all_logits_of_the_network_are_those_of_the_record(golden, network, case, name):
    tensors, record = golden(case)
    logits = network(case)(ours(tensors["inputs/input_ids"], record["mask_token_id"])).logits[..., :MASK]
    torch.testing.assert_close(logits, tensors[f"outputs/{name}"], atol=1e-4, rtol=0.0)


# LLaDA ----------------------------------------------------------------------------------------------------------------

# Not here: `random`, which ranks by given numbers (our "random" is the ancestral sampler), and the runs in which tokens
# of the end are ranked as if they had probability 0.
LLADA_RUNS = ["one_block", "blocks", "uneven", "more_steps", "cfg", "padded_batch", "cfg_padded_batch"]
LLADA_RUNS += ["logits_eos_inf", "gumbel"]


@torch.no_grad()
def llada_logits(net, ids, mask, prompt, settings, eos):
    """Logits of a step with the guidance and the suppression of a run."""
    logits = net(ids, attention_mask=mask).logits
    if settings.get("cfg_scale"):
        without = net(ids.masked_fill(prompt, MASK), attention_mask=mask).logits
        logits = without + (settings["cfg_scale"] + 1.0) * (logits - without)
    return logits.index_fill(-1, torch.tensor([eos]), -torch.inf) if settings.get("logits_eos_inf") else logits


@pytest.mark.parametrize("run", LLADA_RUNS)
def test_each_step_of_llada_is_a_step_by_confidence(golden, network, run):
    """From its state before the step, with its quota: its mask, which it may predict, is one of our tokens here.

    A predicted mask stays open in LLaDA, competes again in later blocks, and may be left over: we never predict it.
    """
    tensors, record = golden(LLADA)
    own_mask, settings, name = record["mask_token_id"], record["generate"][run], f"generate/{run}"
    start, quotas = ours(tensors[f"{name}/start"], own_mask), tensors[f"{name}/num_transfer_tokens"]
    _, batch, steps = quotas.shape
    prompt, length = start != MASK, settings["block_length"]
    mask = tensors.get(f"{name}/attention_mask")
    mask = None if mask is None else torch.cat([mask, mask.new_ones(batch, settings["gen_length"])], dim=1)
    temperature = settings.get("temperature", 0.0)
    scheduler = scheduler_of(order="candidate" if temperature else "confidence", num_inference_steps=steps)
    begin = tensors[f"{name}/prompt"].shape[1]
    for index, (before, after) in enumerate(before_and_after(tensors, name, own_mask)):
        block, step = divmod(index, steps)
        end = begin + (block + 1) * length  # behind it nothing is decided
        logits = llada_logits(network(LLADA), before, mask, prompt, settings, record["eos_token_id"])[:, :end]
        sample, forced = before[:, :end], None
        if temperature:
            uniform = tensors[f"{name}/uniform"][index][:, :end]
            forced = (logits[..., :MASK].double().exp() / (-uniform.log()) ** temperature).argmax(-1)
        t = scheduler.timesteps[step]
        plan = scheduler.plan_step(t, sample)
        plan = replace(plan, quota=quotas[block, :, step], candidates=sample == MASK)
        found = scheduler.step(logits, t, sample, plan=plan, temperature=temperature, forced_tokens=forced)
        assert torch.equal(ours(found.prev_sample, own_mask), after[:, :end])
        assert torch.equal(before[:, end:], after[:, end:])


@pytest.mark.parametrize("run", LLADA_RUNS)
def test_the_quota_of_llada_is_ceil(golden, run):
    """Of as many masks as a block has at its start: with a predicted mask, LLaDA opens fewer later, we do not."""
    tensors, record = golden(LLADA)
    quotas, length = tensors[f"generate/{run}/num_transfer_tokens"], record["generate"][run]["block_length"]
    steps = quotas.shape[2]
    scheduler = scheduler_of(order="confidence", num_inference_steps=steps)
    sample = torch.full((1, length), MASK)
    for step, t in enumerate(scheduler.timesteps):
        output = scheduler.step(torch.zeros(1, length, MASK + 1), t, sample, temperature=0.0)
        assert (quotas[:, :, step] == output.committed_mask.sum()).all()
        sample = output.prev_sample


def states_of(pipe, rows, **arguments):
    """The sample after each step of a run of the pipeline."""
    states = []

    def note(pipe, step, t, tensors):
        states.append(tensors["sample"].clone())
        return {}

    pipe(input_ids=rows, temperature=0.0, output_type="ids", callback_on_step_end=note, **arguments)
    return states


@pytest.mark.parametrize("run", ["one_block", "logits_eos_inf", "uneven", "cfg", "padded_batch", "cfg_padded_batch"])
def test_whole_runs_of_llada_are_runs_of_the_pipeline(golden, network, run):
    """Those in which no mask is predicted; each row alone, as padding is on the left there."""
    tensors, record = golden(LLADA)
    settings, own_mask, name = record["generate"][run], record["mask_token_id"], f"generate/{run}"
    steps = tensors[f"{name}/num_transfer_tokens"].shape[2]
    pipe = quiet(MaskedDiffusionPipeline(network(LLADA), scheduler_of(order="confidence", num_inference_steps=steps)))
    arguments = {"block_length": settings["block_length"], "use_cache": False}
    arguments["guidance_scale"] = settings.get("cfg_scale", 0.0) + 1.0
    arguments["suppress_tokens"] = [record["eos_token_id"]] if settings.get("logits_eos_inf") else None
    start, mask = ours(tensors[f"{name}/start"], own_mask), tensors.get(f"{name}/attention_mask")
    for row, ids in enumerate(start):
        padding = 0 if mask is None else int((mask[row] == 0).sum())
        states = torch.cat(states_of(pipe, ids[None, padding:], **arguments))
        assert torch.equal(states, ours(tensors[f"{name}/states"][:, row, padding:], own_mask))


# Dream ----------------------------------------------------------------------------------------------------------------

DREAM_ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}
DREAM_RUNS = ["maskgit_plus", "maskgit_plus_steps_as_tokens", "maskgit_plus_infill", "topk_margin", "entropy"]
DREAM_RUNS += ["entropy_alg_temp_0", "entropy_default_top_k", "entropy_top_p", "entropy_top_k", "margin_top_p_top_k"]
DREAM_RUNS += ["entropy_temperature", "maskgit_plus_temperature", "alg_temp", "padded_batch", "padded_batch_entropy"]
DREAM_RUNS += ["eps"]


def dream_scheduler(settings, **options):
    """The scheduler of a run: its times from 1 to eps are those of the linear schedule with eps / (1 + eps)."""
    eps = settings["eps"] / (1.0 + settings["eps"])
    return scheduler_of(num_inference_steps=settings["steps"], quota="floor", schedule_eps=eps, **options)


def dream_warpers(settings):
    """Changes of the logits that Dream ranks by, as transformers' own processors, in its order."""
    warpers = []
    if settings["temperature"] > 0:
        warpers.append(TemperatureLogitsWarper(settings["temperature"]))
    if settings["top_p"] is not None:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    if settings["top_k"] is not None:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    return warpers


@pytest.mark.parametrize("run", DREAM_RUNS)
def test_whole_runs_of_dream_are_runs_of_the_pipeline(golden, network, run):
    """Dream ranks by tempered and cut probabilities, ours by those of the denoiser: a processor makes them so.

    Its draw of candidates was recorded as an arg max, and its ranking by `alg_temp` as the largest weights. A predicted
    mask stays open: here one is predicted in the last step only, and left over.
    """
    tensors, record = golden(DREAM)
    settings, own_mask, name = record["generate"][run], record["mask_token_id"], f"generate/{run}"
    pipe = MaskedDiffusionPipeline(network(DREAM), dream_scheduler(settings, order=DREAM_ORDERS[settings["alg"]]))
    start, mask = ours(tensors[f"{name}/start"], own_mask), tensors.get(f"{name}/attention_mask")
    padding = [0] * len(start) if mask is None else (mask == 0).sum(dim=1).tolist()
    rows = [row[count:] for row, count in zip(start, padding, strict=True)]  # ours is padded on the right
    states = states_of(quiet(pipe), [row.tolist() for row in rows], logits_processor=dream_warpers(settings))
    expected = ours(tensors[f"{name}/states"], own_mask)
    assert len(states) == len(expected)
    for found, after in zip(states, expected, strict=True):
        for row, count in enumerate(padding):
            assert torch.equal(ours(found[row, : len(rows[row])], own_mask), after[row, count:])


def test_an_order_temperature_has_the_weights_of_dream(golden, network):
    tensors, record = golden(DREAM)
    name, settings = "generate/alg_temp", record["generate"]["alg_temp"]
    order = make_order("confidence", temperature=settings["alg_temp"])
    steps = before_and_after(tensors, name, record["mask_token_id"])
    for (before, _), weights in zip(steps, tensors[f"{name}/transfer_weights"], strict=True):
        with torch.no_grad():
            mu = network(DREAM)(before).logits[0, :, :MASK].double().softmax(-1)
        scores = order.score(mu, torch.arange(before.shape[1])).masked_fill(before[0] != MASK, -torch.inf)
        found = (scores / order.temperature).softmax(-1)
        torch.testing.assert_close(found.float(), weights[0], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("run", ["origin", "origin_batch"])
def test_each_step_of_dreams_random_order_is_an_ancestral_step(golden, network, run):
    tensors, record = golden(DREAM)
    settings, own_mask, name = record["generate"][run], record["mask_token_id"], f"generate/{run}"
    scheduler, mask = dream_scheduler(settings), tensors.get(f"{name}/attention_mask")
    mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), settings["max_new_tokens"])], dim=1)
    opens = scheduler.unmask_probabilities()
    for step, (before, after) in enumerate(before_and_after(tensors, name, own_mask)):
        candidates = (before == MASK) & (tensors[f"{name}/uniform"][step] < opens[step])
        plan = StepPlan(candidates, torch.zeros(*before.shape, 2, dtype=torch.float64))
        with torch.no_grad():
            logits = network(DREAM)(before, attention_mask=mask).logits
        found = scheduler.step(logits, scheduler.timesteps[step], before, plan=plan, temperature=0.0).prev_sample
        assert torch.equal(ours(found, own_mask), after)


# Fast-dLLM ------------------------------------------------------------------------------------------------------------

FAST_RULES = {
    **{f"threshold/{x}": {"order": "threshold", "threshold": float(x)} for x in ("0.3", "0.6", "0.9")},
    **{f"factor/{x}": {"order": "factor", "factor": float(x)} for x in ("0.5", "1", "2")},
    "fixed/transfer": {"order": "confidence"},
}


@pytest.mark.parametrize("rule", FAST_RULES)
def test_the_rules_of_fast_dllm_select_the_same_positions(golden, rule):
    """But for one quirk of its factor rule: where all but the very last position pass, the last goes along."""
    tensors, record = golden(FAST)
    x, own_mask = tensors["inputs/x"], record["mask_token_id"]
    sample = x.masked_fill(x == own_mask, own_mask + 1)
    logits = nn.functional.pad(tensors["inputs/logits"], (0, 1))
    scheduler = MaskedDiffusionScheduler(own_mask + 1, num_inference_steps=100, **FAST_RULES[rule])
    plan = scheduler.plan_step(1.0, sample)
    if rule == "fixed/transfer":
        plan = replace(plan, quota=tensors["fixed/num_transfer_tokens"])
    output = scheduler.step(logits, 1.0, sample, plan=plan, temperature=0.0)
    expected, number = tensors[rule].bool(), (sample == own_mask + 1).sum(dim=1)
    goes_along = (expected.sum(dim=1) == number) & (output.committed_mask.sum(dim=1) == number - 1)
    assert not goes_along.any() or rule.startswith("factor")
    assert torch.equal(output.committed_mask[~goes_along], expected[~goes_along]) and (~goes_along).any()
    if rule == "fixed/transfer":
        decided = output.committed_mask
        assert torch.equal(output.prev_sample[decided], tensors["fixed/x0"][decided])


@pytest.mark.parametrize("run", ["threshold", "steps"])
def test_whole_runs_of_fast_dllm_are_runs_of_the_pipeline(golden, network, run):
    """Without cache, with as many calls of the network. Its caches are approximations, and others than ours."""
    tensors, record = golden(FAST)
    own_mask, settings = golden(LLADA)[1]["mask_token_id"], record["runs"][f"generate/{run}"]
    order = {"order": "threshold" if run == "threshold" else "confidence", "threshold": settings.get("threshold")}
    scheduler = scheduler_of(num_inference_steps=settings["steps"] // 2)
    recorder = CallRecorder(network(LLADA))
    found = quiet(MaskedDiffusionPipeline(network(LLADA), scheduler))(
        input_ids=tensors["run/prompt"],
        gen_length=settings["gen_length"],
        block_length=settings["block_length"],
        use_cache=False,
        suppress_tokens=[own_mask],
        temperature=0.0,
        output_type="seq",
        **order,
    ).sequences
    recorder.hook.remove()
    states, seen = (
        ours(tensors[f"run/generate/{run}/states"], own_mask),
        [call["input_ids"] for call in recorder.calls],
    )
    assert torch.equal(found, states[-1]) and torch.equal(torch.stack(seen[1:]), states[:-1])
    assert len(seen) == tensors[f"run/generate/{run}/network_calls"]


# ReMDM ----------------------------------------------------------------------------------------------------------------


def remdm_cases(golden):
    """Cases whose sampler is one of ours. Not `forward-backward`, whose sigma (b - a) / a has no bound."""
    tensors, record = golden(REMDM)
    cases = {name: x for name, x in record["cases"].items() if x.get("sampler") != "forward-backward"}
    return tensors, record["mask_token_id"], cases


def remasking_of(name, settings):
    """Our remasking of a case."""
    if name.startswith("dfm"):
        return make_remasking("flow")
    if settings["sampler"] == "mdlm":
        return make_remasking(None)
    loop = {
        "loop_start": settings.get("t_on"),
        "loop_end": settings.get("t_off"),
        "loop_alpha": settings.get("alpha_on"),
    }
    kind = settings["sampler"].removeprefix("remdm-")
    return make_remasking({"conf": "confidence"}.get(kind, kind), eta=settings.get("eta"), **loop)


def nucleus(p, top_p):
    """Probabilities cut as in ReMDM: tokens whose cumulative sum, their own included, is at most top_p, and the best.

    Ours keep the fewest tokens that reach top_p, one more in general.
    """
    ordered = p.sort(dim=-1, descending=True)
    kept = ordered.values.cumsum(dim=-1) <= top_p
    kept[..., 0] = True
    cut = torch.zeros_like(p).scatter(-1, ordered.indices, ordered.values * kept)
    return cut / cut.sum(dim=-1, keepdim=True)


def test_the_weights_of_remdm_are_ours(golden):
    """r p and 1 - r at open positions, 1 - sigma and sigma at decided ones; then the same tokens by its numbers.

    Where its step masks nothing again it keeps decided tokens whatever their weights, which are not compared then. Of
    the loop there are no steps over its ends, where ReMDM continues with the alpha of the part that it comes from.
    """
    tensors, mask, cases = remdm_cases(golden)
    xt, uniform = tensors["inputs/xt"], tensors["inputs/uniform"]
    logits = tensors["inputs/logits"].double()
    logits[..., mask] = -torch.inf
    open_ = xt == mask
    confidence = -tensors["inputs/confidence"].double()
    shares = (-confidence).masked_fill(open_, -torch.inf).softmax(-1)
    for name, settings in cases.items():
        p = logits.softmax(-1)
        if settings["nucleus_p"] < 1.0:
            p = nucleus(p, settings["nucleus_p"])
        s = tensors[f"{name}/next_t"].item() if name.startswith("dfm") else settings["t"] - settings["dt"]
        grid = torch.tensor([settings["t"], s], dtype=torch.float64)
        remasking = remasking_of(name, settings)
        if name == "dfm/0":  # begins by a step without remasking
            remasking = make_remasking(None)
        rates = remasking.rates(make_schedule("linear", eps=0.0), grid)
        opens, sigma = rates.opens[0], rates.remasks[0] * (shares if rates.by_confidence else torch.ones_like(shares))
        token = nn.functional.one_hot(xt, p.shape[-1]) * (1.0 - sigma)[..., None]
        table = torch.where(open_[..., None], opens * p, token)
        table[..., mask] += torch.where(open_, 1.0 - opens, sigma)
        weights = tensors[f"{name}/weights"].double()
        expected = weights / weights.sum(dim=-1, keepdim=True)
        if not sigma.any():
            expected = torch.where(open_[..., None], expected, nn.functional.one_hot(xt, p.shape[-1]))
        torch.testing.assert_close(table, expected, atol=1e-5, rtol=0.0, msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal((table / -uniform.log()).argmax(-1), tensors[f"{name}/xs"]), name
        if rates.by_confidence:
            committed = open_ & (tensors[f"{name}/xs"] != mask)
            probs = p.gather(-1, tensors[f"{name}/xs"][..., None]).squeeze(-1)
            after = RowMemory(~open_, confidence).after(committed, probs).confidence
            decided = tensors[f"{name}/xs"] != mask
            torch.testing.assert_close(
                -after[decided].float(), tensors[f"{name}/confidence"][decided], atol=1e-5, rtol=0.0
            )
