# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Entry point in `model_index.json` for a pipeline that opens where this package is not installed.

`MaskedDiffusionPipeline.save_pretrained(folder, remote_code=True)` copies this file and the ones it names beside the
weights, and `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` starts here. diffusers copies only the
files that this one imports: hence the imports that seem superfluous.
"""

import diffusers
import transformers

from .block_layout import BlockLayout  # noqa: F401
from .chat_inputs import ChatInputs  # noqa: F401
from .chat_messages import encode_prompt  # noqa: F401
from .compat import commit_of  # noqa: F401
from .configuration_md4 import MD4Config  # noqa: F401
from .decisions import Decisions  # noqa: F401
from .denoiser_inputs import DenoiserInputs  # noqa: F401
from .denoising import Denoising  # noqa: F401
from .foreign_scheduler import ForeignScheduler  # noqa: F401
from .generation_md4 import MD4Generation  # noqa: F401
from .guidance import Guidance  # noqa: F401
from .image_inputs import ImageInputs  # noqa: F401
from .image_processing_md4 import MD4ImageProcessor
from .input_checks import check_tensor  # noqa: F401
from .linear_nelbo import linear_nelbo  # noqa: F401
from .masked_diffusion import corrupt  # noqa: F401
from .modeling_md4 import MD4ForMaskedDiffusion
from .modeling_md4_auto import AutoBody  # noqa: F401
from .modeling_md4_base import MD4PreTrainedModel  # noqa: F401
from .modeling_md4_body import MD4Body  # noqa: F401
from .modeling_md4_ddit import MD4DDiTLayer  # noqa: F401
from .modeling_md4_layers import MD4Layer  # noqa: F401
from .modeling_md4_unet import MD4UNet  # noqa: F401
from .opening_orders import OpeningOrder  # noqa: F401
from .pipeline_inputs import TextInputs  # noqa: F401
from .pipeline_masked_diffusion import MaskedDiffusionPipeline  # noqa: F401
from .remasking import Remasking  # noqa: F401
from .reverse_steps import StepPlan  # noqa: F401
from .row_generators import reseed_all  # noqa: F401
from .sampling_call import SamplingCall  # noqa: F401
from .sampling_runs import start_run  # noqa: F401
from .scheduler_base import SchedulerMixin  # noqa: F401
from .schedules import MaskingSchedule  # noqa: F401
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .text_encoding import encode_texts  # noqa: F401
from .text_ends import EndOfText  # noqa: F401
from .text_stream import TextStream  # noqa: F401
from .token_filter import TokenFilter  # noqa: F401
from .triton_nll import nll_and_gradient  # noqa: F401


# diffusers takes the components of a flat folder from libraries that it knows: the index names these libraries.
for library, component in (
    (transformers, MD4ForMaskedDiffusion),
    (transformers, MD4ImageProcessor),
    (diffusers, MaskedDiffusionScheduler),
):
    if not hasattr(library, component.__name__):
        setattr(library, component.__name__, component)
