# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""GenMD4: the official numbers of its schedules, losses and gradients, and proofs on an enumerable world."""

import math

import torch

from md4_hf import (
    MD4ForMaskedDiffusion,
    TokenPolynomialSchedule,
    config_from_official,
    convert_flax_params,
    genmd4_reconstruction_nelbo,
    genmd4_token_nelbo,
    log_forward_probability,
    rloo_surrogate,
    stratified_times,
)
from md4_hf.masked_diffusion import (
    rescale_times,
)


def schedule_of(free_exponents, eps=1e-4):
    """A schedule with these parameters for the data tokens, and one more for the mask, which comes last."""
    schedule = TokenPolynomialSchedule(len(free_exponents) + 1, eps=eps)
    with torch.no_grad():
        schedule.free_exponents[:-1] = free_exponents
    return schedule


def with_mask_column(logits):
    return torch.nn.functional.pad(logits, (0, 1), value=torch.finfo(logits.dtype).min)


def close(got, expected, rel=1e-5, absolute=0.0):
    torch.testing.assert_close(got, expected, rtol=rel, atol=absolute + rel * expected.abs().max().item())


# The official numbers -------------------------------------------------------------------------------------------------


def test_schedules_agree_with_the_official_ones(golden):
    tensors, _ = golden("schedules_genmd4")
    schedule, t = schedule_of(tensors["w"]), tensors["t"]
    close(schedule.exponents[:-1], tensors["power"])
    close(schedule.alpha(t)[:, :-1], tensors["alpha"])
    inner = t > 0
    close(schedule.alpha_prime(t)[inner][:, :-1], tensors["dalpha"][inner])
    weight = schedule.alpha_prime(t) / (1.0 - schedule.alpha(t))
    late = t > 0.1  # nearer to 0, float32 loses 1 - alpha
    close(weight[late][:, :-1], tensors["dgamma_times_alpha"][late], rel=1e-3)
    for power, w in zip(tensors["init_power"], tensors["init_w"], strict=True):
        fresh = TokenPolynomialSchedule(8, power=float(power))
        close(fresh.free_exponents[:-1], w)


def test_losses_and_gradients_agree_with_the_official_ones(golden):
    tensors, record = golden("loss_genmd4")
    mask, t1 = record["mask_token_id"], record["config"]["t1"]
    schedule = schedule_of(tensors["w"])
    x0, t = tensors["x"].long(), tensors["t"]
    close(schedule.alpha_of(t, x0), tensors["keep_prob"])
    logits = [tensors[f"logits_{k}"].requires_grad_() for k in (1, 2)]
    states = [tensors[f"zt_{k}"].long() for k in (1, 2)]
    losses = [
        genmd4_token_nelbo(with_mask_column(own), x0, xt, schedule.exponents, t, mask).sum(1)
        for own, xt in zip(logits, states, strict=True)
    ]
    log_q = [log_forward_probability(schedule, t, x0, xt, mask).sum(1) for xt in states]
    recon = genmd4_reconstruction_nelbo(x0, schedule, t1, mask).sum(1)
    close(losses[0], tensors["loss_diff_1"])
    close(losses[1], tensors["loss_diff_2"])
    close(recon, tensors["loss_recon"])
    losses, log_q = torch.stack(losses, 1), torch.stack(log_q, 1)
    surrogate = rloo_surrogate(losses, log_q)
    close(surrogate - losses.mean(1), tensors["reinforce"], rel=1e-4)

    bits = x0.shape[1] * math.log(2)
    total = surrogate.mean() + recon.mean()
    close(total, tensors["total_nats"])
    close(total / bits, tensors["call/loss"])
    close((losses.mean() + recon.mean()) / bits, tensors["call/loss_nelbo"])
    parts = {"total_nats": total, "mean_loss_recon": recon.mean(), "mean_loss_diff": losses.mean()}
    for name, value in parts.items():
        (gradient,) = torch.autograd.grad(value, schedule.free_exponents, retain_graph=True)
        close(gradient[:-1], tensors[f"grad_w/{name}"], rel=1e-4)
        assert gradient[-1] == 0, "the mask's own exponent has no effect"
    for k in (0, 1):
        (gradient,) = torch.autograd.grad(total / bits, logits[k], retain_graph=True)
        close(gradient, tensors[f"grad_logits_{k + 1}/call_loss"])


def test_the_whole_training_loss_agrees_with_the_official_one(golden):
    tensors, record = golden("loss_genmd4_model")
    config = config_from_official(record["config"])
    model = MD4ForMaskedDiffusion(config).train()
    flat = {name: value for name, value in tensors.items() if name.startswith("params/")}
    model.load_state_dict(convert_flax_params(flat, config))
    states = torch.stack([tensors["zt_1"], tensors["zt_2"]], dim=1).long()
    output = model(input_ids=states, timesteps=tensors["t_used"], labels=tensors["x"].long())
    close(output.loss / math.log(2), tensors["out/loss"])
    close(output.nelbo / math.log(2), tensors["out/loss_nelbo"])
    close(output.reconstruction_nelbo.mean() / tensors["x"].shape[1] / math.log(2), tensors["out/loss_recon"])
    (output.loss / math.log(2)).backward()
    flat = {name.removeprefix("grads/"): value for name, value in tensors.items() if name.startswith("grads/")}
    expected = convert_flax_params(flat, config)
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], rel=1e-4)


def test_times_are_rescaled_as_in_the_official_code(golden):
    tensors, record = golden("loss_genmd4_model")
    t = stratified_times(tensors["t0"], torch.arange(4), 4)
    close(rescale_times(t, record["config"]["t1"]), tensors["t_used"])
