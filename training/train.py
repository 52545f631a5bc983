"""Train the pocket checkpoint.

    python -m training.train --settings training/pocket.toml --run runs/pocket --minutes 90

Resumes from the run folder by itself. Ends with the curriculum or the wall-clock budget, always at a saved
state.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from rtprune import VisualTokens, prune_batch, text_densities
from training.batches import CLASS_OF, IGNORED, Batch, batches, to_batch
from training.errors_in_text import character_error_rate
from training.model import DenseHead, fresh_network, grow_from
from training.render import PageRenderer, PageStyle
from training.settings import Settings, Stage, load_settings
from training.text import TextSource
from training.vocabulary import BOS, EOS, GROUNDED_PROMPT, PLAIN_PROMPT, build_tokenizer

HELD_OUT_SEED = 1_000_000_000


@dataclass(slots=True)
class Progress:
    stage: int = 0
    step: int = 0
    pages: int = 0
    seconds: float = 0.0


class Trainer:
    """One run: network, dense head, optimiser, running mean, and where the curriculum stands."""

    def __init__(self, settings: Settings, run: Path, start: Path | None) -> None:
        self.settings, self.run = settings, run
        torch.set_num_threads(settings.run.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = fresh_network(settings.model, settings.run.seed)
        if start is not None:
            grow_from(self.network, start)
        self.network.set_experts_implementation("grouped_mm")
        self.network.to(self.device)
        self.head = DenseHead(settings.model.decoder_width, len(CLASS_OF) + 1).to(self.device)
        self.parameters = [*self.network.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=settings.run.weight_decay
        )
        self.mean = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.progress = Progress()
        fonts = [settings.render.font_folder / font for font in settings.render.fonts]
        self.renderer = PageRenderer(TextSource(settings.render.words), fonts)
        tokenizer = build_tokenizer()
        self.prompts = [
            torch.tensor(tokenizer.encode(prompt, add_special_tokens=False).ids, device=self.device)
            for prompt in (GROUNDED_PROMPT, PLAIN_PROMPT)
        ]
        self.tokenizer = tokenizer
        class_weight = torch.ones(len(CLASS_OF) + 1, device=self.device)
        class_weight[0] = 0.1  # most cells hold no character
        self.class_weight = class_weight

    def train(self, minutes: float) -> bool:
        """True when the whole curriculum is done."""
        deadline = time.monotonic() + 60 * minutes
        while self.progress.stage < len(self.settings.stage):
            if not self._train_stage(self.settings.stage[self.progress.stage], deadline):
                return False
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self.save()
        return True

    def _train_stage(self, stage: Stage, deadline: float) -> bool:
        run, progress = self.settings.run, self.progress
        num_steps = stage.pages // run.batch
        style = PageStyle(self.settings.model.view_px, stage.em_px, stage.max_lines)
        seed = run.seed + progress.stage * 100_000_000
        tally = {"loss": 0.0, "sequence": 0.0, "norm": 0.0, "cells": 0.0}
        began = time.monotonic()
        for step, batch in batches(self.renderer, style, seed, run.batch, progress.step):
            if step >= num_steps:
                return True
            for key, value in self._step(batch, stage, step, num_steps).items():
                tally[key] += value / run.log_every
            progress.step, progress.pages = step + 1, progress.pages + run.batch
            if progress.step % run.log_every == 0:
                now = time.monotonic()
                progress.seconds += now - began
                self._log(stage, tally | {"pages_per_s": run.log_every * run.batch / (now - began)})
                tally, began = dict.fromkeys(tally, 0.0), now
            ended = time.monotonic() > deadline
            if progress.step % run.save_every == 0 or ended:
                self.save()
            if progress.step % (4 * run.save_every) == 0 and stage.sequence_weight > 0:
                self._log(stage, {"character_error": self.evaluate(style)})
                began = time.monotonic()
            if ended:
                return False
        return True

    def _step(self, batch: Batch, stage: Stage, step: int, num_steps: int) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(stage, step, num_steps)
        rng = random.Random(f"{stage.name}{step}")
        with torch.autocast(self.device.type, torch.bfloat16):
            patches = self._patches(batch.pixels)
            dense, cells_right = self._dense_loss(patches, batch.cells.to(self.device))
            sequence = torch.zeros((), device=self.device)
            if stage.sequence_weight > 0:
                prompt = rng.choice(self.prompts)
                visual = self.visual_tokens(patches).float()
                is_kept = None
                if rng.random() < stage.pruned_share:
                    visual, is_kept = pruned(visual, batch.pixels.to(self.device))
                sequence = self._sequence_loss(visual, is_kept, batch.text_ids.to(self.device), prompt)
        norm = norm_loss(patches.float(), batch.cells.to(self.device))
        loss = stage.dense_weight * dense + stage.sequence_weight * sequence + stage.norm_weight * norm
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, self.settings.run.grad_clip)
        self.optimizer.step()
        self._update_mean()
        return {
            "loss": loss.item(),
            "sequence": sequence.item(),
            "norm": norm.item(),
            "cells": cells_right,
        }

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, V, V) -> (B, N, D) projected patch tokens."""
        model = self.network.model
        features = model.vision_tower(pixels.to(self.device)).last_hidden_state
        projected: torch.Tensor = model.multi_modal_projector(features)
        return projected

    def _dense_loss(self, patches: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, float]:
        logits = self.head(patches).float()
        loss = functional.cross_entropy(logits.flatten(0, 2), cells.flatten(), weight=self.class_weight)
        printed = cells > 0
        right = (logits.argmax(-1) == cells)[printed].float().mean().item() if printed.any() else 1.0
        return loss, right

    def visual_tokens(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, L, D): a row break after each row of patches, the view separator last."""
        model = self.network.model
        batch, num_patches, width = patches.shape
        side = math.isqrt(num_patches)
        rows = patches.view(batch, side, side, width)
        breaks = model.image_newline.to(patches.dtype).expand(batch, side, 1, width)
        grid = torch.cat([rows, breaks], dim=2).flatten(1, 2)
        return torch.cat([grid, model.view_separator.to(patches.dtype).expand(batch, 1, width)], dim=1)

    def prefix(self, visual: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, 1 + L + prompt, D): bos, visual tokens, prompt."""
        embed = self.network.model.language_model.embed_tokens
        bos = embed(torch.full((len(visual), 1), BOS, device=self.device))
        return torch.cat([bos, visual, embed(prompt).expand(len(visual), -1, -1)], dim=1)

    def _sequence_loss(
        self,
        visual: torch.Tensor,
        is_kept: torch.Tensor | None,
        text_ids: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """``is_kept``: (B, L) bool; what is not is hidden from attention, which is what removing it does."""
        language_model = self.network.model.language_model
        prefix = self.prefix(visual, prompt)
        text = language_model.embed_tokens(text_ids.clamp(min=0)[:, :-1])
        embeds = torch.cat([prefix, text], dim=1)
        mask, positions = None, None
        if is_kept is not None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device)
            mask[:, 1 : 1 + is_kept.shape[1]] = is_kept.long()
            # explicit, or the gaps would be closed
            positions = torch.arange(embeds.shape[1], device=self.device).expand(len(embeds), -1)
        hidden = language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, prefix.shape[1] - 1 :]  # (B, T, D): each predicts the next character
        logits = self.network.lm_head(hidden).float()
        return functional.cross_entropy(logits.flatten(0, 1), text_ids.flatten(), ignore_index=IGNORED)

    def _update_mean(self) -> None:
        decay = min(self.settings.run.ema_decay, 1 - 1 / (1 + self.progress.pages / self.settings.run.batch))
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.mean[name].lerp_(tensor, 1 - decay)

    @torch.inference_mode()
    def evaluate(self, style: PageStyle) -> float:
        """Character error rate of the running mean on held-out pages: greedy, nothing pruned."""
        trained = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.mean)
        self.network.eval()
        pages = [
            self.renderer.page(HELD_OUT_SEED + index, style) for index in range(self.settings.run.eval_pages)
        ]
        batch = to_batch(pages, style.view_px)
        prefix = self.prefix(self.visual_tokens(self._patches(batch.pixels)).float(), self.prompts[0])
        ids = self.network.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=160,
            do_sample=False,
            eos_token_id=EOS,
        )
        read = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids.tolist()]
        self.network.load_state_dict(trained)
        self.network.train()
        return character_error_rate(read, list(batch.texts))

    def _log(self, stage: Stage, values: dict[str, float]) -> None:
        progress = self.progress
        row = {"stage": stage.name, "step": progress.step, "pages": progress.pages}
        row |= {"minutes": round(progress.seconds / 60, 2)}
        row |= {key: round(value, 4) for key, value in values.items()}
        line = json.dumps(row)
        print(line, flush=True)
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def save(self) -> None:
        """Replace the saved state at once: a run killed while saving resumes from the one before."""
        partial = self.run / "state.partial"
        progress = self.progress
        torch.save(
            {
                "network": self.network.state_dict(),
                "head": self.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "mean": self.mean,
                "progress": [progress.stage, progress.step, progress.pages, progress.seconds],
            },
            partial,
        )
        partial.replace(self.run / "state.pt")

    def resume(self) -> None:
        state = torch.load(self.run / "state.pt", map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean = state["mean"]
        stage, step, pages, seconds = state["progress"]
        self.progress = Progress(int(stage), int(step), int(pages), float(seconds))


def norm_loss(patches: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(B, N, D), (B, N, 32) -> hinge: each patch with text is to have a norm 15 % above the largest without.

    RTPrune keeps tokens of large norm. In a large model norms tell text from paper by themselves; a small one
    has to be told.
    """
    has_text = (cells > 0).any(-1)  # (B, N)
    log_norms = patches.norm(dim=-1).log()
    paper = log_norms.masked_fill(has_text, -torch.inf).amax(1, keepdim=True)  # -inf where all is text
    hinge = functional.relu(math.log(1.15) + paper - log_norms)
    return hinge[has_text].mean() if has_text.any() else hinge.sum() * 0


def pruned(visual: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L, D) visual tokens -> the same with what RTPrune folds in added, and (B, L) bool, which are kept.

    The fold is a constant to the gradient: the method's answer has none.
    """
    batch, length, _ = visual.shape
    side = math.isqrt(length)  # L = side * (side + 1) + 1
    is_patch = torch.tensor(([True] * side + [False]) * side + [False])
    densities = text_densities(pixels, side, side)
    pages = prune_batch([VisualTokens(page.detach(), is_patch) for page in visual], densities)
    folded, is_kept = visual.detach().clone(), torch.zeros(batch, length, dtype=torch.bool)
    for index, page in enumerate(pages):
        folded[index, page.kept] = page.embeds
        is_kept[index, page.kept] = True
    return visual + (folded - visual.detach()), is_kept.to(visual.device)


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    first, last = stage.lr
    if step < stage.warmup:
        return first * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, num_steps - stage.warmup)
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=Path("training/pocket.toml"))
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"), help="state and log live here")
    parser.add_argument("--start", type=Path, help="checkpoint folder to grow from when the run is new")
    parser.add_argument("--minutes", type=float, default=math.inf, help="wall-clock budget")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(load_settings(arguments.settings), arguments.run, arguments.start)
    if (arguments.run / "state.pt").exists():
        trainer.resume()
    done = trainer.train(arguments.minutes)
    print("curriculum done" if done else "budget spent; run again to go on")


if __name__ == "__main__":
    main()
