"""One-level wavelet transforms of feature maps (Mallat 1989), and VisualPrism's wavelet path."""

# B images, C channels, G grid side, F filter taps; sub-bands LL, LH, HL, HH (of rows first, then columns)

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError
from llava.model.multimodal_projector.region_order import by_region, region_rows

SUBBAND_SCALE = (1.0, 1.2, 1.2, 1.5)
SYNTHESIS_GAIN = 0.5  # it is part of the synthesis filters in published checkpoints


class Taps(NamedTuple):
    """A wavelet's four one-dimensional filters, as PyWavelets names and orders them."""

    dec_lo: list[float]
    dec_hi: list[float]
    rec_lo: list[float]
    rec_hi: list[float]


HALF = 0.5**0.5
HAAR = Taps([HALF, HALF], [-HALF, HALF], [HALF, HALF], [HALF, -HALF])


def taps_of(name: str) -> Taps:
    """The filters of a discrete wavelet. Haar needs no PyWavelets, which exported models may lack.

    Raises:
        UserError: if PyWavelets is needed and missing, or has no such wavelet; lists the families.
    """
    if name == "haar":
        return HAAR
    try:
        import pywt
    except ImportError as error:
        raise UserError(f"the wavelet {name!r} needs PyWavelets; run pip install PyWavelets.") from error
    if name not in pywt.wavelist(kind="discrete"):
        families = ", ".join(family for family in pywt.families() if pywt.wavelist(family, kind="discrete"))
        raise UserError(
            f"--visualprism_wavelet {name!r} is not a discrete wavelet of PyWavelets; "
            f"the families are {families}, with names like db2 or bior2.2."
        )
    return Taps(*pywt.Wavelet(name).filter_bank)


def filter_bank(low: list[float], high: list[float], gain: float = 1.0) -> Tensor:
    """float[4, 1, F, F]: the outer products of a pair of one-dimensional filters."""
    pair = torch.tensor([low, high], dtype=torch.float64)
    bank = torch.einsum("ai,bj->abij", pair, pair).reshape(4, 1, len(low), len(low))
    return (gain * bank).float()


def around(size: int, margin: int, device: torch.device) -> Tensor:
    """Indices of a periodic line of `size` samples with `margin` more on either side."""
    return torch.arange(-margin, size + margin, device=device) % size


class Wavelet(nn.Module):
    """Analysis and synthesis, channel by channel, periodic at the edges.

    The filters are buffers, as in published checkpoints.

    Args:
        name: a discrete orthogonal or biorthogonal wavelet of PyWavelets.
    Raises:
        UserError: as taps_of.
    """

    def __init__(self, name: str = "haar"):
        super().__init__()
        self.name = name
        dec_filter, rec_filter = self._filters()
        self.register_buffer("dec_filter", dec_filter)
        self.register_buffer("rec_filter", rec_filter)

    def _filters(self) -> tuple[Tensor, Tensor]:
        taps = taps_of(self.name)
        # A convolution of torch correlates, so the analysis filters run backwards.
        analysis = filter_bank(taps.dec_lo[::-1], taps.dec_hi[::-1])
        return analysis, filter_bank(taps.rec_lo, taps.rec_hi, SYNTHESIS_GAIN)

    def reset_parameters(self) -> None:
        dec_filter, rec_filter = self._filters()
        init.copy_(self.dec_filter, dec_filter)
        init.copy_(self.rec_filter, rec_filter)

    @property
    def is_blockwise(self) -> bool:
        """Whether the transform is one 4x4 matrix on blocks of 2x2 pixels, as it is for Haar."""
        return self.dec_filter.shape[-1] == self.rec_filter.shape[-1] == 2

    def analyse(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G], G even, to float[B, C, 4, G/2, G/2], as pywt.dwt2(mode="periodization").

        A blockwise transform gives sub-bands with channels last in memory, which convolutions prefer.
        """
        if self.is_blockwise:
            tokens = maps.permute(0, 2, 3, 1)
            pixels = torch.stack([tokens[:, row::2, column::2] for row in (0, 1) for column in (0, 1)])
            bands = self.dec_filter.to(maps.dtype).view(4, 4) @ pixels.flatten(1)
            return bands.view_as(pixels).permute(1, 4, 0, 2, 3)
        margin = self.dec_filter.shape[-1] // 2 - 1
        if margin:
            index = around(maps.shape[-1], margin, maps.device)
            maps = maps[..., index, :][..., index]
        bands = nn.functional.conv2d(
            maps.flatten(0, 1).unsqueeze(1), self.dec_filter.to(maps.dtype), stride=2
        )
        return bands.unflatten(0, maps.shape[:2])

    def synthesise(self, bands: Tensor) -> Tensor:
        """float[B, C, 4, G/2, G/2] to float[B, C, G, G]: SYNTHESIS_GAIN times the inverse of analyse."""
        side = 2 * bands.shape[-1]
        if self.is_blockwise:
            tokens = bands.permute(2, 0, 3, 4, 1)
            pixels = self.rec_filter.to(bands.dtype).view(4, 4).T @ tokens.flatten(1)
            blocks = pixels.view(2, 2, *tokens.shape[1:]).permute(2, 3, 0, 4, 1, 5)  # [B, G/2, 2, G/2, 2, C]
            return blocks.reshape(-1, side, side, bands.shape[1]).permute(0, 3, 1, 2)
        margin = self.rec_filter.shape[-1] // 2 - 1
        wrapped = (margin + 1) // 2  # coefficients whose filters reach over the edge
        if wrapped:
            index = around(bands.shape[-1], wrapped, bands.device)
            bands = bands[..., index, :][..., index]
        maps = nn.functional.conv_transpose2d(bands.flatten(0, 1), self.rec_filter.to(bands.dtype), stride=2)
        start = 2 * wrapped + margin
        kept = slice(start, start + side)
        return maps.squeeze(1)[:, kept, kept].unflatten(0, bands.shape[:2])


class WaveletPath(nn.Module):
    """Filters all sub-bands by one depthwise block, weights them and transforms them back (TPQP path 3)."""

    def __init__(self, width: int, norm: type[nn.Module] = nn.BatchNorm2d, wavelet: str = "haar"):
        super().__init__()
        self.wavelet = Wavelet(wavelet)
        self.subband_conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.subband_bn = norm(width)
        self.register_buffer("subband_scale", torch.tensor(SUBBAND_SCALE))

    def reset_parameters(self) -> None:
        init.copy_(self.subband_scale, torch.tensor(SUBBAND_SCALE))

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        # In turn, not at once: in training the shared norm takes its statistics from one sub-band at a time.
        return self.transform(maps, lambda band: nn.functional.gelu(self.subband_bn(self.subband_conv(band))))

    def bands(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to float[B, C, 4, H, H], H = ceil(G/2).

        If G is odd, the last row and column are repeated, as in PyWavelets.
        """
        if maps.shape[-1] % 2:
            maps = nn.functional.pad(maps, (0, 1, 0, 1), mode="replicate")
        return self.wavelet.analyse(maps)

    def transform(self, maps: Tensor, filter_band: Callable[[Tensor], Tensor]) -> Tensor:
        """Analyse, filter each sub-band, weigh, synthesise: float[B, C, G, G] to the same shape."""
        side = maps.shape[-1]
        filtered = [filter_band(band) for band in self.bands(maps).unbind(2)]
        tokens = torch.stack([band.permute(0, 2, 3, 1) for band in filtered])
        bands = tokens * self.subband_scale.to(maps.dtype).view(4, 1, 1, 1, 1)
        return self.wavelet.synthesise(bands.permute(1, 4, 0, 2, 3))[..., :side, :side]

    def samples_low_band(self, scale_factor: int) -> bool:
        """Whether a sample of the output depends only on LL.

        At s = 2 a sample is the mean of a 2x2 block; with a blockwise transform that is a multiple of LL.
        """
        return scale_factor == 2 and self.wavelet.is_blockwise

    def low_band_gains(self) -> tuple[Tensor, Tensor]:
        """If LL suffices, two ratios float32[]: LL to its block's mean, and the sample to the filtered LL."""
        analysis, synthesis = self.wavelet.dec_filter[0].float(), self.wavelet.rec_filter[0].float()
        return 4 * analysis.mean(), self.subband_scale[0] * synthesis.mean()


