# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pixel-level denoisers of MD4: a U-Net, and a U-Net with a diffusion transformer in its middle (U-ViT).

Source: Shi et al., arXiv:2406.04329, and the official implementation's networks, which checkpoints convert to exactly.
Their blocks are those of Ho et al., arXiv:2006.11239, Hoogeboom et al., arXiv:2301.11093 (simple diffusion), and
Peebles and Xie, arXiv:2212.09748 (DiT).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .configuration_md4 import NUM_NORM_GROUPS, MD4Config
from .input_checks import check_image, check_left_out
from .modeling_md4_body import BodyInputs, MD4Body, check_ids_and_conditions
from .modeling_md4_layers import MAX_PERIOD, MD4Conditioning, make_norm, modulate, residual_block, zero_linear


PATCH_SIZE = 2


class MD4GroupNorm(nn.Module):
    """Group norm, scaled and shifted by the conditioning in a conditional U-ViT and by parameters otherwise."""

    def __init__(self, config: MD4Config, channels: int):
        super().__init__()
        is_modulated = config.is_conditional and config.backbone == "uvit"
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, channels, eps=config.norm_eps, affine=not is_modulated)
        self.modulation = zero_linear(config.conditioning_size, 2 * channels) if is_modulated else None

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map `(batch, channels, height, width)` to the same shape, given `(batch, conditioning_size)`."""
        hidden_states = self.norm(hidden_states)
        if self.modulation is None:
            return hidden_states
        scale, shift = self.modulation(conditioning).to(hidden_states.device)[..., None, None].chunk(2, dim=1)
        return modulate(hidden_states, shift, scale)


class MD4ResnetBlock(GradientCheckpointingLayer):
    """Residual block: two 3x3 convolutions, each after a norm and SiLU, and a shortcut around them.

    The conditioning is added between the convolutions (U-Net) or modulates the norms (U-ViT). A second input from the
    way down has `skip_channels`. `resample` halves or doubles height and width, here and on the shortcut.
    """

    # With 32 channels, each group of a norm has one channel, and constants added to a channel before the second norm
    # have no effect: the bias of the first convolution, and the conditioning. The official network does the same.

    def __init__(
        self,
        config: MD4Config,
        in_channels: int,
        out_channels: int,
        skip_channels: int = 0,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        in_channels += skip_channels
        self.takes_skip = skip_channels > 0
        self.norm1 = MD4GroupNorm(config, in_channels)
        self.resample = resample
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        is_added = config.is_conditional and config.backbone == "unet"
        self.conditioning_proj = zero_linear(config.conditioning_size, out_channels, bias=False) if is_added else None
        self.norm2 = MD4GroupNorm(config, out_channels)
        self.dropout = nn.Dropout(config.residual_dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv2.init_scale = 0.0
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None, skip: Tensor | None = None) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)`, resampled.

        `conditioning` is `(batch, conditioning_size)`, `skip` `(batch, skip_channels, height, width)`.
        """
        if skip is not None:
            hidden_states = torch.cat([hidden_states, skip], dim=1)
        shortcut, hidden_states = hidden_states, F.silu(self.norm1(hidden_states, conditioning))
        if self.resample is not None:
            shortcut, hidden_states = self.resample(shortcut), self.resample(hidden_states)
        hidden_states = self.conv1(hidden_states)
        if self.conditioning_proj is not None:
            hidden_states = hidden_states + self.conditioning_proj(conditioning)[..., None, None]
        hidden_states = self.conv2(self.dropout(F.silu(self.norm2(hidden_states, conditioning))))
        return hidden_states + (shortcut if self.conv_shortcut is None else self.conv_shortcut(shortcut))


