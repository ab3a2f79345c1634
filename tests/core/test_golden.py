# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Every case recorded from the official implementation, within the tolerances its record gives."""

import math

import pytest
import torch

from md4_hf import (
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    config_from_official,
    convert_flax_params,
    corrupt,
    discretize_times,
    make_schedule,
    nelbo_weight,
    reconstruction_nelbo,
    reverse_probabilities,
    stratified_times,
    token_nelbo,
    unmask_probability,
)
from md4_hf.core.configuration_md4 import default_intermediate_size
from md4_hf.core.masked_diffusion import top_p_logits
from md4_hf.core.modeling_md4_layers import ACTIVATIONS, MD4RotaryEmbedding, apply_rotary, make_norm, time_embedding
from md4_hf.core.modeling_md4_unet import MD4DiT, MD4DiTLayer, MD4GroupNorm, position_table
from md4_hf.hub.convert_md4 import FlaxParams, convert_dit, convert_dit_layer


TEXT_NETWORKS = [
    "net_text_adaln_swiglu",
    "net_text_adalnzero_glu_outside",
    "net_text_class_glu",
    "net_text_class_notime_swiglu",
    "net_text_notime_geglu",
]
IMAGE_NETWORKS = ["net_unet_class_t", "net_unet_uncond", "net_uvit_class_t_chmult12", "net_uvit_uncond"]
SCHEDULES = ["linear", "cosine", "poly0.5", "poly2", "poly3"]


def schedule_of(name):
    return make_schedule("poly", power=float(name[4:])) if name.startswith("poly") else make_schedule(name)


def load_model(tensors, record):
    config = config_from_official(record["config"])
    model = MD4ForMaskedDiffusion(config)
    model.load_state_dict(convert_flax_params(tensors, config))
    return model.eval()


def assert_close(actual, expected, atol=0.0, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False)


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TEXT_NETWORKS, *IMAGE_NETWORKS])
def test_network_gives_the_official_logits(golden, name):
    """The official tensors of images have the channels last."""
    tensors, record = golden(name)
    model = load_model(tensors, record)
    is_image = model.config.is_image
    inputs = {"input_ids": tensors["zt"].long().permute(0, 3, 1, 2) if is_image else tensors["zt"].long()}
    if "label" in tensors:
        inputs["class_labels"] = tensors["label"].long()
    times = {"logits": tensors.get("t")}
    if "t_scalar" in tensors:
        times["logits_t_scalar"] = tensors["t_scalar"].expand(len(tensors["zt"]))
    for expected, t in times.items():
        with torch.no_grad():
            logits = model(**inputs, timesteps=t).logits
        official = tensors[expected].permute(0, 3, 1, 2, 4) if is_image else tensors[expected]
        assert_close(logits[..., :-1], official, atol=1e-4 if is_image else 2e-5)
        assert (logits[..., -1] == torch.finfo(logits.dtype).min).all()


def dit_config(record, **conditioning):
    """The recorded part of the transformer is of 5 channels, which no whole network has."""
    sizes = record["config"]
    return MD4Config(
        backbone="uvit",
        hidden_size=32,
        image_size=sizes["img_size"],
        conditioning_size=sizes["cond_dim"],
        dit_hidden_size=sizes["hidden_size"],
        dit_num_hidden_layers=sizes["depth"],
        dit_num_attention_heads=sizes["num_heads"],
        **conditioning,
    )


@pytest.mark.parametrize("case, is_conditional", [("with_cond", True), ("no_cond", False)])
def test_the_transformer_of_the_uvit_is_the_official_one(golden, case, is_conditional):
    tensors, record = golden("dit_parts")
    config = dit_config(record, time_conditioning=is_conditional)
    cond = tensors["cond"] if is_conditional else None
    layer, dit = MD4DiTLayer(config), MD4DiT(config, channels=record["config"]["channels"])
    for module, prefix, convert in (
        (layer, f"{case}/params/", lambda flax: convert_dit_layer(flax, config, "flax", "ours")),
        (dit, f"dit_{case}/params/", lambda flax: convert_dit(flax, config, "flax", "ours")),
    ):
        params = {f"flax/{name.removeprefix(prefix)}": x for name, x in tensors.items() if name.startswith(prefix)}
        state = convert(FlaxParams(params))
        module.load_state_dict({name.removeprefix("ours."): x for name, x in state.items()})
    with torch.no_grad():
        assert_close(layer(tensors["x"], cond), tensors[f"{case}/out"], atol=1e-4)
        output = dit(tensors[f"dit_{case}/x"].permute(0, 3, 1, 2), cond).permute(0, 2, 3, 1)
        assert_close(output, tensors[f"dit_{case}/out"], atol=1e-4)


