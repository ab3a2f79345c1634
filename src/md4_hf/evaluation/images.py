# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures of samples of images, the Fréchet distance (FID) and the Inception score, as torchmetrics computes them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.integers import as_integer


ImageFunction = Callable[[Tensor], Tensor]


def load_inception(device: str | torch.device = "cpu") -> tuple[nn.Module, nn.Module]:
    """Inception network of FID and of the Inception score: TensorFlow's of 2015, in torch-fidelity's version.

    Its weights are downloaded at the first call (95 MB, into the `checkpoints` of torch.hub's folder). Images are
    scaled to 299 × 299 as TensorFlow did it, which published figures rely on.

    Returns:
        Two functions of uint8 images `(n, 3, height, width)`: the features `(n, 2048)`, and the logits of the classes,
        without their bias `(n, 1008)`. An ImportError without torchmetrics and torch-fidelity.
    """
    fid, inception_score = _torchmetrics("torch_fidelity")
    features = fid(feature=2048, antialias=False).inception
    class_logits = _without_warning(inception_score, feature="logits_unbiased").inception
    class_logits.use_antialias = False
    return features.to(device), class_logits.to(device)


@torch.no_grad()
def image_sample_metrics(
    samples: Tensor,
    references: Tensor | None = None,
    *,
    features: ImageFunction | None = None,
    class_logits: ImageFunction | None = None,
    batch_size: int = 50,
    num_splits: int = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, float | int]:
    """Fréchet distance between samples and real images, and Inception score of the samples.

    With mean μ and covariance Σ of the features of samples (s) and of references (r),

        fid = ‖μ_s − μ_r‖² + tr(Σ_s + Σ_r − 2·(Σ_s·Σ_r)^{1/2})               (Heusel et al., arXiv:1706.08500)
        inception_score = exp(mean over x of KL(p(y|x) ‖ mean over x of p(y|x)))  (Salimans et al., arXiv:1606.03498)

    the latter as the mean over `num_splits` parts of the samples. Both depend on the number of images: the FID of few
    is too large, and published ones are of 50,000 samples. Both look at images through a network that was trained on
    photographs: of anything unlike ImageNet they say little. Give features of your own there.

    Args:
        samples: uint8 images `(n, 3, height, width)`, n >= 2; grey ones with their channel three times.
        references: Real images of the same kind, any number >= 2; None leaves the FID out.
        features: uint8 images `(n, 3, height, width)` on `device` to features `(n, d)`, as a module in evaluation
            mode or any function. By default Inception's, see `load_inception`.
        class_logits: Such images to logits of classes. By default Inception's; with `features` and without
            `class_logits` there is no Inception score.
        batch_size: Images at a time, >= 1.
        num_splits: Parts of the samples for the Inception score, >= 1; fewer if a part would have fewer than two.
        seed: Seed of the order in which samples are divided into parts.

    Returns:
        `fid` if there are references; `inception_score`, and `inception_score_std`, its standard deviation over the
        parts, NaN of one, and `num_splits`; `num_samples`; `num_references`.

    Raises:
        ImportError: Without torchmetrics, and for Inception without torch-fidelity.
        ValueError: For images of another kind or fewer than two, and functions that give something else than rows.
    """
    as_integer("batch_size", batch_size, 1)
    as_integer("num_splits", num_splits, 1)
    _check_images("samples", samples)
    if references is not None:
        _check_images("references", references)
    fid, inception_score = _torchmetrics()
    if features is None:
        inception, logits = load_inception(device)
        features, class_logits = inception, logits if class_logits is None else class_logits

    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress}
    metrics: dict[str, float | int] = {"num_samples": len(samples)}
    if references is not None:
        distance = fid(feature=_Rows("features", features, samples[:1].to(device))).to(device)
        for name, images in (("samples", samples), ("references", references)):
            for batch in _batches(images, f"FID, {name}", **options):
                distance.update(batch, real=name == "references")
        metrics |= {"fid": distance.compute().item(), "num_references": len(references)}
    if class_logits is not None:
        num_splits = min(num_splits, len(samples) // 2)  # of one sample, a part always has the score 1
        rows = _Rows("class_logits", class_logits, samples[:1].to(device))
        score = _without_warning(inception_score, feature=rows, splits=num_splits).to(device)
        for batch in _batches(samples, "Inception score", **options):
            score.update(batch)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            mean, std = _without_warning(score.compute)  # the warning that one part has no deviation
        metrics |= {"inception_score": mean.item(), "inception_score_std": std.item(), "num_splits": num_splits}
    return metrics


class _Rows(nn.Module):
    """A function of images as a module for torchmetrics, checked, in float64."""

    def __init__(self, name: str, function: ImageFunction, example: Tensor):
        super().__init__()
        self.name, self.function = name, function
        self.num_features = self(example).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        rows = self.function(images)
        if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != len(images):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"`{self.name}` must give a tensor ({len(images)}, d) for {len(images)} images, got {got}."
            )
        return rows.double()


def _batches(images: Tensor, name: str, batch_size: int, device: str | torch.device, progress: bool):
    from tqdm.auto import tqdm

    for batch in tqdm(images.split(batch_size), desc=name, disable=not progress):
        yield batch.to(device)


def _check_images(name: str, images: Tensor):
    if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3):
        got = (images.dtype, tuple(images.shape)) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"`{name}` must be a uint8 tensor (n, 3, height, width), got {got}.")
    if len(images) < 2:
        raise ValueError(f"`{name}` must hold at least two images, got {len(images)}.")


def _without_warning(function: Callable, **options) -> Any:
    """Result of a function without its warnings, such as that an Inception score keeps 0.4 GB of 50,000 images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(**options)


def _torchmetrics(*more_modules: str) -> tuple[type, type]:
    """The two metrics of torchmetrics; an ImportError without it, or without one of these modules."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore

        for module in more_modules:
            importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # the latter where torchvision is built for another torch
        raise ImportError(
            "FID and Inception score need torchmetrics and torch-fidelity, with a torchvision for this torch: "
            f"pip install 'md4_hf[fid]' ({error})."
        ) from error
    return FrechetInceptionDistance, InceptionScore
