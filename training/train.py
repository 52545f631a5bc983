"""Train the pocket checkpoint.

    python -m training.train --settings training/pocket.toml --run runs/pocket --minutes 90
    python -m training.train --processes 2        # one for each core (or GPU), gradients averaged

Resumes from the run folder by itself. Stops at the end of the curriculum or of the wall-clock budget; the
state is always saved.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional

from app.ocr.models.sam_attention import fold_sam_attention
from training.attention import use_plain_attention
from training.batches import CLASS_OF, IGNORED, Batch, Steps, Targets, batches, targets, to_batch
from training.facts import RunFacts, read_facts
from training.losses import Guide, dense_loss, norm_loss
from training.model import DenseHead, fresh_network, grow_from
from training.processes import rank_and_world, start_processes
from training.seen import Seen, attention_masks, prune, visual_index
from training.settings import Settings, Stage, load_settings
from training.vocabulary import BOS, GROUNDED_PROMPT, PLAIN_PROMPT, build_tokenizer

HELD_OUT_SEED = 1 << 50


@dataclass(slots=True)
class Progress:
    stage: int = 0
    step: int = 0
    pages: int = 0
    seconds: float = 0.0


class Trainer:
    """One run: network, dense head, optimiser, running mean, and the position in the curriculum."""

    def __init__(
        self, settings: Settings, run: Path, start: Path | None, render_processes: int | None = None
    ) -> None:
        """Start a run. ``render_processes``: ``None`` takes the settings' number; it changes no batch."""
        self.settings, self.run = settings, run
        self.render_processes = (
            settings.run.render_processes if render_processes is None else render_processes
        )
        self.rank, self.world = rank_and_world()
        self.device = torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")
        self.network = fresh_network(settings.model, settings.run.seed)
        self.earlier: tuple[RunFacts, ...] = ()
        if start is not None:
            grow_from(self.network, start)
            self.earlier = read_facts(start)
        self.network.set_experts_implementation("grouped_mm")
        # on a CPU without bfloat16 units, bfloat16 is fifty times slower than float32
        self.half = self.device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
        fold_sam_attention(self.network)
        self.network.to(self.device).train()
        if self.device.type == "cpu":
            use_plain_attention(self.network)
        layers = self.network.model.language_model.layers
        self.guide_here = Guide(layers[max(0, len(layers) - 3)].self_attn)
        self.guide_next = Guide(layers[max(0, len(layers) - 2)].self_attn)
        self.head = DenseHead(settings.model.decoder_width, len(CLASS_OF)).to(self.device)
        self.parameters = [*self.network.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=settings.run.weight_decay
        )
        self.mean = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.progress = Progress()
        self.renderers = settings.renderers()
        self.unseen = settings.renderers(held_out=True)
        tokenizer = build_tokenizer()
        self.prompts = {
            grounded: torch.tensor(tokenizer.encode(prompt, add_special_tokens=False).ids, device=self.device)
            for grounded, prompt in ((True, GROUNDED_PROMPT), (False, PLAIN_PROMPT))
        }

    def train(self, minutes: float) -> bool:
        """Train for ``minutes``. Return True when the whole curriculum is done."""
        deadline = time.monotonic() + 60 * minutes
        while self.progress.stage < len(self.settings.stage):
            if not self._train_stage(self.settings.stage[self.progress.stage], deadline):
                return False
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self.save()
        return True

    def _train_stage(self, stage: Stage, deadline: float) -> bool:
        run, progress = self.settings.run, self.progress
        seed = run.seed * 1000 + progress.stage * 100 + self.rank
        tally: dict[str, list[float]] = {}
        began = time.monotonic()
        pixels = (stage.megapixels or run.megapixels) * 1e6
        steps = Steps(self.renderers, self.settings.styles(stage), pixels, seed)
        for step, batch in batches(steps, progress.step, stage.steps, self.render_processes):
            ended = self._step(batch, stage, step, tally, ended=time.monotonic() > deadline)
            progress.step, progress.pages = step + 1, progress.pages + len(batch) * self.world
            if progress.step % run.log_every == 0:
                now = time.monotonic()
                progress.seconds += now - began
                means = {key: sum(values) / len(values) for key, values in tally.items()}
                self._log(stage, means | {"seconds_per_step": (now - began) / run.log_every})
                tally, began = {}, now
            if progress.step % run.eval_every == 0 and stage.sequence_weight > 0:
                self._log(stage, self.evaluate(stage))
                began = time.monotonic()
            if progress.step % run.save_every == 0 or ended:
                self.save()
            if ended:
                return False
        return True

    def _step(
        self, batch: Batch, stage: Stage, step: int, tally: dict[str, list[float]], *, ended: bool
    ) -> bool:
        """Do one optimiser step. Return True when the time of any process is over."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(stage, step)
        rng = random.Random(f"{stage.name}{step}/{self.rank}")
        torch.manual_seed(rng.getrandbits(63))  # losses sample at random: a resumed run must repeat it
        losses: dict[str, torch.Tensor] = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            patches = self.patches(batch.views)
            cells = batch.cells.to(self.device)
            shown = patches.detach() if step < stage.dense_warmup else patches
            losses["dense"], cells_right = dense_loss(self.head(shown), cells)
            losses["norm"] = norm_loss(patches.float(), cells)
            if stage.sequence_weight > 0:
                is_pruned = rng.random() < stage.pruned_share
                tagged = rng.random() < stage.tagged_share
                prompt = self.prompts[tagged if stage.tagged_share else rng.random() < 0.5]
                losses |= self._reading_losses(
                    batch, patches.float(), prompt, tagged=tagged, is_pruned=is_pruned
                )
        weights = {
            "dense": stage.dense_weight,
            "norm": stage.norm_weight,
            "sequence": stage.sequence_weight,
            "guide": stage.guide_weight,
        }
        self.optimizer.zero_grad()
        torch.autograd.backward(sum((weights[key] * loss for key, loss in losses.items()), torch.zeros(())))
        ended = self._average_gradients(ended=ended)
        nn.utils.clip_grad_norm_(self.parameters, self.settings.run.grad_clip)
        self.optimizer.step()
        self._update_mean()
        for key, value in {
            **{key: loss.item() for key, loss in losses.items()},
            "cells": cells_right,
        }.items():
            tally.setdefault(key, []).append(value)
        return ended

    def patches(self, views: torch.Tensor) -> torch.Tensor:
        """Encode views to projected patch tokens, row-major. (B, V, V) uint8 gray -> (B, N, D)."""
        pixels = (views.to(self.device).float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
        model = self.network.model
        projected: torch.Tensor = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
        return projected

    def visual_tokens(self, patches: torch.Tensor) -> torch.Tensor:
        """Add a row break after each row, and the view separator last. (B, N, D) -> (B, L, D)."""
        model = self.network.model
        batch, num_patches, width = patches.shape
        side = math.isqrt(num_patches)
        breaks = model.image_newline.to(patches.dtype).expand(batch, side, 1, width)
        grid = torch.cat([patches.view(batch, side, side, width), breaks], dim=2).flatten(1, 2)
        return torch.cat([grid, model.view_separator.to(patches.dtype).expand(batch, 1, width)], dim=1)

    def _reading_losses(
        self, batch: Batch, patches: torch.Tensor, prompt: torch.Tensor, *, tagged: bool, is_pruned: bool
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of the next token and of attention, averaged over the tokens of the batch."""
        visual = self.visual_tokens(patches)
        seen = prune(visual, batch.views) if is_pruned else Seen(visual)
        count = sum(len(answer.ids) for answer in batch.answers(tagged=tagged))
        losses = [
            self._read(seen[group.rows], group, batch.side, prompt) for group in targets(batch, tagged=tagged)
        ]
        sequence, guide = (torch.stack(one).sum() / count for one in zip(*losses, strict=True))
        return {"sequence": sequence, "guide": guide}

    def _read(
        self, seen: Seen, group: Targets, side: int, prompt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute both losses, summed over the tokens of these pages."""
        ids = group.ids.to(self.device)
        logits = self.logits(seen, ids.clamp(min=0)[:, :-1], prompt)
        loss = functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=IGNORED)
        num_tokens = (ids != IGNORED).sum()
        return loss * num_tokens, self._guide_loss(seen, group, side, prompt) * num_tokens

    def _guide_loss(self, seen: Seen, group: Targets, side: int, prompt: torch.Tensor) -> torch.Tensor:
        if self.settings.stage[self.progress.stage].guide_weight == 0:
            return torch.zeros((), device=self.device)
        num_visual = seen.embeds.shape[1]
        first, where = num_visual + len(prompt), slice(1, 1 + num_visual)
        next_one, last_one = (
            visual_index(patches.to(self.device), side, seen.kept)
            for patches in (group.patches, group.last_read())
        )
        return self.guide_next.loss(where, first, next_one) + self.guide_here.loss(where, first, last_one)

    def logits(self, seen: Seen, text: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Predict what follows the prompt and each token of the text. (B, T) text -> (B, 1 + T, V).

        A pruned token stays in the sequence, hidden from all queries, so that positions are those of the
        whole sequence.
        """
        language_model = self.network.model.language_model
        batch, num_visual, _ = seen.embeds.shape
        embed = language_model.embed_tokens
        bos = embed(torch.full((batch, 1), BOS, device=self.device))
        embeds = torch.cat([bos, seen.embeds, embed(prompt).expand(batch, -1, -1), embed(text)], dim=1)
        hidden_keys = None
        if seen.kept is not None:
            after = embeds.shape[1] - 1 - num_visual
            hidden_keys = functional.pad(~seen.kept, (1, after), value=False)
        positions = torch.arange(embeds.shape[1], device=self.device)[None].expand(batch, -1)
        hidden = language_model(
            inputs_embeds=embeds,
            attention_mask=attention_masks(hidden_keys),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        logits: torch.Tensor = self.network.lm_head(hidden[:, num_visual + len(prompt) :]).float()
        return logits

    def _average_gradients(self, *, ended: bool) -> bool:
        if self.world == 1:
            return ended
        flags = torch.tensor([float(ended)], device=self.device)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), flags])
        distributed.all_reduce(flat)
        flat /= self.world
        sizes = [gradient.numel() for gradient in gradients]
        for parameter, part in zip(self.parameters, torch.split(flat[:-1], sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        return bool(flat[-1] > 0)

    def _update_mean(self) -> None:
        decay = min(self.settings.run.ema_decay, 1 - 1 / (2 + self.progress.step))
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.mean[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def evaluate(self, stage: Stage) -> dict[str, float]:
        """Measure the share of characters that are named right after the true text before them.

        Reads pages in unseen fonts with the running mean of the weights.
        """
        trained = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.mean)
        right = printed = 0
        styles = self.settings.styles(stage)
        for index in range(self.settings.run.eval_pages):
            rng = random.Random(HELD_OUT_SEED + index)
            batch = to_batch(self.unseen.views(rng, styles[index % len(styles)], 1.0))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                seen = Seen(self.visual_tokens(self.patches(batch.views)).float())
                tagged = stage.tagged_share > 0
                (group,) = targets(batch, tagged=tagged)
                ids = group.ids.to(self.device)
                logits = self.logits(seen, ids[:, :-1], self.prompts[tagged])
            is_printed = group.patches.to(self.device) != IGNORED
            right += int((logits.argmax(-1) == ids)[is_printed].sum())
            printed += int(is_printed.sum())
        self.network.load_state_dict(trained)
        return {"unseen_fonts_right": right / max(1, printed)}

    def _log(self, stage: Stage, values: dict[str, float]) -> None:
        if self.rank != 0:
            return
        progress = self.progress
        row = {"stage": stage.name, "step": progress.step, "pages": progress.pages}
        row |= {"minutes": round(progress.seconds / 60, 2)}
        row |= {key: round(value, 4) for key, value in values.items()}
        line = json.dumps(row)
        print(line, flush=True)
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def save(self) -> None:
        """Replace the saved state in one step: a run killed while saving resumes from the state before."""
        if self.rank != 0:
            return
        partial = self.run / "state.partial"
        progress = self.progress
        torch.save(
            {
                "network": self.network.state_dict(),
                "head": self.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "mean": self.mean,
                "progress": [progress.stage, progress.step, progress.pages, progress.seconds],
                "runs": [run.model_dump() for run in (*self.earlier, self._facts())],
            },
            partial,
        )
        partial.replace(self.run / "state.pt")

    def _facts(self) -> RunFacts:
        on_gpu, progress = self.device.type == "cuda", self.progress
        return RunFacts(
            pages_seen=progress.pages,
            minutes=round(progress.seconds / 60, 1),
            device=f"{self.world} x {torch.cuda.get_device_name(self.device) if on_gpu else 'CPU'}",
            stage=progress.stage,
            step=progress.step,
        )

    def resume(self) -> None:
        state = torch.load(self.run / "state.pt", map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean = state["mean"]
        self.earlier = tuple(RunFacts.model_validate(run) for run in state["runs"][:-1])
        stage, step, pages, seconds = state["progress"]
        self.progress = Progress(int(stage), int(step), int(pages), float(seconds))


def learning_rate(stage: Stage, step: int) -> float:
    first, last = stage.lr
    if step < stage.warmup:
        return first * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"), help="state and log live here")
    parser.add_argument("--start", type=Path, help="checkpoint folder to grow from when the run is new")
    parser.add_argument("--minutes", type=float, default=math.inf, help="wall-clock budget")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="fonts and words are looked for under it"
    )
    parser.add_argument("--render-processes", type=int, help="that render ahead (default: the settings')")
    arguments = parser.parse_args()
    if arguments.processes > 1 and "RANK" not in os.environ:
        sys.exit(start_processes(arguments.processes, sys.argv[1:]))
    arguments.run.mkdir(parents=True, exist_ok=True)
    settings = load_settings(arguments.settings, arguments.root)
    trainer = Trainer(settings, arguments.run, arguments.start, arguments.render_processes)
    if (arguments.run / "state.pt").exists():
        trainer.resume()
    done = trainer.train(arguments.minutes)
    print("curriculum done" if done else "budget spent; run again to go on")


if __name__ == "__main__":
    main()
