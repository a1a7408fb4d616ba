"""One training step: forward, backward, a move of the weights. Nothing is read back from the device within it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from clip_core.config import TrainConfig
from clip_core.errors import TrainingError
from clip_core.model.checkpoint import load_tensors, load_weights
from clip_core.model.clip import CLIP
from clip_core.run.records import Recipe
from clip_core.training.augment import kept_patches, random_crop, to_pixel_values
from clip_core.training.batches import Batch
from clip_core.training.loss import batch_top1, make_loss, matching_pairs, repeated_share
from clip_core.training.optimiser import Optimiser
from clip_core.training.shown import Shown
from clip_core.training.working import Working


class Learner:
    """The network in training and all that moves it, on the device of the recipe.

    `shown` has the weights that are judged and saved.
    """

    def __init__(self, model: CLIP, recipe: Recipe, config: TrainConfig) -> None:
        self.device = torch.device(recipe.device)
        self.model = model.to(self.device)
        self.recipe, self.seed, self.optim = recipe, config.run.seed, config.optim
        self.loss = make_loss(recipe.loss, recipe.label_smoothing)
        self.optimiser = Optimiser(
            self.model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            beta2=config.optim.beta2,
            device=self.device,
            layer_decay=recipe.layer_decay,
            muon=recipe.optimizer == "muon",
        )
        self.shown = Shown(self.model, recipe.ema)
        self.working = Working(self.model, recipe.precision)
        self._unread: list[tuple[int, float, Tensor, Tensor]] = []  # step, learning rate, loss, norm of the gradient

    def __call__(self, batch: Batch, step: int, lr: float) -> dict[str, Tensor]:
        """Move the weights by what the batch says; `step` from 0. Returns what was measured, still on the device."""
        self.optimiser.set_learning_rate(lr)
        pixel_values = to_pixel_values(batch.images, self.model.config.preprocessing)
        if self.optim.augment:
            pixel_values = random_crop(pixel_values, _generator(self.seed, step))
        model = self.working.refresh()
        image_embeds = model.encode_image(pixel_values.to(self.working.dtype), self.kept_patches(len(batch), step))
        text_embeds = torch.cat([model.encode_text(group) for group in batch.input_ids])[batch.text_rows]
        matches = matching_pairs(batch.image_ids, batch.caption_ids)
        logit_scale = model.logit_scale()
        loss, logits = self.loss(image_embeds, text_embeds, logit_scale, matches, model.logit_bias)
        self.optimiser.zero_grad()
        loss.backward()
        self.working.hand_over()
        grad_norm = self.clip_gradient()
        self.optimiser.step()
        self.model.clamp_temperature()
        self._unread.append((step, lr, loss.detach(), grad_norm))
        self.shown.after_step(step + 1)
        image_top1, text_top1 = batch_top1(logits, matches)
        return {
            "loss": loss.detach(),
            "chance": self.loss.chance(matches),
            "grad_norm": grad_norm,
            "logit_scale": logit_scale.detach(),
            "image_to_text_top1": image_top1,
            "text_to_image_top1": text_top1,
            "repeated_captions": repeated_share(batch.text_rows),
        } | ({} if self.model.logit_bias is None else {"logit_bias": self.model.logit_bias.detach()})

    def kept_patches(self, images: int, step: int) -> Tensor | None:
        """Which patches this step looks at; None is all of them."""
        if not self.recipe.patch_dropout:
            return None
        generator = _generator(self.seed, ~step)  # another one than the crops'
        patches = self.model.config.image.grid**2
        return kept_patches(images, patches, self.recipe.patch_dropout, generator).to(self.device, non_blocking=True)

    def clip_gradient(self) -> Tensor:
        """Shorten the gradient to the longest that is allowed; returns how long it was."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.device.type != "cpu" or norm > self.optim.grad_clip:  # to ask is free on a CPU, to shorten is not
            nn.utils.clip_grads_with_norm_(parameters, self.optim.grad_clip, norm)
        return norm

    def refuse_non_finite(self) -> None:
        """Look at the losses and gradients since the last look, which waits for the device.

        Raises:
            TrainingError: if one was not finite; the weights are not to be saved.
        """
        if not self._unread:
            return
        losses, norms = (torch.stack(column) for column in zip(*(entry[2:] for entry in self._unread), strict=True))
        fine = torch.stack([torch.isfinite(losses), torch.isfinite(norms)]).cpu()
        for (step, lr, *_), loss_fine, gradient_fine in zip(self._unread, *fine.tolist(), strict=True):
            if not (loss_fine and gradient_fine):
                raise TrainingError(
                    f"the {'gradient' if loss_fine else 'loss'} is not finite at step {step} (learning rate {lr:g}); "
                    f"no checkpoint holds it. Start again with a lower --lr, or with --precision fp32."
                )
        self._unread.clear()

    def tensors(self) -> dict[str, Tensor]:
        """What going on needs beside the weights that are shown."""
        return self.optimiser.tensors() | self.shown.raw()

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint: the weights that are shown, and `tensors` in state.safetensors."""
        load_weights(self.shown.model, folder)
        self.optimiser.restore(self.shown.restore(load_tensors(folder / "state.safetensors")))
        self.working = Working(self.model, self.recipe.precision)  # weights that do not move are copied but once


def _generator(seed: int, step: int) -> torch.Generator:
    """Randomness that depends on the seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) ^ step)
