"""A real chat as one picture, for the README: asks the pipeline, and draws what was said.

`python -m nextgpt.demo.transcript -o demo/assets/chat.png --seed 0 "Draw a cat." "Now on red." "picture.png What is this?"`
A message that begins with the name of an existing file attaches it. Sounds are drawn as waves, clips as a few frames.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nextgpt.events import Media, Reply
from nextgpt.media import guess_modality, load_media
from nextgpt.modalities import MODALITIES
from nextgpt.pipeline import NextGPTPipeline

WIDTH, MARGIN, LINE, GAP = 760, 16, 24, 8
USER, ASSISTANT, PAGE = (219, 234, 254), (243, 244, 246), (255, 255, 255)


def chat(pipeline: NextGPTPipeline, messages: list[str], seed: int) -> list[tuple[str, list]]:
    """Asks one message after the other; returns who said what: texts and pictures in order."""
    conversation, said = [], []
    for message in messages:
        name, words = split_file(message)
        attached = [{"type": guess_modality(name), "path": name}] if name else []
        conversation.append({"role": "user", "content": [*attached, {"type": "text", "text": words}]})
        reply: Reply = pipeline(conversation, seed=seed)
        conversation.append(reply.message)
        seen = [as_picture(part["type"], load_media(part["type"], part["path"])) for part in attached]
        answered = [(part["type"], part[part["type"]]) for part in reply.message["content"]]
        said.append(("You", [*seen, words]))
        said.append(("NExT-GPT", [part if kind == "text" else as_picture(kind, part) for kind, part in answered]))
    return said


def split_file(message: str) -> tuple[str, str]:
    """The existing file that a message begins with, or nothing, and the words behind it; its path may hold spaces."""
    words = message.split(" ")
    for count in range(len(words), 0, -1):
        name = " ".join(words[:count])
        if Path(name).is_file():
            return name, " ".join(words[count:])
    return "", message


def as_picture(modality: str, media: Media) -> Image.Image | str:
    """A picture of any medium: of a sound how far it swings, of a clip a few frames; its name where its kind has none."""
    still = MODALITIES[modality].still
    return still(media) if still is not None else f"[{modality}]"


def render(said: list[tuple[str, list]]) -> Image.Image:
    """Draws the conversation as bubbles: the user's on the right, the assistant's on the left."""
    font = ImageFont.load_default(size=17)
    bubbles = []
    for who, parts in said:
        rows = [row for part in parts for row in (textwrap.wrap(part, 62) if isinstance(part, str) else [part])]
        heights = [LINE if isinstance(row, str) else row.height + GAP for row in rows]
        widths = [font.getlength(row) if isinstance(row, str) else row.width for row in rows]
        bubbles.append((who, rows, heights, int(max(widths, default=0)) + 2 * MARGIN, sum(heights) + 2 * MARGIN))
    page = Image.new("RGB", (WIDTH, sum(bubble[-1] + MARGIN for bubble in bubbles) + MARGIN), PAGE)
    draw, top = ImageDraw.Draw(page), MARGIN
    for who, rows, heights, width, height in bubbles:
        left = WIDTH - MARGIN - width if who == "You" else MARGIN
        draw.rounded_rectangle((left, top, left + width, top + height), 14, fill=USER if who == "You" else ASSISTANT)
        y = top + MARGIN
        for row, step in zip(rows, heights, strict=True):
            if isinstance(row, str):
                draw.text((left + MARGIN, y), row, fill="black", font=font)
            else:
                page.paste(row, (left + MARGIN, y))
            y += step
        top += height + MARGIN
    return page


def main() -> None:
    """Asks and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("messages", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    said = chat(NextGPTPipeline.from_pretrained(args.model), args.messages, args.seed)
    render(said).save(args.output)
    for who, parts in said:
        print(f"{who}: {' '.join(part if isinstance(part, str) else '[medium]' for part in parts)}")


if __name__ == "__main__":
    main()
