# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Base classes of the scheduler: those of diffusers, and where it is not installed, as much as `generate` needs."""

from __future__ import annotations

import functools
import inspect
from typing import Any


try:  # transformers asks for no library that is imported within `try`
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import BaseOutput
except ImportError:

    class Entries(dict):
        """Configuration whose entries are attributes too."""

        def __getattr__(self, name: str) -> Any:
            if name in self:
                return self[name]
            raise AttributeError(name)

    class SchedulerMixin:  # type: ignore[no-redef]
        """Stand-in for `diffusers.SchedulerMixin`, without saving and loading."""

    class ConfigMixin:  # type: ignore[no-redef]
        """Stand-in for `diffusers.ConfigMixin`: a configuration that is read and replaced."""

        @property
        def config(self) -> Entries:
            """The arguments that the object was made with."""
            return self._entries

        def register_to_config(self, **entries: Any):
            """Replace entries of the configuration."""
            self._entries = Entries({**getattr(self, "_entries", {}), **entries})

    class BaseOutput:  # type: ignore[no-redef]
        """Stand-in for `diffusers.utils.BaseOutput`: a dataclass whose fields are items too."""

        def __getitem__(self, key: str | int) -> Any:
            return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

        def to_tuple(self) -> tuple:
            """Fields that are not None, in order."""
            return tuple(value for value in vars(self).values() if value is not None)

    def register_to_config(init):  # type: ignore[no-redef]
        """Decorate an `__init__`: its arguments become the configuration."""
        signature = inspect.signature(init)

        @functools.wraps(init)
        def init_with_config(self, *args, **kwargs):
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.register_to_config(**dict(list(bound.arguments.items())[1:]))
            init(self, *args, **kwargs)

        return init_with_config


__all__ = ["BaseOutput", "ConfigMixin", "SchedulerMixin", "register_to_config"]
