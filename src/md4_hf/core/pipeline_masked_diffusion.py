# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling and infilling with a masked diffusion model, as a diffusers pipeline."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import create_repo
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from .chat_inputs import ChatInputs
from .decisions import Decisions, Recorder, is_recorder
from .denoiser_inputs import block_length_of
from .denoising import Observer
from .foreign_scheduler import as_sampler
from .guidance import Classifier
from .image_inputs import ImageInputs, output_type_of
from .input_checks import check_at_least_one, match_tokenizer
from .modeling_md4_base import copy_code
from .pipeline_inputs import Request, TextInputs
from .sampling_call import SamplingCall, SamplingOptions, sampling_loop_of
from .token_filter import LogitsProcessing


CALLBACK_TENSORS = ["sample", "logits"]
Callback: TypeAlias = Callable[[Any, int, Tensor, dict], dict] | PipelineCallback | MultiPipelineCallbacks | Recorder
REMOTE_MODULE = "remote_pipeline"  # opens a saved pipeline where this package is not installed
# Libraries that `model_index.json` names for the components: this package, or those that diffusers always knows.
OWN_LIBRARY = "md4_hf"
REMOTE_LIBRARIES = {
    "MD4ForMaskedDiffusion": "transformers",
    "MD4ImageProcessor": "transformers",
    "MaskedDiffusionScheduler": "diffusers",
}


@dataclass
class MaskedDiffusionPipelineOutput(BaseOutput):
    """
    Output of `MaskedDiffusionPipeline`.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`, or `list[torch.LongTensor]`):
            The ids, on the CPU, a list if rows differ in length; for images, `(rows, channels, height, width)`.
        texts (`list[str]`, *optional*):
            The decoded rows, with `output_type="text"`; of `messages` the answers alone.
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`, *optional*):
            The decoded images, in the form that `MD4ImageProcessor.postprocess` gives them.
    """

    sequences: torch.LongTensor | list[torch.LongTensor]
    texts: list[str] | None = None
    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None