def test_whole_loss_and_gradients_are_the_official_ones(golden):
    tensors, record = golden("loss_md4_model")
    model = load_model(tensors, record).train()
    output = model(input_ids=tensors["zt"].long(), timesteps=tensors["t_used"], labels=tensors["x"].long())
    bits = output.loss / math.log(2)
    assert_close(bits, tensors["out/loss"], rtol=1e-5)
    bits.backward()
    gradients = {name: tensor for name, tensor in tensors.items() if name.startswith("grads/")}
    expected = convert_flax_params({name.removeprefix("grads/"): g for name, g in gradients.items()}, model.config)
    for name, parameter in model.named_parameters():
        largest = expected[name].abs().max().item()
        assert_close(parameter.grad, expected[name], atol=1e-5 * largest)


def test_times_of_a_batch_are_the_official_ones(golden):
    tensors, _ = golden("building_blocks")
    cases = {name.split("/")[1] for name in tensors if name.startswith("antithetic_t/")}
    for case in sorted(cases):
        expected = tensors[f"antithetic_t/{case}/t"]
        times = stratified_times(tensors[f"antithetic_t/{case}/t0"], torch.arange(len(expected)), len(expected))
        assert_close(times, expected, atol=2e-6)


# Building blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 8, 16, 64])
def test_time_embedding_is_the_official_one(golden, size):
    tensors, _ = golden("building_blocks")
    assert_close(time_embedding(tensors["time_embedding/t"], size), tensors[f"time_embedding/dim{size}"], atol=1.5e-4)


@pytest.mark.parametrize("head_dim", [8, 16])
def test_rotary_embedding_is_the_official_one(golden, head_dim):
    tensors, _ = golden("building_blocks")
    q, k = (tensors[f"rope/hd{head_dim}/{x}"] for x in "qk")
    config = config_from_official({"vocab_size": 4, "feature_dim": head_dim, "num_heads": 3, "n_layers": 1})
    rotation = MD4RotaryEmbedding(config)(q, torch.arange(q.shape[1])[None])
    assert_close(rotation[0, ..., 0], tensors[f"rope/hd{head_dim}/cos"], atol=2e-6)
    assert_close(rotation[0, ..., 1], tensors[f"rope/hd{head_dim}/sin"], atol=2e-6)
    for x, name in ((q, "q_out"), (k, "k_out")):
        assert_close(apply_rotary(x, rotation), tensors[f"rope/hd{head_dim}/{name}"], atol=2e-6)
        compiled = torch.compile(apply_rotary, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x, rotation), tensors[f"rope/hd{head_dim}/{name}"], atol=2e-6)


@pytest.mark.parametrize("mlp_type", ["glu", "swiglu", "geglu"])
def test_activation_is_the_official_one(golden, mlp_type):
    tensors, _ = golden("building_blocks")
    assert_close(ACTIVATIONS[mlp_type](tensors["activation/x"]), tensors[f"activation/{mlp_type}"], atol=2e-6)


def test_feed_forward_width_follows_the_official_rule(golden):
    _, record = golden("building_blocks")
    for width, expected in record["feed_forward_hidden_size_by_dim"].items():
        assert default_intermediate_size(int(width)) == expected


def test_text_norms_have_the_official_epsilon(golden):
    tensors, _ = golden("norms")
    base = {"vocab_size": 4, "feature_dim": tensors["x"].shape[-1], "num_heads": 1, "n_layers": 1}
    layer_norm = make_norm(config_from_official(base))
    assert_close(layer_norm(tensors["x"]), tensors["text_layernorm_eps1e-5"], atol=2e-5)
    rms_norm = make_norm(config_from_official({**base, "time_features": "none"}))
    rms_norm.weight.data.copy_(tensors["scale"])
    assert_close(rms_norm(tensors["x"]), tensors["text_rmsnorm"], atol=2e-5)


