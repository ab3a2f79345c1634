# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The digits preset from training to pictures: held-out bits beside those of compressors, samples that are recognised.

python benchmarks/digits.py --output benchmarks/results/digits.md

Trains `runs/digits` first, or continues with it. The pictures are written beside the report.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import math
import shlex
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from measuring import machine, publish
from sklearn.svm import SVC

from md4_hf import (
    DataArguments,
    MaskedDiffusionPipeline,
    MD4ImageProcessor,
    encode_images,
    load_images,
    save_image_grid,
)
from md4_hf.cli import main
from md4_hf.data.images import ImageDataset
from md4_hf.evaluation.baselines import pixel_histogram_bits


LEVELS, CLASSES = 17, 10
ZLIB_WINDOW = 2**15
GUIDANCE_SCALES = (1.0, 2.0, 4.0)
ENLARGE, GAP = 5, 4
MASKED_HALVES = {"lower": np.s_[4:, :], "upper": np.s_[:4, :], "left": np.s_[:, :4], "right": np.s_[:, 4:]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/digits", help="Folder of the training.")
    parser.add_argument("--per_class", type=int, default=20, help="Images drawn of each class, at each scale.")
    parser.add_argument("--draws", type=int, default=32, help="Draws of each image's bound.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="Markdown file to write; printed if left out, and then without pictures.")
    return parser.parse_args()


def trained(run: Path) -> float:
    """Train the preset, unless that is done; the minutes that the command took, all times it was called."""
    record = run / "benchmark_training.json"
    earlier = json.loads(record.read_text(encoding="utf-8")) if record.exists() else 0.0
    if (run / "model.safetensors").exists():
        return earlier
    start = time.perf_counter()
    try:
        main(["train", "--preset", "digits", "--output_dir", str(run), "--resume_from_checkpoint", "auto"])
    finally:
        minutes = earlier + (time.perf_counter() - start) / 60
        run.mkdir(parents=True, exist_ok=True)
        publish(json.dumps(minutes), str(record))
    return minutes


def held_out_bits(run: Path, draws: int) -> tuple[float, float]:
    """Bits per dimension by `md4 evaluate`, and their standard error."""
    result = run / "benchmark.json"
    main(["evaluate", str(run), "--data", "digits", "--draws", str(draws), "--output_file", str(result)])
    metrics = json.loads(result.read_text(encoding="utf-8"))["metrics"]
    return metrics["eval_bits_per_dimension"], metrics["eval_bits_per_dimension_stderr"]


def ids_and_labels(examples: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Ids `(images, height, width)` and classes `(images,)`."""
    rows = examples.__getitems__(list(range(len(examples))))
    return np.stack([row["input_ids"][0] for row in rows]), np.stack([row["class_labels"] for row in rows])


def compressed_bits(train: np.ndarray, heldout: np.ndarray) -> dict[str, float]:
    """Bits per dimension of the held-out images as compressors write them, those images in one stream or file."""
    known, new = train.astype(np.uint8).tobytes(), heldout.astype(np.uint8).tobytes()
    primed = zlib.compressobj(9, zdict=known[-ZLIB_WINDOW:])
    sheet, each = io.BytesIO(), 0
    levels = np.round(heldout * 255 / (LEVELS - 1)).astype(np.uint8)
    PIL.Image.fromarray(levels.reshape(-1, heldout.shape[2])).save(sheet, "PNG", optimize=True)
    for image in levels:
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "PNG", optimize=True)
        each += len(file.getvalue())
    size = {
        "PNG, each image a file": each,
        "PNG, all images in one": len(sheet.getvalue()),
        "zlib, level 9": len(zlib.compress(new, 9)),
        "zlib, the last 32 KiB of the training images as its dictionary": len(primed.compress(new) + primed.flush()),
        "LZMA": len(lzma.compress(new, preset=9 | lzma.PRESET_EXTREME)),
        "LZMA, what they add to the training images": len(lzma.compress(known + new, preset=9 | lzma.PRESET_EXTREME))
        - len(lzma.compress(known, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * count / heldout.size for name, count in size.items()}


def classifier(ids: np.ndarray, labels: np.ndarray) -> SVC:
    """scikit-learn's own choice for these digits, trained on real ones."""
    return SVC(gamma=0.001).fit(ids.reshape(len(ids), -1), labels)


def accuracy(judge: SVC, ids: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Part of the images that are recognised, and its standard error."""
    part = float(np.mean(judge.predict(ids.reshape(len(ids), -1)) == labels))
    return part, math.sqrt(part * (1 - part) / len(labels))


def draw_classes(pipe, per_class: int, scale: float, seed: int) -> tuple[list, np.ndarray, np.ndarray]:
    """Pictures of each class in turn, their ids and their classes."""
    output = pipe(
        class_labels=list(range(CLASSES)),
        num_samples=per_class,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(seed),
    )
    return output.images, output.sequences[:, 0].cpu().numpy(), np.repeat(np.arange(CLASSES), per_class)


def draw_halves(pipe, heldout: np.ndarray, labels: np.ndarray, seed: int, fills: int = 4) -> list:
    """For each half a row: of two held-out images the whole, the rest that is kept, and that filled several times."""
    pictures = []
    for number, half in enumerate(MASKED_HALVES.values()):
        for index in (2 * number, 2 * number + 1):
            ids = torch.from_numpy(heldout[index]).long()[None, None]
            masked = ids.clone()
            masked[0, 0][half] = pipe.mask_token_id
            generator = torch.Generator().manual_seed(seed + index)
            filled = pipe(
                input_ids=masked, class_labels=int(labels[index]), num_samples=fills, generator=generator
            ).sequences
            kept = masked[0] != pipe.mask_token_id
            if not torch.equal(filled[:, kept], ids[:, kept].expand(fills, -1)):
                raise AssertionError("A pixel that was kept has changed.")
            pictures += pipe.preview(torch.cat([ids, masked, filled]))
    return pictures


def draw_opening(pipe, seed: int, steps: int = 64, every: int = 7) -> list:
    """A digit of each class as it opens, a row each."""
    frames: list[list] = []

    def watch(_pipe, step, _timestep, tensors):
        if step % every == 0 or step == steps - 1:
            frames.append(pipe.preview(tensors["sample"]))
        return {}

    generator = torch.Generator().manual_seed(seed)
    pipe(
        class_labels=list(range(CLASSES)),
        num_inference_steps=steps,
        generator=generator,
        callback_on_step_end=watch,
    )
    return [picture for row in zip(*frames, strict=True) for picture in row]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table of Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def report(args: argparse.Namespace) -> str:
    """Train if need be, measure, draw, and write it up."""
    run = Path(args.run)
    minutes = trained(run)
    bits, stderr = held_out_bits(run, args.draws)
    pipe = MaskedDiffusionPipeline.from_pretrained(run)
    processor = MD4ImageProcessor.from_pretrained(run)
    splits = load_images(DataArguments(data="digits"))
    (train, train_labels), (heldout, labels) = (
        ids_and_labels(encode_images(images, processor, num_classes=CLASSES)) for images in splits
    )
    others = {
        "all levels alike": math.log2(LEVELS),
        "histogram of each pixel in the training images": pixel_histogram_bits(train, heldout, LEVELS),
        **compressed_bits(train, heldout),
    }
    judge = classifier(train, train_labels)
    real, real_stderr = accuracy(judge, heldout, labels)
    recognised = [("held-out images", f"{len(labels)}", f"{100 * real:.1f} ± {100 * real_stderr:.1f}")]
    pictures: dict[str, tuple[list, Sequence]] = {}  # the images, and the label of each row
    for scale in GUIDANCE_SCALES:
        images, ids, classes = draw_classes(pipe, args.per_class, scale, args.seed)
        part, error = accuracy(judge, ids, classes)
        recognised.append((f"generated, guidance {scale:g}", f"{len(ids)}", f"{100 * part:.1f} ± {100 * error:.1f}"))
        if scale in GUIDANCE_SCALES[:2]:
            pictures[f"digits_guidance_{scale:g}.png"] = (images, range(CLASSES))
    pictures["digits_halves.png"] = (draw_halves(pipe, heldout, labels, args.seed), list(MASKED_HALVES))
    pictures["digits_opening.png"] = (draw_opening(pipe, args.seed), range(CLASSES))
    if args.output:
        for name, (images, rows) in pictures.items():
            layout = {"columns": len(images) // len(rows), "row_labels": rows, "enlarge": ENLARGE, "gap": GAP}
            save_image_grid(images, Path(args.output).with_name(name), **layout)
    return "\n".join(
        [
            "# The digits preset",
            "",
            machine(),
            f"{len(train):,} images to train on, {len(heldout)} held out, 8 × 8 pixels of {LEVELS} levels. "
            f"`md4 train --preset digits` took {minutes:.1f} minutes; {args.draws} draws an image; "
            "± is one standard error.",
            "",
            "```bash",
            "python benchmarks/digits.py " + shlex.join(sys.argv[1:]),
            "```",
            "",
            "## Held-out bits per dimension",
            "",
            *table(
                ("model", "bits"),
                [
                    ("**MD4, given the class (a bound)**", f"**{bits:.3f} ± {stderr:.3f}**"),
                    *((name, f"{value:.3f}") for name, value in sorted(others.items(), key=lambda item: item[1])),
                ],
            ),
            "",
            "The label, which the bound is given and the others are not, is worth at most "
            f"log2(10) / 64 = {math.log2(CLASSES) / heldout[0].size:.3f} bits per dimension.",
            "",
            "## Recognised by a support vector machine trained on real digits, %",
            "",
            *table(("images", "number", "recognised as their class"), recognised),
            "",
            "## Pictures",
            "",
            f"A row for each class, {args.per_class} images; guidance 1, the model's own distribution, and 2:",
            "",
            "![Digits of each class](digits_guidance_1.png)",
            "",
            "![Digits of each class at guidance 2](digits_guidance_2.png)",
            "",
            "Held-out digits, of which the lower, upper, left and right half is filled. Two in a row: the digit, "
            "what is kept of it, and four fillings:",
            "",
            "![Halves filled](digits_halves.png)",
            "",
            "One of each class while it is unmasked; masked pixels are dark grey:",
            "",
            "![Digits opening](digits_opening.png)",
            "",
        ]
    )


if __name__ == "__main__":
    arguments = parse_arguments()
    if arguments.output and not Path(arguments.output).resolve().parent.is_dir():
        raise SystemExit(f"error: `output` must lie in a folder that is there, got {arguments.output}.")
    publish(report(arguments), arguments.output)
