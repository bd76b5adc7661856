"""What a tokenizer run reports: loss terms and codebook use between reports, fidelity and a picture on validation images."""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unimm.models.image_tokenizer.model import ImageTokenizer


def measure_usage(counts_K: Tensor) -> dict[str, float]:
    """The share of codes that occur, and the perplexity exp(entropy) of their frequencies, of counts (K,); nothing where there
    are no codes."""
    if not len(counts_K):
        return {}
    shares = counts_K.double() / counts_K.sum().clamp(min=1)
    perplexity = torch.special.entr(shares).sum().exp()
    return {"codes/usage": float((counts_K > 0).double().mean()), "codes/perplexity": float(perplexity)}


class TokenizerMeter:
    """Sums over the steps since the last report, of this process. They stay on the device until somebody reads them: a step
    waits for nothing."""

    def __init__(self, codebook_size: int) -> None:
        self._codebook_size = codebook_size
        self._clear()

    def _clear(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._counts = torch.zeros(self._codebook_size, dtype=torch.long)
        self._steps = self._images = 0
        self._seconds = self._waited = 0.0

    def add(self, terms: dict[str, Tensor], codes: Tensor) -> None:
        """One step's loss terms and codes (N, T)."""
        for name, term in terms.items():
            value = term.detach().float()
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        places = codes.flatten()
        self._counts = self._counts.to(places.device).index_add_(0, places, torch.ones_like(places))
        self._steps += 1
        self._images += len(codes)

    def add_time(self, seconds: float, waited: float) -> None:
        """One step's seconds, and those of them spent waiting for images."""
        self._seconds += seconds
        self._waited += waited

    def report(self) -> dict[str, float]:
        """Means for the logbook; starts anew."""
        values = {f"loss/{name}": mean for name, mean in self._means().items()}
        seconds = max(self._seconds, 1e-9)
        values |= {"speed/images_per_second": self._images / seconds, "speed/data_wait": self._waited / seconds}
        values |= measure_usage(self._counts.cpu())
        self._clear()
        return values

    def note(self) -> str:
        """One line for the progress bar."""
        losses = " ".join(f"{name} {mean:.4f}" for name, mean in self._means().items())
        return f"loss {losses} | {self._images / max(self._seconds, 1e-9):,.0f} img/s"

    def _means(self) -> dict[str, float]:
        totals = torch.stack(list(self._terms.values())).tolist() if self._terms else []
        return {name: total / max(self._steps, 1) for name, total in zip(self._terms, totals, strict=True)}


@torch.no_grad()
def reconstruct(tokenizer: ImageTokenizer, pixels_NCHW: Tensor, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) in [-1, 1] and codes (N, T), on the CPU, of images through the codes and back; through the latents,
    and no codes (N, 0), of one that has these."""
    device = next(tokenizer.parameters()).device
    pixels, codes = [], []
    for part_NCHW in pixels_NCHW.split(batch_size):
        drawn_NCHW, codes_NT = tokenizer.there_and_back(part_NCHW.to(device))
        codes.append(codes_NT)
        pixels.append(drawn_NCHW.float().clamp(-1, 1).cpu())
    return torch.cat(pixels), torch.cat(codes).cpu()


def measure_fidelity(drawn_NCHW: Tensor, target_NCHW: Tensor, batch_size: int = 64) -> dict[str, float]:
    """PSNR in dB and SSIM, means over images in [-1, 1]."""
    # Here and not above: torchmetrics takes a quarter of the time in which all of `unimm train` is imported.
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    measures = {"validation/psnr": 0.0, "validation/ssim": 0.0}
    # In parts: SSIM holds some fifty maps an image at once.
    for drawn, target in zip(drawn_NCHW.split(batch_size), target_NCHW.split(batch_size), strict=True):
        psnr = peak_signal_noise_ratio(drawn, target, (-1.0, 1.0), reduction="elementwise_mean", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(drawn, target, data_range=(-1.0, 1.0))
        for name, value in (("validation/psnr", psnr), ("validation/ssim", ssim)):
            measures[name] += float(value) * len(drawn) / len(drawn_NCHW)  # pyright: ignore[reportArgumentType]
    return measures


def to_arrays(pixels_NCHW: Tensor) -> np.ndarray:
    """Images (N, H, W, 3) uint8 of pixels (N, 3, H, W) in [-1, 1]."""
    levels = ((pixels_NCHW.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return rearrange(levels, "n c h w -> n h w c").cpu().numpy()


def draw_grid(target_NCHW: Tensor, drawn_NCHW: Tensor, columns: int = 8, rows: int = 8) -> Image.Image:
    """A picture: rows of originals, each with its reconstructions below; of the first columns * rows images."""
    shown = min(len(target_NCHW), columns * rows)
    columns = min(columns, shown)
    pairs = np.stack([to_arrays(target_NCHW[:shown]), to_arrays(drawn_NCHW[:shown])])
    missing = -shown % columns  # of the last row, which is filled up with white
    pairs = np.pad(pairs, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    return Image.fromarray(rearrange(pairs, "pair (row column) h w c -> (row pair h) (column w) c", column=columns))
