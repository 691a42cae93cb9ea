"""Makes the text encoder of the clip decoder, as `text_encoder` makes that of the pictures.

`python -m nextgpt.train.nano.models.clip_text_encoder --minutes 2`: linear readings of its states, with noise on them, name
the thing and its motion.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import choose_wordings, token_ids, train_tokenizer
from nextgpt.train.nano.models.text_encoder import WIDTH, Readings, new_text_encoder, train
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import MOTIONS, Clip, ClipWorld

LAYERS = 2


class ClipCaptions:
    """The captions of all clips as token ids.

    Args:
        world: gives things and motions.
        tokenizer: must know the motions' words.
    """

    def __init__(self, world: ClipWorld, tokenizer: CLIPTokenizer, device: torch.device):
        wordings = [[concept["name"], *concept["synonyms"]] for concept in world.world.concepts]
        most = max(map(len, wordings))
        texts = [
            Clip((some * most)[wording], motion).caption
            for some in wordings
            for wording in range(most)
            for motion in world.motions
        ]
        ids = token_ids(tokenizer, texts)
        self.ids = ids.view(len(wordings), most, len(world.motions), -1).to(device)
        self.counts = torch.tensor([len(some) for some in wordings], device=device)
        self.empty = token_ids(tokenizer, [""])[0].to(device)

    def __call__(self, rows: Tensor, varied: bool = False) -> Tensor:
        """Clips as indices `[N, 2]` → token ids `[N, 16]`; `varied` says some names by a synonym."""
        concept, motion = rows.unbind(1)
        wording = choose_wordings(self.counts[concept]) if varied else torch.zeros_like(concept)
        return self.ids[concept, wording, motion]


def main() -> None:
    """Trains and saves."""
    args = loop.arguments(__doc__.split("\n")[0], "clip_text_encoder", minutes=2, batch=2048).parse_args()
    pictures, device = loop.start(args)
    world = ClipWorld(pictures)
    tokenizer = train_tokenizer(pictures, [*MOTIONS])
    captions = ClipCaptions(world, tokenizer, device)
    rows = world.rows("train").to(device)
    sizes = {"concept": len(pictures.names), "motion": len(world.motions)}
    readings = Readings(WIDTH, sizes).to(device)
    encoder = new_text_encoder(tokenizer, LAYERS).to(device)

    def draw(count: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = sampling.draw(rows, count)
        concept, motion = chosen.unbind(1)
        return captions(chosen, varied=True), {"concept": concept, "motion": motion}

    run = train(args, encoder, tokenizer, readings, draw)
    run.write_figures(args.out, parameters=loop.parameter_count(encoder))


if __name__ == "__main__":
    main()