def test_image_norms_have_the_official_epsilon(golden):
    tensors, _ = golden("norms")
    image = tensors["image"].permute(0, 3, 1, 2)
    for backbone, is_conditional, expected in (
        ("unet", True, "groupnorm_affine"),
        ("uvit", False, "groupnorm_affine"),
        ("uvit", True, "groupnorm_plain"),
    ):
        config = MD4Config(backbone=backbone, hidden_size=64, time_conditioning=is_conditional)
        norm = MD4GroupNorm(config, channels=64)
        if expected == "groupnorm_affine":
            norm.norm.weight.data.copy_(tensors["group_scale"])
            norm.norm.bias.data.copy_(tensors["group_bias"])
        else:  # shift and scale 0
            torch.nn.init.zeros_(norm.modulation.weight)
            torch.nn.init.zeros_(norm.modulation.bias)
        output = norm(image, torch.randn(len(image), 64) if is_conditional else None)
        assert_close(output.permute(0, 2, 3, 1), tensors[expected], atol=2e-5)
    width = tensors["x"].shape[-1]
    assert_close(make_norm(config, width)(tensors["x"]), tensors["dit_layernorm"], atol=2e-5)
    rms_norm = make_norm(MD4Config(backbone="uvit", time_conditioning=False), width)
    rms_norm.weight.data.copy_(tensors["scale"])
    assert_close(rms_norm(tensors["x"]), tensors["dit_rmsnorm"], atol=2e-5)


@pytest.mark.parametrize("width, grid", [(24, 4), (16, 2)])
def test_the_initial_position_embedding_is_the_official_one(golden, width, grid):
    tensors, _ = golden("building_blocks")
    assert_close(position_table(grid, width), tensors[f"dit_pos_embed_init/dim{width}_grid{grid}"], atol=2e-6)


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_official_one(golden, name):
    tensors, _ = golden("schedules_md4")
    schedule = schedule_of(name)
    for t, prefix in ((tensors["t"], ""), (tensors["t_edge"], "edge_")):
        alpha = schedule.alpha(t)
        assert_close(alpha, tensors[f"{name}/{prefix}alpha"], rtol=1e-5, atol=1e-6)
        assert_close(schedule.alpha_prime(t), tensors[f"{name}/{prefix}dalpha"], rtol=1e-5, atol=1e-6)
        assert_close(-nelbo_weight(schedule, t), tensors[f"{name}/{prefix}dgamma_times_alpha"], rtol=1e-5, atol=1e-6)
        assert_close(torch.log(alpha / (1 - alpha)), tensors[f"{name}/{prefix}logsnr"], rtol=1e-5, atol=1e-5)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine", "poly2"])
def test_continuous_time_loss_and_its_gradient_are_the_official_ones(golden, name):
    tensors, record = golden("loss_md4_cont")
    x, zt, schedule = tensors["x"].long(), tensors["zt"].long(), schedule_of(name)
    logits = tensors["logits"].clone().requires_grad_()
    nelbo = token_nelbo(logits, x, zt, nelbo_weight(schedule, tensors["t"]), record["mask_token_id"]).sum(-1)
    assert_close(nelbo, tensors[f"loss_diff/{name}"], rtol=1e-5)
    nelbo.mean().backward()
    assert_close(logits.grad, tensors[f"grad_logits_of_mean_loss_diff/{name}"], rtol=1e-5, atol=1e-6)
    assert_close(schedule.alpha(tensors["t"]), tensors[f"keep_prob/{name}"], rtol=1e-5)
    reconstruction = reconstruction_nelbo(schedule, x.shape[1], tensors["logits"].shape[-1])
    assert_close(reconstruction, tensors[f"recon_loss/{name}"], rtol=5e-4)


