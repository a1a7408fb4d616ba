"""One training step: embed, loss, backward, update. Nothing is read back from the device within it.

Shapes: B pairs in the batch of all ranks, b of this rank, K kept patches.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from clip_core.config import TrainConfig
from clip_core.errors import TrainingError
from clip_core.model.checkpoint import load_tensors, load_weights
from clip_core.model.clip import CLIP, Embeddings
from clip_core.run.records import Recipe
from clip_core.training.batches import Batch
from clip_core.training.ema import EvalWeights
from clip_core.training.image_augmentation import draw_kept_patches, network_input, random_crop, to_device
from clip_core.training.loss import Gathered, Logits, batch_top1, make_loss, matching_pairs, repeated_share
from clip_core.training.mixed_precision import MixedPrecision
from clip_core.training.optimiser import Optimiser
from clip_core.training.ranks import Rank, gather
from clip_core.training.regularisation import consistency_loss, structure_loss

_ALONE = Rank()
_SEEDS = 2**63 - 1


class TrainStep:
    """The step of a run, with the state that it changes, on the device of the recipe.

    Attributes:
        model: the fp32 weights that the optimiser updates.
        network: what every forward pass calls, in the precision of the run; the place for DDP.
        eval_weights: the weights to evaluate and save.
    """

    def __init__(self, model: CLIP, recipe: Recipe, config: TrainConfig, rank: Rank = _ALONE) -> None:
        self.device = torch.device(recipe.device)
        self.model = model.to(self.device)
        self.recipe, self.seed, self.optim, self.rank = recipe, config.run.seed, config.optim, rank
        self.mixed_precision = MixedPrecision(self.model, recipe.precision)
        self.network: nn.Module = self.mixed_precision.network
        self.loss = make_loss(recipe.loss, recipe.label_smoothing)
        self.draws_in_network = any(isinstance(part, nn.Dropout) and part.p for part in self.network.modules())
        self.structure, self.cyclip = config.encoders.structure, config.encoders.cyclip
        self.optimiser = Optimiser(
            self.model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            beta2=config.optim.beta2,
            device=self.device,
            layer_decay=recipe.layer_decay,
            muon=recipe.optimizer == "muon",
        )
        self.eval_weights = EvalWeights(self.model, recipe.ema)
        self._unchecked: list[tuple[int, float, Tensor, Tensor]] = []  # step, learning rate, loss, gradient norm

    def __call__(self, batch: Batch, step: int, lr: float) -> dict[str, Tensor]:
        """Train on a batch.

        Args:
            batch: the pairs of this rank, on the device.
            step: from 0.
            lr: learning rate of this step.
        Returns:
            `loss`, `chance`, `grad_norm`, `logit_scale`, `logit_bias` (with the sigmoid loss), `image_to_text_top1`,
            `text_to_image_top1` and `repeated_captions`, each () and still on the device.
        """
        embeddings = self.embed(batch, step)
        loss, measured = self.loss_of(embeddings, batch)
        self.backward(loss)
        grad_norm = self.update(step, lr)
        self._unchecked.append((step, lr, loss.detach(), grad_norm))
        return measured | {"grad_norm": grad_norm}

    # ------------------------------------------------------------ the four parts

    def embed(self, batch: Batch, step: int) -> Embeddings:
        """The embeddings of each pair, image and text (b, D), after augmentation and patch dropout."""
        if self.draws_in_network:  # dropout, by the step alone, so that resuming is exact
            torch.manual_seed(hash((self.seed, step, self.rank.rank)) & _SEEDS)
        embeddings: Embeddings = self.network(self.images(batch, step), batch.input_ids, self.kept_patches(batch, step))
        assert embeddings.text is not None
        return embeddings._replace(text=embeddings.text[batch.text_rows])

    def loss_of(self, embeddings: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's pairs among those of all ranks, and what is reported of it."""
        image, text, logit_scale, logit_bias = embeddings
        assert image is not None
        assert text is not None
        gathered = None if self.rank.size == 1 else Gathered(gather(image, self.rank), gather(text, self.rank))
        matches = matching_pairs(batch.image_ids, batch.caption_ids, batch.all_image_ids, batch.all_caption_ids)
        loss: Tensor
        logits: Logits
        loss, logits = self.loss(image, text, logit_scale, matches, logit_bias, gathered)
        image_top1, text_top1 = batch_top1(logits, matches)
        contrastive = loss.detach()
        loss = loss + self.regularisation(image, text, batch)
        measured = {
            "loss": contrastive,
            "chance": self.loss.chance(matches),
            "logit_scale": logit_scale.detach(),
            "image_to_text_top1": image_top1,
            "text_to_image_top1": text_top1,
            "repeated_captions": repeated_share(batch.caption_ids, batch.all_caption_ids),
        }
        return loss, measured if logit_bias is None else measured | {"logit_bias": logit_bias.detach()}

    def regularisation(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """The weighted terms beside the contrastive loss; 0 where there are none."""
        total = image.new_zeros(())
        if self.structure:
            if batch.images.is_floating_point():  # features of a frozen encoder
                total = total + self.structure * structure_loss(batch.images, image)
            if batch.input_ids[0].is_floating_point():
                total = total + self.structure * structure_loss(batch.input_ids[0][batch.text_rows], text)
        if self.cyclip:
            total = total + self.cyclip * consistency_loss(image, text)
        return total

    def backward(self, loss: Tensor) -> None:
        """Gradients of the fp32 weights."""
        torch.autograd.backward(loss)
        self.mixed_precision.gradients_to_master()

    def update(self, step: int, lr: float) -> Tensor:
        """Clip the gradients, update weights and EMA; returns the gradient norm before clipping."""
        self.optimiser.set_learning_rate(lr)
        grad_norm = self.clip_gradients()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.model.clamp_temperature()
        self.mixed_precision.weights_to_network()
        self.eval_weights.after_step(step + 1)
        return grad_norm

    # ------------------------------------------------------------ inside them

    def images(self, batch: Batch, step: int) -> Tensor:
        """Normalised and augmented, in the precision of the network.  -> (b, 3, S, S); features stay as they are"""
        pixel_values = network_input(batch.images, self.model.config.preprocessing)
        if self.optim.augment and not batch.images.is_floating_point():
            pixel_values = random_crop(pixel_values, _generator(self.seed, step), self.rank)
        return pixel_values.to(self.mixed_precision.dtype)

    def kept_patches(self, batch: Batch, step: int) -> Tensor | None:
        """The patches of each image that this step uses, (b, K); None for all."""
        if not self.recipe.patch_dropout:
            return None
        generator = _generator(self.seed, ~step)  # not the one of the crops
        patches = self.model.config.own_image.grid**2
        kept = draw_kept_patches(len(batch), patches, self.recipe.patch_dropout, generator, self.rank)
        return to_device(kept, self.device)

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to the largest norm that is allowed; returns the norm before."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        # On a CPU the comparison is cheaper than scaling by 1; on a GPU it would wait for the device.
        if self.device.type != "cpu" or norm > self.optim.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.optim.grad_clip, norm)
        return norm

    # ------------------------------------------------------------ between steps

    def refuse_non_finite(self) -> None:
        """Check the losses and gradients since the last check; waits for the device.

        Raises:
            TrainingError: if one was not finite; the weights must not be saved.
        """
        if not self._unchecked:
            return
        losses, norms = (torch.stack(column) for column in zip(*(entry[2:] for entry in self._unchecked), strict=True))
        finite = torch.stack([torch.isfinite(losses), torch.isfinite(norms)]).cpu()
        for (step, lr, *_), finite_loss, finite_norm in zip(self._unchecked, *finite.tolist(), strict=True):
            if not (finite_loss and finite_norm):
                raise TrainingError(
                    f"the {'gradient' if finite_loss else 'loss'} is not finite at step {step} (learning rate {lr:g}); "
                    f"no checkpoint holds it. Start again with a lower --lr, or with --precision fp32."
                )
        self._unchecked.clear()

    def tensors(self) -> dict[str, Tensor]:
        """What resuming needs beside the weights that are evaluated: state.safetensors of a checkpoint."""
        return self.optimiser.tensors() | self.eval_weights.raw()

    def restore(self, folder: Path) -> None:
        """Load a checkpoint: the evaluated weights, and `tensors` from state.safetensors."""
        load_weights(self.eval_weights.model, folder)
        self.optimiser.restore(self.eval_weights.restore(load_tensors(folder / "state.safetensors")))
        self.mixed_precision.reload()


def _generator(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) ^ step)
