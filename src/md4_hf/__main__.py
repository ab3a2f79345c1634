# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`python -m md4_hf`, the command `md4`; `accelerate launch -m md4_hf train ...` starts it on several processes."""

from .cli import main


if __name__ == "__main__":
    main()
