# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of MD4 models."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


MAX_POWER = 1e6  # as in `schedules`, which `import md4_hf` must not load
NUM_NORM_GROUPS = 32  # of the group norms of the image networks


def default_intermediate_size(hidden_size: int) -> int:
    """Feed-forward width of MD4: two thirds of four times `hidden_size`, rounded up to a multiple of 32."""
    width = 2 * (4 * hidden_size) // 3
    return -(-width // 32) * 32


@dataclass(frozen=True)
class Backbone:
    """Facts about a kind of denoising network that its configuration depends on."""

    is_image: bool = False  # for images rather than for text
    has_rotary: bool = True  # MD4's own rotary embedding, whose pairs halve the width of a head
    left_out: tuple[str, ...] = ()  # fields that it has no use for
    # Widths that are left unset, and the epsilon of the norms.
    intermediate_size: Callable[[int], int] = default_intermediate_size  # of the hidden size
    conditioning_size: Callable[["MD4Config"], int] = lambda config: config.head_dim
    norm_eps: float = 1e-5


_IMAGES = Backbone(
    is_image=True,
    has_rotary=False,
    left_out=("block_size",),
    conditioning_size=lambda config: config.hidden_size,
    norm_eps=1e-6,
)
BACKBONES = {
    "transformer": Backbone(),
    "ddit": Backbone(
        left_out=("num_classes",), intermediate_size=lambda width: 4 * width, conditioning_size=lambda config: 128
    ),
    "unet": _IMAGES,
    "uvit": _IMAGES,
    "auto": Backbone(left_out=("time_conditioning", "num_classes", "is_causal"), has_rotary=False),
}
DEFAULT_CHAIN_LENGTH = 1000


@dataclass(frozen=True)
class Baseline:
    """Facts about a method that takes the place of MD4."""

    fields: dict[str, Any]  # that have these values, whatever is left at its default
    is_chain: bool = False  # of `num_train_timesteps`
    has_hybrid_loss: bool = False
    model_class: str = "MD4ForDiscreteDiffusion"


_CONTINUOUS = {"masking_schedule": "loglinear", "num_train_timesteps": None}
BASELINES = {
    "ardm": Baseline(
        {"masking_schedule": "linear", "schedule_eps": 0.0, "time_conditioning": False, "num_train_timesteps": None},
        model_class="MD4ForMaskedDiffusion",
    ),
    "d3pm-absorb": Baseline({}, is_chain=True, has_hybrid_loss=True),
    "d3pm-uniform": Baseline({}, is_chain=True, has_hybrid_loss=True),
    "multinomial": Baseline({}, is_chain=True),
    "sedd-absorb": Baseline(_CONTINUOUS),
    "uniform": Baseline(_CONTINUOUS),
}
# Fields that are those of `backbone_config`, where it has them.
FIELDS_OF_BACKBONE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
)