class MaskedDiffusionPipeline(DiffusionPipeline):
    r"""
    Generation of text or images with a masked diffusion model: unconditional, of a class, from a prompt, and infilling
    in any order.

    Every mask token of the prompt or image is filled in, and everything else is kept. The pipeline relies on the
    forward contract of `MD4ForMaskedDiffusion` (`input_ids`, `timesteps`, `attention_mask`, `class_labels`,
    `position_mask` in, logits of the selected positions out), on its `config.mask_token_id` and, for text, on its
    `config.max_position_embeddings`. A pipeline saves to one flat folder, which the Auto classes open too.

    Args:
        model (`PreTrainedModel`): The denoiser, or any `nn.Module` that keeps the contract and has such a `config`.
        scheduler (`SchedulerMixin`):
            A `MaskedDiffusionScheduler`, or another one for masked tokens: any whose `step` takes what diffusers'
            discrete schedulers take, and `mask_token_id`, such as `BlockRefinementScheduler`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for text in and text out.
        image_processor (`BaseImageProcessor`, *optional*): An `MD4ImageProcessor`, for images in and images out.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["tokenizer", "image_processor"]
    _callback_tensor_inputs = CALLBACK_TENSORS
    model_class: ClassVar[str] = "MD4ForMaskedDiffusion"  # of MD4's own models

    def __init__(
        self,
        model: PreTrainedModel,
        scheduler: SchedulerMixin,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: BaseImageProcessor | None = None,
    ):
        super().__init__()
        _check_config(model)
        self.register_modules(model=model, scheduler=scheduler, tokenizer=tokenizer, image_processor=image_processor)
        self._check_components()

    @property
    def device(self) -> torch.device:
        """Device of the model; of a plain `nn.Module`, which does not tell, that of its first parameter or buffer."""
        if hasattr(self.model, "device"):
            return super().device
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def to(self, *args, **kwargs) -> MaskedDiffusionPipeline:
        """Move or convert the model as `DiffusionPipeline.to` does; a plain `nn.Module`, as torch does."""
        if hasattr(self.model, "dtype"):
            return super().to(*args, **kwargs)
        self.model.to(*args, **kwargs)
        return self

    @property
    def mask_token_id(self) -> int:
        """The model's mask id."""
        return self.model.config.mask_token_id

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """`(channels, height, width)` of the model's images; None for a model of text."""
        config = self.model.config
        return config.sample_shape if getattr(config, "is_image", False) else None

    @property
    def _inputs(self) -> TextInputs | ImageInputs:
        if self.image_shape is None:
            return TextInputs(self.model.config, self.tokenizer)
        return ImageInputs(self.model.config, self.image_processor)

    def _chat_inputs(self, messages: Any) -> ChatInputs:
        """Inputs of a call with messages; a ValueError for a model of images."""
        if self.image_shape is not None:
            raise ValueError("`messages` must be None: the model is not one of text.")
        return ChatInputs(self.model.config, self.tokenizer, messages)

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call ran the model with and without a condition, for a scale other than 0 and 1."""
        return self._guidance_scale not in (0.0, 1.0)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call."""
        return self._observer.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to stop, for a callback to set as `pipe._interrupt = True`; unopened positions then stay masked."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        messages: list[dict[str, str]] | list[list[dict[str, str]]] | None = None,
        input_ids: torch.LongTensor | list[list[int]] | None = None,
        image: Any = None,
        mask_image: Any = None,
        num_samples: int = 1,
        length: int | None = None,
        gen_length: int | None = None,
        max_new_tokens: int | None = None,
        block_length: int | None = None,
        use_cache: bool = True,
        eos_early_stop: bool | None = None,
        stop_strings: str | list[str] | None = None,
        class_labels: int | list[int] | torch.LongTensor | None = None,
        guidance_scale: float = 1.0,
        classifier: Classifier | None = None,
        classifier_scale: float = 1.0,
        classifier_method: str = "exact",
        num_inference_steps: int | None = None,
        order: str | None = None,
        order_temperature: float | None = None,
        quota: str | None = None,
        threshold: float | None = None,
        factor: float | None = None,
        entropy_bound: float | None = None,
        kl_bound: float | None = None,
        remasking: str | None = None,
        eta: float | None = None,
        corrector: str | None = None,
        corrector_steps: int | None = None,
        corrector_eta: float | None = None,
        corrector_size: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        suppress_tokens: list[int] | None = None,
        logits_processor: LogitsProcessing | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str | None = None,
        skip_special_tokens: bool = True,
        streamer: Any = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> MaskedDiffusionPipelineOutput | tuple:
        r"""
        Generate text or images.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                Text whose gaps are filled in: mask tokens (`tokenizer.mask_token`), or `<mask:n>` for n >= 1 of them.
                Without `prompt`, `messages` and `input_ids`, the samples are unconditional.
            messages (`list[dict]` or `list[list[dict]]`, *optional*):
                A conversation, or several, as messages with a `role` and a `content`, to be answered: the chat template
                of the tokenizer writes them. `texts` are then the answers alone, and `sequences` have the prompts too.
            input_ids (`torch.LongTensor` of shape `(batch, length)` or `list[list[int]]`, *optional*):
                Ids in place of `prompt`; rows may differ in length. For images, `(batch, channels, height, width)`.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Images in any form that the image processor takes; the part that `mask_image` marks is filled in.
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Part of `image` or `input_ids` to fill: white, true or at least 0.5. Arrays are boolean, floating
                point in [0, 1] or 8-bit, of shape `(height, width)`, `(batch, height, width)` or `(batch, channels,
                height, width)`. All else is kept exactly.
            num_samples (`int`, defaults to 1): Samples per prompt, per image, or per class label.
            length (`int`, *optional*):
                Tokens per row; masks are appended up to it. Without it, a prompt that holds masks keeps its own length,
                and any other row is continued to the model's `max_position_embeddings`.
            gen_length, max_new_tokens (`int`, *optional*): New tokens after the prompt, >= 1, in place of `length`.
            block_length (`int`, *optional*):
                Tokens per block, to generate text block by block from the left. Each block has a reverse process of
                its own, of `num_inference_steps` steps. A block model (`config.block_size`) has its own length, and
                blocks that begin at its multiples; both values of `use_cache` then give the same text.
            use_cache (`bool`, defaults to `True`):
                Whether a block sees the last `max_position_embeddings - block_length` tokens before it through cached
                keys and values, and nothing after it: text of any `length`, with a model without
                `time_conditioning`. Exact for block-causal attention, where no token sees later blocks, and an
                approximation for MD4's attention. Blocks begin at the first mask of any row.
                With `False`, the network runs on whole sequences and sees the masks of later blocks too, as LLaDA
                does: exact for the model, up to its own length. Blocks of a row begin at its first mask. A model that
                sees the time is told the one at which the expected share of the row's masks is left.
            eos_early_stop (`bool`, *optional*):
                Whether a row ends with an EOS token that is drawn behind all given tokens, once everything before it is
                decided. The rest is filled with EOS tokens, left out of the text, and costs no network calls. By
                default with `messages`, if there is an EOS token.
            stop_strings (`str` or `list[str]`, *optional*):
                Strings that end a row where its new text has one: the text then ends with the token that completes it.
            class_labels (`int`, `list[int]` or `torch.LongTensor`, *optional*):
                Label of each prompt (or of all), for class-conditional models. A model with a null class
                (`config.null_class`) samples without a label if none is given.
            guidance_scale (`float`, defaults to 1.0):
                Scale of classifier-free guidance: logits are unconditional + scale * (conditional - unconditional),
                from two copies of each row, at 0 and 1 from one. With `class_labels` the unconditional copy has no
                class, for a model with a null class; without them its prompt, or the given part of an image, is masked.
            classifier (`Callable`, *optional*):
                Guidance by a classifier of sequences: a function of one-hot sequences `(n, ..., vocab)`, masks
                included, and times `(n,)` that returns log p(y | x) `(n,)`. Tokens are drawn with probability
                proportional to mu p(y | x with the token)^`classifier_scale`.
            classifier_scale (`float`, defaults to 1.0): The exponent, >= 0.
            classifier_method (`str`, defaults to `"exact"`):
                `"exact"` asks the classifier for each token at each position that is unmasked (small vocabularies);
                `"first_order"` for its gradient once a step.
            num_inference_steps (`int`, *optional*): Steps (of each block); the scheduler's own number by default.
            order (`str`, *optional*):
                Which masked positions are unmasked first: "random" (the ancestral sampler), "confidence", "candidate",
                "margin", "entropy", "sequential", "threshold", "factor", "entropy_bound" or "klass". This and the
                arguments up to `top_k` stand in `scheduler.config` by default.
            order_temperature (`float`, *optional*): Temperature of the ranking, >= 0; 0 takes the highest scores.
            quota (`str`, *optional*): How many an order unmasks in a step: "ceil", "floor" or "binomial".
            threshold (`float`, *optional*): Confidence in (0, 1] of "threshold" and "klass".
            factor (`float`, *optional*): Factor > 0 of "factor"; larger ones unmask more positions.
            entropy_bound (`float`, *optional*): Bound in nats, >= 0, of "entropy_bound".
            kl_bound (`float`, *optional*): Bound in nats, > 0, of "klass".
            remasking (`str`, *optional*):
                How decided tokens are masked again, with `order="random"`: "cap", "rescale", "confidence", "loop" or
                "flow".
            eta (`float`, *optional*): Strength of the remasking in [0, 1]; 0 is the ancestral sampler.
            corrector (`str`, *optional*): "forward_backward", "gibbs" or "informed".
            corrector_steps (`int`, *optional*): Corrector steps after each step, >= 0.
            corrector_eta (`float`, *optional*): Share in [0, 1] of the tokens that "forward_backward" masks.
            corrector_size (`int`, *optional*): Tokens >= 1 that "gibbs" and "informed" draw anew in each row.
            temperature (`float`, *optional*): Divides the logits, >= 0; 0 takes the most probable token.
            top_p (`float`, *optional*): Nucleus in (0, 1].
            top_k (`int`, *optional*): Keep the k >= 1 most probable tokens.
            suppress_tokens (`list[int]`, *optional*):
                Ids that are never drawn. A prompt may have them all the same.
            logits_processor (`LogitsProcessorList`, `Callable` or a list of them, *optional*):
                Called as `processor(input_ids, logits)` with the logits `(selected, vocab)`, after guidance and before
                the temperature, of the positions that open, and for each of them the ids `(selected, tokens)` of its
                row at that time, masks included; returns the logits to draw from. The mask stays suppressed.
            generator (`torch.Generator` or `list`, *optional*):
                One generator that seeds one for each row, or a list of one per row, which seed them: the draws of a
                row do not depend on the other rows.
            output_type (`str`, *optional*):
                `"text"` (the default) or `"ids"`; for images `"pil"` (the default), `"np"`, `"pt"` or `"ids"`. `"seq"`
                is another word for `"ids"`.
            skip_special_tokens (`bool`, defaults to `True`): Whether special tokens are left out of the text.
            streamer (`TextStreamer`, *optional*):
                Any object with `put(ids)` and `end()`, as transformers' streamers have them, for one row of text: it
                gets the prompt, then each block when it is finished, without blocks the rest as a whole. A
                `put_draft(ids)`, as `TextDiffusionStreamer` has it, gets the block that is being written after each
                step, with its masks.
            return_dict (`bool`, defaults to `True`): Whether to return an output object or a tuple.
            callback_on_step_end (`Callable`, `PipelineCallback`, `MultiPipelineCallbacks` or recorder, *optional*):
                Called as `callback(pipeline, step, timestep, tensors)`, with steps counted over all blocks. The
                `"sample"` it returns replaces the pipeline's. With the `"logits"` it returns, and no other sample, the
                step is drawn anew, by its noise. A `TrajectoryRecorder`, or another object with its `start`, `record`
                and `finish`, is told what each network call decides; it changes nothing, and goes with every option.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*):
                Names among `"sample"` (the default) and `"logits"`; a callback object of diffusers brings its own.

        Returns:
            `MaskedDiffusionPipelineOutput`, or `(sequences, texts)`, for images `(sequences, images)`.

        Raises:
            ValueError: For arguments out of range or that contradict each other, before any computation.
        """
        given = locals()
        tensor_names = ["sample"] if callback_on_step_end_tensor_inputs is None else callback_on_step_end_tensor_inputs
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_names = callback_on_step_end.tensor_inputs
        if not isinstance(tensor_names, (list, tuple)) or any(name not in CALLBACK_TENSORS for name in tensor_names):
            argument = "callback_on_step_end_tensor_inputs"
            raise ValueError(f"`{argument}` must be among {CALLBACK_TENSORS}, got {tensor_names!r}.")
        device = self._execution_device  # not `self.device`: an offloaded model does not run where its weights lie
        inputs = self._inputs if messages is None else self._chat_inputs(messages)
        output_type = output_type_of(inputs, output_type)
        check_at_least_one("num_samples", num_samples)
        request = Request(
            prompt=prompt,
            input_ids=input_ids,
            image=image,
            mask_image=mask_image,
            length=length,
            gen_length=gen_length,
            max_new_tokens=max_new_tokens,
            block_length=block_length_of(self.model.config, block_length),
            use_cache=use_cache,
            eos_early_stop=False if eos_early_stop is None else eos_early_stop,
            stop_strings=stop_strings,
            streamer=streamer,
        )
        if isinstance(inputs, ChatInputs):
            request = inputs.completed(request, eos_early_stop)
        self._observer = PipelineObserver(self, callback_on_step_end, tensor_names)
        loop = sampling_loop_of(self.model)
        if self._observer.sees_steps and not loop.shows_steps:
            raise ValueError(f"`callback_on_step_end` must be left out for {loop.kind}.")
        if self._observer.sees_steps and not request.is_bounded:
            raise ValueError("`callback_on_step_end` must be None with `block_length` and its cache.")
        options = SamplingOptions.of(given)
        call = SamplingCall(self.model, self.scheduler, inputs, request, options, device)
        self._token_filter, self._guidance_scale, self._interrupt = call.token_filter, float(guidance_scale), False
        sample = call.run(self._observer)
        self.maybe_free_model_hooks()
        output = self._output(call, sample, output_type, skip_special_tokens)
        return output if return_dict else (output.sequences, getattr(output, inputs.output_name))

    def preview(
        self, sample: torch.LongTensor, output_type: str = "pil"
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """
        Convert a sample `(rows, channels, height, width)` that may hold masks to images in which masks are grey.

        `output_type` is `"pil"`, `"np"` or `"pt"`, as in a call; a ValueError for others, or without image processor.
        """
        if self.image_shape is None or output_type_of(self._inputs, output_type) == "ids":
            raise ValueError(f"`output_type` must be one of {ImageInputs.output_types}, got {output_type!r}.")
        return self._inputs.decode(sample, output_type)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        remote_code: bool | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        **kwargs,
    ):
        """
        Save all components and `model_index.json` side by side in one folder.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            remote_code (`bool`, *optional*):
                Whether to save the code of the pipeline too, beside that of the model, so that it opens where md4_hf is
                not installed, with `trust_remote_code=True`. By default, whether this pipeline was so opened.
            push_to_hub (`bool`, defaults to `False`):
                Whether to upload the folder and all that is in it as one commit. A folder without a `README.md` gets
                the repository's, or a draft.
            repo_id (`str`, *optional*): Repository to upload to; by default, one with the name of the folder.
            commit_message, private, token, create_pr: As in `push_to_hub`.
            kwargs: Passed on to the model's `save_pretrained`.

        Raises:
            ValueError: For a `variant`: diffusers looks for one in subfolders only, and would not find it again.
        """
        if kwargs.get("variant") is not None:
            raise ValueError(
                f"`variant` must be left out: a flat folder holds one precision, got {kwargs['variant']!r}. Save the "
                "pipeline as it is, `pipeline.to(torch.float16)`, into a folder or branch of its own."
            )
        self.model.save_pretrained(save_directory, **kwargs)
        self.scheduler.save_pretrained(save_directory)
        for processor in (self.tokenizer, self.image_processor):
            if processor is not None:
                processor.save_pretrained(save_directory)
        self.save_config(save_directory)
        remote_code = __package__.partition(".")[0] != OWN_LIBRARY if remote_code is None else remote_code
        _name_classes(Path(save_directory, self.config_name), remote_code)
        if remote_code:
            copy_code(Path(__file__).with_name(f"{REMOTE_MODULE}.py"), save_directory)
        if not push_to_hub:
            return
        # Not by `push_to_hub` of the components: one commit holds the complete pipeline.
        folder = Path(save_directory).resolve()
        repo_id = create_repo(repo_id or folder.name, private=private, token=token, exist_ok=True).repo_id
        if not (folder / "README.md").exists():
            populate_model_card(load_or_create_model_card(repo_id, token=token)).save(folder / "README.md")
        self._upload_folder(folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **entries: Any) -> dict[str, Any]:
        """Read the index of a folder with this class in place of any copy of it that the folder carries.

        Older releases of diffusers also give the `entries` of a DDUF file.
        """
        index = super()._dict_from_json_file(json_file, **entries)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def _output(
        self, call: SamplingCall, sample: Tensor, output_type: str, skip_special_tokens: bool
    ) -> MaskedDiffusionPipelineOutput:
        """Output of a call, of its sample."""
        sequences, shown = call.sequences(sample), call.shown(sample)
        if len({len(ids) for ids in sequences}) == 1:
            sequences = torch.stack(sequences)
        decoded = None if output_type == "ids" else call.inputs.decode(shown, output_type, skip_special_tokens)
        return MaskedDiffusionPipelineOutput(sequences=sequences, **{call.inputs.output_name: decoded})

    def _check_components(self):
        """Check that components agree on mask id and vocabulary; a scheduler without a mask id gets the model's."""
        found = getattr(self.model.config, "model_class", self.model_class)
        if found != self.model_class:
            raise ValueError(
                f"`model` must be an {self.model_class} for {type(self).__name__}, got an {found}: `make_pipeline` "
                "makes the pipeline of each model."
            )
        if getattr(self.model.config, "return_dict", True) is False:
            raise ValueError("`model.config.return_dict` must be True, as outputs are read by name, got False.")
        as_sampler(self.scheduler, self.mask_token_id)
        mask, size = ("the model's mask id", self.mask_token_id), self.model.config.vocab_size
        agreements = [("scheduler", *mask, self.scheduler.config.get("mask_token_id", self.mask_token_id))]
        if self.image_processor is not None:
            levels = self.image_processor.num_levels
            agreements.append(("image_processor", "as many levels as the model,", size - 1, levels))
        if self.tokenizer is not None:
            match_tokenizer(self.tokenizer, self.model.config)
        for name, rule, expected, found in agreements:
            if found != expected:
                raise ValueError(f"`{name}` must have {rule} {expected}, got {found}.")


