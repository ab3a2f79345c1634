# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of MD4 models."""

from numbers import Real
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


INTERMEDIATE_SIZE_MULTIPLE = 32
MAX_POWER = 1e6  # as in `schedules`, which `import md4_hf` must not load
MAX_TIMESTEPS = 2**24  # float32 represents all integers up to here
NUM_NORM_GROUPS = 32  # of the group norms of the image networks


def default_intermediate_size(hidden_size: int) -> int:
    """Feed-forward width of MD4: two thirds of four times `hidden_size`, rounded up to a multiple of 32."""
    width = 2 * (4 * hidden_size) // 3
    return -(-width // INTERMEDIATE_SIZE_MULTIPLE) * INTERMEDIATE_SIZE_MULTIPLE


@strict
class MD4Config(PreTrainedConfig):
    r"""
    Configuration of a masked diffusion model (MD4, arXiv:2406.04329): its denoising network and its diffusion process.

    The networks are those of the official code, which has other names: for text, `hidden_size` is its
    `feature_dim * num_heads`, `embedding_size` its `outside_embed`, `conditioning_size` its `feature_dim`; for images,
    `hidden_size` is its `feature_dim`, `channel_multipliers` its `ch_mult`, `residual_dropout` its `dropout_rate`.
    Sizes that are left unset follow the official rules.

    Args:
        vocab_size (`int`, defaults to 50258):
            Number of token ids, **including the mask**; the number of rows of the embedding and of the head.
        mask_token_id (`int`, *optional*):
            Id of the mask token; defaults to `vocab_size - 1`.
        backbone (`str`, defaults to `"transformer"`):
            The denoising network: `"transformer"` for text, `"unet"` or `"uvit"` (a U-Net with a transformer in its
            middle) for images, where each value of each channel is a token.
        hidden_size (`int`, defaults to 768):
            Width of the transformer; a multiple of twice the number of heads (rotary pairs). For images, width of
            the first resolution and of the embedding of a value; a multiple of 32, the number of groups of the norms.
        num_hidden_layers (`int`, defaults to 12):
            Number of blocks. For images, number of blocks at each resolution on the way down; on the way up there is
            one more.
        num_attention_heads (`int`, defaults to 12):
            Number of attention heads of the text transformer.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layer; defaults to 2/3 * 4 * `hidden_size` rounded up to a multiple of 32.
        embedding_size (`int`, *optional*):
            Width of the token embedding if it differs from `hidden_size`: a linear layer then maps it to `hidden_size`.
        mlp_type (`str`, defaults to `"swiglu"`):
            Gate of the feed-forward layer, and activation of the conditioning: `"glu"` (sigmoid), `"swiglu"` (SiLU) or
            `"geglu"` (tanh-approximated GELU).
        time_conditioning (`bool`, defaults to `True`):
            Whether the network sees the time. Without time and classes the blocks use RMSNorm and no modulation.
        conditioning_size (`int`, *optional*):
            Width of the conditioning vector; defaults to `hidden_size // num_attention_heads`, for images to
            `hidden_size`.
        modulation (`str`, defaults to `"adaln_zero"`):
            How conditioning enters the blocks: `"adaln"` or `"adaln_zero"` (starts from zero, so that
            each block is the identity).
        is_causal (`bool`, defaults to `False`):
            Whether each token sees only the tokens before it, as in the autoregressive baseline `MD4ForCausalLM`.
        num_classes (`int`, *optional*):
            Number of class labels of a class-conditional model.
        class_dropout (`float`, defaults to 0.0):
            Probability, in [0, 1), that a label is replaced by the null class in training. If it is above 0, the model
            has one more class, numbered `num_classes`, which stands for no label; classifier-free guidance needs it.
        depth_scaled_init (`bool`, defaults to `False`):
            Whether the variance of the initial feed-forward weights is scaled by 2 / `num_hidden_layers`.
        norm_eps (`float`, *optional*):
            Epsilon of the normalisations, in (0, 1); defaults to 1e-5, for images to 1e-6.
        embedding_dropout (`float`, defaults to 0.0):
            Dropout after the embedding; not applied when `embedding_size` is set, as in the official code.
        attention_dropout (`float`, defaults to 0.0):
            Dropout of the attention probabilities.
        residual_dropout (`float`, defaults to 0.0):
            Dropout of the outputs of attention and feed-forward, one draw per (example, channel) for all positions.
            For images, dropout before the second convolution of a residual block, one draw per value.
        max_position_embeddings (`int`, defaults to 1024):
            Sequence length that the model was trained on.
        image_size (`int` or `list[int]`, defaults to 32):
            Height and width of the images, or one number for both. With n resolutions, `"unet"` needs multiples of
            2^(n - 1), and `"uvit"` squares whose sides are multiples of 2^n.
        num_channels (`int`, defaults to 3):
            Number of channels of the images.
        channel_multipliers (`list[int]`, defaults to `[1]`):
            Width of each resolution of the image networks, in multiples of `hidden_size`; each has half the height and
            width of the one before.
        dit_hidden_size (`int`, defaults to 768):
            Width of the transformer in the middle of `"uvit"`; a multiple of 4 and of its number of heads.
        dit_num_hidden_layers (`int`, defaults to 20):
            Number of blocks of that transformer.
        dit_num_attention_heads (`int`, defaults to 12):
            Number of attention heads of that transformer.
        rope_parameters (`dict`, *optional*):
            Rotary embedding, e.g. `{"rope_type": "default", "rope_theta": 10000.0}` (the default).
        masking_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"cosine"`, `"poly"` or `"geometric"`.
        schedule_power (`float`, defaults to 1.0):
            Exponent of the `"poly"` schedule, in (0, 1e6].
        schedule_eps (`float`, defaults to 1e-4):
            Distance that the schedule keeps from 0 and 1, in [0, 0.5).
        learn_masking_schedule (`bool`, defaults to `False`):
            Whether to learn an exponent w for each token with the model (GenMD4): alpha_t = 1 - (1 - eps) t^w. Needs
            continuous time and the `"poly"` schedule, whose `schedule_power` is the initial exponent of all tokens.
        schedule_first_time (`float`, defaults to 1e-3):
            Earliest time t_1 of GenMD4, in (0, 1); its times lie in [t_1, 1].
        num_train_timesteps (`int`, *optional*):
            Number of steps of discrete-time training; `None` trains in continuous time.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the head shares the embedding's weight; needs `embedding_size=None`.

    Raises:
        ValueError: If sizes do not fit together or a value is out of its range.

    Example:

    ```python
    >>> from md4_hf import MD4Config, MD4ForMaskedDiffusion

    >>> config = MD4Config(vocab_size=28, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    >>> model = MD4ForMaskedDiffusion(config)
    ```
    """

    model_type = "md4"

    vocab_size: int = 50258
    mask_token_id: int | None = None
    backbone: Literal["transformer", "unet", "uvit"] = "transformer"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    embedding_size: int | None = None
    mlp_type: Literal["glu", "swiglu", "geglu"] = "swiglu"
    time_conditioning: bool = True
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
    masking_schedule: Literal["linear", "cosine", "poly", "geometric"] = "linear"
    schedule_power: float | int = 1.0
    schedule_eps: float | int = 1e-4
    learn_masking_schedule: bool = False
    schedule_first_time: float | int = 1e-3
    num_train_timesteps: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # Lists, as they come back from a file.
        self.channel_multipliers = list(self.channel_multipliers)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        self._check_sizes()
        if self.is_image:
            self._check_image()
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        if self.intermediate_size is None:
            self.intermediate_size = default_intermediate_size(self.hidden_size)
        if self.conditioning_size is None:
            self.conditioning_size = self.hidden_size if self.is_image else self.head_dim
        if self.norm_eps is None:
            self.norm_eps = 1e-6 if self.is_image else 1e-5
        self._check_values()
        # transformers would open this file in place of the weights, even if it is pickled.
        weights_file = kwargs.get("transformers_weights")
        _check(weights_file is None, "transformers_weights", "be left out", weights_file)
        super().__post_init__(**kwargs)
        if self.architectures is None:  # the Auto classes choose the model class by it
            self.architectures = ["MD4ForCausalLM" if self.is_causal else "MD4ForMaskedDiffusion"]

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
        return self.backbone != "transformer"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one example: `(num_channels, height, width)`, or `(max_position_embeddings,)` for text."""
        if not self.is_image:
            return (self.max_position_embeddings,)
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return self.num_channels, height, width

    def _check_sizes(self):
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "num_channels",
            "dit_hidden_size",
            "dit_num_hidden_layers",
            "dit_num_attention_heads",
        ):
            _check(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))
        for name in (
            "intermediate_size",
            "embedding_size",
            "conditioning_size",
            "num_classes",
            "num_train_timesteps",
        ):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, "be >= 1 or None", value)
        _check(self.vocab_size >= 2, "vocab_size", "count at least one token and the mask", self.vocab_size)
        if not self.is_image and self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                "`hidden_size` must be a multiple of twice `num_attention_heads` (rotary pairs), got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )

    def _check_image(self):
        size, multipliers = self.image_size, self.channel_multipliers
        is_size = isinstance(size, int) or len(size) == 2
        _check(is_size and min(self.sample_shape) >= 1, "image_size", "be one number or two, each >= 1", size)
        _check(min(multipliers, default=0) >= 1, "channel_multipliers", "be numbers >= 1", multipliers)
        _check(self.hidden_size % NUM_NORM_GROUPS == 0, "hidden_size", "be a multiple of 32", self.hidden_size)
        _check(self.embedding_size is None, "embedding_size", "be None for images", self.embedding_size)
        _check(not self.tie_word_embeddings, "tie_word_embeddings", "be False for images", self.tie_word_embeddings)
        _, height, width = self.sample_shape
        halvings = len(multipliers) - (self.backbone == "unet")
        is_even = height % 2**halvings == 0 == width % 2**halvings
        _check(is_even, "image_size", f"be a multiple of {2**halvings} for these `channel_multipliers`", size)
        if self.backbone == "uvit":
            _check(height == width, "image_size", 'be a square for "uvit"', size)
            heads, width = self.dit_num_attention_heads, self.dit_hidden_size
            is_multiple = width % 4 == 0 and width % heads == 0
            _check(is_multiple, "dit_hidden_size", f"be a multiple of 4 and of its {heads} heads", width)

    def _check_values(self):
        _check(0 <= self.mask_token_id < self.vocab_size, "mask_token_id", "be in [0, vocab_size)", self.mask_token_id)
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout", "class_dropout"):
            _check(0.0 <= getattr(self, name) < 1.0, name, "be in [0, 1)", getattr(self, name))
        _check(0.0 <= self.schedule_eps < 0.5, "schedule_eps", "be in [0, 0.5)", self.schedule_eps)
        _check(self.schedule_power > 0.0, "schedule_power", "be > 0", self.schedule_power)
        _check(self.schedule_power <= MAX_POWER, "schedule_power", f"be at most {MAX_POWER:g}", self.schedule_power)
        _check(0.0 < self.norm_eps < 1.0, "norm_eps", "be in (0, 1)", self.norm_eps)
        if self.num_classes is None:
            _check(self.class_dropout == 0, "class_dropout", "be 0 without `num_classes`", self.class_dropout)
        self._check_rope()
        steps = self.num_train_timesteps or 1
        _check(steps <= MAX_TIMESTEPS, "num_train_timesteps", f"be at most {MAX_TIMESTEPS}", steps)
        if self.time_conditioning:
            _check(
                self.conditioning_size >= 4,
                "conditioning_size",
                "be >= 4 with time conditioning",
                self.conditioning_size,
            )
        _check(0.0 < self.schedule_first_time < 1.0, "schedule_first_time", "be in (0, 1)", self.schedule_first_time)
        if self.is_causal:
            _check(not self.is_image, "is_causal", "be False for images", True)
            _check(not self.learn_masking_schedule, "learn_masking_schedule", "be False for a causal model", True)
        if self.learn_masking_schedule:
            _check(
                self.masking_schedule == "poly", "masking_schedule", 'be "poly" to be learned', self.masking_schedule
            )
            _check(
                self.num_train_timesteps is None, "num_train_timesteps", "be None in GenMD4", self.num_train_timesteps
            )
        if self.tie_word_embeddings and self.embedding_size is not None:
            raise ValueError(
                f"`tie_word_embeddings` needs `embedding_size=None`, got `embedding_size={self.embedding_size}`."
            )

    def validate_rope(self):
        """Validate as transformers does, with a ValueError for missing entries too; images have no rotary embedding."""
        if self.is_image:
            return
        try:
            super().validate_rope()
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"`rope_parameters` must be complete, got {self.rope_parameters}: {error}.") from error

    def _check_rope(self):
        rope = self.rope_parameters or {}
        kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta", 1e4)
        is_known = isinstance(kind, str) and isinstance(theta, Real) and 1.0 <= theta <= 1e12
        _check(is_known, "rope_parameters", "have a `rope_type` and a `rope_theta` in [1, 1e12]", rope)


def _check(holds: bool, name: str, rule: str, value: object):
    if not holds:
        raise ValueError(f"`{name}` must {rule}, got {value}.")
