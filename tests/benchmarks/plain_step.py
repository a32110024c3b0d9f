"""The training step of phase (b) as it reads in the method: what the fast one is compared with.

The generator runs on whole frames; targets, hard negatives, pseudo-labels and review distances
are worked out image by image; the step of the adversary that L_cycl looks through is left to
the `higher` package. No needless work either: the losses are meant to be computed as often
and as precisely as in the fast step, in the precision and memory format of what is given.

Needs `pip install -r tests/benchmarks/requirements.txt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from models.anchors import anchor_grid, decode, encode
from models.redraw import redraw_whole_frame
from models.retinaface import Predictions, RetinaFace
from utils.blur import face_mask


def match_faces(faces: Tensor, anchors: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Assign the faces of one image to anchors (SSD's matching; RetinaFace section 3).

    `faces`: [N, 4] xyxy with N > 0, each with an area; `anchors`: [A, 4] as (cx, cy, w, h).
    Returns `positive`, bool [A], and `index`, int64 [A], the face that an anchor overlaps most
    or is claimed by.
    """
    half = anchors[:, 2:] / 2
    iou = box_iou(faces, torch.cat([anchors[:, :2] - half, anchors[:, :2] + half], dim=1))
    overlap, index = iou.max(dim=0)  # [A]
    best_anchor = iou.argmax(dim=1)  # [N]
    overlap[best_anchor] = 1.0  # every face claims its best anchor; the later face wins
    order = torch.arange(len(faces), device=faces.device)
    index.scatter_reduce_(0, best_anchor, order, "amax", include_self=False)
    return overlap >= threshold, index


