# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A web page on which a model is tried, and the folder of a Gradio Space that shows it."""