class SubbandPath(WaveletPath):
    """Concatenates the filtered sub-bands, with learnt gains, and does not transform back (VisualPrism v2).

    After Haar's inverse the mean of a 2x2 block is a multiple of LL. Sampling at s = 2 would lose the rest.
    """

    def __init__(self, width: int, norm: type[nn.Module], wavelet: str = "haar"):
        super().__init__(width, norm, wavelet)
        self.subband_scale = nn.Parameter(torch.tensor(SUBBAND_SCALE))

    def bands_last(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G], channels last in memory, to float[B, H, H, 4, C], H = ceil(G/2)."""
        if not self.wavelet.is_blockwise or maps.shape[-1] % 2:
            return self.bands(maps).permute(0, 3, 4, 2, 1)
        blocks = region_rows(by_region(maps.permute(0, 2, 3, 1), 2))  # [B*H*H, 4, C]
        analysis = self.wavelet.dec_filter.to(maps.dtype).view(1, 4, 4).expand(len(blocks), 4, 4)
        side = maps.shape[-1] // 2
        return torch.bmm(analysis, blocks).unflatten(0, (-1, side, side))

    def kernel(self) -> Tensor:
        """float[4*C, 1, 3, 3]: the shared convolution, repeated for the concatenated sub-bands."""
        return self.subband_conv.weight.repeat(4, 1, 1, 1)

    def forward(self, bands: Tensor, side: int, kernel: Tensor) -> Tensor:  # type: ignore[override]
        """Filter the sub-bands.

        Args:
            bands: float[B, H, H, 4, C], as bands_last gives them.
            side: side of the output; each position is the mean of the sub-band positions that it covers.
            kernel: as kernel() makes it.
        Returns:
            float[B, side*side, 4*C]. The gains are not applied yet: they are folded into the linear map that
            follows (see gains).
        """
        wide = bands.flatten(3).permute(0, 3, 1, 2)
        filtered = nn.functional.conv2d(wide, kernel, padding=1, groups=len(kernel))
        filtered = filtered.permute(0, 2, 3, 1).unflatten(3, (4, -1))
        filtered = self.subband_bn(filtered.movedim(-1, 1)).movedim(1, -1)
        filtered = nn.functional.gelu(filtered).flatten(3)
        if side != filtered.shape[1]:
            pooled = nn.functional.adaptive_avg_pool2d(filtered.permute(0, 3, 1, 2), side)
            filtered = pooled.permute(0, 2, 3, 1)
        return filtered.flatten(1, 2)

    def gains(self) -> Tensor:
        """float[4*C], the factors of the concatenated sub-bands."""
        return self.subband_scale.repeat_interleave(self.subband_conv.in_channels)
