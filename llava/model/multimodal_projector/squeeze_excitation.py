"""Squeeze and excitation: each channel is multiplied by a gain that depends on the whole map.

Source: Hu et al. 2018, "Squeeze-and-Excitation Networks".
"""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

SQUEEZE = 4  # ratio of the map's channels to the hidden channels of the excitation


class SqueezeExcitation(nn.Module):
    """y * sigmoid(W2 f(W1 mean(y))), with 1x1 convolutions W1 of E to E/4 channels and W2 back.

    Args:
        width: E.
        activation: f.
    """

    def __init__(self, width: int, activation: type[nn.Module]):
        super().__init__()
        narrow = max(1, width // SQUEEZE)
        self.excite = nn.Sequential(nn.Conv2d(width, narrow, 1), activation(), nn.Conv2d(narrow, width, 1))

    def gain(self, maps: Tensor) -> Tensor:
        """float[B, E, G, G] to float[B, E, 1, 1]."""
        return self.excite(maps.mean(dim=(2, 3), keepdim=True)).sigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, E, G, G] to the same shape."""
        return maps * self.gain(maps)
