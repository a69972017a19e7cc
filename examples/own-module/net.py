"""A user's network: it gets the 13 scaled numbers of a row and gives a score for each of the three labels."""

import torch
from torch import nn


class Net(nn.Module):
    """Two hidden layers with a skip connection."""

    def __init__(self, inputs: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, numbers_BN: torch.Tensor) -> torch.Tensor:
        """(B, inputs) float32 → (B, classes) scores."""
        x_BW = torch.relu(self.first(numbers_BN))
        x_BW = x_BW + torch.relu(self.second(x_BW))
        return self.head(x_BW)