class MD4ImageAttention(nn.Module):
    """Self-attention between all positions, with biases of queries, keys and values."""

    def __init__(self, width: int, num_heads: int, output_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.o_proj = nn.Linear(width, width, bias=output_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `(batch, positions, width)` to the same shape."""
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        output = F.scaled_dot_product_attention(query, key, value)
        return self.o_proj(output.transpose(1, 2).flatten(2))


class MD4AttentionBlock(GradientCheckpointingLayer):
    """Self-attention between the pixels, with one head, after a norm and with a shortcut."""

    def __init__(self, config: MD4Config, channels: int):
        super().__init__()
        self.norm = MD4GroupNorm(config, channels)
        self.attention = MD4ImageAttention(channels, num_heads=1, output_bias=True)

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map `(batch, channels, height, width)` to the same shape."""
        pixels = self.norm(hidden_states, conditioning).flatten(2).transpose(1, 2)
        return hidden_states + self.attention(pixels).transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class MD4UNetMiddle(nn.Module):
    """Middle of the U-Net: residual block, attention, residual block."""

    def __init__(self, config: MD4Config, channels: int):
        super().__init__()
        self.resnet1 = MD4ResnetBlock(config, channels, channels)
        self.attention = MD4AttentionBlock(config, channels)
        self.resnet2 = MD4ResnetBlock(config, channels, channels)

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map `(batch, channels, height, width)` to the same shape, given `(batch, conditioning_size)`."""
        for block in (self.resnet1, self.attention, self.resnet2):
            hidden_states = block(hidden_states, conditioning)
        return hidden_states


class MD4DiTLayer(GradientCheckpointingLayer):
    """Transformer block, modulated by a conditioning vector if the model has one, as `MD4Layer`."""

    def __init__(self, config: MD4Config):
        super().__init__()
        width = config.dit_hidden_size
        self.attention_norm = make_norm(config, width)
        self.attention = MD4ImageAttention(width, config.dit_num_attention_heads, output_bias=False)
        self.mlp_norm = make_norm(config, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = zero_linear(config.conditioning_size, 6 * width) if config.is_conditional else None

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map `(batch, patches, width)` to the same shape, given `(batch, conditioning_size)`."""
        modulation = None if self.modulation is None else self.modulation(F.silu(conditioning))[:, None]
        return residual_block(self, hidden_states, modulation, self.attention, self.mlp)


class MD4DiT(nn.Module):
    """Middle of the U-ViT: a transformer over patches of 2x2 pixels, without a shortcut around it."""

    def __init__(self, config: MD4Config, channels: int):
        super().__init__()
        width = config.dit_hidden_size
        self.grid = config.sample_shape[-1] // 2 ** (len(config.channel_multipliers) - 1) // PATCH_SIZE
        self.patch_embedding = nn.Conv2d(channels, width, PATCH_SIZE, stride=PATCH_SIZE)
        self.position_embedding = nn.Parameter(position_table(self.grid, width))
        self.layers = nn.ModuleList([MD4DiTLayer(config) for _ in range(config.dit_num_hidden_layers)])
        self.norm = make_norm(config, width)
        self.modulation = zero_linear(config.conditioning_size, 2 * width) if config.is_conditional else None
        self.proj_out = zero_linear(width, PATCH_SIZE**2 * channels)

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map `(batch, channels, height, width)` to the same shape, given `(batch, conditioning_size)`."""
        hidden_states = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2) + self.position_embedding
        for layer in self.layers:
            hidden_states = layer(hidden_states, conditioning)
        hidden_states = self.norm(hidden_states)
        if self.modulation is not None:
            shift, scale = self.modulation(F.silu(conditioning))[:, None].chunk(2, dim=-1)
            hidden_states = modulate(hidden_states, shift, scale)
        # A patch's values are in the order row, column, channel.
        pixels = self.proj_out(hidden_states).unflatten(2, (PATCH_SIZE, PATCH_SIZE, -1))
        pixels = pixels.unflatten(1, (self.grid, self.grid)).transpose(2, 3)
        return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def position_table(grid: int, width: int) -> Tensor:
    """Initial position embedding, `(grid * grid, width)`: sinusoids of the column, then of the row."""
    frequencies = MAX_PERIOD ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    places = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([places.repeat(grid, 1), places.repeat_interleave(grid, dim=0)], dim=-1)


class MD4UNet(nn.Module):
    """U-Net over embedded pixels: residual blocks down, a middle, and residual blocks up with skip connections.

    The tensors keep the memory format of the embedding, channels last.
    """

    def __init__(self, config: MD4Config):
        super().__init__()
        base, depth = config.hidden_size, config.num_hidden_layers
        widths = [multiplier * base for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(config.num_channels * base, base, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        channels, skips = base, [base]
        for level, width in enumerate(widths):
            if level > 0:
                self.down_blocks.append(MD4ResnetBlock(config, channels, channels, resample=nn.AvgPool2d(2)))
                skips.append(channels)
            for _ in range(depth):
                self.down_blocks.append(MD4ResnetBlock(config, channels, width))
                channels = width
                skips.append(channels)
        self.mid_block = MD4DiT(config, channels) if config.backbone == "uvit" else MD4UNetMiddle(config, channels)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up_blocks.append(MD4ResnetBlock(config, channels, width, skip_channels=skips.pop()))
                channels = width
            if level > 0:
                upsample = nn.Upsample(scale_factor=2, mode="nearest")
                self.up_blocks.append(MD4ResnetBlock(config, channels, channels, resample=upsample))
        self.norm_out = MD4GroupNorm(config, channels)
        self.out_channels = channels

    def forward(self, hidden_states: Tensor, conditioning: Tensor | None) -> Tensor:
        """Map embedded pixels `(batch, num_channels * hidden_size, height, width)` to `(batch, out_channels, ...)`."""
        hidden_states = self.conv_in(hidden_states)
        skips = [hidden_states]
        for block in self.down_blocks:
            hidden_states = block(hidden_states, conditioning)
            skips.append(hidden_states)
        hidden_states = self.mid_block(hidden_states, conditioning)
        for block in self.up_blocks:
            hidden_states = block(hidden_states, conditioning, skips.pop() if block.takes_skip else None)
        return F.silu(self.norm_out(hidden_states, conditioning))


class MD4ImageHead(nn.Conv2d):
    """Convolution from hidden states to the logits of every value of every pixel."""

    def __init__(self, in_channels: int, num_channels: int, vocab_size: int):
        super().__init__(in_channels, num_channels * vocab_size, 3, padding=1)
        self.num_channels = num_channels
        self.init_scale = 0.0

    def forward(self, hidden_states: Tensor, rows: Tensor | None = None) -> Tensor:
        """Map `(batch, in_channels, height, width)` to logits `(batch, num_channels, height, width, vocab)`.

        With flat indices `rows` into (batch, num_channels, height, width), only their logits `(rows, vocab)`.
        """
        logits = super().forward(hidden_states).permute(0, 2, 3, 1).unflatten(3, (self.num_channels, -1))
        if rows is None:
            return logits.permute(0, 3, 1, 2, 4)
        # `rows` count example, channel, pixel; the logits lie in memory as example, pixel, channel.
        rows, pixels, channels = rows.to(logits.device), logits.shape[1] * logits.shape[2], self.num_channels
        example, channel, pixel = rows // (channels * pixels), rows // pixels % channels, rows % pixels
        return logits.flatten(0, 3).index_select(0, (example * pixels + pixel) * channels + channel)


class ImageBody(MD4Body):
    """Body of a model of images: `embed_tokens`, `conditioning` and the `unet` of the model."""

    selects_rows = False

    def build(self, model: PreTrainedModel, config: MD4Config):
        """Make the embedding of values, the conditioning and the U-Net."""
        model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        model.conditioning = MD4Conditioning(config) if config.is_conditional else None
        model.unet = MD4UNet(config)

    def new_head(self, model: PreTrainedModel, config: MD4Config) -> nn.Module:
        """Make a convolution, which begins at zero: at uniform predictions."""
        return MD4ImageHead(model.unet.out_channels, config.num_channels, config.vocab_size)

    def check_inputs(self, model: PreTrainedModel, inputs: BodyInputs, options: dict):
        """Raise a ValueError for inputs of text, wrong shapes and states that are not kept."""
        names = ("attention_mask", "position_ids", "document_ids", "past_key_values")
        is_embedded = inputs.tokens.is_floating_point()
        check_left_out(
            inputs_embeds=inputs.tokens if is_embedded else None, **{name: getattr(inputs, name) for name in names}
        )
        if model.is_asked_for("output_attentions", options):
            raise ValueError("`output_attentions` must be False for a model of images, which keeps none, got True.")
        layers = options.get("output_hidden_states", model.config.output_hidden_states)
        if not (layers is None or isinstance(layers, bool)):
            raise ValueError(f"`output_hidden_states` must be True or False for a model of images, got {layers!r}.")
        check_image(inputs.tokens, model.config)
        check_ids_and_conditions(model.config, inputs)

    def run(self, model: PreTrainedModel, inputs: BodyInputs, **options) -> BaseModelOutput:
        """Hidden states `(batch, channels of the last block, height, width)`."""
        # The features of a pixel are the joined embeddings of its channels, adjacent in memory (channels last).
        pixels = model.embed_tokens(inputs.tokens.permute(0, 2, 3, 1)).flatten(3).permute(0, 3, 1, 2)
        conditioning = None
        if model.conditioning is not None:
            conditioning = model.conditioning(inputs.timesteps, inputs.class_labels, pixels.dtype)
        return BaseModelOutput(last_hidden_state=model.unet(pixels, conditioning))
