"""One-level orthonormal Haar transform of feature maps (Mallat 1989), and VisualPrism's wavelet path."""

# B images, C channels, G grid side, K = 4 sub-bands in the order LL, LH, HL, HH

import torch
from torch import Tensor, nn
from transformers import initialization as init

SUBBAND_SCALE = (1.0, 1.2, 1.2, 1.5)
SYNTHESIS_GAIN = 0.5  # published checkpoints hold it in their synthesis filters


def haar_filters() -> Tensor:
    """float[4, 1, 2, 2]: rows of the 2x2 analysis matrix, block read row-major; its own inverse."""
    rows = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    return 0.5 * torch.tensor(rows, dtype=torch.float32).view(4, 1, 2, 2)


class Wavelet(nn.Module):
    """Analysis and synthesis, channel by channel; the filters are buffers of published checkpoints."""

    def __init__(self):
        super().__init__()
        self.register_buffer("dec_filter", haar_filters())
        self.register_buffer("rec_filter", SYNTHESIS_GAIN * haar_filters())

    def reset_parameters(self) -> None:
        filters = haar_filters()
        init.copy_(self.dec_filter, filters)
        init.copy_(self.rec_filter, SYNTHESIS_GAIN * filters)

    def analyse(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G], G even, to float[B, C, 4, G/2, G/2]."""
        bands = nn.functional.conv2d(
            maps.flatten(0, 1).unsqueeze(1), self.dec_filter.to(maps.dtype), stride=2
        )
        return bands.unflatten(0, maps.shape[:2])

    def synthesise(self, bands: Tensor) -> Tensor:
        """float[B, C, 4, G/2, G/2] to float[B, C, G, G]; SYNTHESIS_GAIN times the inverse of analyse."""
        maps = nn.functional.conv_transpose2d(bands.flatten(0, 1), self.rec_filter.to(bands.dtype), stride=2)
        return maps.squeeze(1).unflatten(0, bands.shape[:2])


class WaveletPath(nn.Module):
    """Filter each sub-band by one shared depthwise block, weigh them, transform back (TPQP path 3)."""

    def __init__(self, width: int):
        super().__init__()
        self.wavelet = Wavelet()
        self.subband_conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.subband_bn = nn.BatchNorm2d(width)
        self.register_buffer("subband_scale", torch.tensor(SUBBAND_SCALE))

    def reset_parameters(self) -> None:
        init.copy_(self.subband_scale, torch.tensor(SUBBAND_SCALE))

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape. An odd G repeats its last row and column, as pywt does."""
        side = maps.shape[-1]
        if side % 2:
            maps = nn.functional.pad(maps, (0, 1, 0, 1), mode="replicate")
        bands = self.wavelet.analyse(maps)
        # In turn, not at once: in training the shared norm takes its statistics from one sub-band at a time.
        filtered = [nn.functional.gelu(self.subband_bn(self.subband_conv(band))) for band in bands.unbind(2)]
        bands = torch.stack(filtered, dim=2) * self.subband_scale.to(maps.dtype).view(4, 1, 1)
        return self.wavelet.synthesise(bands)[..., :side, :side]
