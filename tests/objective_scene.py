"""What tests of the generator's objectives start from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.multibox import MultiBoxLoss, Targets
from models.objectives import generator_objectives
from models.retinaface import RetinaFace

FRAME = 64
LOSS = MultiBoxLoss()
DOUBLE = torch.float64


class Scene:
    """A small batch in double precision with an adversary whose optimizer has taken steps."""

    def __init__(self, warm_steps: int = 4, backbone: str = "mobilenet0.25") -> None:
        random = torch.Generator().manual_seed(1)

        def images() -> Tensor:
            return torch.rand(2, 3, FRAME, FRAME, generator=random, dtype=DOUBLE) * 255

        torch.manual_seed(0)
        self.critic = RetinaFace(backbone).double()
        self.clean, self.blurred = images(), images()
        norms = [m for m in self.critic.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:  # a fresh network without statistics lets no gradient through
            norm.momentum = 1.0
        self.critic(images())
        for norm in norms:
            norm.momentum = 0.1
            # Unlike any batch's: to mix them up must not go unseen.
            norm.get_buffer("running_mean").add_(0.3)
        self.adversary = copy.deepcopy(self.critic).train()
        self.critic.eval().requires_grad_(False)
        trained = [p for p in self.adversary.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=5e-4, betas=(0.5, 0.999))
        boxes = [[8.0, 10, 40, 44], [30, 6, 60, 30]], [[3, 20, 25, 50], [0, 0, 1, 1]]
        present = torch.tensor([[True, True], [True, False]])
        self.labels = Targets(torch.tensor(boxes, dtype=DOUBLE), present)
        self.pseudo = Targets(self.labels.boxes + 1.5, present)
        self.mask = torch.zeros(2, 1, FRAME, FRAME, dtype=DOUBLE)
        self.mask[0, :, 10:44, 8:40] = 1
        self.mask[1, :, 20:50, 3:25] = 1
        for _ in range(warm_steps):
            predictions = self.adversary(images())
            loss = LOSS(predictions, self.labels, (FRAME, FRAME), 0.2)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    def objectives(self, redrawn: Tensor, **options: Any) -> dict[str, Tensor]:
        return generator_objectives(
            redrawn,
            self.blurred,
            self.clean,
            self.mask,
            LOSS.assign(self.labels, (FRAME, FRAME)),
            LOSS.assign(self.pseudo, (FRAME, FRAME)),
            self.critic,
            self.adversary,
            self.optimizer,
            LOSS,
            budget=20.0,
            label_smoothing=0.2,
            **options,
        )
