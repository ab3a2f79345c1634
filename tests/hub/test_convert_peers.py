# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of other groups, in their published form: what the converted models compute and can be used for.

The records in `golden/peers` are of the authors' own programs; the checkpoints in them have random weights.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import failure, outcome
from huggingface_hub import ModelCard
from launching import run_python
from peers import publish, state_of, words_tokenizer
from safetensors.torch import load_file
from tiny import losses_of_steps, quiet, same_texts
from tokenizers import Tokenizer
from transformers import AutoModel, DynamicCache

from md4_hf import (
    LoraArguments,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4ForDiscreteDiffusion,
    MD4ForMaskedDiffusion,
    add_adapter,
    load_model,
    load_pipeline,
    make_schedule,
    unmask_probability,
)
from md4_hf.cli import main
from md4_hf.cli.options import FAMILY_NAMES
from md4_hf.core.discrete_kernels import uniform_nelbo
from md4_hf.core.discrete_processes import discrete_process
from md4_hf.core.masked_diffusion import masked_count_weights
from md4_hf.hub.convert import FAMILIES, convert
from md4_hf.objective.clipping import ClippedRates


MDLM, MDLM_TIME, SEDD, RADD = "peers/mdlm_notime_h64", "peers/mdlm_time_h64", "peers/sedd_absorb_h64", "peers/radd_h64"
BD3LM = "peers/bd3lm_h64_block4"
CASES = [MDLM, MDLM_TIME, SEDD, RADD]
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    """`published(case)` gives the folder of a record's checkpoint, as its authors would share it."""
    folders = {}

    def folder_of(case):
        if case not in folders:
            tensors, record = golden(case)
            folders[case] = publish(tmp_path_factory.mktemp("published"), state_of(tensors), record["config"])
        return folders[case]

    return folder_of


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    """`converted(case)` gives the folder of a record's converted model."""
    folders = {}

    def folder_of(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("converted")
            convert(published(case), folders[case])
        return folders[case]

    return folder_of


@pytest.fixture
def evaluate(golden, converted):
    """`evaluate(case)` gives the record's tensors, and the output of the converted model for its inputs."""

    def run(case):
        tensors, _ = golden(case)
        model = AutoModel.from_pretrained(converted(case))
        assert type(model) is MD4ForMaskedDiffusion
        with torch.no_grad():
            inputs = {"input_ids": tensors["inputs/input_ids"], "labels": tensors["inputs/x0"]}
            output = model(**inputs, timesteps=tensors["inputs/t"])
        return tensors, output

    return run


def assert_near(found, expected, relative=1e-4):
    """Within a share of the largest value, as the records' description asks."""
    torch.testing.assert_close(found, expected.to(found), atol=relative * expected.abs().max().item(), rtol=0.0)


# Logits, losses, steps ------------------------------------------------------------------------------------------------


@every_case
def test_logits_are_those_of_the_authors_program(evaluate, case):
    tensors, output = evaluate(case)
    expected = tensors["outputs/logits" if "outputs/logits" in tensors else "outputs/head_logits"]
    torch.testing.assert_close(output.logits[..., :-1], expected[..., :-1], atol=1e-4, rtol=0.0)
    assert (output.logits[..., -1] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize(
    ("case", "loss"), [(MDLM, "loss_token"), (MDLM_TIME, "loss_token"), (RADD, "loss_t_dse_token")]
)
def test_the_bound_is_the_authors_loss(evaluate, case, loss):
    tensors, output = evaluate(case)
    assert_near(output.token_nelbo, tensors[f"outputs/{loss}"])
    assert output.reconstruction_nelbo.abs().max() == 0.0
    assert_near(output.loss, tensors[f"outputs/{loss}"].mean())


def test_the_bound_of_normalised_scores_is_below_the_score_entropy_by_a_term_of_their_sum(evaluate):
    """With scores s = r Z mu, the score entropy is dsigma r (Z - 1 - log Z - log mu), and MD4's bound has Z = 1."""
    tensors, output = evaluate(SEDD)
    sigma, masked = tensors["inputs/sigma"], tensors["inputs/input_ids"] == 99
    ratio = 1.0 / torch.expm1(sigma)[:, None]
    z = tensors["outputs/log_score"][..., :-1].exp().sum(-1) / ratio
    excess = tensors["inputs/dsigma"][:, None] * ratio * (z - 1.0 - z.log())
    assert_near(output.token_nelbo + excess * masked, tensors["outputs/loss_token"])
    assert (excess[masked] > 0.0).all()
    conditionals = tensors["outputs/log_score"][..., :-1].softmax(-1)[masked]
    torch.testing.assert_close(output.logits[..., :-1].softmax(-1)[masked], conditionals, atol=1e-5, rtol=0.0)


def test_the_bound_by_the_number_of_masks_is_radds_losses(evaluate, converted):
    tensors, output = evaluate(RADD)
    model, x0 = AutoModel.from_pretrained(converted(RADD)), tensors["inputs/x0"]
    nll = output.token_nelbo * tensors["inputs/t"][:, None]
    assert_near(nll / tensors["inputs/lambda"][:, None], tensors["outputs/loss_lambda_dce_token"])
    assert_near(nll * x0.shape[1] / tensors["inputs/k"][:, None], tensors["outputs/loss_k_dce_token"])
    # L / k for a uniform k is the sum over k of 1 / k, but for what the schedule leaves unmasked at t = 1.
    weights = masked_count_weights(model.masking_schedule, x0.shape[1])[1:]
    torch.testing.assert_close(weights[:-2], 1.0 / torch.arange(1, x0.shape[1] - 1).double(), atol=1e-3, rtol=0.0)
    order, xt, steps = tensors["inputs/order"], torch.full_like(x0, 99), []
    for position in order.tolist():
        with torch.no_grad():
            log_p = model(xt).logits[:, position].log_softmax(-1)
        steps.append(-log_p.gather(1, x0[:, position, None]).squeeze(1))
        xt[:, position] = x0[:, position]
    assert_near(torch.stack(steps, dim=1), tensors["outputs/ar_nll_steps"])


def reverse_step(model, folder, tensors):
    """Weights of one step of the converted model, `(batch, length, vocab)`: tokens, then the mask."""
    schedule = MaskedDiffusionScheduler.from_pretrained(folder).schedule
    t, dt = tensors["inputs/step_t"], tensors["inputs/step_dt"]
    x = tensors["inputs/input_ids"]
    with torch.no_grad():
        mean = model(x, timesteps=t.expand(len(x))).logits[..., :-1].softmax(-1)
    rate = unmask_probability(schedule, t.double(), (t - dt).double()).float()
    return torch.cat([rate * mean, (1.0 - rate).expand(*x.shape, 1)], dim=-1)[x == 99]


@every_case
def test_a_reverse_step_draws_from_the_authors_probabilities(golden, converted, case):
    tensors, _ = golden(case)
    folder, masked = converted(case), tensors["inputs/input_ids"] == 99
    weights = reverse_step(AutoModel.from_pretrained(folder), folder, tensors)
    if case == RADD:
        expected = tensors["outputs/step_tweedie_probs_masked"]
    elif case == SEDD:  # whose scores are not normalised: the chance to open is not the schedule's
        found = tensors["outputs/step_analytic_probs"][masked]
        opens = unmask_probability(MaskedDiffusionScheduler.from_pretrained(folder).schedule, *step_times(tensors))
        expected = torch.cat(
            [opens * found[:, :-1] / found[:, :-1].sum(-1, keepdim=True), weights[:, -1:]], dim=-1
        ).float()
    else:  # weights that sum to the probability of a mask at t
        expected = tensors["outputs/step_q_xs"][masked]
        expected = expected / expected.sum(-1, keepdim=True)
        cached = tensors["outputs/step_q_xs_cache"][masked]
        torch.testing.assert_close(cached / cached.sum(-1, keepdim=True), expected, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0.0)


def step_times(tensors):
    """Begin and end of a record's step, in float64."""
    t = tensors["inputs/step_t"].double()
    return t, t - tensors["inputs/step_dt"].double()


@pytest.mark.parametrize("block_size", [4, 8])
def test_a_bd3lm_is_a_block_model_with_the_authors_logits_and_losses(golden, tmp_path, block_size):
    tensors, record = golden(BD3LM)
    config = record["config"] | {"block_size": block_size}
    assert convert(publish(tmp_path / "peer", state_of(tensors), config), tmp_path / "out") == "bd3lm"
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.block_size == block_size
    xt, x0 = tensors["inputs/xt"], tensors["inputs/x0"]
    with torch.no_grad():
        output = model(xt, timesteps=tensors["inputs/t"], labels=x0)
    suffix = "" if block_size == 4 else "_block_8"
    expected = tensors[f"outputs/logits{suffix}"]
    torch.testing.assert_close(output.logits[..., :-1], expected[..., :-1], atol=1e-4, rtol=0.0)
    if block_size == 4:
        expected = tensors["outputs/loss_token"]
        found = output.token_nelbo * tensors["inputs/attention_mask"]
        torch.testing.assert_close(found, expected, atol=1e-4 * expected.max().item(), rtol=0.0)


@pytest.mark.parametrize("clip", ["0.001_1", "0.3_0.8", "0.5_1", "0.6_0.9", "1_1"])
def test_clipped_times_are_those_of_a_bd3lm(golden, clip):
    tensors, _ = golden(BD3LM)
    uniform = tensors["inputs/block_uniform"]
    stratified = (uniform + torch.arange(uniform.numel()).view(uniform.shape)) / uniform.numel() % 1.0
    rates = ClippedRates(*map(float, clip.split("_")))
    times = rates.times(make_schedule("linear", eps=0.0), stratified).repeat_interleave(4, dim=1)
    torch.testing.assert_close(times, tensors[f"outputs/t_clip_{clip}"], atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(("name", "clip"), [("clipped", "0.3_0.8"), ("heavy", "0.6_0.9")])
def test_losses_at_clipped_rates_are_those_of_a_bd3lm(golden, tmp_path, name, clip):
    tensors, record = golden(BD3LM)
    convert(publish(tmp_path / "peer", state_of(tensors), record["config"]), tmp_path / "out")
    model, t = AutoModel.from_pretrained(tmp_path / "out"), tensors[f"outputs/t_clip_{clip}"]
    xt, scored = tensors[f"inputs/xt_{name}"], tensors["inputs/attention_mask"]
    weights = ClippedRates(*map(float, clip.split("_"))).weights(make_schedule("linear", eps=0.0), t)
    with torch.no_grad():
        for output_logits in (False, True):
            output = model(
                xt,
                output_logits=output_logits,
                timesteps=t,
                labels=tensors["inputs/x0"],
                loss_weights=weights * scored,
                num_items_in_batch=scored.sum(),
            )
            torch.testing.assert_close(output.loss, tensors[f"outputs/loss_{name}"], atol=1e-4, rtol=1e-4)


def test_a_bd3lm_has_the_authors_logits_in_sampling_with_a_cache_and_without(golden, tmp_path):
    tensors, record = golden(BD3LM)
    convert(publish(tmp_path / "peer", state_of(tensors), record["config"]), tmp_path / "out")
    model, ids = AutoModel.from_pretrained(tmp_path / "out"), tensors["sampling/input_ids"]
    cache = DynamicCache()
    with torch.no_grad():
        whole = model(ids).logits
        parts = [model(part, past_key_values=cache).logits for part in ids.split(4, dim=1)]
    for found in (whole, torch.cat(parts, dim=1)):
        torch.testing.assert_close(found[..., :-1], tensors["sampling/logits"][..., :-1], atol=1e-4, rtol=0.0)


# Use of a converted model ---------------------------------------------------------------------------------------------


@every_case
def test_a_converted_model_is_a_pipeline_trains_and_takes_an_adapter(converted, case):
    pipeline = quiet(MaskedDiffusionPipeline.from_pretrained(converted(case)))
    sample = pipeline(num_samples=2, num_inference_steps=4, output_type="ids").sequences
    assert all((row != 99).all() and len(row) == 24 for row in map(torch.as_tensor, sample))
    assert pipeline.scheduler.config.masking_schedule == "loglinear"
    assert (pipeline.scheduler.config.schedule_eps, pipeline.scheduler.config.timestep_grid) == (1e-3, "uniform")
    model = add_adapter(pipeline.model.train(), LoraArguments(lora_r=2))
    losses = losses_of_steps(model, lambda: same_texts(99, 4, 16), learning_rate=1e-2)
    assert losses[-1] < losses[0]


def test_a_network_that_sees_no_time_is_folded_to_one_without_modulation(converted):
    model = MD4ForMaskedDiffusion.from_pretrained(converted(MDLM))
    assert not model.config.is_conditional and model.model.modulation is None
    names = {name.partition(".layers.0.")[2] for name in model.state_dict() if ".layers.0." in name}
    assert {"attention_norm.bias", "mlp_norm.bias", "mlp.down_proj.bias"} <= names


WITHOUT_THE_PACKAGE = """
import sys

sys.modules["md4_hf"] = None  # as if it were not installed

import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
x = torch.full((1, 4), 99)
torch.save(model(x, timesteps=torch.tensor([0.5])).logits.detach(), sys.argv[2])
"""


@pytest.mark.slow
def test_a_folder_opens_without_the_package(converted, tmp_path):
    folder, file = converted(MDLM_TIME), tmp_path / "logits.pt"
    run_python("-c", WITHOUT_THE_PACKAGE, folder, file, env={**os.environ, "HF_HOME": str(tmp_path)})
    expected = AutoModel.from_pretrained(folder)(torch.full((1, 4), 99), timesteps=torch.tensor([0.5])).logits
    torch.testing.assert_close(torch.load(file), expected, atol=1e-6, rtol=0.0)


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_complete_folder_with_the_tokenizer_and_a_card(published, tmp_path, capsys):
    source = tmp_path / "sedd-tiny"
    shutil.copytree(published(SEDD), source)
    words_tokenizer(99).save_pretrained(source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# SEDD\n")
    main(["convert", str(source), "--output_dir", str(tmp_path / "out")])
    assert "(sedd)" in capsys.readouterr().out
    pipeline = quiet(load_pipeline(str(tmp_path / "out"), device="cpu"))
    assert pipeline.tokenizer.mask_token_id == 99
    assert len(pipeline(num_samples=1, num_inference_steps=2).texts[0].split()) == 24
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and "`mit`" in card.text and "SEDD checkpoint `sedd-tiny`" in card.text
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model_index.json", "scheduler_config.json", "modeling_md4_ddit.py", "tokenizer.json"} <= names
    main(["evaluate", str(tmp_path / "out"), "--validation_data", str(text_file(tmp_path)), "--draws", "2"])
    assert "nats per token" in capsys.readouterr().out


def test_a_converted_model_is_fine_tuned_and_evaluated_by_the_commands(published, tmp_path, capsys):
    words_tokenizer(99).save_pretrained(tmp_path / "words")
    model, text = str(tmp_path / "radd"), str(text_file(tmp_path))
    main(["convert", published(RADD), "--output_dir", model, "--tokenizer", str(tmp_path / "words")])
    options = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "false", "--card_samples", "0"]
    tuned = str(tmp_path / "tuned")
    main(["finetune", model, "--data", text, "--output_dir", tuned, "--eval_strategy", "no", *options])
    capsys.readouterr()
    for name in (model, tuned):
        main(["evaluate", name, "--validation_data", text, "--estimator", "any_order", "--draws", "2"])
        assert "nats per token" in capsys.readouterr().out
    main(["export", tuned, str(tmp_path / "exported")])
    assert load_pipeline(str(tmp_path / "exported"), device="cpu").scheduler.config.masking_schedule == "loglinear"


def text_file(folder):
    """A file of words that the tokenizer knows."""
    file = folder / "words.txt"
    file.write_text(" ".join(f"w{i % 99}" for i in range(300)))
    return file


def test_a_checkpoint_without_a_tokenizer_is_converted_alone_with_a_warning(published, tmp_path, caplog):
    assert outcome(["convert", published(RADD), "--output_dir", str(tmp_path / "out")])[0] == 0
    assert "has no tokenizer" in caplog.text and "--tokenizer" in caplog.text
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown" and 'output_type="ids").sequences' in card.text


def test_a_model_without_a_tokenizer_is_sampled_as_ids(converted, tmp_path, capsys):
    folder, options = str(converted(RADD)), ["--num_samples", "2", "--length", "6", "--num_inference_steps", "3"]
    pipeline = quiet(load_pipeline(folder, device="cpu"))
    assert pipeline.tokenizer is None and pipeline.scheduler.config.masking_schedule == "loglinear"
    output = pipeline(input_ids=[[3, 99, 4, 99]], num_inference_steps=2, output_type="ids")
    assert output.texts is None and output.sequences[0, [0, 2]].tolist() == [3, 4] and (output.sequences < 99).all()
    main(["sample", folder, *options, "--quiet"])
    assert re.fullmatch(r"(--- \d -+\n\d+( \d+){5}\n){2}", capsys.readouterr().out)
    main(["score", folder, *options, "--output_file", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["samples"]["tokens"]["num_sequences"] == 2
    assert "must have a tokenizer to fill a text" in failure(capsys, ["infill", folder, "w1 <mask:2>"])
    main(["export", folder, str(tmp_path / "exported")])
    assert "Model, scheduler and code are in" in capsys.readouterr().out
    found = failure(capsys, ["evaluate", folder, "--validation_data", str(text_file(tmp_path))])
    assert "MODEL must be" in found and "there are no files of one" in found and len(found.splitlines()) == 1


def test_a_padded_vocabulary_has_ids_that_are_never_drawn(published, tmp_path):
    """The tokenizer's token with the model's mask id becomes the mask; rows without a token are suppressed."""
    tokenizer = words_tokenizer(90)
    tokenizer._tokenizer = Tokenizer.from_str(tokenizer._tokenizer.to_str().replace('"w89":89', '"w89":89,"m":99'))
    tokenizer.save_pretrained(tmp_path / "words")
    convert(published(RADD), tmp_path / "out", tokenizer=str(tmp_path / "words"))
    pipeline = load_pipeline(str(tmp_path / "out"), device="cpu")
    assert pipeline.tokenizer.mask_token == "m"
    assert pipeline.model.config.unused_token_ids == [[90, 99]]


def test_shards_and_their_index_are_read(golden, converted, tmp_path):
    tensors, record = golden(RADD)
    state = state_of(tensors)
    parts = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    folder = publish(tmp_path / "peer", parts[0], record["config"], "model-00001-of-00002.safetensors")
    publish(tmp_path / "peer", parts[1], record["config"], "model-00002-of-00002.safetensors")
    files = {key: f"model-0000{i + 1}-of-00002.safetensors" for i, part in enumerate(parts) for key in part}
    (tmp_path / "peer" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    convert(folder, tmp_path / "out")
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "out", converted(RADD)))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def averages(state):
    """Averages of the parameters as a training checkpoint lists them, here all halved."""
    names = [key for key in state if not key.endswith("inv_freq")]
    return {"decay": 0.9999, "num_updates": 7, "shadow_params": [state[key] / 2 for key in names]}


TRAINING = {
    "state dict": (SEDD, "pytorch_model.bin", lambda state: state),
    "sedd": (SEDD, "checkpoint_10.pth", lambda state: {"model": state, "ema": averages(state), "step": 7}),
    "radd": (RADD, "checkpoint_10.pth", lambda state: {"model": state, "ema": averages(state), "step": 7}),
    "lightning": (MDLM_TIME, "last.ckpt", lambda state: {"state_dict": state, "ema": averages(state), "epoch": 1}),
}


@pytest.mark.parametrize("name", TRAINING)
def test_pickled_weights_are_opened_on_request_and_give_the_average(golden, tmp_path, name):
    case, file_name, content_of = TRAINING[name]
    tensors, record = golden(case)
    state = state_of(tensors)
    folder = publish(tmp_path / "peer", content_of(state), record["config"], file_name)
    with pytest.raises(ValueError, match=f"got {file_name} in .*--allow_pickle"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    file = f"{folder}/{file_name}"  # or its folder
    assert convert(file if name == "lightning" else folder, tmp_path / "out", allow_pickle=True) == record["family"]
    head = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    expected = next(x for key, x in state.items() if key.endswith("output_layer.linear.weight"))
    assert torch.equal(head, expected if name == "state dict" else expected / 2)


class Harm:
    """An object whose pickle would run a command."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_runs_nothing(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = publish(tmp_path / "peer", {"model": Harm()}, golden(SEDD)[1]["config"], "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold tensors alone"):
        convert(folder, tmp_path / "out", allow_pickle=True)
    assert not (tmp_path / "harmed").exists() and not (tmp_path / "out").exists()


def convert_and_show(output):
    """Convert checkpoints of a Hub, here with an empty cache; what became of each."""
    import json
    from pathlib import Path

    from commands import error_of

    from md4_hf import load_model
    from md4_hf.hub.convert import convert

    results = {"family": convert("user/mdlm", "out"), "pickle": error_of(convert, "user/sedd", "out2")}
    results["allowed"] = convert("user/sedd", "out3", allow_pickle=True)
    results["absent"] = error_of(convert, "user/absent", "out4")
    results["folders"] = sorted(path.name for path in Path().iterdir() if path.name.startswith("out"))
    results["card"] = Path("out/README.md").read_text()
    results["hidden_size"] = load_model("out").config.hidden_size
    Path(output).write_text(json.dumps(results))


@pytest.mark.slow
def test_a_checkpoint_is_converted_from_the_hub(hub, published, golden, tmp_path):
    for name in ("user/mdlm", "user/sedd"):
        hub.create_repository(name)
    files = {path.name: path.read_bytes() for path in Path(published(MDLM)).iterdir()}
    hub.add_files("user/mdlm", {**files, "modeling_mdlm.py": b"raise SystemExit", "old/model.safetensors": b"x"})
    tensors, record = golden(SEDD)
    folder = Path(publish(tmp_path / "sedd", state_of(tensors), record["config"], "pytorch_model.bin"))
    hub.add_files("user/sedd", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.run_function(convert_and_show, str(tmp_path / "results.json"), home=tmp_path / "home")
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["family"], results["allowed"], results["hidden_size"]) == ("mdlm", "sedd", 64)
    assert "--allow_pickle" in results["pickle"] and "user/absent" in results["absent"]
    assert results["folders"] == ["out", "out3"]
    assert "base_model: user/mdlm" in results["card"]
    assert not hub.asked("GET", "modeling_mdlm.py") and not hub.asked("GET", "old/model.safetensors")


# Errors ---------------------------------------------------------------------------------------------------------------


def without(key):
    return lambda state: {name: x for name, x in state.items() if name != key}


def config_with(**fields):
    return lambda config: {**config, **fields}


def model_with(**fields):
    return lambda config: {**config, "model": {**config["model"], **fields}}


BAD = {
    "missing tensor": (SEDD, without("blocks.1.norm2.weight"), None, "must hold 'blocks.1.norm2.weight'"),
    "another tensor": (SEDD, lambda state: state | {"extra": torch.ones(1)}, None, "got also .'extra'"),
    "missing bias": (RADD, without("blocks.0.norm2.bias"), None, "must hold 'blocks.0.norm2.bias'"),
    "shape": (MDLM, None, config_with(hidden_dim=32), r"shape \(100, 32\) by its config, got \(100, 64\)"),
    "another layer": (RADD, None, model_with(n_blocks=1), "got also .*'blocks.1.norm1.weight'"),
    "one layer less": (RADD, None, model_with(n_blocks=3), "must hold 'blocks.2.norm1.weight'"),
    "vocabulary": (SEDD, None, config_with(tokens=90), r"shape \(91, 64\)"),
    "heads": (MDLM, None, config_with(n_heads=7), "`num_attention_heads`"),
    "missing field": (MDLM, None, lambda config: without("cond_dim")(config), "`cond_dim` must be in the config"),
    "type of a field": (MDLM, None, config_with(n_blocks="2"), "`n_blocks` must be int"),
    "no network": (SEDD, None, lambda config: without("model")(config), "`model` must be in the config"),
    "graph": (SEDD, None, config_with(graph={"type": "uniform"}), "`graph.type` must be 'absorb'"),
    "noise": (SEDD, None, config_with(noise={"type": "geometric"}), "`noise.type` must be 'loglinear'"),
    "blocks": (BD3LM, None, config_with(block_size=0), "`block_size` must be >= 1 or None, got 0"),
    "causal Duo": (MDLM, None, config_with(model_type="duo", causal=True), "`causal` must be False .* of a Duo"),
    "Duo without time": (MDLM, None, config_with(model_type="duo"), "`time_conditioning` must be True .* of a Duo"),
    "unknown": (SEDD, lambda state: {"a.b": torch.ones(1)}, None, "one of .*mdlm.*model type None.*'a.b'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_and_nothing_is_written(golden, tmp_path, name):
    case, change_state, change_config, message = BAD[name]
    tensors, record = golden(case)
    state, config = state_of(tensors), record["config"]
    state = change_state(state) if change_state else state
    folder = publish(tmp_path / "peer", state, change_config(config) if change_config else config)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer"]


# Duo ------------------------------------------------------------------------------------------------------------------

# MDLM's network that sees the time is Duo's: the record has its logits of all V rows, which are states of Duo's.


@pytest.fixture(scope="module")
def duo(golden, tmp_path_factory):
    """Folder of a checkpoint with Duo's names."""
    tensors, record = golden(MDLM_TIME)
    own = {"model_type": "duo", "architectures": ["DUO"], "causal": False, "var_min": True}
    kept = {name: record["config"][name] for name in ("vocab_size", "model_length", "hidden_dim", "cond_dim")}
    kept |= {name: record["config"][name] for name in ("n_blocks", "n_heads", "dropout")}
    return publish(tmp_path_factory.mktemp("duo"), state_of(tensors), {**kept, **own})


def test_a_duo_becomes_the_uniform_baseline_with_the_same_logits_and_bound(golden, duo, tmp_path):
    tensors, _ = golden(MDLM_TIME)
    assert convert(duo, tmp_path / "out") == "duo"
    model = load_model(tmp_path / "out").eval()
    config, process = model.config, model.process
    assert type(model) is MD4ForDiscreteDiffusion and config.baseline == "uniform" and config.time_conditioning
    assert (config.vocab_size, config.mask_token_id, process.kernel.num_states) == (101, 100, 100)
    xt, x0, t = (tensors[f"inputs/{name}"] for name in ("input_ids", "x0", "t"))
    with torch.no_grad():
        output = model(xt, labels=x0, timesteps=t, output_logits=True)
    torch.testing.assert_close(output.logits[..., :-1], tensors["outputs/logits"], atol=1e-4, rtol=0.0)
    assert_near(-process.alpha(t).log(), tensors["inputs/sigma"])
    logits, rates = tensors["outputs/logits"].double(), process.schedule.alpha_prime(t.double())
    assert_near(output.token_nelbo, uniform_nelbo(logits, x0, xt, process.alpha(t), rates))


def test_the_process_of_a_converted_duo_has_the_authors_losses_and_steps(golden, duo, tmp_path):
    tensors, record = golden("peers/duo_v24")
    fields = {**json.loads(Path(duo, "config.json").read_text()), "vocab_size": 24}
    config = FAMILIES["duo"].configuration(fields)
    process, case = discrete_process(config), "log-linear"
    logits, x0, t, dt = (tensors[f"inputs/{name}"] for name in ("logits", "x0", "t", "dt"))
    xt = tensors[f"{case}/xt"]
    loss, expected = process.token_nelbo(logits, x0, xt, t.double()), tensors[f"{case}/loss_token"]
    assert ((loss - expected).abs().amax(dim=1) < 1e-4 * expected.amax(dim=1).clamp(min=1.0)).all()
    steps = process.reverse(logits, xt, t.double(), (t - dt).double())
    limit = record["tolerance"]["probabilities"]
    torch.testing.assert_close(steps.float(), tensors[f"{case}/p_probs"], atol=limit, rtol=0.0)


@pytest.mark.parametrize("num_words", [99, 100])  # GPT-2's without the padding that Duo adds to it, or with one more
def test_a_converted_duo_has_a_tokenizer_whose_ids_are_all_states(duo, tmp_path, num_words):
    words = words_tokenizer(num_words)
    if num_words == 100:
        words.add_special_tokens({"mask_token": "w99"})  # as BERT's, a token of the text to Duo
    words.save_pretrained(tmp_path / "words")
    main(["convert", duo, "--output_dir", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "words")])
    pipe = load_pipeline(tmp_path / "out")
    assert pipe.tokenizer.mask_token_id == 100 and pipe.model.config.unused_token_ids is None
    assert (pipe.tokenizer.pad_token_id == 99) == (num_words == 99)
    drawn = pipe(num_samples=8, length=12, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    assert drawn.sequences.max() < 100 and len(drawn.texts) == 8
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "Duo" in card.text and "trust_remote_code" not in card.text
    assert not list((tmp_path / "out").glob("*.py"))


def test_a_converted_duo_is_evaluated_and_fine_tuned(duo, tmp_path, capsys):
    words_tokenizer(99).save_pretrained(tmp_path / "words")
    model = str(tmp_path / "model")
    main(["convert", duo, "--output_dir", model, "--tokenizer", str(tmp_path / "words")])
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8 " * 40)
    data = str(tmp_path / "text.txt")
    main(["evaluate", model, "--validation_data", data, "--draws", "2", "--use_cpu"])
    assert "perplexity" in capsys.readouterr().out
    options = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none"]
    main(["finetune", model, "--data", data, "--full", "--output_dir", str(tmp_path / "tuned"), *options])
    assert load_model(tmp_path / "tuned").config.baseline == "uniform"


def test_files_that_are_damaged_or_absent_are_named(published, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="`checkpoint` must exist"):
        convert(str(tmp_path / "absent"), out)
    broken = tmp_path / "broken"
    shutil.copytree(published(RADD), broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="`checkpoint` must have well-formed files"):
        convert(str(broken), out)
    (broken / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="`checkpoint` must hold weights"):
        convert(str(broken), out)
    (broken / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="`config_file` must be"):
        convert(str(broken), out)
    assert not out.exists()


def test_tokenizers_and_folders_that_do_not_fit_are_refused(published, tmp_path, capsys):
    words_tokenizer(101).save_pretrained(tmp_path / "large")
    words_tokenizer(50).save_pretrained(tmp_path / "small")
    command = ["convert", published(RADD), "--output_dir", str(tmp_path / "out"), "--tokenizer"]
    assert "--tokenizer must have ids below the model's number of rows, 100" in failure(
        capsys, [*command, str(tmp_path / "large")]
    )
    assert "the model's mask id 99, got 50" in failure(capsys, [*command, str(tmp_path / "small")])
    assert not (tmp_path / "out").exists()
    assert "must be empty" in failure(capsys, ["convert", published(RADD), "--output_dir", str(tmp_path)])
    assert "--output_dir must be given" in failure(capsys, ["convert", published(RADD)])
    assert "--family" in failure(capsys, ["convert", published(RADD), "--family", "mdml"])


def test_the_command_offers_all_families():
    assert ("auto", *FAMILIES) == FAMILY_NAMES
