"""Makes the encoder's vision tower: an ImageBind, small, trained on pictures and clips of the world.

`python -m nextgpt.train.nano.models.encoder --minutes 6` goes on from its last checkpoint when started again. Pictures learn
by contrast with their captions, and pictures and clips by linear readings. The text tower and the readings are left
behind: the assistant reads text by its language model. It knows nothing of the assistant, save that a linear projection
must be able to read what a picture shows and how a clip moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextgpt.encoders import preprocessor_for
from nextgpt.encoders.imagebind import ImageBind
from nextgpt.encoders.imagebind.configuration import ImageBindConfig
from nextgpt.train.nano.models import loop
from nextgpt.train.nano.models.captions import CONTEXT, CaptionTable, picture_captions, picture_numbers, unknown_caption
from nextgpt.train.nano.models.targets import SMOOTHING, TARGETS_WEIGHT, OrthogonalTargets, Probes, away_from
from nextgpt.train.nano.world import sampling
from nextgpt.train.nano.world.clips import FPS, FRAMES, ClipRenderer, ClipWorld, KeptClips
from nextgpt.train.nano.world.pictures import SIDE, Renderer, World
from nextgpt.train.nano.world.sampling import IGNORED
from nextgpt.train.nano.world.unknown_pictures import UnknownClips, UnknownPictures, augment, augment_clips, turn_some

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
UNKNOWN_SHARE = 1 / 10
ELSEWHERE_SHARE = 1 / 6
AS_RENDERED = 1 / 2  # of the world's pictures: in their place and not augmented
SIDES = (20, 62)  # pixels, of artwork elsewhere
CLIP_SHARE = 1 / 3  # so many clips for a picture
CLIP_LOOKS = 10  # in which each of them is seen: its style and background; of 6 it named 60% of unseen clips
EMBED_DIM = 256  # of both towers
GROUP = 4  # pictures of one concept that stand in a batch together, told apart by style, background and size only
PARTS = ("concept", "style", "background", "size")


def new_config(**changes) -> ImageBindConfig:
    """The configuration of the nano encoder."""
    return ImageBindConfig(
        **{
            "towers": ("vision",),
            "out_embed_dim": EMBED_DIM,
            "image_size": 64,
            "kernel_size": (2, 16, 16),
            "video_frames": 2,
            "video_clips": 4,
            "video_clip_seconds": 0.75,  # the first frame and the third: two frames a patch show what moves, and how
            "video_crops": 1,
            "vision_embed_dim": 192,
            "vision_num_blocks": 4,
            "vision_num_heads": 6,
        }
        | changes
    )


def new_towers(vocab_size: int) -> ImageBind:
    """The vision tower (2.2 M parameters) and, for training, a text tower over the world's own words."""
    return ImageBind(
        new_config(
            towers=("vision", "text"),
            text_vocab_size=vocab_size,
            text_context_length=CONTEXT,
            text_embed_dim=192,
            text_num_blocks=2,
            text_num_heads=6,
        )
    )


