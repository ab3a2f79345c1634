# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options of `md4 train` and `md4 finetune`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..training.elbo_arguments import ElboArguments
from ..utils.options import check_at_least, check_left_out, option


if TYPE_CHECKING:
    from ..core.configuration_md4 import MD4Config


# Fields that may change in a trained model.
CHANGEABLE_FIELDS = (
    *("embedding_dropout", "attention_dropout", "residual_dropout"),
    *("masking_schedule", "schedule_power", "schedule_eps", "num_train_timesteps"),
)
# Fields of a new model whose network is a backbone's: those of the diffusion process, and of how the network is used.
FIELDS_WITH_BACKBONE = (
    *("masking_schedule", "schedule_power", "schedule_eps", "learn_masking_schedule", "schedule_first_time"),
    *("num_train_timesteps", "predicts_next", "attn_implementation", "time_conditioning", "num_classes", "block_size"),
)
CONFIG_NAMES = {"diffusion_block_size": "block_size"}  # of fields whose name an option of the data has
SET_BY_OBJECTIVE = {"is_causal", "learn_masking_schedule", "baseline"}
BASELINE_NAMES = ("ardm", "d3pm-absorb", "d3pm-uniform", "multinomial", "sedd-absorb", "uniform")


@contextlib.contextmanager
def errors_in_names_of_options() -> Iterator[None]:
    """Let a ValueError of the model's configuration name the options that its fields have on the command line."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for option_name, field in CONFIG_NAMES.items():
            message = message.replace(f"`{field}`", f"`{option_name}`")
        raise ValueError(message) from error.__cause__


@dataclass
class StartArguments:
    """Model, objective and tokenizer to start from."""

    _argument_group_name = "start"

    model_name_or_path: str | None = option("Model to train further, in place of a new one: folder or Hub id.")
    backbone_name_or_path: str | None = option(
        "Language model of transformers (folder or Hub id) that becomes the network of a new model, with its weights "
        "and, unless another is named, its tokenizer."
    )
    keep_causal: bool = option("Leave the attention of a causal --backbone_name_or_path causal.", default=False)
    objective: str = option(
        '"md4"; "genmd4", which learns a masking schedule for each token; or a baseline to compare with, such as "ar", '
        "autoregression.",
        default="md4",
        choices=["md4", "genmd4", "ar", *BASELINE_NAMES],
    )
    tokenizer: str | None = option(
        '"bytes", which keeps every text and is the default; "bpe:N", N tokens trained on the data, such as bpe:2048; '
        '"text8" (27 characters: rewrites capitals, digits and punctuation); or a tokenizer\'s folder or Hub id.'
    )
    pad_vocab_to_multiple_of: int = option(
        "Round the rows of a new model of text up to a multiple, such as 64; those without a token are never drawn.",
        default=1,
    )

    def __post_init__(self):
        check_at_least(self, 1, "pad_vocab_to_multiple_of")
        if self.backbone_name_or_path is None:
            check_left_out(self, ["keep_causal"], "without --backbone_name_or_path")
        else:
            names = ("model_name_or_path", "pad_vocab_to_multiple_of")
            check_left_out(self, names, "with --backbone_name_or_path")

    @property
    def base_model(self) -> str | None:
        """The model that is trained further, or that a new one has its network of."""
        return self.model_name_or_path or self.backbone_name_or_path


@dataclass
class RunArguments:
    """Size of a step, and end of the run."""

    _argument_group_name = "run"

    total_batch_size: int | None = option(
        "Sequences per optimizer step over all devices; sets the accumulation steps from the number of processes."
    )
    prepare_only: bool = option("Only prepare the data, for later runs to find in the cache.", default=False)
    final_eval_draws: int = option("Draws per held-out sequence in the evaluation at the end.", default=8)

    def __post_init__(self):
        check_at_least(self, 1, "total_batch_size", "final_eval_draws")


@dataclass
class ModelArguments:
    """Fields of `MD4Config` for a new model; those left out keep the preset's value, or else `MD4Config`'s."""

    _argument_group_name = "new model (defaults: those of the preset, else of MD4Config)"

    backbone: str | None = option(
        "The network: a transformer or ddit for text, the others for images.",
        choices=["transformer", "ddit", "unet", "uvit"],
    )
    hidden_size: int | None = option("Width of the transformer, or of an image network.")
    num_hidden_layers: int | None = option("Number of blocks (image networks: at each resolution).")
    num_attention_heads: int | None = option("Number of attention heads.")
    intermediate_size: int | None = option("Width of the feed-forward.")
    embedding_size: int | None = option("Width of the token embedding, if not the transformer's.")
    mlp_type: str | None = option("Gate of the feed-forward.", choices=["glu", "swiglu", "geglu"])
    time_conditioning: bool | None = option("Give the time to the network.")
    conditioning_size: int | None = option("Width of the conditioning vector.")
    modulation: str | None = option("How conditioning enters the blocks.", choices=["adaln", "adaln_zero"])
    depth_scaled_init: bool | None = option("Scale the initial feed-forward by the depth.")
    embedding_dropout: float | None = option("Dropout after the embedding.")
    attention_dropout: float | None = option("Dropout of the attention probabilities.")
    residual_dropout: float | None = option("Dropout of the blocks' outputs.")
    masking_schedule: str | None = option(
        "Masking schedule.", choices=["linear", "cosine", "poly", "geometric", "loglinear"]
    )
    schedule_power: float | None = option('Exponent of the "poly" schedule.')
    schedule_eps: float | None = option("Distance that the schedule keeps from 0 and 1.")
    learn_masking_schedule: bool | None = option("GenMD4: learn an exponent of the schedule for each token.")
    schedule_first_time: float | None = option("GenMD4's first time t_1.")
    predicts_next: bool | None = option(
        "Predict each token from the state before it, as a causal --backbone_name_or_path does."
    )
    is_causal: bool | None = option("Autoregressive baseline: each token sees only those before it.")
    baseline: str | None = option("Baseline in place of MD4, which --objective sets.", choices=[*BASELINE_NAMES])
    hybrid_weight: float | None = option("D3PM's lambda: weight of the cross entropy that is added to the bound.")
    num_train_timesteps: int | None = option("Steps of discrete-time training; continuous time if left out.")
    diffusion_block_size: int | None = option(
        "Tokens per block of a block diffusion model, which denoises blocks from the left; whole rows if left out."
    )
    image_size: int | None = option("Height and width of the images.")
    num_channels: int | None = option("Channels of the images: 1 (grey) or 3 (RGB).")
    channel_multipliers: list[int] | None = option("Width of each resolution of images, in multiples of hidden_size.")
    dit_hidden_size: int | None = option("Width of the transformer in the middle of a uvit.")
    dit_num_hidden_layers: int | None = option("Number of blocks of that transformer.")
    dit_num_attention_heads: int | None = option("Number of attention heads of that transformer.")
    num_classes: int | None = option("Classes of a class-conditional model of images.")
    class_dropout: float | None = option("Share of the examples that lose their class, for guidance.")
    attn_implementation: str | None = option('Attention backend: "eager", "sdpa", "flash_attention_2", ...')

    def new_config(self, **sizes: int) -> MD4Config:
        """Configuration of a new model with these sizes."""
        from ..core.configuration_md4 import MD4Config

        with errors_in_names_of_options():
            return MD4Config(**sizes, **self.given())

    def given(self) -> dict[str, Any]:
        """Fields of the configuration that have a value."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {CONFIG_NAMES.get(name, name): value for name, value in given.items()}

    def fields_with_backbone(self) -> dict[str, Any]:
        """Fields that have a value, for a new model whose network is a backbone's; a ValueError for the network's."""
        if self.is_causal:
            raise ValueError('`objective` must be "md4" or "genmd4" with `backbone_name_or_path`, got "ar".')
        if self.baseline is not None:
            raise ValueError(
                f'`objective` must be "md4" or "genmd4" with `backbone_name_or_path`, got "{self.baseline}".'
            )
        names = [field.name for field in dataclasses.fields(self)]
        others = [name for name in names if CONFIG_NAMES.get(name, name) not in FIELDS_WITH_BACKBONE]
        check_left_out(self, [name for name in others if name != "is_causal"], "with --backbone_name_or_path")
        return {name: value for name, value in self.given().items() if name in FIELDS_WITH_BACKBONE}

    def change(self, config: MD4Config):
        """Change the configuration of a trained model, as far as its weights allow.

        Raises:
            ValueError: For a field that the weights depend on, if it differs.
        """
        with errors_in_names_of_options():
            for name, value in self.given().items():
                own = getattr(config, name, None)
                if name in CHANGEABLE_FIELDS:
                    setattr(config, name, value)
                elif name != "attn_implementation" and own != value:
                    hint = ", which `objective` sets," if name in SET_BY_OBJECTIVE else ""
                    raise ValueError(f"`{name}`{hint} must be the trained model's {own}, got {value}.")
            config.check()


