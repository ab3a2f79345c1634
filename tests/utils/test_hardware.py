# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The device that is used where none is named."""

import pytest
import torch

from md4_hf.utils.hardware import choose_device


@pytest.mark.parametrize(("has_driver", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_build_of_torch_for_an_accelerator_that_is_not_there_uses_the_cpu(monkeypatch, has_driver, expected):
    def current_accelerator(check_available=False):
        return torch.device("cuda") if has_driver or not check_available else None

    monkeypatch.setattr("torch.accelerator.current_accelerator", current_accelerator)
    assert choose_device(None) == torch.device(expected)