class VisionTower(nn.Module):
    """Towers that look at pictures and clips as they are rendered."""

    def __init__(self, towers: ImageBind):
        super().__init__()
        self.towers = towers
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(towers.config, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        views = torch.stack(preprocessor_for(towers.config).frame_indices(FRAMES, FPS))  # [views, frames of each]
        self.register_buffer("views", views, persistent=False)

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures `[N, 3, 64, 64]` in 0..1 → embeddings `[N, 256]`."""
        return self.towers.embed("image", (pictures - self.image_mean) / self.image_std)

    def embed_clips(self, clips: Tensor) -> Tensor:
        """Clips `[N, 3, 8, 64, 64]` in 0..1 → embeddings `[N, 256]`."""
        normal = (clips - self.image_mean[:, None]) / self.image_std[:, None]
        return self.towers.embed("video", normal[:, :, self.views].transpose(1, 2))


class Contrast(VisionTower):
    """Towers and probes as one network, with the training loss."""

    def __init__(self, towers: ImageBind, probes: Probes):
        super().__init__(towers)
        self.probes = probes

    def forward(self, pictures: Tensor, ids: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Parts of the loss, and the embeddings `[N, 256]`.

        Args:
            pictures: `[N, 3, 64, 64]` in 0..1.
            ids: token ids of the captions of the first of them, `[M, 16]`.
            targets: what they show, `[N, 4]` (`PARTS`); `IGNORED` for the style, background, size of unknown pictures.

        There may be fewer captions than pictures: the last pictures are only read.
        """
        seen, read = self.embed_pictures(pictures), self.towers.embed("text", ids)  # the text is scaled already
        similar = seen[: len(ids)].float() @ read.float().T  # [M, M]
        told = targets[: len(ids)]
        same = (told[:, None] == told[None]).all(-1).float()  # several captions may fit a picture
        same = same / same.sum(1, keepdim=True)
        parts = {"contrast": (F.cross_entropy(similar, same) + F.cross_entropy(similar.T, same)) / 2}
        return parts | self.probes.losses(seen.float(), targets), seen


def clip_losses(
    network: Contrast, motions: Probes, sums: OrthogonalTargets, moving: OrthogonalTargets, clips: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Parts of the loss on clips: the thing is read as from a picture, the motion by a reading of its own.

    A clip's embedding should be the sum of the thing's vector, as pictures have it, and of the motion's.

    Args:
        clips: `[N, 3, 8, 64, 64]` in 0..1.
        targets: concept and motion, `[N, 2]`; `IGNORED` for the motion of clips that are unknown or turned.
    """
    watched = network.embed_clips(clips).float()
    concepts = network.probes(watched)["concept"]
    concept = F.cross_entropy(concepts, targets[:, 0], label_smoothing=SMOOTHING)
    vectors = sums(F.pad(targets[:, :1], (0, len(PARTS) - 1), value=IGNORED)) + moving(targets[:, 1:])
    parts = {"clip_concept": concept, "clip_sums": TARGETS_WEIGHT * away_from(vectors, watched)}
    return parts | motions.losses(watched, targets[:, 1:])


def clips_to_learn(moving: ClipWorld, most: int | None = None) -> Tensor:
    """The training split's clips in many looks, and clips of what is never filmed, `[N, 4]` as `vary` has them.

    So that a thing is known however it moves, more things have to be seen to move than the world films.
    """
    filmed = moving.vary(moving.rows("train", most).repeat(CLIP_LOOKS, 1))
    return torch.cat([filmed, moving.never_filmed(most)])


def draw_groups(rows: Tensor, count: int) -> Tensor:
    """`count` pictures as indices: half at random, half in groups that show one concept in different ways."""
    chosen = torch.randint(len(rows), (count,), device=rows.device)
    grouped = count // 2 // GROUP * GROUP
    first = chosen[:grouped:GROUP].repeat_interleave(GROUP)
    # The rows are sorted by concept, some 40 each: near ones mostly share it.
    near = first + torch.randint(-12, 13, (grouped,), device=rows.device)
    chosen[:grouped] = near.clamp(0, len(rows) - 1)
    return rows[chosen[torch.randperm(count, device=rows.device)]]


def draw_elsewhere(renderer: Renderer, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Artwork in any size and place on colours that are none of the world's, so that things are known anywhere.

    Returns:
        pictures `[count, 3, 64, 64]` in 0..1, and what they show `[count, 4]`: no background and no size.
    """
    targets = sampling.draw(rows, count)
    colours = torch.rand(8, count, 3, device=rows.device)
    nearest = (colours[:, :, None] - renderer.backgrounds).abs().amax(3).amin(2)  # to a colour of the world
    colours = colours[nearest.argmax(0), torch.arange(count, device=rows.device)]
    sides, right, down = torch.rand(3, count, device=rows.device)
    sides = SIDES[0] + (SIDES[1] - SIDES[0]) * sides
    room = (SIDE - sides) / 2
    pictures = renderer.place(targets, sides, room * (2 * right - 1), room * (2 * down - 1), colours=colours)
    targets = targets.clone()
    targets[:, 2:] = IGNORED
    return pictures, targets


@torch.no_grad()
def measure(
    network: Contrast, world: World, renderer: Renderer, captions: CaptionTable, rows: Tensor, unknown: Tensor
) -> dict:
    """Shares of right readings of pictures given as indices, and of pictures from outside the world."""
    pictures = renderer(rows)
    seen = torch.cat([network.embed_pictures(part) for part in pictures.split(256)])
    read = torch.cat([network.towers.embed("text", ids) for ids in captions(picture_numbers(world, rows)).split(256)])
    said = {part: logits.argmax(1) for part, logits in network.probes(seen).items()}
    figures = {part: (said[part] == target).float().mean().item() for part, target in zip(PARTS, rows.T, strict=True)}
    right = torch.arange(len(rows), device=rows.device)
    figures["picture_to_caption"] = ((seen @ read.T).argmax(1) == right).float().mean().item()
    figures["caption_to_picture"] = ((read @ seen.T).argmax(1) == right).float().mean().item()
    last = network.probes.heads["concept"].out_features - 1
    said_unknown = network.probes(network.embed_pictures(unknown))["concept"].argmax(1) == last
    figures["unknown"] = said_unknown.float().mean().item()
    return {name: round(value, 4) for name, value in figures.items()}


@torch.no_grad()
def measure_clips(network: Contrast, motions: Probes, renderer: ClipRenderer, rows: Tensor, unknown: Tensor) -> dict:
    """Shares of right readings of clips given as indices, and of clips from outside the world."""
    watched = torch.cat([network.embed_clips(renderer(part)) for part in rows.split(64)])
    unknown = network.embed_clips(unknown)
    last = network.probes.heads["concept"].out_features - 1
    right = {
        "clip_concept": network.probes(watched)["concept"].argmax(1) == rows[:, 0],
        "motion": motions(watched)["motion"].argmax(1) == rows[:, 1],
        "clip_unknown": network.probes(unknown)["concept"].argmax(1) == last,
    }
    return {name: round(each.float().mean().item(), 4) for name, each in right.items()}


def main() -> None:
    """Trains, measures and saves the vision tower."""
    parser = loop.arguments(__doc__.split("\n")[0], "encoder", LEARNING_RATE, loop.HIDDEN_RATE)
    parser.add_argument("--pictures-only", action="store_true", help="learn no clips")
    args = parser.parse_args()
    world, device = loop.start(args)
    captions = picture_captions(world)[0].to(device)
    renderer = Renderer(torch.from_numpy(world.art).to(device))
    rows = sampling.combinations(world, "train", args.concepts, device)
    unknown = UnknownPictures(world, "train", renderer, rows)
    moving = ClipWorld(world)
    clip_renderer = ClipRenderer(world, renderer)
    if not args.pictures_only:
        clips = KeptClips(clip_renderer, clips_to_learn(moving, args.concepts).to(device))
        unknown_clips = UnknownClips(unknown, moving)

    towers = new_towers(len(captions.tokenizer))
    loop.PatchProjection.replace_in(towers)
    counts = (len(world.names) + 1, len(world.styles), len(world.backgrounds), len(world.sizes))
    sizes = dict(zip(PARTS, counts, strict=True))
    network = Contrast(towers, Probes(sizes, EMBED_DIM, scale=EMBED_DIM**0.5)).to(device)
    sums = OrthogonalTargets(sizes, towers.embed_dim).to(device)
    motions = Probes({"motion": len(moving.motions)}, EMBED_DIM, scale=EMBED_DIM**0.5).to(device)
    motion_sums = OrthogonalTargets({"motion": len(moving.motions)}, towers.embed_dim, first=sum(counts)).to(device)
    trained, hidden = [network, motions], [towers.modality_trunks]
    optimizer = loop.muon(trained, hidden, args.learning_rate, WEIGHT_DECAY, args.hidden_rate)
    compute = torch.compile(network) if args.compile else network
    unknowns, elsewhere = int(args.batch * UNKNOWN_SHARE), int(args.batch * ELSEWHERE_SHARE)
    clip_count = 0 if args.pictures_only else int(args.batch * CLIP_SHARE)
    unknown_count = math.ceil(clip_count * UNKNOWN_SHARE)
    unknown_target = torch.tensor([[len(world.names), IGNORED, IGNORED, IGNORED]], device=device)
    unknown_ids = unknown_caption(captions).expand(unknowns, -1)

    kept = {"network": network, "motions": motions}
    run = loop.Loop(args.out, args.minutes, optimizer, kept, args.start_from)
    for _ in run:
        chosen = draw_groups(rows, args.batch - unknowns - elsewhere)
        anywhere, what = draw_elsewhere(renderer, rows, elsewhere)
        plain = int(len(chosen) * AS_RENDERED)
        shown = [renderer(chosen[plain:], shift=3, stretch=0.08), unknown(unknowns, shift=3, stretch=0.08), anywhere]
        pictures = torch.cat([renderer(chosen[:plain]), augment(torch.cat(shown))])
        ids = torch.cat([captions(picture_numbers(world, chosen), varied=True), unknown_ids])
        targets = torch.cat([chosen, unknown_target.expand(unknowns, -1), what])
        with loop.autocast(device):
            parts, seen = compute(pictures, ids, targets)
            parts["sums"] = TARGETS_WEIGHT * away_from(sums(targets), seen)
            if clip_count:
                watched, moved = turn_some(*clips(clip_count - unknown_count, shift=3))
                watched = torch.cat([watched, unknown_clips(unknown_count)])
                moved = torch.cat([moved, unknown_target[:, :2].expand(unknown_count, -1)])
                parts |= clip_losses(network, motions, sums, motion_sums, augment_clips(watched), moved)
        loop.update(optimizer, sum(parts.values()))
        run.record(args.batch + clip_count, **parts)

    network.eval()
    dev = sampling.combinations(world, "dev", args.concepts, device)
    torch.manual_seed(0)
    unknown = UnknownPictures(world, "dev", renderer, dev)
    figures = measure(network, world, renderer, captions, dev, unknown(200))
    if not args.pictures_only:
        dev_clips = moving.vary(moving.rows("dev", args.concepts).to(device))
        figures |= measure_clips(network, motions, clip_renderer, dev_clips, UnknownClips(unknown, moving)(100))
    shipped = ImageBind(new_config())
    shipped.load_state_dict({name: towers.state_dict()[name] for name in shipped.state_dict()})
    shipped.bfloat16().save_pretrained(args.out)
    run.write_figures(args.out, parameters=loop.parameter_count(shipped), dev=figures)


if __name__ == "__main__":
    main()
