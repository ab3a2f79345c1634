# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card of a converted checkpoint: where it is from, its licence, and how to use it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..objective.modality import modality_of
from ..utils.errors import file_errors_as_value_errors


_TEMPLATE = """---
{metadata}
---

# {name}

Weights of the {title} checkpoint `{source}`, converted by `md4 convert` to `md4_hf`, without further training. The
model is described where the checkpoint is.

## Use

```python
{use}
```

{elsewhere}

## Licence

{license}
"""

_USE = """from md4_hf import load_pipeline

pipe = load_pipeline("PATH_OR_HUB_ID")
"""
_ELSEWHERE = {
    True: 'Without md4_hf, `AutoModel.from_pretrained("PATH_OR_HUB_ID", trust_remote_code=True)` runs the code in this '
    "repository.",
    False: "It opens where md4_hf is installed.",
}
_SAVE_IMAGE = 'pipe(num_samples=1).images[0].save("sample.png")'
_PRINT = "print(pipe(num_samples=1).texts[0])"
_PRINT_IDS = 'print(pipe(num_samples=1, output_type="ids").sequences)  # there is no tokenizer'


def make_converted_card(pipeline, title: str, source: str, folder: Path, name: str) -> ModelCard:
    """Card of a converted model.

    Args:
        pipeline: Pipeline of the model.
        title: Name of its family.
        source: Folder, file or Hub id that it was converted from.
        folder: Folder of the files that it was converted from, whose card may name the licence.
        name: Title of the card.
    """
    config, license = pipeline.model.config, source_license(folder)
    found = "The checkpoint's card names no licence: ask its authors before you use the weights."
    is_id, modality = not Path(source).exists(), modality_of(config)
    text_use = _PRINT_IDS if pipeline.tokenizer is None else _PRINT
    metadata = ModelCardData(
        library_name="transformers",
        tags=[*modality.tags],
        pipeline_tag=modality.pipeline_tag(config.time_conditioning),
        license=license or "unknown",
        base_model=source if is_id else None,  # ids of the Hub only
    )
    return ModelCard(
        _TEMPLATE.format(
            metadata=metadata.to_yaml(),
            name=name,
            title=title,
            source=source if is_id else Path(source).name,
            use=_USE + (_SAVE_IMAGE if config.is_image else text_use),
            elsewhere=_ELSEWHERE[pipeline.model.has_remote_code],
            license=f"The checkpoint is under the licence `{license}`, by its card." if license else found,
        )
    )


def source_license(folder: Path) -> str | None:
    """Licence in the metadata of a folder's card, None without one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with file_errors_as_value_errors("checkpoint", card):
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