def test_full_continuous_time_loss_is_the_official_one(golden):
    tensors, record = golden("loss_md4_cont")
    x, zt, schedule = tensors["x"].long(), tensors["zt"].long(), make_schedule("linear")
    t = stratified_times(tensors["call/t0"], torch.arange(len(x)), len(x))
    assert_close(t, tensors["call/t"], atol=1e-6)
    weight = nelbo_weight(schedule, t)
    bits = token_nelbo(tensors["logits"], x, zt, weight, record["mask_token_id"]).sum() / x.numel() / math.log(2)
    assert_close(bits, tensors["call/loss_diff"], rtol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [(n, s) for n in ("linear", "cosine") for s in (16, 1000)])
def test_discrete_time_loss_is_the_official_one(golden, name, steps):
    tensors, record = golden("loss_md4_discrete")
    t = discretize_times(tensors["t"], steps)
    assert_close(t, tensors[f"t_used/T{steps}"], atol=1e-6)
    weight = nelbo_weight(schedule_of(name), t, num_timesteps=steps)
    x, zt = tensors["x"].long(), tensors["zt"].long()
    nelbo = token_nelbo(tensors["logits"], x, zt, weight, record["mask_token_id"]).sum(-1)
    assert_close(nelbo, tensors[f"loss_diff/{name}/T{steps}"], rtol=1e-4 if steps == 16 else 1e-3)


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("shape", ["2d", "3d"])
def test_top_p_keeps_what_the_official_filter_keeps(golden, p, shape):
    tensors, _ = golden("topp_mask")
    logits = tensors[f"logits_{shape}"]
    filtered = top_p_logits(logits, p)
    kept = filtered > torch.finfo(filtered.dtype).min
    assert torch.equal(kept, tensors[f"keep_{shape}/p{p}"].bool())
    assert torch.equal(filtered[kept], logits[kept])


@pytest.mark.parametrize("steps", [16, 256])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_time_grid_and_unmask_probability_are_the_official_ones(golden, grid, steps):
    tensors, _ = golden("sampling_grid")
    scheduler = MaskedDiffusionScheduler(mask_token_id=0, timestep_grid=grid, num_inference_steps=steps)
    t = scheduler.timesteps
    s = torch.cat([t[1:], torch.zeros(1)])
    assert_close(t, tensors[f"{grid}/T{steps}/t"], atol=1e-6)
    assert_close(s, tensors[f"{grid}/T{steps}/s"], atol=1e-6)
    for name in ("linear", "cosine"):
        expected = tensors[f"{grid}/T{steps}/{name}/unmask_prob"]
        assert_close(unmask_probability(make_schedule(name), t.double(), s.double()), expected, rtol=2e-4, atol=1e-6)
        options = {"timestep_grid": grid, "num_inference_steps": steps, "final_decode": "argmax"}
        scheduler = MaskedDiffusionScheduler(0, masking_schedule=name, **options)
        assert_close(scheduler.unmask_probabilities(), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("schedule", "grid"), [("linear", "cosine"), ("cosine", "uniform")])
@pytest.mark.parametrize("top_p", [None, 0.98, 0.5])
def test_reverse_step_draws_from_the_official_table(golden, schedule, grid, top_p):
    tensors, record = golden("sampling_step")
    options = {"timestep_grid": grid, "num_inference_steps": 16, "final_decode": "argmax"}
    scheduler = MaskedDiffusionScheduler(record["mask_token_id"], schedule, **options)
    case = f"{schedule}_{grid}"
    steps = tensors["steps"].long()
    assert_close(scheduler.timesteps[steps], tensors[f"{case}/t_given_to_network"], atol=1e-6)
    logits = tensors["logits"] if top_p is None else top_p_logits(tensors["logits"], top_p)
    logits = torch.nn.functional.pad(logits, (0, 1))
    for k, step in enumerate(steps):
        unmask = scheduler.unmask_probabilities()[step]
        table = reverse_probabilities(logits, unmask, record["mask_token_id"])
        assert_close(table, tensors[f"{case}/{'ancestral' if top_p is None else f'topp{top_p}'}/probs"][k], atol=1e-6)
        if top_p is None:
            assert_close(unmask, tensors[f"{case}/mean/unmask_prob"][k], rtol=2e-4, atol=1e-6)


