# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""MD4 models in the lm-evaluation-harness (`pip install 'md4_hf[eval]'`): the model type "md4_hf".

The harness finds models outside its own package only once their module is imported. `md4 harness` does so, and takes
the same arguments as `lm_eval`:

    md4 harness --model md4_hf --model_args pretrained=FOLDER,draws=32 --tasks TASK --batch_size 64

In Python, import this module before `lm_eval.simple_evaluate(model="md4_hf", ...)`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..core.chat_messages import check_chat_template
from ..core.input_checks import match_tokenizer
from ..core.masked_diffusion import IGNORE_INDEX
from ..core.modeling_md4_base import MD4PreTrainedModel
from ..core.reverse_steps import SAMPLER_OPTIONS
from ..core.text_encoding import decode_continuation, encode_texts
from ..data.collators import PaddingCollator
from ..data.tokenizers import load_tokenizer
from ..hub.loading import default_scheduler, load_model, load_scheduler, make_pipeline
from ..objective.estimators import ANY_ORDER, TIME, check_estimator, example_nelbo
from ..objective.objectives import Objective
from ..objective.order_likelihood import POLICY, OrderLikelihood
from ..utils.hardware import choose_device
from ..utils.integers import as_integer


try:
    # Registers the harness's own models, which it does by itself only while no other is registered.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("The lm-evaluation-harness needs `pip install 'md4_hf[eval]'`.") from error


logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each is called as `example_nelbo` and gives `(batch,)` nats of the scored tokens first.
ESTIMATORS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    name: functools.partial(example_nelbo, estimator=name) for name in (TIME, ANY_ORDER)
}
HARNESS_DEVICE = "cuda:0"  # of the harness's command, where no other is given
LARGEST_AUTO_BATCH_SIZE = 512
DEFAULT_MAX_GEN_TOKS = 256