class PipelineObserver(Observer):
    """Shows the progress of a pipeline's call, calls back, and stops the loop where the pipeline is interrupted."""

    def __init__(self, pipeline: MaskedDiffusionPipeline, callback: Callback | None, tensor_names: list[str]):
        self.pipeline, self.tensor_names, self.records = pipeline, tensor_names, is_recorder(callback)
        self.recorder: Any = callback if self.records else None
        self.callback: Any = None if self.records else callback
        self.sees_steps = self.callback is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether the pipeline is interrupted."""
        return self.pipeline.interrupt

    @contextlib.contextmanager
    def progress(self, num_steps: int) -> Iterator[Callable[[int], Any]]:
        """Show a progress bar, see `Observer.progress`."""
        with self.pipeline.progress_bar(total=num_steps) as bar:
            yield lambda num_done: bar.update(num_done - bar.n)

    def after_step(self, number: int, timestep: Tensor, tensors: dict[str, Tensor | None]) -> dict[str, Any]:
        """Call back, see `Observer.after_step`."""
        given = {name: tensors[name] for name in self.tensor_names}
        return self.callback(self.pipeline, number, timestep, given) or {}

    def begin(self, rows: list[Tensor]):
        """Give a recorder the rows, see `Observer.begin`."""
        if self.records:
            self.recorder.start(self.pipeline, rows, self.pipeline.mask_token_id)

    def after_call(self, decisions: Decisions):
        """Give a recorder what was decided, see `Observer.after_call`."""
        self.recorder.record(decisions)

    def finish(self, sample: Tensor):
        """Give a recorder the sample, see `Observer.finish`."""
        if self.records:
            self.recorder.finish(sample)


def _check_config(model: Any):
    """Raise a ValueError for a denoiser whose configuration lacks what the pipeline reads."""
    config = getattr(model, "config", None)
    is_image = getattr(config, "is_image", False)
    names = ["mask_token_id", "vocab_size", "sample_shape" if is_image else "max_position_embeddings"]
    missing = [name for name in names if getattr(config, name, None) is None]
    if missing:
        attributes = ", ".join(f"`config.{name}`" for name in missing)
        raise ValueError(f"`model` must have {attributes}, got {type(model).__name__} without.")


def _name_classes(path: Path, remote_code: bool):
    """Write into an index which library or file holds the pipeline and each of its components."""
    index = json.loads(path.read_text(encoding="utf-8"))
    class_name = MaskedDiffusionPipeline.__name__
    index.pop("_name_or_path", None)  # a path of this machine
    index["_class_name"] = [REMOTE_MODULE, class_name] if remote_code else class_name
    for name, entry in index.items():
        if name != "_class_name" and isinstance(entry, list) and entry[1] in REMOTE_LIBRARIES:
            index[name] = [REMOTE_LIBRARIES[entry[1]] if remote_code else OWN_LIBRARY, entry[1]]
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
