# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Run by `test_genmd4_training.py` under torchrun: train GenMD4 on two ranks, sharded or not, and leave the results.

The training is done once whole, and once more from the checkpoint of its second step.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from test_genmd4_training import dataset, logged, make_trainer


folder, kind = Path(sys.argv[1]), sys.argv[2]
options = {"ema_decay": 0.5, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
if kind == "fsdp2":
    # On the CPU, accelerate takes FSDP for granted only where it believes in several GPUs.
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    config = {"version": 2, "transformer_layer_cls_to_wrap": ["MD4Layer"], "state_dict_type": "FULL_STATE_DICT"}
    config["auto_wrap_policy"] = "TRANSFORMER_BASED_WRAP"
    options |= {"fsdp": True, "fsdp_config": config, "accelerator_config": {"use_configured_state": True}}
elif kind == "zero3":
    # Parameters of up to 20 elements stay gathered: both kinds of parameter are tried.
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 20}
    options |= {
        "deepspeed": {
            "zero_optimization": zero,
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
    }
checkpoints = {"save_strategy": "steps", "save_steps": 2}
trainer = make_trainer(folder / kind, evaluation=dataset(21), **options, **checkpoints)
trainer.train()
assert trainer.args.world_size == 2 and trainer.is_fsdp_enabled == (kind == "fsdp2")
metrics = trainer.evaluate()
trainer.save_model(str(folder / f"{kind}-model"))
resumed = make_trainer(folder / f"{kind}-resumed", evaluation=dataset(21), **options)
resumed.train(resume_from_checkpoint=str(folder / kind / "checkpoint-2"))
resumed_metrics = resumed.evaluate()
resumed.save_model(str(folder / f"{kind}-resumed-model"))
if trainer.is_world_process_zero():
    result = {"nelbo": logged(trainer, "nelbo"), "loss": logged(trainer, "loss"), "metrics": metrics}
    result |= {"resumed_loss": logged(resumed, "loss"), "resumed_metrics": resumed_metrics}
    torch.save(result, folder / f"{kind}.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