def multibox_loss(
    predictions: Predictions,
    faces: Sequence[Tensor],
    frame: tuple[int, int],
    options: dict[str, Any],
    label_smoothing: float,
) -> Tensor:
    """D(p, y): scalar. `faces`: per image [N, 4] xyxy; `options`: the config's `multibox`."""
    anchors = anchor_grid(*frame, predictions.offsets.device).to(predictions.offsets.dtype)
    box_loss, class_loss = predictions.offsets.sum() * 0, predictions.logits.sum() * 0
    count = 0
    for offsets, logits, boxes in zip(
        predictions.offsets, predictions.logits, faces, strict=True
    ):  # [A, 4], [A, 2]
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
        if not len(boxes):
            continue
        positive, index = match_faces(boxes, anchors, options["match_iou"])
        positives = int(positive.sum())
        wanted = encode(boxes[index[positive]], anchors[positive])
        box_loss = box_loss + F.smooth_l1_loss(offsets[positive], wanted, reduction="sum")

        background = torch.zeros_like(index)
        difficulty = F.cross_entropy(logits.detach(), background, reduction="none")
        difficulty[positive] = -1.0
        negatives = min(options["negatives_per_positive"] * positives, len(anchors) - positives)
        counted = torch.cat([positive.nonzero()[:, 0], difficulty.topk(negatives).indices])
        class_loss = class_loss + F.cross_entropy(
            logits[counted],
            positive[counted].long(),
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        count += positives
    return (options["box_weight"] * box_loss + class_loss) / max(count, 1)


@torch.no_grad()
def pseudo_boxes(
    critic: RetinaFace, clean: Tensor, score_logit: float, nms_iou: float
) -> list[Tensor]:
    """The faces t that the critic finds on clean images [B, 3, H, W]: per image [N, 4] xyxy."""
    anchors = anchor_grid(*clean.shape[2:], clean.device).to(clean.dtype)
    predictions = critic(clean)
    found = []
    for offsets, logits in zip(predictions.offsets, predictions.logits, strict=True):
        sure = logits[:, 1] >= score_logit
        boxes = decode(offsets[sure], anchors[sure])
        found.append(boxes[nms(boxes, logits[sure, 1], nms_iou)])
    return found


def review_loss(redrawn: Tensor, blurred: Tensor, mask: Tensor, budget: float) -> Tensor:
    """L_rev of images [B, 3, H, W] in 0-255; `mask`: bool [B, 1, H, W]."""
    total = redrawn.new_zeros(())
    for image, reference, inside in zip(redrawn, blurred, mask[:, 0], strict=True):
        if inside.any():
            total = total + F.relu(
                F.smooth_l1_loss(image[:, inside], reference[:, inside]) - budget
            )
    return total / len(redrawn)


def loss_after_a_step(
    adversary: RetinaFace,
    optimizer: torch.optim.Adam,
    redrawn: Tensor,
    clean: Tensor,
    labels: Sequence[Tensor],
    pseudo: Sequence[Tensor],
    config: dict[str, Any],
) -> Tensor:
    """L_cycl: f_g takes the next step of `optimizer` on `redrawn`, then is asked about `clean`.

    `adversary` is in train mode. It and `optimizer` are left as they are: `higher` works on
    copies of weights, BatchNorm buffers and moments.
    """
    import higher  # type: ignore  # here, since all else in this file does without it

    frame = (clean.shape[2], clean.shape[3])
    smoothing = config["multibox"]["label_smoothing"]
    # Copied initial weights: the gradient is asked for at x̂ alone, not at f_g's weights.
    with higher.innerloop_ctx(
        adversary, optimizer, copy_initial_weights=True, override=_eps_of_torch(optimizer)
    ) as (stepped, step):
        # torch.optim.Adam keeps its count in a float32 tensor; in that precision higher's
        # 1 - beta2**count would be off by 1e-5 after five steps.
        for states in step.state:
            for state in states.values():
                state["step"] = state["step"].item()
        predictions = stepped(redrawn)
        step.step(multibox_loss(predictions, labels, frame, config["multibox"], smoothing))
        stepped.eval()  # with the running statistics that the pass in train mode has moved
        return multibox_loss(stepped(clean), pseudo, frame, config["multibox"], smoothing)


def _eps_of_torch(optimizer: torch.optim.Adam) -> dict[str, list[float]]:
    """The eps, per group, that makes higher's next step that of torch.optim.Adam.

    With b = 1 - beta2**count, torch divides by sqrt(v / b) + eps, higher (as Adam's first
    release in torch) by (sqrt(v) + eps) / sqrt(b), which is torch's with eps / sqrt(b).
    """
    values = []
    for group in optimizer.param_groups:
        state = optimizer.state.get(group["params"][0])
        count = (state["step"].item() if state else 0) + 1
        values.append(group["eps"] * (1 - group["betas"][1] ** count) ** 0.5)
    return {"eps": values}


def plain_objectives(
    redrawn: Tensor,
    blurred: Tensor,
    clean: Tensor,
    mask: Tensor,
    labels: Sequence[Tensor],
    pseudo: Sequence[Tensor],
    critic: RetinaFace,
    adversary: RetinaFace,
    optimizer: torch.optim.Adam,
    config: dict[str, Any],
) -> dict[str, Tensor]:
    """rev, proc, post and cycl of one batch, differentiable with respect to `redrawn`.

    Images: [B, 3, H, W] RGB, 0-255; `mask`: bool [B, 1, H, W]; `labels` (y) and `pseudo` (t):
    per image [N, 4] xyxy. `critic` is in eval mode; `adversary` is left in train mode.
    """
    frame, options = (clean.shape[2], clean.shape[3]), config["multibox"]
    smoothing = options["label_smoothing"]
    rev = review_loss(redrawn, blurred, mask, config["train_generator"]["review_budget"])
    proc = multibox_loss(critic(redrawn), pseudo, frame, options, 0.0)
    adversary.eval()
    post = multibox_loss(adversary(redrawn), pseudo, frame, options, smoothing)
    adversary.train()
    cycl = loss_after_a_step(adversary, optimizer, redrawn, clean, labels, pseudo, config)
    return {"rev": rev, "proc": proc, "post": post, "cycl": cycl}


def plain_generator_step(
    generator: nn.Module,
    critic: RetinaFace,
    adversary: RetinaFace,
    generator_optimizer: torch.optim.Optimizer,
    phase_b_optimizer: torch.optim.Adam,
    clean: Tensor,
    blurred: Tensor,
    boxes: Sequence[np.ndarray],
    config: dict[str, Any],
) -> dict[str, float]:
    """One step of g on the four objectives; returns them, and the gradient's norm, before it.

    `clean`, `blurred`: float [B, 3, H, W] RGB, 0-255; `boxes`: per image float64 [N, 4] xyxy,
    each of more than 1 px. `critic` is frozen and in eval mode.
    """
    recipe = config["train_generator"]
    options = config["critic"]
    pseudo = pseudo_boxes(critic, clean, options["score_logit"], options["nms_iou"])
    mask = np.stack([face_mask(b, clean.shape[2], clean.shape[3]) > 0 for b in boxes])[:, None]
    objectives = plain_objectives(
        redraw_whole_frame(generator, blurred, boxes),
        blurred,
        clean,
        torch.from_numpy(mask).to(clean.device),
        _on_device(boxes, clean),
        pseudo,
        critic,
        adversary,
        phase_b_optimizer,
        config,
    )
    total = torch.stack([recipe["loss_weights"][k] * v for k, v in objectives.items()]).sum()
    parameters = list(generator.parameters())
    generator_optimizer.zero_grad()
    total.backward(inputs=parameters)  # of these alone: nothing for f_g, which is not trained here
    norm = nn.utils.clip_grad_norm_(parameters, recipe["clip_norm"])
    generator_optimizer.step()
    return {**{k: v.item() for k, v in objectives.items()}, "gradient_norm": norm.item()}


def plain_adversary_step(
    generator: nn.Module,
    adversary: RetinaFace,
    optimizer: torch.optim.Optimizer,
    blurred: Tensor,
    boxes: Sequence[np.ndarray],
    config: dict[str, Any],
) -> float:
    """One step of f_g on x̂ with the labelled boxes; returns its loss. Arguments as above."""
    with torch.no_grad():
        redrawn = redraw_whole_frame(generator, blurred, boxes)
    adversary.train()
    frame, options = (blurred.shape[2], blurred.shape[3]), config["multibox"]
    faces = _on_device(boxes, blurred)
    loss = multibox_loss(adversary(redrawn), faces, frame, options, options["label_smoothing"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _on_device(boxes: Sequence[np.ndarray], images: Tensor) -> list[Tensor]:
    return [torch.from_numpy(image_boxes).to(images) for image_boxes in boxes]
