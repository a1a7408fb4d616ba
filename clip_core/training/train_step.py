"""One training step: embed, loss, backward, update. Nothing is read back from the device within it.

Shapes: B pairs in the batch of all ranks, b of this rank, K kept patches.
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clip_core.config import TrainConfig
from clip_core.errors import NonFiniteError, OutOfMemoryError, TrainingError
from clip_core.model.checkpoint import STATE_TENSORS, load_tensors, load_weights
from clip_core.model.clip import CLIP, Embeddings
from clip_core.model.cpu_speed import give_back_memory
from clip_core.model.image_encoder import ImageEncoder
from clip_core.model.text_encoder import TextEncoder
from clip_core.run.records import Recipe
from clip_core.training.activation_checkpointing import checkpoint_activations
from clip_core.training.batches import Batch
from clip_core.training.cached_gradient import Chunk, cached_backward, out_of_memory, split
from clip_core.training.ema import EvalWeights
from clip_core.training.image_augmentation import crop, draw_crops, draw_kept_patches, network_input, to_device
from clip_core.training.loss import (
    Gathered,
    Logits,
    Negatives,
    batch_top1,
    captions_of_images,
    make_loss,
    matching_pairs,
    repeated_share,
)
from clip_core.training.mixed_precision import MixedPrecision
from clip_core.training.optimiser import Optimiser
from clip_core.training.processes import average, least, same_on_all
from clip_core.training.ranks import Rank, gather
from clip_core.training.regularisation import consistency_loss, structure_loss

_ALONE = Rank()
_SEEDS = 2**63 - 1


class TrainStep:
    """The step of a run, with the state that it changes, on the device of the recipe.

    Attributes:
        model: the fp32 weights that the optimiser updates.
        network: what every forward pass calls, in the precision of the run; DDP around it where there are more ranks.
        sharded: the parameters of `model`, which is the network then, are divided among the ranks, and so are those of
            the weights to evaluate: forward passes of either are made by all ranks together.
        eval_weights: the weights to evaluate and save.
        chunk_size: pairs of this rank in a forward pass, with the gradient of the whole batch; 0 for all of them.
        say: called with a line when memory ran out and the chunks are smaller from now on.
    """

    def __init__(self, model: CLIP, recipe: Recipe, config: TrainConfig, rank: Rank = _ALONE) -> None:
        self.device = torch.device(recipe.device)
        self.sharded = config.run.shard and rank.size > 1
        self.model = model if self.sharded else model.to(self.device)
        self.recipe, self.seed, self.optim, self.rank = recipe, config.run.seed, config.optim, rank
        if rank.size > 1 and not self.sharded:
            same_on_all([value.detach() for value in (*self.model.parameters(), *self.model.buffers())], self.device)
        self.eval_weights = EvalWeights(self.model, recipe.ema, copied=not self.sharded)
        self.mixed_precision = MixedPrecision(self.model, recipe.precision, copied=not self.sharded)
        self.network: nn.Module = self.mixed_precision.network
        self.draws_in_network = any(isinstance(part, nn.Dropout) and part.p for part in self.model.modules())
        self.normalises_batches = any(isinstance(part, _BatchNorm) for part in self.model.modules())
        self.checkpointing = config.run.checkpoint_activations
        if self.checkpointing:
            checkpoint_activations(self.mixed_precision.network, draws=self.draws_in_network)
        self._rows: dict[str, nn.Parameter] | None = None  # of this rank, which the optimiser updates
        if self.sharded:
            self._rows = self._shard()
        elif rank.size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            own = isinstance(self.model.image, ImageEncoder) and isinstance(self.model.text, TextEncoder)
            # A network of another library may have parameters that CLIP does not use.
            self.network = DistributedDataParallel(self.network, device_ids=devices, find_unused_parameters=not own)
        self.loss = make_loss(recipe.loss, recipe.label_smoothing)
        self.structure, self.cyclip = config.encoders.structure, config.encoders.cyclip
        self.optimiser = Optimiser(
            self.model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            beta2=config.optim.beta2,
            device=self.device,
            layer_decay=recipe.layer_decay,
            muon=recipe.optimizer == "muon",
            rows=self._rows,
        )
        self.chunk_size = config.optim.chunk_size or 0
        self.say: Callable[[str], None] = lambda line: None
        self.name_pairs: Callable[[int], str] = lambda step: ""  # of a step, for the sentence of `refuse_non_finite`
        self._unchecked: list[tuple[int, float, Tensor, Tensor]] = []  # step, learning rate, loss, gradient norm

    def _shard(self) -> dict[str, nn.Parameter]:
        """Divide the networks in training and in evaluation among the ranks; returns the rows of this one."""
        from clip_core.training.sharding import local_parameters, shard  # it imports FSDP2

        dtype, evaluated = self.mixed_precision.dtype, self.eval_weights.model
        shard(self.model, self.device, dtype, self.rank)
        if evaluated is not self.model:
            shard(evaluated, self.device, dtype, self.rank, of_first=False)
            self.eval_weights.copy()
        return local_parameters(self.model)

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
        loss, measured = self.gradients(batch, step)
        grad_norm = self.update(step, lr)
        self._unchecked.append((step, lr, loss.detach(), grad_norm))
        return measured | {"grad_norm": grad_norm}

    def gradients(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of the whole batch, in chunks where it does not fit; returns loss and measurements.

        Where memory runs out, the chunks are halved and the step begins again: its random numbers depend on the step
        alone, so the objective stays the same.

        Raises:
            TrainingError: if memory runs out with a chunk of one pair, or beside other processes.
        """
        while True:
            try:
                if not self.chunk_size or self.chunk_size >= len(batch):
                    loss, measured = self.loss_of(self.embed(batch, step), batch)
                    self.backward(loss)
                    self.exchange_gradients(by_ddp=True)
                    return loss, measured
                return self.cached_gradients(batch, step)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            self.shrink(len(batch), step)  # after the handler, whose traceback holds the activations

    def shrink(self, pairs: int, step: int) -> None:
        """Forget the gradients of an attempt that ran out of memory, and halve the chunks."""
        before = min(self.chunk_size or pairs, pairs)
        smaller = -(-before // 2)
        if before == 1:
            raise TrainingError(
                f"out of memory at step {step} with one pair in a forward pass; use a smaller --batch-size or model."
            )
        if self.rank.size > 1:  # the others wait for this one in the middle of the step
            raise OutOfMemoryError(
                f"out of memory at step {step} with {before} pairs of this process in a forward pass; resume the run "
                f"with --chunk-size {smaller}."
            )
        self.chunk_size = smaller
        for network in (self.model, self.mixed_precision.network):
            network.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            give_back_memory()
        self.say(
            f"out of memory with {before} pairs in a forward pass: chunks of {smaller} from now on, with the gradient "
            f"of the whole batch"
        )

    # ------------------------------------------------------------ the four parts

    def embed(self, batch: Batch, step: int) -> Embeddings:
        """The embeddings of each pair, image and text (b, D), after augmentation and patch dropout."""
        images, kept_patches = self.images(batch, self.crops(batch, step)), self.kept_patches(batch, step)
        self.seed_network(step)
        embeddings: Embeddings = self.network(images, batch.input_ids, kept_patches)
        return _of_pairs(embeddings, batch)

    def loss_of(self, embeddings: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's pairs among those of all ranks, and what is reported of it.

        Args:
            embeddings: from `embed`.
        """
        image, text, logit_scale, logit_bias = embeddings
        assert image is not None
        assert text is not None
        if batch.gathers_ids:
            images, captions = (gather(ids, self.rank) for ids in (batch.image_ids, batch.caption_ids))
            batch = replace(batch, all_image_ids=images, all_caption_ids=captions, gathers_ids=False)
        negatives = None
        if batch.negative_rows is not None:
            text, wrong = text[: len(batch)], text[len(batch) :]
            negatives = Negatives(gather(wrong, self.rank), self.not_negative(batch))
        everyone = Gathered(gather(image, self.rank), gather(text, self.rank))
        gathered = None if self.rank.size == 1 else everyone
        matches = matching_pairs(batch.image_ids, batch.caption_ids, batch.all_image_ids, batch.all_caption_ids)
        loss: Tensor
        logits: Logits
        loss, logits = self.loss(image, text, logit_scale, matches, logit_bias, gathered, negatives)
        image_top1, text_top1 = batch_top1(logits, matches)
        contrastive = loss.detach()
        loss = loss + self.regularisation(everyone.image, everyone.text, batch)
        measured = {
            "loss": contrastive,
            "chance": self.loss.chance(matches, negatives),
            "logit_scale": logit_scale.detach(),
            "image_to_text_top1": image_top1,
            "text_to_image_top1": text_top1,
            "repeated_captions": repeated_share(batch.caption_ids, batch.all_caption_ids),
        }
        return loss, measured if logit_bias is None else measured | {"logit_bias": logit_bias.detach()}

    def not_negative(self, batch: Batch) -> Tensor:
        """Which hard negatives of all ranks are none of an image of this one.  -> bool (b, B)"""
        if batch.negative_ids is None:
            assert batch.not_negative is not None
            return batch.not_negative
        ids, captions = gather(batch.negative_ids, self.rank), batch.all_caption_ids
        none = ids == captions  # where none could be made, the pair's own caption is there again
        return none | captions_of_images(batch.image_ids, batch.all_image_ids, captions, ids)

    def regularisation(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """The weighted terms beside the contrastive loss, of all ranks' pairs, (B, D); 0 where there are none."""
        total = image.new_zeros(())
        if self.structure:
            if batch.images.is_floating_point():  # features of a frozen encoder
                total = total + self.structure * structure_loss(gather(batch.images, self.rank), image)
            if batch.input_ids[0].is_floating_point():
                features = gather(batch.input_ids[0][batch.text_rows], self.rank)
                total = total + self.structure * structure_loss(features, text)
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

    def cached_gradients(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As embed, loss and backward of the whole batch, with the activations of one chunk at a time."""
        crops, kept_patches = self.crops(batch, step), self.kept_patches(batch, step)

        def embed(number: int, chunk: Chunk) -> Embeddings:
            part = batch.rows(chunk.rows)
            images = self.images(part, None if crops is None else crops[chunk.rows])
            kept = None if kept_patches is None else kept_patches[chunk.rows]
            self.seed_network(step, number)
            embeddings: Embeddings = self.network(images, chunk.input_ids or None, kept)
            return embeddings

        chunks = split(len(batch), batch.input_ids, self.chunk_size)
        # Ranks are averaged once, in fp32, after the last chunk; sharded, after each: none has room for them whole.
        with self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext():
            result = cached_backward(
                [partial(embed, number, chunk) for number, chunk in enumerate(chunks)],
                lambda embeddings: self.loss_of(_of_pairs(embeddings, batch), batch),
                self.backward,
            )
        self.exchange_gradients(by_ddp=False)
        return result

    def exchange_gradients(self, *, by_ddp: bool) -> None:
        """Average over the ranks what the backward pass did not: all gradients, or those of a sharded model's scalars.

        Args:
            by_ddp: DDP has averaged them.
        """
        if self._rows is not None:
            from clip_core.training.sharding import move_gradients

            average(
                [each.grad for each in self.model.parameters() if not each.ndim and each.grad is not None], self.rank
            )
            move_gradients(self.model, self._rows)
        elif self.rank.size > 1 and not by_ddp:
            average([each.grad for each in self.model.parameters() if each.grad is not None], self.rank)

    def seed_network(self, step: int, chunk: int = 0) -> None:
        """Seed dropout by the step and the chunk alone, so that resuming is exact and both passes draw the same."""
        if self.draws_in_network:
            torch.manual_seed(hash((self.seed, step, self.rank.rank, chunk)) & _SEEDS)

    def images(self, batch: Batch, crops: Tensor | None) -> Tensor:
        """Normalised and cropped, in the precision of the network.  -> (b, 3, S, S); features stay as they are"""
        pixel_values = network_input(batch.images, self.model.config.preprocessing)
        if crops is not None:
            pixel_values = crop(pixel_values, crops)
        return pixel_values.to(self.mixed_precision.dtype)

    def crops(self, batch: Batch, step: int) -> Tensor | None:
        """The random crop of each image, (b, 2, 3); None without augmentation, and for features."""
        if not self.optim.augment or batch.images.is_floating_point():
            return None
        return to_device(draw_crops(len(batch), _generator(self.seed, step), self.rank), self.device)

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
        parameters = [parameter for parameter in self.optimiser.parameters.values() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.sharded:
            from clip_core.training.sharding import gradient_norm

            norm = gradient_norm(
                [each for each in gradients if each.ndim], [each for each in gradients if not each.ndim]
            )
        else:
            norm = nn.utils.get_total_norm(gradients)
        # On a CPU the comparison is cheaper than scaling by 1; on a GPU it would wait for the device.
        if self.device.type != "cpu" or norm > self.optim.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.optim.grad_clip, norm)
        return norm

    # ------------------------------------------------------------ between steps

    def refuse_non_finite(self) -> None:
        """Check the losses and gradients since the last check, of all ranks; waits for the device.

        Raises:
            NonFiniteError: on every rank, if one was not finite; the weights must not be saved.
        """
        if not self._unchecked:
            return
        losses, norms = (torch.stack(column) for column in zip(*(entry[2:] for entry in self._unchecked), strict=True))
        finite = torch.stack([torch.isfinite(losses), torch.isfinite(norms)]).int()
        if self.rank.size > 1:
            least(finite)
        checked, self._unchecked = self._unchecked, []
        for (step, lr, *_), finite_loss, finite_norm in zip(checked, *finite.cpu().tolist(), strict=True):
            if not (finite_loss and finite_norm):
                raise NonFiniteError(
                    f"the {'gradient' if finite_loss else 'loss'} is not finite at step {step} (learning rate {lr:g})"
                    f"{self.name_pairs(step)}",
                    "no checkpoint holds it. Start again with a lower --lr or with --precision fp32, or resume the run "
                    "with --on-nan rollback, which skips such batches.",
                    step,
                )

    def tensors(self) -> dict[str, Tensor]:
        """What resuming needs beside the weights that are evaluated: state.safetensors of a checkpoint."""
        return self.optimiser.tensors() | self.eval_weights.raw()

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights to evaluate, and `tensors`, both whole. Sharded, ranks call this together, and rank 0 alone has
        them, on the CPU: beside its own rows, another rank has one tensor at a time.
        """
        weights, tensors = self.eval_weights.ready().state_dict(), self.tensors()
        if not self.sharded:
            return weights, tensors
        from clip_core.training.sharding import gather_checkpoint

        return gather_checkpoint(self.model, weights, tensors, self.rank)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint: the evaluated weights, and `tensors` from state.safetensors; sharded, this rank's rows."""
        if self.sharded:
            from clip_core.training.sharding import load_rows

            tensors = load_rows(self.model, self.eval_weights.model, folder)
        else:
            load_weights(self.eval_weights.model, folder)
            tensors = load_tensors(folder / STATE_TENSORS)
        self.optimiser.restore(self.eval_weights.restore(tensors))
        self.mixed_precision.reload()


def _of_pairs(embeddings: Embeddings, batch: Batch) -> Embeddings:
    """The caption's embedding of each pair in place of those of the distinct captions, then its hard negative's.

    text (U, D) -> (b, D), with hard negatives (2b, D)
    """
    assert embeddings.text is not None
    rows = batch.text_rows if batch.negative_rows is None else torch.cat([batch.text_rows, batch.negative_rows])
    return embeddings._replace(text=embeddings.text[rows])


def _generator(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) ^ step)
