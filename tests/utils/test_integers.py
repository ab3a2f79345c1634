"""Integers that a user gives."""

import re

import numpy as np
import pytest
import torch

from md4_hf.utils.integers import as_integer


@pytest.mark.parametrize("value", [3, np.int32(3), torch.tensor(3)])
def test_integers_of_all_kinds_become_pythons(value):
    assert type(as_integer("n", value, 3, 3)) is int and as_integer("n", value) == 3


@pytest.mark.parametrize("value", [2, 6, True, 3.0, "3", None])
def test_anything_else_is_an_error(value):
    with pytest.raises(ValueError, match=re.escape(f"`n` must be an integer in [3, 5], got {value!r}.")):
        as_integer("n", value, 3, 5)


def test_the_error_names_the_rule():
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got 0"):
        as_integer("n", 0, 1)
    with pytest.raises(ValueError, match="`n` must be an integer, got 'x'"):
        as_integer("n", "x")
