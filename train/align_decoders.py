"""Stage 2, decoding-side alignment: caption → signal tokens. Trains the output projections and the signal rows.

Usage: python -m nextgpt.train.align_decoders --config train/configs/nano/align_decoders.yaml [key=value ...]
"""

from nextgpt.train.stages import main

if __name__ == "__main__":
    main("align_decoders")