@strict
class MD4Config(PreTrainedConfig):
    r"""
    Configuration of a masked diffusion model (MD4, arXiv:2406.04329): its denoising network and its diffusion process.

    The networks are those of the official code, which has other names: for text, `hidden_size` is its
    `feature_dim * num_heads`, `embedding_size` its `outside_embed`, `conditioning_size` its `feature_dim`; for images,
    `hidden_size` is its `feature_dim`, `channel_multipliers` its `ch_mult`, `residual_dropout` its `dropout_rate`.
    Sizes that are left unset follow the official rules.

    Args:
        vocab_size (`int`, defaults to 50258): Number of token ids, **including the mask**; rows of embedding and head.
        mask_token_id (`int`, *optional*): Id of the mask token; defaults to `vocab_size - 1`.
        unused_token_ids (`list[list[int]]`, *optional*):
            Ids without a token, as ascending ranges `[first, end)`: gaps between the tokenizer's ids, and rows above
            them. Their logits are suppressed, as the mask's is: they are never drawn. Pipelines and trainers that are
            given a tokenizer set this field.
        backbone (`str`, defaults to `"transformer"`):
            The denoising network: for text, `"transformer"`, or `"ddit"`, that of SEDD, MDLM and RADD, or `"auto"`, a
            masked or causal language model of transformers, see `MD4ForMaskedDiffusion.from_backbone`; `"unet"` or
            `"uvit"` (a U-Net with a transformer in its middle) for images, where each value of each channel is a token.
            The DDiT has biased feed-forward layers with a tanh-approximated GELU in place of a gate, weights (and,
            without conditioning, biases) of its LayerNorms, a bias of its head, and sees a time as -log alpha_t.
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the language model of `"auto"`, from which vocabulary and sizes are then taken (not the
            length, which is at most its own); its `is_causal=False` lets a causal model attend both ways. Such a model
            sees neither time nor class.
        predicts_next (`bool`, defaults to `False`):
            Whether, with `"auto"`, the hidden state of the token before predicts a token; of the first, its own.
        hidden_size (`int`, defaults to 768):
            Width of the transformer; a multiple of twice the number of heads (rotary pairs). For images, width of
            the first resolution and of the embedding of a value; a multiple of 32, the number of groups of the norms.
        num_hidden_layers (`int`, defaults to 12):
            Number of blocks; for images, at each resolution on the way down (on the way up there is one more).
        num_attention_heads (`int`, defaults to 12): Number of attention heads of the text transformer.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layer; defaults to 2/3 * 4 * `hidden_size` rounded up to a multiple of 32, for
            `"ddit"` to 4 * `hidden_size`.
        embedding_size (`int`, *optional*):
            Width of the token embedding if it differs from `hidden_size`, to which a linear layer then maps it.
        mlp_type (`str`, defaults to `"swiglu"`):
            Gate of the feed-forward layer, and activation of the conditioning: `"glu"` (sigmoid), `"swiglu"` (SiLU) or
            `"geglu"` (tanh-approximated GELU).
        time_conditioning (`bool`, *optional*):
            Whether the network sees the time; by default it does, except with `"auto"`. Without time and classes the
            blocks use RMSNorm and no modulation.
        conditioning_size (`int`, *optional*):
            Width of the conditioning; defaults to `hidden_size // num_attention_heads`, for images to `hidden_size`,
            for `"ddit"` to 128.
        modulation (`str`, defaults to `"adaln_zero"`):
            How conditioning enters the blocks: `"adaln"`, or `"adaln_zero"` (from zero: each block starts as identity).
        is_causal (`bool`, defaults to `False`):
            Whether each token sees only the tokens before it, as in the autoregressive baseline `MD4ForCausalLM`.
        num_classes (`int`, *optional*): Number of class labels of a class-conditional model.
        class_dropout (`float`, defaults to 0.0):
            Probability, in [0, 1), that a label is replaced by the null class in training. If it is above 0, the model
            has one more class, numbered `num_classes`, which stands for no label; classifier-free guidance needs it.
        depth_scaled_init (`bool`, defaults to `False`):
            Whether the variance of the initial feed-forward weights is scaled by 2 / `num_hidden_layers`.
        norm_eps (`float`, *optional*): Epsilon of the norms, in (0, 1); defaults to 1e-5, for images to 1e-6.
        embedding_dropout (`float`, defaults to 0.0):
            Dropout after the embedding; not applied when `embedding_size` is set, as in the official code.
        attention_dropout (`float`, defaults to 0.0): Dropout of the attention probabilities.
        residual_dropout (`float`, defaults to 0.0):
            Dropout of the outputs of attention and feed-forward, one draw per (example, channel) for all positions; for
            `"ddit"`, one draw per value. For images, dropout before the second convolution of a residual block, also
            one draw per value.
        max_position_embeddings (`int`, defaults to 1024): Sequence length that the model was trained on.
        image_size (`int` or `list[int]`, defaults to 32):
            Height and width of the images, or one number for both. With n resolutions, `"unet"` needs multiples of
            2^(n - 1), and `"uvit"` squares whose sides are multiples of 2^n.
        num_channels (`int`, defaults to 3): Number of channels of the images.
        channel_multipliers (`list[int]`, defaults to `[1]`):
            Width of each resolution in multiples of `hidden_size`; each halves the height and width of the one before.
        dit_hidden_size (`int`, defaults to 768):
            Width of the transformer in the middle of `"uvit"`; a multiple of 4 and of its number of heads.
        dit_num_hidden_layers (`int`, defaults to 20): Number of blocks of that transformer.
        dit_num_attention_heads (`int`, defaults to 12): Number of attention heads of that transformer.
        rope_parameters (`dict`, *optional*):
            Rotary embedding, e.g. `{"rope_type": "default", "rope_theta": 10000.0}` (the default).
        masking_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"cosine"`, `"poly"`, `"geometric"`, or `"loglinear"`, alpha_t = 1 - (1 - eps) t, of SEDD and
            MDLM.
        schedule_power (`float`, defaults to 1.0): Exponent of the `"poly"` schedule, in (0, 1e6].
        schedule_eps (`float`, defaults to 1e-4): Distance that the schedule keeps from 0 and 1, in [0, 0.5).
        learn_masking_schedule (`bool`, defaults to `False`):
            Whether to learn an exponent w for each token with the model (GenMD4): alpha_t = 1 - (1 - eps) t^w. Needs
            continuous time and the `"poly"` schedule, whose `schedule_power` is the initial exponent of all tokens.
        schedule_first_time (`float`, defaults to 1e-3): Earliest time t_1 of GenMD4, in (0, 1).
        num_train_timesteps (`int`, *optional*): Steps of discrete-time training; `None` trains in continuous time.
        baseline (`str`, *optional*):
            Method to compare MD4 with, in its place: `"ardm"` (MD4 with the number of masks drawn in place of the
            time), or one of `MD4ForDiscreteDiffusion`: `"d3pm-absorb"`, `"d3pm-uniform"`, `"multinomial"` (chains of
            `num_train_timesteps`), `"sedd-absorb"`, `"uniform"` (continuous time; the `"loglinear"` schedule).
        hybrid_weight (`float`, defaults to 0.0):
            Lambda, the weight of the cross entropy that D3PM adds to each step's term of its bound in training.
        block_size (`int`, *optional*):
            Tokens per block of a block diffusion model of text, whose blocks are denoised from the left, each given the
            ones before it; 1 is autoregression. `None` denoises whole rows. Not with GenMD4; with `"auto"`, for causal
            language models that attend both ways.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the head shares the embedding's weight; needs `embedding_size=None`.

    Raises:
        ValueError: If sizes do not fit together or a value is out of its range.
    """

    model_type = "md4"
    sub_configs = {"backbone_config": PreTrainedConfig}

    vocab_size: int = 50258
    mask_token_id: int | None = None
    unused_token_ids: list[list[int]] | None = None
    backbone: Literal["transformer", "ddit", "unet", "uvit", "auto"] = "transformer"
    backbone_config: PreTrainedConfig | dict[str, Any] | None = None
    predicts_next: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    embedding_size: int | None = None
    mlp_type: Literal["glu", "swiglu", "geglu"] = "swiglu"
    time_conditioning: bool | None = None
    conditioning_size: int | None = None
    modulation: Literal["adaln", "adaln_zero"] = "adaln_zero"
    is_causal: bool = False
    num_classes: int | None = None
    class_dropout: float | int = 0.0
    depth_scaled_init: bool = False
    norm_eps: float | None = None
    embedding_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    max_position_embeddings: int = 1024
    image_size: int | list[int] | tuple[int, ...] = 32
    num_channels: int = 3
    channel_multipliers: list[int] | tuple[int, ...] = (1,)
    dit_hidden_size: int = 768
    dit_num_hidden_layers: int = 20
    dit_num_attention_heads: int = 12
    rope_parameters: dict[str, Any] | None = None
    masking_schedule: Literal["linear", "cosine", "poly", "geometric", "loglinear"] = "linear"
    schedule_power: float | int = 1.0
    schedule_eps: float | int = 1e-4
    learn_masking_schedule: bool = False
    schedule_first_time: float | int = 1e-3
    num_train_timesteps: int | None = None
    block_size: int | None = None
    baseline: Literal["ardm", "d3pm-absorb", "d3pm-uniform", "multinomial", "sedd-absorb", "uniform"] | None = None
    hybrid_weight: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # Lists, as they come back from a file.
        self.channel_multipliers = list(self.channel_multipliers)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        if self.baseline is not None:
            self._take_baseline()
        if self.time_conditioning is None:
            self.time_conditioning = "time_conditioning" not in self.kind.left_out
        self._take_backbone()
        self._check_sizes()
        if self.is_image:
            self._check_image()
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        if self.intermediate_size is None:
            self.intermediate_size = self.kind.intermediate_size(self.hidden_size)
        if self.conditioning_size is None:
            self.conditioning_size = self.kind.conditioning_size(self)
        if self.norm_eps is None:
            self.norm_eps = self.kind.norm_eps
        self._check_values()
        # transformers would open this file in place of the weights, even if it is pickled.
        weights_file = kwargs.get("transformers_weights")
        if weights_file is not None:
            raise ValueError(f"`transformers_weights` must be left out, got {weights_file}.")
        super().__post_init__(**kwargs)
        if self.architectures is None:  # the Auto classes choose the model class by it
            self.architectures = [self.model_class]

    def check(self):
        """Raise a ValueError for values that do not fit, as at the beginning; for fields that were changed since."""
        self._check_sizes()
        if self.is_image:
            self._check_image()
        self._check_values()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build as transformers does, but raise a ValueError for a configuration of another model type."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"`model_type` must be {cls.model_type!r} for {cls.__name__}, got {model_type!r}.")
        return super().from_dict(config_dict, **kwargs)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def model_class(self) -> str:
        """Name of the class of the complete model."""
        if self.is_causal:
            return "MD4ForCausalLM"
        return "MD4ForMaskedDiffusion" if self.baseline is None else BASELINES[self.baseline].model_class

    @property
    def num_data_tokens(self) -> int:
        """Number of tokens without the mask: `vocab_size - 1`, less the ids without a token."""
        return self.vocab_size - 1 - sum(end - first for first, end in self.unused_token_ids or ())

    @property
    def first_data_token(self) -> int:
        """Lowest id that has a token and is not the mask."""
        taken = sorted([*(self.unused_token_ids or ()), [self.mask_token_id, self.mask_token_id + 1]])
        token = 0
        for first, end in taken:
            token = end if first == token else token
        return token

    @property
    def is_conditional(self) -> bool:
        """Whether the blocks are modulated by a conditioning vector (time, class or both)."""
        return self.time_conditioning or self.num_classes is not None

    @property
    def null_class(self) -> int | None:
        """Class that stands for no label: `num_classes` if the model has a null class, else None."""
        return self.num_classes if self.class_dropout > 0 else None

    @property
    def is_image(self) -> bool:
        """Whether an example is an image of `(num_channels, height, width)` ids rather than text of `(length,)` ids."""
        return self.kind.is_image

    @property
    def kind(self) -> Backbone:
        """Facts about the `backbone`."""
        return BACKBONES[self.backbone]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(num_channels, height, width)`, or `(max_position_embeddings,)` for text."""
        if not self.is_image:
            return (self.max_position_embeddings,)
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return self.num_channels, height, width

    def _take_backbone(self):
        """Take the fields that are those of the backbone's configuration, which becomes an object."""
        is_auto = self.backbone == "auto"
        self._check("backbone_config", (self.backbone_config is not None) == is_auto, 'be given with "auto", only')
        self._check("predicts_next", is_auto or not self.predicts_next, 'be False without `backbone="auto"`')
        if not is_auto:
            return
        if isinstance(self.backbone_config, dict):
            from transformers import AutoConfig  # slow to import

            kind = self.backbone_config.get("model_type")
            if not isinstance(kind, str):
                raise ValueError(f"`backbone_config` must have a `model_type`, got {kind!r}.")
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        own = self.backbone_config
        for name in FIELDS_OF_BACKBONE:
            value = getattr(own, name, None)
            if value is not None:
                setattr(self, name, value)
        most = getattr(own, "max_position_embeddings", None) or self.max_position_embeddings
        self.max_position_embeddings = min(self.max_position_embeddings, most)

    def _take_baseline(self):
        """Set the fields of a baseline's process that are left at their defaults."""
        own = BASELINES[self.baseline]
        fields = {**own.fields, **({"num_train_timesteps": DEFAULT_CHAIN_LENGTH} if own.is_chain else {})}
        for name, value in fields.items():
            if getattr(self, name) == getattr(MD4Config, name):
                setattr(self, name, value)

    def _check(self, name: str, holds: bool, rule: str):
        if not holds:
            raise ValueError(f"`{name}` must {rule}, got {getattr(self, name)}.")

    def _check_sizes(self):
        self._check("vocab_size", self.vocab_size >= 2, "count at least one token and the mask")
        for name, kind in MD4Config.__annotations__.items():
            value = getattr(self, name)
            if kind is int:
                self._check(name, value >= 1, "be >= 1")
            elif kind == int | None and not name.endswith("_token_id"):
                self._check(name, value is None or value >= 1, "be >= 1 or None")
        if self.kind.has_rotary and self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                "`hidden_size` must be a multiple of twice `num_attention_heads` (rotary pairs), got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )

    def _check_image(self):
        is_size = isinstance(self.image_size, int) or len(self.image_size) == 2
        self._check("image_size", is_size and min(self.sample_shape) >= 1, "be one number or two, each >= 1")
        self._check("channel_multipliers", min(self.channel_multipliers, default=0) >= 1, "be numbers >= 1")
        self._check("hidden_size", self.hidden_size % NUM_NORM_GROUPS == 0, f"be a multiple of {NUM_NORM_GROUPS}")
        self._check("embedding_size", self.embedding_size is None, "be None for images")
        self._check("tie_word_embeddings", not self.tie_word_embeddings, "be False for images")
        _, height, width = self.sample_shape
        factor = 2 ** (len(self.channel_multipliers) - (self.backbone == "unet"))
        is_even = height % factor == 0 == width % factor
        self._check("image_size", is_even, f"be a multiple of {factor} for these `channel_multipliers`")
        if self.backbone == "uvit":
            self._check("image_size", height == width, 'be a square for "uvit"')
            heads = self.dit_num_attention_heads
            is_multiple = self.dit_hidden_size % 4 == 0 == self.dit_hidden_size % heads
            self._check("dit_hidden_size", is_multiple, f"be a multiple of 4 and of its {heads} heads")

    def _check_values(self):
        self._check("mask_token_id", 0 <= self.mask_token_id < self.vocab_size, "be in [0, vocab_size)")
        self._check_unused_ids()
        self._check_ranges()
        self._check_objective()
        if self.tie_word_embeddings and self.embedding_size is not None:
            raise ValueError(
                f"`tie_word_embeddings` needs `embedding_size=None`, got `embedding_size={self.embedding_size}`."
            )

    def _check_unused_ids(self):
        ranges = self.unused_token_ids or []
        bounds = [0, *(bound for pair in ranges for bound in pair), self.vocab_size]
        is_ascending = bounds == sorted(bounds) and all(len(pair) == 2 and pair[0] < pair[1] for pair in ranges)
        has_mask = any(first <= self.mask_token_id < end for first, end in ranges) if is_ascending else False
        rule = "be ascending ranges [first, end) in [0, vocab_size], without the mask"
        self._check("unused_token_ids", is_ascending and not has_mask, rule)

    def _check_ranges(self):
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout", "class_dropout"):
            self._check(name, 0.0 <= getattr(self, name) < 1.0, "be in [0, 1)")
        self._check("schedule_eps", 0.0 <= self.schedule_eps < 0.5, "be in [0, 0.5)")
        self._check("schedule_power", self.schedule_power > 0.0, "be > 0")
        self._check("schedule_power", self.schedule_power <= MAX_POWER, f"be at most {MAX_POWER:g}")
        has_hybrid = self.baseline is not None and BASELINES[self.baseline].has_hybrid_loss
        is_weight = 0.0 <= self.hybrid_weight <= 1.0 if has_hybrid else self.hybrid_weight == 0
        self._check("hybrid_weight", is_weight, "be in [0, 1] for D3PM, and 0 for all else")
        self._check("schedule_first_time", 0.0 < self.schedule_first_time < 1.0, "be in (0, 1)")
        self._check("norm_eps", 0.0 < self.norm_eps < 1.0, "be in (0, 1)")
        rope = self.rope_parameters or {}
        kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta", 1e4)
        is_rope = isinstance(kind, str) and isinstance(theta, Real) and 1.0 <= theta <= 1e12
        self._check("rope_parameters", is_rope, "have a `rope_type` and a `rope_theta` in [1, 1e12]")

    def _check_objective(self):
        has_classes = self.num_classes is not None
        for name in self.kind.left_out:
            self._check(name, not getattr(self, name), f'be left out with `backbone="{self.backbone}"`')
        self._check("class_dropout", has_classes or self.class_dropout == 0, "be 0 without `num_classes`")
        steps = self.num_train_timesteps
        self._check("num_train_timesteps", (steps or 1) <= 2**24, "be at most 2**24, to be exact in float32")
        has_room = self.conditioning_size >= 4 or not self.time_conditioning
        self._check("conditioning_size", has_room, "be >= 4 with time conditioning")
        self._check("is_causal", not (self.is_causal and self.is_image), "be False for images")
        if self.block_size is not None:
            self._check("block_size", self.block_size <= self.max_position_embeddings, "fit into the model's length")
            self._check("block_size", not self.is_causal, "be None for a causal model")
            self._check(
                "block_size", not self.learn_masking_schedule, "be None in GenMD4, whose tokens have own times"
            )
        if self.baseline is not None:
            self._check_baseline()
        if self.learn_masking_schedule:
            self._check("learn_masking_schedule", not self.is_causal, "be False for a causal model")
            self._check("masking_schedule", self.masking_schedule == "poly", 'be "poly" to be learned')
            self._check("num_train_timesteps", steps is None, "be None in GenMD4")

    def _check_baseline(self):
        """Check the settings of the process, of which a baseline has fixed ones."""
        kinds = [self.is_causal, self.learn_masking_schedule, self.block_size is not None, self.is_image]
        self._check("baseline", not any(kinds), "be None for causal, GenMD4, block and image models")
        own = BASELINES[self.baseline]
        for name, value in own.fields.items():
            self._check(name, getattr(self, name) == value, f'be {value!r} for `baseline="{self.baseline}"`')
        if own.is_chain:
            self._check("num_train_timesteps", (self.num_train_timesteps or 0) >= 2, "be at least 2 for a chain")

    def validate_rope(self):
        """Validate a rotary embedding, if there is one, as transformers does; missing entries are a ValueError too."""
        if not self.kind.has_rotary:
            return
        try:
            super().validate_rope()
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"`rope_parameters` must be complete, got {self.rope_parameters}: {error}.") from error