def test_left_over_masks_decode_to_the_official_tokens(golden):
    """With no chance to open by a draw (all times at the end), what is left gets the most probable token."""
    tensors, record = golden("sampling_step")
    mask = record["mask_token_id"]
    scheduler = MaskedDiffusionScheduler(mask, num_inference_steps=1, final_decode="argmax")
    scheduler._grid = torch.tensor([1.0, 1.0], dtype=torch.float64)
    logits = torch.nn.functional.pad(tensors["logits"], (0, 1))
    decoded = scheduler.step(logits, 1.0, tensors["decode/z0"].long()).prev_sample
    assert torch.equal(decoded, tensors["decode/out"].long())


def test_tables_of_a_whole_sampling_run_are_the_official_ones(golden):
    tensors, record = golden("sampling_run")
    model = load_model(tensors, record)
    steps = record["config"]["timesteps"]
    scheduler = MaskedDiffusionScheduler(record["mask_token_id"], num_inference_steps=steps, final_decode="argmax")
    label = tensors["label"].long()
    for step, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            logits = model(tensors["z"][step].long(), timesteps=t.expand(3), class_labels=label).logits
        table = reverse_probabilities(logits, scheduler.unmask_probabilities()[step], record["mask_token_id"])
        assert_close(table, tensors["probs"][step], atol=2e-6)
    for state, expected in ((tensors["z"][-1], "decoded"), (tensors["decode_partial/z0"], "decode_partial/out")):
        with torch.no_grad():
            guess = model(state.long(), timesteps=torch.zeros(3), class_labels=label).logits.argmax(-1)
        decoded = torch.where(state == record["mask_token_id"], guess, state.long())
        assert torch.equal(decoded, tensors[expected].long())


# Corruption and initialisation ----------------------------------------------------------------------------------------


def test_corruption_keeps_tokens_with_the_official_probability(golden):
    tensors, record = golden("loss_md4_cont")
    alpha = tensors["keep_prob/linear"]
    noise = torch.stack([torch.full((12,), float(a) - 1e-4) for a in alpha])
    assert torch.equal(corrupt(tensors["x"], alpha, record["mask_token_id"], noise=noise), tensors["x"])
    assert (corrupt(tensors["x"], alpha, record["mask_token_id"], noise=noise + 2e-4) == record["mask_token_id"]).all()


@pytest.mark.parametrize("case", ["text_adaln_zero_depth_scaled", "text_adaln_class", "unet_class", "uvit"])
def test_initialisation_has_the_official_statistics(golden, case):
    _, record = golden("init_statistics")
    case = record["cases"][case]
    config = config_from_official(case["config"])
    torch.manual_seed(0)
    model = MD4ForMaskedDiffusion(config)
    # Only the mask's logits have these parameters of the head.
    num_of_mask = sum(x.numel() for x in model.lm_head.parameters()) // config.vocab_size
    num_official = sum(math.prod(parameter["shape"]) for parameter in case["parameters"].values())
    assert model.num_parameters() - num_of_mask == num_official
    state = model.state_dict()
    # Constants of the expected shapes, to learn from the converter which official parameter is which.
    names = list(case["parameters"])
    flax = {name: torch.full(case["parameters"][name]["shape"], float(i + 1)) for i, name in enumerate(names)}
    for name, index in convert_flax_params(flax, config).items():
        for code in index.unique().long().tolist():
            if code == 0:  # the mask's rows of the head, which the official model does not have
                continue
            if names[code - 1].endswith("pos_embed"):  # a table, compared with the official one above
                continue
            official, values = case["parameters"][names[code - 1]], state[name][index == code]
            if official["std"] == 0.0:
                assert_close(values, torch.full_like(values, official["mean"]))
            else:
                # The official std is one seed's: both have relative errors of 1/sqrt(2n).
                tolerance = 5 / math.sqrt(values.numel())
                assert values.std().item() == pytest.approx(official["std"], rel=tolerance)
                truncated = "mbed" not in names[code - 1].rsplit("/", 1)[-1]
                if truncated:
                    assert values.abs().max().item() <= 1.05 * official["absmax"]