@dataclass
class ShownTrainerArguments:
    """Fields of transformers' `TrainingArguments` that `--help` shows, with their defaults."""

    output_dir: str | None = option("Folder of the run: checkpoints, options, in the end the model.")
    per_device_train_batch_size: int = option("Sequences or images per device in a forward pass.", default=8)
    num_train_epochs: float = option("Passes over the training data.", default=3.0)
    max_steps: int = option("Optimizer steps, in place of --num_train_epochs; needed with --streaming.", default=-1)
    learning_rate: float = option("Highest learning rate.", default=5e-05)
    lr_scheduler_type: str = option(
        'Learning rate over the steps: "linear", "cosine", "constant_with_warmup", ... of transformers.',
        default="linear",
    )
    warmup_steps: float = option(
        "Steps in which the learning rate rises from 0; below 1, a share of all steps.", default=0
    )
    weight_decay: float = option("Weight decay of matrices; biases and norms have none.", default=0.0)
    gradient_accumulation_steps: int = option(
        "Forward passes per optimizer step and device; --total_batch_size sets it.", default=1
    )
    max_grad_norm: float = option("Norm that longer gradients are cut to; 0 cuts none.", default=1.0)
    bf16: bool = option("Compute in bfloat16 mixed precision.", default=False)
    activation_checkpointing: bool | None = option(
        "Recompute activations in backward: less memory, about 20%% slower.", nargs="?", const=True
    )
    torch_compile: bool = option("Compile the blocks of the model with `torch.compile`.", default=False)
    logging_steps: float = option("Steps between log lines, or a share below 1.", default=500)
    report_to: str = option('Services that also get the logs: "tensorboard", "wandb", "all", "none".', default="none")
    eval_strategy: str = option("When to evaluate.", default="no", choices=["no", "steps", "epoch"])
    eval_steps: float | None = option(
        'Steps between evaluations with --eval_strategy "steps"; below 1, a share of all steps; --logging_steps if '
        "left out."
    )
    per_device_eval_batch_size: int = option("Sequences or images per device in an evaluation.", default=8)
    save_steps: float = option("Steps between checkpoints, or a share below 1.", default=500)
    save_total_limit: int | None = option("Checkpoints to keep; older ones are deleted.")
    push_to_hub: bool = option(
        "Upload to --hub_model_id: the averaged weights of each checkpoint, and the finished model.", default=False
    )
    hub_private_repo: bool | None = option(
        "Make a new repository private; if left out, the organisation's default decides."
    )
    hub_model_id: str | None = option("Repository on the Hub, as USER/NAME.")
    seed: int = option("Seed of the initial weights, the order of the data and all noise.", default=42)
    use_cpu: bool = option("Use the CPU even if there is an accelerator.", default=False)
    resume_from_checkpoint: str | None = option(
        'Checkpoint to resume from: its folder, "latest" (the newest complete one of the run), or "auto" (the latest, '
        "or a new run where there is none)."
    )


@dataclass(repr=False)
class ShownTrainingArguments(ElboArguments, ShownTrainerArguments):
    """Stands for `MD4TrainingArguments` in the table of commands: help is printed without importing transformers."""
