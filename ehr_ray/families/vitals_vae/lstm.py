"""The recurrent baseline as it was published with the design: it shows posterior collapse.

B patients, H hours, V vitals.
"""

import torch
from torch import Tensor, nn

from ehr_ray.families.vitals_vae.config import VitalsVAEConfig


class LSTMEncoder(nn.Module):
    """Two bidirectional layers and attention pooling, on filled values: no mask, no time."""

    def __init__(self, config: VitalsVAEConfig) -> None:
        super().__init__()
        self.vitals, hidden = config.num_vitals, config.lstm_width
        self.inputs = nn.Linear(self.vitals, hidden // 2)
        self.layers = nn.LSTM(hidden // 2, hidden, 2, batch_first=True, bidirectional=True)
        # No bias: softmax over hours would not see it.
        self.attention = nn.Linear(2 * hidden, 1, bias=False)
        self.width = 2 * hidden

    def forward(self, channels: Tensor) -> Tensor:
        """Return the weighted mean of the hours' states, [B, 2 hidden]."""
        values = channels[:, : self.vitals].transpose(1, 2)
        states, _ = self.layers(self.inputs(values))
        weight = torch.softmax(self.attention(states), 1)
        return (weight * states).sum(1)


class LSTMDecoder(nn.Module):
    """Two layers that read the same vector at every hour."""

    def __init__(self, config: VitalsVAEConfig, inputs: int) -> None:
        super().__init__()
        self.hours, hidden = config.num_hours, config.lstm_width
        self.unfold = nn.Linear(inputs, 2 * hidden)
        self.layers = nn.LSTM(2 * hidden, hidden, 2, batch_first=True)
        self.out = nn.Linear(hidden, config.num_vitals)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the curves [B, H, V], and no branches [0, B, H, V]."""
        states, _ = self.layers(self.unfold(z).unsqueeze(1).expand(-1, self.hours, -1))
        curves = self.out(states)
        return curves, curves.new_zeros((0, *curves.shape))