@dataclass(frozen=True)
class ScoredSequence:
    """Ids of a sequence whose first `num_given` are given and whose last are scored, with its `noise_index`."""

    input_ids: list[int]
    num_given: int
    index: int

    @property
    def features(self) -> dict[str, list[int]]:
        """`input_ids`, and `labels` of -100 on what is given."""
        labels = [IGNORE_INDEX] * self.num_given + self.input_ids[self.num_given :]
        return {"input_ids": self.input_ids, "labels": labels}


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue a prompt, from the harness's `gen_kwargs`; the rest is as in `MaskedDiffusionPipeline`."""

    until: tuple[str, ...]  # before the first of which the continuation ends
    max_gen_toks: int  # tokens of the continuation
    temperature: float = 0.0  # 0 takes the most probable token wherever a position is unmasked
    top_p: float | None = None
    top_k: int | None = None
    num_inference_steps: int | None = None
    sampler: tuple[tuple[str, Any], ...] = ()  # further arguments of the pipeline, by name

    @classmethod
    def of(cls, gen_kwargs: Mapping[str, Any], default_max_gen_toks: int) -> GenerationOptions:
        """Options from `gen_kwargs`; without a `temperature` it is 1 if `do_sample` is true, and 0 otherwise."""
        options = dict(gen_kwargs)
        do_sample = options.pop("do_sample", None)
        if do_sample not in (None, True, False):
            raise ValueError(f"`do_sample` must be True or False, got {do_sample!r}.")
        temperature = options.pop("temperature", float(do_sample or False))
        if not (isinstance(temperature, (int, float)) and temperature >= 0):
            raise ValueError(f"`temperature` must be a number >= 0, got {temperature!r}.")
        until = options.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else until
        if not isinstance(until, (list, tuple)) or not all(isinstance(string, str) for string in until):
            raise ValueError(f"`until` must be a string or a list of strings, got {until!r}.")
        lengths = [options.pop(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in options]
        max_gen_toks = integer_setting("max_gen_toks", (lengths or [default_max_gen_toks])[0], 1)
        further = (*SAMPLER_OPTIONS, "block_length", "use_cache", "eos_early_stop")
        sampler = tuple((name, options.pop(name)) for name in further if name in options)
        known = ("top_p", "top_k", "num_inference_steps")
        if unknown := sorted(options.keys() - set(known)):
            names = ("do_sample", "temperature", "until", "max_gen_toks", *known, *further)
            raise ValueError(f"`gen_kwargs` must be among {names}, got {unknown}.")
        until = tuple(filter(None, until))  # the harness gives empty strings too
        temperature = 0.0 if do_sample is False else float(temperature)
        return cls(until, max_gen_toks, temperature, **options, sampler=sampler)


@register_model("md4_hf")
class MD4LM(LM):
    """An MD4 or GenMD4 model of text, or the autoregressive baseline, as a model of the harness.

    A masked diffusion model has no likelihood in closed form: `loglikelihood` is a lower bound on log p(continuation |
    context), the negative NELBO of the continuation's tokens in nats, while the context is visible and never masked,
    estimated with `draws` draws of time and masks, stratified in time.

    All noise is a function of (seed, task, document, draw, position), see `noise_index`: results depend neither on the
    batch size, nor on the order or the number of documents and processes. The choices of one question are
    masked at the same times and positions, so that most of the noise cancels where they are compared.

    Of the autoregressive baseline, `loglikelihood` is exact and a single forward pass: `draws`, `seed` and `estimator`
    change nothing. It does not generate.

    Args:
        pretrained: Folder or Hub id of a model or of an adapter; or a model, such as an `MD4ForMaskedDiffusion`,
            together with `tokenizer`.
        tokenizer: Tokenizer, or what `load_tokenizer` opens; that of `pretrained` by default.
        revision: Branch, tag or commit of a model on the Hub.
        base: Base model of an adapter, if not the one it names.
        draws: Draws per request, each a forward pass of one row. The estimate for n tokens has a relative standard
            error of about 3 / sqrt(n * draws), of which the choices of a question share most.
        estimator: "time" or "any_order", see `example_nelbo`; by default the latter where the model allows it. Or
            "policy", the likelihood under a sampler, see `OrderLikelihood`, exact for orders without noise.
        order, num_inference_steps: Sampler of "policy"; by default those of the model's scheduler.
        batch_size: Rows per forward pass, each one draw of one request or one generation; "auto" begins with
            `max_batch_size` and halves it as often as memory is short.
        max_length: Tokens of context and continuation together; the model's length by default, which is the most.
        max_gen_toks: Tokens of a generation whose task does not say; 256 by default, or half of `max_length`.
        device: Device of the model; the accelerator if there is one by default. Of several processes, each has its own.
        dtype: Precision of the weights, such as "bfloat16"; that of the files by default.

    Raises as `load_model`; and a ValueError for arguments out of range, models of images and those that need a class.
    """

    def __init__(
        self,
        pretrained: str | MD4PreTrainedModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        revision: str | None = None,
        base: str | None = None,
        draws: int = 128,
        seed: int = 0,
        estimator: str | None = None,
        order: str | None = None,
        num_inference_steps: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        super().__init__()
        self.draws = integer_setting("draws", draws, 1)
        self.seed = integer_setting("seed", seed)
        estimators = sorted([*ESTIMATORS, POLICY])
        if estimator is not None and estimator not in estimators:
            raise ValueError(f"`estimator` must be one of {estimators}, got {estimator!r}.")
        if estimator != POLICY and (order, num_inference_steps) != (None, None):
            raise ValueError(
                f"`order` and `num_inference_steps` must be left out without estimator={POLICY}, got {order!r} and "
                f"{num_inference_steps!r}."
            )
        self.is_auto_batch = isinstance(batch_size, str) and batch_size.partition(":")[0] == "auto"
        name, size = "batch_size", batch_size
        if self.is_auto_batch:
            name, size = "max_batch_size", LARGEST_AUTO_BATCH_SIZE if max_batch_size is None else max_batch_size
        self.batch_size = integer_setting(name, size, 1)
        self._join_processes(choose_device(device))
        revision = None if revision is None else str(revision)  # digits arrive as a number
        self.pretrained, self.revision = pretrained, revision
        self.model = open_model(pretrained, base, revision, dtype).to(self._device).eval()
        config = self.model.config
        self.tokenizer = open_tokenizer(tokenizer, pretrained, revision)
        match_tokenizer(self.tokenizer, config)
        self.objective = Objective.of(self.model)
        self.is_autoregressive = self.objective.is_autoregressive
        self.estimator = estimator or (ANY_ORDER if self.objective.any_order_obstacle is None else TIME)
        if self.estimator == ANY_ORDER:
            check_estimator(self.estimator, self.objective)
        self.policy = self._policy(order, num_inference_steps) if self.estimator == POLICY else None
        longest = config.max_position_embeddings
        self.max_length = longest if max_length is None else integer_setting("max_length", max_length, 1, longest)
        default = min(DEFAULT_MAX_GEN_TOKS, max(self.max_length // 2, 1))
        self.max_gen_toks = default if max_gen_toks is None else integer_setting("max_gen_toks", max_gen_toks, 1)
        # Padding is neither seen nor scored; a tokenizer need not have a token for it.
        self._collate = PaddingCollator(pad_token_id=int(config.mask_token_id == 0))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MD4LM:
        """A model from the words of `--model_args` and the harness's own settings."""
        return super().create_from_arg_string(arg_string, on_this_machine(additional_config or {}))

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> MD4LM:
        """A model from arguments and the harness's own settings."""
        return super().create_from_arg_obj(arg_dict, on_this_machine(additional_config or {}))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Bounds on the log-likelihoods of continuations, given their contexts; for a causal model exact values.

        Both are tokenised together. The context's tokens are those at the beginning that it also has alone, without the
        spaces at its end; all others, and at least the last, are the continuation's: these spaces, and a token that
        reaches across the join. Under an empty context, all tokens are masked and scored: the bound is unconditional. A
        long context loses its beginning.

        Returns:
            For each request of (context, continuation) the bound in nats, and whether the continuation is greedy:
            whether the most probable token at each of its positions, with all of them masked (t = 1), is its own; of a
            causal model, the most probable one after the tokens before it.
        """
        texts = [context + continuation for context, continuation in (request.args for request in requests)]
        rows = encode_texts(self.tokenizer, texts)
        contexts = encode_texts(self.tokenizer, [request.args[0].rstrip() for request in requests])
        sequences = [self._scored_continuation(*given) for given in zip(requests, rows, contexts, strict=True)]

        def cache(position: int, score: tuple[float, bool]):
            self.cache_hook.add_partial("loglikelihood", requests[position].args, score)

        return self._score(sequences, cache, disable_tqdm, "Bounding likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Bounds on the log-likelihoods of entire texts, in nats; for a causal model exact values.

        A text longer than the model is cut into blocks of `max_length`, the last one shorter, and the bounds of the
        blocks are added. The blocks are disjoint, each without the text before it: a block of full length has no room
        for a context, each token counts once, and this is how `md4 evaluate` scores text.
        """
        blocks, owners = [], []
        rows = encode_texts(self.tokenizer, [request.args[0] for request in requests])
        for position, (request, ids) in enumerate(zip(requests, rows, strict=True)):
            for start in range(0, len(ids), self.max_length):
                block = ids[start : start + self.max_length]
                blocks.append(ScoredSequence(block, 0, noise_index(request, start // self.max_length)))
                owners.append(position)
        totals, missing = [0.0] * len(requests), Counter(owners)

        def add(number: int, score: tuple[float, bool]):
            owner = owners[number]
            totals[owner] += score[0]
            missing[owner] -= 1
            if not missing[owner]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[owner].args, totals[owner])

        self._score(blocks, add, disable_tqdm, "Bounding likelihoods of texts")
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of prompts, by `MaskedDiffusionPipeline`; options as in `GenerationOptions`.

        The prompt is followed by `max_gen_toks` masks, all of which are filled; the text ends before the first of the
        `until` strings, or at the tokenizer's EOS token. A long prompt loses its beginning. Even at temperature 0 the
        positions are unmasked in random order, unless `order` says another: the noise is a function of (seed, task,
        document, repeat).
        """
        if self.is_autoregressive:
            rule = "a masked diffusion model for tasks that generate"
            raise ValueError(f"`pretrained` must be {rule}, got an autoregressive one, which is for likelihoods.")
        options = [GenerationOptions.of(request.args[1], self.max_gen_toks) for request in requests]
        longest, most = max((option.max_gen_toks for option in options), default=0), self.max_length - 1
        if longest > most:
            raise ValueError(f"`max_gen_toks` must be in [1, {most}], to leave room for the prompt, got {longest}.")
        repeats: Counter = Counter()
        prompts, generators = [], []
        rows = encode_texts(self.tokenizer, [request.args[0] for request in requests])
        for request, option, ids in zip(requests, options, rows, strict=True):
            prompts.append(ids[option.max_gen_toks - self.max_length :])
            seed = noise_index(request, "generation", self.seed, repeats[id(request)])
            repeats[id(request)] += 1
            generators.append(torch.Generator().manual_seed(seed))
        texts = [""] * len(requests)
        progress = tqdm(total=len(requests), desc="Generating", disable=disable_tqdm or self.rank != 0)
        for option in dict.fromkeys(options):
            members = [position for position, other in enumerate(options) if other == option]
            members.sort(key=lambda position: -len(prompts[position]))

            def generate(batch: Sequence[int], option: GenerationOptions = option) -> list[str]:
                return self._generate([prompts[i] for i in batch], option, [generators[i] for i in batch])

            for position, text in self._in_batches(members, generate):
                texts[position] = text
                self.cache_hook.add_partial("generate_until", requests[position].args, text)
                progress.update()
        progress.close()
        return texts

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other."""
        return gather(tensor) if self.world_size > 1 else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """A list of the objects of all processes on process `dst`, None on the others."""
        objects = gather_object([obj]) if self.world_size > 1 else [obj]
        return objects if self.rank == dst else None

    def barrier(self):
        """Wait for the other processes."""
        if self.world_size > 1:
            PartialState().wait_for_everyone()

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, under which the harness keeps requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, or the one of a name; empty where none is asked for."""
        if not chat_template:
            return ""
        check_chat_template(self.tokenizer)
        return self.tokenizer.get_chat_template(None if chat_template is True else chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Prompt of a conversation, whose last message is to be continued without `add_generation_prompt`."""
        check_chat_template(self.tokenizer)
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return self.tokenizer.apply_chat_template(chat_history, tokenize=False, **how)

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's EOS id, if it has one."""
        return self.tokenizer.eos_token_id

    def get_model_info(self) -> dict[str, Any]:
        """Size and precision of the model, and how the bounds are estimated, for the harness to record."""
        estimate = {"estimator": self.estimator} if self.policy is None else self.policy.facts
        if self.is_autoregressive:
            estimate = {"estimator": "exact"}
        elif self.policy is None or not self.policy.is_exact:
            estimate = {**estimate, "draws": self.draws, "seed": self.seed}
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": self.revision,
            **{f"bound_{name}": value for name, value in estimate.items()},
        }

    def _join_processes(self, device: torch.device):
        """Set rank, world size and device; of several processes, the harness gives each a share of the documents."""
        self._device = device
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        # A process that has finished waits for those with longer requests, however long they take.
        state = PartialState(cpu=self._device.type == "cpu", timeout=timedelta(weeks=52))
        self._rank, self._world_size, self._device = state.process_index, state.num_processes, state.device

    def _scored_continuation(self, request: Instance, ids: list[int], context_ids: list[int]) -> ScoredSequence:
        """Sequence of a request, from the ids of its text and of its context alone."""
        context, continuation = request.args
        if not (continuation and ids):
            raise ValueError(f"`continuation` must have tokens, got {continuation!r} after {context!r}.")
        num_given = min(len_of_common_beginning(ids, context_ids), len(ids) - 1)
        if (size := len(ids) - num_given) > self.max_length:
            rule = f"at most {self.max_length} tokens, the model's length"
            raise ValueError(f"`continuation` must have {rule}, got {size}: {continuation!r}.")
        num_cut = max(len(ids) - self.max_length, 0)
        return ScoredSequence(ids[num_cut:], num_given - num_cut, noise_index(request))

    def _score(
        self,
        sequences: list[ScoredSequence],
        on_score: Callable[[int, tuple[float, bool]], None],
        disable_tqdm: bool,
        description: str,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood or its bound in nats, and greediness; `on_score` gets each, with its position, at once."""
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(sequences)
        # Longest first: neighbours need little padding, and memory is short at once or not at all.
        order = sorted(range(len(sequences)), key=lambda position: -len(sequences[position].input_ids))
        progress = tqdm(total=len(order), desc=description, disable=disable_tqdm or self.rank != 0)

        for position, result in self._in_batches(
            order, lambda batch: self._score_batch([sequences[i] for i in batch])
        ):
            scores[position] = result
            on_score(position, result)
            progress.update()
        progress.close()
        return scores

    def _in_batches(
        self, items: Sequence[Item], function: Callable[[Sequence[Item]], list[Result]]
    ) -> Iterator[tuple[Item, Result]]:
        """Pairs of an item and its result from the function, computed batch by batch."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.batch_size]
            try:
                results = function(batch)
            except Exception as error:
                if not (self.is_auto_batch and self.batch_size > 1 and should_reduce_batch_size(error)):
                    raise
                self.batch_size = max(len(batch) // 2, 1)
                clear_device_cache()
                continue
            yield from zip(batch, results, strict=True)
            start += len(batch)

    @torch.no_grad()
    def _score_batch(self, batch: list[ScoredSequence]) -> list[tuple[float, bool]]:
        inputs = self._collate([sequence.features for sequence in batch])
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        labels = inputs["labels"]
        is_scored = labels != IGNORE_INDEX
        options = {"attention_mask": inputs.get("attention_mask"), "position_mask": is_scored}
        if self.is_autoregressive:
            logits = self.model(input_ids=inputs["input_ids"], **options).logits.float()
            log_p = logits.gather(1, labels[is_scored][:, None]).squeeze(1) - logits.logsumexp(dim=1)
            bounds = torch.zeros(labels.shape, device=labels.device).masked_scatter(is_scored, log_p).sum(dim=1)
        else:
            bounds = -self._estimate(batch, inputs)
            masked = inputs["input_ids"].masked_fill(is_scored, self.model.config.mask_token_id)
            times = torch.ones(len(labels), device=labels.device)
            logits = self.model(input_ids=masked, timesteps=times, **options).logits
        is_same = logits.argmax(dim=-1) == labels[is_scored]
        is_greedy = torch.ones_like(is_scored).masked_scatter(is_scored, is_same).all(dim=1)
        return list(zip(bounds.tolist(), is_greedy.tolist(), strict=True))

    def _estimate(self, batch: list[ScoredSequence], inputs: dict[str, Tensor]) -> Tensor:
        """`(batch,)` bounds on −log p: the one place where the likelihood is estimated."""
        index = torch.tensor([sequence.index for sequence in batch], device=self._device)
        options = {"seed": self.seed, "num_draws": self.draws}
        if self.policy is not None:
            return self.policy(self.model, inputs, index, **options)[0]
        return ESTIMATORS[self.estimator](self.model, self.objective, inputs, index, **options)[0]

    def _policy(self, order: str | None, num_inference_steps: int | None) -> OrderLikelihood:
        """The likelihood under the sampler of this order."""
        steps = None if num_inference_steps is None else integer_setting("num_inference_steps", num_inference_steps, 1)
        config = self.model.config
        scheduler = self._own_scheduler() or default_scheduler(config)
        return OrderLikelihood(scheduler, config, order=order, num_inference_steps=steps)

    def _own_scheduler(self):
        """The scheduler that is saved with the model; None where there is none."""
        return load_scheduler(self.pretrained, revision=self.revision) if isinstance(self.pretrained, str) else None

    def _generate(
        self, prompts: list[list[int]], options: GenerationOptions, generators: list[torch.Generator]
    ) -> list[str]:
        masks = [self.model.config.mask_token_id] * options.max_gen_toks
        names = ("num_inference_steps", "temperature", "top_p", "top_k")
        output = self._pipeline(
            input_ids=[prompt + masks for prompt in prompts],
            generator=generators,
            output_type="ids",
            **{name: getattr(options, name) for name in names},
            **dict(options.sampler),
        )
        rows = zip(prompts, output.sequences, strict=True)
        return [self._decode(ids[len(prompt) :].tolist(), options.until) for prompt, ids in rows]

    @functools.cached_property
    def _pipeline(self):
        """The pipeline, made when it is first needed: diffusers takes seconds to import."""
        pipeline = make_pipeline(self.model, self.tokenizer, self._own_scheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _decode(self, ids: list[int], until: tuple[str, ...]) -> str:
        if self.tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_token_id)]
        text = decode_continuation(self.tokenizer, ids, skip_special_tokens=True)
        return text[: min((text.find(end) for end in until if end in text), default=None)]


def len_of_common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of ids at the beginning that are the same in both."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def on_this_machine(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the harness, with another device in place of its default where there is no CUDA."""
    if settings.get("device") != HARNESS_DEVICE or torch.cuda.is_available():
        return settings
    device = choose_device(None)
    logger.warning("There is no CUDA device (%s, the harness's default): running on %s.", HARNESS_DEVICE, device)
    return {**settings, "device": str(device)}


def open_model(
    pretrained: str | torch.nn.Module, base: str | None, revision: str | None, dtype: str | torch.dtype | None
) -> MD4PreTrainedModel:
    """A model of text that needs no class label, opened if it is not open; errors as in `MD4LM`."""
    as_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not (isinstance(as_dtype, torch.dtype) and as_dtype.is_floating_point):
        raise ValueError(f'`dtype` must be "auto" or a floating point type of torch, got {dtype!r}.')
    if isinstance(pretrained, str):
        model = load_model(pretrained, base=base, revision=revision, dtype=dtype)
    elif isinstance(pretrained, MD4PreTrainedModel):
        model = pretrained if dtype in (None, "auto") else pretrained.to(as_dtype)
    else:
        rule = "a folder, a Hub id or an MD4 model"
        raise ValueError(f"`pretrained` must be {rule}, got {pretrained!r}.")
    if model.config.is_image:
        raise ValueError(f"`pretrained` must be a model of text, got one of images: {pretrained}.")
    if model.config.num_classes is not None and model.config.null_class is None:
        num_classes = model.config.num_classes
        raise ValueError(
            f"`pretrained` must be a model that needs no class label, got one with {num_classes} classes."
        )
    return model


def open_tokenizer(
    tokenizer: str | PreTrainedTokenizerBase | None, pretrained: str | torch.nn.Module, revision: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that is given or named, or else that of a model's folder or Hub id, at the model's revision."""
    if isinstance(tokenizer, str):
        return load_tokenizer(tokenizer)
    if tokenizer is None and not isinstance(pretrained, str):
        raise ValueError("`tokenizer` must be given with a model, got None.")
    return load_tokenizer(pretrained, revision=revision, argument="tokenizer") if tokenizer is None else tokenizer


def noise_index(request: Instance, *parts: Any) -> int:
    """Key of the noise of a request, in [0, 2^31), made of its task, its document and any other `parts`.

    All requests of a document meet the same times, and the same masks at the same places of the sequence: that is where
    the choices of a question follow one context. A document is known by its content and not by its number, which the
    harness gives anew to every choice and order of a task's documents. Requests without one are keyed with the context.
    """
    if request.doc:
        document = json.dumps(request.doc, sort_keys=True, default=str).encode("utf-8")
        owner = [request.task_name, hashlib.sha256(document).hexdigest()]
    else:
        owner = [str(request.args[0])]
    digest = hashlib.sha256(json.dumps([*owner, *parts]).encode("utf-8")).digest()
    # 31 bits only: the times begin at the fraction of its product with the golden ratio, in float64.
    return int.from_bytes(digest[:4], "big") >> 1


def integer_setting(name: str, value: Any, at_least: int | None = None, at_most: int | None = None) -> int:
    """`as_integer` of a value that the command line may give as a string."""
    is_number = isinstance(value, str) and value.removeprefix("-").isdecimal()
    return as_integer(name, int(value) if is_number else value, at_least, at_most)
